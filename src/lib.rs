//! groupcast takes notification jobs from RabbitMQ, calls the Tencent Chat REST API
//! `send_group_system_notification` no faster than it allows, and answers every job.
//!
//! The journey of a job: [`subscribe`] receives a delivery. [`accept`] turns it into a valid
//! [`job::Job`]. [`progress`] looks up how far the job came before. [`send`] sends its batches
//! through [`api`], when [`pace`] allows it. [`settle`] publishes the dead letter and the result,
//! and records the result. No stage starts another one. Only [`journey`] knows their order.

pub mod daemon;
pub mod journey;

pub mod accept;
pub mod api;
pub mod pace;
pub mod progress;
pub mod send;
pub mod settle;
pub mod subscribe;

pub mod admin;
pub mod broker;
pub mod cli;
pub mod config;
pub mod job;
pub mod sandbox;
pub mod telemetry;

mod amqp;
pub mod clock;
mod connections;
pub mod dead_letters;
pub mod delay;
pub mod diagnosis;
pub mod failure;
pub mod pem;
pub mod watch;

#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

//! groupcast takes notification jobs from RabbitMQ, calls the Tencent Chat REST API
//! `send_group_system_notification` no faster than it allows, and answers every job.
//!
//! The journey of a job: [`subscribe`] hands deliveries out. [`accept`] makes one into a valid
//! [`job::Job`]. [`progress`] knows how far it came before. [`send`] sends its batches, one after
//! the other as [`pace`] allows, through [`api`], which judges the answers. [`settle`] publishes
//! what the job owes. No stage starts another; [`journey`] alone knows their order.

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
pub mod dead_letters;
pub mod delay;
pub mod diagnosis;
pub mod failure;
pub mod pem;
pub mod watch;

#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

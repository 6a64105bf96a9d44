//! groupcast takes notification jobs from RabbitMQ, calls the Tencent Chat REST API
//! `send_group_system_notification` no faster than it allows, and answers every job.
//!
//! The journey of a job, in the order of the folders: [`accept`] makes a delivery into a valid [`job::Job`],
//! [`pace`] decides which batch goes next and when, [`send`] makes one call and judges the answer, [`settle`] publishes
//! what the job owes. No stage starts another; [`pipeline`] alone knows their order.

pub mod config;

pub mod pipeline;

pub mod accept;
pub mod pace;
pub mod send;
pub mod settle;

pub mod admin;
mod amqp;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod dead_letters;
pub mod delay;
pub mod diagnosis;
pub mod dispatch;
pub mod job;
pub mod outcome;
pub mod sandbox;
pub mod telemetry;
pub mod watch;

#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

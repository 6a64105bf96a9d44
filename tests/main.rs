//! The promises of the daemon, a file each, kept by the real binary against a real broker and a scripted API.

mod admin;
mod bad_input;
mod command_line;
mod connections;
mod dead_letters;
mod delivery;
mod documents;
mod examples;
mod failures;
mod kubernetes;
mod memory;
mod metrics;
mod operations;
mod pacing;
mod parking;
mod recovery;
mod reload;
mod replies;
mod secrets;
mod soak;
mod spans;
mod state_faults;
mod state_store;
mod status_page;
mod support;
mod whose_fault;

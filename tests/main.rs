//! The promises of the daemon, a file each, kept by the real binary against a real broker and a scripted API.

mod admin;
mod bad_input;
mod command_line;
mod delivery;
mod documents;
mod failures;
mod memory;
mod pacing;
mod parking;
mod recovery;
mod reload;
mod replies;
mod secrets;
mod soak;
mod state_faults;
mod state_store;
mod support;
mod whose_fault;

//! Makes one attempt at one batch. No other module talks to the API.
//!
//! [`target`] has the address and the identity, [`user_sig`] signs, and [`call`] sends.
//! [`classify`] judges the answer by the tables in [`codes`] and [`http_status`]. [`explain`]
//! explains it to people. [`command`] knows the differences between the two calls of the API.

pub mod answer;
pub mod call;
pub mod classify;
pub mod codes;
pub mod command;
pub mod endpoints;
pub mod explain;
pub mod http_status;
pub mod target;
pub mod user_sig;

//! One attempt at one batch: [`target`] says where to and in whose name, [`user_sig`] signs,
//! [`call`] sends, [`classify`] judges the answer by the tables in [`codes`] and [`http_status`],
//! [`explain`] says it to people, [`probe`] is the call that reaches no user. Nothing else talks to
//! the API.

pub mod answer;
pub mod call;
pub mod classify;
pub mod codes;
pub mod endpoints;
pub mod explain;
pub mod http_status;
pub mod probe;
pub mod target;
pub mod user_sig;

//! One attempt at one batch: [`user_sig`] signs, [`call`] sends, [`classify`] judges the answer by the table in [`codes`],
//! [`retry`] says whether and when to try again. Nothing else talks to the API.

pub mod call;
pub mod classify;
pub mod codes;
pub mod retry;
pub mod user_sig;

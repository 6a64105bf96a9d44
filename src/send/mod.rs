//! One attempt at one batch: sign, call, judge the answer, and say whether and when to try again.
//! Nothing else talks to the API.

pub mod user_sig;

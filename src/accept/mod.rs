//! From the broker to valid batches: [`consume`] keeps a subscription alive and hands deliveries out, [`envelope`] and
//! [`decode`] turn one into a [`Job`](crate::job::Job) or a [`Rejection`](crate::job::Rejection), [`split`] cuts the recipients.

pub mod consume;
pub mod convoy;
pub mod decode;
pub mod envelope;
pub mod lease;
pub mod prefetch;
pub mod split;

//! From a delivery to valid batches: [`envelope`] and [`decode`] turn one into a
//! [`Job`](crate::job::Job) or a [`Rejection`](crate::job::Rejection), [`split`] cuts the
//! recipients.

pub mod decode;
pub mod envelope;
pub mod split;

//! Turns a delivery into a valid [`Job`](crate::job::Job) or a
//! [`Rejection`](crate::job::Rejection). [`envelope`] reads the properties and headers, [`decode`]
//! reads the body, and [`split`] cuts the recipients into batches.

pub mod decode;
pub mod envelope;
pub mod split;

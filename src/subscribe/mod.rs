//! Receives deliveries from the broker and acknowledges them. [`consume`] keeps an app's
//! subscription alive and hands out its deliveries. [`jobs_queue`] is the broker's side of it.
//! [`prefetch`] decides how many jobs to hold. A [`lease`] is the right to make calls for a
//! delivery. [`ack_batch`] acknowledges several deliveries together.

pub mod ack_batch;
pub mod consume;
pub mod jobs_queue;
pub mod lease;
pub mod prefetch;

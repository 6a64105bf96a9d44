//! From the broker to the work on a delivery, and back to its acknowledgement: [`consume`] keeps an
//! app's subscription alive and hands deliveries out, [`jobs_queue`] is the broker's side of it,
//! [`prefetch`] says how many to hold, a [`lease`] is the right to make calls for one, and
//! [`ack_batch`] acknowledges several together.

pub mod ack_batch;
pub mod consume;
pub mod jobs_queue;
pub mod lease;
pub mod prefetch;

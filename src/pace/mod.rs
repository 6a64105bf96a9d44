//! Who goes next, and when. Pure: the time comes in, a decision comes out; nothing here waits or
//! sends.
//!
//! [`Pacer`] says when the next call may leave: a [`token_bucket`] shapes bursts, a [`send_window`]
//! of the last sends makes "never more than the limit in any second" a theorem. [`FairQueue`] says
//! whose batch it is.

pub mod fair_queue;
pub mod pacer;
pub mod send_window;
pub mod token_bucket;

pub use fair_queue::FairQueue;
pub use pacer::{Pacer, SendSlot, Turn};

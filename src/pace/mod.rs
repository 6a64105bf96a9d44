//! Decides which batch goes next, and when. This code is pure: it gets the time and returns a
//! decision. It neither waits nor sends.
//!
//! [`Pacer`] says when the next call may leave. A [`token_bucket`] limits bursts. A [`send_window`]
//! of the last sends guarantees that no second has more calls than the limit. [`FairQueue`] chooses
//! the batch. [`GroupPace`] does the same for each group as the window for the app.

pub mod fair_queue;
pub mod group_pace;
pub mod pacer;
pub mod send_window;
pub mod token_bucket;

pub use fair_queue::FairQueue;
pub use group_pace::{GroupPace, GroupSlot};
pub use pacer::{Pacer, SendSlot, Turn};

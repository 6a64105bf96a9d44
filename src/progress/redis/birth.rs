//! Whether the data are still the same: a key that is set once and never expires is gone only when
//! all is.

use std::sync::{Mutex, PoisonError};

use redis::Pipeline;
use tracing::warn;
use uuid::Uuid;

pub const BORN: &str = "groupcast:born";

/// The mark that was seen last.
#[derive(Default)]
pub struct Birth {
    seen: Mutex<Option<String>>,
}

impl Birth {
    /// Asks for the mark, and makes it if it is missing. A write, even where it is there: it fails
    /// where writes do. Never the same mark twice, or the one made after a loss could not be told
    /// from the one before.
    pub fn ask(&self, pipe: &mut Pipeline) {
        pipe.set_nx(BORN, new_mark()).ignore().get(BORN);
    }

    /// Tells of a mark that is not the one seen before, once.
    pub fn compare(&self, mark: String) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref().is_some_and(|before| *before != mark) {
            warn!("the state store has lost its data; jobs under way may be sent again");
        }
        *seen = Some(mark);
    }
}

pub fn new_mark() -> String {
    Uuid::new_v4().to_string()
}

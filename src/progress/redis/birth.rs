//! Detects that Redis has lost its data. A key that is set once and never expires is gone only if
//! all data are gone.

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
    /// Asks for the mark, and sets it if it is missing. The command is a write even if the mark is
    /// there, so it fails where writes fail. Each mark is unique: otherwise the mark made after a
    /// loss would equal the one before.
    pub fn ask(&self, pipe: &mut Pipeline) {
        pipe.set_nx(BORN, new_mark()).ignore().get(BORN);
    }

    /// Logs once if the mark is not the one seen before.
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

//! How many pieces of work are under way: as many as there are guards. Nobody counts down, so
//! nobody can forget to.

use std::sync::Arc;

#[derive(Debug, Default)]
pub struct Count(Arc<()>);

/// Counts until it is dropped.
#[derive(Debug)]
pub struct Guard {
    _count: Arc<()>,
}

impl Count {
    pub fn guard(&self) -> Guard {
        Guard { _count: self.0.clone() }
    }

    pub fn present(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// Work on a batch: it keeps its job from ending, and a call counts among those in flight, until
/// what came of it is recorded.
#[derive(Debug)]
pub struct Work {
    _of_job: Guard,
    _call: Option<Guard>,
}

impl Work {
    pub fn call(of_job: &Count, calls: &Count) -> Self {
        Self { _of_job: of_job.guard(), _call: Some(calls.guard()) }
    }

    /// Something to record that no call came before.
    pub fn record(of_job: &Count) -> Self {
        Self { _of_job: of_job.guard(), _call: None }
    }
}

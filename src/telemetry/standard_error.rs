//! Writes log lines to standard error from a thread of its own, so that the daemon never waits for
//! a reader.
//!
//! A pipe holds 64 KiB if no process reads it. A direct write of more would block the daemon. Here
//! the lines wait in bounded memory. Lines beyond the bound are dropped and counted.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use super::metrics;

/// The maximum size of the waiting lines, enough for a thousand long ones.
const WAITING_BYTES: usize = 1024 * 1024;
/// The time limit for the last lines when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Takes log lines. When it is dropped, it waits up to `LAST_LINES` until they are written.
pub struct StandardError(Arc<Lines>);

/// Hands lines over to the thread, and never waits.
#[derive(Clone)]
pub struct Handle(Arc<Lines>);

#[derive(Default)]
struct Lines {
    state: Mutex<WriterState>,
    changed: Condvar,
}

#[derive(Default)]
struct WriterState {
    waiting: Vec<u8>,
    /// Whether the thread is writing lines at the moment.
    is_writing: bool,
    /// How many lines were dropped since the log last reported it.
    dropped: u64,
}

/// Writes the last message of a process. Returns even if no process reads it.
pub fn write_last_message(text: impl Display) {
    if let Ok(standard_error) = StandardError::open() {
        standard_error.0.add(format!("{text}\n").as_bytes());
    }
}

impl StandardError {
    pub fn open() -> io::Result<Self> {
        Self::writing_to(io::stderr())
    }

    fn writing_to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Arc::<Lines>::default();
        let written = lines.clone();
        // The thread ends with the process, because a blocked write cannot be cancelled.
        thread::Builder::new().name("log".into()).spawn(move || written.write_to(sink))?;
        Ok(Self(lines))
    }

    pub fn handle(&self) -> Handle {
        Handle(self.0.clone())
    }
}

impl Drop for StandardError {
    fn drop(&mut self) {
        let unwritten = |state: &mut WriterState| state.is_writing || !state.waiting.is_empty();
        let state = self.0.state();
        let _ = self.0.changed.wait_timeout_while(state, LAST_LINES, unwritten);
    }
}

impl Lines {
    fn state(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut state = self.state();
        if state.waiting.len() + line.len() > WAITING_BYTES {
            state.dropped += 1;
            metrics::count_dropped_line();
            return;
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        self.changed.notify_all();
    }

    fn write_to(&self, mut sink: impl Write) {
        let mut lines = Vec::new();
        loop {
            {
                let nothing = |state: &mut WriterState| state.waiting.is_empty();
                let state = self.state();
                let mut state =
                    self.changed.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
                std::mem::swap(&mut state.waiting, &mut lines);
                state.is_writing = true;
            }
            // If the reader has closed the pipe, there is no other place for the error.
            let _ = sink.write_all(&lines);
            lines.clear();
            let dropped = {
                let mut state = self.state();
                state.is_writing = false;
                std::mem::take(&mut state.dropped)
            };
            self.changed.notify_all();
            if dropped > 0 {
                warn!(
                    lines = dropped,
                    "log lines were dropped, because nobody read standard error"
                );
            }
        }
    }
}

impl Write for Handle {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Handle {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a write once `may_read` allows it.
    struct Reader {
        may_read: mpsc::Receiver<()>,
        read: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.may_read.recv();
            let _ = self.read.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn unread() -> (StandardError, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let (allow, may_read) = mpsc::channel();
        let (read, seen) = mpsc::channel();
        (StandardError::writing_to(Reader { may_read, read }).unwrap(), allow, seen)
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_beyond_a_bound_and_whoever_logs_goes_on() {
        let (log, allow, seen) = unread();
        let line = [b'x'; 1024];
        let lines = 3 * WAITING_BYTES / line.len();
        for _ in 0..lines {
            log.handle().write_all(&line).unwrap();
        }
        let dropped = log.0.state().dropped as usize;
        drop(allow);
        let mut read = 0;
        while read < (lines - dropped) * line.len() {
            read += seen.recv().unwrap().len();
        }
        assert!((lines / 3..lines).contains(&dropped), "{dropped} of {lines}");
        drop(log);
        assert!(seen.try_recv().is_err(), "more was written than was kept");
    }

    #[test]
    fn the_last_lines_are_written_before_the_end_and_not_waited_for_in_vain() {
        let (log, allow, seen) = unread();
        allow.send(()).unwrap();
        log.handle().write_all(b"the last line").unwrap();
        drop(log);
        assert_eq!(seen.try_recv().unwrap(), b"the last line");

        let (log, _allow, seen) = unread();
        log.handle().write_all(b"nobody reads this").unwrap();
        drop(log);
        assert!(seen.try_recv().is_err());
    }
}

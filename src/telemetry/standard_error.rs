//! Standard error as the log sees it: a line waits for the writing thread, and nothing waits for a
//! reader.
//!
//! A pipe that nobody reads takes 64 KiB. Whoever wrote more to it directly would stand still, and
//! the daemon with all its promises. Here such lines wait in bounded memory, are dropped beyond
//! that, and counted.

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

/// Of lines that wait, at most. A thousand long ones.
const WAITING_BYTES: usize = 1024 * 1024;
/// For the last lines when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Takes lines. The last of them are waited for when it is dropped.
pub struct StandardError(Arc<Lines>);

/// Hands lines over; never waits.
#[derive(Clone)]
pub struct Handle(Arc<Lines>);

#[derive(Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Whether the thread has some in hand.
    is_writing: bool,
    /// Not yet told.
    dropped: u64,
}

/// The last words of a process. Ends also if nobody reads them.
pub fn say(text: impl Display) {
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
        // It ends with the process: a write that nobody reads cannot be called back.
        thread::Builder::new().name("log".into()).spawn(move || written.write_to(sink))?;
        Ok(Self(lines))
    }

    pub fn handle(&self) -> Handle {
        Handle(self.0.clone())
    }
}

impl Drop for StandardError {
    fn drop(&mut self) {
        let unwritten = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let state = self.0.state();
        let _ = self.0.changed.wait_timeout_while(state, LAST_LINES, unwritten);
    }
}

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
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
                let nothing = |state: &mut State| state.waiting.is_empty();
                let state = self.state();
                let mut state =
                    self.changed.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
                std::mem::swap(&mut state.waiting, &mut lines);
                state.is_writing = true;
            }
            // Closed by its reader: then there is nobody to tell.
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

    /// Takes what is written once it is allowed to.
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

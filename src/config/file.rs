//! Reads files in bounded time. A read can block for ever on a drive that does not answer, or on a
//! pipe without a writer.
//!
//! A blocked read cannot be cancelled. So every read has its own thread, which the caller leaves
//! behind when the time is over.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

/// A local file takes microseconds, and a slow network drive takes a second.
pub const READ_WITHIN: Duration = Duration::from_secs(5);
/// The maximum size of a configuration or of a bundle of certificates.
pub const LARGEST_BYTES: u64 = 16 * 1024 * 1024;
/// The maximum number of reads under way in the whole process. Each has a thread.
const UNDER_WAY_AT_MOST: usize = 64;

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Reads a file of at most `at_most` bytes. A larger file is refused, because it is probably a
/// device or a log, named by mistake. Fails after [`READ_WITHIN`] at the latest.
pub fn read(path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
    read_within(READ_WITHIN, path, at_most)
}

fn read_within(within: Duration, path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
    let timed_out = |why: &str| io::Error::new(io::ErrorKind::TimedOut, why.to_owned());
    let under_way = UnderWay::begin();
    if UNDER_WAY.load(Ordering::Relaxed) > UNDER_WAY_AT_MOST {
        return Err(timed_out(
            "too many earlier reads of files still wait for a drive; restart when it answers",
        ));
    }
    let (done, read) = mpsc::sync_channel(1);
    let path = path.to_owned();
    thread::Builder::new().name("read a file".into()).spawn(move || {
        let _under_way = under_way;
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(at_most + 1).read_to_end(&mut bytes));
        // The caller has stopped waiting if the read took too long.
        let _ = done.send(read.map(|_| bytes));
    })?;
    match read.recv_timeout(within) {
        Ok(Ok(bytes)) if bytes.len() as u64 > at_most => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {at_most} bytes; check the path"),
        )),
        Ok(read) => read,
        Err(RecvTimeoutError::Timeout) => Err(timed_out(&format!(
            "not read within {within:?}; is it on a drive that does not answer, or a pipe?"
        ))),
        Err(RecvTimeoutError::Disconnected) => {
            Err(io::Error::other("the thread that read it ended"))
        }
    }
}

struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_pipe_that_has_no_writer_is_given_up_and_its_successor_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = read_within(Duration::from_millis(50), &path, 10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("within 50ms"), "{error}");

        let successor = folder.path().join("new");
        std::fs::write(&successor, "the key").unwrap();
        std::fs::rename(&successor, &path).unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"the key");
        assert_eq!(read(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}

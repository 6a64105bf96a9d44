//! The place of the state file: which file is at the path, and how a new one is created.
//!
//! Files that a removed state file left behind (`-wal`, `-shm`) are never used with the next one.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::fault::SqliteFailure;

/// Other processes hold the folder's lock only while they create a file.
const FOLDER_LOCK_ATTEMPTS: u32 = 50;
const FOLDER_LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The identity of a file: its device and inode.
pub type Identity = (u64, u64);

/// The file that is at the path, if any.
pub fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates the file if it is missing, readable only by its owner. Removes what another file left
/// beside it.
pub fn make(path: &Path, removed_wal: Option<Identity>) -> Result<(), SqliteFailure> {
    // Without this lock, two processes that create the file at once would remove each other's
    // `-wal`.
    let _lock = lock_folder(path)?;
    let is_missing = identity(path)?.is_none();
    let wal = identity(&beside(path, "-wal"))?;
    if is_missing || (wal.is_some() && wal == removed_wal) {
        for leftover in ["-wal", "-shm"] {
            match fs::remove_file(beside(path, leftover)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    // Does not open an existing file: closing it here would release SQLite's locks on it.
    if is_missing {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    }
    Ok(())
}

fn lock_folder(path: &Path) -> Result<Option<File>, SqliteFailure> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = File::open(parent.unwrap_or(Path::new(".")))?;
    for _ in 0..FOLDER_LOCK_ATTEMPTS {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(folder)),
            // Some file systems have no locks. The lock only guards against a rare coincidence.
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) => pause(),
        }
    }
    Err(SqliteFailure::UnusableFile(
        "another process has been making it for too long; end that process".to_owned(),
    ))
}

/// The path of a file beside the state file, with this suffix.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut beside: OsString = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).into();
    beside.push(ending);
    beside.into()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the writer's own thread, which is no thread of the runtime"
)]
fn pause() {
    thread::sleep(FOLDER_LOCK_PAUSE);
}

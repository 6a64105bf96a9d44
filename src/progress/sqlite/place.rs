//! The place that the path leads to: which file is there, and room for a new one.
//!
//! What a removed file left beside it (`-wal`, `-shm`) is never taken for a part of the next one.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::fault::Failure;

/// Others hold the folder's lock for as long as it takes to make a file.
const FOLDER_LOCK_ATTEMPTS: u32 = 50;
const FOLDER_LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Which file a path led to: its device and inode.
pub type Identity = (u64, u64);

/// Which file is there, if any.
pub fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the file if it is missing, for nobody else to read, and removes what another left beside
/// it.
pub fn make(path: &Path, removed_wal: Option<Identity>) -> Result<(), Failure> {
    // Or two processes that miss the file at once would remove each other's `-wal`.
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
    // One that is there is left to SQLite: closing it here would release the locks that SQLite has
    // on it.
    if is_missing {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    }
    Ok(())
}

fn lock_folder(path: &Path) -> Result<Option<File>, Failure> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = File::open(parent.unwrap_or(Path::new(".")))?;
    for _ in 0..FOLDER_LOCK_ATTEMPTS {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(folder)),
            // Not every file system can; the lock only guards against a coincidence.
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) => pause(),
        }
    }
    Err(Failure::NotOurs(
        "another process has been making it for too long; end that process".to_owned(),
    ))
}

/// What SQLite keeps beside the file, under this ending.
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

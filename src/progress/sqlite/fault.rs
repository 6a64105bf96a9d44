//! Explains why the file could not be used, and what an operator can do.

use std::{fmt, io};

use rusqlite::ErrorCode;

use crate::diagnosis::Diagnosis;

#[derive(Debug)]
pub enum SqliteFailure {
    Sqlite(rusqlite::Error),
    /// The file system refused it before SQLite saw it.
    File(io::Error),
    /// There is a file, but the daemon cannot work with it.
    UnusableFile(String),
}

impl From<rusqlite::Error> for SqliteFailure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<io::Error> for SqliteFailure {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl SqliteFailure {
    /// The message of SQLite or the file system, and the advice.
    pub fn diagnosis(&self) -> Diagnosis {
        let (what, advice) = match self {
            Self::Sqlite(error) => {
                (error.to_string(), error.sqlite_error_code().and_then(after_refusal_of_sqlite))
            }
            Self::File(error) => (error.to_string(), after_refusal_of_the_system(error.kind())),
            Self::UnusableFile(what) => (what.clone(), None),
        };
        Diagnosis { what, said: None, advice: advice.map(Into::into) }
    }
}

impl fmt::Display for SqliteFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnosis().fmt(formatter)
    }
}

const FREE_SPACE: &str = "free space on its disk";
const GRANT_ACCESS: &str =
    "let this process write to the file and its folder, or set state.url to another file";

fn after_refusal_of_sqlite(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::DiskFull => FREE_SPACE,
        ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => {
            "move the file away, with its -wal and -shm; a new one is made, and jobs under way may \
                be sent again"
        }
        ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => GRANT_ACCESS,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            "another process holds the file; end it, or set state.url to another file"
        }
        ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed => {
            "check its disk, and whether it is full; a network file system is no place for it"
        }
        _ => return None,
    })
}

fn after_refusal_of_the_system(kind: io::ErrorKind) -> Option<&'static str> {
    Some(match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FREE_SPACE,
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            "make its folder, or set state.url to another file"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => GRANT_ACCESS,
        _ => return None,
    })
}

//! The state file of the writer. It opens the file when needed, and notices when another file is in
//! its place.

use std::{fs, path::PathBuf, time::Duration};

use rusqlite::{Connection, OpenFlags};
use tracing::warn;

use super::{
    fault::SqliteFailure,
    place::{self, Identity},
    schema,
};

/// How long to wait for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Of the daemon, which creates the file and removes what has expired.
    Full,
    /// Of a command. The file must exist.
    Existing,
    /// Of a command that only reads. The file must exist.
    ReadOnly,
}

/// Which crash a commit survives: of the process, or of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Process,
    Machine,
}

pub struct StateFile {
    path: PathBuf,
    access: FileAccess,
    connection: Option<(Connection, Durability)>,
    /// The file that was opened last, and its `-wal`.
    opened: Option<(Identity, Option<Identity>)>,
}

impl StateFile {
    pub fn new(path: PathBuf, access: FileAccess) -> Self {
        Self { path, access, connection: None, opened: None }
    }

    pub fn access(&self) -> FileAccess {
        self.access
    }

    pub fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    pub fn close(&mut self) {
        self.connection = None;
    }

    /// Returns a connection to the file that is at the path now. Its next commit has this
    /// durability.
    pub fn connection(&mut self, durability: Durability) -> Result<&mut Connection, SqliteFailure> {
        let removed = self.forget_removed()?;
        let (connection, usual) = match self.connection.take() {
            Some(open) => open,
            None => (self.open(removed)?, Durability::Process),
        };
        if usual != durability {
            let synchronous = match durability {
                Durability::Process => "NORMAL",
                Durability::Machine => "FULL",
            };
            connection.pragma_update(None, "synchronous", synchronous)?;
        }
        Ok(&mut self.connection.insert((connection, durability)).0)
    }

    /// Closes a file that is no longer at the path. Returns the identity of its `-wal`.
    fn forget_removed(&mut self) -> Result<Option<Identity>, SqliteFailure> {
        let Some((file, wal)) = self.opened else { return Ok(None) };
        if place::identity(&self.path)? == Some(file) {
            return Ok(None);
        }
        warn!(file = %self.path.display(), "the state file was removed; a new one is made; jobs \
            under way may be sent again");
        self.close();
        self.opened = None;
        Ok(wal)
    }

    fn open(&mut self, removed_wal: Option<Identity>) -> Result<Connection, SqliteFailure> {
        let access = match self.access {
            FileAccess::Full => {
                place::make(&self.path, removed_wal)?;
                OpenFlags::SQLITE_OPEN_READ_WRITE
            }
            FileAccess::Existing => {
                fs::metadata(&self.path)?;
                OpenFlags::SQLITE_OPEN_READ_WRITE
            }
            FileAccess::ReadOnly => {
                fs::metadata(&self.path)?;
                OpenFlags::SQLITE_OPEN_READ_ONLY
            }
        };
        let mut connection =
            Connection::open_with_flags(&self.path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(32);
        match self.access {
            FileAccess::Full => {
                connection.pragma_update(None, "journal_mode", "WAL")?;
                connection.pragma_update(None, "synchronous", "NORMAL")?;
                schema::make(&mut connection)?;
            }
            FileAccess::Existing | FileAccess::ReadOnly => schema::check(&connection)?,
        }
        let wal = place::identity(&place::beside(&self.path, "-wal"))?;
        self.opened = place::identity(&self.path)?.map(|file| (file, wal));
        Ok(connection)
    }
}

//! The tables. `user_version` says which form of them a file has. The daemon never writes to a file
//! whose form it does not know.

use rusqlite::{Connection, TransactionBehavior};

use super::fault::SqliteFailure;

const VERSION: i64 = 4;

const JOBS: &str = "
    CREATE TABLE jobs (
        id             INTEGER PRIMARY KEY,
        app            TEXT NOT NULL,
        job_id         TEXT NOT NULL,
        earlier_deaths INTEGER NOT NULL,
        head           TEXT NOT NULL,    -- JSON
        result         TEXT,             -- JSON, once the job has ended
        expires_at     INTEGER NOT NULL, -- Unix milliseconds
        progress       TEXT,             -- JSON, of a job's only batch; those of other jobs have \
        rows of their own
        progress_ended INTEGER NOT NULL DEFAULT 0,
        progress_epoch INTEGER NOT NULL DEFAULT 0,
        UNIQUE (app, job_id, earlier_deaths)
    ) STRICT;
    CREATE TABLE batches (
        job      INTEGER NOT NULL,
        batch    INTEGER NOT NULL,
        progress TEXT NOT NULL,    -- JSON
        ended    INTEGER NOT NULL, -- whether it has: 0 or 1
        epoch    INTEGER NOT NULL DEFAULT 0, -- of its writer
        PRIMARY KEY (job, batch)
    ) STRICT, WITHOUT ROWID;";

/// Which process has an app's jobs.
const EPOCHS: &str = "
    CREATE TABLE epochs (
        app          TEXT PRIMARY KEY,
        epoch        INTEGER NOT NULL,
        active_until INTEGER NOT NULL -- Unix milliseconds
    ) STRICT, WITHOUT ROWID;";

/// Which jobs are cancelled and have not ended since.
const CANCELLATIONS: &str = "
    ALTER TABLE epochs ADD COLUMN latest_cancellation INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE cancellations (
        app        TEXT NOT NULL,
        job_id     TEXT NOT NULL,
        number     INTEGER NOT NULL,
        expires_at INTEGER NOT NULL, -- Unix milliseconds
        PRIMARY KEY (app, job_id)
    ) STRICT, WITHOUT ROWID;";

/// Turns a file of the first form into one of the second.
const FROM_FIRST_FORM: &str = "
    DROP INDEX jobs_by_expiry;
    ALTER TABLE jobs ADD COLUMN progress TEXT;
    ALTER TABLE jobs ADD COLUMN progress_ended INTEGER NOT NULL DEFAULT 0;";

/// Turns a file of the second form into one of the third, which has no table of epochs yet.
const FROM_SECOND_FORM: &str = "
    ALTER TABLE jobs ADD COLUMN progress_epoch INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;";

/// The form of a file's tables. An empty file may get tables.
#[derive(PartialEq, Eq)]
enum Form {
    Ours,
    Third,
    Second,
    First,
    Empty,
}

/// Creates the tables in an empty file, and upgrades older ones.
pub fn make(connection: &mut Connection) -> Result<(), SqliteFailure> {
    if form(connection)? == Form::Ours {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have created them between the first check and the lock.
    match form(&transaction)? {
        Form::Ours => return Ok(()),
        Form::Third => {}
        Form::Second => transaction.execute_batch(&[FROM_SECOND_FORM, EPOCHS].concat())?,
        Form::First => {
            transaction.execute_batch(&[FROM_FIRST_FORM, FROM_SECOND_FORM, EPOCHS].concat())?
        }
        Form::Empty => transaction.execute_batch(&[JOBS, EPOCHS].concat())?,
    }
    transaction.execute_batch(CANCELLATIONS)?;
    write_version(&transaction)?;
    Ok(transaction.commit()?)
}

/// Fails unless the file has the current tables.
pub fn check(connection: &Connection) -> Result<(), SqliteFailure> {
    match form(connection)? {
        Form::Ours => Ok(()),
        Form::First | Form::Second | Form::Third => Err(SqliteFailure::UnusableFile(
            "was written by an older version; `groupcast run` brings it up to date".to_owned(),
        )),
        Form::Empty => Err(SqliteFailure::UnusableFile(
            "is empty; has `groupcast run` written to it?".to_owned(),
        )),
    }
}

/// Writes the version that is there already. This is the smallest write, and it needs all that any
/// write needs.
pub fn write_version(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "user_version", VERSION)
}

fn form(connection: &Connection) -> Result<Form, SqliteFailure> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match version {
        VERSION => Ok(Form::Ours),
        3 => Ok(Form::Third),
        2 => Ok(Form::Second),
        1 => Ok(Form::First),
        0 if tables == 0 => Ok(Form::Empty),
        newer if newer > VERSION => Err(SqliteFailure::UnusableFile(format!(
            "was written by a newer version (its form is {newer}, ours {VERSION}); run that, or \
                set state.url to another file"
        ))),
        _ => Err(SqliteFailure::UnusableFile(
            "is the database of something else; set state.url to another file".to_owned(),
        )),
    }
}

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::time::Instant;

use super::{
    super::store::{Completion, Head, Key},
    file::Durability,
    *,
};
use crate::job::outcome::BatchOutcome;

const LONG: Retention =
    Retention { ended: Duration::from_hours(1), under_way: Duration::from_hours(1) };
const NO_TIME: Retention = Retention { ended: Duration::ZERO, under_way: Duration::ZERO };

fn scratch() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    (folder, path)
}

fn opening(job_id: &str) -> Arc<Opening> {
    let key = Key { app: "chat".to_owned(), job_id: job_id.to_owned(), earlier_deaths: 0 };
    let received_at = "2026-01-01T00:00:00Z".parse().unwrap();
    Arc::new(Opening {
        key,
        head: Head {
            content: "c0".to_owned(),
            batch_size: 500,
            within: None,
            batches: 3,
            duplicates: 0,
            received_at,
        },
        epoch: 0,
    })
}

fn note(job_id: &str) -> WriteOperation {
    WriteOperation::Note {
        opening: opening(job_id),
        batch: Batch::new(0, BatchProgress::default()),
    }
}

fn answered(result: &str) -> Completion {
    Completion { result: result.to_owned(), owes_result: false }
}

fn writer(path: &Path, retention: Retention) -> Writer {
    Writer::new(StateFile::new(path.to_owned(), FileAccess::Full), retention)
}

/// Makes the writer carry these out as one group, on this thread.
fn group(writer: &mut Writer, works: Vec<WriteOperation>) -> Result<Vec<WriteResult>, String> {
    let (commands, mut answers): (Vec<_>, Vec<_>) = works
        .into_iter()
        .map(|work| {
            let (answer, answered) = oneshot::channel();
            (WriteCommand { work, answer }, answered)
        })
        .unzip();
    writer.carry_out(commands);
    answers
        .iter_mut()
        .map(|answered| answered.try_recv().expect("an answer").map_err(|why| why.to_string()))
        .collect()
}

fn batches(writer: &mut Writer, job_id: &str) -> usize {
    let found = group(writer, vec![WriteOperation::Open(opening(job_id))]).unwrap();
    let WriteResult::Opened(record, _) = &found[0] else { panic!("a record is made") };
    record.batches.len()
}

fn refusal(path: &Path) -> String {
    group(&mut writer(path, LONG), vec![WriteOperation::Probe]).unwrap_err()
}

fn count(path: &Path, table: &str) -> i64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn the_file_is_made_when_it_is_first_used_for_nobody_else_to_read() {
    let (_folder, path) = scratch();
    let mut writer = writer(&path, LONG);
    assert!(!path.exists());
    group(&mut writer, vec![WriteOperation::Probe]).unwrap();
    for file in ["state.db", "state.db-wal"] {
        let mode = fs::metadata(path.with_file_name(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_file_that_was_removed_is_made_anew_without_what_it_left_beside_it() {
    let (_folder, path) = scratch();
    let (mut one, mut other) = (writer(&path, LONG), writer(&path, LONG));
    group(&mut one, vec![note("job")]).unwrap();
    assert_eq!(batches(&mut other, "job"), 1);

    fs::remove_file(&path).unwrap();
    assert_eq!(batches(&mut one, "job"), 0);
    group(&mut one, vec![note("second")]).unwrap();
    // `other` still has the removed file open, and must not harm the new one when it closes its
    // own.
    assert_eq!(batches(&mut other, "second"), 1);
    group(&mut other, vec![note("third")]).unwrap();
    drop(other);
    assert_eq!((batches(&mut one, "second"), batches(&mut one, "third")), (1, 1));
    drop(one);
    assert_eq!(batches(&mut writer(&path, LONG), "third"), 1);
}

#[test]
fn a_file_that_was_replaced_is_read_as_it_came() {
    let ((_folder, path), (_other_folder, other)) = (scratch(), scratch());
    group(&mut writer(&other, LONG), vec![note("restored")]).unwrap();
    let mut writer = writer(&path, LONG);
    group(&mut writer, vec![note("job")]).unwrap();

    fs::rename(&other, &path).unwrap();
    assert_eq!((batches(&mut writer, "restored"), batches(&mut writer, "job")), (1, 0));
}

#[test]
fn a_damaged_file_says_what_to_do_and_works_once_that_is_done() {
    let (_folder, path) = scratch();
    fs::write(&path, "not a database, and longer than a header of a hundred bytes: ".repeat(20))
        .unwrap();
    let mut writer = writer(&path, LONG);
    let told = group(&mut writer, vec![WriteOperation::Probe]).unwrap_err();
    assert!(told.contains("not a database; move the file away"), "{told}");

    fs::rename(&path, path.with_extension("damaged")).unwrap();
    group(&mut writer, vec![WriteOperation::Probe]).unwrap();
}

#[test]
fn a_place_where_no_file_can_be_says_what_to_do() {
    let (folder, path) = scratch();
    fs::write(&path, "").unwrap();
    let told = refusal(&path.join("below-a-file.db"));
    assert!(told.contains("make its folder, or set state.url"), "{told}");
    let told = refusal(&folder.path().join("missing/state.db"));
    assert!(told.contains("make its folder, or set state.url"), "{told}");
    let told = refusal(folder.path());
    assert!(
        told.contains("let this process write to the file and its folder, or set state.url"),
        "{told}"
    );
}

#[test]
fn a_database_of_something_else_or_of_a_newer_version_is_left_alone() {
    let (_folder, path) = scratch();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE customers (name TEXT)").unwrap();
    assert!(refusal(&path).contains("is the database of something else"));
    connection.pragma_update(None, "user_version", 99).unwrap();
    assert!(refusal(&path).contains("its form is 99, ours 4"));
    assert_eq!(count(&path, "sqlite_schema"), 1);
}

#[tokio::test]
async fn a_lock_of_another_process_is_waited_for_and_then_told_of() {
    let (_folder, path) = scratch();
    let store = SqliteStore::new(path.clone(), LONG);
    store.probe().await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let start = Instant::now();
    let told = store.probe().await.unwrap_err().to_string();
    assert!(
        told.contains("state.db: database is locked; another process holds the file"),
        "{told}"
    );
    assert!(start.elapsed() < ANSWER_TIMEOUT);

    other.execute_batch("ROLLBACK").unwrap();
    store.probe().await.unwrap();
}

#[test]
fn a_full_disk_undoes_the_group_and_the_next_one_succeeds_when_there_is_space() {
    let (_folder, path) = scratch();
    let mut writer = writer(&path, LONG);
    group(&mut writer, vec![note("before")]).unwrap();
    // With a size limit, SQLite reports the same error as for a full disk.
    writer
        .file
        .connection(Durability::Process)
        .unwrap()
        .pragma_update(None, "max_page_count", 8)
        .unwrap();
    let jobs = || (0..500).map(|number| note(&format!("job-{number}"))).collect();
    let told = group(&mut writer, jobs()).unwrap_err();
    assert!(told.contains("full; free space on its disk"), "{told}");
    assert_eq!(count(&path, "jobs"), 1);

    group(&mut writer, jobs()).unwrap();
    assert_eq!(count(&path, "jobs"), 501);
}

#[tokio::test]
async fn what_waits_together_is_committed_together() {
    let (_folder, path) = scratch();
    let store = Arc::new(SqliteStore::new(path.clone(), LONG));
    store.open(opening("job")).await.unwrap();
    let log_pages = || fs::metadata(path.with_file_name("state.db-wal")).unwrap().len() / 4096;
    let before = log_pages();

    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let notes = (0..100).map(|batch| {
        let store = store.clone();
        tokio::spawn(async move {
            store.note(opening("job"), batch, BatchProgress::default()).await.unwrap()
        })
    });
    let notes: Vec<_> = notes.collect();
    tokio::task::yield_now().await;
    other.execute_batch("ROLLBACK").unwrap();
    for note in notes {
        note.await.unwrap();
    }
    // Each commit writes at least one page.
    assert!(log_pages() - before < 20, "{} pages", log_pages() - before);
}

#[test]
fn only_an_intent_is_on_the_disk_before_its_answer() {
    let (_folder, path) = scratch();
    let mut file = StateFile::new(path, FileAccess::Full);
    for (durability, synchronous) in
        [(Durability::Process, 1), (Durability::Machine, 2), (Durability::Process, 1)]
    {
        let connection = file.connection(durability).unwrap();
        let level: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
        assert_eq!(level, synchronous);
    }
    assert!(!note("job").outlives_the_machine());
    let intended = BatchProgress { state: BatchState::Intended, ..BatchProgress::default() };
    let intent = WriteOperation::Note { opening: opening("job"), batch: Batch::new(0, intended) };
    assert!(intent.outlives_the_machine());
}

#[test]
fn expired_records_are_removed_in_portions() {
    let (_folder, path) = scratch();
    group(
        &mut writer(&path, NO_TIME),
        (0..1100).map(|number| note(&format!("job-{number}"))).collect(),
    )
    .unwrap();
    let mut writer = writer(&path, LONG);
    group(&mut writer, vec![note("fresh")]).unwrap();
    for left in [601, 101, 1, 1] {
        writer.remove_expired(true);
        assert_eq!((count(&path, "jobs"), count(&path, "batches")), (left, left));
    }
}

#[test]
fn records_that_are_kept_for_long_stop_no_removal_of_those_behind_them() {
    let (_folder, path) = scratch();
    let notes = |kind: &str, count: usize| {
        (0..count).map(|number| note(&format!("{kind}-{number}"))).collect()
    };
    group(&mut writer(&path, LONG), notes("scheduled", 6_000)).unwrap();
    group(&mut writer(&path, NO_TIME), notes("expired", 700)).unwrap();
    let mut writer = writer(&path, LONG);
    group(&mut writer, notes("fresh", 10)).unwrap();
    let mut looks = 0;
    while count(&path, "jobs") > 6_010 {
        writer.next_removal = 0;
        writer.remove_expired(true);
        looks += 1;
        assert!(looks < 10, "{} jobs are left", count(&path, "jobs"));
    }
    assert_eq!((count(&path, "jobs"), count(&path, "batches")), (6_010, 6_010));
}

fn opening_of_one_batch(job_id: &str) -> Arc<Opening> {
    let Opening { key, head, epoch } = (*opening(job_id)).clone();
    Arc::new(Opening { key, head: Head { batches: 1, ..head }, epoch })
}

fn ended(calls: u32) -> BatchProgress {
    BatchProgress {
        calls,
        state: BatchState::Ended(BatchOutcome::Sent),
        ..BatchProgress::default()
    }
}

#[tokio::test]
async fn a_job_of_one_batch_has_a_record_from_its_first_note_on() {
    let (_folder, path) = scratch();
    let store = SqliteStore::new(path.clone(), LONG);
    let job = opening_of_one_batch("job");
    let noted = async || store.open(job.clone()).await.unwrap().0.batches;
    assert_eq!((noted().await, count(&path, "jobs")), (vec![], 0));

    let open = BatchProgress { calls: 1, ..BatchProgress::default() };
    for progress in [&open, &ended(2)] {
        store.note(job.clone(), 0, progress.clone()).await.unwrap();
        assert_eq!(noted().await, [(0, progress.clone())]);
    }
    store.note(job.clone(), 0, open.clone()).await.unwrap();
    assert_eq!(
        (noted().await, count(&path, "batches")),
        (vec![(0, ended(2))], 0),
        "it stays as it ended"
    );

    store.complete(job.clone(), answered("{}")).await.unwrap();
    store.note(job.clone(), 0, open).await.unwrap();
    let record = store.find("chat".to_owned(), "job".to_owned()).await.unwrap().expect("a record");
    assert_eq!((record.batches, record.result.as_deref()), (vec![], Some("{}")));
}

#[tokio::test]
async fn a_job_of_one_batch_that_is_split_again_stands_as_its_new_batches_do() {
    let (_folder, path) = scratch();
    let store = SqliteStore::new(path, LONG);
    let job = opening_of_one_batch("job");
    store
        .note(job.clone(), 0, BatchProgress { calls: 1, ..BatchProgress::default() })
        .await
        .unwrap();
    let split = Arc::new(Opening {
        head: Head { batch_size: 50, batches: 10, ..job.head.clone() },
        key: job.key.clone(),
        epoch: 0,
    });
    store.split_again(split.clone(), vec![(3, ended(1))]).await.unwrap();
    store.note(job, 0, ended(1)).await.unwrap();
    assert_eq!(store.open(split).await.unwrap().0.batches, [(3, ended(1))]);
}

#[test]
fn a_file_of_the_first_form_is_brought_up_to_date() {
    let (_folder, path) = scratch();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE jobs (
                id INTEGER PRIMARY KEY, app TEXT NOT NULL, job_id TEXT NOT NULL, earlier_deaths \
                INTEGER NOT NULL,
                head TEXT NOT NULL, result TEXT, expires_at INTEGER NOT NULL, UNIQUE (app, job_id, \
                earlier_deaths)
             ) STRICT;
             CREATE INDEX jobs_by_expiry ON jobs (expires_at);
             CREATE TABLE batches (
                job INTEGER NOT NULL, batch INTEGER NOT NULL, progress TEXT NOT NULL, ended \
                INTEGER NOT NULL,
                PRIMARY KEY (job, batch)
             ) STRICT, WITHOUT ROWID;
             INSERT INTO jobs VALUES (1, 'chat', 'job', 0, '{}', NULL, 9000000000000);
             INSERT INTO batches VALUES (1, 0, '{}', 0);
             PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(connection);
    let told = group(
        &mut Writer::new(StateFile::new(path.clone(), FileAccess::ReadOnly), LONG),
        vec![WriteOperation::Probe],
    )
    .unwrap_err();
    assert!(told.contains("`groupcast run` brings it up to date"), "{told}");
    let mut writer = writer(&path, LONG);
    assert_eq!(batches(&mut writer, "job"), 1);
    group(
        &mut writer,
        vec![WriteOperation::Note {
            opening: opening_of_one_batch("other"),
            batch: Batch::new(0, ended(1)),
        }],
    )
    .unwrap();
    assert_eq!(count(&path, "jobs"), 2);
}

#[tokio::test]
async fn a_file_of_the_third_form_is_brought_up_to_date() {
    let (_folder, path) = scratch();
    let store = SqliteStore::new(path.clone(), LONG);
    store.open(opening("job")).await.unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "DROP TABLE cancellations;
             ALTER TABLE epochs DROP COLUMN latest_cancellation;
             PRAGMA user_version = 3;",
        )
        .unwrap();
    drop(connection);
    let cancel = async || command_of(&path).cancel("chat".to_owned(), "job".to_owned()).await;
    let told = cancel().await.unwrap_err().to_string();
    assert!(told.contains("`groupcast run` brings it up to date"), "{told}");

    let store = SqliteStore::new(path.clone(), LONG);
    store.probe().await.unwrap();
    assert_eq!(cancel().await.unwrap(), Cancelled::UnderWay);
    assert!(store.open(opening("job")).await.unwrap().0.is_cancelled);
}

/// The store of a command beside the daemon.
fn command_of(path: &Path) -> SqliteStore {
    SqliteStore::existing(path.to_owned(), FileAccess::Existing, LONG)
}

#[tokio::test]
async fn who_only_reads_makes_no_file_and_changes_none() {
    let (_folder, path) = scratch();
    let find = async || {
        SqliteStore::existing(path.clone(), FileAccess::ReadOnly, NO_TIME)
            .find("chat".to_owned(), "job".to_owned())
            .await
    };
    let told = find().await.unwrap_err().to_string();
    assert!(told.contains("state.db: No such file"), "{told}");
    assert!(!path.exists());

    let store = SqliteStore::new(path.clone(), LONG);
    store.open(opening("job")).await.unwrap();
    assert_eq!(find().await.unwrap().expect("a record").key, opening("job").key);
    drop(store);
    assert_eq!(find().await.unwrap().expect("a record").key, opening("job").key);
    SqliteStore::existing(path.clone(), FileAccess::ReadOnly, NO_TIME)
        .open(opening("other"))
        .await
        .unwrap_err();
}

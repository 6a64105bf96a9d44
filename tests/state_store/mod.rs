//! The promises of every state store, the same for each.

mod redis;

use std::{sync::Arc, time::Duration};

use groupcast::{
    job::outcome::{BatchOutcome, BatchProgress, BatchState, FailureKind, Fault},
    progress::{
        redis::RedisStore,
        sqlite::SqliteStore,
        store::{
            CancelNumber, Cancellations, Cancelled, Completion, Head, Key, Opening, Retention,
            Scope, Store, StoreLost, TakeOver, Taken,
        },
    },
};
use tempfile::TempDir;

use crate::support::{eventually, redis::Redis};

const LONG: Retention =
    Retention { ended: Duration::from_hours(1), under_way: Duration::from_hours(2) };
const BRIEF: Retention =
    Retention { ended: Duration::from_millis(300), under_way: Duration::from_millis(300) };

fn answered(result: &str) -> Completion {
    Completion { result: result.to_owned(), owes_result: false }
}

/// Where the records are. Several stores can open one place.
enum Place {
    File(TempDir),
    Server(Redis),
}

impl Place {
    fn file() -> Place {
        Place::File(tempfile::tempdir().expect("a scratch folder"))
    }

    async fn server() -> Place {
        Place::Server(Redis::start("").await)
    }

    fn store(&self, retention: Retention) -> Arc<dyn Store> {
        match self {
            Place::File(folder) => {
                Arc::new(SqliteStore::new(folder.path().join("state.db"), retention))
            }
            Place::Server(server) => Arc::new(
                RedisStore::new(server.url(), Default::default(), retention).expect("a URL"),
            ),
        }
    }
}

macro_rules! kept_by_both {
    ($($sentence:ident)*) => {
        mod sqlite_keeps {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Place::file()).await })*
        }
        mod redis_keeps {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Place::server().await).await })*
        }
    };
}

kept_by_both! {
    a_record_is_made_once_and_says_from_then_on_what_it_said_first
    a_batch_stands_as_it_was_noted_last
    a_batch_that_has_ended_stays_as_it_ended
    a_job_that_is_split_again_stands_as_its_new_batches_do
    what_is_noted_by_the_batches_before_a_split_is_of_no_account
    a_late_split_takes_nothing_from_a_completed_job
    a_completed_job_has_its_result_and_no_batches_even_after_a_late_note
    a_record_whose_time_is_over_is_absent
    a_result_that_is_still_owed_is_kept_like_a_job_under_way
    a_record_that_has_ended_lives_no_longer_for_what_comes_later
    the_latest_record_of_a_job_is_found_whatever_its_id
    records_survive_the_store_that_wrote_them
    a_write_to_a_record_that_is_lost_makes_it_again
    two_processes_see_what_the_other_wrote
    many_jobs_at_once_are_all_recorded
    a_writer_with_an_older_epoch_is_told_so_and_only_what_it_knows_is_kept
    it_says_that_it_works
    a_cancelled_job_is_told_at_its_look_up_and_to_whoever_makes_the_calls
    a_job_that_has_ended_cannot_be_cancelled_and_its_end_removes_the_cancellation
    a_cancellation_that_is_undone_or_over_is_no_more
}

fn opening(job_id: &str, earlier_deaths: u32) -> Arc<Opening> {
    let key = Key { app: "chat".to_owned(), job_id: job_id.to_owned(), earlier_deaths };
    let received_at = "2026-01-01T00:00:00Z".parse().unwrap();
    Arc::new(Opening {
        key,
        head: Head {
            content: "c0".to_owned(),
            batch_size: 500,
            within: None,
            batches: 3,
            duplicates: 1,
            received_at,
        },
        epoch: 0,
    })
}

fn progress(attempts: u32, state: BatchState) -> BatchProgress {
    let at = Some("2026-01-01T00:00:01Z".parse().unwrap());
    BatchProgress {
        calls: attempts,
        attempts,
        first_attempt_at: at,
        last_attempt_at: at,
        state,
        ..BatchProgress::default()
    }
}

fn ended(attempts: u32) -> BatchProgress {
    let fault =
        Fault {
            code: Some(10007), http_status: None, info: "no \"permission\" for 群".to_owned()
        };
    progress(
        attempts,
        BatchState::Ended(BatchOutcome::Failed { kind: FailureKind::Job, fault, attempts }),
    )
}

/// The recorded batches, in order.
async fn batches(store: &dyn Store, opening: &Arc<Opening>) -> Vec<(u32, BatchProgress)> {
    let mut batches = store.open(opening.clone()).await.unwrap().0.batches;
    batches.sort_by_key(|(batch, _)| *batch);
    batches
}

async fn a_record_is_made_once_and_says_from_then_on_what_it_said_first(place: Place) {
    let store = place.store(LONG);
    let first = opening("job", 0);
    let record = store.open(first.clone()).await.unwrap().0;
    assert_eq!(
        (&record.key, &record.head, record.batches.len(), &record.result),
        (&first.key, &first.head, 0, &None)
    );

    let other = Opening {
        head: Head { content: "c1".to_owned(), ..first.head.clone() },
        ..(*first).clone()
    };
    assert_eq!(store.open(Arc::new(other)).await.unwrap().0.head, first.head);
}

async fn a_batch_stands_as_it_was_noted_last(place: Place) {
    let store = place.store(LONG);
    let job = opening("job", 0);
    store.open(job.clone()).await.unwrap();
    store.note(job.clone(), 2, progress(1, BatchState::Open)).await.unwrap();
    store.note(job.clone(), 0, progress(1, BatchState::Open)).await.unwrap();
    store.note(job.clone(), 2, progress(2, BatchState::Intended)).await.unwrap();

    let expected = vec![(0, progress(1, BatchState::Open)), (2, progress(2, BatchState::Intended))];
    assert_eq!(batches(&*store, &job).await, expected);
}

async fn a_batch_that_has_ended_stays_as_it_ended(place: Place) {
    let store = place.store(LONG);
    let job = opening("job", 0);
    store.note(job.clone(), 1, progress(1, BatchState::Intended)).await.unwrap();
    store.note(job.clone(), 1, ended(2)).await.unwrap();
    store.note(job.clone(), 1, progress(3, BatchState::Open)).await.unwrap();
    store.note(job.clone(), 1, progress(4, BatchState::Ended(BatchOutcome::Sent))).await.unwrap();

    assert_eq!(batches(&*store, &job).await, [(1, ended(2))]);
}

/// The same job, cut into batches of 50.
fn split(job: &Opening) -> Arc<Opening> {
    Arc::new(Opening {
        head: Head { batch_size: 50, batches: 25, ..job.head.clone() },
        key: job.key.clone(),
        epoch: job.epoch,
    })
}

async fn a_job_that_is_split_again_stands_as_its_new_batches_do(place: Place) {
    let store = place.store(LONG);
    let [job, other, lost] = [opening("job", 0), opening("other", 0), opening("lost", 0)];
    for (batch, progress) in
        [(0, ended(1)), (1, progress(1, BatchState::Open)), (2, progress(1, BatchState::Intended))]
    {
        store.note(job.clone(), batch, progress.clone()).await.unwrap();
        store.note(other.clone(), batch, progress).await.unwrap();
    }
    let parts = vec![(0, ended(1)), (1, ended(1)), (10, progress(1, BatchState::Open))];
    // A repetition after a lost answer changes nothing.
    for _ in 0..2 {
        store.split_again(split(&job), parts.clone()).await.unwrap();
    }
    store.split_again(split(&lost), parts.clone()).await.unwrap();
    for split_job in [&job, &lost] {
        assert_eq!(store.open(split_job.clone()).await.unwrap().0.head, split(split_job).head);
        assert_eq!(batches(&*store, split_job).await, parts);
    }
    assert_eq!(
        (
            batches(&*store, &other).await.len(),
            store.open(other.clone()).await.unwrap().0.head.batch_size
        ),
        (3, 500)
    );

    store.note(split(&job), 10, ended(2)).await.unwrap();
    store.note(split(&job), 0, progress(2, BatchState::Open)).await.unwrap();
    store.note(split(&job), 24, ended(1)).await.unwrap();
    let found = place
        .store(LONG)
        .find("chat".to_owned(), "job".to_owned())
        .await
        .unwrap()
        .expect("a record");
    let expected = vec![(0, ended(1)), (1, ended(1)), (10, ended(2)), (24, ended(1))];
    assert_eq!((found.head, batches(&*store, &job).await), (split(&job).head.clone(), expected));

    store.complete(split(&job), answered("{}")).await.unwrap();
    let completed = store.open(job).await.unwrap().0;
    assert_eq!((completed.batches.len(), completed.result.as_deref()), (0, Some("{}")));
}

async fn what_is_noted_by_the_batches_before_a_split_is_of_no_account(place: Place) {
    let store = place.store(LONG);
    let job = opening("job", 0);
    store.open(job.clone()).await.unwrap();
    store.split_again(split(&job), vec![(1, progress(1, BatchState::Open))]).await.unwrap();
    for batch in [0, 1, 2] {
        store.note(job.clone(), batch, ended(1)).await.unwrap();
    }
    assert_eq!(batches(&*store, &job).await, [(1, progress(1, BatchState::Open))]);
    // Batches of the same size, but with other borders.
    let other =
        Opening { head: Head { within: Some(499), ..split(&job).head.clone() }, ..(*job).clone() };
    let other = Arc::new(other);
    store.note(other.clone(), 3, ended(1)).await.unwrap();
    assert_eq!(batches(&*store, &job).await, [(1, progress(1, BatchState::Open))]);
    store.split_again(other.clone(), vec![(2, progress(1, BatchState::Open))]).await.unwrap();
    store.note(split(&job), 2, ended(1)).await.unwrap();
    store.note(other.clone(), 3, ended(1)).await.unwrap();
    assert_eq!(batches(&*store, &job).await, [(2, progress(1, BatchState::Open)), (3, ended(1))]);
    assert_eq!(store.open(job).await.unwrap().0.head, other.head);
}

async fn a_late_split_takes_nothing_from_a_completed_job(place: Place) {
    let store = place.store(LONG);
    let job = opening("job", 0);
    store.complete(job.clone(), answered("{\"a\":1}")).await.unwrap();
    store.split_again(split(&job), vec![(0, progress(1, BatchState::Open))]).await.unwrap();
    let opened = store.open(job).await.unwrap().0;
    assert_eq!((opened.batches.len(), opened.result.as_deref()), (0, Some("{\"a\":1}")));
}

async fn a_completed_job_has_its_result_and_no_batches_even_after_a_late_note(place: Place) {
    let store = place.store(LONG);
    let job = opening("job", 0);
    store.note(job.clone(), 0, ended(1)).await.unwrap();
    store.complete(job.clone(), answered("{\"a\":1}")).await.unwrap();
    store.note(job.clone(), 1, ended(1)).await.unwrap();

    let opened = store.open(job.clone()).await.unwrap().0;
    assert_eq!(
        (opened.batches.len(), opened.result.as_deref(), &opened.head),
        (0, Some("{\"a\":1}"), &job.head)
    );
    assert_eq!(store.find("chat".to_owned(), "job".to_owned()).await.unwrap(), Some(opened));
}

async fn a_record_whose_time_is_over_is_absent(place: Place) {
    let store = place.store(BRIEF);
    let [ended_job, under_way] = [opening("ended", 0), opening("under way", 0)];
    store.note(under_way.clone(), 0, ended(1)).await.unwrap();
    store.complete(ended_job.clone(), answered("{}")).await.unwrap();
    for job in [&ended_job, &under_way] {
        let find = async || store.find("chat".to_owned(), job.key.job_id.clone()).await.unwrap();
        eventually("the record to expire", async || find().await.is_none().then_some(())).await;
        let anew = store.open(job.clone()).await.unwrap().0;
        assert_eq!((anew.batches.len(), anew.result), (0, None));
    }
}

async fn a_result_that_is_still_owed_is_kept_like_a_job_under_way(place: Place) {
    let store = place.store(Retention { ended: BRIEF.ended, ..LONG });
    let [answered_job, owing] = [opening("answered", 0), opening("owing", 0)];
    store
        .complete(owing.clone(), Completion { owes_result: true, ..answered("{}") })
        .await
        .unwrap();
    store.complete(answered_job.clone(), answered("{}")).await.unwrap();
    let find = async |job_id: &str| store.find("chat".to_owned(), job_id.to_owned()).await.unwrap();
    eventually("the answered one to expire", async || {
        find("answered").await.is_none().then_some(())
    })
    .await;
    assert_eq!(store.open(owing).await.unwrap().0.result.as_deref(), Some("{}"));
}

async fn a_record_that_has_ended_lives_no_longer_for_what_comes_later(place: Place) {
    let store = place.store(Retention { ended: BRIEF.ended, ..LONG });
    let job = opening("job", 0);
    store.complete(job.clone(), answered("{}")).await.unwrap();
    store.note(job.clone(), 1, ended(1)).await.unwrap();
    store.split_again(job.clone(), vec![(0, ended(1))]).await.unwrap();
    assert_eq!(store.open(job.clone()).await.unwrap().0.result.as_deref(), Some("{}"));
    let find = async || store.find("chat".to_owned(), "job".to_owned()).await.unwrap();
    eventually("the record to expire", async || find().await.is_none().then_some(())).await;
}

async fn the_latest_record_of_a_job_is_found_whatever_its_id(place: Place) {
    let store = place.store(LONG);
    for job_id in
        ["plain", "1:plain", "deaths:plain", "群 'or' \"1\"=1\n", "plain*", &"x".repeat(255)]
    {
        for earlier_deaths in [0, 11, 2] {
            store.open(opening(job_id, earlier_deaths)).await.unwrap();
        }
        let found =
            store.find("chat".to_owned(), job_id.to_owned()).await.unwrap().expect("a record");
        assert_eq!(found.key, opening(job_id, 11).key);
        assert_eq!(store.find("other".to_owned(), job_id.to_owned()).await.unwrap(), None);
    }
    assert_eq!(store.find("chat".to_owned(), "unknown".to_owned()).await.unwrap(), None);
}

async fn records_survive_the_store_that_wrote_them(place: Place) {
    let [job, finished] = [opening("job", 0), opening("finished", 0)];
    let store = place.store(LONG);
    store.note(job.clone(), 0, ended(1)).await.unwrap();
    store.complete(finished.clone(), answered("{}")).await.unwrap();
    drop(store);

    let store = place.store(LONG);
    assert_eq!(batches(&*store, &job).await, [(0, ended(1))]);
    assert_eq!(store.open(finished).await.unwrap().0.result.as_deref(), Some("{}"));
}

async fn a_write_to_a_record_that_is_lost_makes_it_again(place: Place) {
    let store = place.store(LONG);
    let [noted, completed] = [opening("noted", 1), opening("completed", 1)];
    store.note(noted.clone(), 1, ended(1)).await.unwrap();
    store.complete(completed.clone(), answered("{}")).await.unwrap();
    for job in [noted, completed] {
        let found =
            store.find("chat".to_owned(), job.key.job_id.clone()).await.unwrap().expect("a record");
        assert_eq!((found.key, found.head), (job.key.clone(), job.head.clone()));
    }
}

async fn two_processes_see_what_the_other_wrote(place: Place) {
    let (one, other) = tokio::join!(async { place.store(LONG) }, async { place.store(LONG) });
    let job = opening("job", 0);
    // Both create the missing record at the same time.
    let (first, second) = tokio::join!(one.open(job.clone()), other.open(job.clone()));
    assert_eq!(first.unwrap().0.head, second.unwrap().0.head);
    one.note(job.clone(), 0, ended(1)).await.unwrap();
    other.note(job.clone(), 1, ended(2)).await.unwrap();
    assert_eq!(batches(&*one, &job).await, [(0, ended(1)), (1, ended(2))]);
    assert_eq!(batches(&*other, &job).await, [(0, ended(1)), (1, ended(2))]);
}

async fn many_jobs_at_once_are_all_recorded(place: Place) {
    let store = place.store(LONG);
    let job = |number: usize| opening(&format!("job-{number}"), 0);
    let work = (0..1000).map(|number| {
        let (store, job) = (store.clone(), job(number));
        tokio::spawn(async move {
            store.open(job.clone()).await.unwrap();
            store
                .note(job.clone(), 0, progress(1, BatchState::Ended(BatchOutcome::Sent)))
                .await
                .unwrap();
            store.complete(job, answered(&number.to_string())).await.unwrap();
        })
    });
    for done in work.collect::<Vec<_>>() {
        done.await.unwrap();
    }
    for number in 0..1000 {
        assert_eq!(store.open(job(number)).await.unwrap().0.result, Some(number.to_string()));
    }
}

async fn a_writer_with_an_older_epoch_is_told_so_and_only_what_it_knows_is_kept(place: Place) {
    let store = place.store(LONG);
    let take = async |leave_active: bool| {
        let take_over = TakeOver {
            app: "chat".to_owned(),
            at_least: "2026-01-01T00:00:00Z".parse().unwrap(),
            leave_active,
        };
        store.take_over(take_over).await.unwrap()
    };
    let Taken::Epoch(older) = take(false).await else { panic!("nobody has the app") };
    let Taken::Epoch(newer) = take(false).await else { panic!("an app is taken over") };
    assert!(older < newer);
    assert_eq!(take(true).await, Taken::LeftToAnother);
    let of = |epoch: i64| Arc::new(Opening { epoch, ..(*opening("job", 0)).clone() });
    let is_displaced = |answered: Result<(), StoreLost>| {
        answered.is_err_and(|error| error.scope == Scope::Displaced)
    };
    store.open(of(newer)).await.unwrap();
    store.note(of(newer), 0, progress(1, BatchState::Intended)).await.unwrap();

    assert!(is_displaced(store.open(of(older)).await.map(drop)));
    assert!(is_displaced(store.confirm("chat".to_owned(), older).await.map(drop)));
    assert!(is_displaced(store.note(of(older), 0, progress(2, BatchState::Open)).await.map(drop)));
    assert!(is_displaced(
        store.note(of(older), 1, progress(1, BatchState::Intended)).await.map(drop)
    ));
    assert!(is_displaced(store.note(of(older), 2, ended(1)).await.map(drop)));
    store.confirm("chat".to_owned(), newer).await.unwrap();
    assert_eq!(
        batches(&*store, &of(newer)).await,
        [(0, progress(1, BatchState::Intended)), (2, ended(1))]
    );
}

async fn it_says_that_it_works(place: Place) {
    place.store(LONG).probe().await.unwrap();
}

async fn cancel(store: &dyn Store, job_id: &str) -> Cancelled {
    store.cancel("chat".to_owned(), job_id.to_owned()).await.unwrap()
}

async fn since(store: &dyn Store, known: CancelNumber) -> Cancellations {
    let mut cancellations = store.cancelled_since("chat".to_owned(), known).await.unwrap();
    cancellations.jobs.sort();
    cancellations
}

async fn a_cancelled_job_is_told_at_its_look_up_and_to_whoever_makes_the_calls(place: Place) {
    let (store, other) = (place.store(LONG), place.store(LONG));
    let job = opening("job", 0);
    let (record, before) = store.open(job.clone()).await.unwrap();
    assert!(!record.is_cancelled);
    assert_eq!(before, CancelNumber::default());

    assert_eq!(cancel(&*other, "job").await, Cancelled::UnderWay);
    assert_eq!(cancel(&*other, "later: \"群\"").await, Cancelled::NotSeen);

    let told = store.note(job.clone(), 0, progress(1, BatchState::Open)).await.unwrap();
    assert!(told > before);
    assert_eq!(store.confirm("chat".to_owned(), 0).await.unwrap(), told);
    assert_eq!(store.confirm("another".to_owned(), 0).await.unwrap(), before);
    let cancellations = since(&*store, before).await;
    assert_eq!(cancellations.jobs, ["job", "later: \"群\""]);
    assert_eq!(cancellations.latest, told);
    assert_eq!(since(&*store, told).await, Cancellations { jobs: vec![], latest: told });
    assert!(store.open(job).await.unwrap().0.is_cancelled);
    assert!(store.open(opening("later: \"群\"", 0)).await.unwrap().0.is_cancelled);
    assert!(!store.open(opening("other", 0)).await.unwrap().0.is_cancelled);
}

async fn a_job_that_has_ended_cannot_be_cancelled_and_its_end_removes_the_cancellation(
    place: Place,
) {
    let store = place.store(LONG);
    let job = opening("job", 0);
    store.open(job.clone()).await.unwrap();
    store.note(job.clone(), 0, progress(1, BatchState::Open)).await.unwrap();
    assert_eq!(cancel(&*store, "job").await, Cancelled::UnderWay);
    store.complete(job.clone(), answered("{}")).await.unwrap();
    let record = store.find("chat".to_owned(), "job".to_owned()).await.unwrap().unwrap();
    assert!(!record.is_cancelled);
    assert!(since(&*store, CancelNumber::default()).await.jobs.is_empty());

    assert_eq!(cancel(&*store, "job").await, Cancelled::HasEnded);
    let redriven = opening("job", 1);
    assert!(!store.open(redriven.clone()).await.unwrap().0.is_cancelled);
    assert_eq!(cancel(&*store, "job").await, Cancelled::UnderWay, "it runs again");
    assert!(store.open(redriven).await.unwrap().0.is_cancelled);
}

async fn a_cancellation_that_is_undone_or_over_is_no_more(place: Place) {
    let store = place.store(LONG);
    assert_eq!(cancel(&*store, "job").await, Cancelled::NotSeen);
    let undo = async || store.undo_cancel("chat".to_owned(), "job".to_owned()).await.unwrap();
    assert!(undo().await);
    assert!(!undo().await);
    assert!(!store.open(opening("job", 0)).await.unwrap().0.is_cancelled);
    assert!(since(&*store, CancelNumber::default()).await.jobs.is_empty());

    let brief = place.store(BRIEF);
    assert_eq!(cancel(&*brief, "brief").await, Cancelled::NotSeen);
    eventually("the cancellation to be over", async || {
        let (record, _) = brief.open(opening("brief", 0)).await.unwrap();
        (!record.is_cancelled).then_some(())
    })
    .await;
}

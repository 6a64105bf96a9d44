use proptest::prelude::*;

use super::*;

fn drain(queue: &mut FairQueue) -> Vec<(JobKey, u32)> {
    std::iter::from_fn(|| queue.take_next(|_| true)).collect()
}

#[test]
fn jobs_of_one_priority_take_turns() {
    let mut queue = FairQueue::default();
    queue.add(1, 4, 0..3);
    queue.add(2, 4, 0..1);
    queue.add(3, 4, 0..2);
    assert_eq!(drain(&mut queue), [(1, 0), (2, 0), (3, 0), (1, 1), (3, 1), (1, 2)]);
}

#[test]
fn a_higher_priority_goes_first_even_if_it_comes_later() {
    let mut queue = FairQueue::default();
    queue.add(1, 4, 0..3);
    assert_eq!(queue.take_next(|_| true), Some((1, 0)));
    queue.add(2, 9, 0..2);
    assert_eq!(drain(&mut queue), [(2, 0), (2, 1), (1, 1), (1, 2)]);
}

#[test]
fn a_batch_put_back_goes_before_the_jobs_other_batches() {
    let mut queue = FairQueue::default();
    queue.add(1, 4, 0..3);
    assert_eq!(queue.take_next(|_| true), Some((1, 0)));
    queue.put_back(1, 0);
    assert_eq!(drain(&mut queue), [(1, 0), (1, 1), (1, 2)]);
    queue.put_back(1, 2);
    assert_eq!(drain(&mut queue), [(1, 2)]);
}

#[test]
fn a_removed_job_is_never_served_again() {
    let mut queue = FairQueue::default();
    queue.add(1, 4, 0..3);
    queue.add(2, 4, 0..1);
    queue.remove(1);
    queue.put_back(1, 0);
    assert_eq!(drain(&mut queue), [(2, 0)]);
    assert!(queue.is_empty());
}

#[test]
fn a_newcomer_goes_before_those_that_have_begun_and_cannot_keep_them_waiting() {
    let mut queue = FairQueue::default();
    queue.add(0, 4, 0..1000);
    queue.add(1, 4, 0..1000);
    assert_eq!(
        [queue.take_next(|_| true), queue.take_next(|_| true)],
        [Some((0, 0)), Some((1, 0))]
    );
    queue.add(2, 4, 0..1);
    assert_eq!(
        [queue.take_next(|_| true), queue.take_next(|_| true)],
        [Some((2, 0)), Some((0, 1))]
    );
    (100..400).for_each(|key| queue.add(key, 4, 0..1));
    let of_the_large: Vec<JobKey> = (0..160)
        .filter_map(|_| queue.take_next(|_| true))
        .map(|(key, _)| key)
        .filter(|key| *key < 2)
        .collect();
    assert_eq!(of_the_large, [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]);
}

#[test]
fn a_job_that_may_not_go_delays_no_other_and_keeps_its_turn() {
    let mut queue = FairQueue::default();
    queue.add(1, 9, 0..2);
    queue.add(2, 4, 0..1);
    queue.add(3, 4, 0..1);
    let others = |queue: &mut FairQueue| queue.take_next(|key| key != 1 && key != 2);
    assert_eq!((others(&mut queue), others(&mut queue)), (Some((3, 0)), None));
    assert!(!queue.is_empty());
    queue.add(4, 4, 0..1);
    assert_eq!(drain(&mut queue), [(1, 0), (1, 1), (2, 0), (4, 0)]);
}

#[derive(Debug, Clone)]
enum Operation {
    Add { priority: u8, batches: u32 },
    Take,
    PutBack(prop::sample::Index),
    Remove(prop::sample::Index),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => (0u8..3, 0u32..6).prop_map(|(priority, batches)| Operation::Add { priority, batches }),
        8 => Just(Operation::Take),
        2 => any::<prop::sample::Index>().prop_map(Operation::PutBack),
        1 => any::<prop::sample::Index>().prop_map(Operation::Remove),
    ]
}

/// The expected state of a job in the queue.
struct Expected {
    priority: u8,
    ready: Vec<u32>,
    /// The turn of its lane by which the job must have been served.
    turn_by: usize,
}

/// The expected content of the queue, and how long each job may still wait.
#[derive(Default)]
struct Model {
    jobs: HashMap<JobKey, Expected>,
    turns: [usize; PRIORITIES],
}

impl Model {
    fn ready(&self, priority: u8) -> usize {
        self.jobs.values().filter(|job| job.priority == priority && !job.ready.is_empty()).count()
    }

    /// The jobs before it have a turn each. Fifteen newcomers may come between two jobs that have
    /// begun.
    fn turn_by(&self, priority: u8) -> usize {
        self.turns[priority as usize] + TURNS_PER_BEGUN_JOB as usize * (self.ready(priority) + 1)
    }

    fn put_back(&mut self, key: JobKey, batch: u32) {
        let Some(priority) = self.jobs.get(&key).map(|job| job.priority) else { return };
        let turn_by = self.turn_by(priority);
        let job = self.jobs.get_mut(&key).expect("it is there");
        if job.ready.is_empty() {
            job.turn_by = turn_by;
        }
        job.ready.insert(0, batch);
    }

    fn take(&mut self, taken: Option<(JobKey, u32)>) -> Result<(), TestCaseError> {
        let highest =
            self.jobs.values().filter(|job| !job.ready.is_empty()).map(|job| job.priority).max();
        let Some((key, batch)) = taken else {
            prop_assert_eq!(highest, None, "somebody was forgotten");
            return Ok(());
        };
        let job = self.jobs.get_mut(&key).expect("a removed job was served");
        let priority = job.priority;
        prop_assert_eq!(Some(priority), highest);
        prop_assert_eq!(job.ready.remove(0), batch);
        self.turns[priority as usize] += 1;
        let turn_by = self.turn_by(priority);
        self.jobs.get_mut(&key).expect("it was there").turn_by = turn_by;
        let turns = self.turns[priority as usize];
        let late = |job: &&Expected| {
            job.priority == priority && !job.ready.is_empty() && job.turn_by < turns
        };
        prop_assert_eq!(self.jobs.values().filter(late).count(), 0, "somebody waits too long");
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_lost_nobody_starves_and_the_highest_priority_goes_first(
        operations in prop::collection::vec(operation(), 1..300),
    ) {
        let (mut queue, mut model) = (FairQueue::default(), Model::default());
        let (mut next_key, mut taken) = (0, Vec::new());
        for operation in operations {
            match operation {
                Operation::Add { priority, batches } => {
                    let turn_by = model.turn_by(priority);
                    queue.add(next_key, priority, 0..batches);
                    model.jobs.insert(next_key, Expected { priority, ready: (0..batches).collect(), turn_by });
                    next_key += 1;
                }
                Operation::Take => {
                    let next = queue.take_next(|_| true);
                    model.take(next)?;
                    taken.extend(next);
                }
                Operation::PutBack(index) if !taken.is_empty() => {
                    let (key, batch) = taken.swap_remove(index.index(taken.len()));
                    queue.put_back(key, batch);
                    model.put_back(key, batch);
                }
                Operation::Remove(index) if next_key > 0 => {
                    let key = index.index(next_key as usize) as JobKey;
                    queue.remove(key);
                    model.jobs.remove(&key);
                }
                Operation::PutBack(_) | Operation::Remove(_) => {}
            }
            prop_assert_eq!(queue.is_empty(), model.jobs.values().all(|job| job.ready.is_empty()));
        }
        while !queue.is_empty() {
            model.take(queue.take_next(|_| true))?;
        }
        model.take(queue.take_next(|_| true))?;
    }

    #[test]
    fn every_batch_is_served_once_in_order_and_the_jobs_take_turns(
        jobs in prop::collection::vec((0u8..10, 1u32..20), 1..20),
    ) {
        let mut queue = FairQueue::default();
        for (key, (priority, batches)) in jobs.iter().enumerate() {
            queue.add(key as JobKey, *priority, 0..*batches);
        }
        let served = drain(&mut queue);
        let total: u32 = jobs.iter().map(|(_, batches)| batches).sum();
        prop_assert_eq!(served.len(), total as usize);

        let priority_of = |key: JobKey| jobs[key as usize].0;
        prop_assert!(served.is_sorted_by_key(|(key, _)| std::cmp::Reverse(priority_of(*key))));
        for (key, (priority, batches)) in jobs.iter().enumerate() {
            let turns: Vec<usize> = (0..served.len()).filter(|turn| served[*turn].0 == key as JobKey).collect();
            prop_assert_eq!(turns.iter().map(|turn| served[*turn].1).collect::<Vec<_>>(), (0..*batches).collect::<Vec<_>>());
            let others = jobs.iter().filter(|(other, _)| other == priority).count();
            prop_assert!(turns.windows(2).all(|pair| pair[1] - pair[0] <= 2 * others));
        }
    }
}

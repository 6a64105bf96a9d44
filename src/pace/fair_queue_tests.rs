use proptest::prelude::*;

use super::*;

fn drain(queue: &mut FairQueue) -> Vec<(JobKey, u32)> {
    std::iter::from_fn(|| queue.take_next()).collect()
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
    assert_eq!(queue.take_next(), Some((1, 0)));
    queue.add(2, 9, 0..2);
    assert_eq!(drain(&mut queue), [(2, 0), (2, 1), (1, 1), (1, 2)]);
}

#[test]
fn a_batch_put_back_goes_before_the_jobs_other_batches() {
    let mut queue = FairQueue::default();
    queue.add(1, 4, 0..3);
    assert_eq!(queue.take_next(), Some((1, 0)));
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

proptest! {
    #[test]
    fn every_batch_is_served_once_and_nobody_waits_longer_than_one_turn_of_the_others(
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
            prop_assert!(turns.windows(2).all(|pair| pair[1] - pair[0] <= others));
        }
    }
}

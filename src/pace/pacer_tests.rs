use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The most of `moments` (sorted) that lie in any window of one second, both edges included.
fn most_in_one_second(moments: &[Instant]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, &moment) in moments.iter().enumerate() {
        while moment - moments[first] > SECOND {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most
}

/// Sends as fast as the pacer allows until `until`; each request is written `write_delay(n)` after its turn came.
fn saturate(pacer: &Pacer, from: Instant, until: Instant, write_delay: impl Fn(usize) -> Duration) -> Vec<Instant> {
    let mut now = from;
    let mut pending: Vec<(Instant, SendSlot)> = Vec::new();
    let mut written = Vec::new();
    while now < until {
        pending.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        while pending.last().is_some_and(|(at, _)| *at <= now) {
            let (at, slot) = pending.pop().unwrap();
            slot.written(at);
            written.push(at);
        }
        let next_write = pending.last().map(|(at, _)| *at);
        now = match pacer.turn(now) {
            Turn::Now(slot) => {
                pending.push((now + write_delay(written.len() + pending.len()), slot));
                now
            }
            Turn::At(at) => next_write.map_or(at, |write| write.min(at)),
            Turn::AfterAWrite => next_write.expect("only a pending write can block"),
        };
    }
    written
}

#[test]
fn a_saturated_pacer_uses_the_limit_fully_and_never_exceeds_it() {
    let start = Instant::now();
    let pacer = Pacer::new(200, 20, start);
    let sent = saturate(&pacer, start, start + 61 * SECOND, |_| Duration::ZERO);
    assert_eq!(most_in_one_second(&sent), 200);
    let mean = sent.len() as f64 / 60.0;
    assert!(mean > 0.98 * 200.0, "{mean} calls a second");
}

#[test]
fn nothing_leaves_in_the_first_second_and_no_burst_after_it() {
    let start = Instant::now();
    let pacer = Pacer::new(200, 20, start);
    let sent = saturate(&pacer, start, start + 2 * SECOND, |_| Duration::ZERO);
    assert!(sent[0] >= start + SECOND);
    assert!(sent.iter().filter(|at| **at < start + SPAN + Duration::from_millis(100)).count() <= 20);
}

#[test]
fn a_restart_does_not_let_more_through() {
    let start = Instant::now();
    let pacer = Pacer::new(50, 50, start);
    let mut sent = saturate(&pacer, start, start + 5 * SECOND, |_| Duration::ZERO);
    let again = start + 5 * SECOND;
    let next_process = Pacer::new(50, 50, again);
    sent.extend(saturate(&next_process, again, again + 5 * SECOND, |_| Duration::ZERO));
    assert!(most_in_one_second(&sent) <= 50);
}

#[test]
fn a_slot_that_was_never_written_is_given_back() {
    let start = Instant::now();
    let pacer = Pacer::new(1, 1, start);
    let now = start + 3 * SECOND;
    let Turn::Now(slot) = pacer.turn(now) else { panic!("a token should be there") };
    assert!(matches!(pacer.turn(now + SECOND), Turn::AfterAWrite));
    drop(slot);
    assert!(matches!(pacer.turn(now + SECOND), Turn::Now(_)));
}

#[test]
fn many_refusals_halve_the_rate_in_a_second_and_it_grows_back() {
    let start = Instant::now();
    let pacer = Pacer::new(200, 20, start);
    let now = start + 5 * SECOND;
    (0..500).for_each(|_| pacer.slow_down(now));
    assert_eq!(pacer.rate(), 100.0);
    (0..500).for_each(|_| pacer.slow_down(now + SECOND));
    assert_eq!(pacer.rate(), 50.0);
    drop(pacer.turn(now + 30 * SECOND));
    assert_eq!(pacer.rate(), 200.0);
}

#[test]
fn a_single_refusal_costs_next_to_nothing() {
    let start = Instant::now();
    let pacer = Pacer::new(200, 20, start);
    let now = start + 5 * SECOND;
    pacer.slow_down(now);
    assert_eq!(pacer.rate(), 196.0);
    drop(pacer.turn(now + 2 * SECOND));
    assert_eq!(pacer.rate(), 200.0);
}

proptest! {
    #[test]
    fn no_second_holds_more_than_the_limit_whenever_requests_are_written(
        limit in 1u32..60,
        burst_share in 1u32..60,
        delays_ms in prop::collection::vec(0u64..900, 1..40),
        idle_ms in 0u64..3000,
    ) {
        let start = Instant::now();
        let pacer = Pacer::new(limit, burst_share.min(limit), start);
        let delay = |n: usize| Duration::from_millis(delays_ms[n % delays_ms.len()]);
        let mut sent = saturate(&pacer, start, start + 4 * SECOND, delay);
        let later = start + 4 * SECOND + Duration::from_millis(idle_ms);
        sent.extend(saturate(&pacer, later, later + 4 * SECOND, delay));
        prop_assert!(most_in_one_second(&sent) <= limit as usize);
    }
}

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The most of `moments` (sorted) in any window of one second, both edges included.
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

/// Sends as fast as the pacer allows until `until`. Each request is written `write_delay(n)` after
/// its turn.
fn saturate(
    pacer: &Pacer,
    from: Instant,
    until: Instant,
    write_delay: impl Fn(usize) -> Duration,
) -> Vec<Instant> {
    saturate_and_then(pacer, from, until, until, write_delay, || {})
}

/// Like `saturate`, with a change at `change_at` while calls are in flight.
fn saturate_and_then(
    pacer: &Pacer,
    from: Instant,
    change_at: Instant,
    until: Instant,
    write_delay: impl Fn(usize) -> Duration,
    change: impl FnOnce(),
) -> Vec<Instant> {
    let mut now = from;
    let mut pending: Vec<(Instant, SendSlot)> = Vec::new();
    let mut written = Vec::new();
    let mut change = Some(change);
    while now < until {
        if now >= change_at
            && let Some(change) = change.take()
        {
            change();
        }
        pending.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        while pending.last().is_some_and(|(at, _)| *at <= now) {
            let (at, slot) = pending.pop().unwrap();
            slot.written(at);
            written.push(at);
        }
        let next_write = pending.last().map(|(at, _)| *at);
        let asked_at = now;
        now = match pacer.turn(now) {
            Turn::Now(slot) => {
                pending.push((now + write_delay(written.len() + pending.len()), slot));
                now
            }
            Turn::At(at) => next_write.map_or(at, |write| write.min(at)),
            Turn::AfterAWrite => next_write.expect("only a pending write can block"),
        };
        // In the daemon, a change of the limits wakes the app's driver.
        if change.is_some() && asked_at < change_at {
            now = now.min(change_at);
        }
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
    assert!(
        sent.iter().filter(|at| **at < start + SPAN + Duration::from_millis(100)).count() <= 20
    );
}

#[test]
fn a_machine_that_stands_still_for_a_moment_makes_up_for_it() {
    let start = Instant::now();
    let pacer = Pacer::new(200, 20, start);
    let mut sent = saturate(&pacer, start, start + 10 * SECOND, |_| Duration::ZERO);
    for _ in 0..10 {
        let again = sent[sent.len() - 1] + Duration::from_millis(200);
        sent.extend(saturate(&pacer, again, again + SECOND, |_| Duration::ZERO));
    }
    let mean = sent.len() as f64 / (sent[sent.len() - 1] - sent[0]).as_secs_f64();
    assert!(mean > 0.96 * 200.0, "{mean} calls a second");
    assert_eq!(most_in_one_second(&sent), 200);
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
    assert_eq!(pacer.rate(now), 100.0);
    let last = now + SECOND;
    (0..500).for_each(|_| pacer.slow_down(last));
    assert_eq!(pacer.rate(last), 50.0);
    assert_eq!(pacer.rate(last + 20 * SECOND).round(), 70.0, "slowly at first");
    assert_eq!(pacer.rate(last + 33 * SECOND).round(), 200.0, "and then fast");
}

#[test]
fn a_single_refusal_costs_next_to_nothing() {
    let start = Instant::now();
    let pacer = Pacer::new(200, 20, start);
    let now = start + 5 * SECOND;
    pacer.slow_down(now);
    assert_eq!(pacer.rate(now), 194.0);
    assert_eq!(pacer.rate(now + 2 * SECOND), 200.0);
}

/// Sends for `seconds` to an API that takes `limit` calls in any second. Returns how many calls
/// were sent and how many were refused.
fn send_to(
    pacer: &Pacer,
    limit: usize,
    from: Instant,
    seconds: u32,
    accepted: &mut Vec<Instant>,
) -> (usize, usize) {
    let (mut now, mut sent, mut refused) = (from, 0, 0);
    while now < from + seconds * SECOND {
        match pacer.turn(now) {
            Turn::Now(slot) => {
                slot.written(now);
                sent += 1;
                let taken = accepted.iter().rev().take_while(|at| now - **at < SECOND).count();
                if taken < limit {
                    accepted.push(now)
                } else {
                    refused += 1;
                    pacer.slow_down(now)
                }
            }
            Turn::At(at) => now = at,
            Turn::AfterAWrite => unreachable!("each is written at once"),
        }
    }
    (sent, refused)
}

#[test]
fn a_lower_limit_is_found_and_used_and_left_when_it_is_lifted() {
    for limit in [20, 50, 100, 150, 190] {
        let start = Instant::now();
        let pacer = Pacer::new(200, 20, start);
        let mut accepted = Vec::new();
        send_to(&pacer, limit, start, 5, &mut accepted);
        let from = start + 5 * SECOND;
        let (sent, refused) = send_to(&pacer, limit, from, 60, &mut accepted);
        let (share, used) =
            (refused as f64 / sent as f64, (sent - refused) as f64 / (60 * limit) as f64);
        println!(
            "limit {limit}: {sent} calls, {:.1} % refused, {:.1} % of the limit used",
            share * 100.0,
            used * 100.0
        );
        assert!(
            share < 0.05 && used > 0.9,
            "limit {limit}: {sent} calls, {refused} refused, {used} used"
        );
        let lifted = from + 60 * SECOND;
        assert_eq!(pacer.rate(lifted + 60 * SECOND), 200.0);
    }
}

#[test]
fn after_an_outage_calls_begin_slowly_and_never_faster_than_before() {
    let start = Instant::now();
    let pacer = Pacer::new(200, 20, start);
    let now = start + 5 * SECOND;
    pacer.begin_with(0.1, now);
    assert_eq!(pacer.rate(now), 20.0);
    assert_eq!(pacer.rate(now + 18 * SECOND), 200.0);
    (0..500).for_each(|_| pacer.slow_down(now + 20 * SECOND));
    pacer.begin_with(0.9, now + 20 * SECOND);
    assert_eq!(pacer.rate(now + 20 * SECOND), 100.0);
}

#[test]
fn a_pacer_that_was_slowed_down_stays_where_it_is_below_a_new_limit() {
    let start = Instant::now();
    let now = start + 5 * SECOND;
    let slowed = || {
        let pacer = Pacer::new(200, 20, start);
        (0..500).for_each(|_| pacer.slow_down(now));
        pacer
    };
    for (limit, rate) in [(400, 100.0), (150, 100.0), (60, 60.0)] {
        let pacer = slowed();
        pacer.set_limits(limit, 20, now);
        assert_eq!(pacer.rate(now), rate, "under {limit}");
        (0..500).for_each(|_| pacer.slow_down(now));
        assert!(pacer.rate(now) <= rate, "a refusal raised the rate under {limit}");
        assert_eq!(pacer.rate(now + 60 * SECOND), f64::from(limit));
    }
}

#[test]
fn a_pacer_at_its_limit_takes_a_new_one_at_once() {
    let start = Instant::now();
    let pacer = Pacer::new(20, 20, start);
    let mut sent = saturate(&pacer, start, start + 5 * SECOND, |_| Duration::ZERO);
    for limit in [200, 20] {
        let changed = sent[sent.len() - 1];
        pacer.set_limits(limit, 20, changed);
        sent.extend(saturate(&pacer, changed, changed + 61 * SECOND, |_| Duration::ZERO));
        let in_use = sent.iter().filter(|at| **at > changed + SECOND).count() as f64 / 60.0;
        assert!(in_use > 0.97 * f64::from(limit), "{in_use} calls a second under {limit}");
    }
}

proptest! {
    #[test]
    fn no_second_around_a_change_holds_more_than_the_higher_limit_and_none_after_it_more_than_the_new_one(
        old in 1u32..60,
        new in 1u32..60,
        burst_share in 1u32..60,
        delays_ms in prop::collection::vec(0u64..900, 1..40),
        until_change_ms in 0u64..5000,
    ) {
        let start = Instant::now();
        let pacer = Pacer::new(old, burst_share.min(old), start);
        let delay = |n: usize| Duration::from_millis(delays_ms[n % delays_ms.len()]);
        let changed = start + Duration::from_millis(until_change_ms);
        let sent = saturate_and_then(&pacer, start, changed, changed + 5 * SECOND, delay, || {
            pacer.set_limits(new, burst_share.min(new), changed);
        });
        prop_assert!(most_in_one_second(&sent) <= old.max(new) as usize);
        let afterwards = sent.partition_point(|at| *at <= changed + SECOND);
        prop_assert!(most_in_one_second(&sent[afterwards..]) <= new as usize);
    }

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

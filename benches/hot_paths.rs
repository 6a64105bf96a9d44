//! Benchmarks of the pure code that every job or call passes through, with the largest inputs.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use groupcast::{
    accept::decode::{RecipientRule, Rules, decode},
    config::EmptyRecipients,
    pace::{FairQueue, Pacer, Turn},
};
use tokio::time::Instant;

/// The largest job: a million recipients, which is 2,000 batches.
fn reading(criterion: &mut Criterion) {
    let recipients: Vec<String> =
        (0..1_000_000).map(|number| format!("user_{number:07}")).collect();
    let job = serde_json::json!({ "GroupId": "group", "Content": "hello", "ToMembers_Account": recipients });
    let body = job.to_string().into_bytes();
    let rules = Rules {
        max_job_bytes: usize::MAX,
        batch_size: 500,
        empty_recipients: EmptyRecipients::Reject,
        recipients: RecipientRule::Always,
    };
    let mut group = criterion.benchmark_group("a job of 1,000,000 recipients");
    group.throughput(Throughput::Bytes(body.len() as u64)).sample_size(10);
    group.bench_function("decode and split", |bencher| {
        bencher.iter(|| decode(black_box(&body), &rules).is_ok())
    });
    let job = decode(&body, &rules).unwrap_or_else(|rejection| panic!("{rejection}"));
    group.bench_function("all request bodies", |bencher| {
        bencher.iter(|| {
            (0..job.batch_count()).map(|batch| job.request_body(batch).len()).sum::<usize>()
        });
    });
    group.bench_function("fingerprint", |bencher| bencher.iter(|| job.fingerprint()));
    group.finish();
}

fn queueing(criterion: &mut Criterion) {
    let full = || {
        let mut queue = FairQueue::default();
        (0..10_000).for_each(|key| queue.add(key, (key % 3) as u8, 0..3));
        queue
    };
    let mut group = criterion.benchmark_group("a queue of 10,000 jobs of 3 batches");
    group.throughput(Throughput::Elements(30_000));
    group.bench_function("fill", |bencher| bencher.iter(full));
    group.bench_function("empty in turns", |bencher| {
        bencher.iter_batched(
            full,
            |mut queue| while queue.take_next(|_| true).is_some() {},
            BatchSize::LargeInput,
        );
    });
    group.bench_function("remove each", |bencher| {
        bencher.iter_batched(
            full,
            |mut queue| (0..10_000).for_each(|key| queue.remove(key)),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// Ten seconds at a full limit of 200 calls a second, without the waiting.
fn pacing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("200 calls a second");
    group.throughput(Throughput::Elements(2000));
    group.bench_function("ten seconds of turns", |bencher| {
        bencher.iter(|| {
            let start = Instant::now();
            let pacer = Pacer::new(200, 20, start);
            let mut now = start;
            let mut calls = 0;
            while now < start + Duration::from_secs(10) {
                match pacer.turn(now) {
                    Turn::Now(slot) => {
                        slot.written(now);
                        calls += 1;
                    }
                    Turn::At(at) => now = at,
                    Turn::AfterAWrite => unreachable!("each is written at once"),
                }
            }
            calls
        });
    });
    group.finish();
}

criterion_group!(benches, reading, queueing, pacing);
criterion_main!(benches);

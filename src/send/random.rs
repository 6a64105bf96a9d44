//! The numbers by which the vendor recognises a repeated message, in the body field `Random`.
//!
//! The vendor discards a message whose number it has seen within five minutes. It does not document
//! whether it also compares the sender, the group or the content. So under every reading:
//!
//! - All calls for one message have the same number. It is derived from the job, so a restarted
//!   process and another replica use it too.
//! - No two messages have the same number within six minutes. Within a job this is certain, because
//!   the numbers are consecutive. Between jobs, [`UsedNumbers`] keeps the numbers of the last six
//!   minutes.
//! - A batch whose message was surely not delivered goes on with a new number (the next epoch): the
//!   vendor may remember the number of a message that it has dropped.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::job::{Envelope, Job};

/// The vendor remembers numbers for five minutes.
const REMEMBERED_FOR: Duration = Duration::from_secs(6 * 60);
/// Web clients draw their own numbers below this one, and hide a message that has one of their last
/// hundred.
const CLIENTS_NUMBERS: u32 = 100_000_000;

/// The numbers of one job's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageNumbers {
    /// Differs from that of any other job.
    identity: u128,
    batches: u32,
}

/// Identifies a batch among those of all jobs.
type BatchKey = (u128, u32);

impl MessageNumbers {
    pub fn of(sdk_app_id: u64, sender: &str, job: &Job, envelope: &Envelope) -> Self {
        let mut hash = Sha256::new();
        let cut = job.cut();
        let parts = [
            sdk_app_id.to_string(),
            sender.to_owned(),
            envelope.job_id.clone(),
            envelope.earlier_deaths.to_string(),
            format!("{} {:?}", cut.batch_size, cut.within),
            job.fingerprint(),
        ];
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        let (identity, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
        Self { identity: u128::from_be_bytes(*identity), batches: job.batch_count() }
    }

    /// The number of a batch's message. For a job, no two batches and epochs have the same number
    /// before 2³¹ messages.
    pub fn number(&self, batch: u32, epoch: u32) -> u32 {
        let base = self.identity as u32;
        let number = base.wrapping_add(batch).wrapping_add(epoch.wrapping_mul(self.batches));
        if number < CLIENTS_NUMBERS { number + (1 << 31) } else { number }
    }

    fn key(&self, batch: u32) -> BatchKey {
        (self.identity, batch)
    }
}

/// The numbers that an app's messages have used in the last six minutes.
#[derive(Debug, Default)]
pub(super) struct UsedNumbers {
    uses: HashMap<u32, Use>,
    /// In the order of their time. A number that was used again is in it more than once.
    by_time: VecDeque<(Instant, u32)>,
}

#[derive(Debug)]
struct Use {
    by: BatchKey,
    last: Instant,
    /// The message was surely not delivered.
    is_spent: bool,
}

impl UsedNumbers {
    /// Uses a number for a batch: the one of `epoch`, or of the next epoch whose number is free.
    /// Returns the epoch. If the message of `epoch` may have been delivered, it keeps its number:
    /// another replica may have sent it since it was spent here.
    pub fn take(
        &mut self,
        numbers: &MessageNumbers,
        batch: u32,
        epoch: u32,
        may_be_repeat: bool,
        now: Instant,
    ) -> u32 {
        self.forget_old(now);
        let by = numbers.key(batch);
        let is_free = |tried: &u32| match self.uses.get(&numbers.number(batch, *tried)) {
            Some(other) => other.by == by && (!other.is_spent || may_be_repeat && *tried == epoch),
            None => true,
        };
        let epoch = (epoch..=u32::MAX).find(is_free).unwrap_or(epoch);
        let number = numbers.number(batch, epoch);
        self.uses.insert(number, Use { by, last: now, is_spent: false });
        self.by_time.push_back((now, number));
        epoch
    }

    /// The message of this epoch was surely not delivered. Its number must not be used again.
    pub fn spend(&mut self, numbers: &MessageNumbers, batch: u32, epoch: u32) {
        if let Some(used) = self.uses.get_mut(&numbers.number(batch, epoch))
            && used.by == numbers.key(batch)
        {
            used.is_spent = true;
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((at, number)) = self.by_time.front().copied()
            && at + REMEMBERED_FOR <= now
        {
            self.by_time.pop_front();
            if self.uses.get(&number).is_some_and(|used| used.last == at) {
                self.uses.remove(&number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(identity: u128, batches: u32) -> MessageNumbers {
        MessageNumbers { identity, batches }
    }

    proptest! {
        #[test]
        fn no_two_messages_of_a_job_have_the_same_number(identity: u128, batches in 1..400u32, epochs in 1..20u32) {
            let job = numbers(identity, batches);
            let all = (0..epochs).flat_map(|epoch| (0..batches).map(move |batch| (batch, epoch)));
            let distinct: std::collections::HashSet<u32> = all.map(|(batch, epoch)| job.number(batch, epoch)).collect();
            prop_assert_eq!(distinct.len() as u32, batches * epochs);
            prop_assert!(distinct.iter().all(|number| *number >= CLIENTS_NUMBERS));
        }

        /// Jobs whose numbers are close together, so that they meet.
        #[test]
        fn no_two_messages_share_a_number_within_six_minutes(
            calls in prop::collection::vec((0..4u128, 0..5u32, any::<bool>(), 0..40u64), 1..300),
        ) {
            let mut used = UsedNumbers::default();
            let mut now = Instant::now();
            let mut epochs: HashMap<(u128, u32), u32> = HashMap::new();
            let mut sent: Vec<(Instant, u32, (u128, u32, u32))> = Vec::new();
            for (identity, batch, is_dropped, seconds) in calls {
                now += Duration::from_secs(seconds);
                let job = numbers(identity + 200_000_000, 5);
                let epoch = epochs.entry((identity, batch)).or_default();
                *epoch = used.take(&job, batch, *epoch, false, now);
                let (number, message) = (job.number(batch, *epoch), (identity, batch, *epoch));
                let clash = sent.iter().find(|(at, other, of)| {
                    now < *at + REMEMBERED_FOR && *other == number && *of != message
                });
                prop_assert!(clash.is_none(), "{:?} and {:?} share {}", message, clash, number);
                sent.push((now, number, message));
                if is_dropped {
                    used.spend(&job, batch, *epoch);
                    *epoch += 1;
                }
            }
        }
    }

    #[test]
    fn a_repeat_keeps_its_number_and_a_spent_one_is_never_used_again() {
        let (mut used, now) = (UsedNumbers::default(), Instant::now());
        let job = numbers(500_000_000, 10);
        assert_eq!(used.take(&job, 3, 0, false, now), 0);
        assert_eq!(used.take(&job, 3, 0, false, now), 0);
        used.spend(&job, 3, 0);
        // A job without a record begins again with the first epoch.
        assert_eq!(used.take(&job, 3, 0, true, now), 0, "it may be a repeat");
        used.spend(&job, 3, 0);
        assert_eq!(used.take(&job, 3, 0, false, now), 1);
        // The numbers of its first two epochs belong to the other job.
        assert_eq!(used.take(&numbers(500_000_003, 10), 0, 0, false, now), 2);
        assert_eq!(used.take(&numbers(500_000_003, 10), 0, 0, false, now + REMEMBERED_FOR), 0);
    }
}

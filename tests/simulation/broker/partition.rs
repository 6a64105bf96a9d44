//! A partition of the broker. The node of the active consumer loses its peers, while its client
//! stays connected.
//!
//! The other nodes take the consumer's deliveries back, and the next consumer gets them. The
//! consumer that is cut off keeps them too, and gets copies of the jobs that waited. Its node can
//! commit nothing: its acknowledgements and returns are lost. When the nodes meet again, its
//! subscription ends.

use std::{collections::VecDeque, sync::Arc};

use tokio::time::Instant;

use super::{Broker, Consumer, Life, Message, Shared};

#[derive(Default)]
pub struct Partition {
    /// The process whose publishing connection is cut off too. The broker confirms nothing to it.
    publishes_in_vain: Option<Arc<Life>>,
    /// The last partition's beginning and end.
    began_at: Option<Instant>,
    ended_at: Option<Instant>,
}

impl Consumer {
    pub(super) fn is_active(&self) -> bool {
        !self.cancelled && self.cut_off.is_none()
    }
}

impl Broker {
    /// Whether the nodes were partitioned at this moment.
    pub fn was_partitioned_at(&self, at: Instant) -> bool {
        let Partition { began_at, ended_at, .. } = &self.partition;
        began_at.is_some_and(|began| began <= at) && ended_at.is_none_or(|ended| at <= ended)
    }

    fn cut_off(&mut self, publisher_too: bool) {
        let copies: VecDeque<Message> = self.jobs.clone();
        let Some(active) = self.consumers.iter_mut().find(|consumer| consumer.is_active()) else {
            return;
        };
        active.cut_off = Some(copies);
        let held = active.unacknowledged.values().map(|(message, _)| message.clone()).collect();
        let publishes_in_vain = publisher_too.then(|| active.life.clone());
        self.partition =
            Partition { publishes_in_vain, began_at: Some(Instant::now()), ended_at: None };
        self.take_back(held);
        self.changed.notify_waiters();
    }
}

impl Shared {
    /// Separates the node of the active consumer from its peers.
    pub fn cut_off(&self, publisher_too: bool) {
        self.note("the active consumer is cut off");
        // Both replicas send jobs without a record.
        self.interrupted();
        self.lock().broker.cut_off(publisher_too);
    }

    /// Ends the partition.
    pub fn reunite(&self) {
        let broker = &mut self.lock().broker;
        if broker.partition.ended_at.is_none() {
            broker.partition.ended_at = Some(Instant::now());
        }
        broker.partition.publishes_in_vain = None;
        broker.remove(|consumer| consumer.cut_off.is_some());
    }

    /// Whether the broker cannot confirm this process's messages.
    pub(super) fn publishes_in_vain(&self, life: &Arc<Life>) -> bool {
        self.lock()
            .broker
            .partition
            .publishes_in_vain
            .as_ref()
            .is_some_and(|cut_off| Arc::ptr_eq(cut_off, life))
    }
}

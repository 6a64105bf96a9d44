//! A value that tasks wait on, with the methods of tokio's `watch`. Tasks wake in the order in
//! which they began to wait, and jobs that waited for the same event go on in that order.
//!
//! Tokio wakes its receivers in a random order. A run of the simulation could then not be repeated
//! from its seed.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::{
        Notify,
        watch::{self, Ref},
    },
    task::coop::consume_budget,
};

/// The sender is gone, and so no further value comes.
#[derive(Debug)]
pub struct Closed;

#[derive(Debug)]
pub struct Sender<T> {
    value: watch::Sender<T>,
    waiters: Arc<Waiters>,
}

#[derive(Debug)]
pub struct Receiver<T> {
    value: watch::Receiver<T>,
    waiters: Arc<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    changed: Notify,
    is_closed: AtomicBool,
}

pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    pub fn new(value: T) -> Self {
        Self { value: watch::Sender::new(value), waiters: Arc::default() }
    }

    pub fn borrow(&self) -> Ref<'_, T> {
        self.value.borrow()
    }

    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { value: self.value.subscribe(), waiters: self.waiters.clone() }
    }

    pub fn send_replace(&self, value: T) -> T {
        let before = self.value.send_replace(value);
        self.waiters.changed.notify_waiters();
        before
    }

    /// Tasks are woken only if `modify` says that it changed the value.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = self.value.send_if_modified(modify);
        if modified {
            self.waiters.changed.notify_waiters();
        }
        modified
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.waiters.is_closed.store(true, Ordering::Release);
        self.waiters.changed.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), waiters: self.waiters.clone() }
    }
}

impl<T> Receiver<T> {
    pub fn borrow(&self) -> Ref<'_, T> {
        self.value.borrow()
    }

    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.value.borrow_and_update()
    }

    /// Returns when there is a value that this receiver has not seen, and counts it as seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        // Like tokio's own `changed`. A task that loops over values that are already there must let
        // other tasks run.
        consume_budget().await;
        loop {
            let mut changed = pin!(self.waiters.changed.notified());
            // Registers before the look at the value, so that no later change is missed.
            changed.as_mut().enable();
            let is_closed = self.waiters.is_closed.load(Ordering::Acquire);
            match self.value.has_changed() {
                Ok(true) => {
                    self.value.mark_unchanged();
                    return Ok(());
                }
                Ok(false) if !is_closed => changed.await,
                Ok(false) | Err(_) => return Err(Closed),
            }
        }
    }

    /// Returns when `is_it` holds for the value, which may be at once.
    pub async fn wait_for(&mut self, mut is_it: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        loop {
            if is_it(&self.value.borrow_and_update()) {
                return Ok(());
            }
            if let Err(closed) = self.changed().await {
                // The last value may have come just before the sender was dropped.
                return if is_it(&self.value.borrow()) { Ok(()) } else { Err(closed) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream::FuturesUnordered};

    use super::*;

    #[tokio::test]
    async fn tasks_wake_in_the_order_in_which_they_began_to_wait() {
        let (sender, receiver) = channel(0);
        let wait = |number: usize| {
            let mut receiver = receiver.clone();
            async move {
                receiver.wait_for(|value| *value == 1).await.expect("the sender is there");
                number
            }
        };
        let mut waiting: FuturesUnordered<_> = (0..50).map(wait).collect();
        assert!(futures_util::poll!(waiting.next()).is_pending());
        sender.send_replace(1);
        let order: Vec<usize> = waiting.collect().await;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(order, sorted);
    }

    #[tokio::test]
    async fn a_task_that_never_waits_lets_others_run() {
        let (sender, receiver) = channel(0);
        sender.send_replace(1);
        let busy = async { while receiver.clone().changed().await.is_ok() {} };
        tokio::select! {
            biased;
            () = busy => unreachable!("the sender is there"),
            () = tokio::task::yield_now() => {}
        }
    }

    #[tokio::test]
    async fn the_last_value_counts_although_its_sender_is_gone() {
        let (sender, mut receiver) = channel(0);
        let mut waiting = Box::pin(receiver.wait_for(|value| *value == 1));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        sender.send_replace(1);
        drop(sender);
        assert!(waiting.await.is_ok());
    }

    #[tokio::test]
    async fn a_task_that_waits_learns_that_the_sender_is_gone() {
        let (sender, mut receiver) = channel(0);
        let mut changed = Box::pin(receiver.changed());
        assert!(futures_util::poll!(changed.as_mut()).is_pending());
        drop(sender);
        assert!(changed.await.is_err());
    }
}

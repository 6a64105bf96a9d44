//! The broker's nodes, and the order in which to try them. Nodes that have not failed lately come
//! first, in turn. Then come the others, the oldest failure first. A frozen node accepts
//! connections and never answers, which costs seconds each time.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin::{ConnectionStatus, uri::AMQPUri};
use tokio::time::Instant;

/// After this time a node counts as working again, so that connections spread over all nodes.
const REMEMBERED_FOR: Duration = Duration::from_secs(5 * 60);

pub struct Nodes {
    nodes: Vec<Node>,
    next: AtomicUsize,
}

pub struct Node {
    pub uri: AMQPUri,
    history: Mutex<History>,
}

/// Whether the daemon has shut the connection down itself.
type IsCut = Arc<AtomicBool>;

#[derive(Default)]
struct History {
    /// Connections to the node that were alive at the last check.
    connections: Vec<(ConnectionStatus, IsCut)>,
    failed_at: Option<Instant>,
}

impl Nodes {
    pub fn new(uris: Vec<AMQPUri>) -> Self {
        // Starts at a random node, so that replicas that start together spread over the nodes.
        let first = rand::random_range(0..uris.len().max(1));
        let nodes = uris.into_iter().map(|uri| Node { uri, history: Mutex::default() }).collect();
        Self { nodes, next: AtomicUsize::new(first) }
    }

    /// All nodes, in the order in which to try them now.
    pub fn to_try(&self) -> impl Iterator<Item = &Node> {
        let now = Instant::now();
        let failed_at: Vec<Option<Instant>> =
            self.nodes.iter().map(|node| node.failed_at(now)).collect();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        order(&failed_at, first).into_iter().map(|index| &self.nodes[index])
    }
}

impl Node {
    /// A connection to the node is open. Before the next attempt, [`Nodes::to_try`] checks how it
    /// ended.
    pub fn connected(&self, connection: ConnectionStatus, is_cut: IsCut) {
        let mut history = self.history();
        history.failed_at = None;
        history.connections.push((connection, is_cut));
    }

    /// The node could not be reached, or did not answer.
    pub fn failed(&self) {
        self.history().failed_at = Some(Instant::now());
    }

    fn failed_at(&self, now: Instant) -> Option<Instant> {
        let mut history = self.history();
        let broke = |(connection, is_cut): &(ConnectionStatus, IsCut)| {
            (connection.errored() || connection.closing()) && !is_cut.load(Ordering::Relaxed)
        };
        if history.connections.iter().any(broke) {
            history.failed_at = Some(now);
        }
        history.connections.retain(|(connection, _)| connection.connected());
        history.failed_at = history.failed_at.filter(|at| now.duration_since(*at) < REMEMBERED_FOR);
        history.failed_at
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn order(failed_at: &[Option<Instant>], first: usize) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..failed_at.len()).map(|offset| (first + offset) % failed_at.len()).collect();
    // The sort is stable, and `None` (no failure) comes before `Some`.
    order.sort_by_key(|index| failed_at[*index]);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nodes_take_turns_and_those_that_failed_come_last() {
        let (now, earlier) = (Instant::now() + Duration::from_secs(9), Instant::now());
        let assert_order = |failed_at: &[Option<Instant>], first: usize, expected: &[usize]| {
            assert_eq!(order(failed_at, first), expected, "{failed_at:?} from {first}");
        };
        assert_order(&[], 3, &[]);
        assert_order(&[None, None, None], 4, &[1, 2, 0]);
        assert_order(&[Some(now), None, None], 0, &[1, 2, 0]);
        assert_order(&[Some(now), None, None], 2, &[2, 1, 0]);
        assert_order(&[Some(now), Some(earlier), None], 0, &[2, 1, 0]);
        assert_order(&[Some(earlier), Some(now)], 1, &[0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_forgotten_when_the_node_is_reached_again_or_after_a_while() {
        let uris = ["amqp://one", "amqp://two"].map(|uri| uri.parse().unwrap()).to_vec();
        let nodes = Nodes::new(uris);
        let firsts = |nodes: &Nodes| {
            let hosts = (0..2).map(|_| nodes.to_try().next().unwrap().uri.authority.host.clone());
            hosts.collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(firsts(&nodes), 2, "they take turns");
        nodes.nodes[0].failed();
        assert_eq!(firsts(&nodes), 1);
        nodes.nodes[0].connected(ConnectionStatus::default(), IsCut::default());
        assert_eq!(firsts(&nodes), 2);
        nodes.nodes[0].failed();
        tokio::time::advance(REMEMBERED_FOR).await;
        assert_eq!(firsts(&nodes), 2);
    }
}

//! Keeps one app's subscription alive and hands its deliveries out.
//!
//! Any error, the end of the stream, or an await past its bound ends the subscription: its leases are lost, the work on
//! them ends, and only then a new one begins on a new connection. So no job is worked on twice in this process.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::lease::Lease;
use crate::{
    broker::{
        BrokerLost, bounded,
        connection::{self, Connector},
        queues,
        topology::{self, QueueSpec},
    },
    delay,
};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// A subscription without deliveries for this long asks the queue whether there are any.
const SILENCE: Duration = Duration::from_secs(60);
/// The same for one that never had a delivery: its jobs are most likely with another replica.
const STANDBY_SILENCE: Duration = Duration::from_secs(15 * 60);
/// How long calls in flight and their results may take after the daemon was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What a subscription needs to know.
pub struct Subscription {
    pub app: String,
    pub connector: Arc<Connector>,
    pub topology: Vec<QueueSpec>,
    pub declare: bool,
    /// Deliveries held unacknowledged, at most.
    pub prefetch: u16,
}

/// What happens with deliveries. Implemented by the pipeline.
pub trait Work: Send + Sync + 'static {
    /// The first delivery of a subscription is here: until now another replica may have been the active one.
    fn begin(&self);
    /// Carries one delivery to its acknowledgement.
    fn process(&self, delivery: Delivery, lease: Lease) -> impl Future<Output = Result<(), BrokerLost>> + Send;
    /// Leases no longer allow calls: let their jobs go.
    fn let_go(&self) -> impl Future<Output = ()> + Send;
}

/// Why a subscription ended.
enum Ended {
    Stopped,
    Lost(BrokerLost),
}

impl Subscription {
    /// Consumes until `stop`, then finishes what is in flight and hands the rest back to the queue.
    pub async fn run<W: Work>(&self, work: Arc<W>, stop: CancellationToken) {
        let mut failures = 0;
        while let Some(connected) = stop.run_until_cancelled(self.connect()).await {
            match connected {
                Ok((connection, channel, consumer)) => {
                    failures = 0;
                    info!(app = self.app, "consuming");
                    match self.consume(&connection, &channel, consumer, &work, &stop).await {
                        Ended::Stopped => break,
                        Ended::Lost(error) => warn!(app = self.app, %error, "lost the subscription; its jobs come again"),
                    }
                }
                Err(error) => {
                    failures += 1;
                    warn!(app = self.app, %error, "cannot consume yet; trying again");
                }
            }
            let pause = delay::after_attempt(failures, FIRST_RETRY, MAX_RETRY, rand::random());
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                break;
            }
        }
    }

    async fn connect(&self) -> Result<(Connection, Channel, Consumer), BrokerLost> {
        let connection = self.connector.connect("consumer").await?;
        match self.subscribe(&connection).await {
            Ok((channel, consumer)) => Ok((connection, channel, consumer)),
            Err(error) => {
                connection::close(&connection).await;
                Err(error)
            }
        }
    }

    async fn subscribe(&self, connection: &Connection) -> Result<(Channel, Consumer), BrokerLost> {
        topology::ensure(connection, &self.topology, self.declare).await?;
        let channel = bounded("open a channel", connection.create_channel()).await?;
        bounded("set the prefetch", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        // A tag of its own for each subscription: reused tags lost deliveries of quorum queues until 3.12.5.
        let tag = format!("groupcast-{}", uuid::Uuid::new_v4());
        let queue = queues::jobs(&self.app);
        let consuming = channel.basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = bounded("consume", consuming).await?;
        Ok((channel, consumer))
    }

    async fn consume<W: Work>(
        &self,
        connection: &Connection,
        channel: &Channel,
        mut consumer: Consumer,
        work: &Arc<W>,
        stop: &CancellationToken,
    ) -> Ended {
        let calls_end = CancellationToken::new();
        let lost = CancellationToken::new();
        let tasks = TaskTracker::new();
        let mut standing_by = true;
        let ended = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ended::Stopped,
                () = lost.cancelled() => break Ended::Lost(BrokerLost::new("settle a job", "one could not be settled")),
                delivery = consumer.next() => match delivery {
                    Some(Ok(delivery)) => {
                        if std::mem::take(&mut standing_by) {
                            work.begin();
                        }
                        let lease = Lease::of_delivery(delivery.acker.clone(), calls_end.clone(), lost.clone());
                        spawn(&tasks, work.clone(), delivery, lease, lost.clone());
                    }
                    Some(Err(error)) => break Ended::Lost(BrokerLost::new("consume", error)),
                    None => break Ended::Lost(BrokerLost::new("consume", "the broker ended the subscription")),
                },
                () = sleep(if standing_by { STANDBY_SILENCE } else { SILENCE }) => if tasks.is_empty() && let Err(error) = self.look_for_jobs(connection).await {
                    break Ended::Lost(error);
                },
            }
        };
        // Before the broker hears of it: from then on a standby replica may call.
        calls_end.cancel();
        work.let_go().await;
        if matches!(ended, Ended::Stopped) {
            let tag = consumer.tag();
            let _ = bounded("cancel the subscription", channel.basic_cancel(tag, BasicCancelOptions::default())).await;
        } else {
            lost.cancel();
        }
        tasks.close();
        if timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
            warn!(app = self.app, "gave up waiting for {} jobs; they come again", tasks.len());
            lost.cancel();
            tasks.wait().await;
        }
        connection::close(connection).await;
        ended
    }

    /// A subscription can be dead without a sign of it. Jobs that wait while nothing is delivered are one.
    async fn look_for_jobs(&self, connection: &Connection) -> Result<(), BrokerLost> {
        let channel = bounded("open a channel", connection.create_channel()).await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(queues::jobs(&self.app).into(), options, FieldTable::default());
        match bounded("look at the queue", queue).await {
            Ok(queue) if queue.message_count() > 0 => {
                let reason = format!("{} jobs wait and none is delivered", queue.message_count());
                Err(BrokerLost::new("consume", reason))
            }
            Ok(_) => {
                let _ = bounded("close a channel", channel.close(200, "OK".into())).await;
                Ok(())
            }
            // RabbitMQ 4.3.0 asks for the configure permission even to look.
            Err(error) if error.reason.contains("ACCESS_REFUSED") => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn spawn<W: Work>(tasks: &TaskTracker, work: Arc<W>, delivery: Delivery, lease: Lease, lost: CancellationToken) {
    tasks.spawn(async move {
        // A panic loses the lease too, so that the job comes again instead of being held for ever.
        let guard = lost.drop_guard();
        match work.process(delivery, lease).await {
            Ok(()) => {
                guard.disarm();
            }
            Err(error) => warn!(%error, "a job could not be settled; it comes again"),
        }
    });
}

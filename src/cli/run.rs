//! `groupcast run`: the life of the daemon, in order.

use std::sync::Arc;

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Failure, Verdict};
use crate::{
    accept::consume::consume,
    broker::{
        connection::Connector,
        jobs_queue::JobsQueue,
        session::{self, OwnQueues},
        topology,
    },
    config::Config,
    pipeline::Pipeline,
    send::call::Caller,
    settle::progress::{self, Progress},
    telemetry,
};

/// Run the daemon: take jobs from RabbitMQ, call the API, answer.
///
/// SIGTERM or SIGINT stops it: calls in flight finish, the other jobs go back to the queue. A second one ends it at once.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  groupcast --config /etc/groupcast/groupcast.toml run")]
pub struct Args {}

pub async fn run(_: Args, config: Config) -> Result<Verdict, Failure> {
    telemetry::start(&config.log)?;
    info!(version = env!("CARGO_PKG_VERSION"), apps = ?config.apps.keys().collect::<Vec<_>>(), "groupcast starts");

    let connector = Arc::new(Connector::new(&config.broker)?);
    let stop_consuming = CancellationToken::new();
    let stop_publishing = CancellationToken::new();
    let specs = config.apps.iter().flat_map(|(name, app)| topology::queues_of(name, app)).collect();
    let queues = OwnQueues { specs, declare: config.broker.declare };
    let publisher = session::publisher(connector.clone(), queues, stop_publishing.clone());
    let progress = Progress::start(progress::store_of(&config)?);

    let mut subscriptions = JoinSet::new();
    for (name, app) in &config.apps {
        let max_job_bytes = config.broker.max_job_bytes;
        let pipeline = Pipeline::new(name, app, max_job_bytes, Caller::new(app)?, publisher.clone(), progress.clone());
        let pipeline = Arc::new(pipeline);
        let queue = JobsQueue {
            app: name.clone(),
            connector: connector.clone(),
            topology: topology::queues_of(name, app),
            declare: config.broker.declare,
            prefetch: config.broker.prefetch,
        };
        let stop = stop_consuming.clone();
        subscriptions.spawn(async move {
            consume(&queue.app, &queue, pipeline.clone(), stop).await;
            info!(app = queue.app, calls_max_1s = pipeline.calls_max_1s(), "no longer consuming");
        });
    }

    let mut signals = Signals::listen()?;
    let name = tokio::select! {
        name = signals.next() => name,
        // Nothing but a panic ends one; whoever supervises the process starts all of it anew.
        Some(_) = subscriptions.join_next() => return Err("the work for an app ended by itself; see the log".into()),
        () = publisher.ended() => return Err("publishing ended by itself; see the log".into()),
    };
    info!(signal = name, "stopping: calls in flight finish, other jobs go back to the queue");
    stop_consuming.cancel();
    tokio::select! {
        () = async { while subscriptions.join_next().await.is_some() {} } => info!("stopped"),
        name = signals.next() => {
            warn!(signal = name, "stopping at once; jobs in flight come again");
            return Ok(Verdict::Bad);
        }
    }
    stop_publishing.cancel();
    Ok(Verdict::Good)
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

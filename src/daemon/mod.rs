//! `groupcast run`: the life of the daemon, in order.

mod reload;
mod supervisor;

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::reload::{Reload, Running, RunningApp};
use crate::{
    admin::{Admin, Shown, ShownApp},
    api::call::Caller,
    broker::{
        connection::Connector,
        session::{self, OwnQueues},
        topology,
    },
    config::Config,
    failure::{Conclusion, Failure},
    journey::Pipeline,
    progress::{self, Progress},
    subscribe::{
        consume::{Subscribed, consume},
        jobs_queue::JobsQueue,
        prefetch::Prefetch,
    },
    telemetry::{self, spans, standard_error::StandardError},
};

/// Run the daemon: take jobs from RabbitMQ, call the API, answer.
///
/// SIGTERM or SIGINT stops it: calls in flight finish, the other jobs go back to the queue. A
/// second one ends it at once.
///
/// SIGHUP makes it read its configuration again and apply it: everything about its apps but
/// `retry.park`, and `log.filter`. The log names what changed, and what takes effect at the next
/// start. A configuration that is wrong changes nothing.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  groupcast --config /etc/groupcast/groupcast.toml run\n  kill -HUP \
        $(pidof groupcast)"
)]
pub struct Args {}

pub async fn run(
    _: Args,
    load: impl Fn() -> Result<Config, Failure> + Clone + Send + 'static,
) -> Result<Conclusion, Failure> {
    let config = load()?;
    // Declared first, so it is dropped last and receives the last lines of the log.
    let standard_error = StandardError::open()?;
    let spans = spans::Exporter::start(&config.telemetry)?;
    let log_filter = telemetry::start(&config.log, &spans, &standard_error)?;
    // Comes before everything that follows: without a handler, SIGHUP would end the process.
    let mut signals = Signals::listen()?;
    let apps = config.apps.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    info!(version = env!("CARGO_PKG_VERSION"), apps, "groupcast starts");

    // Metrics are recorded from here on.
    let admin = Admin::listen(&config.admin).await?;
    let connector = Arc::new(Connector::new(&config.broker)?);
    let stop_consuming = CancellationToken::new();
    let stop_publishing = CancellationToken::new();
    let specs = config.apps.iter().flat_map(|(name, app)| topology::queues_of(name, app)).collect();
    let queues = OwnQueues { specs, declare: config.broker.declare };
    let publisher = session::publisher(connector.clone(), queues, stop_publishing.clone());
    // Held until the process ends.
    let _state_file = progress::claim_file(&config).await?;
    let progress = Progress::start(progress::store_of(&config)?);

    let mut subscriptions = JoinSet::new();
    let (mut apps, mut shown) = (Vec::new(), Vec::new());
    for (name, app) in &config.apps {
        let max_job_bytes = config.broker.max_job_bytes;
        let caller = Arc::new(Caller::new(app)?);
        let pipeline = Pipeline::new(
            name,
            app,
            max_job_bytes,
            caller.clone(),
            publisher.clone(),
            progress.clone(),
        );
        let pipeline = Arc::new(pipeline);
        apps.push(RunningApp { name: name.clone(), pipeline: pipeline.clone(), caller });
        let queue = JobsQueue {
            app: name.clone(),
            connector: connector.clone(),
            topology: topology::queues_of(name, app),
            declare: config.broker.declare,
            refusal: OnceLock::new(),
        };
        let prefetch = Prefetch::new(config.broker.prefetch, config.broker.hold_bytes);
        let stop = stop_consuming.clone();
        let told = Subscribed::not_yet();
        shown.push(ShownApp {
            name: name.clone(),
            pipeline: pipeline.clone(),
            subscribed: told.subscribe(),
        });
        subscriptions.spawn(async move {
            consume(&queue.app, &queue, pipeline.clone(), prefetch, told, stop).await;
            info!(app = queue.app, calls_max_1s = pipeline.calls_max_1s(), "no longer consuming");
        });
    }

    let shown = Shown { apps: shown, publisher: publisher.clone(), connector, progress };
    let _showing = admin.show(shown);
    let mut running = Running::new(config, log_filter, apps);
    supervisor::works();
    let mut lives = pin!(supervisor::notify_watchdog());
    let mut reload = Reload::new(load);
    let name = loop {
        tokio::select! {
            never = &mut lives => match never {},
            asked = signals.next() => match asked {
                Asked::Reload => reload.begin(),
                Asked::Stop(name) => break name,
            },
            read = reload.read() => running.reload(read),
            // A subscription ends only by a panic. The supervisor of the process then restarts it.
            Some(_) = subscriptions.join_next() => return Err("the work for an app ended by \
                itself; see the log".into()),
            () = publisher.ended() => return Err("publishing ended by itself; see the log".into()),
        }
    };
    info!(signal = name, "stopping: calls in flight finish, other jobs go back to the queue");
    supervisor::stops();
    stop_consuming.cancel();
    tokio::select! {
        never = &mut lives => match never {},
        () = async { while subscriptions.join_next().await.is_some() {} } => info!("stopped"),
        name = signals.stop() => {
            warn!(signal = name, "stopping at once; jobs in flight come again");
            return Ok(Conclusion::Bad);
        }
    }
    stop_publishing.cancel();
    spans.end().await;
    Ok(Conclusion::Good)
}

enum Asked {
    Reload,
    Stop(&'static str),
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// Waits for the next stop signal. A daemon that is stopping ignores SIGHUP.
    async fn stop(&mut self) -> &'static str {
        loop {
            if let Asked::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}

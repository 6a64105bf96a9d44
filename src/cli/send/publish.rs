//! Publishes a job as a producer does, and waits for its result at a direct reply-to address.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Consumer,
    options::{BasicConsumeOptions, ConfirmSelectOptions},
};
use tokio::time::timeout;

use super::{Conclusion, Failure, JobMessage, print};
use crate::{
    broker::{
        Routing, bounded,
        confirmed::{Nacked, publish_confirmed},
        connection::{self, Connector},
        publisher::Mandatory,
        queues,
    },
    config::Config,
};

const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// After this time the command explains why no result may come.
const QUIET_WAIT: Duration = Duration::from_secs(10);

pub async fn only(app: &str, config: &Config, message: JobMessage) -> Result<Conclusion, Failure> {
    let (connection, channel) = connect(config).await?;
    publish(&channel, app, message).await?;
    eprintln!("published to {}", queues::jobs(app));
    connection::close(&connection).await;
    Ok(Conclusion::Good)
}

pub async fn and_wait(
    app: &str,
    config: &Config,
    mut message: JobMessage,
) -> Result<Conclusion, Failure> {
    let (connection, channel) = connect(config).await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let replies =
        channel.basic_consume(DIRECT_REPLY_TO.into(), "result".into(), options, Default::default());
    let replies = bounded("wait for the result", replies).await?;
    message.properties = message.properties.with_reply_to(DIRECT_REPLY_TO.into());
    publish(&channel, app, message).await?;
    let verdict = print_result(replies).await;
    connection::close(&connection).await;
    verdict
}

async fn connect(config: &Config) -> Result<(Connection, Channel), Failure> {
    let advice = "is the broker running, and is broker.url right?";
    let connection = Connector::new(&config.broker)?
        .connect("send")
        .await
        .map_err(|error| format!("{error}; {advice}"))?;
    let channel = bounded("open a channel", connection.create_channel()).await?;
    bounded("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok((connection, channel))
}

async fn publish(channel: &Channel, app: &str, message: JobMessage) -> Result<(), Failure> {
    let queue = queues::jobs(app);
    let JobMessage { body, properties } = message;
    let publishing =
        publish_confirmed(channel, queue.as_str().into(), &body, properties, Mandatory::Yes);
    match bounded("publish the job", publishing).await? {
        Ok(Routing::Routed) => Ok(()),
        Ok(Routing::NoSuchQueue) => Err(format!(
            "there is no queue {queue}: start `groupcast run`, or declare it with `groupcast \
                topology`"
        )
        .into()),
        Err(Nacked) => Err("the broker could not take the job; try again".into()),
    }
}

async fn print_result(mut replies: Consumer) -> Result<Conclusion, Failure> {
    let mut reply = replies.next();
    let first = match timeout(QUIET_WAIT, &mut reply).await {
        Ok(first) => first,
        Err(_) => {
            eprintln!(
                "no result yet; is `groupcast run` running for this app? Still waiting, until \
                    Ctrl-C"
            );
            reply.await
        }
    };
    match first {
        Some(Ok(reply)) => print(&serde_json::from_slice(&reply.data)?),
        Some(Err(error)) => {
            Err(format!("lost the broker while waiting for the result: {error}").into())
        }
        None => Err("the broker ended the wait for the result".into()),
    }
}

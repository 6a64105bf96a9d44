//! `groupcast topology`: prints the queues that the daemon declares, for operators who declare them
//! by hand.

use super::{Conclusion, Failure, say};
use crate::{broker::topology, config::Config};

/// Print the queues as a definitions file for `rabbitmqctl import_definitions`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  groupcast topology > groupcast.json && rabbitmqctl \
    import_definitions groupcast.json")]
pub struct Args {
    /// Virtual host of the queues [default: the one in broker.url]
    #[arg(long, value_name = "NAME")]
    vhost: Option<String>,
}

pub fn run(args: Args, config: &Config) -> Result<Conclusion, Failure> {
    let vhost = match args.vhost {
        Some(vhost) => vhost,
        None => configured_vhost(config)?,
    };
    say(format_args!("{:#}", topology::definitions(config, &vhost)))
}

fn configured_vhost(config: &Config) -> Result<String, Failure> {
    let url = config.broker.urls.first().ok_or("broker.url is empty")?;
    let uri: lapin::uri::AMQPUri =
        url.expose().parse().map_err(|error| format!("broker.url {url}: {error}"))?;
    Ok(uri.vhost)
}

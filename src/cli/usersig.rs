//! `groupcast usersig`: prints a UserSig and nothing else, so that a script can use it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::ExposeSecret;

use super::{Conclusion, Failure, choose_app, say};
use crate::{api::user_sig::SignedClaims, config::Config};

/// Print a UserSig made with the configured key.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  groupcast usersig --app default --expire 24h")]
pub struct Args {
    /// Which app's key; may be left out if there is one app
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// For whom [default: the app's identifier]
    #[arg(long, value_name = "USERID")]
    identifier: Option<String>,
    /// How long it is valid
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    #[arg(value_parser = humantime::parse_duration)]
    expire: Duration,
}

pub fn run(args: Args, config: &Config) -> Result<Conclusion, Failure> {
    let (_, app) = choose_app(config, args.app.as_deref())?;
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| "this machine's clock is before 1970")?
        .as_secs();
    let identifier = args.identifier.as_deref().unwrap_or(&app.identifier);
    let claims = SignedClaims {
        sdk_app_id: app.sdk_app_id,
        identifier,
        time,
        expire: args.expire.as_secs(),
    };
    say(claims.sign(app.secret_key.expose_secret()))
}

//! The configuration as a whole: what it accepts, what it refuses, and with which message.

mod accepted;
mod refused;
mod reread;
mod secrets;

use super::{Config, ConfigFile};

const CANARY: &str = "c4n4ryS3cret";

const SMALLEST: &str = "[apps.default]\nsdk_app_id = 1400000000\nsecret_key \
    = \"c4n4ryS3cret\"\nregion = \"singapore\"\n";

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let file = ConfigFile { path: "groupcast.toml".into(), text: text.to_owned() };
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into()));
    Config::read(Some(&file), environment).map_err(|error| error.to_string())
}

/// The smallest configuration plus `lines`. Lines before the first section header belong to the
/// app.
fn with(lines: &str) -> String {
    format!("{SMALLEST}{lines}\n")
}

fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
    load(text, variables).err().unwrap_or_else(|| panic!("accepted: {text}\n{variables:?}"))
}

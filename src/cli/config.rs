//! `groupcast config`: prints the effective configuration, secrets masked.

use std::io::{self, Write};

use crate::config::Config;

/// Print the effective configuration with its secrets masked.
///
/// It is TOML: the file, the environment over it, and the defaults.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  GROUPCAST__LOG__FORMAT=json groupcast config --config groupcast.toml"
)]
pub struct Args {}

pub fn run(_: &Args, config: &Config, output: &mut impl Write) -> io::Result<()> {
    output.write_all(config.to_masked_toml().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;

    #[test]
    fn the_effective_configuration_shows_defaults_and_no_secret() {
        let text = "[apps.default]\nsdk_app_id = 1\nsecret_key = \"hidden\"\nregion = \"seoul\"\n"
            .to_owned();
        let file = ConfigFile { path: "groupcast.toml".into(), text };
        let config = Config::read(Some(&file), []).unwrap();
        let mut output = Vec::new();
        run(&Args {}, &config, &mut output).unwrap();
        let printed = String::from_utf8(output).unwrap();
        for line in [
            "hold_bytes = \"256MiB\"",
            "secret_key = \"***\"",
            "request_timeout = \"5s\"",
            "[apps.default.retry]",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
        }
        assert!(!printed.contains("hidden"));
    }
}

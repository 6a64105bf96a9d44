//! A configuration is accepted, or refused with a message. The printed form of an accepted
//! configuration is accepted too.
#![no_main]

use groupcast::config::{Config, ConfigFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let file = |text: &str| ConfigFile { path: "groupcast.toml".into(), text: text.to_owned() };
    match Config::read(Some(&file(text)), []) {
        Ok(config) => {
            let shown = config.to_masked_toml();
            let again = Config::read(Some(&file(&shown.replace("***", "secret"))), []);
            assert!(
                again.is_ok(),
                "{shown}: {}",
                again.err().map(|error| error.to_string()).unwrap_or_default()
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

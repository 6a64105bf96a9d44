//! UserSig v2: the credential of a REST call, an HMAC-SHA256 over identity and time.
//!
//! Source: the vendor's `tls-sig-api-v2` packages. The key is used as raw text, not hex-decoded.
//! The validity is a duration in seconds, not a point in time. The base64 alphabet is the vendor's
//! own: `*`, `-`, `_` for `+`, `/`, `=`.

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::{Compression, write::ZlibEncoder};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The claims of a UserSig, which its signature covers.
pub struct SignedClaims<'a> {
    pub sdk_app_id: u64,
    pub identifier: &'a str,
    /// The time of signing, in Unix seconds.
    pub time: u64,
    /// Validity in seconds, counted from `time`.
    pub expire: u64,
}

impl SignedClaims<'_> {
    /// The HMAC of the claims in base64. It becomes the member `TLS.sig`.
    pub fn signature(&self, key: &str) -> String {
        let Self { sdk_app_id, identifier, time, expire } = self;
        let signed = format!(
            "TLS.identifier:{identifier}\nTLS.sdkappid:{sdk_app_id}\n\
             TLS.time:{time}\nTLS.expire:{expire}\n"
        );
        let mut mac =
            Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
        mac.update(signed.as_bytes());
        STANDARD.encode(mac.finalize().into_bytes())
    }

    /// The UserSig: the claims and their signature as JSON, deflated, in the vendor's base64.
    pub fn sign(&self, key: &str) -> String {
        let json = serde_json::json!({
            "TLS.ver": "2.0",
            "TLS.identifier": self.identifier,
            "TLS.sdkappid": self.sdk_app_id,
            "TLS.time": self.time,
            "TLS.expire": self.expire,
            "TLS.sig": self.signature(key),
        });
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(json.to_string().as_bytes()).expect("writing to memory");
        let deflated = zlib.finish().expect("writing to memory");
        STANDARD.encode(deflated).replace('+', "*").replace('/', "-").replace('=', "_")
    }
}

/// How long a UserSig is valid. The vendor advises at least 24 hours.
const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// The daemon renews a UserSig when its remaining validity is less than this.
const RENEW_BEFORE: Duration = Duration::from_secs(17 * 3600);

/// Makes UserSigs for one app, and reuses the newest one until it is due for renewal.
pub struct UserSigner {
    sdk_app_id: u64,
    identifier: String,
    present: Mutex<CurrentKey>,
}

struct CurrentKey {
    key: SecretString,
    newest: Option<Signed>,
}

struct Signed {
    user_sig: Arc<str>,
    renew_at: SystemTime,
}

impl UserSigner {
    pub fn new(sdk_app_id: u64, identifier: String, key: SecretString) -> Self {
        Self { sdk_app_id, identifier, present: Mutex::new(CurrentKey { key, newest: None }) }
    }

    pub fn signs_for(&self, sdk_app_id: u64, identifier: &str, key: &SecretString) -> bool {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        (self.sdk_app_id, self.identifier.as_str(), present.key.expose_secret())
            == (sdk_app_id, identifier, key.expose_secret())
    }

    /// A UserSig that stays valid for at least `RENEW_BEFORE`.
    pub fn user_sig(&self, now: SystemTime) -> Arc<str> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        match &present.newest {
            // If the clock was set back by more than `RENEW_BEFORE`, the newest UserSig lies in the
            // future and must not be used.
            Some(signed) if now < signed.renew_at && signed.renew_at < now + VALID_FOR => {
                signed.user_sig.clone()
            }
            _ => {
                let time = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let claims = SignedClaims {
                    sdk_app_id: self.sdk_app_id,
                    identifier: &self.identifier,
                    time,
                    expire: VALID_FOR.as_secs(),
                };
                let user_sig: Arc<str> = claims.sign(present.key.expose_secret()).into();
                present.newest = Some(Signed {
                    user_sig: user_sig.clone(),
                    renew_at: now + VALID_FOR - RENEW_BEFORE,
                });
                user_sig
            }
        }
    }

    /// Call this when the API has refused the newest UserSig. The next call makes a new one, with
    /// `key` if given, otherwise with the present key.
    pub fn renew(&self, key: Option<SecretString>) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.newest = None;
        if let Some(key) = key {
            present.key = key;
        }
    }
}

#[cfg(test)]
#[path = "user_sig_tests.rs"]
mod tests;

//! UserSig v2: the credential of a REST call, an HMAC-SHA256 over identity and time.
//!
//! Source: the vendor's `tls-sig-api-v2` packages. The key is used as raw text, not hex-decoded; the validity is a span
//! in seconds, not a moment; the base64 alphabet is the vendor's own (`*`, `-`, `_` for `+`, `/`, `=`).

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::{Compression, write::ZlibEncoder};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What a UserSig states and is signed over.
pub struct Claims<'a> {
    pub sdk_app_id: u64,
    pub identifier: &'a str,
    /// Unix seconds of signing.
    pub time: u64,
    /// Validity in seconds, counted from `time`.
    pub expire: u64,
}

impl Claims<'_> {
    /// The HMAC of the claims, base64: the member `TLS.sig`.
    pub fn signature(&self, key: &str) -> String {
        let Self { sdk_app_id, identifier, time, expire } = self;
        let signed = format!("TLS.identifier:{identifier}\nTLS.sdkappid:{sdk_app_id}\nTLS.time:{time}\nTLS.expire:{expire}\n");
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
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

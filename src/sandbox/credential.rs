//! The credential of a call, a UserSig. It is decoded and compared with the address of the call,
//! the app's key and the clock.
//!
//! A UserSig with a `TLS.userbuf` is refused, because no REST call needs one.

use std::io::Read;

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::read::ZlibDecoder;
use serde::Deserialize;

use super::{
    address::CallerAddress,
    command::SandboxCommand,
    refusal::{
        ApiRefusal, BAD_SDK_APP_ID, NOT_ADMIN, USER_SIG_EXPIRED, USER_SIG_MISMATCH,
        USER_SIG_OF_OTHER_ACCOUNT, USER_SIG_OF_OTHER_APP, USER_SIG_UNREADABLE,
    },
    settings::SandboxSettings,
};
use crate::api::user_sig::SignedClaims;

/// A real UserSig decompresses to about 200 bytes. The limit stops a decompression bomb.
const MAX_OPENED_BYTES: u64 = 4096;

/// An address whose UserSig could be read. It is not verified yet.
#[derive(Debug)]
pub struct Credential {
    address: CallerAddress,
    stated: Stated,
}

#[derive(Debug, Deserialize)]
struct Stated {
    #[serde(rename = "TLS.ver")]
    version: String,
    #[serde(rename = "TLS.identifier")]
    identifier: String,
    #[serde(rename = "TLS.sdkappid")]
    sdk_app_id: u64,
    #[serde(rename = "TLS.time")]
    time: u64,
    #[serde(rename = "TLS.expire")]
    expire: u64,
    #[serde(rename = "TLS.sig")]
    signature: String,
}

impl Credential {
    pub fn read(address: CallerAddress) -> Result<Self, ApiRefusal> {
        let stated = open(&address.user_sig)
            .ok_or(ApiRefusal::new(USER_SIG_UNREADABLE, "usersig cannot be decoded"))?;
        if stated.version != "2.0" {
            return Err(ApiRefusal::new(USER_SIG_UNREADABLE, "usersig is not of version 2.0"));
        }
        Ok(Self { address, stated })
    }

    pub fn command(&self) -> SandboxCommand {
        self.address.command
    }

    pub fn identifier(&self) -> &str {
        &self.address.identifier
    }

    /// Checks that the app accepts the caller at `now` (Unix seconds).
    pub fn verify(&self, settings: &SandboxSettings, now: u64) -> Result<(), ApiRefusal> {
        let Self { address, stated } = self;
        if address.sdk_app_id != settings.sdk_app_id {
            return Err(ApiRefusal::new(BAD_SDK_APP_ID, "sdkappid is not the one of this app"));
        }
        if stated.identifier != address.identifier {
            return Err(ApiRefusal::new(
                USER_SIG_OF_OTHER_ACCOUNT,
                "identifier is not the one in usersig",
            ));
        }
        if stated.sdk_app_id != address.sdk_app_id {
            return Err(ApiRefusal::new(
                USER_SIG_OF_OTHER_APP,
                "sdkappid is not the one in usersig",
            ));
        }
        if stated.signature != stated.claims().signature(settings.key()) {
            return Err(ApiRefusal::new(USER_SIG_MISMATCH, "usersig was made with another key"));
        }
        if now > stated.time.saturating_add(stated.expire) {
            return Err(ApiRefusal::new(USER_SIG_EXPIRED, "usersig expired"));
        }
        if !settings.admins.contains(&address.identifier) {
            return Err(ApiRefusal::new(NOT_ADMIN, "identifier is not an admin of this app"));
        }
        Ok(())
    }
}

impl Stated {
    fn claims(&self) -> SignedClaims<'_> {
        SignedClaims {
            sdk_app_id: self.sdk_app_id,
            identifier: &self.identifier,
            time: self.time,
            expire: self.expire,
        }
    }
}

fn open(user_sig: &str) -> Option<Stated> {
    let base64: Vec<u8> = user_sig.bytes().map(to_standard_alphabet).collect::<Option<_>>()?;
    let deflated = STANDARD.decode(base64).ok()?;
    let mut json = Vec::new();
    ZlibDecoder::new(&*deflated).take(MAX_OPENED_BYTES).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Rejects characters that the vendor's alphabet replaces.
fn to_standard_alphabet(byte: u8) -> Option<u8> {
    match byte {
        b'*' => Some(b'+'),
        b'-' => Some(b'/'),
        b'_' => Some(b'='),
        b'+' | b'/' | b'=' => None,
        other => Some(other),
    }
}

#[cfg(test)]
#[path = "credential_tests.rs"]
mod tests;

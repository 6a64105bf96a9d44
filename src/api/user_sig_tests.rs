use std::io::Read;

use flate2::read::ZlibDecoder;
use serde_json::Value;

use super::*;

const VECTORS: &str = include_str!("../../tests/fixtures/usersig-vectors.json");
const HOUR: Duration = Duration::from_secs(3600);

/// Decodes a UserSig as the vendor does: from its alphabet to base64, inflated, parsed.
fn read(user_sig: &str) -> Value {
    let base64 = user_sig.replace('*', "+").replace('-', "/").replace('_', "=");
    let mut json = String::new();
    ZlibDecoder::new(STANDARD.decode(base64).unwrap().as_slice())
        .read_to_string(&mut json)
        .unwrap();
    serde_json::from_str(&json).unwrap()
}

#[test]
fn user_sigs_say_what_those_of_the_vendors_packages_say() {
    let vectors: Vec<Value> = serde_json::from_str(VECTORS).unwrap();
    let plain = vectors.iter().filter(|vector| vector["userbuf"].is_null());
    let mut compared = 0;
    for vector in plain {
        let claims = SignedClaims {
            sdk_app_id: vector["sdkappid"].as_u64().unwrap(),
            identifier: vector["identifier"].as_str().unwrap(),
            time: vector["time"].as_u64().unwrap(),
            expire: vector["expire"].as_u64().unwrap(),
        };
        let key = vector["key"].as_str().unwrap();
        assert_eq!(claims.signature(key), vector["tls_sig"], "{}", vector["name"]);
        let ours = read(&claims.sign(key));
        for theirs in ["py_usersig", "node_usersig"] {
            assert_eq!(ours, read(vector[theirs].as_str().unwrap()), "{} {theirs}", vector["name"]);
        }
        compared += 1;
    }
    assert_eq!(compared, 5);
}

#[test]
fn a_user_sig_is_kept_and_renewed_well_before_it_expires() {
    let signer = UserSigner::new(1, "administrator".into(), "k".into());
    let start = UNIX_EPOCH + 1000 * HOUR;
    let first = signer.user_sig(start);
    assert_eq!(signer.user_sig(start + 24 * HOUR), first);
    let later = start + VALID_FOR - HOUR;
    let second = signer.user_sig(later);
    assert_ne!(second, first);
    assert_eq!(read(&second)["TLS.time"], later.duration_since(UNIX_EPOCH).unwrap().as_secs());
}

#[test]
fn a_user_sig_is_made_anew_when_it_was_refused_or_the_clock_was_set_back() {
    let signer = UserSigner::new(1, "administrator".into(), "k".into());
    let start = UNIX_EPOCH + 1000 * HOUR;
    let first = signer.user_sig(start);
    signer.renew(None);
    let second = signer.user_sig(start + HOUR);
    assert_ne!(first, second);
    assert_ne!(signer.user_sig(start - 24 * HOUR), second);
}

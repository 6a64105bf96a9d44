//! UserSig checks, against the UserSigs of the vendor's own packages and of this crate.

use std::io::Write;

use flate2::{Compression, write::ZlibEncoder};

use super::*;

const NOW: u64 = 1_700_000_000;

#[derive(Deserialize)]
struct Vector {
    name: String,
    sdkappid: u64,
    key: String,
    identifier: String,
    expire: u64,
    time: u64,
    userbuf: Option<String>,
    py_usersig: String,
    node_usersig: String,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("../../tests/fixtures/usersig-vectors.json")).unwrap()
}

fn settings() -> SandboxSettings {
    SandboxSettings {
        sdk_app_id: 88,
        admins: vec!["admin".into()],
        secret_key: "key".into(),
        ..SandboxSettings::default()
    }
}

fn claims() -> SignedClaims<'static> {
    SignedClaims { sdk_app_id: 88, identifier: "admin", time: NOW, expire: 60 }
}

fn code(address: CallerAddress, settings: &SandboxSettings, now: u64) -> i64 {
    let verdict = Credential::read(address).and_then(|credential| credential.verify(settings, now));
    verdict.map_or_else(|refusal| refusal.code, |()| 0)
}

fn code_of(user_sig: String) -> i64 {
    code(
        CallerAddress {
            command: SandboxCommand::SendGroupMsg,
            sdk_app_id: 88,
            identifier: "admin".into(),
            user_sig,
        },
        &settings(),
        NOW,
    )
}

fn packed(json: &str, level: Compression) -> String {
    let mut zlib = ZlibEncoder::new(Vec::new(), level);
    zlib.write_all(json.as_bytes()).unwrap();
    STANDARD.encode(zlib.finish().unwrap()).replace('+', "*").replace('/', "-").replace('=', "_")
}

#[test]
fn a_user_sig_of_the_vendors_packages_is_accepted_until_it_expires() {
    for vector in vectors().iter().filter(|vector| vector.userbuf.is_none()) {
        let settings = SandboxSettings {
            sdk_app_id: vector.sdkappid,
            admins: vec![vector.identifier.clone()],
            secret_key: vector.key.as_str().into(),
            ..SandboxSettings::default()
        };
        for user_sig in [&vector.py_usersig, &vector.node_usersig] {
            let at = |now| {
                let identifier = vector.identifier.clone();
                code(
                    CallerAddress {
                        command: SandboxCommand::SendGroupMsg,
                        sdk_app_id: vector.sdkappid,
                        identifier,
                        user_sig: user_sig.clone(),
                    },
                    &settings,
                    now,
                )
            };
            let last_second = vector.time + vector.expire;
            assert_eq!(
                (at(vector.time), at(last_second), at(last_second + 1)),
                (0, 0, 70001),
                "{}",
                vector.name
            );
        }
    }
}

#[test]
fn a_user_sig_over_a_userbuf_is_refused() {
    for vector in vectors().into_iter().filter(|vector| vector.userbuf.is_some()) {
        let settings = SandboxSettings {
            sdk_app_id: vector.sdkappid,
            secret_key: vector.key.as_str().into(),
            ..SandboxSettings::default()
        };
        let address = CallerAddress {
            command: SandboxCommand::SendGroupMsg,
            sdk_app_id: vector.sdkappid,
            identifier: vector.identifier,
            user_sig: vector.node_usersig,
        };
        assert_eq!(code(address, &settings, vector.time), 70009);
    }
}

#[test]
fn a_user_sig_of_this_crate_is_accepted() {
    assert_eq!(code_of(claims().sign("key")), 0);
}

#[test]
fn a_stored_zlib_stream_with_a_line_end_is_accepted_as_the_vendors_go_package_makes_it() {
    let sig = claims().signature("key");
    let json = format!(
        r#"{{"TLS.ver":"2.0","TLS.identifier":"admin","TLS.sdkappid":88,"TLS.expire":60,"TLS.time":{NOW},"TLS.sig":"{sig}"}}"#
    );
    assert_eq!(code_of(packed(&(json + "\n"), Compression::none())), 0);
}

#[test]
fn each_mismatch_has_its_code() {
    assert_eq!(code_of(claims().sign("another key")), 70009);
    assert_eq!(code_of(SignedClaims { identifier: "Admin", ..claims() }.sign("key")), 70013);
    assert_eq!(code_of(SignedClaims { sdk_app_id: 89, ..claims() }.sign("key")), 70014);
    assert_eq!(code_of(SignedClaims { time: NOW - 61, ..claims() }.sign("key")), 70001);
    let other_app = CallerAddress {
        command: SandboxCommand::SendGroupMsg,
        sdk_app_id: 89,
        identifier: "admin".into(),
        user_sig: claims().sign("key"),
    };
    assert_eq!(code(other_app, &settings(), NOW), 60006);
    let no_admin = SandboxSettings { admins: vec!["root".into()], ..settings() };
    let address = CallerAddress {
        command: SandboxCommand::SendGroupMsg,
        sdk_app_id: 88,
        identifier: "admin".into(),
        user_sig: claims().sign("key"),
    };
    assert_eq!(code(address, &no_admin, NOW), 60010);
}

#[test]
fn garbage_is_refused() {
    let plain_alphabet = claims().sign("key").replace('*', "+").replace('-', "/").replace('_', "=");
    for user_sig in ["x", "****", "eJyrVgrx", &plain_alphabet, &packed("{}", Compression::fast())] {
        assert_eq!(code_of(user_sig.to_owned()), 70003, "{user_sig}");
    }
}

#[test]
fn a_user_sig_that_inflates_without_end_is_refused() {
    assert_eq!(code_of(packed(&" ".repeat(10_000_000), Compression::best())), 70003);
}

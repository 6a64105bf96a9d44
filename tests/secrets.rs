//! No secret reaches a log, with any filter and any failure.

use groupcast::{
    api::user_sig::SignedClaims,
    sandbox::{FaultRule, InjectedFault, PUBLIC_KEY},
    settle::result::Status,
};

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    producer::Producer,
    scene::{configuration, job, sandbox, unique_app},
};

/// Whether the text contains a possible UserSig. A UserSig is compressed, so it begins with `eJ`,
/// and it is long.
fn has_user_sig(text: &str) -> bool {
    let of_its_alphabet =
        |character: char| character.is_ascii_alphanumeric() || "*-_".contains(character);
    text.split(|character| !of_its_alphabet(character))
        .any(|word| word.starts_with("eJ") && word.len() > 60)
}

#[tokio::test]
async fn the_most_talkative_log_has_no_key_no_user_sig_and_no_password() {
    let broker = Broker::start("").await;
    broker.ctl(&["add_user", "worker", "canary-password"]).await;
    broker.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]).await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let url = broker.url().replace("guest:guest", "worker:canary-password");
    let configuration = configuration(
        &url,
        &app,
        &sandbox.endpoint(),
        "retry.give_up_after = \"2s\"\nretry.park = [\"1s\"]\npause.probe_first = \"200ms\"",
    );
    let daemon = Daemon::start(&format!("{configuration}[log]\nfilter = \"trace\"\n")).await;
    let mut producer = Producer::connect(broker.url()).await;

    let faults = [
        InjectedFault::Error { code: 70003, info: String::new() },
        InjectedFault::Reset,
        InjectedFault::Hang,
        InjectedFault::HttpStatus(502),
        InjectedFault::Redirect,
        InjectedFault::NotJson,
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let group = format!("g{number}");
        sandbox
            .add_fault(FaultRule {
                group: Some(group.clone()),
                calls: Some(1),
                ..FaultRule::from(fault)
            })
            .unwrap();
        producer
            .publish(&app, &serde_json::to_vec(&job(&group, 1)).unwrap(), producer.properties())
            .await;
        assert_eq!(producer.result().await.status, Status::Sent);
    }
    sandbox.stop().await;
    producer
        .publish(
            &app,
            &serde_json::to_vec(&job("nobody-listens", 1)).unwrap(),
            producer.properties(),
        )
        .await;
    assert_eq!(producer.result().await.status, Status::Failed);

    let log = daemon.log();
    assert!(
        log.contains("DEBUG") && log.contains("a call failed"),
        "the log tells of calls:\n{log}"
    );
    for secret in [PUBLIC_KEY, "canary-password", "usersig="] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    let claims = SignedClaims {
        sdk_app_id: 1_400_000_000,
        identifier: "administrator",
        time: 1_800_000_000,
        expire: 604_800,
    };
    assert!(has_user_sig(&format!("usersig={}&random=7", claims.sign(PUBLIC_KEY))));
    assert!(!has_user_sig(&log), "a UserSig is in the log");
}

//! A file that hangs on access, as on a hung disk, delays only what needs it. The tests use a pipe
//! without a writer.

use std::{path::Path, process::Command};

use groupcast::{sandbox::PUBLIC_KEY, settle::result::Status};
use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::support::{
    daemon::Daemon,
    eventually,
    scene::{Scene, job, settings},
};

/// Replaces the file with a pipe.
fn hang(path: &Path) {
    let pipe = path.with_extension("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there").success());
    std::fs::rename(pipe, path).expect("in its place");
}

fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("a file");
    std::fs::rename(new, path).expect("in its place");
}

/// A daemon that reads its key from a file.
async fn scene_with_a_key_in_a_file() -> (Scene, std::path::PathBuf) {
    let scene = Scene::with("pause.probe_first = \"100ms\"\npause.probe_max = \"200ms\"").await;
    let file = scene.daemon.file("key");
    write(&file, PUBLIC_KEY);
    let from_file = format!("secret_key_file = \"{}\"", file.display());
    let configuration =
        scene.configuration.replace(&format!("secret_key = \"{PUBLIC_KEY}\""), &from_file);
    scene.daemon.reconfigure(&configuration);
    scene.daemon.signal("HUP");
    scene.daemon.until_logged("configuration reloaded").await;
    (scene, file)
}

#[tokio::test]
async fn while_a_reload_waits_for_a_file_jobs_go_on_and_the_log_names_the_file() {
    let (mut scene, file) = scene_with_a_key_in_a_file().await;
    hang(&file);
    let asked = Instant::now();
    scene.daemon.signal("HUP");
    assert_eq!(scene.daemon.get("/livez").await.0, 200);
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}: not while it waited", asked.elapsed());
    scene.daemon.until_logged("not reloaded").await;
    let log = scene.daemon.log();
    let told = log.lines().find(|line| line.contains("not reloaded")).unwrap();
    assert!(told.contains(&file.display().to_string()) && told.contains("within 5s"), "{told}");

    write(&file, PUBLIC_KEY);
    scene.daemon.signal("HUP");
    eventually("a reload", async || {
        (scene.daemon.times_logged("configuration reloaded") == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_daemon_that_waits_for_a_file_stops_when_it_is_told_to() {
    let (mut scene, file) = scene_with_a_key_in_a_file().await;
    hang(&file);
    scene.daemon.signal("HUP");
    assert_eq!(scene.daemon.get("/livez").await.0, 200);
    let asked = Instant::now();
    assert_eq!(scene.daemon.terminate().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn probes_go_on_while_the_key_cannot_be_read_again_and_the_app_resumes_with_the_new_one() {
    let (mut scene, file) = scene_with_a_key_in_a_file().await;
    hang(&file);
    scene.sandbox.change_settings(settings(json!({ "secret_key": "rotated" })));
    scene.publish(&job("g", 1)).await;
    scene.daemon.until_logged("cannot be read again").await;
    scene.daemon.until_logged("app paused").await;
    assert!(scene.daemon.log().contains("not read within 5s"), "{}", scene.daemon.log());
    write(&file, "rotated");
    assert_eq!(scene.producer.result().await.status, Status::Sent);
}

#[tokio::test]
async fn a_start_says_which_file_is_not_answered_for() {
    let scene = Scene::start().await;
    for key in ["secret_key", "the broker's certificates"] {
        let file = scene.daemon.file(key);
        hang(&file);
        let configuration = match key {
            "secret_key" => {
                let from_file = format!("secret_key_file = \"{}\"", file.display());
                scene.configuration.replace(&format!("secret_key = \"{PUBLIC_KEY}\""), &from_file)
            }
            _ => {
                let keys = format!("[broker]\nca_file = \"{}\"", file.display());
                scene.configuration.replace("[broker]", &keys).replace("amqp://", "amqps://")
            }
        };
        let mut daemon = Daemon::spawn(&configuration);
        assert_eq!(daemon.ended().await.code(), Some(1));
        let log = daemon.log();
        assert!(
            log.contains(&file.display().to_string()) && log.contains("not read within 5s"),
            "{log}"
        );
    }
}

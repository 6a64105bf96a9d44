//! The status page shows the daemon's work in a real browser. Only an operator with the token can
//! change anything.

use std::path::Path;

use groupcast::{sandbox::FaultRule, settle::result::Status};
use reqwest::{
    Method, StatusCode,
    header::{AUTHORIZATION, HOST, ORIGIN},
};
use serde_json::{Value, json};

use crate::support::{
    broker::Broker,
    browser::{Browser, Scheme},
    daemon::Daemon,
    eventually,
    scene::{Scene, job, settings},
};

const TOKEN: &str = "a-token-for-the-tests";

/// A scene whose daemon has a token, so that actions are possible.
async fn steerable(app_lines: &str) -> Scene {
    let mut scene = Scene::with(app_lines).await;
    scene.daemon.terminate().await;
    let configuration =
        scene.configuration.replace("[admin]", &format!("[admin]\ntoken = \"{TOKEN}\""));
    scene.daemon = Daemon::start(&configuration).await;
    scene.configuration = configuration;
    scene
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

fn url(scene: &Scene, path: &str) -> String {
    format!("http://{}{path}", scene.daemon.address())
}

async fn act(scene: &Scene, action: &str) -> Value {
    let path = format!("/apps/{}/{action}", scene.app);
    let answer =
        client().post(url(scene, &path)).bearer_auth(TOKEN).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
}

/// The next event for the page.
async fn told(scene: &Scene) -> Value {
    let mut events = client().get(url(scene, "/events")).send().await.expect("an answer");
    let mut text = String::new();
    while !text.ends_with("\n\n") {
        text.push_str(
            std::str::from_utf8(&events.chunk().await.expect("bytes").expect("an event"))
                .expect("text"),
        );
    }
    serde_json::from_str(text.strip_prefix("data: ").expect("an event").trim_end()).expect("JSON")
}

fn page_of(name: &str) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    std::fs::create_dir_all(&folder).expect("a folder");
    folder.join(name)
}

#[tokio::test]
async fn it_shows_work_and_trouble_as_they_come_and_go() {
    let mut scene = steerable("calls_per_second = 20").await;
    let browser = Browser::open(&url(&scene, "/"), Scheme::Light).await;
    let card = format!("#app-{}", scene.app);
    browser.until_says("#ready", "ready").await;
    browser.until_says(&format!("{card} summary"), "no job yet").await;

    scene.publish_with_id(&job("unknown-group", 3), "refused").await;
    assert_eq!(scene.producer.result().await.status, Status::Failed);
    browser.until_says(&card, "correct the job and redrive it").await;
    browser.until_says(&card, "10010").await;
    browser.until_says(&format!("{card} summary"), "working").await;
    // 200 batches at 20 a second, with an id that would run as a script if it were not escaped.
    let id = "<img src=x onerror=\"document.title='broken'\">";
    scene.publish_with_id(&job("g", 100_000), id).await;
    browser.until_says(&format!("{card} table[aria-label='Jobs being sent']"), id).await;
    assert_eq!(
        browser.evaluate("return document.querySelector('main img')").await,
        Value::Null,
        "it is text, nothing else"
    );
    eventually("progress", async || {
        let bar = browser
            .evaluate(&format!("return document.querySelector('{card} progress')?.value"))
            .await;
        (bar.as_f64()? >= 40.0).then_some(())
    })
    .await;
    let label = browser
        .evaluate(&format!(
            "return document.querySelector('{card} svg').getAttribute('aria-label')"
        ))
        .await;
    assert!(label.as_str().is_some_and(|label| label.contains("limit 20")), "{label}");
    let eta = browser
        .evaluate(&format!(
            "return document.querySelector('{card} tbody tr').lastChild.textContent"
        ))
        .await;
    let seconds: f64 = eta.as_str().unwrap().trim_end_matches(" s").parse().unwrap();
    assert!((1.0..=9.0).contains(&seconds), "{eta}");
    browser.picture(&page_of("light.png")).await;

    browser
        .page
        .find(fantoccini::Locator::Css("#token"))
        .await
        .unwrap()
        .send_keys(TOKEN)
        .await
        .unwrap();
    let press = async |label: &str| {
        let script = format!(
            "[...document.querySelectorAll('{card} button')].find((b) => b.textContent === \
                '{label}').focus()"
        );
        browser.evaluate(&script).await;
        let focused = browser.page.active_element().await.unwrap();
        focused.send_keys("\u{E007}").await.unwrap();
    };
    press("Pause").await;
    browser.until_says(&format!("{card} summary"), "paused").await;
    browser.until_says(&card, "paused by an operator").await;
    browser.until_says(&format!("{card} .actions"), "Resume").await;
    browser.until_says("#ready", "not ready").await;
    assert_eq!(browser.page.title().await.unwrap(), "(!) groupcast");
    let calls = scene.sandbox.stats().calls;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(scene.sandbox.stats().calls, calls, "no call while it is paused");
    press("Resume").await;
    browser.until_says(&format!("{card} summary"), "working").await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Sent, 200), "each batch once");

    press("Send dead letters again").await;
    browser.until_says(&format!("{card} .actions"), "1 sent again, 0 left").await;
    assert_eq!(scene.producer.result().await.status, Status::Failed);

    let cancel = format!(
        "window.confirm = () => true; const form = document.querySelector('{card} .actions form'); \
            form.querySelector('input').value = 'later'; form.requestSubmit()"
    );
    browser.evaluate(&cancel).await;
    let told = "Not known yet: it is cancelled when it comes";
    browser.until_says(&format!("{card} .actions"), told).await;
    scene.publish_with_id(&job("g", 3), "later").await;
    assert_eq!(scene.producer.result().await.status, Status::Cancelled);

    scene.daemon.kill().await;
    browser.until_says("#ready", "no connection").await;
    browser.close().await;
}

#[tokio::test]
async fn it_says_in_the_dark_too_whose_fault_it_is_and_what_to_do() {
    let scene = Scene::start().await;
    let fault = json!({ "fault": { "error": { "code": 60020 } }, "app_wide": true });
    scene.sandbox.add_fault(serde_json::from_value::<FaultRule>(fault).unwrap()).unwrap();
    scene.publish(&job("g", 1)).await;
    let browser = Browser::open(&url(&scene, "/"), Scheme::Dark).await;
    let card = format!("#app-{}", scene.app);
    browser.until_says(&card, "package expired").await;
    browser.until_says(&card, "What to do: ").await;
    let dark = browser.evaluate("return getComputedStyle(document.body).backgroundColor").await;
    assert_eq!(dark, "rgb(15, 19, 24)");
    // Each control and each plot has a label.
    let nameless = browser
        .evaluate(
            "return [...document.querySelectorAll('svg, progress, table')].filter((n) => \
                !n.getAttribute('aria-label')).length + \
                [...document.querySelectorAll('button')].filter((b) => !b.textContent).length",
        )
        .await;
    assert_eq!(nameless, 0);
    let visible = browser.evaluate(
        "return document.querySelector('.actions').hidden && \
            document.querySelector('#token-form').hidden",
    );
    assert_eq!(visible.await, true, "nothing to act with where no token is configured");
    browser.picture(&page_of("dark.png")).await;
    browser.close().await;
}

#[tokio::test]
async fn nobody_acts_without_the_token_or_from_another_site_or_by_get() {
    let scene = steerable("").await;
    let pause = url(&scene, &format!("/apps/{}/pause", scene.app));
    let ask = |method, headers: &[(reqwest::header::HeaderName, &str)]| {
        let request = client().request(method, &pause);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(name, *value));
        async move { request.send().await.expect("an answer").status() }
    };
    let bearer = format!("Bearer {TOKEN}");
    let known = (AUTHORIZATION, bearer.as_str());
    assert_eq!(ask(Method::POST, &[]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(
        ask(Method::POST, &[(AUTHORIZATION, "Bearer guessed")]).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        ask(Method::POST, &[known.clone(), (ORIGIN, "http://evil.example")]).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        ask(Method::POST, &[known.clone(), (HOST, "evil.example")]).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        ask(Method::GET, std::slice::from_ref(&known)).await,
        StatusCode::METHOD_NOT_ALLOWED
    );
    let (status, _) = scene.daemon.get("/readyz").await;
    assert_eq!(status, 200, "none of them paused it");
    assert_eq!(ask(Method::POST, &[known]).await, StatusCode::OK);
    let (status, readiness) = scene.daemon.get("/readyz").await;
    assert!(status == 503 && readiness.contains("paused by an operator"), "{readiness}");
    assert!(!scene.daemon.log().contains(TOKEN));
}

#[tokio::test]
async fn without_a_token_there_are_no_actions_and_a_name_of_somebody_else_sees_nothing() {
    let scene = Scene::start().await;
    let pause = url(&scene, &format!("/apps/{}/pause", scene.app));
    let status = client().post(pause).bearer_auth("").send().await.unwrap().status();
    assert_eq!(status, StatusCode::NOT_FOUND);
    for path in ["/", "/events"] {
        let answer =
            client().get(url(&scene, path)).header(HOST, "evil.example").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        assert!(answer.text().await.unwrap().contains("admin.hosts"));
    }
    // Collectors may use any host name.
    let answer =
        client().get(url(&scene, "/metrics")).header(HOST, "groupcast").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let page = client().get(url(&scene, "/")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
}

#[tokio::test]
async fn it_is_told_of_queues_and_calls_and_of_a_replica_that_stands_by() {
    let mut scene = steerable("").await;
    assert_eq!(scene.send(&job("unknown-group", 1)).await.status, Status::Failed);
    act(&scene, "pause").await;
    for _ in 0..3 {
        scene.publish(&job("g", 1)).await;
    }
    let activity = eventually("the queues to be seen", async || {
        let activity = told(&scene).await["activity"][&scene.app].clone();
        (activity["jobs_waiting"] == 3 && activity["dead_letters"] == 1).then_some(activity)
    })
    .await;
    let calls = activity["calls"].as_array().unwrap();
    assert_eq!(
        (calls.len(), calls.iter().map(|calls| calls.as_u64().unwrap()).sum::<u64>()),
        (300, 1)
    );
    act(&scene, "resume").await;
    for _ in 0..3 {
        assert_eq!(scene.producer.result().await.status, Status::Sent);
    }
    assert_eq!(act(&scene, "redrive").await, json!({ "redriven": { "sent_again": 1, "left": 0 } }));
    assert_eq!(scene.producer.result().await.status, Status::Failed);

    let active = std::mem::replace(&mut scene.daemon, Daemon::start(&scene.configuration).await);
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
    assert_eq!(
        told(&scene).await["activity"][&scene.app]["no_job_yet"],
        true,
        "the first replica has the jobs"
    );
    drop(active);
    scene.publish(&job("g", 1)).await;
    eventually("it to take over", async || {
        (told(&scene).await["activity"][&scene.app]["no_job_yet"] == false).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pause_repeats_no_batch_of_a_job_that_has_no_id() {
    let mut scene =
        steerable("batch_size = 1\ncalls_per_second = 20\nburst = 1\nretry.park = [\"1s\"]").await;
    scene.publish(&job("g", 60)).await;
    for calls in [10, 30] {
        eventually("some calls", async || (scene.sandbox.stats().accepted >= calls).then_some(()))
            .await;
        act(&scene, "pause").await;
        eventually("no job to be held", async || {
            (told(&scene).await["activity"][&scene.app]["jobs_held"] == 0).then_some(())
        })
        .await;
        act(&scene, "resume").await;
    }
    let result = scene.producer.result().await;
    assert_eq!(
        (result.status, result.calls, scene.sandbox.stats().calls),
        (Status::Sent, 60, 60),
        "{result:?}"
    );
}

#[tokio::test]
async fn no_more_pages_are_open_than_the_daemon_has_room_for() {
    let scene = Scene::on(Broker::shared().await, "").await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 1 })));
    let mut open = Vec::new();
    for _ in 0..16 {
        let answer = client().get(url(&scene, "/events")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        open.push(answer);
    }
    let one_more = client().get(url(&scene, "/events")).send().await.unwrap();
    assert_eq!(one_more.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(scene.daemon.get("/readyz").await.0, 200);
    // A page that was refused connects again by itself.
    let browser = Browser::open(&url(&scene, "/"), Scheme::Light).await;
    browser.until_says("#ready", "no connection").await;
    drop(open);
    browser.until_says("#ready", "ready").await;
    browser.close().await;
    eventually("room", async || {
        (client().get(url(&scene, "/events")).send().await.unwrap().status() == StatusCode::OK)
            .then_some(())
    })
    .await;
}

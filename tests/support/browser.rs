//! A real browser: Debian's Chromium without a window, controlled by its driver. Both end when this
//! is dropped.

use std::{path::Path, process::Stdio, time::Duration};

use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::eventually;

pub struct Browser {
    pub page: Client,
    _driver: Child,
    _profile: TempDir,
}

#[derive(Clone, Copy)]
pub enum Scheme {
    Light,
    Dark,
}

impl Browser {
    pub async fn open(url: &str, scheme: Scheme) -> Browser {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("a free port")
            .local_addr()
            .expect("an address")
            .port();
        let profile = tempfile::Builder::new()
            .prefix("groupcast-browser-")
            .tempdir()
            .expect("a scratch folder");
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver is there; tests/run.sh installs it");
        let data = format!("--user-data-dir={}", profile.path().join("data").display());
        let mut arguments = vec![
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1200,1000",
            &data,
        ];
        if let Scheme::Dark = scheme {
            arguments.push("--blink-settings=preferredColorScheme=0");
        }
        let capabilities = json!({ "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" } });
        let capabilities = capabilities.as_object().expect("an object").clone();
        let page = eventually("the browser", async || {
            let mut builder =
                ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            builder
                .capabilities(capabilities.clone())
                .connect(&format!("http://127.0.0.1:{port}"))
                .await
                .ok()
        })
        .await;
        page.goto(url).await.expect("the page loads");
        Browser { page, _driver: driver, _profile: profile }
    }

    pub async fn text(&self, selector: &str) -> String {
        match self.page.find(Locator::Css(selector)).await {
            Ok(element) => element.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Waits until the text of an element contains something.
    pub async fn until_says(&self, selector: &str, text: &str) {
        eventually(&format!("`{text}` at {selector}"), async || {
            self.text(selector).await.contains(text).then_some(())
        })
        .await;
    }

    pub async fn evaluate(&self, script: &str) -> serde_json::Value {
        self.page.execute(script, vec![]).await.expect("the script runs")
    }

    /// Saves a screenshot of the whole page.
    pub async fn picture(&self, file: &Path) {
        let height = self
            .evaluate("return document.documentElement.scrollHeight")
            .await
            .as_u64()
            .expect("a height");
        self.page.set_window_size(1200, (height as u32 + 150).min(4000)).await.expect("a window");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let picture = self.page.screenshot().await.expect("a picture");
        std::fs::write(file, picture).expect("it can be written");
    }

    pub async fn close(self) {
        self.page.close().await.expect("it closes");
    }
}

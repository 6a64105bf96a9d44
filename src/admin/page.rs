//! The status page: one document that loads nothing else. Its policy allows its own script and
//! style by their digests. So nothing else in it can run, whatever a job id contains.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page.html");

pub static PAGE: LazyLock<Page> = LazyLock::new(|| Page { html: HTML, policy: policy(HTML) });

pub struct Page {
    pub html: &'static str,
    pub policy: HeaderValue,
}

fn policy(html: &str) -> HeaderValue {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; base-uri 'none'; \
            form-action 'none'; frame-ancestors 'none'",
        digest(between(html, "<script>", "</script>")),
        digest(between(html, "<style>", "</style>")),
    );
    policy.try_into().expect("a header")
}

fn between<'a>(html: &'a str, start: &str, end: &str) -> &'a str {
    let inner = html.split_once(start).and_then(|(_, rest)| rest.split_once(end));
    inner.expect("the page has one of each").0
}

fn digest(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_nothing_from_elsewhere() {
        for from_elsewhere in ["src=", "href=", "http://", "https://", "@import", "url("] {
            assert!(!HTML.contains(from_elsewhere), "{from_elsewhere}");
        }
        assert_eq!((HTML.matches("<script").count(), HTML.matches("<style").count()), (1, 1));
        assert!(PAGE.policy.to_str().unwrap().contains("script-src 'sha256-"));
    }
}

//! What each path answers.

use std::{convert::Infallible, sync::Arc};

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{self, HeaderValue},
};
use serde::Serialize;
use tokio::sync::watch;

use super::{
    Shown,
    access::{Access, Denied},
    actions::{act, named},
    page::PAGE,
    readiness,
};
use crate::telemetry::metrics::{self, Exposition};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// The version of the Prometheus text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How many pages may be open at once. Each gets all data once a second.
const MAX_WATCHERS: usize = 16;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub struct Pages {
    pub shown: Arc<Shown>,
    pub exposition: Exposition,
    pub access: Access,
    /// The contents of the page, as JSON, updated once a second.
    pub seen: Arc<watch::Sender<Arc<str>>>,
}

impl Pages {
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if path.starts_with("/apps/") {
            return self.action(&request).await;
        }
        let render: &(dyn Fn() -> Response<Body> + Send + Sync) = match path {
            "/livez" => &|| whole(StatusCode::OK, TEXT, "alive\n"),
            "/readyz" => &|| self.readyz(),
            "/metrics" => &|| whole(StatusCode::OK, METRICS, self.scrape()),
            "/" => &|| self.for_people(&request, page),
            "/events" => &|| self.for_people(&request, || self.events()),
            _ => {
                return whole(
                    StatusCode::NOT_FOUND,
                    TEXT,
                    "there are /, /livez, /readyz and /metrics\n",
                );
            }
        };
        match *request.method() {
            Method::GET | Method::HEAD => render(),
            _ => only("GET, HEAD"),
        }
    }

    fn readyz(&self) -> Response<Body> {
        let readiness = readiness::of(&self.shown);
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json(status, &readiness)
    }

    fn scrape(&self) -> String {
        self.shown.apps.iter().for_each(|app| app.pipeline.mirror());
        metrics::set_broker_connected(self.shown.publisher.is_open());
        self.exposition.render()
    }

    fn for_people(
        &self,
        request: &Request<Incoming>,
        render: impl Fn() -> Response<Body>,
    ) -> Response<Body> {
        match self.access.may_see(request.headers()) {
            Ok(()) => render(),
            Err(denied) => refuse(denied),
        }
    }

    /// Server-sent events. The stream ends when the client disconnects.
    fn events(&self) -> Response<Body> {
        if self.seen.receiver_count() >= MAX_WATCHERS {
            return whole(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                "too many pages are open; close one\n",
            );
        }
        let events = stream::unfold(self.seen.subscribe(), |mut seen| async {
            seen.changed().await.ok()?;
            let event = format!("data: {}\n\n", &*seen.borrow_and_update());
            Some((Ok(Frame::data(Bytes::from(event))), seen))
        });
        answer(StatusCode::OK, "text/event-stream", StreamBody::new(events).boxed_unsync())
    }

    async fn action(&self, request: &Request<Incoming>) -> Response<Body> {
        let no_action = || {
            whole(
                StatusCode::NOT_FOUND,
                TEXT,
                "no such app or action, or no admin.token is configured\n",
            )
        };
        let Some((app, action)) =
            named(request.uri().path(), &self.shown).filter(|_| self.access.has_token())
        else {
            return no_action();
        };
        if request.method() != Method::POST {
            return only("POST");
        }
        if let Err(denied) = self.access.may_act(request.headers()) {
            return refuse(denied);
        }
        match act(app, action, &self.shown).await {
            Ok(done) => json(done.http_status(), &done),
            Err(error) => whole(StatusCode::BAD_GATEWAY, TEXT, format!("{error}\n")),
        }
    }
}

fn page() -> Response<Body> {
    let mut response = whole(StatusCode::OK, "text/html; charset=utf-8", PAGE.html);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, PAGE.policy.clone());
    response
}

fn only(methods: &'static str) -> Response<Body> {
    let mut response = whole(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("only {methods}\n"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

fn refuse(denied: Denied) -> Response<Body> {
    let status = match denied {
        Denied::Host | Denied::Origin => StatusCode::FORBIDDEN,
        Denied::Token => StatusCode::UNAUTHORIZED,
    };
    let mut response = whole(status, TEXT, format!("{}\n", denied.advice()));
    if denied == Denied::Token {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    whole(
        status,
        JSON,
        serde_json::to_string_pretty(value).expect("it has no map with keys other than text")
            + "\n",
    )
}

fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    answer(status, content_type, Full::new(body.into()).boxed_unsync())
}

fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

//! Wraps the API to count and time its calls. A request counts as a call if it was answered, got no
//! answer, or could not be sent. A withdrawn request does not count.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    api::{
        call::{Api, OnWrite},
        classify::Answer,
    },
    journey::meter::Meter,
};

pub struct Measured {
    api: Arc<dyn Api>,
    meter: Arc<Meter>,
}

impl Measured {
    pub fn new(api: Arc<dyn Api>, meter: Arc<Meter>) -> Self {
        Self { api, meter }
    }
}

impl Api for Measured {
    fn call(&self, body: Vec<u8>, on_write: OnWrite) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let _in_flight = self.meter.has_a_call_in_flight();
            let started = Instant::now();
            let answer = self.api.call(body, on_write).await;
            self.meter.count_call(&answer, started.elapsed());
            answer
        })
    }

    fn renew_user_sig(&self) {
        self.api.renew_user_sig();
    }
}

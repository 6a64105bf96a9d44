//! The API with its calls counted and timed. A call is a request that came back with an answer or
//! without, or that could not be sent; one that was withdrawn is none.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    api::{
        call::{Api, OnWrite},
        classify::Answer,
    },
    journey::meter::Meter,
};

pub struct Measured<A> {
    api: Arc<A>,
    meter: Arc<Meter>,
}

impl<A> Measured<A> {
    pub fn new(api: Arc<A>, meter: Arc<Meter>) -> Self {
        Self { api, meter }
    }
}

impl<A: Api> Api for Measured<A> {
    async fn call(&self, body: Vec<u8>, on_write: impl OnWrite) -> Answer {
        let _in_flight = self.meter.has_a_call_in_flight();
        let started = Instant::now();
        let answer = self.api.call(body, on_write).await;
        self.meter.count_call(&answer, started.elapsed());
        answer
    }

    fn renew_user_sig(&self) {
        self.api.renew_user_sig();
    }
}

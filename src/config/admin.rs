//! `[admin]`: where liveness, readiness, metrics and the status page are served.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

use super::written::{Given, Setting, Written};

#[derive(Clone, Debug)]
pub struct Admin {
    pub listen: SocketAddr,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AdminSection {
    listen: Option<Given<SocketAddr>>,
}

impl AdminSection {
    pub(super) fn check(self) -> Admin {
        // The pages tell much and ask nobody who he is: only this machine, unless told otherwise.
        Admin { listen: Given::or(self.listen, (Ipv4Addr::LOCALHOST, 9464).into()) }
    }
}

impl Setting for SocketAddr {
    fn read(written: Written) -> Result<SocketAddr, String> {
        match written {
            Written::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
        .ok_or_else(|| "must be an IP address and a port, such as \"127.0.0.1:9464\" or \"[::]:9464\"".to_owned())
    }
}

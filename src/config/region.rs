//! The vendor's data centres and their domains. An app belongs to one of them, and the others
//! refuse its calls. For a data centre that is not in the list, the operator sets `endpoint`.

use super::written::{Setting, Written, word};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    China,
    Singapore,
    Seoul,
    Tokyo,
    Frankfurt,
    SiliconValley,
    Jakarta,
}

const NAMES: [(&str, Region); 7] = [
    ("china", Region::China),
    ("singapore", Region::Singapore),
    ("seoul", Region::Seoul),
    ("tokyo", Region::Tokyo),
    ("frankfurt", Region::Frankfurt),
    ("silicon-valley", Region::SiliconValley),
    ("jakarta", Region::Jakarta),
];

impl Region {
    pub fn name(self) -> &'static str {
        match self {
            Region::China => "china",
            Region::Singapore => "singapore",
            Region::Seoul => "seoul",
            Region::Tokyo => "tokyo",
            Region::Frankfurt => "frankfurt",
            Region::SiliconValley => "silicon-valley",
            Region::Jakarta => "jakarta",
        }
    }

    /// The primary and the backup domain of the REST API. The vendor provides the backup for DNS
    /// hijacking.
    pub fn domains(self) -> (&'static str, &'static str) {
        match self {
            Region::China => ("console.tim.qq.com", "adminapi.my-imcloud.com"),
            Region::Singapore => ("adminapisgp.im.qcloud.com", "adminapisgp.my-imcloud.com"),
            Region::Seoul => ("adminapikr.im.qcloud.com", "adminapikr.my-imcloud.com"),
            Region::Tokyo => ("adminapijpn.im.qcloud.com", "adminapijpn.my-imcloud.com"),
            Region::Frankfurt => ("adminapiger.im.qcloud.com", "adminapiger.my-imcloud.com"),
            Region::SiliconValley => ("adminapiusa.im.qcloud.com", "adminapiusa.my-imcloud.com"),
            Region::Jakarta => ("adminapiidn.im.qcloud.com", "adminapiidn.my-imcloud.com"),
        }
    }
}

impl Setting for Region {
    fn read(written: Written) -> Result<Region, String> {
        word(&written, &NAMES)
            .map_err(|says| format!("{says}; for another data centre write endpoint instead"))
    }
}

//! What an HTTP status means when the answer has no `ErrorCode`. This file has data and no
//! decisions. The vendor answers 200 to everything but network errors. Other statuses come from a
//! server in between.

use std::ops::RangeInclusive;

use super::codes::{Class, Effect};

#[derive(Debug)]
pub struct HttpStatus {
    pub statuses: RangeInclusive<u16>,
    pub class: Class,
    pub meaning: &'static str,
    pub advice: &'static str,
}

/// The entry of a status. Every status has one.
pub fn find(http_status: u16) -> &'static HttpStatus {
    HTTP_STATUSES.iter().find(|entry| entry.statuses.contains(&http_status)).unwrap_or(&ANY_OTHER)
}

const fn status(
    first: u16,
    last: u16,
    class: Class,
    meaning: &'static str,
    advice: &'static str,
) -> HttpStatus {
    HttpStatus { statuses: first..=last, class, meaning, advice }
}

const UNHEARD: Class = Class::Transient(Effect::None);
const PROXY: &str = "look for a proxy on the way, and check region or endpoint";
const REPEATED: &str = "nothing; if it lasts, look for a proxy on the way";

/// The first matching entry applies.
#[rustfmt::skip]
pub static HTTP_STATUSES: &[HttpStatus] = &[
    status(300, 399, Class::Account, "a redirect, which is not followed: the URL carries the \
        UserSig", PROXY),
    status(401, 401, Class::Account, "a proxy or gateway asks for a password", PROXY),
    status(403, 403, Class::Account, "a proxy or gateway forbids the call", PROXY),
    status(404, 404, Class::Account, "there is no such API", PROXY),
    status(407, 407, Class::Account, "a proxy wants a password", PROXY),
    status(408, 408, UNHEARD, "the request came too slowly", REPEATED),
    status(425, 425, UNHEARD, "too early", REPEATED),
    status(429, 429, Class::RateLimited, "too many requests", "lower calls_per_second if other \
        programs call the API by the same way"),
    status(400, 499, Class::JobOrConfiguration, "the request was refused on the way", "look for a \
        proxy that limits or changes requests"),
];

/// For server errors, and for a 200 whose body does not have the API's form.
pub static ANY_OTHER: HttpStatus =
    status(0, u16::MAX, Class::Transient(Effect::Unknown), "no answer of the API's form", REPEATED);

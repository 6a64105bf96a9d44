//! Where an app's calls go: to the data centre of a region, or to an address given as it is.

use url::Url;

use super::error::Problem;
use super::region::Region;
use super::written::{Given, Setting, Written};

pub(super) fn place(region: Option<Given<Region>>, endpoint: Option<Given<Endpoint>>) -> Result<(Option<Region>, Url), Problem> {
    match (region, endpoint) {
        (None, None) => Err(Problem::missing("region", "write region = \"singapore\", or another one, or endpoint = \"<URL>\"")),
        (Some(_), Some(_)) => Err(Problem::wrong("endpoint", "is given together with region; keep one of them")),
        (None, Some(endpoint)) => Ok((None, endpoint.0.0)),
        (Some(Given(region)), None) => {
            let url = Url::parse(&format!("https://{}", region.domains().0));
            url.map(|url| (Some(region), url)).map_err(|_| Problem::wrong("region", "has no valid domain"))
        }
    }
}

/// An address of the API other than the vendor's known ones.
pub(super) struct Endpoint(Url);

impl Setting for Endpoint {
    fn read(written: Written) -> Result<Endpoint, String> {
        let url = match written {
            Written::Text(text) => Url::parse(text.trim()).ok(),
            _ => None,
        };
        // No user or password either: it would be shown with the URL.
        let plain = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.path() == "/"
                && (url.query(), url.fragment(), url.password(), url.username()) == (None, None, None, "")
        };
        url.filter(plain)
            .map(Endpoint)
            .ok_or_else(|| "must be a scheme, a host and a port, such as \"http://127.0.0.1:8089\", and nothing more".to_owned())
    }
}

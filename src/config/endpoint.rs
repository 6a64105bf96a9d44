//! Where an app's calls go: to the data centre of a region, or to an explicit address.

use url::Url;

use super::error::Problem;
use super::region::Region;
use super::written::{Given, Setting, Written};

/// Where an app's calls go.
pub(super) struct CallAddress {
    pub region: Option<Region>,
    pub endpoint: Url,
    pub backup: Option<Url>,
}

pub(super) fn place(
    region: Option<Given<Region>>,
    endpoint: Option<Given<Endpoint>>,
    backup: Option<Given<Endpoint>>,
) -> Result<CallAddress, Problem> {
    let backup = backup.map(|backup| backup.0.0);
    match (region, endpoint) {
        (None, None) => Err(Problem::missing(
            "region",
            "write region = \"singapore\", or another one, or endpoint = \"<URL>\"",
        )),
        (Some(_), Some(_)) => {
            Err(Problem::wrong("endpoint", "is given together with region; keep one of them"))
        }
        (None, Some(endpoint)) => Ok(CallAddress { region: None, endpoint: endpoint.0.0, backup }),
        (Some(Given(region)), None) => {
            let url = |domain| {
                Url::parse(&format!("https://{domain}"))
                    .map_err(|_| Problem::wrong("region", "has no valid domain"))
            };
            let (first, known_backup) = region.domains();
            Ok(CallAddress {
                region: Some(region),
                endpoint: url(first)?,
                backup: Some(backup.map_or_else(|| url(known_backup), Ok)?),
            })
        }
    }
}

/// An address of the API other than the vendor's known ones.
pub(super) struct Endpoint(pub(super) Url);

impl Setting for Endpoint {
    fn read(written: Written) -> Result<Endpoint, String> {
        let url = match written {
            Written::Text(text) => Url::parse(text.trim()).ok(),
            _ => None,
        };
        // A user or password is refused too, because it would be shown with the URL.
        let plain = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.path() == "/"
                && (url.query(), url.fragment(), url.password(), url.username())
                    == (None, None, None, "")
        };
        url.filter(plain).map(Endpoint).ok_or_else(|| {
            "must be a scheme, a host and a port, such as \"http://127.0.0.1:8089\", and nothing \
                more"
                .to_owned()
        })
    }
}

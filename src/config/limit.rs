//! Numbers, sizes and durations. None may be zero: a limit of zero would stop all work without a
//! message.

use std::time::Duration;

use super::written::{Setting, Written};

/// The longest duration. It keeps `Instant + Duration` far from overflow, and catches a wrong unit.
const LONGEST: Duration = Duration::from_hours(24 * 3_653);

/// A number of bytes: `"256MiB"`, or a plain number.
pub(super) struct ByteCount(pub u64);

fn whole(written: &Written) -> Option<u64> {
    let number: i64 = match written {
        Written::Integer(number) => *number,
        Written::Text(text) => text.trim().parse().ok()?,
        Written::Flag(_) | Written::List(_) | Written::Other => return None,
    };
    u64::try_from(number).ok().filter(|number| *number > 0)
}

macro_rules! whole_number {
    ($($number:ty: $range:literal),+) => {$(
        impl Setting for $number {
            fn read(written: Written) -> Result<$number, String> {
                whole(&written)
                    .and_then(|number| number.try_into().ok())
                    .ok_or_else(|| concat!("must be a whole number, ", $range).to_owned())
            }
        }
    )+};
}

whole_number!(u16: "1 to 65535", u32: "1 to 4294967295", u64: "1 or more", usize: "1 or more");

impl Setting for ByteCount {
    fn read(written: Written) -> Result<ByteCount, String> {
        let bytes = match &written {
            Written::Text(text) => {
                text.trim().parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
            }
            Written::Integer(_) => whole(&written),
            Written::Flag(_) | Written::List(_) | Written::Other => None,
        };
        bytes
            // The range of an integer in TOML.
            .filter(|bytes| (1..=i64::MAX as u64).contains(bytes))
            .map(ByteCount)
            .ok_or_else(|| "must be a size above zero, such as \"16MiB\" or \"512KiB\"".to_owned())
    }
}

/// A duration that may be zero.
pub(super) fn duration_or_zero(written: &Written) -> Option<Duration> {
    match written {
        Written::Text(text) => humantime::parse_duration(text.trim()).ok(),
        _ => None,
    }
}

impl Setting for Duration {
    fn read(written: Written) -> Result<Duration, String> {
        let duration = duration_or_zero(&written);
        duration.filter(|duration| !duration.is_zero() && *duration <= LONGEST).ok_or_else(|| {
            "must be a duration above zero, such as \"250ms\", \"5s\", \"2m\" or \"24h\"".to_owned()
        })
    }
}

/// The first and the longest delay of a growing series. If only one is given, the default of the
/// other adapts to it. `None` if the first is longer.
pub(super) fn first_and_longest(
    first: Option<Duration>,
    longest: Option<Duration>,
    default: (Duration, Duration),
) -> Option<(Duration, Duration)> {
    match (first, longest) {
        (None, None) => Some(default),
        (Some(first), None) => Some((first, default.1.max(first))),
        (None, Some(longest)) => Some((default.0.min(longest), longest)),
        (Some(first), Some(longest)) => (first <= longest).then_some((first, longest)),
    }
}

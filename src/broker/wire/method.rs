//! Makes methods that deliver a message readable. The producer chooses the names in them. Pure.

/// Class and method, as the first two 16-bit numbers of a payload.
const TUNE: [u8; 4] = [0, 10, 0, 30];
const RETURN: [u8; 4] = [0, 60, 0, 50];
const DELIVER: [u8; 4] = [0, 60, 0, 60];
const GET_OK: [u8; 4] = [0, 60, 0, 71];

enum MethodPart {
    Fixed(usize),
    ShortString,
}
use MethodPart::{Fixed, ShortString};

/// Replaces bytes that are not UTF-8 in the exchange and the routing key of a delivery with
/// question marks. The daemon does not use these names.
pub fn make_readable(payload: &mut [u8]) {
    let Some((method, mut rest)) = payload.split_first_chunk_mut::<4>() else { return };
    let parts: &[MethodPart] = match *method {
        DELIVER => &[ShortString, Fixed(9), ShortString, ShortString],
        GET_OK => &[Fixed(9), ShortString, ShortString],
        RETURN => &[Fixed(2), ShortString, ShortString, ShortString],
        _ => return,
    };
    for part in parts {
        let length = match part {
            Fixed(length) => *length,
            ShortString => match rest.split_first_mut() {
                Some((length, text)) => {
                    rest = text;
                    usize::from(*length)
                }
                None => return,
            },
        };
        let Some((bytes, behind)) = rest.split_at_mut_checked(length) else { return };
        if let ShortString = part
            && std::str::from_utf8(bytes).is_err()
        {
            bytes.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        rest = behind;
    }
}

/// The largest frame that the broker allows, if this method says so.
pub fn tuned_frame_max(payload: &[u8]) -> Option<usize> {
    let (method, rest) = payload.split_first_chunk::<4>()?;
    let (_channel_max, rest) = rest.split_first_chunk::<2>()?;
    let frame_max = u32::from_be_bytes(*rest.first_chunk()?);
    (*method == TUNE && frame_max > 0).then_some(frame_max as usize)
}

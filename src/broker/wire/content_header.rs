//! Makes the properties of one message readable for the AMQP library. Pure.
//!
//! The library closes the connection over a property that is not UTF-8, over a header frame that is larger than the
//! connection allows, and it overflows its stack over headers that are nested thousands of levels deep. RabbitMQ delivers
//! all of these. Here such a property is taken out of the message, and [`UNREADABLE_HEADER`] says what is missing and why.

use std::fmt::Write;

use crate::job::UNREADABLE_HEADER;

/// Headers may be nested so deep. Clients write one or two levels.
const MAX_DEPTH: usize = 16;
/// How much of an unreadable value is shown, in bytes.
const MAX_SHOWN: usize = 32;
/// Class, weight and body size come before the property flags.
const FIXED_BYTES: usize = 12;

enum Kind {
    ShortString,
    Table,
    Octet,
    Timestamp,
}

/// The properties of class `basic` in the order of their flags, from the highest bit.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content_type", Kind::ShortString),
    ("content_encoding", Kind::ShortString),
    ("headers", Kind::Table),
    ("delivery_mode", Kind::Octet),
    ("priority", Kind::Octet),
    ("correlation_id", Kind::ShortString),
    ("reply_to", Kind::ShortString),
    ("expiration", Kind::ShortString),
    ("message_id", Kind::ShortString),
    ("timestamp", Kind::Timestamp),
    ("type", Kind::ShortString),
    ("user_id", Kind::ShortString),
    ("app_id", Kind::ShortString),
    ("cluster_id", Kind::ShortString),
];
const HEADERS: usize = 2;

/// The payload of a content header frame with only what the library can read, in at most `max_bytes`; `None` if the payload
/// can stay as it is.
pub fn readable(payload: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
    let mut message = Message::read(payload)?;
    if payload.len() > max_bytes {
        message.shrink(payload.len(), max_bytes);
    } else if message.problems.is_empty() {
        return None;
    }
    Some(message.write())
}

/// A header's name, and its bytes with name, type and value.
type Header<'a> = (&'a [u8], &'a [u8]);

struct Message<'a> {
    fixed: &'a [u8],
    /// The encoded properties but for the headers; `None` for one that is absent or unreadable.
    properties: [Option<&'a [u8]>; PROPERTIES.len()],
    headers: Vec<Header<'a>>,
    problems: Vec<String>,
}

impl<'a> Message<'a> {
    /// `None` if the payload is too short to be a content header: the library may judge it.
    fn read(payload: &'a [u8]) -> Option<Self> {
        let mut input = Input(payload);
        let fixed = input.take(FIXED_BYTES)?;
        let flags = u16::from_be_bytes(input.take(2)?.try_into().ok()?);
        let mut message = Self { fixed, properties: [None; PROPERTIES.len()], headers: Vec::new(), problems: Vec::new() };
        for (index, (name, kind)) in PROPERTIES.iter().enumerate() {
            if flags & (0x8000 >> index) == 0 {
                continue;
            }
            if message.read_property(&mut input, index, name, kind).is_none() {
                message.problems.push(format!("{name}: ends early; no property behind it can be read"));
                break;
            }
        }
        Some(message)
    }

    fn read_property(&mut self, input: &mut Input<'a>, index: usize, name: &str, kind: &Kind) -> Option<()> {
        let start = input.0;
        match kind {
            Kind::ShortString => {
                let text = input.short_string()?;
                if std::str::from_utf8(text).is_err() {
                    self.problems.push(format!("{name}: is not UTF-8 (bytes {})", hex(text)));
                    return Some(());
                }
            }
            Kind::Table => {
                let table = input.long_string()?;
                self.read_headers(table);
                return Some(());
            }
            Kind::Octet => drop(input.take(1)?),
            Kind::Timestamp => drop(input.take(8)?),
        }
        self.properties[index] = Some(&start[..start.len() - input.0.len()]);
        Some(())
    }

    fn read_headers(&mut self, table: &'a [u8]) {
        let mut input = Input(table);
        while !input.0.is_empty() {
            let start = input.0;
            let Some(name) = input.short_string() else {
                self.problems.push("headers: a name ends early".to_owned());
                return;
            };
            let shown = String::from_utf8_lossy(name);
            let is_utf8 = std::str::from_utf8(name).is_ok();
            match input.value() {
                Err(problem) => {
                    self.problems.push(format!("header `{shown}`: {problem}; no header behind it can be read"));
                    return;
                }
                Ok(_) if !is_utf8 => self.problems.push(format!("header `{shown}`: its name is not UTF-8 (bytes {})", hex(name))),
                Ok(value) => match value.check(1) {
                    Ok(()) => self.headers.push((name, &start[..start.len() - input.0.len()])),
                    Err(problem) => self.problems.push(format!("header `{shown}`: {problem}")),
                },
            }
        }
    }

    /// Leaves out headers until the rest fits. `x-death` is the broker's own account and is never missed.
    fn shrink(&mut self, bytes: usize, max_bytes: usize) {
        self.headers.retain(|(name, _)| *name != b"x-death");
        if self.len() > max_bytes {
            self.headers.clear();
            self.problems.push(format!("headers: are {bytes} bytes long with the other properties; at most {max_bytes} fit"));
        }
    }

    /// At least as long as what [`write`](Self::write) makes.
    fn len(&self) -> usize {
        let properties: usize = self.properties.iter().flatten().map(|bytes| bytes.len()).sum();
        let headers: usize = self.headers.iter().map(|(_, bytes)| bytes.len()).sum();
        let problems: usize = self.problems.iter().map(String::len).sum();
        FIXED_BYTES + 2 + 4 + properties + headers + problems + 64
    }

    fn write(self) -> Vec<u8> {
        let mut table: Vec<u8> = self.headers.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        if !self.problems.is_empty() {
            let problems = self.problems.join("; ");
            table.push(UNREADABLE_HEADER.len() as u8);
            table.extend_from_slice(UNREADABLE_HEADER.as_bytes());
            table.push(b'S');
            table.extend_from_slice(&(problems.len() as u32).to_be_bytes());
            table.extend_from_slice(problems.as_bytes());
        }
        let flag = |index: usize| 0x8000_u16 >> index;
        let present = (0..PROPERTIES.len()).filter(|index| self.properties[*index].is_some()).map(flag).sum::<u16>();
        let mut written = self.fixed.to_vec();
        written.extend_from_slice(&(present | flag(HEADERS)).to_be_bytes());
        for (index, property) in self.properties.iter().enumerate() {
            if index == HEADERS {
                written.extend_from_slice(&(table.len() as u32).to_be_bytes());
                written.extend_from_slice(&table);
            }
            written.extend_from_slice(property.unwrap_or_default());
        }
        written
    }
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn short_string(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn long_string(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        self.take(length as usize)
    }

    /// The next value, without a look at what is nested in it.
    fn value(&mut self) -> Result<Value<'a>, String> {
        let early = || "its value ends early".to_owned();
        let kind = self.take(1).ok_or_else(early)?[0];
        let fixed = match kind {
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'V' => 0,
            b'S' | b'x' => return self.long_string().map(|_| Value::Plain).ok_or_else(early),
            b'A' => return self.long_string().map(Value::Array).ok_or_else(early),
            b'F' => return self.long_string().map(Value::Table).ok_or_else(early),
            other => return Err(format!("its value has the unknown type 0x{other:02x}")),
        };
        self.take(fixed).map(|_| Value::Plain).ok_or_else(early)
    }
}

enum Value<'a> {
    Plain,
    Array(&'a [u8]),
    Table(&'a [u8]),
}

impl Value<'_> {
    /// Whether all that is nested in it can be read.
    fn check(self, depth: usize) -> Result<(), String> {
        let (mut input, has_names) = match self {
            Self::Plain => return Ok(()),
            Self::Array(_) | Self::Table(_) if depth > MAX_DEPTH => {
                return Err(format!("is nested more than {MAX_DEPTH} levels deep"));
            }
            Self::Array(values) => (Input(values), false),
            Self::Table(entries) => (Input(entries), true),
        };
        while !input.0.is_empty() {
            if has_names {
                let name = input.short_string().ok_or("a name in it ends early")?;
                std::str::from_utf8(name).map_err(|_| format!("a name in it is not UTF-8 (bytes {})", hex(name)))?;
            }
            input.value()?.check(depth + 1)?;
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in bytes.iter().take(MAX_SHOWN) {
        let _ = write!(hex, "{byte:02x}");
    }
    if bytes.len() > MAX_SHOWN {
        hex.push('…');
    }
    hex
}

#[cfg(test)]
#[path = "content_header_tests.rs"]
mod tests;

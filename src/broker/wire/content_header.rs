//! Makes the properties of one message readable for the AMQP library. Pure.
//!
//! The library closes the connection over a property that is not UTF-8 and over a header frame that
//! is too large. Headers that are nested thousands of levels deep overflow its stack. RabbitMQ
//! delivers all of these. This module takes such a property out of the message.
//! [`UNREADABLE_HEADER`] then says what is missing and why.

use std::fmt::Write;

use crate::job::{ALTERED_HEADER, UNREADABLE_HEADER};

/// How deep headers may be nested. Clients write one or two levels.
const MAX_DEPTH: usize = 16;
/// How many bytes of an unreadable value are shown.
const MAX_SHOWN: usize = 32;
/// The largest size of the text that says what is missing, in bytes.
const MAX_ACCOUNT: usize = 2000;
/// At most so many headers are named. Other properties are always named.
const MAX_HEADERS_NAMED: usize = 3;
/// Headers that the broker adds. The job does not depend on them.
const BROKERS_HEADERS: [&[u8]; 4] =
    [b"x-death", b"x-first-death-", b"x-last-death-", b"x-delivery-count"];
/// Class, weight and body size come before the property flags.
const FIXED_BYTES: usize = 12;

enum FieldType {
    ShortString,
    Table,
    Octet,
    Timestamp,
}

/// The properties of class `basic` in the order of their flags, from the highest bit.
const PROPERTIES: [(&str, FieldType); 14] = [
    ("content_type", FieldType::ShortString),
    ("content_encoding", FieldType::ShortString),
    ("headers", FieldType::Table),
    ("delivery_mode", FieldType::Octet),
    ("priority", FieldType::Octet),
    ("correlation_id", FieldType::ShortString),
    ("reply_to", FieldType::ShortString),
    ("expiration", FieldType::ShortString),
    ("message_id", FieldType::ShortString),
    ("timestamp", FieldType::Timestamp),
    ("type", FieldType::ShortString),
    ("user_id", FieldType::ShortString),
    ("app_id", FieldType::ShortString),
    ("cluster_id", FieldType::ShortString),
];
const HEADERS: usize = 2;

/// Returns the payload of a content header frame with only what the library can read, in at most
/// `max_bytes`. `None` if the payload can stay as it is.
pub fn readable(payload: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
    let mut message = MessageHeader::read(payload)?;
    if payload.len() <= max_bytes && message.problems.is_empty() {
        return None;
    }
    let mut written = message.write();
    if written.len() > max_bytes {
        message
            .headers
            .retain(|(name, _)| !BROKERS_HEADERS.iter().any(|brokers| name.starts_with(brokers)));
        written = message.write();
    }
    if written.len() > max_bytes {
        message.headers.clear();
        let problem = format!(
            "headers: with the other properties they are {} bytes long; at most {max_bytes} fit",
            payload.len()
        );
        message.problems.insert(0, problem);
        written = message.write();
    }
    Some(written)
}

/// A header's name, and its bytes with name, type and value.
type Header<'a> = (&'a [u8], &'a [u8]);

struct MessageHeader<'a> {
    fixed: &'a [u8],
    /// The encoded properties without the headers. `None` for a property that is absent or
    /// unreadable.
    properties: [Option<&'a [u8]>; PROPERTIES.len()],
    headers: Vec<Header<'a>>,
    problems: Vec<String>,
}

impl<'a> MessageHeader<'a> {
    /// `None` if the payload is too short to be a content header. The library then judges it.
    fn read(payload: &'a [u8]) -> Option<Self> {
        let mut input = Input(payload);
        let fixed = input.take(FIXED_BYTES)?;
        let flags = u16::from_be_bytes(input.take(2)?.try_into().ok()?);
        let mut message = Self {
            fixed,
            properties: [None; PROPERTIES.len()],
            headers: Vec::new(),
            problems: Vec::new(),
        };
        for (index, (name, kind)) in PROPERTIES.iter().enumerate() {
            if flags & (0x8000 >> index) == 0 {
                continue;
            }
            if message.read_property(&mut input, index, name, kind).is_none() {
                message
                    .problems
                    .push(format!("{name}: ends early; no property behind it can be read"));
                return Some(message);
            }
        }
        if !input.0.is_empty() {
            message
                .problems
                .push(format!("properties: {} bytes behind them belong to none", input.0.len()));
        }
        Some(message)
    }

    fn read_property(
        &mut self,
        input: &mut Input<'a>,
        index: usize,
        name: &str,
        kind: &FieldType,
    ) -> Option<()> {
        let start = input.0;
        match kind {
            FieldType::ShortString => {
                let text = input.short_string()?;
                if std::str::from_utf8(text).is_err() {
                    self.problems.push(format!("{name}: is not UTF-8 (bytes {})", hex(text)));
                    return Some(());
                }
            }
            FieldType::Table => {
                let table = input.long_string()?;
                self.read_headers(table);
                return Some(());
            }
            FieldType::Octet => drop(input.take(1)?),
            FieldType::Timestamp => drop(input.take(8)?),
        }
        self.properties[index] = Some(&start[..start.len() - input.0.len()]);
        Some(())
    }

    fn read_headers(&mut self, table: &'a [u8]) {
        let mut problems = self.read_table(table);
        problems.truncate(MAX_HEADERS_NAMED);
        self.problems.extend(problems);
    }

    /// Keeps the headers that can be read, and says what is wrong with the others.
    fn read_table(&mut self, table: &'a [u8]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut input = Input(table);
        while !input.0.is_empty() {
            let start = input.0;
            let Some(name) = input.short_string() else {
                problems.push("headers: a name ends early".to_owned());
                return problems;
            };
            let shown = String::from_utf8_lossy(&name[..name.len().min(MAX_SHOWN)]);
            let is_utf8 = std::str::from_utf8(name).is_ok();
            match input.value() {
                Err(problem) => {
                    problems.push(format!(
                        "header `{shown}`: {problem}; no header behind it can be read"
                    ));
                    return problems;
                }
                Ok(_) if !is_utf8 => problems
                    .push(format!("header `{shown}`: its name is not UTF-8 (bytes {})", hex(name))),
                Ok(value) => match value.check(1) {
                    Ok(()) => self.headers.push((name, &start[..start.len() - input.0.len()])),
                    Err(problem) => problems.push(format!("header `{shown}`: {problem}")),
                },
            }
        }
        problems
    }

    fn write(&self) -> Vec<u8> {
        let mut table: Vec<u8> =
            self.headers.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        if !self.problems.is_empty() {
            let account = self.account();
            table.extend(name(UNREADABLE_HEADER));
            table.push(b'S');
            table.extend_from_slice(&(account.len() as u32).to_be_bytes());
            table.extend_from_slice(account.as_bytes());
            table.extend(name(ALTERED_HEADER));
            table.extend_from_slice(b"t\x01");
        }
        let flag = |index: usize| 0x8000_u16 >> index;
        let present = (0..PROPERTIES.len())
            .filter(|index| self.properties[*index].is_some())
            .map(flag)
            .sum::<u16>();
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

    /// Says what is missing, in at most [`MAX_ACCOUNT`] bytes.
    fn account(&self) -> String {
        let mut account = self.problems.join("; ");
        account.truncate(account.floor_char_boundary(MAX_ACCOUNT));
        account
    }
}

fn name(name: &str) -> impl Iterator<Item = u8> {
    std::iter::once(name.len() as u8).chain(name.bytes())
}

/// The bytes that are not read yet.
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

    /// Reads the next value. Does not check nested values.
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
    /// Checks that all nested values can be read.
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
                std::str::from_utf8(name)
                    .map_err(|_| format!("a name in it is not UTF-8 (bytes {})", hex(name)))?;
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

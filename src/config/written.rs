//! How a value may be written: with its own type in the file, and always as text in the
//! environment.
//!
//! Invariant: the message of a [`Setting`] that refuses a value begins with "must" and never
//! repeats the value.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A value as it was written. No `Debug`: it may be a secret.
pub(super) enum Written {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<Written>),
    Other,
}

pub(super) trait Setting: Sized {
    fn read(written: Written) -> Result<Self, String>;
}

/// A setting that the file or the environment gave.
pub(super) struct Given<T>(pub T);

impl<T> Given<T> {
    pub(super) fn or(given: Option<Given<T>>, default: T) -> T {
        given.map_or(default, |given| given.0)
    }
}

impl<'de, T: Setting> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(Written::deserialize(deserializer)?).map(Given).map_err(D::Error::custom)
    }
}

impl Setting for String {
    fn read(written: Written) -> Result<String, String> {
        match written {
            Written::Text(text) => Ok(text),
            _ => Err("must be text in quotes".to_owned()),
        }
    }
}

impl Setting for PathBuf {
    fn read(written: Written) -> Result<PathBuf, String> {
        match written {
            Written::Text(text) if !text.trim().is_empty() => Ok(text.into()),
            _ => Err("must be the path of a file, in quotes".to_owned()),
        }
    }
}

impl Setting for bool {
    fn read(written: Written) -> Result<bool, String> {
        match written {
            Written::Flag(flag) => Ok(flag),
            Written::Text(text) => {
                text.trim().parse().map_err(|_| "must be true or false".to_owned())
            }
            _ => Err("must be true or false".to_owned()),
        }
    }
}

impl Written {
    /// Parses text that is a list. A variable may hold a list in the file's form: `["a", "b"]`.
    pub(super) fn or_list(self) -> Written {
        #[derive(Deserialize)]
        struct Line {
            list: Written,
        }
        match self {
            Written::Text(text) if text.trim_start().starts_with('[') => {
                toml::from_str(&format!("list = {}", text.trim()))
                    .map_or(Written::Other, |line: Line| line.list)
            }
            other => other,
        }
    }
}

/// A list of texts. In a variable, commas separate them.
pub(super) fn texts(written: Written) -> Option<Vec<String>> {
    let text = |written: Written| match written {
        Written::Text(text) => Some(text.trim().to_owned()),
        _ => None,
    };
    match written.or_list() {
        Written::List(list) => list.into_iter().map(text).collect(),
        Written::Text(list) => Some(list.split(',').map(|text| text.trim().to_owned()).collect()),
        _ => None,
    }
}

/// Reads a value that must be one of `words`.
pub(super) fn word<T: Copy>(written: &Written, words: &[(&str, T)]) -> Result<T, String> {
    let found = match written {
        Written::Text(text) => words.iter().find(|(word, _)| *word == text.trim()),
        _ => None,
    };
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let quoted: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("must be one of {}", quoted.join(", "))
    })
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Written;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Written, E> {
                Ok(Written::Text(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Written, E> {
                Ok(Written::Integer(number))
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Written, E> {
                Ok(Written::Flag(flag))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Written, E> {
                Ok(Written::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Written, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Written::List(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Written, A::Error> {
                Ok(Written::Other)
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

/// A table of keys. A plain struct would also accept a list of values in the order of its fields.
#[derive(Default)]
pub(super) struct Section<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Table<T> {
            type Value = Section<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a section")
            }

            fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<Section<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(keys)).map(Section)
            }
        }

        deserializer.deserialize_any(Table(PhantomData))
    }
}

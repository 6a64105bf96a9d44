//! A record as it is in the tables. The writer only moves its JSON, and the caller decodes it. So a
//! damaged record fails only its own operation.

use super::super::store::{Key, Record};

#[derive(Debug)]
pub struct StoredRecord {
    pub key: Key,
    pub head: String,
    pub batches: Vec<(u32, String)>,
    pub result: Option<String>,
    pub is_cancelled: bool,
}

impl StoredRecord {
    pub fn decode(self) -> Result<Record, serde_json::Error> {
        let batches =
            self.batches.into_iter().map(|(batch, json)| Ok((batch, serde_json::from_str(&json)?)));
        Ok(Record {
            key: self.key,
            head: serde_json::from_str(&self.head)?,
            batches: batches.collect::<Result<_, serde_json::Error>>()?,
            result: self.result,
            is_cancelled: self.is_cancelled,
        })
    }
}

//! How a record is written as a hash: `head`, `result`, and a field for each batch. The field's
//! name says whether the batch has ended and how the job was cut.

use std::collections::{BTreeMap, HashMap};

use super::super::store::{Head, Key, Record};
use crate::job::{Cut, outcome::BatchProgress};

pub type Fields = HashMap<String, String>;

const ENDED: &str = "e:";
const TOUCHED: &str = "t:";

/// The job's id comes last because it may contain any character. An app's name contains no colon.
pub fn record_key(key: &Key) -> String {
    format!("groupcast:{}:{}:{}", key.app, key.earlier_deaths, key.job_id)
}

/// The key of the set of `earlier_deaths` values for which a redriven job has records.
pub fn deaths_key(app: &str, job_id: &str) -> String {
    format!("groupcast:{app}:deaths:{job_id}")
}

/// The key of an app's newest epoch. It cannot equal a record's key, which has a number at this
/// place.
pub fn epoch_key(app: &str) -> String {
    format!("groupcast:{app}:epoch")
}

/// The key that exists while the holder of the newest epoch makes calls.
pub fn active_key(app: &str) -> String {
    format!("groupcast:{app}:active")
}

/// The key that exists while a job is cancelled.
pub fn cancellation_key(app: &str, job_id: &str) -> String {
    format!("groupcast:{app}:cancelled:{job_id}")
}

/// The key of the sorted set of an app's cancellations of the last day, by their numbers.
pub fn cancellations_key(app: &str) -> String {
    format!("groupcast:{app}:cancellations")
}

/// The key of the number of an app's latest cancellation.
pub fn latest_cancellation_key(app: &str) -> String {
    format!("groupcast:{app}:latest-cancellation")
}

/// The field of a batch that has ended, in a job with this cut.
pub fn ended(cut: Cut, batch: u32) -> String {
    format!("{ENDED}{}:{batch}", name_of(cut))
}

/// The field of a batch that has not ended.
pub fn touched(cut: Cut, batch: u32) -> String {
    format!("{TOUCHED}{}:{batch}", name_of(cut))
}

fn name_of(Cut { batch_size, within }: Cut) -> String {
    within.map_or(batch_size.to_string(), |within| format!("{batch_size}/{within}"))
}

/// Decodes the record in a hash. Without a head there is none.
pub fn decode(key: &Key, fields: &Fields, is_cancelled: bool) -> Result<Option<Record>, String> {
    let Some(head) = fields.get("head") else { return Ok(None) };
    let head: Head = serde_json::from_str(head).map_err(|error| damaged("head", &error))?;
    let result = fields.get("result").cloned();
    let batches = match result {
        // Batches that another process has written since are ignored.
        Some(_) => Vec::new(),
        None => batches(fields, head.cut())?,
    };
    Ok(Some(Record { key: key.clone(), head, batches, result, is_cancelled }))
}

fn batches(fields: &Fields, cut: Cut) -> Result<Vec<(u32, BatchProgress)>, String> {
    let mut batches = BTreeMap::new();
    for kind in [TOUCHED, ENDED] {
        for (field, json) in fields {
            let of_this_cut = field.strip_prefix(&format!("{kind}{}:", name_of(cut)));
            let Some(batch) = of_this_cut else { continue };
            let batch: u32 = batch.parse().map_err(|error| damaged(field, &error))?;
            // The value for a batch that has not ended begins with the epoch of its writer.
            let json =
                json.trim_start_matches(|first: char| first.is_ascii_digit() || first == ' ');
            let progress: BatchProgress =
                serde_json::from_str(json).map_err(|error| damaged(field, &error))?;
            batches.insert(batch, progress);
        }
    }
    Ok(batches.into_iter().collect())
}

fn damaged(field: &str, error: &dyn std::error::Error) -> String {
    format!("the record's field `{field}` is damaged: {error}")
}

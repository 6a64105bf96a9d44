//! Parks a job that must wait longer than the daemon may hold it. The job goes to a wait queue, and
//! the broker brings it back. Its progress stays in the state store.

use std::time::Duration;

use jiff::Timestamp;
use lapin::{BasicProperties, types::AMQPValue};

use crate::{
    broker::{
        Destination, Outgoing,
        kept::{kept_headers, kept_properties},
        publisher::Publisher,
        queues,
        troubles::QueueTrouble,
    },
    clock,
    job::{ATTEMPT_HEADER, Envelope, GIVEN_UP_HEADER, OWED_HEADER, PARKED_HEADER},
};

/// What is still to be done for a parked job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    Everything,
    /// Only its result: its dead letter is confirmed, or it needs none.
    Result,
}

/// The job's message for the right wait queue. `park` is never empty.
pub fn compose(
    app: &str,
    body: Vec<u8>,
    properties: &BasicProperties,
    envelope: &Envelope,
    park: &[Duration],
    left: Remaining,
) -> Outgoing {
    let until =
        |moment: Option<Timestamp>| moment.and_then(|moment| time_left(moment, clock::now()));
    let (not_before, deadline) = (until(envelope.not_before), until(envelope.deadline));
    let wait = wait(park, envelope.parkings, not_before, deadline);
    // A wait for `not_before` is no failure, so it does not make the next wait longer.
    let parkings = envelope.parkings.saturating_add(u32::from(not_before.is_none()));
    let mut headers = kept_headers(properties);
    if parkings > 0 {
        headers.insert(PARKED_HEADER.into(), AMQPValue::LongLongInt(i64::from(parkings)));
    }
    if envelope.earlier_deaths > 0 {
        headers.insert(
            ATTEMPT_HEADER.into(),
            AMQPValue::LongLongInt(i64::from(envelope.earlier_deaths)),
        );
    }
    if let Some(reason) = &envelope.given_up {
        headers.insert(GIVEN_UP_HEADER.into(), AMQPValue::LongString(reason.as_str().into()));
    }
    if left == Remaining::Result || envelope.owes_result {
        headers.insert(OWED_HEADER.into(), AMQPValue::LongString("result".into()));
    }
    let properties = kept_properties(properties)
        // A job without an id gets the generated one. Otherwise its progress could not be found
        // again.
        .with_message_id(envelope.job_id.as_str().into())
        .with_headers(headers)
        .with_delivery_mode(2);
    Outgoing { target: Destination::Own(queues::wait(app, wait)), body, properties, suspect: false }
}

/// Publishes a parked job to its wait queue. If that queue takes no messages, tries the others, the
/// shortest wait first.
pub async fn publish(
    publisher: &Publisher,
    app: &str,
    job: &Outgoing,
    park: &[Duration],
) -> Result<(), QueueTrouble> {
    let Err(mut trouble) = publisher.publish_to_own(app, job).await else { return Ok(()) };
    let mut waits = park.to_vec();
    waits.sort();
    for queue in waits
        .into_iter()
        .map(|wait| queues::wait(app, wait))
        .filter(|queue| queue != job.target.queue())
    {
        let elsewhere = Outgoing { target: Destination::Own(queue), ..job.clone() };
        match publisher.publish_to_own(app, &elsewhere).await {
            Ok(()) => return Ok(()),
            Err(also) => trouble = also,
        }
    }
    Err(trouble)
}

fn time_left(moment: Timestamp, now: Timestamp) -> Option<Duration> {
    moment.duration_since(now).try_into().ok().filter(|left: &Duration| !left.is_zero())
}

/// Chooses the wait. A job whose time has not come takes the longest wait that ends before it. A
/// job that failed goes through the list, but comes back before its deadline if it can.
fn wait(
    park: &[Duration],
    parkings: u32,
    not_before: Option<Duration>,
    deadline: Option<Duration>,
) -> Duration {
    let shortest = park.iter().min().copied().unwrap_or_default();
    let longest_within = |limit: Duration| {
        park.iter().copied().filter(|wait| *wait <= limit).max().unwrap_or(shortest)
    };
    let in_turn = park.get(parkings as usize).or(park.last()).copied().unwrap_or_default();
    match (not_before, deadline) {
        (Some(left), deadline) => {
            longest_within(deadline.map_or(left, |deadline| deadline.min(left)))
        }
        (None, Some(left)) if left < in_turn => longest_within(left),
        (None, _) => in_turn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{accept::envelope, config::Replies};

    const PARK: [Duration; 4] = [
        Duration::from_secs(30),
        Duration::from_secs(120),
        Duration::from_secs(600),
        Duration::from_secs(1800),
    ];

    fn seconds(parkings: u32, not_before: Option<u64>, deadline: Option<u64>) -> u64 {
        wait(
            &PARK,
            parkings,
            not_before.map(Duration::from_secs),
            deadline.map(Duration::from_secs),
        )
        .as_secs()
    }

    #[test]
    fn a_job_that_failed_goes_through_the_wait_queues_in_their_order() {
        assert_eq!(
            [0, 1, 2, 3, 4, 99].map(|parkings| seconds(parkings, None, None)),
            [30, 120, 600, 1800, 1800, 1800]
        );
    }

    #[test]
    fn a_job_whose_time_has_not_come_is_back_before_it() {
        assert_eq!([61, 130, 7200].map(|left| seconds(3, Some(left), None)), [30, 120, 1800]);
        assert_eq!(seconds(0, Some(7200), Some(700)), 600);
    }

    #[test]
    fn what_is_written_of_a_job_that_was_parked_as_often_as_can_be_counted_is_read_again() {
        let mut headers = lapin::types::FieldTable::default();
        for header in [PARKED_HEADER, ATTEMPT_HEADER] {
            headers.insert(header.into(), AMQPValue::LongLongInt(i64::from(u32::MAX)));
        }
        let properties = BasicProperties::default().with_headers(headers);
        let read = |properties: &BasicProperties| {
            envelope::read(properties, "a", None, &Replies::anywhere(), Timestamp::UNIX_EPOCH)
        };
        let parked = compose(
            "a",
            Vec::new(),
            &properties,
            &read(&properties).0,
            &PARK,
            Remaining::Everything,
        );
        let (envelope, checked) = read(&parked.properties);
        assert_eq!(
            (checked, envelope.parkings, envelope.earlier_deaths),
            (Ok(()), u32::MAX, u32::MAX)
        );
    }

    #[test]
    fn a_deadline_is_not_slept_through() {
        assert_eq!(
            [10, 40, 700, 9999].map(|left| seconds(3, None, Some(left))),
            [30, 30, 600, 1800]
        );
    }
}

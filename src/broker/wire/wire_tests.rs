use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, gen_frame, parsing::parse_content_header};
use futures_util::{AsyncReadExt, io::Cursor};
use lapin::BasicProperties;
use proptest::prelude::*;

use super::*;

/// Returns a few bytes at a time, as a network does.
struct Trickle(Cursor<Vec<u8>>, Vec<usize>);

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let most = self.1.pop().unwrap_or(into.len()).clamp(1, into.len().max(1)).min(into.len());
        Pin::new(&mut self.0).poll_read(context, &mut into[..most])
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let head = [&[kind, 0, 1][..], &(payload.len() as u32).to_be_bytes()].concat();
    [&head, payload, &[0xce]].concat()
}

/// A content header with a correlation id.
fn header(correlation_id: &[u8]) -> Vec<u8> {
    let fixed = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x04, 0x00];
    frame(HEADER, &[&fixed, &[correlation_id.len() as u8][..], correlation_id].concat())
}

async fn read(bytes: &[u8], pieces: Vec<usize>) -> Vec<u8> {
    let mut wire = Wire::new(Trickle(Cursor::new(bytes.to_vec()), pieces), None);
    let mut read = Vec::new();
    wire.read_to_end(&mut read).await.unwrap();
    read
}

fn tune_of(frame_max: u32) -> Vec<u8> {
    frame(METHOD, &[&[0, 10, 0, 30, 0, 0][..], &frame_max.to_be_bytes(), &[0, 60]].concat())
}

fn deliver(routing_key: &[u8]) -> Vec<u8> {
    let names =
        [&[1, b't', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0][..], &[routing_key.len() as u8], routing_key]
            .concat();
    frame(METHOD, &[&[0, 60, 0, 60][..], &names].concat())
}

proptest! {
    #[test]
    fn readable_frames_pass_as_they_are_however_they_arrive(
        bodies in prop::collection::vec(0usize..200_000, 0..4),
        pieces in prop::collection::vec(1usize..3_000, 0..40),
    ) {
        let frames = bodies.iter().map(|size| [deliver(b"key"), header(b"id"), frame(3, &vec![7; *size])].concat());
        let bytes: Vec<u8> = frames.chain([frame(8, b"")]).flatten().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        prop_assert!(runtime.block_on(read(&bytes, pieces)) == bytes);
    }
}

#[tokio::test]
async fn a_frame_that_cannot_be_read_is_replaced_and_its_neighbours_pass() {
    let bytes = [header(b"a"), deliver(b"caf\xe9"), header(b"\xff"), frame(3, b"{}"), header(b"b")]
        .concat();
    for pieces in [vec![], vec![1; 200]] {
        let read = read(&bytes, pieces).await;
        assert!(read.starts_with(&[header(b"a"), deliver(b"caf?")].concat()));
        assert!(read.ends_with(&[frame(3, b"{}"), header(b"b")].concat()));
        assert!(String::from_utf8_lossy(&read).contains("correlation_id: is not UTF-8 (bytes ff)"));
    }
}

#[tokio::test]
async fn the_limit_of_a_frame_is_what_the_broker_says() {
    let tune = tune_of(8192);
    let value = [&[1, b'x', b'S'][..], &9000u32.to_be_bytes(), &[b'v'; 9000]].concat();
    let fixed = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x20, 0x00];
    let large = frame(HEADER, &[&fixed[..], &(value.len() as u32).to_be_bytes(), &value].concat());
    assert_eq!(read(&large, vec![]).await, large);
    for unlimited in [None, Some(0)] {
        let mut wire = Wire::new(Cursor::new([tune_of(1_000_000), vec![]].concat()), unlimited);
        wire.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(wire.frame_max, 1_000_000);
    }
    let read = read(&[tune.clone(), large].concat(), vec![]).await;
    assert!(read.len() - tune.len() < 8192);
    assert!(String::from_utf8_lossy(&read).contains("headers: with the other properties"));
}

/// See [`wire::as_read`](super::as_read).
pub fn as_read(
    properties: &BasicProperties,
    header: &[u8],
    looked_at: bool,
) -> Option<BasicProperties> {
    const TABLE: usize = FRAME_HEAD + 14;
    let properties =
        properties.clone().with_headers(properties.headers().clone().unwrap_or_default());
    let frame = AMQPFrame::Header(1, AMQPContentHeader { class_id: 60, body_size: 2, properties });
    let mut buffer = vec![0; 16 * 1024];
    let written =
        gen_frame(&frame)(buffer.as_mut_slice().into()).expect("it fits").position as usize;
    buffer.truncate(written - FRAME_TAIL);
    let table = u32::from_be_bytes(buffer[TABLE..TABLE + 4].try_into().expect("a length"));
    buffer[TABLE..TABLE + 4].copy_from_slice(&(table + header.len() as u32).to_be_bytes());
    buffer.splice(TABLE + 4..TABLE + 4, header.iter().copied());
    let payload = &buffer[FRAME_HEAD..];
    let readable =
        if looked_at { content_header::readable(payload, DEFAULT_FRAME_MAX) } else { None };
    parse_content_header(readable.as_deref().unwrap_or(payload))
        .ok()
        .map(|(_, header)| header.properties)
}

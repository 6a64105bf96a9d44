use amq_protocol::frame::parsing::parse_content_header;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use proptest::prelude::*;

use super::*;

const FRAME: usize = 131_064;
/// The payload of the smallest frame that RabbitMQ 4.1 and later allow. All properties without the
/// headers take less than 4 KiB.
const SMALLEST: usize = 8_184;

fn short(text: &[u8]) -> Vec<u8> {
    [&[text.len() as u8], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// A content header with these properties, which are in the order of the protocol.
fn header(properties: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let index =
        |name: &str| PROPERTIES.iter().position(|(known, _)| *known == name).expect("a property");
    let flags: u16 = properties.iter().map(|(name, _)| 0x8000 >> index(name)).sum();
    let encoded = properties.iter().flat_map(|(_, bytes)| bytes.clone());
    [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
        .into_iter()
        .chain(flags.to_be_bytes())
        .chain(encoded)
        .collect()
}

fn parsed(payload: &[u8]) -> BasicProperties {
    let (rest, header) = parse_content_header(payload).expect("the library can read it");
    assert_eq!((rest, header.body_size), (&[][..], 2), "the library wants no byte behind it");
    header.properties
}

fn nested(kind: u8, depth: usize) -> Vec<u8> {
    (0..depth).fold(vec![b'V'], |inner, _| {
        let inner = if kind == b'F' { [short(b"a"), inner].concat() } else { inner };
        [vec![kind], long(&inner)].concat()
    })
}

fn problem(properties: &BasicProperties) -> String {
    let headers = properties.headers().clone().unwrap_or_default();
    match headers.inner().get(UNREADABLE_HEADER) {
        Some(AMQPValue::LongString(problem)) => problem.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_library_can_read_stays_as_it_is() {
    let headers =
        [short(b"traceparent"), vec![b'S'], long(b"\xff"), short(b"n"), nested(b'F', 15)].concat();
    let properties = [
        ("content_type", short("é".as_bytes())),
        ("headers", long(&headers)),
        ("delivery_mode", vec![2]),
        ("priority", vec![9]),
        ("message_id", short(b"order-42")),
        ("timestamp", vec![0; 8]),
    ];
    assert_eq!(readable(&header(&properties), FRAME), None);
    assert_eq!(readable(&header(&[]), FRAME), None);
    parsed(&header(&properties));
}

#[test]
fn a_property_that_cannot_be_read_is_left_out_and_named_and_the_others_stay() {
    let good = [short(b"groupcast-delivery"), vec![b'S'], long(b"at-most-once")].concat();
    let bad_headers: [(&[u8], Vec<u8>, &str); 6] = [
        (b"caf\xe9", vec![b'V'], "header `caf\u{fffd}`: its name is not UTF-8 (bytes 636166e9)"),
        (b"deep", nested(b'A', 8_000), "header `deep`: is nested more than 16 levels deep"),
        (b"deep", nested(b'F', 17), "header `deep`: is nested more than 16 levels deep"),
        (
            b"in",
            [vec![b'F'], long(&[short(b"\xff"), vec![b'V']].concat())].concat(),
            "header `in`: a name in it is not UTF-8 (bytes ff)",
        ),
        (
            b"in",
            [vec![b'A'], long(b"Z")].concat(),
            "header `in`: its value has the unknown type 0x5a",
        ),
        (b"in", [vec![b'A'], long(b"I")].concat(), "header `in`: its value ends early"),
    ];
    for (name, value, expected) in bad_headers {
        let table = [good.clone(), short(name), value, good.clone()].concat();
        let properties = parsed(
            &readable(&header(&[("headers", long(&table)), ("message_id", short(b"id"))]), FRAME)
                .unwrap(),
        );
        assert_eq!(problem(&properties), expected);
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "id");
        assert!(properties.headers().as_ref().unwrap().inner().contains_key("groupcast-delivery"));
        assert_eq!(
            properties.headers().as_ref().unwrap().inner().len(),
            3,
            "a good one, the account, and the mark"
        );
    }
    for (name, kind) in &PROPERTIES {
        if let FieldType::ShortString = kind {
            let properties =
                parsed(&readable(&header(&[(name, short(b"\x00\xff\x10"))]), FRAME).unwrap());
            assert_eq!(problem(&properties), format!("{name}: is not UTF-8 (bytes 00ff10)"));
        }
    }
}

#[test]
fn what_the_broker_added_goes_first_when_a_header_is_too_large_for_a_frame() {
    let text =
        |name: &[u8], bytes: usize| [short(name), vec![b'S'], long(&vec![b'x'; bytes])].concat();
    let with = |bytes| {
        header(&[
            ("headers", long(&[text(b"x-death", 400), text(b"mine", bytes)].concat())),
            ("type", short(b"t")),
        ])
    };
    let shrunk = |bytes| parsed(&readable(&with(bytes), 10_000).unwrap());
    assert_eq!(readable(&with(9_000), 10_000), None);
    assert_eq!(
        shrunk(9_700)
            .headers()
            .as_ref()
            .unwrap()
            .inner()
            .keys()
            .map(|name| name.as_str())
            .collect::<Vec<_>>(),
        ["mine"]
    );
    let properties = shrunk(12_000);
    assert!(
        problem(&properties).starts_with("headers: with the other properties they are 12"),
        "{}",
        problem(&properties)
    );
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "t");
}

#[test]
fn bytes_behind_the_last_property_are_left_out() {
    let whole = [header(&[("content_type", short(b"json"))]), vec![0, 1]].concat();
    let properties = parsed(&readable(&whole, FRAME).unwrap());
    assert_eq!(problem(&properties), "properties: 2 bytes behind them belong to none");
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "json");
}

#[test]
fn what_ends_early_leaves_what_was_before_it() {
    let whole = header(&[("content_type", short(b"json")), ("correlation_id", short(b"1234"))]);
    let properties = parsed(&readable(&whole[..whole.len() - 1], FRAME).unwrap());
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "json");
    assert!(problem(&properties).starts_with("correlation_id: ends early"));
}

proptest! {
    #[test]
    fn whatever_comes_the_library_can_read_it_and_it_fits(
        fixed in Just(header(&[])),
        rest in prop::collection::vec(any::<u8>(), 0..9000),
        flags in any::<u16>(),
    ) {
        // The lowest bits announce more flags, which neither the broker nor the library knows.
        let payload = [&fixed[..FIXED_BYTES], &(flags & 0xfffc).to_be_bytes(), &rest].concat();
        let read = readable(&payload, SMALLEST).unwrap_or(payload);
        parsed(&read);
        prop_assert!(read.len() <= SMALLEST);
    }

    #[test]
    fn with_any_number_of_problems_it_fits(
        names in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..4), 0..3000),
        good in 0..FRAME,
        id in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let bad = names.iter().flat_map(|name| [short(name), vec![b'V']].concat());
        let table: Vec<u8> = bad.chain([short(b"good"), vec![b'S'], long(&vec![b'x'; good])].concat()).collect();
        let payload = header(&[("headers", long(&table)), ("correlation_id", short(&id))]);
        let read = readable(&payload, FRAME).unwrap_or(payload);
        parsed(&read);
        prop_assert!(read.len() <= FRAME, "{}", read.len());
    }

    #[test]
    fn a_table_with_any_bytes_is_read_or_left_out(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let payload = header(&[("headers", long(&bytes)), ("app_id", short(b"a"))]);
        let read = readable(&payload, FRAME).unwrap_or(payload);
        let properties = parsed(&read);
        prop_assert_eq!(properties.app_id().as_ref().unwrap().as_str(), "a");
        let _: FieldTable = properties.headers().clone().unwrap();
    }
}

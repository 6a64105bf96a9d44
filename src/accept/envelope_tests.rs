use super::*;

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn read_with(properties: BasicProperties) -> (Envelope, Result<(), Rejection>) {
    read(&properties, "app", None, &Replies::anywhere(), NOW)
}

fn with_header(name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(name.into(), value);
    BasicProperties::default().with_headers(headers)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[test]
fn a_message_without_properties_has_the_defaults_and_an_id_of_its_own() {
    let (envelope, checked) = read_with(BasicProperties::default());
    assert_eq!(checked, Ok(()));
    assert_eq!(
        (envelope.priority, envelope.earlier_deaths, envelope.delivery),
        (4, 0, DeliveryPromise::AtLeastOnce)
    );
    assert_eq!(
        (&envelope.reply_to, envelope.deadline, envelope.not_before),
        (&ReplyTo::Nowhere, None, None)
    );
    assert_ne!(envelope.job_id, read_with(BasicProperties::default()).0.job_id);
}

#[test]
fn a_time_is_rfc_3339_or_unix_seconds_or_an_amqp_timestamp() {
    let deadline = Some(Timestamp::constant(1_900_000_000, 0));
    let forms = [
        text("2030-03-17T17:46:40Z"),
        text("2030-03-17T18:46:40+01:00"),
        AMQPValue::LongLongInt(1_900_000_000),
        AMQPValue::LongInt(1_900_000_000),
        AMQPValue::Timestamp(1_900_000_000),
    ];
    for form in forms {
        let (envelope, checked) = read_with(with_header("groupcast-deadline", form.clone()));
        assert_eq!((checked, envelope.deadline), (Ok(()), deadline), "{form:?}");
    }
}

#[test]
fn a_parked_job_tells_how_often_it_was() {
    let parked = |value| read_with(with_header("groupcast-parked", value));
    assert_eq!(parked(AMQPValue::LongLongInt(3)).0.parkings, 3);
    assert_eq!(parked(text("3")).1.unwrap_err().field, "groupcast-parked");
}

#[test]
fn a_count_near_the_end_of_its_type_is_taken_as_the_daemon_would_write_the_next_one() {
    for header in ["groupcast-parked", "groupcast-attempt"] {
        for (count, read) in [
            (1, 1),
            (i64::from(u32::MAX) - 1, u32::MAX - 1),
            (1 << 32, u32::MAX),
            (i64::MAX, u32::MAX),
        ] {
            let (envelope, checked) = read_with(with_header(header, AMQPValue::LongLongInt(count)));
            assert_eq!(
                (checked, envelope.parkings.max(envelope.earlier_deaths)),
                (Ok(()), read),
                "{header} {count}"
            );
        }
        assert_eq!(
            read_with(with_header(header, AMQPValue::LongLongInt(0))).1.unwrap_err().field,
            header
        );
    }
}

#[test]
fn a_reply_queue_is_the_producers_own_or_the_apps_results() {
    let reply_to =
        |queue: &str| read_with(BasicProperties::default().with_reply_to(queue.into())).0.reply_to;
    assert_eq!(reply_to("answers"), ReplyTo::Named("answers".into()));
    assert_eq!(reply_to("groupcast.app.results"), ReplyTo::Named("groupcast.app.results".into()));
    let direct = "amq.rabbitmq.reply-to.g1h2+/==.kZ3A==";
    assert_eq!(reply_to(direct), ReplyTo::Direct(direct.into()));
    for refused in [
        "groupcast.app.jobs",
        "groupcast.other.results",
        "groupcast.",
        "amq.rabbitmq.reply-to",
        "amq.rabbitmq.reply-to.g1h2",
        "amq.rabbitmq.reply-to.!!!.x",
    ] {
        assert_eq!(reply_to(refused), ReplyTo::Refused(refused.to_owned()), "{refused}");
    }
    assert_eq!(reply_to(""), ReplyTo::Nowhere);
}

#[test]
fn a_bad_header_leaves_where_the_answer_goes() {
    let properties = with_header("groupcast-deadline", text("tomorrow"))
        .with_reply_to("answers".into())
        .with_message_id("order-42".into())
        .with_correlation_id("c".into());
    let (envelope, checked) = read_with(properties);
    assert_eq!(checked.unwrap_err().field, "groupcast-deadline");
    assert_eq!(
        (envelope.job_id.as_str(), envelope.reply_to),
        ("order-42", ReplyTo::Named("answers".into()))
    );
    assert_eq!(envelope.correlation_id.as_deref(), Some("c"));
}

#[test]
fn a_dead_letter_that_was_moved_back_counts_its_deaths() {
    let mut properties = with_header("groupcast-attempt", AMQPValue::LongLongInt(2));
    let mut headers = properties.headers().clone().unwrap();
    for name in DEAD_LETTER_HEADERS {
        headers.insert(name.into(), text("x"));
    }
    properties = properties.with_headers(headers);
    let (envelope, checked) = read_with(properties);
    assert_eq!((checked, envelope.earlier_deaths), (Ok(()), 2));
}

#[test]
fn headers_of_others_are_none_of_our_business() {
    for name in ["x-death", "baggage", "my-groupcast-deadline", "Groupcast"] {
        assert_eq!(read_with(with_header(name, AMQPValue::Void)).1, Ok(()), "{name}");
    }
}

#[test]
fn headers_that_cannot_go_out_again_reject_the_job_by_the_name_of_the_largest() {
    let with = |headers: &[(&str, usize)]| {
        let mut table = FieldTable::default();
        for (name, bytes) in headers {
            table.insert((*name).into(), AMQPValue::LongString("x".repeat(*bytes).as_str().into()));
        }
        BasicProperties::default().with_headers(table)
    };
    for (headers, frame_max, named) in [
        (vec![("tracestate", 130_980)], 131_072, Some("tracestate")),
        (
            vec![("traceparent", 60_000), ("x-other", 60_010), ("small", 1)],
            131_072,
            Some("x-other"),
        ),
        (vec![("tracestate", 5000)], 8192, Some("tracestate")),
        (vec![("tracestate", 3000)], 8192, None),
        (vec![("tracestate", 114_000)], 131_072, None),
        // The daemon does not publish these headers again.
        (
            vec![
                ("x-death", 120_000),
                ("groupcast-parked", 8000),
                ("groupcast-owed", 8000),
                ("CC", 8000),
            ],
            131_072,
            None,
        ),
    ] {
        let rejection = check_headers_fit(&with(&headers), frame_max).err();
        assert_eq!(
            rejection.as_ref().map(|rejection| rejection.field.as_str()),
            named,
            "{headers:?}"
        );
        if let Some(rejection) = rejection {
            let (bytes, room) = (
                rejection.reason.contains("bytes"),
                frame::room_for_headers(frame_max).to_string(),
            );
            assert!(bytes && rejection.reason.contains(&room), "{rejection}");
        }
    }
}

#[test]
fn a_header_that_looks_like_one_of_ours_is_refused_by_name() {
    let misspelt = [
        ("Groupcast-Deadline", "groupcast-deadline"),
        ("groupcast_deadline", "groupcast-deadline"),
        (" groupcast-deadline", "groupcast-deadline"),
        ("groupcast-deadline\t", "groupcast-deadline"),
        ("GROUPCAST_NOT_BEFORE", "groupcast-not-before"),
        ("groupcastNotBefore", "groupcast-not-before"),
        ("x-groupcast-delivery", "groupcast-delivery"),
        ("group-cast-delivery", "groupcast-delivery"),
        ("groupcast\u{2010}deadline", "groupcast-deadline"),
        ("gropcast-deadline", "groupcast-deadline"),
        ("Traceparent", "traceparent"),
        ("trace_parent", "traceparent"),
    ];
    for (name, meant) in misspelt {
        let rejection = read_with(with_header(name, text("2020-01-01T00:00:00Z"))).1.unwrap_err();
        assert_eq!(
            (rejection.field.as_str(), rejection.reason.contains(meant)),
            (name, true),
            "{rejection}"
        );
    }
    for name in ["Groupcast-Status", "groupcast.priority", "groupcast-"] {
        assert_eq!(read_with(with_header(name, text("1"))).1.unwrap_err().field, name);
    }
    for name in [
        "deadline",
        "x-delivery",
        "cast",
        "groups",
        "x-groupcast-campaign",
        "trace-parent",
        "groupcaster-id",
        "",
    ] {
        assert_eq!(read_with(with_header(name, text("1"))).1, Ok(()), "{name}");
    }
}

#[test]
fn a_trace_context_that_cannot_be_read_is_ignored() {
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let with = |traceparent: AMQPValue, tracestate: AMQPValue| {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), traceparent);
        headers.insert("tracestate".into(), tracestate);
        let (envelope, checked) = read_with(BasicProperties::default().with_headers(headers));
        assert_eq!(checked, Ok(()));
        (envelope.trace.traceparent, envelope.trace.tracestate)
    };
    assert_eq!(with(text(good), text("a=b")), (Some(good.to_owned()), Some("a=b".to_owned())));
    assert_eq!(with(text(good), AMQPValue::LongInt(1)), (Some(good.to_owned()), None));
    // A `tracestate` without a valid `traceparent` has no meaning.
    for bad in [
        text("00-abc-def-01"),
        text(""),
        AMQPValue::LongInt(1),
        AMQPValue::Boolean(true),
        text(&good.to_uppercase()),
    ] {
        assert_eq!(with(bad, text("a=b")), (None, None));
    }
}

#[test]
fn a_charset_other_than_utf_8_is_refused() {
    let with = |content_type: &str| {
        read_with(BasicProperties::default().with_content_type(content_type.into())).1
    };
    for taken in [
        "application/json",
        "application/json; charset=UTF-8",
        "application/json;charset=\"utf8\"",
        "text/plain; CHARSET=us-ascii",
        "application/json; charset=",
        "application/json; boundary=gbk",
        "",
    ] {
        assert_eq!(with(taken), Ok(()), "{taken}");
    }
    for refused in [
        "application/json; charset=GBK",
        "text/json;version=1;Charset = 'gb18030'",
        "application/json; charset=ISO-8859-1",
        "application/json; charset=utf-16",
    ] {
        assert_eq!(with(refused).unwrap_err().field, "content_type", "{refused}");
    }
}

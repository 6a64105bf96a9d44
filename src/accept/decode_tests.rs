use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn rules() -> Rules {
    Rules {
        max_job_bytes: 1 << 20,
        batch_size: 3,
        empty_recipients: EmptyRecipients::Broadcast,
        recipients: RecipientRule::Always,
    }
}

fn request_bodies(job: &Job) -> Vec<Value> {
    (0..job.batch_count())
        .map(|batch| serde_json::from_slice(&job.request_body(batch)).unwrap())
        .collect()
}

#[test]
fn a_job_becomes_the_apis_own_request_bodies() {
    let body = json!({ "Content": "c\n\"é", "ToMembers_Account": ["a", "b", "a", "c", "d"], "GroupId": "g", "TopicId": "t" });
    let job = decode(body.to_string().as_bytes(), &rules()).unwrap();
    let expected = |recipients: Value| json!({ "GroupId": "g", "TopicId": "t", "Content": "c\n\"é", "ToMembers_Account": recipients });
    assert_eq!(request_bodies(&job), [expected(json!(["a", "b", "c"])), expected(json!(["d"]))]);
}

#[test]
fn a_job_for_all_members_has_no_recipient_list_in_its_call() {
    for body in [
        json!({ "GroupId": "g", "Content": "c" }),
        json!({ "GroupId": "g", "Content": "c", "ToMembers_Account": [] }),
    ] {
        let job = decode(body.to_string().as_bytes(), &rules()).unwrap();
        assert_eq!(request_bodies(&job), [json!({ "GroupId": "g", "Content": "c" })]);
    }
}

#[test]
fn the_longest_fields_are_taken_and_one_byte_more_is_not() {
    let cases = [("GroupId", 96), ("TopicId", 96), ("Content", 12_288)];
    for (field, limit) in cases {
        let with = |length: usize| {
            let mut body = json!({ "GroupId": "g", "Content": "c" });
            body[field] = "x".repeat(length).into();
            decode(body.to_string().as_bytes(), &rules())
        };
        assert!(with(limit).is_ok(), "{field}");
        assert_eq!(with(limit + 1).unwrap_err().field, field);
    }
    let with = |length: usize| {
        let body =
            json!({ "GroupId": "g", "Content": "c", "ToMembers_Account": ["x".repeat(length)] });
        decode(body.to_string().as_bytes(), &rules())
    };
    assert!(with(32).is_ok());
    assert_eq!(with(33).unwrap_err().field, "ToMembers_Account[0]");
}

#[test]
fn an_empty_content_is_the_producers_choice() {
    assert!(decode(br#"{"GroupId":"g","Content":""}"#, &rules()).is_ok());
}

#[test]
fn a_common_mistake_is_called_by_its_name() {
    let job = json!({ "GroupId": "g", "Content": "c" }).to_string();
    let utf_16: Vec<u8> = job.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cases: [(&[u8], &str); 12] = [
        (b"", "is empty"),
        (b" \r\n", "is empty"),
        (&utf_16, "is UTF-16"),
        (b"\xff\xfe{\0", "is UTF-16"),
        (b"\x1f\x8b\x08\0", "is compressed with gzip"),
        (b"\xef\xbb\xbf{}", "begins with a byte-order mark"),
        (b"// a job\n{\"GroupId\":\"g\",\"Content\":\"c\"}", "JSON has no comments"),
        (b"{\n  \"GroupId\": \"g\", // the group\n  \"Content\": \"c\"}", "JSON has no comments"),
        (b"{\"GroupId\":\"g\",\"Content\":\"c\"} /* end */", "JSON has no comments"),
        (b"{'GroupId':'g'}", "JSON strings are in double quotes"),
        (b"{\"GroupId\":'g'}", "JSON strings are in double quotes"),
        (br#""{\"GroupId\":\"g\"}""#, "a string with JSON in it (encoded twice?)"),
    ];
    for (body, told) in cases {
        let rejection = decode(body, &rules()).unwrap_err();
        assert!(
            rejection.reason.contains(told),
            "{:?}: {rejection}",
            String::from_utf8_lossy(body)
        );
    }
}

#[test]
fn a_rejection_quotes_neither_content_nor_recipients() {
    let secret = "s3cr3t-alice";
    let number = 9_876_543_210_u64;
    let values = [
        json!(secret),
        json!([secret]),
        json!({ secret: secret }),
        json!(number),
        json!(-9_876_543_210_i64),
        json!(98.76543),
    ];
    let rejected = |body: String| match decode(body.as_bytes(), &rules()) {
        Err(rejection) => {
            let told = rejection.to_string();
            assert!(!told.contains("alice") && !told.contains("876"), "{body}: {told}");
        }
        Ok(_) => assert!(body.contains("\"Content\":\"s3"), "{body}"),
    };
    for value in &values {
        for field in ["Content", "ToMembers_Account"] {
            let mut body = json!({ "GroupId": "g", "Content": "c" });
            body[field] = value.clone();
            if !(field == "ToMembers_Account" && value.is_array()) {
                rejected(body.to_string());
            }
        }
        let nested = json!({ "GroupId": "g", "Content": "c", "ToMembers_Account": [value] });
        if !value.is_string() {
            rejected(nested.to_string());
        }
        // For an object, the rejection names the unknown field, which contains the secret here.
        if !value.is_object() {
            rejected(value.to_string());
            rejected(value.to_string().replace(',', "//"));
        }
    }
}

/// JSON values of every type, with a little nesting. Some keys are field names of a job.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("ToMembers_Account".to_owned()),
        Just("GroupId".to_owned()),
        Just("Content".to_owned()),
        "[a-zA-Z_]{1,18}"
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_list_that_names_anybody_never_becomes_a_broadcast(
        recipients in prop::collection::vec(any_json(), 1..5),
        key in prop_oneof![9 => Just("ToMembers_Account".to_owned()), 1 => "[A-Za-z_]{1,20}"],
    ) {
        let mut body = json!({ "GroupId": "g", "Content": "c" });
        body[&key] = recipients.into();
        if let Ok(job) = decode(body.to_string().as_bytes(), &rules()) {
            prop_assert!(matches!(job.audience, Audience::Members(_)));
            for request in request_bodies(&job) {
                prop_assert!(!request["ToMembers_Account"].as_array().unwrap().is_empty());
            }
        }
    }

    #[test]
    fn any_bytes_are_a_job_or_a_rejection_with_a_reason(bytes in prop::collection::vec(any::<u8>(), 0..60), value in any_json()) {
        for body in [bytes, value.to_string().into_bytes()] {
            if let Err(rejection) = decode(&body, &rules()) {
                prop_assert!(!rejection.field.is_empty() && !rejection.reason.is_empty());
            }
        }
    }

    #[test]
    fn a_truncated_job_is_never_a_job(length in 0usize..70) {
        let body = br#"{"GroupId":"g","Content":"hello","ToMembers_Account":["alice","bob"]}"#;
        prop_assert!(decode(&body[..length.min(body.len() - 1)], &rules()).is_err());
    }
}

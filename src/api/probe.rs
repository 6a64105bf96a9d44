//! A call that notifies no user. It finds out whether the API can be reached and knows the app.

/// A request body for a group with a random name. Even if that group existed, the API would notify
/// only one UserID.
pub fn body() -> Vec<u8> {
    let group = format!("groupcast-probe-of-unknown-group-{}", uuid::Uuid::new_v4().simple());
    let recipients = ["groupcast-probe"];
    let body = serde_json::json!({
        "GroupId": group, "Content": "probe", "ToMembers_Account": recipients
    });
    body.to_string().into_bytes()
}

//! The harmless call: it finds out whether the API is there and knows the app, and notifies no
//! user.

/// A request body for a group with a name that nobody chose. Even if it existed, only one UserID
/// would be notified.
pub fn body() -> Vec<u8> {
    let group = format!("groupcast-probe-of-unknown-group-{}", uuid::Uuid::new_v4().simple());
    let body = serde_json::json!({ "GroupId": group, "Content": "probe", "ToMembers_Account": ["groupcast-probe"] });
    body.to_string().into_bytes()
}

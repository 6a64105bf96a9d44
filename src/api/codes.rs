//! The API's documented error codes: whose fault each one is, and how much of a job it concerns.
//! The table in docs/operations.md is generated from this file.
//!
//! Source: the vendor's "Error Codes" and "RESTful API Overview" pages and the header
//! `TIMErrorCode.h` of its SDK.

use crate::job::outcome::{BatchOutcome, FailureKind, Fault};

/// Whose fault a failed call is. It decides how the daemon reacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A temporary fault, which passes by itself.
    Transient(Effect),
    /// A temporary fault or the fault of this job. The vendor does not document which.
    TransientOrJob,
    /// The app calls too fast. It does not count as a failure.
    RateLimited,
    /// One group gets too many messages. It does not count as a failure.
    GroupRateLimited,
    /// The UserSig is wrong, or the key or identity that it was made with.
    Credential,
    /// The UserSig or a UserID in this job is wrong.
    CredentialOrJob,
    /// This job is wrong. It fails the same way every time.
    Job,
    /// The daemon blames this job. If every job gets the same code, the configuration may be at
    /// fault.
    JobOrConfiguration,
    /// The account or the configuration is wrong. No job can succeed until an operator acts.
    Account,
    /// More recipients than the API takes in one call.
    TooManyRecipients,
}

impl Class {
    /// What groupcast does about it, as a sentence for the operator.
    pub fn response(self) -> &'static str {
        match self {
            Self::Transient(Effect::None) => {
                "Tries again with growing delays, parks the job if that takes long, and gives it \
                    up after `retry.give_up_after`."
            }
            Self::Transient(Effect::Unknown) => {
                "Tries again with growing delays, parks the job if that takes long, and gives it \
                    up after `retry.give_up_after`. The notification may have been delivered: a \
                    job with `at-most-once` is not tried again and reports it as `unknown`."
            }
            Self::TransientOrJob => {
                "Tries again up to five times, then dead-letters the batch; a job with \
                    `at-most-once` reports it as `unknown` at once. The same code for jobs of five \
                    different groups in a row pauses the app."
            }
            Self::RateLimited => "Lowers the pace and tries again; it counts as no attempt.",
            Self::GroupRateLimited => {
                "Slows down this group and tries again until `retry.give_up_after`; it counts as \
                    no attempt."
            }
            Self::Credential => {
                "Signs anew with the secret read again and tries once more; a second refusal \
                    pauses the app."
            }
            Self::CredentialOrJob => {
                "Signs anew and tries once more; a second refusal dead-letters the batch, and jobs \
                    for five different groups in a row that end with the same code pause the app."
            }
            Self::Job => "Dead-letters the batch.",
            Self::JobOrConfiguration => {
                "Dead-letters the batch; jobs for five different groups in a row that end with the \
                    same code pause the app."
            }
            Self::Account => {
                "Pauses the app: jobs stay in the queue, single probe calls are made at growing \
                    intervals, and it resumes by itself."
            }
            Self::TooManyRecipients => "Splits the batch at 50 recipients and goes on.",
        }
    }
}

/// Whether a failed call may still have notified its recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Unknown,
}

#[derive(Debug)]
pub struct Code {
    pub code: i64,
    pub class: Class,
    pub meaning: &'static str,
    pub advice: &'static str,
}

/// More recipients than the API takes in one call.
pub const TOO_MANY_ACCOUNTS: i64 = 10005;
/// After too many refused signatures the API refuses valid ones too, for a minute.
pub const TOO_MANY_FAILED_SIGNATURES: i64 = 70050;

/// The entry of a documented code.
pub fn find(code: i64) -> Option<&'static Code> {
    CODES.binary_search_by_key(&code, |entry| entry.code).ok().map(|index| &CODES[index])
}

/// Whether a refusal with this code may be the answer to a message that the vendor discards as
/// repeated. It documents no answer, and 10024 only as "already processed".
pub fn may_be_answer_to_repeat(code: i64) -> bool {
    code == 10024 || (find(code).is_none() && !is_of_webhook(code))
}

/// The class of any code other than 0, documented or not, for the system notification.
pub fn class_of(code: i64) -> Class {
    match find(code) {
        Some(entry) => entry.class,
        // The app's own webhook chooses these.
        None if is_of_webhook(code) => Class::Job,
        // The API has answered bad signatures with unlisted 70xxx codes.
        None if (70_000..80_000).contains(&code) => Class::CredentialOrJob,
        None if (60_000..70_000).contains(&code) => Class::TransientOrJob,
        None => Class::JobOrConfiguration,
    }
}

/// Whether the app's own webhook, which the vendor asks before it delivers a message, has chosen
/// this code.
pub fn is_of_webhook(code: i64) -> bool {
    (10_100..=10_200).contains(&code) || (120_001..=130_000).contains(&code)
}

/// Whether a refusal with this code concerns the sender, the group, the topic or the content. Then
/// every batch of the job would get it.
pub fn concerns_whole_job(code: i64) -> bool {
    const LISTED: [i64; 10] =
        [10010, 10015, 10016, 10017, 10059, 11000, 80001, 80002, 80004, 80101];
    LISTED.contains(&code) || is_of_webhook(code)
}

const fn code(code: i64, class: Class, meaning: &'static str, advice: &'static str) -> Code {
    Code { code, class, meaning, advice }
}

const TRANSIENT: Class = Class::Transient(Effect::None);
const TRANSIENT_UNKNOWN: Class = Class::Transient(Effect::Unknown);
const RETRIED: &str = "nothing; it is tried again";
const SLOWED: &str = "lower calls_per_second if other programs call this API for the same app";
const FIX_JOB: &str = "correct the job and redrive it";
const FIX_KEY: &str = "check that secret_key belongs to sdk_app_id, that identifier is right, and \
    this machine's clock";
const RENEW: &str = "renew the plan or settle the account in the vendor's console";
const CHECK_CONSOLE: &str = "look at the app in the vendor's console";
const CHECK_REGION: &str = "the app is in another region, or sdk_app_id is wrong: look up SDKAppID \
    and data centre in the vendor's console and correct sdk_app_id and region (or endpoint)";
const BATCHES_OF_50: &str = "nothing; batch_size = 50 saves the refused call";
const NOT_EXPECTED: &str = "no cause is known: read info in the result, and ask the vendor";
const OTHER_COMMAND: &str = "the vendor offers send_group_system_notification to no new customer: \
    set command = \"send_group_msg\" for this app; if it is set, ask the vendor";
const RECALL: &str = "a message cannot be recalled or deleted";
const ATTRIBUTES: &str = "custom attributes of a group over a limit, or in conflict";
const OTHER_OPERATION: &str = "attributes, read receipts, counters or pinned messages of a group";

/// Sorted by code, for the binary search in [`find`].
#[rustfmt::skip]
pub static CODES: &[Code] = &[
    code(-20009, Class::RateLimited, "frequency limit of the access layer", SLOWED),
    code(-10114, TRANSIENT, "overloaded, refused", RETRIED),
    code(-10113, Class::RateLimited, "frequency limit of the access layer", SLOWED),
    code(-10112, Class::Account, "SDKAppID disabled", CHECK_CONSOLE),
    code(-10111, Class::Account, "API blocked for this SDKAppID", CHECK_CONSOLE),
    code(-10110, Class::Account, "SDKAppID blocked", CHECK_CONSOLE),
    code(-10108, Class::Account, "payment overdue", "settle the account in the vendor's console"),
    code(-302, TRANSIENT, "overloaded, refused", RETRIED),
    code(10002, TRANSIENT_UNKNOWN, "internal server error", RETRIED),
    code(10003, Class::Account, "invalid API name, or the API was withdrawn", OTHER_COMMAND),
    code(10004, Class::Job, "invalid parameter", FIX_JOB),
    code(TOO_MANY_ACCOUNTS, Class::TooManyRecipients, "too many accounts in one \
        call", BATCHES_OF_50),
    code(10006, Class::RateLimited, "operation frequency limit", SLOWED),
    code(10007, Class::JobOrConfiguration, "no permission for this operation", "check that \
        identifier is an app administrator"),
    code(10008, Class::Credential, "invalid request, possibly a wrong signature", FIX_KEY),
    code(10009, Class::Job, "the owner may not leave the group", NOT_EXPECTED),
    code(10010, Class::Job, "group does not exist or was disbanded", FIX_JOB),
    code(10011, Class::JobOrConfiguration, "JSON could not be parsed", "look for a proxy that \
        changes requests"),
    code(10012, Class::Account, "invalid operator UserID", "check identifier"),
    code(10013, Class::Job, "already a member of the group", NOT_EXPECTED),
    code(10014, Class::Job, "the group is full", NOT_EXPECTED),
    code(10015, Class::Job, "invalid group id", FIX_JOB),
    code(10016, Class::Job, "refused by the app's callback", FIX_JOB),
    code(10017, Class::Job, "sender is muted", FIX_JOB),
    code(10018, Class::Job, "answer larger than 1 MB", NOT_EXPECTED),
    code(10019, Class::Job, "UserID does not exist", FIX_JOB),
    code(10021, Class::Job, "group id is in use", NOT_EXPECTED),
    code(10023, Class::RateLimited, "message frequency limit", SLOWED),
    code(10024, Class::Job, "already processed", NOT_EXPECTED),
    code(10025, Class::Job, "group id is in use, by the caller", NOT_EXPECTED),
    code(10026, Class::Account, "API forbidden for this SDKAppID", OTHER_COMMAND),
    code(10030, Class::Job, RECALL, NOT_EXPECTED),
    code(10031, Class::Job, RECALL, NOT_EXPECTED),
    code(10032, Class::Job, RECALL, NOT_EXPECTED),
    code(10033, Class::Job, RECALL, NOT_EXPECTED),
    code(10034, Class::Job, RECALL, NOT_EXPECTED),
    code(10035, Class::Job, RECALL, NOT_EXPECTED),
    code(10036, Class::Job, "too many audio-video groups for the plan", NOT_EXPECTED),
    code(10037, Class::Job, "too many groups of one user for the plan", NOT_EXPECTED),
    code(10038, Class::Job, "too many members of a group for the plan", NOT_EXPECTED),
    code(10041, Class::Job, RECALL, NOT_EXPECTED),
    code(10044, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10045, Class::Job, ATTRIBUTES, NOT_EXPECTED),
    code(10046, Class::Job, ATTRIBUTES, NOT_EXPECTED),
    code(10047, Class::Job, ATTRIBUTES, NOT_EXPECTED),
    code(10048, Class::Job, ATTRIBUTES, NOT_EXPECTED),
    code(10049, Class::RateLimited, "attribute write frequency limit", SLOWED),
    code(10050, Class::Job, ATTRIBUTES, NOT_EXPECTED),
    code(10051, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10052, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10053, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10054, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10056, Class::Job, ATTRIBUTES, NOT_EXPECTED),
    code(10058, Class::Job, "too many groups for the free edition", NOT_EXPECTED),
    code(10059, Class::JobOrConfiguration, "feature is not in the app's plan", CHECK_CONSOLE),
    code(10060, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10061, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10062, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10063, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10070, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(10071, Class::Job, OTHER_OPERATION, NOT_EXPECTED),
    code(11000, Class::JobOrConfiguration, "community feature is not enabled", CHECK_CONSOLE),
    code(20004, TRANSIENT_UNKNOWN, "network error at the vendor", RETRIED),
    code(20005, TRANSIENT_UNKNOWN, "internal error at the vendor", RETRIED),
    code(60002, Class::Account, "HTTP URL could not be parsed", "check endpoint"),
    code(60003, Class::JobOrConfiguration, "JSON of the request could not be parsed", "look for a \
        proxy that changes requests"),
    code(60004, Class::CredentialOrJob, "UserID or UserSig is incorrect", FIX_KEY),
    code(60005, Class::CredentialOrJob, "UserID or UserSig is incorrect", FIX_KEY),
    code(60006, Class::Account, "invalid SDKAppID", CHECK_REGION),
    code(60007, Class::RateLimited, "call frequency limit of the API", SLOWED),
    code(60008, TRANSIENT_UNKNOWN, "request timed out at the vendor", RETRIED),
    code(60009, Class::Account, "requested resource is wrong", "check endpoint and region"),
    code(60010, Class::Account, "identifier is not an app administrator", "set identifier to an \
        administrator of the app"),
    code(60011, Class::RateLimited, "call frequency limit of the SDKAppID", SLOWED),
    code(60012, Class::Account, "SDKAppID is missing", "check sdk_app_id"),
    code(60013, TRANSIENT_UNKNOWN, "the vendor could not read its own answer", RETRIED),
    code(60014, TRANSIENT, "account exchange timed out", RETRIED),
    code(60015, Class::Job, "UserID is of a wrong type", FIX_JOB),
    code(60016, Class::Account, "SDKAppID is disabled", CHECK_CONSOLE),
    code(60017, Class::Account, "request is disabled", CHECK_CONSOLE),
    code(60018, Class::RateLimited, "too many requests", SLOWED),
    code(60019, Class::RateLimited, "too many requests", SLOWED),
    code(60020, Class::Account, "package expired", "renew the package; it takes effect after five \
        minutes"),
    code(60021, Class::Account, "source IP is refused", "allow this machine's address in the \
        vendor's console"),
    code(60022, Class::RateLimited, "the vendor's service is overloaded", RETRIED),
    code(70001, Class::Credential, "UserSig expired", FIX_KEY),
    code(70002, Class::Credential, "UserSig is empty", FIX_KEY),
    code(70003, Class::Credential, "UserSig is invalid", FIX_KEY),
    code(70005, Class::Credential, "UserSig is invalid", FIX_KEY),
    code(70009, Class::Credential, "UserSig was made with another key", FIX_KEY),
    code(70013, Class::Credential, "UserSig is for another identifier", FIX_KEY),
    code(70014, Class::Credential, "UserSig is for another SDKAppID", FIX_KEY),
    code(70016, Class::Account, "no key exists for this SDKAppID", CHECK_REGION),
    code(70020, Class::Account, "SDKAppID not found", CHECK_REGION),
    code(TOO_MANY_FAILED_SIGNATURES, Class::Account, "too many failed signatures; the vendor asks \
        for a minute's pause", FIX_KEY),
    code(70051, Class::Account, "account is blocked", CHECK_CONSOLE),
    code(70052, Class::Credential, "UserSig was invalidated", "nothing; a new one is made"),
    code(70101, Class::Credential, "ticket expired", "nothing; a new UserSig is made"),
    code(70107, Class::JobOrConfiguration, "UserID does not exist", "import the account, or \
        correct the job"),
    code(70114, Class::Account, "restricted for security reasons", CHECK_CONSOLE),
    code(70169, TRANSIENT_UNKNOWN, "server timed out", RETRIED),
    code(70202, TRANSIENT_UNKNOWN, "server timed out", RETRIED),
    code(70206, Class::Job, "invalid batch quantity", NOT_EXPECTED),
    code(70346, Class::Credential, "signature refused", FIX_KEY),
    code(70398, Class::Account, "account number limit", "upgrade the app's plan"),
    code(70402, Class::Job, "invalid parameter", FIX_JOB),
    code(70403, Class::Account, "administrator permission required", "set identifier to an \
        administrator of the app"),
    code(70500, TRANSIENT, "internal server error", RETRIED),
    code(71000, Class::Job, "not possible in this edition", NOT_EXPECTED),
    code(72000, Class::Account, "daily active users over the trial edition's quota", "upgrade the \
        app's plan"),
    code(72001, Class::Job, "feature is switched off", NOT_EXPECTED),
    code(72012, Class::Job, "feature is switched off", NOT_EXPECTED),
    code(80001, Class::Job, "sensitive text", FIX_JOB),
    code(80002, Class::Job, "content too long", FIX_JOB),
    code(80003, TRANSIENT, "callback failed or timed out", RETRIED),
    code(80004, Class::Job, "sensitive image", FIX_JOB),
    code(80005, Class::Account, "the service is disabled: the plan has expired or a payment is \
        due", RENEW),
    code(80101, Class::Job, "refused content", FIX_JOB),
    code(90992, TRANSIENT_UNKNOWN, "internal error", RETRIED),
    code(90994, TRANSIENT_UNKNOWN, "internal error", RETRIED),
    code(90995, TRANSIENT_UNKNOWN, "internal error", RETRIED),
    code(91000, TRANSIENT_UNKNOWN, "internal error", RETRIED),
    code(93000, Class::Job, "JSON longer than 12 KB", FIX_JOB),
];

/// How every batch of the job ends, if the outcome of this one says so.
pub fn end_of_job(outcome: &BatchOutcome) -> Option<(FailureKind, Fault)> {
    let BatchOutcome::Failed { kind, fault, .. } = outcome else { return None };
    let ends_job = match kind {
        FailureKind::Job => fault.code.is_some_and(concerns_whole_job),
        FailureKind::Cancelled => true,
        FailureKind::Transient | FailureKind::Expired | FailureKind::Undeliverable => false,
    };
    ends_job.then(|| (*kind, fault.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_each_code_once() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
    }

    #[test]
    fn every_entry_says_what_it_means_and_what_to_do() {
        assert!(CODES.iter().all(|entry| !entry.meaning.is_empty() && !entry.advice.is_empty()));
    }

    #[test]
    fn the_codes_that_the_api_documents_for_itself_have_their_class() {
        let documented = [
            (10002, Class::Transient(Effect::Unknown)),
            (10003, Class::Account),
            (10004, Class::Job),
            (10007, Class::JobOrConfiguration),
            (10010, Class::Job),
            (10015, Class::Job),
            (60007, Class::RateLimited),
            (60020, Class::Account),
            (70009, Class::Credential),
        ];
        for (code, class) in documented {
            assert_eq!(class_of(code), class, "{code}");
        }
    }

    #[test]
    fn every_code_of_the_vendors_lists_is_known() {
        let groups = [
            10002..=10019,
            10021..=10021,
            10023..=10026,
            10030..=10038,
            10041..=10041,
            10044..=10054,
            10056..=10056,
        ];
        let more_groups = [10058..=10063, 10070..=10071, 11000..=11000, 20004..=20005];
        let public = [60002..=60021];
        let known = groups.into_iter().chain(more_groups).chain(public).flatten();
        let unknown: Vec<i64> = known.filter(|code| find(*code).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn an_undocumented_code_has_a_class_too() {
        assert_eq!(class_of(10099), Class::JobOrConfiguration);
        assert_eq!(class_of(60099), Class::TransientOrJob);
        assert_eq!(class_of(70999), Class::CredentialOrJob);
        assert_eq!(class_of(1), Class::JobOrConfiguration);
    }
}

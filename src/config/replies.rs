//! `[apps.<app>.replies]`: the queues to which producers may direct their results.

use serde::Deserialize;
use wildmatch::WildMatchPattern;

use super::written::{Given, Setting, Written, texts};

/// `*` stands for any text. No character stands for a single other one, so `?` means itself.
type Pattern = WildMatchPattern<'*', '\0'>;

/// The queues that a job's `reply_to` may name. A direct reply-to address is always allowed,
/// because it leads only to the producer that sent the job.
#[derive(Clone, Debug, PartialEq)]
pub struct Replies {
    allow: Vec<Pattern>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RepliesSection {
    allow: Option<Given<Patterns>>,
}

struct Patterns(Vec<String>);

impl Replies {
    /// Allows every queue that is not one of groupcast's own.
    pub fn anywhere() -> Self {
        Self { allow: vec![Pattern::new("*")] }
    }

    /// Groupcast's own queues are never allowed, whatever the patterns say, except the app's
    /// results queue.
    pub fn allow(&self, queue: &str, app: &str) -> bool {
        let is_own = queue.starts_with("groupcast.") && queue != format!("groupcast.{app}.results");
        !is_own && self.allow.iter().any(|pattern| pattern.matches(queue))
    }

    pub(super) fn patterns(&self) -> impl Iterator<Item = String> {
        self.allow.iter().map(ToString::to_string)
    }
}

impl RepliesSection {
    pub(super) fn check(self) -> Replies {
        match self.allow {
            Some(Given(Patterns(patterns))) => {
                Replies { allow: patterns.iter().map(|pattern| Pattern::new(pattern)).collect() }
            }
            None => Replies::anywhere(),
        }
    }
}

impl Setting for Patterns {
    fn read(written: Written) -> Result<Patterns, String> {
        texts(written)
            .filter(|patterns| patterns.iter().all(|pattern| !pattern.is_empty()))
            .map(Patterns)
            .ok_or_else(|| {
                "must be a list of queue names in which * stands for any text, such as \
                    [\"replies.*\"]; separated by commas in a variable"
                    .to_owned()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(patterns: &[&str]) -> Replies {
        Replies { allow: patterns.iter().map(|pattern| Pattern::new(pattern)).collect() }
    }

    #[test]
    fn without_patterns_any_queue_is_allowed_but_those_of_groupcast() {
        let anywhere = RepliesSection::default().check();
        assert_eq!(anywhere, Replies::anywhere());
        for queue in ["r", "amq.gen-x", "groupcastle", "groupcast.a.results"] {
            assert!(anywhere.allow(queue, "a"), "{queue}");
        }
        for queue in [
            "groupcast.a.jobs",
            "groupcast.b.jobs",
            "groupcast.b.results",
            "groupcast.a.dead",
            "groupcast.",
        ] {
            assert!(!anywhere.allow(queue, "a"), "{queue}");
        }
    }

    #[test]
    fn a_pattern_matches_the_whole_name_and_no_more_than_it_says() {
        let some = replies(&["billing.*.replies", "one", "why?"]);
        for queue in ["billing.eu.replies", "billing..replies", "one", "why?"] {
            assert!(some.allow(queue, "a"), "{queue}");
        }
        for queue in [
            "billing.eu.replies2",
            "xbilling.eu.replies",
            "one2",
            "whyx",
            "",
            "groupcast.a.results",
        ] {
            assert!(!some.allow(queue, "a"), "{queue}");
        }
        assert!(!replies(&["*"]).allow("groupcast.a.jobs", "a"), "not even if they say so");
        assert!(!replies(&[]).allow("r", "a"));
    }
}

//! `command` and `[apps.<app>.group_msg]`: which call of the API an app uses, and the settings of
//! the second one.

use std::time::Duration;

use serde::Deserialize;
use wildmatch::WildMatchPattern;

use super::error::Problem;
use super::limit::duration_or_zero;
use super::written::{Given, Section, Setting, Written, texts, word};

/// `*` stands for any text.
type GroupPattern = WildMatchPattern<'*', '\0'>;

const MOST_PER_GROUP: u32 = 100_000;
/// The vendor remembers a message for five minutes.
const LONGEST_DEDUP_WINDOW: Duration = Duration::from_mins(5);

/// The call that an app uses. The daemon never changes it by itself, because clients receive
/// another event.
#[derive(Clone, Debug)]
pub enum CommandConfig {
    SystemNotification,
    GroupMsg(GroupMsg),
}

/// The name of a [`CommandConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandName {
    SystemNotification,
    GroupMsg,
}

impl CommandName {
    /// As in the URL, in `command` and in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SystemNotification => "send_group_system_notification",
            Self::GroupMsg => "send_group_msg",
        }
    }

    /// The most recipients of one call. The vendor documents it.
    pub(super) fn largest_batch(self) -> usize {
        match self {
            Self::SystemNotification => 500,
            Self::GroupMsg => 50,
        }
    }
}

impl CommandConfig {
    pub fn name(&self) -> CommandName {
        match self {
            Self::SystemNotification => CommandName::SystemNotification,
            Self::GroupMsg(_) => CommandName::GroupMsg,
        }
    }

    /// What applies of `read` to a running daemon.
    pub(super) fn apply_live_changes(&self, read: &Self) -> Self {
        match (self, read) {
            (Self::GroupMsg(own), Self::GroupMsg(read)) => Self::GroupMsg(GroupMsg {
                targeting: read.targeting,
                calls_per_second_per_group: read.calls_per_second_per_group,
                ..own.clone()
            }),
            (own, _) => own.clone(),
        }
    }
}

/// `[apps.<app>.group_msg]`.
#[derive(Clone, Debug)]
pub struct GroupMsg {
    pub storage: Storage,
    pub element: Element,
    pub priority: Priority,
    /// Whether calls trigger the webhooks of the app's own server.
    pub webhooks: bool,
    /// The sender that members see. `None`: the identifier.
    pub from_account: Option<String>,
    /// Whether the app's plan has targeted group messages.
    pub targeting: bool,
    pub calls_per_second_per_group: u32,
    /// How long the vendor is trusted to discard a repeated message. Zero: not at all.
    pub dedup_window: Duration,
    avchatroom: Vec<GroupPattern>,
}

impl GroupMsg {
    /// Whether the group is a live group, where every message is for online members only.
    pub fn is_avchatroom(&self, group: &str) -> bool {
        self.avchatroom.iter().any(|pattern| pattern.matches(group))
    }

    pub(super) fn avchatroom(&self) -> impl Iterator<Item = String> {
        self.avchatroom.iter().map(ToString::to_string)
    }
}

/// What becomes of a message besides its delivery to members who are online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nothing: only members who are online get it.
    Online,
    /// It is kept in the history. It counts as no unread message and is not pushed.
    Silent,
    /// It is kept, counted and pushed like a member's message.
    Ordinary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    Custom,
    Text,
}

/// Which messages of a group the vendor drops last when there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    High,
    Normal,
    Low,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct GroupMsgSection {
    storage: Option<Given<Storage>>,
    element: Option<Given<Element>>,
    priority: Option<Given<Priority>>,
    webhooks: Option<Given<bool>>,
    from_account: Option<Given<String>>,
    targeting: Option<Given<bool>>,
    calls_per_second_per_group: Option<Given<u32>>,
    dedup_window: Option<Given<DedupWindow>>,
    avchatroom: Option<Given<GroupPatterns>>,
}

impl GroupMsgSection {
    fn check(self) -> Result<GroupMsg, Problem> {
        let from_account = self.from_account.map(|account| account.0);
        if from_account.as_deref().is_some_and(|account| account.len() > 32) {
            return Err(Problem::wrong("from_account", "must be a UserID, 32 bytes at most"));
        }
        let per_group = Given::or(self.calls_per_second_per_group, 20);
        if per_group > MOST_PER_GROUP {
            return Err(Problem::wrong(
                "calls_per_second_per_group",
                format!("must be {MOST_PER_GROUP} at most; the vendor allows 40"),
            ));
        }
        Ok(GroupMsg {
            storage: Given::or(self.storage, Storage::Online),
            element: Given::or(self.element, Element::Custom),
            priority: Given::or(self.priority, Priority::High),
            webhooks: Given::or(self.webhooks, false),
            from_account: from_account.filter(|account| !account.is_empty()),
            targeting: Given::or(self.targeting, false),
            calls_per_second_per_group: per_group,
            dedup_window: Given::or(self.dedup_window, DedupWindow(LONGEST_DEDUP_WINDOW)).0,
            avchatroom: Given::or(self.avchatroom, GroupPatterns(Vec::new())).0,
        })
    }
}

/// The command and its settings, which only the second command has.
pub(super) fn command(
    name: Option<Given<CommandName>>,
    group_msg: Option<Section<GroupMsgSection>>,
) -> Result<CommandConfig, Problem> {
    match (Given::or(name, CommandName::SystemNotification), group_msg) {
        (CommandName::GroupMsg, section) => section
            .unwrap_or_default()
            .0
            .check()
            .map(CommandConfig::GroupMsg)
            .map_err(|problem| problem.under("group_msg")),
        (CommandName::SystemNotification, None) => Ok(CommandConfig::SystemNotification),
        (CommandName::SystemNotification, Some(_)) => Err(Problem::wrong(
            "group_msg",
            "is only for command = \"send_group_msg\"; set command to that, or remove the section",
        )),
    }
}

impl Setting for CommandName {
    fn read(written: Written) -> Result<Self, String> {
        word(
            &written,
            &[Self::SystemNotification, Self::GroupMsg].map(|name| (name.as_str(), name)),
        )
    }
}

/// The words of a setting that is one of a few.
macro_rules! words {
    ($kind:ident: $($word:literal $meaning:ident),+) => {
        impl $kind {
            pub(super) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$meaning => $word),+
                }
            }
        }

        impl Setting for $kind {
            fn read(written: Written) -> Result<Self, String> {
                word(&written, &[$(($word, Self::$meaning)),+])
            }
        }
    };
}

words!(Storage: "online" Online, "silent" Silent, "ordinary" Ordinary);
words!(Element: "custom" Custom, "text" Text);
words!(Priority: "high" High, "normal" Normal, "low" Low);

/// A duration that may be zero.
struct DedupWindow(Duration);

impl Setting for DedupWindow {
    fn read(written: Written) -> Result<Self, String> {
        duration_or_zero(&written)
            .filter(|window| *window <= LONGEST_DEDUP_WINDOW)
            .map(DedupWindow)
            .ok_or_else(|| {
                "must be a duration of 5m at most, such as \"5m\"; \"0s\" does not rely on the \
                    vendor's deduplication"
                    .to_owned()
            })
    }
}

struct GroupPatterns(Vec<GroupPattern>);

impl Setting for GroupPatterns {
    fn read(written: Written) -> Result<Self, String> {
        texts(written)
            .filter(|groups| groups.iter().all(|group| !group.is_empty()))
            .map(|groups| {
                GroupPatterns(groups.iter().map(|group| GroupPattern::new(group)).collect())
            })
            .ok_or_else(|| {
                "must be a list of group ids in which * stands for any text, such as \
                    [\"live-*\"]; separated by commas in a variable"
                    .to_owned()
            })
    }
}

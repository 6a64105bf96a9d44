//! Faults on demand: a short list of rules. Each says which calls it affects, how often, and what
//! the caller gets.
//!
//! A rule affects calls that would be accepted; an `app_wide` rule affects every call. The
//! latencies of all matching rules add up. The first other matching rule decides the answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::notification::Notification;

/// No person writes a longer list, and every call walks the list.
pub const MAX_RULES: usize = 1000;

/// What the caller gets instead of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum InjectedFault {
    /// The usual answer, so many milliseconds later.
    LatencyMs(u64),
    /// An `ErrorCode`.
    Error {
        code: i64,
        #[serde(default)]
        info: String,
    },
    /// Another HTTP status, with a page of HTML.
    HttpStatus(u16),
    /// HTTP 200 with a body that is not JSON.
    NotJson,
    /// The connection is reset.
    Reset,
    /// The caller never gets an answer.
    Hang,
    /// HTTP 302 to another address.
    Redirect,
}

impl InjectedFault {
    /// Its name in the statistics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LatencyMs(_) => "latency_ms",
            Self::Error { .. } => "error",
            Self::HttpStatus(_) => "http_status",
            Self::NotJson => "not_json",
            Self::Reset => "reset",
            Self::Hang => "hang",
            Self::Redirect => "redirect",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    pub fault: InjectedFault,
    /// Only calls for this group.
    #[serde(default)]
    pub group: Option<String>,
    /// Only calls with this recipient, so that a rule can affect one batch of many.
    #[serde(default)]
    pub matching: Option<String>,
    /// How many calls. If absent: all calls until cleared.
    #[serde(default)]
    pub calls: Option<u32>,
    /// The notification is still delivered.
    #[serde(default)]
    pub after_effect: bool,
    /// Every call, even one that would be refused: the app or its gateway is at fault.
    #[serde(default)]
    pub app_wide: bool,
}

impl From<InjectedFault> for FaultRule {
    /// Affects every call that would be accepted, until cleared.
    fn from(fault: InjectedFault) -> Self {
        Self {
            fault,
            group: None,
            matching: None,
            calls: None,
            after_effect: false,
            app_wide: false,
        }
    }
}

impl FaultRule {
    /// The reason why the rule is not valid.
    fn objection(&self) -> Option<&'static str> {
        match (&self.fault, self.calls) {
            (InjectedFault::HttpStatus(status), _) if !(200..=599).contains(status) => {
                Some("http_status must be 200 to 599")
            }
            (_, Some(0)) => Some("calls must be 1 or more; leave it out for no end"),
            _ if self.app_wide && (self.group.is_some() || self.matching.is_some()) => {
                Some("app_wide excludes group and matching")
            }
            _ => None,
        }
    }

    fn strikes(&self, acceptable: Option<&Notification>) -> bool {
        let Some(notification) = acceptable else { return self.app_wide };
        self.group.as_ref().is_none_or(|group| *group == notification.group)
            && self
                .matching
                .as_ref()
                .is_none_or(|id| notification.recipients.iter().any(|recipient| recipient.0 == *id))
    }
}

#[derive(Debug, Default)]
pub struct Faults(Vec<FaultRule>);

/// What the rules do to one call.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Strike {
    pub latency: Duration,
    pub fault: Option<InjectedFault>,
    pub effect: StrikeEffect,
}

/// Whether a struck notification is delivered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum StrikeEffect {
    #[default]
    Prevented,
    Happens,
}

impl Faults {
    pub fn add(&mut self, rule: FaultRule) -> Result<(), &'static str> {
        if self.0.len() == MAX_RULES {
            return Err("there are 1000 rules already; clear them first");
        }
        rule.objection().map_or(Ok(()), Err)?;
        self.0.push(rule);
        Ok(())
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn rules(&self) -> &[FaultRule] {
        &self.0
    }

    /// `acceptable`: the notification, if it would be accepted. Removes a rule after its last call.
    pub fn strike(&mut self, acceptable: Option<&Notification>) -> Strike {
        let mut strike = Strike::default();
        for rule in self.0.iter_mut().filter(|rule| rule.strikes(acceptable)) {
            match &rule.fault {
                InjectedFault::LatencyMs(ms) => strike.latency += Duration::from_millis(*ms),
                _ if strike.fault.is_some() => continue,
                fault => {
                    strike.fault = Some(fault.clone());
                    strike.effect = if rule.after_effect {
                        StrikeEffect::Happens
                    } else {
                        StrikeEffect::Prevented
                    };
                }
            }
            rule.calls = rule.calls.map(|left| left - 1);
        }
        self.0.retain(|rule| rule.calls != Some(0));
        strike
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strike(faults: &mut Faults, body: &str) -> Option<InjectedFault> {
        let notification = Notification::read(body.as_bytes()).unwrap();
        faults.strike(Some(&notification)).fault
    }

    const TO_A_AND_B: &str = r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a","b"]}"#;
    const TO_C: &str = r#"{"GroupId":"g","Content":"c","ToMembers_Account":["c"]}"#;
    const TO_OTHERS: &str = r#"{"GroupId":"others","Content":"c"}"#;

    #[test]
    fn a_rule_strikes_its_group_alone() {
        let mut faults =
            Faults(vec![FaultRule { group: Some("g".into()), ..InjectedFault::Reset.into() }]);
        assert_eq!(strike(&mut faults, TO_OTHERS), None);
        assert_eq!(strike(&mut faults, TO_C), Some(InjectedFault::Reset));
    }

    #[test]
    fn a_rule_can_strike_only_the_batch_with_a_recipient() {
        let mut faults =
            Faults(vec![FaultRule { matching: Some("b".into()), ..InjectedFault::Hang.into() }]);
        assert_eq!(strike(&mut faults, TO_C), None);
        assert_eq!(strike(&mut faults, TO_OTHERS), None);
        assert_eq!(strike(&mut faults, TO_A_AND_B), Some(InjectedFault::Hang));
    }

    #[test]
    fn a_rule_ends_after_its_calls_and_the_next_one_follows() {
        let twice = FaultRule { calls: Some(2), ..InjectedFault::NotJson.into() };
        let mut faults = Faults(vec![twice, InjectedFault::Redirect.into()]);
        let got: Vec<_> = (0..4).filter_map(|_| strike(&mut faults, TO_C)).collect();
        assert_eq!(
            got,
            [
                InjectedFault::NotJson,
                InjectedFault::NotJson,
                InjectedFault::Redirect,
                InjectedFault::Redirect
            ]
        );
        assert_eq!(faults.rules().len(), 1);
    }

    #[test]
    fn latencies_add_up_and_leave_the_answer_to_the_others() {
        let mut faults = Faults(vec![
            InjectedFault::LatencyMs(20).into(),
            InjectedFault::Reset.into(),
            InjectedFault::LatencyMs(5).into(),
        ]);
        let struck = faults.strike(Notification::read(TO_C.as_bytes()).ok().as_ref());
        assert_eq!(
            (struck.latency, struck.fault),
            (Duration::from_millis(25), Some(InjectedFault::Reset))
        );
    }

    #[test]
    fn only_an_app_wide_rule_strikes_a_call_that_would_be_refused() {
        let mut faults = Faults(vec![
            InjectedFault::Hang.into(),
            FaultRule { app_wide: true, ..InjectedFault::Reset.into() },
        ]);
        assert_eq!(faults.strike(None).fault, Some(InjectedFault::Reset));
    }

    #[test]
    fn rules_read_as_documented_and_refuse_misspelling() {
        let read = |rule: &str| serde_json::from_str::<FaultRule>(rule);
        let rule =
            read(r#"{"fault":{"error":{"code":10002}},"group":"g","calls":1,"after_effect":true}"#)
                .unwrap();
        assert_eq!(rule.fault, InjectedFault::Error { code: 10002, info: String::new() });
        for fault in [
            r#""reset""#,
            r#""hang""#,
            r#""not_json""#,
            r#""redirect""#,
            r#"{"http_status":502}"#,
            r#"{"latency_ms":9}"#,
        ] {
            assert!(read(&format!(r#"{{"fault":{fault}}}"#)).is_ok(), "{fault}");
        }
        assert!(read(r#"{"fault":"reset","groupe":"g"}"#).is_err());
        assert!(read(r#"{"fault":{"error":{"code":1,"inof":"x"}}}"#).is_err());
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        let mut faults = Faults::default();
        assert!(faults.add(InjectedFault::HttpStatus(99).into()).is_err());
        assert!(faults.add(FaultRule { calls: Some(0), ..InjectedFault::Hang.into() }).is_err());
        assert!(
            faults
                .add(FaultRule {
                    app_wide: true,
                    group: Some("g".into()),
                    ..InjectedFault::Hang.into()
                })
                .is_err()
        );
        assert!(faults.rules().is_empty());
    }
}

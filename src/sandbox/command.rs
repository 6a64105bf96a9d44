//! The two commands of the API that the sandbox plays, and the body of a call of either. Only this
//! module and `verdict` tell them apart.

use serde::Serialize;

use super::{
    incoming_message::IncomingMessage,
    notification::Notification,
    refusal::{ApiRefusal, BAD_COMMAND, BAD_URL, NO_SUCH_RESOURCE},
    settings::SandboxSettings,
};

pub const SERVICE: &str = "group_open_http_svc";

/// Each serializes as its name in the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxCommand {
    SendGroupSystemNotification,
    SendGroupMsg,
}

impl SandboxCommand {
    pub fn in_path(path: &str) -> Result<Self, ApiRefusal> {
        let rest = path.strip_prefix("/v4/").and_then(|rest| rest.split_once('/'));
        match rest {
            Some((SERVICE, "send_group_system_notification")) => {
                Ok(Self::SendGroupSystemNotification)
            }
            Some((SERVICE, "send_group_msg")) => Ok(Self::SendGroupMsg),
            Some((SERVICE, _)) => Err(ApiRefusal::new(BAD_COMMAND, "the command is not known")),
            Some(_) => Err(ApiRefusal::new(NO_SUCH_RESOURCE, "the service is not known")),
            None => Err(ApiRefusal::new(BAD_URL, "the path must be /v4/<service>/<command>")),
        }
    }
}

/// A well-formed body.
pub enum CallBody<'a> {
    Notification(Notification<'a>),
    Message(Box<IncomingMessage>),
}

impl<'a> CallBody<'a> {
    pub fn read(command: SandboxCommand, body: &'a [u8]) -> Result<Self, ApiRefusal> {
        match command {
            SandboxCommand::SendGroupSystemNotification => {
                Notification::read(body).map(Self::Notification)
            }
            SandboxCommand::SendGroupMsg => {
                IncomingMessage::read(body).map(|message| Self::Message(Box::new(message)))
            }
        }
    }

    pub fn command(&self) -> SandboxCommand {
        match self {
            Self::Notification(_) => SandboxCommand::SendGroupSystemNotification,
            Self::Message(_) => SandboxCommand::SendGroupMsg,
        }
    }

    /// The group, the recipients and the content, which both commands have.
    pub fn notification(&self) -> &Notification<'a> {
        match self {
            Self::Notification(notification) => notification,
            Self::Message(message) => &message.notification,
        }
    }

    pub fn check(&self, settings: &SandboxSettings) -> Result<(), ApiRefusal> {
        match self {
            Self::Notification(notification) => notification.check(settings.max_recipients),
            Self::Message(message) => message.check(&settings.messages),
        }
    }
}

/// One value for each command.
#[derive(Debug, Default)]
pub struct PerCommand<T> {
    notifications: T,
    messages: T,
}

impl<T> PerCommand<T> {
    pub fn of(&self, command: SandboxCommand) -> &T {
        match command {
            SandboxCommand::SendGroupSystemNotification => &self.notifications,
            SandboxCommand::SendGroupMsg => &self.messages,
        }
    }

    pub fn of_mut(&mut self, command: SandboxCommand) -> &mut T {
        match command {
            SandboxCommand::SendGroupSystemNotification => &mut self.notifications,
            SandboxCommand::SendGroupMsg => &mut self.messages,
        }
    }

    pub fn all(&self) -> [&T; 2] {
        [&self.notifications, &self.messages]
    }
}

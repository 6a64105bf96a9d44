//! How a command ends, both `groupcast run` and the commands that do one thing.

/// Why a command failed, in words for its user.
#[derive(Debug)]
pub struct Failure(pub String);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl Failure {
    pub fn with_causes(error: impl std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        Self(text)
    }
}

/// The finding of a command that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    Good,
    Bad,
}

//! Secrets: the text itself, or a file that holds it.

use std::io;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::error::Problem;
use super::file;
use super::written::{Given, Setting, Written};

/// What replaces a secret wherever a configuration is shown.
pub(super) const MASK: &str = "***";

/// A key has 64 characters and a URL a few hundred. A larger file is probably a device or a log,
/// named by mistake.
const LARGEST_FILE_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("the file `{}` cannot be read; check the path and its permissions", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the file `{}` cannot be read: {source}", .path.display())]
    Unanswered { path: PathBuf, source: io::Error },
    #[error("the file `{}` {says}", .path.display())]
    Unclean { path: PathBuf, says: &'static str },
    #[error("the file `{}` is empty; write the secret into it", .path.display())]
    Empty { path: PathBuf },
    #[error("the file `{}` is larger than 64 KiB, so it is no secret; check the \
        path", .path.display())]
    TooLarge { path: PathBuf },
}

/// Reads a secret, without the newline that editors and `echo` add at its end. Anything else that
/// an editor or a shell adds is refused, because it would make the key wrong. Blocks for a bounded
/// time.
pub fn read_secret_file(path: &Path) -> Result<SecretString, SecretFileError> {
    let read = file::read(path, LARGEST_FILE_BYTES);
    let path = path.to_owned();
    let text = match read.map(String::from_utf8) {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(_)) => {
            let says = "is not UTF-8 text (PowerShell's `>` writes UTF-16); write it anew: in \
                PowerShell `Set-Content -Encoding ascii FILE 'SECRET'`, on Linux `printf %s \
                'SECRET' > FILE`";
            return Err(SecretFileError::Unclean { path, says });
        }
        Err(error) => Err(error),
    };
    match text {
        Err(source) if source.kind() == io::ErrorKind::TimedOut => {
            Err(SecretFileError::Unanswered { path, source })
        }
        Err(source) if source.kind() == io::ErrorKind::FileTooLarge => {
            Err(SecretFileError::TooLarge { path })
        }
        Err(source) => Err(SecretFileError::Unreadable { path, source }),
        Ok(text) if text.trim().is_empty() => Err(SecretFileError::Empty { path }),
        Ok(text) => {
            let line = text.strip_suffix('\n').unwrap_or(&text);
            let line = line.strip_suffix('\r').unwrap_or(line);
            match find_stray_characters(line) {
                Some(says) => Err(SecretFileError::Unclean { path, says }),
                None => Ok(line.into()),
            }
        }
    }
}

/// What an editor or a shell has added to the secret. No key and no URL contains it.
fn find_stray_characters(secret: &str) -> Option<&'static str> {
    let is_quoted =
        |quote: char| secret.len() > 1 && secret.starts_with(quote) && secret.ends_with(quote);
    if secret.starts_with('\u{feff}') {
        Some(
            "begins with a byte-order mark, which is not part of the secret; save it without the \
                mark: in an editor as \"UTF-8 without BOM\", or in PowerShell with `Set-Content \
                -Encoding ascii FILE 'SECRET'`",
        )
    } else if is_quoted('"') || is_quoted('\'') {
        Some(
            "has its secret in quotes, which are no part of it; write the secret alone, without \
                quotes",
        )
    } else if secret.trim() != secret {
        Some("has blanks or empty lines around its secret; write the secret alone, in one line")
    } else if secret.chars().any(char::is_control) {
        Some(
            "has several lines or characters that are no text (is it UTF-16?); write the secret \
                alone, in one line",
        )
    } else {
        None
    }
}

impl Setting for SecretString {
    fn read(written: Written) -> Result<SecretString, String> {
        match written {
            Written::Text(text) if text.trim().is_empty() => Err("must not be empty".to_owned()),
            Written::Text(text) if text == MASK => Err(format!(
                "must be the secret itself; {MASK} is what `groupcast config` shows in its place"
            )),
            // `read_secret_file` has already checked the text of a file, with messages about the
            // file.
            Written::Text(text) if find_stray_characters(&text).is_some() => {
                Err("must be the secret alone: without quotes in a variable's value, blanks or \
                    line breaks"
                    .to_owned())
            }
            Written::Text(text) => Ok(text.into()),
            _ => Err("must be text in quotes".to_owned()),
        }
    }
}

/// Reads a secret from its own key, or from the file that its `…_file` key names.
pub(super) fn given_or_from_file<T: Setting>(
    key: &str,
    given: Option<Given<T>>,
    file: Option<&Path>,
) -> Result<Option<T>, Problem> {
    let file_key = format!("{key}_file");
    match (given, file) {
        (Some(_), Some(_)) => Err(Problem::wrong(
            &file_key,
            format!("is given together with {key}; keep one of them"),
        )),
        (given, None) => Ok(given.map(|given| given.0)),
        (None, Some(path)) => {
            let secret = read_secret_file(path).map_err(|error| file_problem(&file_key, error))?;
            T::read(Written::Text(secret.expose_secret().to_owned())).map(Some).map_err(|says| {
                Problem::wrong(&file_key, format!("names {}, whose text {says}", path.display()))
            })
        }
    }
}

fn file_problem(key: &str, error: SecretFileError) -> Problem {
    let says = format!("cannot be used: {error}");
    let source = match error {
        SecretFileError::Unreadable { source, .. } => Some(source),
        SecretFileError::Unanswered { .. }
        | SecretFileError::Unclean { .. }
        | SecretFileError::Empty { .. }
        | SecretFileError::TooLarge { .. } => None,
    };
    Problem::Wrong { key: key.to_owned(), says, source }
}

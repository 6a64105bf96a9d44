//! Finds the configuration: the file and the process environment. Apart from reading secret files,
//! this is the only I/O of loading.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::file;

/// If no file is given, the first of these that exists is read.
pub(super) const DEFAULT_FILES: [&str; 2] = ["groupcast.toml", "/etc/groupcast/groupcast.toml"];

/// The content of a configuration file. No `Debug`: the text may hold secrets.
pub struct ConfigFile {
    pub path: PathBuf,
    pub text: String,
}

/// A file that the user names must exist. The default files may be missing.
pub(super) fn chosen(given: Option<&Path>) -> Result<Option<ConfigFile>, ConfigError> {
    match given {
        Some(path) => read(path).map(Some).map_err(|source| unreadable(path, source)),
        None => first_of(&DEFAULT_FILES.map(Path::new)),
    }
}

fn first_of(candidates: &[&Path]) -> Result<Option<ConfigFile>, ConfigError> {
    for path in candidates {
        match read(path) {
            Ok(file) => return Ok(Some(file)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(unreadable(path, source)),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> io::Result<ConfigFile> {
    let bytes = file::read(path, file::LARGEST_BYTES)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))?;
    Ok(ConfigFile { path: path.to_owned(), text })
}

fn unreadable(path: &Path, source: io::Error) -> ConfigError {
    ConfigError::Unreadable { file: path.to_owned(), source }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub(super) fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_asked_for_must_exist() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("nowhere.toml");
        let error = chosen(Some(&missing)).err().expect("there is no such file").to_string();
        assert!(error.contains("nowhere.toml") && error.contains("--config"), "{error}");
    }

    #[test]
    fn the_first_default_file_that_exists_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("1.toml"), directory.path().join("2.toml"));
        assert!(first_of(&[&first, &second]).unwrap().is_none());
        fs::write(&second, "second").unwrap();
        assert_eq!(first_of(&[&first, &second]).unwrap().unwrap().text, "second");
        fs::write(&first, "first").unwrap();
        assert_eq!(first_of(&[&first, &second]).unwrap().unwrap().path, first);
    }

    #[test]
    fn a_default_file_that_cannot_be_read_is_not_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        assert!(first_of(&[directory.path()]).is_err());
    }
}

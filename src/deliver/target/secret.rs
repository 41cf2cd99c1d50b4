//! Secrets: a token or a header's value, read again when its file changes.
//!
//! Invariants, each with the test that holds it:
//! 1. A file that cannot be read keeps the last value, and is reported once: `a_file_that_is_gone_keeps_the_last`.
//! 2. What was a secret is not shown, the value before the last change included (the same test).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing::{info, warn};

use super::super::{Token, read_token};
use crate::error::Result;

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(i64, i64, u64, u64);

impl Stamp {
    /// None when there is no such file.
    pub fn of(file: &Path) -> Option<Stamp> {
        let data = std::fs::metadata(file).ok()?;
        Some(Stamp(data.mtime(), data.mtime_nsec(), data.size(), data.ino()))
    }
}

/// What a file holds, as it is parsed, and the last that could be read. Looked at before each use: a `stat`, no more.
pub(super) struct Watched<T> {
    held: Mutex<Held<T>>,
}

struct Held<T> {
    value: T,
    stamps: Vec<Option<Stamp>>,
    /// A person was told that it cannot be read.
    said: bool,
}

impl<T: Clone> Watched<T> {
    /// `read` reads it for the first time.
    pub fn new(files: &[&Path], read: impl FnOnce() -> Result<T>) -> Result<Watched<T>> {
        // before reading: a change in between is seen later
        let stamps = files.iter().map(|file| Stamp::of(file)).collect();
        Ok(Watched { held: Mutex::new(Held { value: read()?, stamps, said: false }) })
    }

    /// The value, read again if one of the files changed; `read` gets the last one.
    pub fn get(&self, files: &[&Path], read: impl FnOnce(&T) -> Result<T>) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps: Vec<_> = files.iter().map(|file| Stamp::of(file)).collect();
        if stamps != held.stamps {
            match read(&held.value) {
                Ok(value) => {
                    info!(?files, "read again, as it has changed");
                    *held = Held { value, stamps, said: false };
                }
                Err(e) if !held.said => {
                    let hint = e.hint_text().unwrap_or_default().to_owned();
                    warn!(why = %e, hint, "the last one that could be read is used on");
                    held.said = true;
                }
                Err(_) => {}
            }
        }
        held.value.clone()
    }

    /// The value as it was last used.
    pub fn last(&self) -> T {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).value.clone()
    }
}

/// A secret text.
pub(super) struct Secret {
    token: Token,
    /// And the one before it.
    text: Watched<(String, Option<String>)>,
}

impl Secret {
    pub fn new(token: &Token) -> Result<Secret> {
        let text = match token {
            Token::Text(text) => Watched::new(&[], || Ok((text.clone(), None)))?,
            Token::File(file) => Watched::new(&[file], || Ok((read_token(file)?, None)))?,
        };
        Ok(Secret { token: token.clone(), text })
    }

    pub fn get(&self) -> String {
        match &self.token {
            Token::Text(text) => text.clone(),
            Token::File(file) => {
                let read = |last: &(String, Option<String>)| Ok((usable(read_token(file)?)?, Some(last.0.clone())));
                self.text.get(&[file], read).0
            }
        }
    }

    /// The text with this secret blotted out.
    pub fn hide(&self, text: &str) -> String {
        let (now, before) = self.text.last();
        let hide = |text: String, secret: &str| match secret.is_empty() {
            true => text,
            false => text.replace(secret, "***"),
        };
        let text = hide(text.to_owned(), &now);
        before.into_iter().fold(text, |text, secret| hide(text, &secret))
    }
}

/// A secret goes into a header.
pub(super) fn usable(secret: String) -> Result<String> {
    if secret.is_empty() || http::HeaderValue::from_str(&secret).is_err() {
        return Err(crate::error::Error::usage(
            "the endpoint's token is empty or has characters that no header may have",
        )
        .hint("the file holds the secret and nothing else, on one line"));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_gone_keeps_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert!(Secret::new(&Token::File(file.clone())).is_err());
        std::fs::write(&file, "first\n").unwrap();
        let secret = Secret::new(&Token::File(file.clone())).unwrap();
        assert_eq!(secret.get(), "first");
        std::fs::remove_file(&file).unwrap();
        assert_eq!((secret.get(), secret.get()), ("first".into(), "first".into()));
        assert!(secret.text.held.lock().unwrap().said);
        std::fs::write(&file, "two\nlines").unwrap();
        assert_eq!(secret.get(), "first");
        std::fs::write(&file, "second").unwrap();
        assert_eq!(secret.get(), "second");
        assert!(!secret.text.held.lock().unwrap().said);
        assert_eq!(secret.hide("no first, no second"), "no ***, no ***");
    }
}

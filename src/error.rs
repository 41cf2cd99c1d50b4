//! One error type for the whole program: a kind (which decides the exit code), a message that says what and where, an
//! optional hint that says what to do, and the error underneath.
//!
//! Messages are lower-case, without a full stop, with the offending value in quotes. Log an error or return it, never both.

use std::error::Error as StdError;
use std::fmt;

/// What class of failure it was; the process exits with [`Kind::exit_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The work was understood and could not be done (corrupt video, wrong checksum, full disk).
    Failed,
    /// Bad arguments or configuration: nothing was started.
    Usage,
    /// An endpoint, a device or a runtime library is not there.
    Missing,
}

impl Kind {
    /// Exit codes of the command line: 1 failed, 2 bad usage or configuration, 3 an endpoint or device is missing.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Missing => 3,
        }
    }
}

/// An error as a person reads it. `Display` prints the message and the chain below it, separated by ": ".
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result with the program's own [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None, source: None }
    }
    /// Work that could not be done: exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }
    /// Bad arguments or configuration: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }
    /// Something that should be there is not: exit code 3.
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(Kind::Missing, message)
    }
    /// Says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// The error underneath.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
    /// Which class of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// What to do about it, if there is something.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut below: Option<&dyn StdError> = self.source.as_deref().map(|e| e as &dyn StdError);
        while let Some(e) = below {
            // libraries break their messages into lines; ours are one paragraph
            write!(f, ": {}", e.to_string().split_whitespace().collect::<Vec<_>>().join(" "))?;
            // our own errors print their chain themselves
            below = if e.is::<Error>() { None } else { e.source() };
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

/// Adds what was being done to somebody else's error.
pub trait Context<T> {
    /// Kind [`Kind::Failed`].
    fn failed<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T>;
    /// Kind [`Kind::Usage`].
    fn usage<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T>;
    /// Kind [`Kind::Missing`].
    fn missing<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn failed<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::failed(message()).because(e))
    }
    fn usage<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::usage(message()).because(e))
    }
    fn missing<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::missing(message()).because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_prints_the_whole_chain_once() {
        let io = std::io::Error::other("disk is\n\ton fire\n");
        let inner = Error::failed("cannot write \"a\"").because(io);
        let outer = Error::missing("cannot start").because(inner).hint("buy a disk");
        assert_eq!(outer.to_string(), "cannot start: cannot write \"a\": disk is on fire");
        assert_eq!(outer.kind().exit_code(), 3);
        assert_eq!(outer.hint_text(), Some("buy a disk"));
    }
}

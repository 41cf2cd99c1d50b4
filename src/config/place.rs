//! Where in line.toml something stands, and errors that say it.

use crate::error::Error;
use std::ops::Range;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Words a person may have meant are at most this many edits away.
const NEAR: usize = 3;

/// The text of a configuration file with its name.
pub(super) struct Text<'a> {
    pub file: &'a Path,
    pub text: &'a str,
}

/// A step on the way to a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// `line[1].camera.fps` for keys and indices.
pub(super) fn shown(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(k) if out.is_empty() => out.push_str(k),
            Step::Key(k) => out.push_str(&format!(".{k}")),
            Step::Index(i) => out.push_str(&format!("[{i}]")),
        }
    }
    out
}

impl Text<'_> {
    /// Line number, from 1, of a byte.
    fn line_of(&self, byte: usize) -> usize {
        self.text.bytes().take(byte).filter(|b| *b == b'\n').count() + 1
    }

    /// An error at a byte of the file.
    pub fn error_at(&self, byte: Option<usize>, path: &[Step], message: &str, hint: impl Into<String>) -> Error {
        let line = byte.map(|b| format!(" line {}", self.line_of(b))).unwrap_or_default();
        let key = if path.is_empty() { String::new() } else { format!(", key \"{}\"", shown(path)) };
        Error::usage(format!("\"{}\"{line}{key}: {message}", self.file.display())).hint(hint)
    }

    /// An error at a value; where the value was left out, at the table that should have it.
    pub fn error(&self, path: &[Step], message: &str, hint: impl Into<String>) -> Error {
        self.error_at(self.span(path).map(|r| r.start), path, message, hint)
    }

    fn span(&self, path: &[Step]) -> Option<Range<usize>> {
        let root = DeTable::parse(self.text).ok()?;
        let mut value = DeValue::Table(root.get_ref().clone());
        let mut found = None;
        for step in path {
            let next = match (&value, step) {
                (DeValue::Table(t), Step::Key(k)) => {
                    let Some((key, v)) = t.iter().find(|(key, _)| key.get_ref().as_ref() == k.as_str()) else {
                        return found;
                    };
                    // a table of tables has no value of its own to point at
                    found = Some(if v.get_ref().is_table() || v.get_ref().is_array() { v.span() } else { key.span() });
                    v.get_ref().clone()
                }
                (DeValue::Array(a), Step::Index(i)) => {
                    let v = a.get(*i)?;
                    found = Some(v.span());
                    v.get_ref().clone()
                }
                _ => return found,
            };
            value = next;
        }
        found
    }

    /// An error of the TOML reader, with the nearest known name where a name is unknown.
    pub fn syntax(&self, error: &toml::de::Error, path: &[Step]) -> Error {
        let message = error.message().replace('\n', ", ");
        let mut path = path.to_vec();
        let start = error.span().map(|s| s.start);
        if let Some(rest) = message.strip_prefix("unknown field ") {
            let mut names = rest.split('`').skip(1).step_by(2);
            let wrong = names.next().unwrap_or_default().to_owned();
            let known: Vec<&str> = names.collect();
            if path.last() != Some(&Step::Key(wrong.clone())) {
                path.push(Step::Key(wrong.clone()));
            }
            let hint = match nearest(&wrong, &known) {
                Some(near) => format!("did you mean \"{near}\"? accepted here: {}", known.join(", ")),
                None => format!("accepted here: {}", known.join(", ")),
            };
            return self.error_at(start, &path, "unknown key", hint);
        }
        if let Some(rest) = message.strip_prefix("unknown variant ") {
            let mut names = rest.split('`').skip(1).step_by(2);
            let wrong = names.next().unwrap_or_default().to_owned();
            let known: Vec<&str> = names.collect();
            let near = nearest(&wrong, &known).map(|n| format!("did you mean \"{n}\"? ")).unwrap_or_default();
            return self.error_at(
                start,
                &path,
                &format!("unknown value \"{wrong}\""),
                format!("{near}accepted: {}", known.join(", ")),
            );
        }
        if let Some(rest) = message.strip_prefix("missing field ") {
            let name = rest.split('`').nth(1).unwrap_or_default().to_owned();
            path.push(Step::Key(name.clone()));
            return self.error_at(
                start,
                &path,
                "this key is missing",
                format!("add {name} = ...; docs/3-run.md lists every key"),
            );
        }
        let hint = match message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: ")) {
            Some(_) => "docs/3-run.md says what each key takes".to_owned(),
            None => "the file is not valid TOML there: strings stand in quotes, tables as [name], lines as [[line]]"
                .to_owned(),
        };
        self.error_at(start, &path, &message, hint)
    }
}

/// The known name that was probably meant.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |k: &str| strsim::damerau_levenshtein(&wrong.to_lowercase(), k);
    known.iter().copied().filter(|k| distance(k) <= NEAR.min(wrong.len().max(k.len()) / 2)).min_by_key(|k| distance(k))
}

/// Steps of a path as serde_path_to_error has it.
pub(super) fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .filter_map(|s| match s {
            serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Step::Key(key.clone())),
            serde_path_to_error::Segment::Enum { variant } => Some(Step::Key(variant.clone())),
            serde_path_to_error::Segment::Unknown => None,
        })
        .collect()
}

//! What changed between two configurations, for people: keys with the values they had and have, never a secret.
//!
//! Invariants:
//! 1. No secret is in a value: logins and queries of addresses are left out, and keys whose names say that they hold one
//!    (test `secrets_are_left_out`).

use crate::capture::Source;
use crate::observe::audit::Change;
use std::collections::BTreeMap;
use toml::Value;

/// Line and key (`camera.fps`) with the value as it is shown and, for those that hide something, a sum of the whole.
pub(super) type Keys = BTreeMap<(Option<String>, String), Shown>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    text: String,
    /// The whole value, for comparison only.
    whole: u64,
}

/// All keys of a file that is known to be good.
pub(super) fn keys(text: &str) -> Keys {
    let mut out = Keys::new();
    let Ok(Value::Table(mut all)) = text.parse::<toml::Table>().map(Value::Table) else { return out };
    if let Some(Value::Array(lines)) = all.remove("line") {
        for line in lines {
            let name = line.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            put(&mut out, Some(&name), "", &line);
        }
    }
    put(&mut out, None, "", &Value::Table(all));
    out
}

fn put(out: &mut Keys, line: Option<&str>, key: &str, value: &Value) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                put(out, line, &key, value);
            }
        }
        value => {
            let whole = value.to_string();
            let shown = Shown { text: shown(line, key, value), whole: hash(&whole) };
            out.insert((line.map(str::to_owned), key.to_owned()), shown);
        }
    }
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A value without what must not be repeated.
fn shown(line: Option<&str>, key: &str, value: &Value) -> String {
    let last = key.rsplit('.').next().unwrap_or_default();
    let names_a_secret = ["password", "token", "secret", "passphrase", "login"].iter().any(|s| last.contains(s));
    // what is named is a place, not the secret
    if names_a_secret && !last.ends_with("_file") && !last.ends_with("_env") {
        return "***".into();
    }
    let Value::String(text) = value else { return value.to_string() };
    let source = (line.is_some() && key == "source") || text.contains("://");
    match source.then(|| Source::parse(text)) {
        // a path of it may be relative to the file: its name is all that is wanted
        Some(Ok(source)) => source.name(),
        Some(Err(_)) if text.contains("://") || text.starts_with("pipeline:") => "***".into(),
        _ => text.clone(),
    }
}

/// Keys that are other, new or gone.
pub(super) fn between(before: &Keys, after: &Keys) -> Vec<Change> {
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let change = |name: &(Option<String>, String)| {
        let (from, to) = (before.get(name), after.get(name));
        if from == to {
            return None;
        }
        let mut to_text = to.map(|s| s.text.clone());
        if from.map(|s| &s.text) == to_text.as_ref() {
            // the difference is in what is not shown
            to_text = to_text.map(|t| format!("{t} (another secret part)"));
        }
        Some(Change { line: name.0.clone(), key: name.1.clone(), from: from.map(|s| s.text.clone()), to: to_text })
    };
    names.into_iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(line: &str, key: &str, from: Option<&str>, to: Option<&str>) -> Change {
        let line = (!line.is_empty()).then(|| line.to_owned());
        Change { line, key: key.into(), from: from.map(str::to_owned), to: to.map(str::to_owned) }
    }

    #[test]
    fn what_is_other_new_or_gone_is_named() {
        let before =
            keys("site = \"a\"\n[[line]]\nname = \"x\"\nqueue = 4\n[line.camera]\nfps = 20.0\n[[line]]\nname = \"y\"");
        let after = keys("site = \"a\"\n[spool]\nretention_days = 3\n[[line]]\nname = \"x\"\nqueue = 5");
        assert_eq!(
            between(&before, &after),
            [
                change("", "spool.retention_days", None, Some("3")),
                change("x", "camera.fps", Some("20.0"), None),
                change("x", "queue", Some("4"), Some("5")),
                change("y", "name", Some("y"), None),
            ]
        );
        assert!(between(&after, &after).is_empty());
    }

    #[test]
    fn secrets_are_left_out() {
        let sources = [
            "rtsp://me:hidden@10.0.0.7/1?key=hidden",
            "pipeline:rtspsrc location=rtsp://a/b user-id=me user-pw=hidden ! decodebin",
            "https://a/b?token=hidden",
        ];
        for source in sources {
            let text = |s: &str| format!("[[line]]\nname = \"x\"\nsource = \"{s}\"\n");
            let other = source.replace("hidden", "other");
            let found = between(&keys(&text(source)), &keys(&text(&other)));
            assert_eq!(found.len(), 1, "{source}: a change of the secret alone is a change");
            let said = format!("{found:?}");
            assert!(!said.contains("hidden") && !said.contains("\"other"), "{said}");
        }
        let said = format!("{:?}", keys("[review]\ntoken = \"hidden\"\nurl = \"http://me:hidden@h/?a=hidden\"\n"));
        assert!(!said.contains("hidden"), "{said}");
        assert!(format!("{:?}", keys("[review]\ntoken_file = \"a.token\"")).contains("a.token"));
    }
}

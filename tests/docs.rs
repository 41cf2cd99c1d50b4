//! The documentation is true where a program can tell: links lead somewhere, paths exist, commands and flags are accepted.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders at the top whose paths, wherever they are written, must exist.
const TREES: [&str; 11] = [
    "assets/",
    "benches/",
    "crates/",
    "docs/",
    "examples/",
    "models/",
    "packaging/",
    "pipelines/",
    "scripts/",
    "src/",
    "tests/",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Markdown files of the project, relative to its root, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                // what is built or fetched is not ours
                if name != "target" && name != "node_modules" && !name.to_string_lossy().starts_with('.') {
                    walk(&path, out);
                }
            } else if path.extension().is_some_and(|e| e == "md") {
                out.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort();
    assert!(found.len() > 10, "documents are not found in {}", root().display());
    found
        .into_iter()
        .map(|p| (p.strip_prefix(root()).unwrap().to_owned(), std::fs::read_to_string(&p).unwrap()))
        .collect()
}

/// A document's lines in two kinds: code blocks (fenced, or indented after an empty line) and the rest.
struct Lines<'a> {
    code: Vec<(usize, &'a str)>,
    prose: Vec<(usize, &'a str)>,
}

fn lines(text: &str) -> Lines<'_> {
    let mut out = Lines { code: Vec::new(), prose: Vec::new() };
    let (mut fenced, mut indented, mut empty) = (false, false, true);
    for (n, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        indented = !fenced && line.starts_with("    ") && (indented || empty);
        empty = line.trim().is_empty();
        if fenced || indented { &mut out.code } else { &mut out.prose }.push((n, line));
    }
    assert!(!fenced, "a code block is not closed");
    out
}

/// Text between backticks.
fn inline_code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Targets of `[text](target)`.
fn links(line: &str) -> Vec<&str> {
    line.match_indices("](").filter_map(|(at, _)| line[at + 2..].split_once(')').map(|(target, _)| target)).collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::new();
    lines(text)
        .prose
        .iter()
        .filter_map(|(_, line)| line.strip_prefix('#').map(|l| l.trim_start_matches('#').trim()))
        .map(|heading| {
            let slug: String = heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            let n = seen.entry(slug.clone()).and_modify(|n| *n += 1).or_insert(0);
            if *n == 0 { slug } else { format!("{slug}-{n}") }
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in documents() {
        for (n, line) in lines(&text).prose {
            // a link's text may be code, its target is not
            for link in links(line) {
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => root().join(&path),
                    _ => root().join(&path).with_file_name("").join(file),
                };
                let found = match std::fs::read_to_string(&target) {
                    Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                    Err(_) => anchor.is_empty() && target.exists(),
                };
                if !found {
                    broken.push(format!("{}:{n}: {link}", path.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn paths_exist() {
    let mut missing = Vec::new();
    for (path, text) in documents() {
        for (n, line) in text.lines().enumerate() {
            for tree in TREES {
                for (at, _) in line.match_indices(tree) {
                    let before = line[..at].chars().next_back();
                    // part of a longer path, which is another one, or of a URL
                    if before.is_some_and(|c| c.is_alphanumeric() || "/._-$".contains(c)) {
                        continue;
                    }
                    let rest = &line[at..];
                    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c)));
                    let name = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
                    let pattern = rest[name.len()..].starts_with(['*', '<', '{']);
                    // links in a subfolder are relative to it: the test above has them
                    let linked = line[..at].ends_with("](") && root().join(&path).with_file_name(name).exists();
                    if !pattern && !linked && !root().join(name).exists() {
                        missing.push(format!("{}:{}: {name}", path.display(), n + 1));
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "paths that do not exist:\n{}", missing.join("\n"));
}

/// What `linesight <path> --help` says; `None` when there is no such command.
#[derive(Default)]
struct Help(RefCell<BTreeMap<Vec<String>, Option<String>>>);

impl Help {
    fn of(&self, path: &[String]) -> Option<String> {
        let ask = || {
            let out = Command::new(env!("CARGO_BIN_EXE_linesight")).args(path).arg("--help").output().unwrap();
            out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
        };
        self.0.borrow_mut().entry(path.to_vec()).or_insert_with(ask).clone()
    }

    /// Names under "Commands:".
    fn commands(&self, path: &[String]) -> Vec<String> {
        let Some(help) = self.of(path) else { return Vec::new() };
        let list = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
        list.filter(|l| l.starts_with("  ") && !l.starts_with("   "))
            .filter_map(|l| l.split_whitespace().next().map(str::to_owned))
            .collect()
    }

    fn flags(&self, path: &[String]) -> BTreeSet<String> {
        let help = self.of(path).unwrap_or_default();
        let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).map(|w| w.trim_end_matches('-'));
        words.filter(|w| w.starts_with("--") && w.len() > 2).map(str::to_owned).collect()
    }

    /// What is wrong with `linesight <words>`, if anything.
    fn check(&self, words: &[&str]) -> Result<(), String> {
        let mut path = Vec::new();
        let mut rest = words.iter().filter(|w| !w.is_empty());
        let mut flags = Vec::new();
        for word in rest.by_ref() {
            let commands = self.commands(&path);
            if word.starts_with('-') {
                flags.push(*word);
            } else if commands.is_empty() || !(path.is_empty() || flags.is_empty()) {
                break; // a value, also of a command that has commands and works without
            } else if commands.iter().any(|c| c == word) {
                path.push((*word).to_owned());
            } else {
                return Err(format!("\"{word}\" is no command of \"linesight {}\"", path.join(" ")));
            }
        }
        flags.extend(rest.filter(|w| w.starts_with('-')));
        let known = self.flags(&path);
        for flag in flags {
            let name = flag.split_once('=').map_or(flag, |(name, _)| name);
            let short = ["-v", "-vv", "-h", "-V"].contains(&name);
            if !short && !known.contains(name) {
                return Err(format!("\"linesight {}\" has no flag \"{name}\"", path.join(" ")));
            }
        }
        Ok(())
    }
}

/// The words after `linesight`, up to a comment, a pipe or a redirection, when the line runs it.
fn command(line: &str) -> Option<Vec<&str>> {
    let line = line.trim_start().strip_prefix("$ ").unwrap_or(line.trim_start());
    let mut words = line.split_whitespace().map(|w| w.trim_matches(['\'', '"']));
    let program = words.next()?;
    (program == "linesight" || program.ends_with("/linesight"))
        .then(|| words.take_while(|w| !w.starts_with(['#', '|', '>', '&', ';', '<']) && !w.starts_with("2>")).collect())
}

#[test]
fn commands_are_accepted() {
    let help = Help::default();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (path, text) in documents() {
        let split = lines(&text);
        let mut found: Vec<(usize, String)> = Vec::new();
        let mut continued = false;
        for (n, line) in &split.code {
            let text = line.trim_end_matches('\\');
            match found.last_mut().filter(|_| continued) {
                Some((_, whole)) => whole.push_str(text),
                None => found.push((*n, text.to_owned())),
            }
            continued = line.ends_with('\\');
        }
        for (n, line) in &split.prose {
            found.extend(inline_code(line).map(|code| (*n, code.to_owned())));
        }
        for (n, line) in &found {
            let Some(words) = command(line) else { continue };
            checked += 1;
            if let Err(e) = help.check(&words) {
                wrong.push(format!("{}:{n}: {e}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "commands that do not work:\n{}", wrong.join("\n"));
    assert!(checked > 20, "only {checked} commands were found");
}

/// Flags that stand alone in the pages for users are flags of some command.
#[test]
fn flags_exist() {
    let help = Help::default();
    let mut known = BTreeSet::new();
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        known.extend(help.flags(&path));
        for name in help.commands(&path).into_iter().filter(|c| c != "help") {
            open.push([path.clone(), vec![name]].concat());
        }
    }
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        let guide = path.parent() == Some(Path::new("docs")) && path != Path::new("docs/1-install.md");
        if !guide && path != Path::new("README.md") {
            continue;
        }
        for (n, line) in lines(&text).prose {
            for code in inline_code(line) {
                let flag = code.split([' ', '=']).next().unwrap_or_default();
                if flag.starts_with("--") && !known.contains(flag) {
                    wrong.push(format!("{}:{n}: {flag}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "flags that no command has:\n{}", wrong.join("\n"));
}

#[test]
fn the_checks_see_what_is_wrong() {
    let help = Help::default();
    for (line, error) in [
        ("linesight go --config line.toml", "\"go\" is no command of \"linesight \""),
        ("linesight teach --good a --colour", "\"linesight teach\" has no flag \"--colour\""),
        ("linesight model forget DIR", "\"forget\" is no command of \"linesight model\""),
        ("target/release/linesight inspect --modell m x", "\"linesight inspect\" has no flag \"--modell\""),
    ] {
        assert_eq!(help.check(&command(line).unwrap()), Err(error.to_owned()), "{line}");
    }
    for line in ["$ linesight -v teach --good=a --out b | head --lines 1", "linesight model show DIR --json # --x"] {
        assert_eq!(help.check(&command(line).unwrap()), Ok(()), "{line}");
    }
    assert_eq!(command("cd linesight"), None);
    assert_eq!(links("see [a](b.md#c) and [`d`](e)"), ["b.md#c", "e"]);
    assert!(anchors("# 1. Install\n## What `make setup` does\n").contains("what-make-setup-does"));
}

//! The journal under random puts, commits and damage.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::database::fresh;
use super::journal::{Journal, SLOT};
use super::tests::{row, sample};
use super::*;
use crate::event::Region;

const MANY: u64 = 1 << 40;

fn journal(path: &Path, slots: u32) -> Journal {
    let journal = Journal::open(path, "line", None, slots).unwrap();
    journal.arm(0, 0, MANY);
    journal
}

/// Puts part `n`; an anomaly with so many regions, or none.
fn put(journal: &Journal, n: u64, regions: Option<usize>) -> Result<(u64, LedgerRow, Option<Event>)> {
    let event = regions.map(|count| {
        let region = Region { x: 1, y: 2, w: 3, h: 4, score: 3.25, area_px: 9.0, share: 1.0, area_mm2: Some(0.5) };
        Event { regions: vec![region; count], ..sample(n).0 }
    });
    let row = row(n);
    let seq = journal.put(&mut journal.lock(), Uuid::nil(), Timestamp::now(), &row, event.as_ref())?;
    seq.map(|seq| (seq, row, event)).ok_or_else(|| journal.full())
}

#[test]
fn what_was_put_is_found() {
    let (_folder, path) = fresh();
    let journal = journal(&path, 64);
    let mut rows = vec![row(0), row(1)];
    (rows[0].score, rows[0].lot, rows[0].late_ms) = (f32::NAN, Some("\u{1e}LSJ\"\n".into()), Some(0.1));
    for row in &rows {
        journal.put(&mut journal.lock(), Uuid::max(), Timestamp::UNIX_EPOCH, row, None).unwrap();
    }
    let (_, _, event) = put(&journal, 2, Some(3)).unwrap();
    let found = Journal::read(&path, Some(journal.nonce())).unwrap();
    assert_eq!(found.nonce, Some(journal.nonce()));
    assert_eq!(found.entries.iter().map(|e| (e.seq, e.row.part)).collect::<Vec<_>>(), [(1, 0), (2, 1), (3, 2)]);
    assert!(found.entries[0].row.score.is_nan());
    assert_eq!(found.entries[0].row.lot, rows[0].lot);
    assert_eq!((found.entries[1].run, found.entries[1].at), (Uuid::max(), Timestamp::UNIX_EPOCH));
    assert_eq!(found.entries[1].row, rows[1]);
    assert_eq!(found.entries[2].event, event);
    // of another database
    assert!(Journal::read(&path, Some(1)).unwrap().entries.is_empty());
    assert!(Journal::read(&path, None).unwrap().entries.is_empty());
}

#[test]
fn it_refuses_when_it_is_full() {
    let (_folder, path) = fresh();
    let journal = journal(&path, 10);
    for n in 0..10 {
        put(&journal, n, None).unwrap();
    }
    let e = put(&journal, 10, None).unwrap_err();
    assert_eq!(e.to_string(), format!("the journal \"{}\" is full", path.display()));
    assert!(e.hint_text().unwrap().contains("database"));
    // room at the front
    journal.committed(4, 0);
    for n in 10..14 {
        put(&journal, n, None).unwrap();
    }
    put(&journal, 14, None).unwrap_err();
    let found = Journal::read(&path, Some(journal.nonce())).unwrap();
    assert_eq!(found.entries.iter().map(|e| e.row.part).collect::<Vec<_>>(), (4..14).collect::<Vec<_>>());
    assert_eq!(journal.next(), 14);
}

#[test]
fn numbers_that_are_not_reserved_are_refused() {
    let (_folder, path) = fresh();
    let journal = journal(&path, 10);
    journal.arm(0, 0, 5);
    put(&journal, 4, None).unwrap();
    let e = put(&journal, 5, None).unwrap_err();
    assert_eq!(e.to_string(), "part number 5 of line \"line\" is not reserved");
    journal.committed(0, 6);
    put(&journal, 5, None).unwrap();
}

#[test]
fn a_long_event_goes_without_its_regions() {
    let (_folder, path) = fresh();
    let journal = journal(&path, 64);
    put(&journal, 0, Some(1000)).unwrap();
    let found = Journal::read(&path, Some(journal.nonce())).unwrap();
    assert_eq!(found.entries[0].event.as_ref().unwrap().regions, []);
    assert_eq!(found.entries[0].row.reasons, ["more was said than the journal can hold"]);
    let mut long = row(1);
    long.lot = Some("x".repeat(100_000));
    let e = journal.put(&mut journal.lock(), Uuid::nil(), Timestamp::now(), &long, None).unwrap_err();
    assert_eq!(e.to_string(), "part 1 of line \"line\" is too long for the journal");
}

#[test]
fn a_foreign_journal_is_set_aside() {
    let (_folder, path) = fresh();
    put(&journal(&path, 8), 0, None).unwrap();
    let old = std::fs::read(&path).unwrap();
    let new = journal(&path, 8);
    assert_eq!(std::fs::read(path.with_extension("journal-old")).unwrap(), old);
    assert!(Journal::read(&path, Some(new.nonce())).unwrap().entries.is_empty());
}

#[test]
fn names_of_lines_become_names_of_files() {
    let database = Path::new("/d/s.db");
    let names: std::collections::BTreeSet<PathBuf> =
        ["a/b", "a-b", "..", "", "größe", &"x".repeat(300)].iter().map(|line| Journal::path(database, line)).collect();
    assert_eq!(names.len(), 6);
    for name in names {
        assert_eq!(name.parent().unwrap(), Path::new("/d"));
        assert!(name.file_name().unwrap().len() < 80);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Entries of one and of many slots, commits in between, then damage in some places: what is found was put like that,
    /// and what lies outside the damage and was not committed is found.
    #[test]
    fn torn_entries_stay_dead(
        puts in proptest::collection::vec((proptest::option::of(0usize..60), any::<bool>()), 1..60),
        damage in proptest::collection::vec((0usize..50 * SLOT, 1usize..600, any::<u8>()), 0..4),
        cut in proptest::option::of(0usize..50 * SLOT),
    ) {
        let (_folder, path) = fresh();
        let journal = journal(&path, 48);
        let mut put_all = std::collections::BTreeMap::new();
        let mut committed = 0;
        for (n, (regions, commit)) in puts.into_iter().enumerate() {
            match put(&journal, n as u64, regions) {
                Ok((seq, row, event)) => drop(put_all.insert(seq, (row, event))),
                Err(e) => prop_assert!(e.to_string().contains("is full")),
            }
            if commit {
                committed = put_all.last_key_value().map_or(0, |(seq, _)| *seq);
                journal.committed(committed, 0);
            }
        }
        let whole = Journal::read(&path, Some(journal.nonce())).unwrap();
        for seq in put_all.keys().filter(|seq| **seq > committed) {
            prop_assert!(whole.entries.iter().any(|e| e.seq == *seq), "{} is lost", seq);
        }
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len() as usize;
        for (at, length_of, byte) in &damage {
            let end = (at + length_of).min(length);
            if *at < end {
                file.write_all_at(&vec![*byte; end - at], *at as u64).unwrap();
            }
        }
        if let Some(cut) = cut {
            file.set_len(cut as u64).unwrap();
        }
        let found = Journal::read(&path, Some(journal.nonce())).unwrap();
        for entry in &found.entries {
            let (row, event) = &put_all[&entry.seq];
            prop_assert_eq!((&entry.row.part, &entry.event), (&row.part, event));
        }
        if damage.is_empty() && cut.is_none() {
            prop_assert_eq!(found.entries.len(), whole.entries.len());
        }
    }

    #[test]
    fn any_file_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..5000), head in any::<bool>()) {
        let (_folder, path) = fresh();
        let nonce = journal(&path, 8).nonce();
        let mut file = if head { std::fs::read(&path).unwrap()[..SLOT].to_vec() } else { Vec::new() };
        for piece in bytes.chunks(SLOT - 4) {
            file.extend([0x1e, b'L', b'S', b'J']);
            file.extend(piece);
        }
        std::fs::write(&path, file).unwrap();
        prop_assert!(Journal::read(&path, Some(nonce)).unwrap().entries.is_empty());
        let _ = Journal::open(&path, "line", head.then_some(nonce), 8);
    }
}

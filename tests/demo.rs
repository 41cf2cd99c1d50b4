//! `linesight demo` does what it shows, without a terminal.

#![allow(clippy::unwrap_used)]

mod support;

use support::*;

/// Without a terminal the demo ends by itself, and its summary's figures meet what is promised.
#[test]
fn the_demo_meets_its_promises() {
    let folder = folder();
    let run = linesight(["demo", "--json", "--port", "0", "--data", folder.path().to_str().unwrap()]);
    let s = run.json();
    let n = |v: &serde_json::Value| v.as_f64().unwrap_or_else(|| panic!("{s}"));
    assert_eq!((n(&s["parts"]), n(&s["frames"])), (60.0, truth("sample-run").frames as f64));
    let t = &s["truth"];
    assert!(n(&t["tp"]) >= 11.0 && n(&t["tp"]) + n(&t["fn"]) == 12.0, "{t}");
    assert!(n(&t["fp"]) <= 1.0 && n(&t["fp"]) + n(&t["tn"]) == 48.0, "{t}");
    assert_eq!(n(&s["anomalies"]), n(&t["tp"]) + n(&t["fp"]));
    assert_eq!((n(&s["delivered"]), n(&s["waiting"])), (n(&s["anomalies"]), 0.0), "uploads are the anomalies");
    assert!(n(&s["bytes_uploaded"]) > 0.0);
    assert!(n(&s["bandwidth_saved"]) >= 0.99 && n(&s["bandwidth_saved"]) < 1.0, "{s}");
    let encoded = n(&s["bandwidth_saved_encoded"]);
    assert!((0.0..1.0).contains(&encoded), "{s}");
    // what it keeps is what it says
    let spool = folder.path().join("spool.db");
    assert_eq!(count(&spool, "SELECT count(*) FROM ledger"), 60);
    assert_eq!(count(&spool, "SELECT count(*) FROM spool"), 0);
    assert_eq!(ledger_events(&spool).len() as f64, n(&s["anomalies"]));
    assert!(folder.path().join("sample-washer/model.toml").is_file() && folder.path().join("review").is_dir());
}

/// A folder that holds no recordings is named, and where they were looked for.
#[test]
fn a_folder_without_the_recordings_is_named() {
    let folder = folder();
    let run = linesight(["demo", "--port", "0", "--assets", folder.path().to_str().unwrap()]);
    run.fails(3, &["the sample recordings are not found in: "], "name the folder with --assets");
}

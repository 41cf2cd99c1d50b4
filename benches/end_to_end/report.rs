//! Tables and the file with the raw results.

use crate::{Case, Way};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

pub struct Report {
    command: String,
    /// Each with what was measured and how.
    results: Vec<Value>,
    whole: Vec<String>,
    several: Vec<String>,
    paced: Vec<String>,
    /// Tables of their own, with their headings.
    pub more: Vec<(String, Vec<String>)>,
}

/// Not a number where there is none.
pub fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or(f64::NAN)
}

fn row(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

impl Report {
    pub fn new(arguments: &[String]) -> Report {
        let given: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| *a != "--bench").collect();
        let command = format!("cargo bench --bench end_to_end -- {}", given.join(" "));
        let command = command.trim_end_matches([' ', '-']).to_owned();
        let (results, whole, several, paced, more) = Default::default();
        Report { command, results, whole, several, paced, more }
    }

    /// Keeps the raw result.
    pub fn keep(&mut self, what: &str, case: &Case, way: Option<&Way<'_>>, outcome: &Value) {
        let cores = way.and_then(|w| w.cores);
        self.results.push(json!({ "what": what, "case": case.name(), "cores": cores, "outcome": outcome }));
    }

    pub fn whole(&mut self, case: &Case, o: Value) {
        self.keep("whole", case, None, &o);
        let a = &o["allocations_per_frame"];
        let ms = ["decode", "prepare", "infer", "head", "end_to_end", "overhead"]
            .map(|k| number(&o, &format!("{k}_cpu_ms")));
        let mut cells =
            vec![case.size.name(), format!("{}, {}", case.trigger, case.registration), case.precision.to_owned()];
        cells.extend(ms.map(|v| format!("{v:.2}")));
        cells.push(format!("{:.0} %", number(&o, "efficiency") * 100.0));
        cells.push(format!("{:.0}", number(&o, "end_to_end_fps")));
        cells.push(format!("{:.2} / {:.0}", number(a, "frame_sized"), number(a, "small")));
        cells.push(format!("{:.0}", number(&o, "rss_mb")));
        self.whole.push(row(&cells));
        let lines = o["lines"].as_array().cloned().unwrap_or_default();
        if lines.len() > 1 {
            for l in lines {
                self.several.push(row(&[
                    case.size.name(),
                    case.trigger.to_owned(),
                    l["lines"].to_string(),
                    format!("{:.2}", number(&l, "end_to_end_cpu_ms")),
                    format!("{:.0}", number(&l, "end_to_end_fps")),
                    format!("{:.0}", number(&l, "rss_mb")),
                ]));
            }
        }
    }

    pub fn paced(&mut self, case: &Case, way: &Way<'_>, o: Value) {
        self.keep("real time", case, Some(way), &o);
        let cores = way.cores.map_or_else(|| o["machine"]["cores"].to_string(), |c| c.to_string());
        for l in o["lines"].as_array().into_iter().flatten() {
            let of = |v: &Value| format!("{:.1} / {:.1} / {:.1}", number(v, "p50"), number(v, "p99"), number(v, "max"));
            self.paced.push(row(&[
                cores.clone(),
                l["lines"].to_string(),
                l["dropped"].to_string(),
                of(&l["latency_ms"]),
                of(&l["stages_ms"]["infer"]),
                of(&o["infer_alone_ms"]),
                of(&l["behind_ms"]),
                format!("{:.2}", number(l, "end_to_end_cpu_ms")),
            ]));
        }
    }

    /// All tables, as Markdown.
    pub fn text(&self) -> String {
        let mut t = String::new();
        // writing to a String cannot fail
        let _ = writeln!(t, "\n{}\n\n    {}\n", self.machine(), self.command);
        let mut table = |head: &str, rows: &[String]| {
            if !rows.is_empty() {
                let columns = head.matches('|').count() - 1;
                let _ = writeln!(t, "{head}\n|{}\n{}\n", "---|".repeat(columns), rows.join("\n"));
            }
        };
        table(
            "| frames | trigger, registration | precision | decode | prepare | network | head | whole | overhead | efficiency | frames/s | allocations, large / small | MB |",
            &self.whole,
        );
        table("| frames | trigger | lines | CPU ms a frame | frames/s, all lines | MB |", &self.several);
        table(
            "| cores | lines | dropped | capture to verdict ms, p50 / p99 / max | network | network alone | behind the source | CPU ms a frame |",
            &self.paced,
        );
        for (head, rows) in &self.more {
            table(head, rows);
        }
        t
    }

    fn machine(&self) -> String {
        let Some(m) = self.results.first().map(|r| &r["outcome"]["machine"]) else { return String::new() };
        let text = |key: &str| m[key].as_str().unwrap_or_default().to_owned();
        let arithmetic: Vec<&str> =
            m["arithmetic"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        format!(
            "{}, {} cores ({}); {}, Linux {}; {}; OpenVINO {}; linesight {} ({})",
            text("cpu"),
            m["cores"],
            arithmetic.join(", "),
            text("system"),
            text("kernel"),
            text("gstreamer"),
            text("openvino"),
            text("linesight"),
            revision()
        )
    }

    pub fn save(&self, file: &Path) {
        let all = json!({ "command": self.command, "revision": revision(), "results": self.results });
        let text = serde_json::to_string_pretty(&all).expect("JSON");
        std::fs::write(file, text).expect("the results are written");
    }
}

/// What was built, as far as git knows.
fn revision() -> String {
    let git =
        Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    match git {
        Ok(o) if o.status.success() => String::from_utf8_lossy(&o.stdout).trim().to_owned(),
        _ => "unknown revision".to_owned(),
    }
}

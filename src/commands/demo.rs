//! `linesight demo`: teach, inspect and review the bundled sample, through the same parts that a line uses.

use super::inspect::{Summary, inspect};
use super::terminal::{Progress, stop_flag, wait_for};
use super::{print_json, print_text};
use crate::capture::Source;
use crate::deliver::{Config, Deliver, Endpoint, Target};
use crate::detect::{Device, Hint, Precision};
use crate::error::{Context, Error, Kind, Result};
use crate::judge::truth::Truth;
use crate::line::{self, Line};
use crate::model::{Method, Model, Trigger};
use crate::review;
use crate::teach::{self, Options, RegistrationChoice, Variant};
use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;
use uuid::Uuid;

const TEACH: &str = "sample-teach.mp4";
const RUN: &str = "sample-run.mp4";
const TRUTH: &str = "sample-run.truth.json";
/// How long the end waits for the embedded endpoint.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder with the sample recordings [default: assets/ of the project, or share/linesight/assets beside the program].
    #[arg(long, value_name = "DIR")]
    assets: Option<PathBuf>,
    /// Folder that keeps model, spool and review data [default: a temporary one].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Port of the review page on 127.0.0.1; another free one is taken when it is in use.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let stop = stop_flag()?;
    let assets = find_assets(a.assets)?;
    let temporary;
    let data = match a.data {
        Some(data) => {
            std::fs::create_dir_all(&data).failed(|| format!("folder \"{}\" cannot be made", data.display()))?;
            data
        }
        None => {
            temporary = tempfile::tempdir().failed(|| "no temporary folder")?;
            temporary.path().to_owned()
        }
    };
    let say = |text: &str| if a.json { Ok(()) } else { print_text(text) };
    let server = start_server(&data, a.port)?;
    say(&format!("review page: {}", server.url()))?;

    let progress = Progress::new();
    let options = Options {
        good: vec![Source::parse(&path_text(&assets.join(TEACH))?)?],
        name: "sample-washer".into(),
        trigger: Trigger::Presence,
        roi: None,
        mask: None,
        mm_per_pixel: None,
        registration: RegistrationChoice::Auto,
        method: Method::Auto,
        budget_ms: None,
        seed: 0,
        variant: Variant::Balanced,
        precision: Precision::default_for(&Device::default())?,
        device: Device::default(),
        allow_fallback: false,
        false_reject_rate: 0.005,
    };
    let (mut model, report) = teach::teach(&options, &|stage, done, of| progress.report(stage, done, of))?;
    let package = data.join("sample-washer");
    model.save(&package)?;
    progress.finish();
    say(&super::teach::text(&report, &package.display().to_string()))?;

    // read back: the demo inspects with what a line would load
    let model = Model::load(&package)?;
    let source = Source::parse(&path_text(&assets.join(RUN))?)?;
    let url = Url::parse(&server.url()).failed(|| "the review server's address")?;
    let deliver = Deliver::open(Config {
        database: data.join("spool.db"),
        run: Uuid::now_v7(),
        targets: vec![Target::review(Endpoint::new(url))],
        audit: None,
    })?;
    let mut backbone = line::arm(&model, &Device::default(), false, Hint::Throughput)?;
    let progress = Progress::new();
    let outcome = inspect(
        &Line {
            name: "demo",
            site: "demo",
            source: &source,
            realtime: false,
            model: &model,
            deliver: Some(&deliver),
            stop: &stop,
            service: None,
        },
        &mut backbone,
        None,
        &progress,
    );
    progress.finish();
    let drained = deliver.drain(PATIENCE);
    let totals = outcome?;
    let drained = drained?;
    let mut summary = Summary::new(&source, &model, &totals, Some(&drained));
    summary.truth = Some(Truth::load(&assets.join(TRUTH))?.compare(&totals.verdicts));
    if a.json {
        print_json(&summary)?
    } else {
        print_text(&summary.text())?
    }
    if drained.waiting > 0 {
        return Err(Error::failed(format!(
            "{} anomalies did not reach the review server: {}",
            drained.waiting,
            drained.last_error.unwrap_or_default()
        )));
    }
    if std::io::stdout().is_terminal() && !a.json {
        print_text(&format!("the rejected parts are at {} - Ctrl-C ends the demo", server.url()))?;
        wait_for(&stop);
    }
    server.stop();
    Ok(0)
}

/// The review server on the wanted port, or on any free one when that is in use.
fn start_server(data: &Path, port: u16) -> Result<review::Server> {
    let start = |port| {
        review::Server::start(review::Config::new(data.join("review"), SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    };
    match start(port) {
        Err(e) if e.kind() == Kind::Missing && port != 0 => {
            tracing::info!("port {port} is in use, another is taken");
            start(0)
        }
        other => other,
    }
}

fn path_text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::usage("the path of the sample is not valid UTF-8"))
}

/// The folder with the sample recordings.
fn find_assets(given: Option<PathBuf>) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    match given {
        Some(dir) => places.push(dir),
        None => {
            if let Ok(here) = std::env::current_dir() {
                places.push(here.join("assets"));
            }
            if let Some(exe) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
                places.push(exe.join("../share/linesight/assets"));
                // a build inside the project
                places.extend(exe.ancestors().skip(1).take(3).map(|p| p.join("assets")));
            }
        }
    }
    places.iter().find(|p| [TEACH, RUN, TRUTH].iter().all(|f| p.join(f).is_file())).cloned().ok_or_else(|| {
        let list = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        Error::missing(format!("the sample recordings are not found in: {list}"))
            .hint("run the demo in the project's folder, or name the folder with --assets")
    })
}

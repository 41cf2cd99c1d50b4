//! `linesight review`

use super::print_text;
use super::terminal::{stop_flag, wait_for};
use crate::error::Result;
use crate::review::store::Retention;
use crate::review::{Config, Server};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder that keeps anomalies and their pictures; made when it is not there.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Address to listen on; loopback only, as there are no accounts yet.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    retention: Retention,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let stop = stop_flag()?;
    let server = Server::start(Config { retention: a.retention, ..Config::new(a.data, a.listen) })?;
    print_text(&format!("review page: {} (Ctrl-C stops)", server.url()))?;
    wait_for(&stop);
    server.stop();
    Ok(0)
}

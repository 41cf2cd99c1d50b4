use crate::error::Result;
#[derive(clap::Args)]
pub struct Arguments {}
pub(super) fn run(_: Arguments) -> Result<u8> {
    Ok(0)
}

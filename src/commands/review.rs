//! `linesight review`

use super::terminal::{stop_flag, wait_for};
use super::{print_json, print_text};
use crate::error::{Context, Error, Result};
use crate::review::accounts::store::Outcome;
use crate::review::accounts::{Accounts, Actor, Role, Scope, admin, secret};
use crate::review::listen::Limits;
use crate::review::store::Retention;
use crate::review::store::backup::backup;
use crate::review::tls::TlsFiles;
use crate::review::{Config, Server, open_accounts};
use ipnet::IpNet;
use jiff::Timestamp;
use std::io::{BufRead, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use url::Url;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder that keeps anomalies and their pictures; made when it is not there.
    #[arg(long, value_name = "DIR", required = true)]
    data: Option<PathBuf>,
    /// Address to listen on. Anything but loopback wants accounts.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Want accounts on loopback too.
    #[arg(long)]
    accounts: bool,
    /// Speak TLS with this certificate and those that signed it (PEM); read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Believe the X-Forwarded-For, -Proto and -Host of a proxy at this address or network; may be repeated.
    #[arg(long, value_name = "ADDR", value_parser = network)]
    trusted_proxy: Vec<IpNet>,
    /// Address by which browsers know this server, such as https://review.plant.example; may be repeated.
    #[arg(long, value_name = "URL", value_parser = public_url)]
    public_url: Vec<Url>,
    /// Uploads a second that one sender may make in the long run; four times as many at once.
    #[arg(long, value_name = "N", default_value_t = Limits::default().upload_rate)]
    max_upload_rate: NonZeroU32,
    #[command(flatten)]
    retention: Retention,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Accounts of people, also while the server runs.
    #[command(subcommand)]
    User(User),
    /// API tokens of programs, also while the server runs.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Copy everything into a folder, also while the server runs; one that was interrupted goes on.
    Backup {
        #[command(flatten)]
        data: Data,
        /// The folder; made when it is not there, and never written over.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

#[derive(clap::Args)]
struct Data {
    /// Folder of the review server.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

#[derive(clap::Subcommand)]
enum User {
    /// Add an account; the password is asked for, or read from stdin. The first must be an admin.
    Add {
        name: String,
        /// viewer, reviewer or admin; the first account is an admin, others reviewers.
        #[arg(long, value_parser = role)]
        role: Option<Role>,
        #[command(flatten)]
        data: Data,
    },
    /// List the accounts as JSON.
    List {
        #[command(flatten)]
        data: Data,
    },
    /// Change what an account may do.
    SetRole {
        name: String,
        #[arg(value_parser = role)]
        role: Role,
        #[command(flatten)]
        data: Data,
    },
    /// Change a password, which is asked for or read from stdin, and end the account's sessions.
    SetPassword {
        name: String,
        #[command(flatten)]
        data: Data,
    },
    /// Remove an account and end its sessions.
    Remove {
        name: String,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(clap::Subcommand)]
enum TokenCommand {
    /// Make a token and print it, this once.
    Add {
        name: String,
        /// upload, read or admin.
        #[arg(long, value_parser = scope, default_value = "upload")]
        scope: Scope,
        /// Days it holds; without: until it is revoked.
        #[arg(long)]
        days: Option<u32>,
        #[command(flatten)]
        data: Data,
    },
    /// List the tokens as JSON, without their secrets.
    List {
        #[command(flatten)]
        data: Data,
    },
    /// Revoke a token for good.
    Revoke {
        name: String,
        #[command(flatten)]
        data: Data,
    },
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| "it must be an address or a network such as 10.0.0.0/24".into())
}

fn public_url(text: &str) -> Result<Url, String> {
    match text.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.query().is_none() => Ok(url),
        _ => Err("it must be an http or https URL without a path, such as https://review.plant.example".into()),
    }
}

fn role(text: &str) -> Result<Role, String> {
    Role::from_word(text).ok_or_else(|| "it must be viewer, reviewer or admin".into())
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::from_word(text).ok_or_else(|| "it must be upload, read or admin".into())
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    match a.command {
        Some(Command::User(command)) => user(command)?,
        Some(Command::Token(command)) => token(command)?,
        Some(Command::Backup { data, to }) => print_json(&backup(&data.data, &to)?)?,
        None => serve(a)?,
    }
    Ok(0)
}

fn serve(a: Arguments) -> Result<()> {
    let stop = stop_flag()?;
    let Some(data) = a.data else { return Err(Error::usage("--data DIR is missing")) };
    let upload_burst = a.max_upload_rate.saturating_mul(NonZeroU32::MIN.saturating_add(3));
    let config = Config {
        tls: a.tls_cert.zip(a.tls_key).map(|(cert, key)| TlsFiles { cert, key }),
        trusted_proxies: a.trusted_proxy,
        public_urls: a.public_url,
        accounts: a.accounts,
        limits: Limits { upload_rate: a.max_upload_rate, upload_burst, ..Limits::default() },
        retention: a.retention,
        ..Config::new(data, a.listen)
    };
    let server = Server::start(config)?;
    if let Some(link) = server.welcome() {
        print_text(&format!("make the first account: {link}"))?;
    }
    print_text(&format!("review page: {} (Ctrl-C stops)", server.url()))?;
    wait_for(&stop);
    server.stop();
    Ok(())
}

/// A password from the keyboard, twice and unseen, or the first line of stdin.
fn password(name: &str) -> Result<String> {
    let cannot = || "no password could be read";
    let password = if std::io::stdin().is_terminal() {
        let password = rpassword::prompt_password(format!("new password of {name}: ")).failed(cannot)?;
        if rpassword::prompt_password("the same again: ").failed(cannot)? != password {
            return Err(Error::usage("the two passwords differ"));
        }
        password
    } else {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).failed(cannot)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    secret::check_password(name, &password)?;
    secret::hash(&password)
}

fn done(outcome: Outcome, name: &str, said: &str) -> Result<()> {
    match outcome {
        Outcome::Done => print_text(said),
        Outcome::Unknown => Err(Error::usage(format!("there is no \"{name}\""))),
        Outcome::Taken => Err(Error::usage(format!("the name \"{name}\" is in use, or was"))),
        Outcome::LastAdmin => Err(Error::usage("there must be an admin: the first account is one, the last stays one")
            .hint("give another account the role first: linesight review user set-role NAME admin")),
        Outcome::Full => Err(Error::usage("there are too many already")),
    }
}

/// The accounts of a folder that is there; only adding makes one.
fn existing(data: &Path) -> Result<impl Accounts> {
    if !data.is_dir() {
        return Err(Error::missing(format!("there is no folder \"{}\"", data.display()))
            .hint("give --data the folder of the review server"));
    }
    open_accounts(data)
}

fn user(command: User) -> Result<()> {
    let by = Actor::command_line();
    match command {
        User::Add { name, role, data } => {
            secret::check_name(&name)?;
            let accounts = open_accounts(&data.data)?;
            let role = match role {
                Some(role) => role,
                None if accounts.any()? => Role::Reviewer,
                None => Role::Admin,
            };
            let password = password(&name)?;
            done(accounts.add(&by, &name, role, &password)?, &name, &format!("{name} is {}", role.as_str()))
        }
        User::List { data } => print_json(&existing(&data.data)?.accounts()?),
        User::SetRole { name, role, data } => {
            let outcome = existing(&data.data)?.set_role(&by, &name, role)?;
            done(outcome, &name, &format!("{name} is {}", role.as_str()))
        }
        User::SetPassword { name, data } => {
            let accounts = existing(&data.data)?;
            if accounts.password(&name)?.is_none() {
                return done(Outcome::Unknown, &name, "");
            }
            let password = password(&name)?;
            done(accounts.set_password(&by, &name, &password, None)?, &name, "changed; its sessions are ended")
        }
        User::Remove { name, data } => {
            done(existing(&data.data)?.remove(&by, &name)?, &name, &format!("{name} is removed"))
        }
    }
}

fn token(command: TokenCommand) -> Result<()> {
    let by = Actor::command_line();
    match command {
        TokenCommand::Add { name, scope, days, data } => {
            secret::check_name(&name)?;
            let until: Option<Timestamp> = admin::ends(days)?;
            let token = format!("{}{}", secret::TOKEN_PREFIX, secret::token()?);
            let outcome = existing(&data.data)?.add_token(&by, &name, scope, &secret::digest(&token), until)?;
            done(outcome, &name, &token)
        }
        TokenCommand::List { data } => print_json(&existing(&data.data)?.tokens()?),
        TokenCommand::Revoke { name, data } => {
            done(existing(&data.data)?.revoke_token(&by, &name)?, &name, &format!("{name} is revoked"))
        }
    }
}

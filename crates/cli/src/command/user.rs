//! `user`: who may sign in to the server with a password. Works beside a running server, and without one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use pgark_server::access::Role;
use pgark_server::state::users::{PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, UserRecord};

use super::Outcome;
use super::context::Context;
use super::serve::{StateArgs, state_failure};
use super::token::merge;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, Align, Table};
use crate::prompt;
use crate::secret::{Secret, SecretSource};
use crate::settings::validate::{NAME_RULE, is_name};

#[derive(Debug, Args)]
pub struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Let somebody sign in. With -c for one cluster, without for all
    Add(AddArgs),
    /// All users, without their passwords
    List(StateArgs),
    /// Let somebody sign in no longer, and end the sessions that there are
    Remove(OneArgs),
    /// Give another password, and end the sessions that there are
    Passwd(PasswdArgs),
}

#[derive(Debug, Args)]
struct AddArgs {
    /// The name to sign in with
    #[arg(value_name = "NAME")]
    name: String,
    /// viewer, operator, recovery-operator, app-admin or admin
    #[arg(long, value_name = "ROLE")]
    role: Role,
    #[command(flatten)]
    password: PasswordArgs,
    #[command(flatten)]
    dir: StateArgs,
}

#[derive(Debug, Args)]
struct OneArgs {
    /// The name to sign in with
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    dir: StateArgs,
}

#[derive(Debug, Args)]
struct PasswdArgs {
    /// The name to sign in with
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    password: PasswordArgs,
    #[command(flatten)]
    dir: StateArgs,
}

#[derive(Debug, Args)]
struct PasswordArgs {
    /// File with the password, which only its owner can read; it is asked for when this is left out
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl PasswordArgs {
    fn read(&self) -> Result<Secret, Failure> {
        let secret = match &self.password_file {
            Some(path) => SecretSource::File(path.clone()).read()?,
            None if prompt::possible() => Some(prompt::new_secret("password")?),
            None => None,
        };
        let nothing = || {
            Failure::usage("E-USER-PASSWORD", "nothing says what the password is")
                .hint("give --password-file, or run this on a terminal")
        };
        let secret = secret.ok_or_else(nothing)?;
        let bytes = secret.expose().len();
        // What is typed into a page has no line break, and is text.
        let is_text = secret.expose_str().is_some_and(|text| !text.chars().any(char::is_control));
        if !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&bytes) || !is_text {
            let message =
                format!("a password has {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} bytes, on one line of text");
            return Err(Failure::usage("E-USER-PASSWORD", message));
        }
        Ok(secret)
    }
}

pub fn run(args: &UserArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let now = Timestamp::now();
    let settings = &context.settings;
    match &args.command {
        UserCommand::Add(args) => {
            if !is_name(&args.name) {
                return Err(Failure::usage("E-USER-NAME", "this cannot be the name of a user").hint(NAME_RULE));
            }
            // Only a cluster that was named: a variable of the environment is no reason to let somebody in for one alone.
            if global.cluster.is_some() {
                context.cluster_settings()?;
            }
            let (password, cluster) = (args.password.read()?, global.cluster.as_deref());
            let state = args.dir.open(settings)?;
            let added = state.add_user(&args.name, args.role, cluster, password.expose(), now);
            told(global, &added.map_err(state_failure)?, "can sign in")?;
        }
        UserCommand::List(dir) => {
            let users = dir.open_existing(settings)?.users().map_err(state_failure)?;
            let document = serde_json::json!({"schema": SCHEMA, "users": users});
            output::result(global.form(), &document, || table(&users))?;
        }
        UserCommand::Remove(args) => {
            let removed = args.dir.open_existing(settings)?.remove_user(&args.name);
            told(global, &removed.map_err(state_failure)?, "is removed, and signed out")?;
        }
        UserCommand::Passwd(args) => {
            let state = args.dir.open_existing(settings)?;
            state.user(&args.name).map_err(state_failure)?;
            let changed = state.change_password(&args.name, args.password.read()?.expose(), now);
            told(global, &changed.map_err(state_failure)?, "has another password, and is signed out")?;
        }
    }
    Ok(Exit::Done)
}

fn told(global: &GlobalArgs, user: &UserRecord, what: &str) -> Result<(), Failure> {
    let mut document = serde_json::json!({"schema": SCHEMA});
    merge(&mut document, user)?;
    output::result(global.form(), &document, || format!("{} {what}\n", user.name))
}

fn table(users: &[UserRecord]) -> String {
    let titles = ["name", "role", "cluster", "created", "password of", "last signed in"].map(|t| (t, Align::Left));
    let mut table = Table::new(&titles);
    for user in users {
        let used = user.last_used.map(output::timestamp).unwrap_or_else(|| "never".into());
        let cluster = user.cluster.clone().unwrap_or_else(|| "all".into());
        let (created, changed) = (output::timestamp(user.created), output::timestamp(user.changed));
        table.row([user.name.as_str(), user.role.word(), &cluster, &created, &changed, &used]);
    }
    table.to_text()
}

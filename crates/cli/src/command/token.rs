//! `token`: who may ask the server for what. Works beside a running server, and without one.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use pgark_server::access::{Role, TokenRecord};

use super::Outcome;
use super::context::Context;
use super::serve::{StateArgs, state_failure};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, Align, Table};
use crate::settings::units::Span;
use crate::settings::validate::is_name;

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token; it is printed once. With -c for one cluster, without for all
    Create(CreateArgs),
    /// All tokens, without themselves
    List(StateArgs),
    /// Take a token back, for good
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// viewer, operator, recovery-operator, app-admin or admin
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// Whose it is, for lists and logs
    #[arg(long, value_name = "NAME")]
    name: String,
    /// For how long it is valid, such as 90d; for ever when left out
    #[arg(long, value_name = "TIME")]
    expires: Option<Span>,
    #[command(flatten)]
    dir: StateArgs,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// Its id, as 'token list' has it
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    dir: StateArgs,
}

pub fn run(args: &TokenArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let now = Timestamp::now();
    match &args.command {
        TokenCommand::Create(args) => {
            if !is_name(&args.name) {
                return Err(Failure::usage("E-TOKEN-NAME", "this cannot be the name of a token")
                    .hint(crate::settings::validate::NAME_RULE));
            }
            let expires = args.expires.map(|span| now.checked_add(span.0)).transpose();
            let expires = expires.map_err(|_| Failure::usage("E-TOKEN-EXPIRES", "that is too far away"))?;
            // Only a cluster that was named: a variable of the environment is no reason to make a token for one alone.
            if global.cluster.is_some() {
                context.cluster_settings()?;
            }
            let state = args.dir.open(&context.settings)?;
            let made = state.create_token(&args.name, args.role, global.cluster.as_deref(), expires, now);
            let (token, record) = made.map_err(state_failure)?;
            let mut document = serde_json::json!({"schema": SCHEMA, "token": token.expose()});
            merge(&mut document, &record)?;
            output::result(global.form(), &document, || format!("{}\n", token.expose()))?;
        }
        TokenCommand::List(dir) => {
            let tokens = dir.open_existing(&context.settings)?.tokens().map_err(state_failure)?;
            let document = serde_json::json!({"schema": SCHEMA, "tokens": tokens});
            output::result(global.form(), &document, || table(&tokens, now))?;
        }
        TokenCommand::Revoke(args) => {
            let state = args.dir.open_existing(&context.settings)?;
            let record = state.revoke_token(&args.id, now).map_err(state_failure)?;
            let mut document = serde_json::json!({"schema": SCHEMA});
            merge(&mut document, &record)?;
            output::result(global.form(), &document, || format!("{} ({}) is revoked\n", record.id, record.name))?;
        }
    }
    Ok(Exit::Done)
}

pub fn merge(document: &mut serde_json::Value, record: &impl serde::Serialize) -> Result<(), Failure> {
    let record = serde_json::to_value(record).map_err(|e| Failure::failed("E-INTERNAL", e.to_string()))?;
    if let (Some(document), serde_json::Value::Object(record)) = (document.as_object_mut(), record) {
        document.extend(record);
    }
    Ok(())
}

fn table(tokens: &[TokenRecord], now: Timestamp) -> String {
    let titles = ["id", "name", "role", "clusters", "expires", "last used", "state"].map(|title| (title, Align::Left));
    let mut table = Table::new(&titles);
    for token in tokens {
        let at = |t: Option<Timestamp>| t.map(output::timestamp).unwrap_or_else(|| "never".into());
        let state = match (token.revoked, token.is_valid(now)) {
            (Some(_), _) => "revoked",
            (None, true) => "valid",
            (None, false) => "expired",
        };
        let clusters = token.clusters.as_ref().map_or_else(|| "all".into(), |all| all.join(", "));
        let cells: [&str; 7] =
            [&token.id, &token.name, token.role.word(), &clusters, &at(token.expires), &at(token.last_used), state];
        table.row(cells);
    }
    table.to_text()
}

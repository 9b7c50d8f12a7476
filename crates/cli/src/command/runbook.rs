//! `runbook`: the written procedure, made of the configuration.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use pgark_dr::recover::forecast::{self, Expected};
use pgark_dr::runbook::{self, ContactFacts, Facts, RecoverFacts, RepoFacts};

use super::Outcome;
use super::context::Context;
use super::recover::{self as recovering, Ground};
use super::truth::write_new;
use super::{recover_logical, recover_physical};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, human_duration, timestamp};
use crate::secret::SecretSource;
use crate::settings::schema::Kind;

#[derive(Debug, Args)]
pub struct RunbookArgs {
    #[command(subcommand)]
    command: RunbookCommand,
}

#[derive(Debug, Subcommand)]
enum RunbookCommand {
    /// Print the procedure for corruption, accidental deletion, loss of everything and ransomware
    Render(RenderArgs),
}

#[derive(Debug, Args)]
struct RenderArgs {
    #[arg(long, value_name = "FORMAT", default_value = "md")]
    format: FormatArg,
    /// Write it into this file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Md,
    Html,
}

pub fn run(args: &RunbookArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let RunbookCommand::Render(args) = &args.command;
    let context = Context::new(global)?;
    let (facts, unmeasured) = facts(&context)?;
    let document = runbook::document(&facts);
    let text = match args.format {
        FormatArg::Md => runbook::to_markdown(&document),
        FormatArg::Html => runbook::to_html(&document),
    };
    match &args.to {
        Some(path) => write_new(path, &text)?,
        None => output::result(global.form(), &document, || text)?,
    }
    // The procedure is whole without it; how long it takes is not in it.
    if let Some(why) = unmeasured {
        output::warning(&format!("how long it takes is not told: {why}"));
        return Ok(Exit::Warnings);
    }
    Ok(Exit::Done)
}

/// What the configuration says; and why nothing measured is in it, when the repository could not be read.
fn facts(context: &Context) -> Result<(Facts, Option<String>), Failure> {
    let cluster = context.cluster_settings()?;
    let recover = cluster.recover.as_ref();
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
    let repos = context.settings.selected_repos()?;
    let (guided, unmeasured) = match recover.filter(|r| matches!(r.kind, Kind::Logical | Kind::Physical)) {
        Some(_) => {
            let (facts, why) = guided(context)?;
            (Some(facts), why)
        }
        None => (None, None),
    };
    let text = |c: &crate::settings::recover::Contact| ContactFacts {
        name: c.name.clone(),
        role: c.role.clone(),
        phone: c.phone.clone(),
        email: c.email.clone(),
    };
    let facts = Facts {
        cluster: cluster.name.clone(),
        config: context.settings.texts.paths().map(absolute).collect(),
        made: timestamp(context.ctx.now()),
        program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
        rpo: cluster.rpo.map(human_duration),
        rto: cluster.rto.map(human_duration),
        repos: repos.iter().map(repo).collect(),
        contacts: recover.iter().flat_map(|r| &r.contacts).map(text).collect(),
        operators: recover.map(|r| r.operators.clone()).unwrap_or_default(),
        checks: cluster.checks.iter().map(|c| c.name.clone()).collect(),
        pgdata: cluster.pgdata.as_ref().map(absolute),
        dumps: cluster.logical.as_ref().map(|l| l.databases.clone()),
        system: cluster.system.is_some(),
        recover: guided,
    };
    Ok((facts, unmeasured))
}

fn repo(settings: &crate::settings::RepoSettings) -> RepoFacts {
    let opened_with = match &settings.passphrase {
        SecretSource::File(path) => format!("the passphrase in {}", path.display()),
        SecretSource::Command(argv) => {
            format!("a passphrase that {} gives", argv.first().map_or("a command", String::as_str))
        }
        SecretSource::None => "no passphrase is configured".into(),
        SecretSource::Inline(_) | SecretSource::Environment { .. } => "a passphrase of the configuration".into(),
    };
    RepoFacts {
        name: settings.name.clone(),
        url: settings.url.to_string(),
        opened_with,
        locked: settings.protection.lock.is_some(),
        append_only: settings.protection.append_only,
    }
}

/// The steps of a recovery as they would be now; with what was measured, where the repository can be read.
fn guided(context: &Context) -> Result<(RecoverFacts, Option<String>), Failure> {
    let settings = recovering::settings(context)?;
    let physical = settings.kind == Kind::Physical;
    let made = |steps: Vec<Expected>, service: Option<String>| -> Result<RecoverFacts, Failure> {
        let place = physical.then(|| recover_physical::place(context, &settings)).transpose()?;
        Ok(RecoverFacts {
            database: (!physical).then(|| recover_logical::database(context, &settings)).transpose()?,
            place: place.map(|p| p.display().to_string()),
            in_place: settings.in_place,
            fenced: settings.in_place || settings.fence.is_some(),
            repoints: !settings.repoint.is_empty(),
            service,
            report_dir: recovering::report_dir(&settings)?.display().to_string(),
            steps,
        })
    };
    let ground = match Ground::open(context, &settings) {
        Ok(ground) => ground,
        Err(failure) => {
            let dir = recovering::report_dir(&settings)?;
            let service = settings.service.as_ref().and_then(|s| s.service(&dir, "").ok()).map(|s| s.kind.to_string());
            return Ok((made(vec![], service)?, Some(format!("{}: {}", failure.code, failure.message))));
        }
    };
    let recovery = recovering::as_configured(&ground)?;
    let opening = &recovery.opening;
    let history = forecast::history(&recovery.repo, &recovery.cluster, &opening.kind, &context.ctx);
    let (history, why) = match history {
        Ok(history) => (history, None),
        Err(e) => (forecast::History::default(), Some(format!("{}: {e}", e.code()))),
    };
    let service = recovery.service.as_ref().map(|s| s.kind.to_string());
    Ok((made(history.expect(&opening.steps, None), service)?, why))
}

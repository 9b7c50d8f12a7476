//! `alert`: what people were told of, and have still to be told.

use std::time::Duration;

use clap::{Args, Subcommand};
use pgark_dr::alert::rules::{self, Evaluated, Facts, Limits};
use pgark_dr::alert::{Alert, AlertError, Book, Delivered, Which, ping};
use pgark_dr::trail;
use pgark_engine::info;

use super::Outcome;
use super::check as checking;
use super::context::{Context, engine_failure, left_out};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::notices;
use crate::output::{self, Align, Table, timestamp};
use crate::settings::alerts::AlertSettings;

#[derive(Debug, Args)]
pub struct AlertArgs {
    #[command(subcommand)]
    command: AlertCommand,
}

#[derive(Debug, Subcommand)]
enum AlertCommand {
    /// What is open, and of what somebody has still to be told
    List(ListArgs),
    /// Look at the repositories and the cluster, raise and resolve what is found, tell people; for cron
    Run(RunArgs),
    /// Tell people what waits, and look at nothing
    Send(SendArgs),
    /// Tell a sink, or all of them, that this is a test
    Test(TestArgs),
    /// Say that you look after it: nobody else is told, nobody is reminded
    Ack(AckArgs),
    /// Say that it is over, where nothing can find that out by itself
    Close(AckArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Also those that are over, the newest so many
    #[arg(long, value_name = "N", default_value_t = 0)]
    history: usize,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Look at the repositories alone, not at the server
    #[arg(long)]
    no_check: bool,
}

#[derive(Debug, Args)]
struct SendArgs {
    /// Also what is to wait before it is tried again
    #[arg(long)]
    now: bool,
}

#[derive(Debug, Args)]
struct TestArgs {
    sink: Option<String>,
}

#[derive(Debug, Args)]
struct AckArgs {
    /// Its id, as 'alert list' shows it
    id: String,
}

/// Telling people is all that this command does.
const BUDGET: Duration = Duration::from_secs(300);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

pub fn run(args: &AlertArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?.admitting_writers();
    context.stop_on_signals()?;
    let book = Book::at(&state_dir(&context)?);
    let alerts = &context.settings.alerts;
    match &args.command {
        AlertCommand::List(args) => list(args, global, &book),
        AlertCommand::Run(args) => look(args, global, &context, &book),
        AlertCommand::Send(args) => {
            need_sinks(alerts)?;
            let which = if args.now { Which::All } else { Which::Due };
            told(global, book.deliver(&alerts.routing, which, BUDGET), &[])
        }
        AlertCommand::Test(args) => test(args, global, &context, &book),
        AlertCommand::Ack(args) => acknowledge(args, global, &context, &book),
        AlertCommand::Close(args) => {
            let alert = open_one(&args.id, global, &context, &book)?;
            book.resolve(&alert.finding.key, context.ctx.now()).map_err(failure)?;
            context.trail().about("alert", &alert.id);
            tell_soon(&book, alerts)?;
            output::result(global.form(), &line(&alert), || format!("{} is over\n", alert.id))?;
            Ok(Exit::Done)
        }
    }
}

impl AlertArgs {
    /// Whether somebody says something of an alert, which is written down with who it was.
    pub fn is_said(&self) -> bool {
        matches!(self.command, AlertCommand::Ack(_) | AlertCommand::Close(_))
    }
}

/// In a job of the server it is whoever asked for the job.
fn acknowledge(args: &AckArgs, global: &GlobalArgs, context: &Context, book: &Book) -> Result<Outcome, Failure> {
    let found = open_one(&args.id, global, context, book)?;
    let asked_by = global.job_dir.as_deref().and_then(pgark_server::state::asked_by);
    let by = asked_by.map(|(requested_by, _)| requested_by).unwrap_or_else(|| {
        let who = trail::who(None);
        format!("{}@{}", who.user, who.host)
    });
    let alert = book.acknowledge(&found.id, &by, context.ctx.now()).map_err(failure)?;
    context.trail().about("alert", &alert.id);
    // Who was first.
    alert.acknowledged.iter().for_each(|first| context.trail().about("looked_after_by", &first.by));
    tell_soon(book, &context.settings.alerts)?;
    output::result(global.form(), &line(&alert), || format!("{} is yours\n", alert.id))?;
    Ok(Exit::Done)
}

/// A job of the server is for one cluster, and has nothing to say of others.
fn open_one(id: &str, global: &GlobalArgs, context: &Context, book: &Book) -> Result<Alert, Failure> {
    let cluster = &context.settings.selected_cluster.value;
    let is_it = |a: &Alert| a.id == id && a.is_open() && (global.job_dir.is_none() || a.finding.cluster == *cluster);
    let found = book.all().map_err(failure)?.into_iter().find(is_it);
    found.ok_or_else(|| failure(AlertError::None(id.to_owned())))
}

/// It is written down; whom it does not reach now, the next command tells.
fn tell_soon(book: &Book, alerts: &AlertSettings) -> Result<(), Failure> {
    let delivered = notices::deliver(book, alerts, notices::BUDGET).map_err(failure)?;
    notices::tell_failed(&delivered);
    Ok(())
}

pub fn state_dir(context: &Context) -> Result<std::path::PathBuf, Failure> {
    context.settings.state_dir.clone().ok_or_else(|| {
        Failure::usage("E-STATE-DIR", "nothing says where this host keeps what must not be lost")
            .hint("set state_dir in [local], PGARK_STATE_DIR, or HOME")
    })
}

fn failure(e: AlertError) -> Failure {
    match e {
        AlertError::None(_) => Failure::refused(e.code(), e.to_string()).hint("'pgark alert list' shows them"),
        AlertError::NoSink(_) => Failure::usage(e.code(), e.to_string()).hint("the names are those of [alerts.sinks]"),
        AlertError::Busy => Failure::new(e.code(), Exit::Locked, e.to_string()).hint("try again in a moment"),
        _ => Failure::failed(e.code(), e.to_string()),
    }
}

fn need_sinks(alerts: &AlertSettings) -> Result<(), Failure> {
    match alerts.routing.sinks.is_empty() {
        true => Err(Failure::usage("E-ALERT-SINK", "nobody is configured to be told")
            .hint("write [alerts.sinks.NAME] with kind = \"email\", or another one")),
        false => Ok(()),
    }
}

fn told(global: &GlobalArgs, done: Result<Delivered, AlertError>, warnings: &[String]) -> Result<Outcome, Failure> {
    let done = done.map_err(failure)?;
    notices::tell_failed(&done);
    warnings.iter().for_each(|w| output::warning(w));
    let document = serde_json::json!({"schema": SCHEMA, "delivered": done.delivered, "waiting": done.waiting,
        "given_up": done.given_up, "warnings": warnings,
        "failed": done.failed.iter().map(|(sink, why)| serde_json::json!({"sink": sink, "why": why})).collect::<Vec<_>>()});
    let text = || format!("{} told, {} waiting\n", done.delivered, done.waiting);
    if !global.says_nothing() {
        output::result(global.form(), &document, text)?;
    }
    Ok(if done.failed.is_empty() && warnings.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn test(args: &TestArgs, global: &GlobalArgs, context: &Context, book: &Book) -> Result<Outcome, Failure> {
    let alerts = &context.settings.alerts;
    need_sinks(alerts)?;
    let names = match &args.sink {
        Some(name) => vec![name.clone()],
        None => alerts.routing.sinks.iter().map(|s| s.name.clone()).collect(),
    };
    let cluster = &context.settings.selected_cluster.value;
    book.test(&names, &alerts.routing, cluster, context.ctx.now()).map_err(failure)?;
    let outcome = told(global, book.deliver(&alerts.routing, Which::Due, BUDGET), &[])?;
    Ok(if outcome == Exit::Done { Exit::Done } else { Exit::Failed })
}

/// Looks at everything that can be looked at, and says what could not be.
fn look(args: &RunArgs, global: &GlobalArgs, context: &Context, book: &Book) -> Result<Outcome, Failure> {
    let alerts = &context.settings.alerts;
    need_sinks(alerts)?;
    let mut warnings = vec![];
    for found in evaluate(args, context, &mut warnings)? {
        notices::record(book, alerts, found, context.ctx.now()).map_err(failure)?;
    }
    book.escalate(&alerts.routing, context.ctx.now()).map_err(failure)?;
    // Who waits for the call is not to hear it when something was not looked at.
    if let Some(url) = alerts.ping.as_ref().filter(|_| warnings.is_empty())
        && let Err(why) = ping(url, PING_TIMEOUT)
    {
        warnings.push(format!("E-ALERT-PING the call that shows that we live was not taken: {why}"));
    }
    told(global, book.deliver(&alerts.routing, Which::Due, BUDGET), &warnings)
}

fn evaluate(args: &RunArgs, context: &Context, warnings: &mut Vec<String>) -> Result<Vec<Evaluated>, Failure> {
    let (cluster, settings) = (context.cluster()?, context.cluster_settings()?);
    let alerts = &context.settings.alerts;
    let limits =
        Limits { no_backup_for: alerts.no_backup_for, size_jump_percent: alerts.size_jump_percent, rpo: settings.rpo };
    let selected = context.settings.selected_repos()?;
    let several = selected.len() > 1;
    let mut all = vec![];
    for repo in &selected {
        let of = several.then_some(repo.name.as_str());
        let looked = context.open_repository(repo).and_then(|opened| {
            let found = info::info(&opened, Some(&cluster), &context.ctx).map_err(engine_failure)?;
            found.into_iter().next().ok_or_else(|| Failure::failed("E-CLUSTER-NONE", "the cluster is not there"))
        });
        match looked {
            Ok(found) => {
                // Without its WAL it is as lost as a damaged one.
                let (now, lost, mut backups) = (context.ctx.now(), found.unrestorable(), found.backups.clone());
                backups.iter_mut().filter(|b| lost.contains(&b.id)).for_each(|b| b.damaged = Some(now));
                let facts = Facts {
                    now,
                    cluster: cluster.as_str(),
                    repository: of,
                    backups: &backups,
                    gaps: found.gaps.len(),
                    recovery_point: found.windows.iter().filter_map(|w| w.to_time).max(),
                };
                warnings.extend(found.problems.iter().chain(&found.not_opened).cloned());
                all.push(rules::evaluate(&facts, &limits));
                all.push(rules::reachable(cluster.as_str(), of, None));
            }
            Err(failure) => {
                let why = format!("{}: {}", failure.code, failure.message);
                all.push(rules::reachable(cluster.as_str(), of, Some(&why)));
                warnings.push(left_out(&repo.name, &failure));
            }
        }
    }
    if !args.no_check {
        match checking::look(context) {
            Ok(found) => all.push(rules::from_checks(cluster.as_str(), &found)),
            Err(failure) => warnings.push(format!("the server was not looked at: {failure}")),
        }
    }
    Ok(all)
}

fn line(alert: &Alert) -> serde_json::Value {
    let f = &alert.finding;
    serde_json::json!({"id": alert.id, "key": f.key, "rule": f.rule, "severity": f.severity, "cluster": f.cluster,
        "summary": f.summary, "details": f.details, "opened": alert.opened, "seen": alert.seen, "count": alert.count,
        "resolved": alert.resolved, "acknowledged": alert.acknowledged, "level": alert.level,
        "waiting": alert.waiting(),
        "deliveries": alert.deliveries.iter().map(|d| serde_json::json!({"sink": d.sink, "said": d.said,
            "attempts": d.attempts, "delivered": d.delivered, "given_up": d.given_up, "error": d.error,
            "next": d.next})).collect::<Vec<_>>()})
}

fn list(args: &ListArgs, global: &GlobalArgs, book: &Book) -> Result<Outcome, Failure> {
    let mut all = book.history().map_err(failure)?;
    all = all.split_off(all.len().saturating_sub(args.history));
    all.extend(book.all().map_err(failure)?);
    let document = serde_json::json!({"schema": SCHEMA, "alerts": all.iter().map(line).collect::<Vec<_>>()});
    output::result(global.form(), &document, || text(&all))?;
    Ok(Exit::Done)
}

fn text(all: &[Alert]) -> String {
    if all.is_empty() {
        return "nothing is open\n".into();
    }
    let columns = ["id", "since", "severity", "state", "told", ""].map(|c| (c, Align::Left));
    let mut table = Table::new(&columns);
    for alert in all {
        let state = match (&alert.resolved, &alert.acknowledged) {
            (Some(_), _) => "over".to_owned(),
            (None, Some(by)) => format!("looked after by {}", by.by),
            (None, None) => "open".to_owned(),
        };
        let waiting = alert.waiting();
        let told = alert.deliveries.iter().filter(|d| d.delivered.is_some()).count();
        let told = if waiting > 0 { format!("{told}, {waiting} waiting") } else { told.to_string() };
        table.row([
            alert.id.clone(),
            timestamp(alert.opened),
            alert.finding.severity.as_str().to_owned(),
            escape(&state).into_owned(),
            told,
            escape(&format!("{}: {}", alert.finding.cluster, alert.finding.summary)).into_owned(),
        ]);
    }
    table.to_text()
}

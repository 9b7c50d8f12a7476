//! `report`: what restores, validations and drills found, as the repository has it.

use clap::{Args, Subcommand, ValueEnum};
use pgark_dr::recover;
use pgark_engine::restore::timed;
use pgark_engine::{drill, reports, validate};
use pgark_repo::report::{ReportId, Severity, StoredReport};
use serde::de::DeserializeOwned;

use super::Outcome;
use super::context::{Context, engine_failure};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::output::{self, Align, Table};

#[derive(Debug, Args)]
pub struct ReportArgs {
    #[command(subcommand)]
    command: ReportCommand,
}

#[derive(Debug, Subcommand)]
enum ReportCommand {
    /// The newest reports, the newest first
    List(ListArgs),
    /// One report
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// How many are opened
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: usize,
    /// Only those that are at least this serious
    #[arg(long, value_name = "WHICH")]
    severity: Option<SeverityArg>,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Its id; 'latest' for the newest
    #[arg(value_name = "ID")]
    id: String,
    /// How it is written: as the operation wrote it, or for people
    #[arg(long, value_name = "FORMAT", default_value = "md")]
    format: FormatArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SeverityArg {
    Info,
    Warning,
    Incident,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Json,
    Md,
    Html,
}

pub fn run(args: &ReportArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    match &args.command {
        ReportCommand::List(args) => list(args, global, &context),
        ReportCommand::Show(args) => show(args, global, &context),
    }
}

fn list(args: &ListArgs, global: &GlobalArgs, context: &Context) -> Result<Outcome, Failure> {
    if args.last == 0 {
        return Err(Failure::usage("E-REPORT-LAST", "--last 0 looks at no report").hint("give 1 or more"));
    }
    let (_, repo) = context.open_first()?;
    let all = reports::newest(&repo, &context.cluster()?, args.last, &context.ctx).map_err(engine_failure)?;
    let least = match args.severity {
        None | Some(SeverityArg::Info) => Severity::Info,
        Some(SeverityArg::Warning) => Severity::Warning,
        Some(SeverityArg::Incident) => Severity::Incident,
    };
    let (mut table, mut lines, mut damaged) = (table(), vec![], false);
    for (id, found) in &all {
        match found {
            Ok(report) if report.severity < least => {}
            Ok(report) => {
                table.row([
                    id.to_string(),
                    word(report.severity).into(),
                    report.what.clone(),
                    report.backup.as_ref().map(ToString::to_string).unwrap_or_default(),
                    escape(&report.summary).into_owned(),
                ]);
                lines.push(serde_json::json!({"id": id.to_string(), "severity": report.severity, "what": report.what,
                    "written": report.written, "backup": report.backup, "database": report.database,
                    "summary": report.summary}));
            }
            // It may be as serious as any.
            Err(e) => {
                damaged = true;
                output::warning(&format!("report {id} cannot be read: {}: {e}", e.code()));
                lines.push(serde_json::json!({"id": id.to_string(), "damaged": e.to_string()}));
            }
        }
    }
    let document = serde_json::json!({"schema": SCHEMA, "cluster": context.cluster()?.to_string(), "reports": lines});
    output::result(global.form(), &document, || match lines.is_empty() {
        true => "no reports\n".to_owned(),
        false => table.to_text(),
    })?;
    Ok(if damaged { Exit::Warnings } else { Exit::Done })
}

fn table() -> Table {
    Table::new(&[
        ("report", Align::Left),
        ("severity", Align::Left),
        ("of", Align::Left),
        ("backup", Align::Left),
        ("", Align::Left),
    ])
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Incident => "INCIDENT",
    }
}

fn show(args: &ShowArgs, global: &GlobalArgs, context: &Context) -> Result<Outcome, Failure> {
    let id = match args.id.as_str() {
        "latest" => None,
        id => Some(ReportId::parse(id).map_err(|_| {
            Failure::usage("E-REPORT-ID", format!("'{}' is no id of a report", escape(id)))
                .hint("'pgark report list' shows them; 'latest' is the newest")
        })?),
    };
    let (_, repo) = context.open_first()?;
    let stored = reports::load(&repo, &context.cluster()?, id.as_ref()).map_err(engine_failure)?;
    let text = match args.format {
        _ if global.json => None,
        FormatArg::Json => None,
        FormatArg::Md if stored.what == recover::WHAT => Some(recover::to_markdown(&inside(&stored)?)),
        FormatArg::Html if stored.what == recover::WHAT => Some(recover::to_html(&inside(&stored)?)),
        FormatArg::Md if stored.what == drill::WHAT => Some(drill::to_markdown(&inside(&stored)?)),
        FormatArg::Html if stored.what == drill::WHAT => Some(drill::to_html(&inside(&stored)?)),
        FormatArg::Md if stored.what == timed::WHAT => Some(timed::to_markdown(&inside(&stored)?)),
        FormatArg::Html if stored.what == timed::WHAT => Some(timed::to_html(&inside(&stored)?)),
        FormatArg::Md => Some(validate::to_markdown(&inside(&stored)?)),
        FormatArg::Html => Some(validate::to_html(&inside(&stored)?)),
    };
    match text {
        None => output::write_json(&mut std::io::stdout().lock(), &stored)?,
        Some(text) => output::result(output::Form::Text, &(), || text)?,
    }
    Ok(Exit::Done)
}

fn inside<T: DeserializeOwned>(stored: &StoredReport) -> Result<T, Failure> {
    serde_json::from_value(stored.report.clone()).map_err(|e| {
        Failure::failed("E-REPORT-FORM", format!("report {} is of a form that is not known here: {e}", stored.id))
            .hint("--format json shows it as it was written")
    })
}

//! `validate`: whether a database is what it should be.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pgark_engine::cluster::{AskAs, Examiners};
use pgark_engine::truth::TruthReader;
use pgark_engine::validate::{
    self as validation, Check, Expectations, Outcome as Verdict, Report, UserCheck, ValidateOptions,
};
use serde::Serialize;

use super::Outcome;
use super::context::{Context, engine_failure};
use super::truth::{ServerArgs, write_new};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, Align, Table};
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// The database; repeatable
    #[arg(long, value_name = "NAME", required = true)]
    database: Vec<String>,
    /// Compare with this file, which 'pgark truth' wrote
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Compare the rows by their number alone, although the truth has hashes
    #[arg(long)]
    no_hash: bool,
    /// The database comes from a physical backup: unlogged tables are empty, tables of extensions are compared
    #[arg(long)]
    physical: bool,
    /// What reads tables and indexes: extensions that are installed in the database, also those that the server has
    /// (installed in a transaction that is rolled back), or none
    #[arg(long, value_name = "WHICH", default_value = "installed")]
    amcheck: ExaminersArg,
    /// Ask the configured checks as this role, which must be without privileges [setting: check_user]
    #[arg(long, value_name = "NAME")]
    check_user: Option<String>,
    /// Make a role without privileges for the checks and drop it again: for a server that lets every role in
    #[arg(long, conflicts_with = "check_user")]
    make_check_user: bool,
    /// How long one check may take
    #[arg(long, value_name = "TIME", default_value = "60s")]
    check_timeout: Span,
    /// How long reading the database may take
    #[arg(long, value_name = "TIME", default_value = "24h")]
    timeout: Span,
    /// Write the report into new files: FILE.json, FILE.md and FILE.html
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExaminersArg {
    Installed,
    Borrowed,
    Off,
}

#[derive(Serialize)]
struct ValidateDocument<'a> {
    schema: u32,
    outcome: Verdict,
    databases: &'a [Report],
}

pub fn run(args: ValidateArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    if args.truth.is_some() && args.database.len() > 1 {
        return Err(Failure::usage("E-TRUTH-ONE", "a truth is about one database, and several are named")
            .hint("validate them one by one"));
    }
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let connect = args.server.apply(context.connect_options()?);
    let mut reports = vec![];
    for database in &args.database {
        let recorded = args.truth.as_deref().map(open_truth).transpose()?;
        let options = options(&args, database, &context)?;
        let report = validation::validate(&connect, recorded, &options, &context.ctx).map_err(engine_failure)?;
        write_report(&args, &report)?;
        reports.push(report);
    }
    let outcome = worst(&reports);
    if !(global.says_nothing() && outcome == Verdict::Ok) {
        let document = ValidateDocument { schema: SCHEMA, outcome, databases: &reports };
        output::result(global.form(), &document, || reports.iter().map(text).collect())?;
    }
    Ok(match outcome {
        Verdict::Ok => Exit::Done,
        Verdict::NotChecked => Exit::Warnings,
        Verdict::Failed => Exit::ValidationFailed,
    })
}

fn open_truth(path: &std::path::Path) -> Result<TruthReader<BufReader<File>>, Failure> {
    let file = File::open(path).map_err(|e| Failure::failed("E-FILE", format!("reading {}: {e}", path.display())))?;
    TruthReader::open(BufReader::new(file)).map_err(engine_failure)
}

fn options(args: &ValidateArgs, database: &str, context: &Context) -> Result<ValidateOptions, Failure> {
    let cluster = context.cluster_settings()?;
    let role = args.check_user.as_ref().or(cluster.check_user.as_ref());
    let public = || vec!["public".to_owned()];
    let checks = cluster.checks.iter().map(|check| UserCheck {
        name: check.name.clone(),
        database: check.database.clone(),
        sql: check.sql.clone(),
        expect: check.expect.clone(),
        schemas: check.schemas.clone().unwrap_or_else(public),
    });
    Ok(ValidateOptions {
        database: database.to_owned(),
        expect: Expectations { physical: args.physical, without_contents: args.no_hash },
        jobs: context.jobs(),
        within: args.timeout.0,
        examiners: match args.amcheck {
            ExaminersArg::Installed => Examiners::Installed,
            ExaminersArg::Borrowed => Examiners::Borrowed,
            ExaminersArg::Off => Examiners::Off,
        },
        checks: checks.collect(),
        ask_as: match role {
            _ if args.make_check_user => AskAs::Made,
            Some(role) => AskAs::Role(role.clone()),
            None => AskAs::Connected,
        },
        check_within: args.check_timeout.0,
    })
}

fn worst(reports: &[Report]) -> Verdict {
    let any = |verdict| reports.iter().any(|report| report.outcome == verdict);
    if any(Verdict::Failed) {
        Verdict::Failed
    } else if any(Verdict::NotChecked) {
        Verdict::NotChecked
    } else {
        Verdict::Ok
    }
}

fn write_report(args: &ValidateArgs, report: &Report) -> Result<(), Failure> {
    let Some(base) = &args.report else { return Ok(()) };
    let json = serde_json::to_string_pretty(report)
        .map_err(|e| Failure::failed("E-INTERNAL", format!("the report cannot be written as JSON: {e}")))?;
    let several = args.database.len() > 1;
    let place = args.database.iter().position(|name| name.as_bytes() == report.database.0).unwrap_or(0) + 1;
    for (ending, text) in
        [("json", json), ("md", validation::to_markdown(report)), ("html", validation::to_html(report))]
    {
        let mut path = base.clone().into_os_string();
        // Names of databases are no names of files.
        path.push(if several { format!("-{place}.{ending}") } else { format!(".{ending}") });
        write_new(std::path::Path::new(&path), &text)?;
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&[("check", Align::Left), ("outcome", Align::Left), ("checked", Align::Right)]);
    for check in &report.checks {
        table.row([check.name.as_str(), word(check.outcome), &check.checked.to_string()]);
    }
    let mut out = format!(
        "{}: {}\n\n{}",
        crate::failure::escape(&report.database.lossy()),
        word(report.outcome),
        table.to_text()
    );
    for check in &report.checks {
        let lines = remarks(check);
        if !lines.is_empty() {
            out += &format!("\n{}:\n", crate::failure::escape(&check.name));
            out.extend(lines.iter().map(|line| format!("  {}\n", crate::failure::escape(line))));
        }
    }
    out
}

fn remarks(check: &Check) -> Vec<String> {
    let more = (check.more > 0).then(|| format!("and {} more", check.more));
    let reasons = check.reasons.iter().map(|reason| format!("not checked: {reason}"));
    let notes = check.notes.iter().map(|note| format!("note: {note}"));
    check.details.iter().cloned().chain(more).chain(reasons).chain(notes).collect()
}

fn word(outcome: Verdict) -> &'static str {
    match outcome {
        Verdict::Ok => "ok",
        Verdict::Failed => "FAILED",
        Verdict::NotChecked => "not checked",
    }
}

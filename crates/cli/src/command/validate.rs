//! `validate`: whether a database is what it should be.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pgark_engine::cluster::{AskAs, Examiners};
use pgark_engine::logical::against::{self, Against, AgainstOptions};
use pgark_engine::logical::select::Selection;
use pgark_engine::reports::{self, Validated};
use pgark_engine::truth::TruthReader;
use pgark_engine::validate::{
    self as validation, Check, Contents, Expectations, Outcome as Verdict, Report, UserCheck, ValidateOptions,
};
use pgark_repo::Repository;
use serde::Serialize;

use super::Outcome;
use super::backup_logical::scratch;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
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
    /// Compare with what was written down when this logical backup was taken; 'latest' for the newest that holds the database
    #[arg(long, value_name = "ID", conflicts_with_all = ["truth", "physical"])]
    against: Option<String>,
    /// What the database is called in the backup, where it has another name now
    #[arg(long, value_name = "NAME", requires = "against")]
    source: Option<String>,
    /// Only this schema of the backup was restored; repeatable
    #[arg(long, value_name = "SCHEMA", requires = "against")]
    schema: Vec<String>,
    /// Only this table or SCHEMA.TABLE of the backup was restored; repeatable
    #[arg(long, value_name = "TABLE", requires = "against")]
    table: Vec<String>,
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
    /// Under which the repository has them.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    reports: &'a [String],
}

pub fn run(args: ValidateArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    if args.source.is_some() && args.database.len() > 1 {
        return Err(Failure::usage("E-TRUTH-ONE", "--source names one database, and several are to be validated")
            .hint("validate them one by one"));
    }
    if args.truth.is_some() && args.database.len() > 1 {
        return Err(Failure::usage("E-TRUTH-ONE", "a truth is about one database, and several are named")
            .hint("validate them one by one"));
    }
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    refuse_report(&args)?;
    let connect = args.server.apply(context.connect_options()?);
    let repo = args.against.as_ref().map(|_| context.open_first()).transpose()?.map(|(_, repo)| repo.healing());
    let (mut found, mut stored, mut not_stored) = (vec![], vec![], vec![]);
    for database in &args.database {
        let mut options = options(&args, database, &context)?;
        let recorded = match &repo {
            Some(repo) => Some(open_stored(&args, database, repo, &context, &mut options)?),
            None => args.truth.as_deref().map(open_truth).transpose()?,
        };
        let report = validation::validate(&connect, recorded, &options, &context.ctx).map_err(engine_failure)?;
        if let Some(repo) = &repo {
            let source = options.made_from.as_deref().unwrap_or(database);
            let of = Validated { what: "validate", database: source, called: database, report: &report };
            match reports::store(repo, &context.cluster()?, &of, &context.ctx) {
                Ok(id) => stored.push(id.to_string()),
                Err(e) => not_stored.push(reports::not_stored(&e)),
            }
        }
        write_report(&args, &report)?;
        found.push(report);
    }
    not_stored.iter().for_each(|w| output::warning(w));
    let outcome = worst(&found);
    if !(global.says_nothing() && outcome == Verdict::Ok) {
        let document = ValidateDocument { schema: SCHEMA, outcome, databases: &found, reports: &stored };
        output::result(global.form(), &document, || {
            let ids = stored.iter().map(|id| format!("\nthe repository has this as report {id}\n"));
            found.iter().map(text).chain(ids).collect()
        })?;
    }
    Ok(match outcome {
        Verdict::Ok if not_stored.is_empty() => Exit::Done,
        Verdict::Ok | Verdict::NotChecked => Exit::Warnings,
        Verdict::Failed => Exit::ValidationFailed,
    })
}

fn open_truth(path: &std::path::Path) -> Result<TruthReader<BufReader<File>>, Failure> {
    let file = File::open(path).map_err(|e| Failure::failed("E-FILE", format!("reading {}: {e}", path.display())))?;
    TruthReader::open(BufReader::new(file)).map_err(engine_failure)
}

/// The truth that is in the repository; the options learn what it is of.
fn open_stored(
    args: &ValidateArgs,
    database: &str,
    repo: &Repository,
    context: &Context,
    options: &mut ValidateOptions,
) -> Result<TruthReader<BufReader<File>>, Failure> {
    let configured = context.cluster_settings()?.logical.clone().unwrap_or_default();
    let id = args.against.as_ref().filter(|id| *id != "latest");
    let wanted = AgainstOptions {
        cluster: context.cluster()?,
        backup: id.map(|id| parse_id(id)).transpose()?,
        database: args.source.clone().unwrap_or_else(|| database.to_owned()),
        or_only: args.source.is_none() && id.is_some() && args.database.len() == 1,
        selection: Selection { schemas: args.schema.clone(), tables: args.table.clone() },
        scratch: scratch(&configured),
    };
    let Against { backup, database, truth, scope } =
        against::open(&wanted, repo, &context.ctx).map_err(engine_failure)?;
    (options.backup, options.made_from, options.expect.scope) = (Some(backup), Some(database), scope);
    if !args.no_hash {
        options.expect.contents = Contents::IfHashed;
    }
    Ok(truth)
}

/// How long one check may take when nothing else is said.
pub const CHECK_WITHIN: Duration = Duration::from_secs(60);

pub fn ask_as(flag: Option<&String>, context: &Context) -> Result<AskAs, Failure> {
    let role = flag.or(context.cluster_settings()?.check_user.as_ref());
    Ok(role.map_or(AskAs::Connected, |role| AskAs::Role(role.clone())))
}

pub fn configured_checks(context: &Context) -> Result<Vec<UserCheck>, Failure> {
    let public = || vec!["public".to_owned()];
    let checks = context.cluster_settings()?.checks.iter().map(|check| UserCheck {
        name: check.name.clone(),
        database: check.database.clone(),
        sql: check.sql.clone(),
        expect: check.expect.clone(),
        schemas: check.schemas.clone().unwrap_or_else(public),
    });
    Ok(checks.collect())
}

fn options(args: &ValidateArgs, database: &str, context: &Context) -> Result<ValidateOptions, Failure> {
    let contents = if args.no_hash { Contents::LeftOut } else { Contents::Compared };
    Ok(ValidateOptions {
        database: database.to_owned(),
        backup: None,
        made_from: None,
        expect: Expectations { physical: args.physical, contents, scope: None, settings_left: false },
        jobs: context.jobs(),
        within: args.timeout.0,
        examiners: match args.amcheck {
            ExaminersArg::Installed => Examiners::Installed,
            ExaminersArg::Borrowed => Examiners::Borrowed,
            ExaminersArg::Off => Examiners::Off,
        },
        unexamined: "left out as asked for",
        checks: configured_checks(context)?,
        ask_as: if args.make_check_user { AskAs::Made } else { ask_as(args.check_user.as_ref(), context)? },
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

/// Before anything is read: it may take hours.
fn refuse_report(args: &ValidateArgs) -> Result<(), Failure> {
    let Some(base) = &args.report else { return Ok(()) };
    let directory = base.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    if !directory.is_dir() {
        return Err(Failure::refused("E-FILE", format!("{} is no directory", directory.display()))
            .hint("make it first; nothing was validated"));
    }
    let taken =
        (1..=args.database.len()).flat_map(|place| ENDINGS.map(|ending| report_path(args, base, place, ending)));
    match taken.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(path) => Err(Failure::refused("E-FILE", format!("{} is there already", path.display()))
            .hint("choose another name, or move it away; nothing was validated")),
    }
}

const ENDINGS: [&str; 3] = ["json", "md", "html"];

/// Names of databases are no names of files.
fn report_path(args: &ValidateArgs, base: &std::path::Path, place: usize, ending: &str) -> PathBuf {
    let mut path = base.to_owned().into_os_string();
    path.push(if args.database.len() > 1 { format!("-{place}.{ending}") } else { format!(".{ending}") });
    path.into()
}

fn write_report(args: &ValidateArgs, report: &Report) -> Result<(), Failure> {
    let Some(base) = &args.report else { return Ok(()) };
    let json = serde_json::to_string_pretty(report)
        .map_err(|e| Failure::failed("E-INTERNAL", format!("the report cannot be written as JSON: {e}")))?;
    let place = args.database.iter().position(|name| name.as_bytes() == report.database.0).unwrap_or(0) + 1;
    let texts = [json, validation::to_markdown(report), validation::to_html(report)];
    for (ending, text) in ENDINGS.into_iter().zip(texts) {
        write_new(&report_path(args, base, place, ending), &text)?;
    }
    Ok(())
}

pub fn text(report: &Report) -> String {
    let mut table = Table::new(&[("check", Align::Left), ("outcome", Align::Left), ("checked", Align::Right)]);
    for check in &report.checks {
        table.row([check.name.as_str(), word(check.outcome), &check.checked.to_string()]);
    }
    let open = report.not_compared_with();
    let but = match report.outcome {
        Verdict::Ok if report.against.is_some() && !open.is_empty() => {
            format!(" as far as it was compared; not compared: {}", open.join(", "))
        }
        _ => String::new(),
    };
    let mut out = format!(
        "{}: {}{but}\n\n{}",
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

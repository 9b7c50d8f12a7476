//! `audit`: who tried what, and what came of it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use pgark_dr::trail;
use pgark_engine::audit::{Told, check, journals_of, pair};
use pgark_repo::Repository;
use pgark_repo::audit::{Checked, Event, Head, Journal, JournalName, What, journals};
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::context::{Context, confirm, engine_failure, named, place_of};
use super::truth::write_new;
use crate::args::{ConfirmArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::output::{self, Align, Table, timestamp};
use crate::settings::RepoSettings;
use crate::settings::units::Span;

/// A file with heads is small, however many repositories it is about.
const HEAD_FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// What was tried on the cluster and on the repository as a whole, the newest last
    Show(ShowArgs),
    /// Read all records and prove that none is missing, changed or exchanged
    Verify(VerifyArgs),
    /// Write all records, or where the journals end, for keeping elsewhere
    Export(ExportArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Since this moment, or for so long: 2026-11-01T00:00:00Z, 7d
    #[arg(long, value_name = "TIME|SPAN")]
    since: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    last: usize,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Also against where the journals ended when this file was made by 'audit export --head'
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,
    /// From now on the journals count as they are: this host forgets where they ended when it saw them
    #[arg(long)]
    accept: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// Where the journals end, and no records: enough to see later that nothing was cut off
    #[arg(long)]
    head: bool,
    /// Into this file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

impl AuditArgs {
    pub fn takes_data_out(&self) -> bool {
        matches!(&self.command, AuditCommand::Export(args) if !args.head)
    }
}

pub fn run(args: &AuditArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    match &args.command {
        AuditCommand::Show(args) => show(args, global, &context),
        AuditCommand::Verify(args) => verify(args, global, &context),
        AuditCommand::Export(args) => export(args, global, &context),
    }
}

fn since(text: Option<&str>, now: Timestamp) -> Result<Timestamp, Failure> {
    let Some(text) = text else { return Ok(Timestamp::MIN) };
    let ago = text.parse::<Span>().ok().and_then(|span| now.checked_sub(span.0).ok());
    ago.or_else(|| text.parse().ok()).ok_or_else(|| {
        Failure::usage("E-AUDIT-SINCE", format!("'{}' is no moment and no span", escape(text)))
            .hint("such as 2026-11-01T00:00:00Z, or 7d")
    })
}

fn show(args: &ShowArgs, global: &GlobalArgs, context: &Context) -> Result<Outcome, Failure> {
    let since = since(args.since.as_deref(), context.ctx.now())?;
    let (_, repo) = context.open_first()?;
    let (mut told, mut damaged) = (vec![], vec![]);
    for name in journals_of(&context.cluster()?) {
        let (newest, wrong) = newest(&Journal::new(&repo, name.clone()), since, args.last, context)?;
        told.extend(pair(&name, newest));
        damaged.extend(wrong);
    }
    told.retain(|t| t.event.at >= since);
    told.sort_by_key(|t| t.event.at);
    let told = told.split_off(told.len().saturating_sub(args.last));
    damaged.iter().for_each(|line| output::warning(line));
    let document = serde_json::json!({"schema": SCHEMA, "cluster": context.cluster()?.to_string(),
        "events": told.iter().map(line).collect::<Vec<_>>(), "damaged": damaged});
    output::result(global.form(), &document, || text(&told))?;
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::Warnings })
}

type Newest = (Vec<(u64, Event)>, Vec<String>);

/// The newest records, ascending: of twice as many as are asked for, since each command has two. Also what could not be read.
fn newest(journal: &Journal<'_>, since: Timestamp, last: usize, context: &Context) -> Result<Newest, Failure> {
    let (mut found, mut damaged) = (vec![], vec![]);
    let numbers = journal.numbers().map_err(|e| engine_failure(e.into()))?;
    for number in numbers.into_iter().rev().take(last.saturating_mul(2)) {
        context.ctx.check_cancelled().map_err(engine_failure)?;
        match journal.read(number) {
            // What waited elsewhere is older than its place; a day is more than commands take.
            Ok(opened) if opened.record.event.at.saturating_add(DAY).is_ok_and(|at| at < since) => break,
            Ok(opened) => found.push((number, opened.record.event)),
            Err(e) if e.is_damage() => damaged.push(format!("E-AUDIT-DAMAGED record {number} cannot be read: {e}")),
            Err(e) => return Err(engine_failure(e.into())),
        }
    }
    found.reverse();
    Ok((found, damaged))
}

const DAY: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

fn command_of(event: &Event) -> &str {
    match &event.what {
        What::Attempt { command, .. } | What::End { command, .. } => command,
        What::Copied { .. } => "(copied)",
        What::Writer => "(writer)",
        What::Shortened { .. } => "(shortened)",
    }
}

fn is_command(event: &Event) -> bool {
    matches!(event.what, What::Attempt { .. } | What::End { .. })
}

fn line(told: &Told) -> serde_json::Value {
    let arguments = match &told.event.what {
        What::Attempt { arguments, .. } => Some(arguments),
        _ => None,
    };
    let end = told.end.as_ref().map(|end| match &end.what {
        What::End { exit_code, error, about, took_ms, .. } => serde_json::json!({"at": end.at, "exit_code": exit_code,
            "error": error, "took_ms": took_ms,
            "about": about.iter().map(|(what, id)| serde_json::json!({"what": what, "id": id})).collect::<Vec<_>>()}),
        _ => serde_json::Value::Null,
    });
    serde_json::json!({"journal": told.journal.to_string(), "number": told.number, "id": told.event.id,
        "at": told.event.at, "cluster": told.event.cluster, "command": command_of(&told.event), "arguments": arguments,
        "user": told.event.who.user, "uid": told.event.who.uid, "sudo_user": told.event.who.sudo_user,
        "host": told.event.who.host, "program": told.event.who.program, "ended": end.is_some() || !is_command(&told.event),
        "end": end})
}

fn text(told: &[Told]) -> String {
    if told.is_empty() {
        return "nothing is in the audit trail\n".into();
    }
    let columns = ["when", "who", "command", "came of it", "arguments"].map(|c| (c, Align::Left));
    let mut table = Table::new(&columns);
    for t in told {
        let who = &t.event.who;
        let user = if who.user.is_empty() { format!("uid {}", who.uid) } else { who.user.clone() };
        let by = who.sudo_user.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
        let came = match t.end.as_ref().map(|end| &end.what) {
            Some(What::End { exit_code, error, about, .. }) => {
                let ids = about.iter().map(|(what, id)| format!(" {what} {id}")).collect::<String>();
                let code = error.as_ref().map(|e| format!(" {e}")).unwrap_or_default();
                format!("exit {exit_code}{code}{ids}")
            }
            _ if is_command(&t.event) => "NO END: killed, or still running".into(),
            _ => String::new(),
        };
        let arguments = match &t.event.what {
            What::Attempt { arguments, .. } => arguments.join(" "),
            What::Shortened { first, .. } => format!("records before {first} were removed by age"),
            What::Copied { head } => format!("events of another copy, up to its record {}", head.number),
            What::Writer => "the cluster has a writer".into(),
            What::End { .. } => "(its beginning is not shown)".into(),
        };
        let who = format!("{user}{by}@{}", who.host);
        table.row([
            timestamp(t.event.at),
            escape(&who).into_owned(),
            command_of(&t.event).to_owned(),
            escape(&came).into_owned(),
            escape(&arguments).into_owned(),
        ]);
    }
    table.to_text()
}

/// Where journals ended, as a file.
#[derive(Debug, Serialize, Deserialize)]
struct HeadFile {
    schema: u32,
    written: Timestamp,
    program: String,
    repositories: Vec<HeadsOf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeadsOf {
    url: String,
    repository_id: String,
    heads: Vec<Head>,
}

impl HeadFile {
    fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| {
            Failure::usage("E-AUDIT-HEAD", format!("{}: {why}", path.display()))
                .hint("'pgark audit export --head --to FILE' makes such a file")
        };
        let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
        if size > HEAD_FILE_BYTES_MAX {
            return Err(wrong(format!("{size} bytes are more than such a file has")));
        }
        let text = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let file: HeadFile = serde_json::from_slice(&text).map_err(|e| wrong(format!("it holds no heads: {e}")))?;
        if file.schema != SCHEMA {
            return Err(wrong(format!("it is of version {}, this program knows {SCHEMA}", file.schema)));
        }
        Ok(file)
    }

    /// By where it is; the only one of a file is meant wherever it has moved.
    fn of(&self, settings: &RepoSettings, path: &Path) -> Result<&[Head], Failure> {
        let url = place_of(settings);
        let found = self.repositories.iter().find(|r| r.url == url);
        let only = self.repositories.first().filter(|_| self.repositories.len() == 1);
        found.or(only).map(|r| r.heads.as_slice()).ok_or_else(|| {
            let message = format!("{} has no head of repository {}", path.display(), settings.name);
            Failure::usage("E-AUDIT-HEAD", message).hint("choose the repository with --repo")
        })
    }
}

#[derive(Debug, Serialize)]
struct VerifyDocument {
    schema: u32,
    ok: bool,
    repositories: Vec<RepositoryLine>,
}

#[derive(Debug, Serialize)]
struct RepositoryLine {
    name: String,
    journals: Vec<JournalLine>,
}

#[derive(Debug, Serialize)]
struct JournalLine {
    journal: JournalName,
    records: u64,
    first: u64,
    head: Option<Head>,
    /// Attempts without an end.
    without_end: u64,
    compared_with: usize,
    problems: Vec<ProblemLine>,
}

#[derive(Debug, Serialize)]
struct ProblemLine {
    number: u64,
    what: String,
}

fn verify(args: &VerifyArgs, global: &GlobalArgs, context: &Context) -> Result<Outcome, Failure> {
    let file = args.head.as_deref().map(|path| HeadFile::read(path).map(|file| (path, file))).transpose()?;
    if args.accept {
        confirm(&args.confirm, "accept the audit trail as it is")?;
    }
    let all = context.settings.selected_repos()?;
    let mut document = VerifyDocument { schema: SCHEMA, ok: true, repositories: vec![] };
    for settings in &all {
        let repo = context.open_repository(settings).map_err(|f| named(f, &settings.name, all.len()))?;
        let given = file.as_ref().map(|(path, file)| file.of(settings, path)).transpose()?.unwrap_or_default();
        let mut journals_here = journals(&repo).map_err(|e| engine_failure(e.into()))?;
        let remembered_of = journals_of(&context.cluster()?);
        journals_here.extend(given.iter().map(|head| head.journal.clone()).chain(remembered_of));
        journals_here.sort();
        journals_here.dedup();
        let mut lines = vec![];
        for name in journals_here {
            let line = verify_one(&repo, settings, name, given, args.accept, context)?;
            document.ok &= line.problems.is_empty();
            lines.push(line);
        }
        document.repositories.push(RepositoryLine { name: settings.name.clone(), journals: lines });
    }
    output::result(global.form(), &document, || verify_text(&document))?;
    Ok(if document.ok { Exit::Done } else { Exit::Damage })
}

fn verify_one(
    repo: &Repository,
    settings: &RepoSettings,
    name: JournalName,
    given: &[Head],
    accept: bool,
    context: &Context,
) -> Result<JournalLine, Failure> {
    let url = place_of(settings);
    let state_dir = context.settings.state_dir.as_deref();
    if let Some(dir) = state_dir.filter(|_| accept) {
        trail::forget(dir, repo, &url, &name).map_err(|e| {
            Failure::failed("E-AUDIT-STATE", format!("what this host remembers cannot be removed: {e}"))
        })?;
    }
    let remembered = state_dir.and_then(|dir| trail::remembered(dir, repo, &url, &name));
    let known: Vec<Head> = given.iter().cloned().chain(remembered).filter(|head| head.journal == name).collect();
    let mut events = vec![];
    let checked: Checked = check(repo, name.clone(), &known, &context.ctx, &mut |opened| {
        events.push((opened.record.number, opened.record.event.clone()));
    })
    .map_err(engine_failure)?;
    let open = pair(&name, events).iter().filter(|t| t.end.is_none() && is_command(&t.event)).count();
    Ok(JournalLine {
        journal: name,
        records: checked.records,
        first: checked.first,
        head: checked.head,
        without_end: open as u64,
        compared_with: known.len(),
        problems: checked.faults.into_iter().map(|f| ProblemLine { number: f.number, what: f.what }).collect(),
    })
}

fn verify_text(document: &VerifyDocument) -> String {
    let mut text = String::new();
    for repository in &document.repositories {
        for line in &repository.journals {
            let whose = match &line.journal {
                JournalName::Repository => "the repository".to_owned(),
                JournalName::Cluster(name) => format!("cluster {name}"),
            };
            let end = line.head.as_ref().map_or(0, |head| head.number);
            let open = match line.without_end {
                0 => String::new(),
                n => format!(", {n} of them attempts without an end"),
            };
            let place = escape(&repository.name);
            let unknown = if line.compared_with == 0 { "; nothing here says where it ended before" } else { "" };
            text.push_str(&format!(
                "{place}, {whose}: {} records, {} to {end}{open}{unknown}\n",
                line.records, line.first
            ));
            for problem in &line.problems {
                text.push_str(&format!("  E-AUDIT-TAMPERED {}\n", escape(&problem.what)));
            }
        }
    }
    let mut journals = document.repositories.iter().flat_map(|repository| &repository.journals);
    text.push_str(match (document.ok, journals.all(|line| line.compared_with > 0)) {
        (false, _) => "THE AUDIT TRAIL IS NOT WHOLE\n",
        (true, true) => "the audit trail is whole\n",
        (true, false) => "what is there of the audit trail is whole; that its end is not cut off was not checked\n",
    });
    text
}

fn export(args: &ExportArgs, global: &GlobalArgs, context: &Context) -> Result<Outcome, Failure> {
    let all = context.settings.selected_repos()?;
    let mut file = HeadFile {
        schema: SCHEMA,
        written: context.ctx.now(),
        program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
        repositories: vec![],
    };
    let (mut records, mut damaged) = (String::new(), vec![]);
    for settings in &all {
        let repo = context.open_repository(settings).map_err(|f| named(f, &settings.name, all.len()))?;
        let mut heads = vec![];
        for name in journals(&repo).map_err(|e| engine_failure(e.into()))? {
            let journal = Journal::new(&repo, name);
            heads.extend(journal.head().map_err(|e| engine_failure(e.into()))?);
            if !args.head {
                let wrong = write_records(&journal, settings, context, &mut records)?;
                damaged.extend(wrong);
            }
        }
        file.repositories.push(HeadsOf { url: place_of(settings), repository_id: repo.id().to_owned(), heads });
    }
    damaged.iter().for_each(|line| output::warning(line));
    let text = match args.head {
        true => format!("{}\n", serde_json::to_string(&file).map_err(not_json)?),
        false => records,
    };
    match &args.to {
        Some(path) => {
            write_new(path, &text)?;
            let document =
                serde_json::json!({"schema": SCHEMA, "file": path.display().to_string(), "damaged": damaged});
            if global.json {
                output::result(global.form(), &document, String::new)?;
            }
        }
        None => output::text(&text)?,
    }
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::Damage })
}

fn not_json(e: serde_json::Error) -> Failure {
    Failure::failed("E-INTERNAL", format!("the result cannot be written as JSON: {e}"))
}

/// One line of JSON for each; returns what could not be read.
fn write_records(
    journal: &Journal<'_>,
    settings: &RepoSettings,
    context: &Context,
    out: &mut String,
) -> Result<Vec<String>, Failure> {
    let mut damaged = vec![];
    for number in journal.numbers().map_err(|e| engine_failure(e.into()))? {
        context.ctx.check_cancelled().map_err(engine_failure)?;
        match journal.read(number) {
            Ok(opened) => {
                let line =
                    serde_json::json!({"repository": settings.name, "hash": opened.hash, "record": opened.record});
                out.push_str(&serde_json::to_string(&line).map_err(not_json)?);
                out.push('\n');
            }
            Err(e) if e.is_damage() => damaged.push(format!("E-AUDIT-DAMAGED record {number} cannot be read: {e}")),
            Err(e) => return Err(engine_failure(e.into())),
        }
    }
    Ok(damaged)
}

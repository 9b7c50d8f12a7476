//! `check`, also as a Nagios plug-in.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use pgark_dr::trail::{self, Waits};
use pgark_engine::check::{CheckOptions, Checked, Finding, Goals, SpaceLook, Verdict, check};
use pgark_engine::several::Member;
use pgark_repo::audit::JournalName;
use pgark_repo::store::{Ability, Capability};

use super::context::{CONNECT_TIMEOUT, Context, Opened, closed_alone, engine_failure, place_of};
use super::{Outcome, space};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::output::{self, timestamp};
use crate::settings::RepoSettings;
use crate::settings::schedule::{Job, Schedule};
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// One line and the exit codes of a Nagios plug-in: 0 ok, 1 warning, 2 critical, 3 unknown
    #[arg(long)]
    nagios: bool,
    /// How long WAL may take to arrive
    #[arg(long, value_name = "TIME", default_value = "60s")]
    archive_timeout: Span,
    /// Do not switch WAL to see it arrive
    #[arg(long)]
    no_switch: bool,
    /// How long the objects of each repository may be counted
    #[arg(long, value_name = "TIME", default_value = "60s")]
    count_for: Span,
}

pub fn run(args: CheckArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let nagios = args.nagios;
    let done = look_and_tell(args, global);
    match done {
        // Whoever runs plug-ins knows four codes, and reads standard output alone.
        Err(failure) if nagios => unable(&failure),
        done => done,
    }
}

/// Nothing could be checked: for a plug-in unknown where it is called wrongly, else critical.
fn unable(failure: &Failure) -> Result<Outcome, Failure> {
    let (exit, state) = match failure.exit {
        Exit::Usage => (Exit::Warnings, "UNKNOWN"),
        _ => (Exit::Usage, "CRITICAL"),
    };
    let hint = failure.hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    output::text(&format!("PGARK {state} - {}: {}{}\n", failure.code, escape(&failure.message), escape(&hint)))?;
    Ok(exit)
}

fn look_and_tell(args: CheckArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?.admitting_writers();
    let opened = context.open_members_to_look()?;
    // Of several, each is a finding.
    if let [only] = opened.members.as_slice() {
        let books = pgark_repo::catalog::CatalogStore::new(&only.repo, &context.cluster()?);
        books.read().map_err(|e| engine_failure(e.into()))?;
    }
    super::archive::drain_spool(&context, &opened.members)?;
    let options = CheckOptions {
        several: opened.is_several(),
        spool: super::archive::spool_of(&context)?,
        cluster: context.cluster()?,
        pgdata: context.cluster_settings()?.pgdata.clone(),
        connect: context.connect_options()?,
        connect_timeout: CONNECT_TIMEOUT,
        archive_timeout: args.archive_timeout.0,
        switch: !args.no_switch,
        space: looks(&context, &opened, args.count_for)?,
        goals: goals(&context)?,
    };
    let Checked { mut findings, capabilities } = check_all(&context, &opened, &options);
    findings.extend(opened.away.iter().map(|(name, failure)| Finding {
        name: "repository",
        repository: Some(name.clone()),
        verdict: Verdict::Failed,
        message: format!("{}: {}", failure.code, failure.message),
    }));
    let worst = findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::NotChecked);
    if args.nagios {
        output::text(&nagios(&findings, worst))?;
        return Ok(match worst {
            Verdict::Ok => Exit::Done,
            Verdict::Warning => Exit::Failed,
            Verdict::Failed => Exit::Usage,
            Verdict::NotChecked => Exit::Warnings,
        });
    }
    let document = serde_json::json!({
        "schema": SCHEMA,
        "ok": worst == Verdict::Ok,
        "checks": findings.iter().map(document).collect::<Vec<_>>(),
        "capabilities": capabilities.iter().map(ability).collect::<Vec<_>>(),
        "repositories": opened.members.iter().filter_map(|m| {
            let found = options.space.get(&m.name)?.measured.as_ref().ok()?;
            Some(space::document(&m.name, &m.repo.store().url(), found))
        }).collect::<Vec<_>>(),
    });
    output::result(global.form(), &document, || text(&findings) + &abilities(&capabilities))?;
    Ok(match worst {
        Verdict::Ok => Exit::Done,
        Verdict::Warning | Verdict::NotChecked => Exit::Warnings,
        Verdict::Failed => Exit::Failed,
    })
}

/// A copy that this host would not open when it is the only one left.
fn refused_alone(context: &Context, member: &Member) -> Option<Finding> {
    let failure = context.key_pin(&**member.repo.store())?.check(&member.repo).err()?;
    let hint = failure.hint.map(|hint| format!(": {hint}")).unwrap_or_default();
    Some(Finding {
        name: "key",
        repository: Some(member.name.clone()),
        verdict: Verdict::Failed,
        message: format!("this host would not read it alone: {}: {}{hint}", failure.code, failure.message),
    })
}

/// A copy that was opened with the keys of another one, and would not be with its own secret.
fn closed_copy(context: &Context, member: &Member) -> Option<Finding> {
    let all = context.settings.selected_repos().ok()?;
    let failure = context.not_opened_alone(all.iter().find(|settings| settings.name == member.name)?)?;
    let (repository, message) = (Some(member.name.clone()), closed_alone(&failure));
    Some(Finding { name: "key", repository, verdict: Verdict::Warning, message })
}

/// What it finds without changing anything, for who is told of it.
pub fn look(context: &Context) -> Result<Vec<Finding>, Failure> {
    let opened = context.open_members_to_look()?;
    let options = CheckOptions {
        several: opened.is_several(),
        spool: super::archive::spool_of(context)?,
        cluster: context.cluster()?,
        pgdata: context.cluster_settings()?.pgdata.clone(),
        connect: context.connect_options()?,
        connect_timeout: CONNECT_TIMEOUT,
        archive_timeout: Duration::ZERO,
        switch: false,
        space: looks(context, &opened, COUNT_FOR)?,
        goals: goals(context)?,
    };
    Ok(check_all(context, &opened, &options).findings)
}

fn check_all(context: &Context, opened: &Opened, options: &CheckOptions) -> Checked {
    let mut checked = check(options, &opened.members, &context.ctx);
    let copies = || opened.members.iter().skip(1);
    checked.findings.extend(copies().filter_map(|member| refused_alone(context, member)));
    checked.findings.extend(copies().filter_map(|member| closed_copy(context, member)));
    checked.findings.extend(audit_trail(context, opened, options.several));
    checked
}

/// Audit records that wait on this host, for each repository; and whether its journals carry on what this host has seen.
fn audit_trail(context: &Context, opened: &Opened, several: bool) -> Vec<Finding> {
    let (Some(dir), Ok(cluster), Ok(all)) =
        (&context.settings.state_dir, context.cluster(), context.settings.selected_repos())
    else {
        return vec![];
    };
    let journals = [JournalName::Cluster(cluster), JournalName::Repository];
    let look = |settings: &RepoSettings| {
        let waits: std::io::Result<Vec<Waits>> =
            journals.iter().map(|journal| trail::waits(dir, &place_of(settings), journal)).collect();
        let member = opened.members.iter().find(|member| member.name == settings.name);
        let cut = |journal: &JournalName| {
            let repo = &member?.repo;
            // A writer has the journal of its cluster alone.
            let is_closed = repo.keys().writes_only().is_some() && *journal == JournalName::Repository;
            let found = (!is_closed).then(|| trail::contradiction(dir, repo, &place_of(settings), journal))?;
            let what = found.unwrap_or_else(|e| Some(format!("its end cannot be read: {e}")))?;
            Some((Verdict::Warning, format!("{what}; see 'pgark audit verify'")))
        };
        let (verdict, message) = match (journals.iter().find_map(cut), waits) {
            (Some(cut), _) => cut,
            (None, Ok(waits)) => waiting(&waits),
            (None, Err(e)) => (Verdict::NotChecked, format!("what waits on this host: {e}")),
        };
        // Its own end of the trail was not seen.
        let verdict = if member.is_none() && verdict == Verdict::Ok { Verdict::NotChecked } else { verdict };
        Finding { name: "audit trail", repository: several.then(|| settings.name.clone()), verdict, message }
    };
    all.iter().map(look).collect()
}

fn waiting(waits: &[Waits]) -> (Verdict, String) {
    let records: usize = waits.iter().map(|w| w.records).sum();
    let Some(since) = waits.iter().filter_map(|w| w.since).min() else {
        return (Verdict::Ok, "no record waits on this host".into());
    };
    let what = format!("{records} records wait on this host since {}", timestamp(since));
    match waits.iter().any(|w| w.was_refused && w.records > 0) {
        true => (
            Verdict::Warning,
            format!("{what}: the repository did not take them; they go there with the next command that opens it"),
        ),
        false => (Verdict::Ok, format!("{what}, for the next command that opens the repository")),
    }
}

/// Of a schedule: a year of monthly ones has each length of a month.
const DRILLS_LOOKED_AT: usize = 13;

/// It is asked every few minutes.
const COUNT_FOR: Span = Span(Duration::from_secs(10));

/// A cluster whose drills are configured has one each month, unless something else is said.
const DRILL_EVERY: Duration = Duration::from_secs(31 * 24 * 3600);

fn goals(context: &Context) -> Result<Goals, Failure> {
    let settings = context.cluster_settings()?;
    let every = settings.drill.as_ref().and_then(|drill| drill.every).map(|every| every.0);
    let drill_every =
        every.or_else(|| scheduled_drills(context, &settings.name)).or(settings.drill.as_ref().map(|_| DRILL_EVERY));
    Ok(Goals { rpo: settings.rpo, rto: settings.rto, drill_every })
}

/// How long there may be none by the schedules of this cluster, of several by the one that is most often.
fn scheduled_drills(context: &Context, cluster: &str) -> Option<Duration> {
    let drills = context.settings.schedules.iter().filter(|s| s.job == Job::Drill && s.cluster == cluster);
    let longest = |schedule: &Schedule| {
        let plan = schedule.plan().ok()?;
        let runs = plan.upcoming(context.ctx.now(), DRILLS_LOOKED_AT);
        let gaps = runs.windows(2).filter_map(|two| Duration::try_from(two[1].duration_since(two[0])).ok());
        Some(gaps.max()? + plan.deadline())
    };
    drills.filter_map(longest).min()
}

/// A repository that cannot be counted is told as such; the other checks go on.
fn looks(context: &Context, opened: &Opened, count_for: Span) -> Result<BTreeMap<String, SpaceLook>, Failure> {
    let selected = context.settings.selected_repos()?;
    let look = |m: &Member| {
        let settings = selected.iter().find(|s| s.name == m.name)?;
        let measured = crate::space::look(context, settings, &m.repo, count_for.0);
        let measured = measured.map_err(|failure| format!("{}: {}", failure.code, failure.message));
        Some((m.name.clone(), SpaceLook { rules: settings.space.rules, measured }))
    };
    Ok(opened.members.iter().filter_map(look).collect())
}

fn word(v: Verdict) -> &'static str {
    match v {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::NotChecked => "not checked",
        Verdict::Failed => "FAILED",
    }
}

fn document(f: &Finding) -> serde_json::Value {
    let mut document = serde_json::json!({"name": f.name, "verdict": word(f.verdict), "message": f.message});
    if let Some(repository) = &f.repository {
        document["repository"] = repository.as_str().into();
    }
    document
}

fn state(ability: Ability) -> &'static str {
    match ability {
        Ability::Yes => "yes",
        Ability::No => "no",
        Ability::NotChecked => "not checked",
    }
}

fn ability((repository, can): &(Option<String>, Capability)) -> serde_json::Value {
    let mut document = serde_json::json!({"name": can.name, "state": state(can.state), "reason": can.reason});
    if let Some(repository) = repository {
        document["repository"] = repository.as_str().into();
    }
    document
}

fn abilities(all: &[(Option<String>, Capability)]) -> String {
    let line = |(repository, can): &(Option<String>, Capability)| {
        let of = repository.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        format!("{:<12} {:<20} {of}{}\n", state(can.state), can.name, can.reason)
    };
    let lines: String = all.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\nwhat the repository's store can do:\n{lines}") }
}

/// Of several repositories, which one a finding is about.
fn of(f: &Finding) -> String {
    f.repository.as_ref().map(|name| format!("{name}: ")).unwrap_or_default()
}

fn text(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("{:<12} {:<20} {}{}\n", word(f.verdict), f.name, of(f), f.message)).collect()
}

fn nagios(findings: &[Finding], worst: Verdict) -> String {
    let state = match worst {
        Verdict::Ok => "OK",
        Verdict::Warning => "WARNING",
        Verdict::Failed => "CRITICAL",
        Verdict::NotChecked => "UNKNOWN",
    };
    let bad: Vec<String> = findings
        .iter()
        .filter(|f| f.verdict != Verdict::Ok)
        .map(|f| format!("{}: {}{}", f.name, of(f), f.message))
        .collect();
    let what = if bad.is_empty() { format!("{} checks passed", findings.len()) } else { bad.join("; ") };
    format!("PGARK {state} - {what}\n")
}

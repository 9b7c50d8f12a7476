//! `wal list` and `wal history`: what the archive holds, and what happened when.

use std::collections::BTreeMap;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use pgark_engine::archive::events::{Event, EventKind, HistoryOptions, WalHistory, wal_history};
use pgark_engine::archive::listing::{self, SegmentListing, SegmentsListing, TimelineListing};
use pgark_engine::info::Gap;
use pgark_pg::value::{SegmentName, SegmentNo, SegmentSize, TimelineId};
use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::wal::{Ending, WalArchive, WalHead};
use serde_json::{Value, json};

use super::Outcome;
use super::context::{Context, engine_failure};
use super::target::{parse_moment, timeline_number};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, Align, Table, timestamp};

#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Timelines, unbroken ranges and gaps of the archive
    List(ListArgs),
    /// Commits by period, restore points, and what dropped, truncated, deleted or updated a lot
    History(HistoryArgs),
}

#[derive(Debug, Args)]
pub struct WalArgs {
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// List every segment
    #[arg(long)]
    segments: bool,
    /// This timeline only
    #[arg(long, value_name = "N")]
    timeline: Option<String>,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Leave out what was committed before this time
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Leave out what was committed after this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Length of the periods in which commits are counted
    #[arg(long, value_name = "PERIOD", default_value = "hour")]
    period: Period,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Period {
    Minute,
    Hour,
    Day,
}

impl Period {
    fn start(self, minute: Timestamp) -> Timestamp {
        let seconds = match self {
            Period::Minute => 60,
            Period::Hour => 3600,
            Period::Day => 86_400,
        };
        let start = minute.as_second().div_euclid(seconds) * seconds;
        Timestamp::from_second(start).unwrap_or(minute)
    }
}

/// The archive of the cluster that is meant.
struct Archive {
    name: String,
    wal: WalArchive,
    head: WalHead,
    size: SegmentSize,
}

pub fn run(args: WalArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let context = match args.command {
        WalCommand::List(_) => context.admitting_writers(),
        WalCommand::History(_) => context,
    };
    context.stop_on_signals()?;
    let repo = context.open_first_with_books()?;
    let archive = open(&repo, &context)?;
    match args.command {
        WalCommand::List(args) => list(&args, global, &context, &archive),
        WalCommand::History(args) => history(&args, global, &context, &archive),
    }
}

fn open(repo: &Repository, context: &Context) -> Result<Archive, Failure> {
    let cluster = context.cluster()?;
    let failed = |e: pgark_repo::RepoError| engine_failure(e.into());
    let catalog = CatalogStore::new(repo, &cluster).read().map_err(failed)?;
    let none = || pgark_repo::RepoError::NoCluster { url: repo.store().url(), cluster: cluster.to_string() };
    let lineage = catalog.lineage().ok_or_else(|| failed(none()))?;
    let wal = WalArchive::new(repo, &cluster, lineage.system_id);
    // What the books name and is not there is a gap.
    let head = wal.head().and_then(|head| wal.present(&head, lineage.segment_size)).map_err(failed)?;
    Ok(Archive { name: cluster.to_string(), wal, head, size: lineage.segment_size })
}

fn list(args: &ListArgs, global: &GlobalArgs, context: &Context, a: &Archive) -> Result<Outcome, Failure> {
    let only = args.timeline.as_deref().map(timeline_number).transpose()?;
    let mut timelines = listing::timelines(&a.wal, &a.head, a.size).map_err(engine_failure)?;
    timelines.retain(|t| only.is_none_or(|only| only == t.timeline));
    let segments = if args.segments {
        listing::segments(&context.ctx, &a.wal, &a.head, a.size, only, context.jobs()).map_err(engine_failure)?
    } else {
        SegmentsListing::default()
    };
    let mut document = json!({"schema": SCHEMA, "cluster": a.name,
        "timelines": timelines.iter().map(|t| timeline_json(t, a.size)).collect::<Vec<_>>()});
    if args.segments {
        document["segments"] = segments.segments.iter().map(|s| segment_json(s, a.size)).collect();
        document["not_opened"] = segments.unopened.into();
    }
    output::result(global.form(), &document, || {
        let mut out: String = timelines.iter().map(|t| timeline_text(t, a.size)).collect();
        if timelines.is_empty() {
            out += "no WAL is archived\n";
        }
        if args.segments {
            out += &segments_text(&segments.segments, a.size);
        }
        if segments.unopened > 0 {
            out += &format!("{} segments are not shown: a writer's secret does not open them\n", segments.unopened);
        }
        out
    })?;
    Ok(Exit::Done)
}

fn timeline_json(t: &TimelineListing, size: SegmentSize) -> Value {
    let name = |segment| SegmentName { timeline: t.timeline, segment }.format(size);
    let ranges = t.ranges.iter().map(|r| {
        json!({"first": name(r.first), "last": name(r.last), "segments": r.last.0 - r.first.0 + 1,
            "from_lsn": r.from_lsn, "to_lsn": r.to_lsn, "from_time": r.from_time, "to_time": r.to_time, "not_opened": r.unopened})
    });
    json!({"timeline": t.timeline,
        "parent": t.begins.as_ref().map(|b| b.parent), "switch_lsn": t.begins.as_ref().map(|b| b.lsn),
        "reason": t.begins.as_ref().map(|b| &b.reason), "history_missing": t.history_missing,
        "history_not_opened": t.history_unopened,
        "ranges": ranges.collect::<Vec<_>>(),
        "expired": t.expired.iter().map(|(a, b)| json!({"first": name(*a), "last": name(*b),
            "segments": b.0 - a.0 + 1})).collect::<Vec<_>>(),
        "gaps": t.gaps.iter().map(|g| gap_json(g, size)).collect::<Vec<_>>()})
}

fn gap_json(gap: &Gap, size: SegmentSize) -> Value {
    let (first, last) = gap.names(size);
    json!({"timeline": gap.timeline, "first": first, "last": last, "segments": gap.last.0 - gap.first.0 + 1})
}

fn segment_json(s: &SegmentListing, size: SegmentSize) -> Value {
    json!({"name": s.name.format(size), "timeline": s.name.timeline, "from_lsn": s.from_lsn, "to_lsn": s.to_lsn,
        "ending": s.ending, "records": s.records, "transaction_ends": s.transaction_ends,
        "from_time": s.from_time, "to_time": s.to_time, "restore_points": s.restore_points})
}

fn timeline_text(t: &TimelineListing, size: SegmentSize) -> String {
    let mut out = match &t.begins {
        Some(b) => format!("timeline {}, left timeline {} at {} ({})\n", t.timeline, b.parent, b.lsn, b.reason),
        None if t.history_unopened => format!("timeline {}, begun where a writer's secret does not tell\n", t.timeline),
        None if t.history_missing => format!("timeline {}: ITS HISTORY FILE IS MISSING\n", t.timeline),
        None => format!("timeline {}\n", t.timeline),
    };
    let name = |segment: SegmentNo| SegmentName { timeline: t.timeline, segment }.format(size);
    for (a, b) in &t.expired {
        out += &format!("  {} to {} ({} segments) have expired\n", name(*a), name(*b), b.0 - a.0 + 1);
    }
    let mut gaps = t.gaps.iter().peekable();
    for r in &t.ranges {
        while let Some(g) = gaps.next_if(|g| g.first < r.first) {
            let (first, last) = g.names(size);
            out += &format!("  WAL GAP: {first} to {last} ({} segments)\n", g.last.0 - g.first.0 + 1);
        }
        out += &format!(
            "  {} to {} ({} segments, {} to {}; transactions {})\n",
            name(r.first),
            name(r.last),
            r.last.0 - r.first.0 + 1,
            r.from_lsn,
            r.to_lsn.map_or("?".to_owned(), |lsn| lsn.to_string()),
            match (r.unopened, span(r.from_time, r.to_time)) {
                (false, span) => span,
                (true, span) => format!("{span}, as far as a writer sees"),
            }
        );
    }
    out
}

fn span(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => format!("from {} to {}", timestamp(from), timestamp(to)),
        (Some(at), None) | (None, Some(at)) => format!("about {}", timestamp(at)),
        (None, None) => "none".into(),
    }
}

fn segments_text(segments: &[SegmentListing], size: SegmentSize) -> String {
    let mut table = Table::new(&[
        ("segment", Align::Left),
        ("valid to", Align::Left),
        ("ends", Align::Left),
        ("records", Align::Right),
        ("transactions", Align::Right),
        ("first (UTC)", Align::Left),
        ("last (UTC)", Align::Left),
        ("restore points", Align::Left),
    ]);
    for s in segments {
        let time = |t: Option<Timestamp>| t.map_or_else(String::new, timestamp);
        table.row([
            s.name.format(size),
            s.to_lsn.to_string(),
            ending(s.ending).into(),
            s.records.to_string(),
            s.transaction_ends.to_string(),
            time(s.from_time),
            time(s.to_time),
            s.restore_points.as_ref().map_or("not shown to a writer".to_owned(), |p| p.join(", ")),
        ]);
    }
    table.to_text()
}

fn ending(e: Ending) -> &'static str {
    match e {
        Ending::Filled | Ending::Crossing => "full",
        Ending::Switch => "switch",
        Ending::Ended => "unfinished",
    }
}

fn history(args: &HistoryArgs, global: &GlobalArgs, context: &Context, a: &Archive) -> Result<Outcome, Failure> {
    let moment = |t: &Option<String>| t.as_deref().map(parse_moment).transpose();
    let options = HistoryOptions { from: moment(&args.from)?, to: moment(&args.to)?, jobs: context.jobs() };
    let found = wal_history(&context.ctx, &a.wal, &a.head, a.size, &options).map_err(engine_failure)?;
    let mut periods: BTreeMap<(TimelineId, Timestamp), u64> = BTreeMap::new();
    for c in &found.commits {
        *periods.entry((c.timeline, args.period.start(c.minute))).or_default() += c.commits;
    }
    let latest = a.head.timelines().iter().map(|t| t.timeline).max();
    let before = |e: &Event| restore_before(e, latest);
    let document = json!({"schema": SCHEMA, "cluster": a.name, "from": options.from, "to": options.to,
        "segments": found.segments, "not_listed": found.not_listed,
        "events": found.events.iter().map(|e| event_json(e, &before(e), a.size)).collect::<Vec<_>>(),
        "periods": periods.iter().map(|((timeline, start), commits)| json!({"timeline": timeline, "start": start,
            "commits": commits})).collect::<Vec<_>>()});
    output::result(global.form(), &document, || history_text(&found, &periods, &before, a.size))?;
    Ok(Exit::Done)
}

/// The flags of a restore that ends just before an event.
fn restore_before(e: &Event, latest: Option<TimelineId>) -> Vec<String> {
    let harmless = matches!(
        e.kind,
        EventKind::RestorePoint(_)
            | EventKind::TimelineSwitch { .. }
            | EventKind::Gap(_)
            | EventKind::WalLevelMinimal
            | EventKind::FullPageWritesOff
    );
    // Without its commit, an event has no place of its own.
    let dated = e.time.is_some() || e.kind == EventKind::DropDatabase;
    if harmless || !dated {
        return vec![];
    }
    let mut flags = vec!["--target-lsn".to_owned(), e.lsn.to_string(), "--target-exclusive".to_owned()];
    if latest.is_some_and(|l| l != e.timeline) {
        flags.extend(["--target-timeline".to_owned(), e.timeline.to_string()]);
    }
    flags
}

fn kind(e: &EventKind) -> &'static str {
    match e {
        EventKind::RestorePoint(_) => "restore_point",
        EventKind::Drop => "drop",
        EventKind::Truncate => "truncate",
        EventKind::Rewrite => "rewrite",
        EventKind::Delete => "delete",
        EventKind::Update => "update",
        EventKind::CreateDatabase => "create_database",
        EventKind::DropDatabase => "drop_database",
        EventKind::WalLevelMinimal => "wal_level_minimal",
        EventKind::FullPageWritesOff => "full_page_writes_off",
        EventKind::TimelineSwitch { .. } => "timeline_switch",
        EventKind::Gap(_) => "gap",
    }
}

fn event_json(e: &Event, before: &[String], size: SegmentSize) -> Value {
    let counts_rows = matches!(e.kind, EventKind::Delete | EventKind::Update);
    let counts_files = matches!(e.kind, EventKind::Drop | EventKind::Truncate | EventKind::Rewrite);
    let mut value = json!({"kind": kind(&e.kind), "timeline": e.timeline, "time": e.time, "lsn": e.lsn, "xid": e.xid,
        "rows": counts_rows.then_some(e.count), "files": counts_files.then_some(e.count), "restore_before": (!before.is_empty()).then_some(before),
        "relations": e.tables.iter().map(|t| json!({"tablespace": t.spc, "database": t.db, "relfilenode": t.rel,
            "deleted": t.deleted, "updated": t.updated})).collect::<Vec<_>>()});
    match &e.kind {
        EventKind::RestorePoint(name) => {
            value["name"] = json!(name);
            value["restore_to"] = json!(["--target-name", name]);
        }
        EventKind::TimelineSwitch { parent, reason } => {
            value["parent"] = json!(parent);
            value["reason"] = json!(reason);
        }
        EventKind::Gap(gap) => value["gap"] = gap_json(gap, size),
        _ => {}
    }
    value
}

fn history_text(
    found: &WalHistory,
    periods: &BTreeMap<(TimelineId, Timestamp), u64>,
    before: &dyn Fn(&Event) -> Vec<String>,
    size: SegmentSize,
) -> String {
    let mut table = Table::new(&[
        ("time (UTC)", Align::Left),
        ("event", Align::Left),
        ("timeline", Align::Right),
        ("lsn", Align::Left),
        ("xid", Align::Right),
        ("what", Align::Left),
    ]);
    for e in &found.events {
        table.row([
            e.time.map_or_else(|| "not known".into(), timestamp),
            kind(&e.kind).replace('_', " "),
            e.timeline.to_string(),
            e.lsn.to_string(),
            e.xid.map_or_else(String::new, |x| x.to_string()),
            what(e, size),
        ]);
    }
    let mut out = if found.events.is_empty() { "no events\n".to_owned() } else { table.to_text() };
    if let Some(last) = found.events.iter().rfind(|e| !before(e).is_empty()) {
        out += &format!(
            "\nto restore to just before an event: its lsn, as in 'pgark restore {} --to DIR'\n",
            before(last).join(" ")
        );
    }
    if found.not_listed > 0 {
        out += &format!("{} more are not listed: the indexes have no room for them\n", found.not_listed);
    }
    let mut table =
        Table::new(&[("period from (UTC)", Align::Left), ("timeline", Align::Right), ("commits", Align::Right)]);
    for ((timeline, start), commits) in periods {
        table.row([timestamp(*start), timeline.to_string(), commits.to_string()]);
    }
    if periods.is_empty() { out + "\nno commits\n" } else { out + "\n" + &table.to_text() }
}

fn what(e: &Event, size: SegmentSize) -> String {
    let relations = || {
        let names: Vec<String> = e.tables.iter().map(|t| format!("{}/{}/{}", t.spc, t.db, t.rel)).collect();
        let shown = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
        if names.len() > 4 { format!("{shown}, …") } else { shown }
    };
    match &e.kind {
        EventKind::RestorePoint(name) => format!("'{}'", name.escape_debug()),
        EventKind::Drop | EventKind::Truncate | EventKind::Rewrite => {
            format!("{} {}: {}", e.count, if e.count == 1 { "file" } else { "files" }, relations())
        }
        EventKind::Delete | EventKind::Update => format!("at least {} rows: {}", e.count, relations()),
        EventKind::CreateDatabase | EventKind::DropDatabase => {
            e.tables.iter().map(|t| format!("database {}, tablespace {}", t.db, t.spc)).collect()
        }
        EventKind::WalLevelMinimal => "no recovery across this place".into(),
        EventKind::FullPageWritesOff => "torn pages cannot be repaired".into(),
        EventKind::TimelineSwitch { parent, reason } => format!("from timeline {parent}: {}", reason.escape_debug()),
        EventKind::Gap(gap) => {
            let (first, last) = gap.names(size);
            format!("{first} to {last} are missing")
        }
    }
}

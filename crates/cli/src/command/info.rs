//! `info`: what there is, and what can be restored from it.

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use pgark_engine::capacity::Measured;
use pgark_engine::capacity::cost::Cost;
use pgark_engine::expire::revive::not_listed;
use pgark_engine::info::{self, ClusterInfo, Dumped};
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, CatalogStore};
use pgark_repo::record::{PartsRecord, Record};

use super::context::{Context, FirstOf, engine_failure, is_away};
use super::delete::parse_id;
use super::documents::{
    BaseDocument, InfoDocument, database, evidence, globals, holds, kind_name, type_name, version_text,
};
use super::rehearsed::Rehearsed;
use super::{Outcome, space};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Align, Form, Table, human_bytes, timestamp};
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// One backup in detail
    id: Option<String>,
    /// The form; pgbackrest-json is for tools that read 'pgbackrest info --output=json'
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputArg,
    /// Also what the repository costs in a month, by the prices in pgark.toml
    #[arg(long, conflicts_with = "id")]
    cost: bool,
    /// How long the objects of the repository may be counted; 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "5s")]
    count_for: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputArg {
    Text,
    Json,
    PgbackrestJson,
}

pub fn run(args: InfoArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?.admitting_writers();
    let form = if args.output == OutputArg::Json { Form::Json } else { global.form() };
    // Without a name, what is there is what is of interest.
    let named = global.cluster.is_some() || std::env::var_os("PGARK_CLUSTER").is_some();
    let cluster = context.cluster()?;
    let only = (named || args.id.is_some()).then_some(&cluster);
    let (only, ctx) = (only.cloned(), context.ctx.clone());
    let found = context.first_that(move |repo| info::info(repo, only.as_ref(), &ctx).map_err(engine_failure))?;
    let FirstOf { settings, repo, seen: mut clusters, passed_over } = found;
    // One that is away is no news of what lies in it.
    let exit = if passed_over.iter().all(is_away) { Exit::Done } else { Exit::Warnings };
    if let Some(id) = &args.id {
        let id = parse_id(id)?;
        let found = clusters.iter().flat_map(|c| &c.backups).find(|b| b.id == id);
        let none = || match CatalogStore::new(&repo, &cluster).read() {
            Ok(catalog) => not_listed(&catalog, &id),
            Err(e) => e.into(),
        };
        let entry = found.ok_or_else(|| engine_failure(none()))?;
        let record = match Record::load(&repo, &cluster, &id, &entry.record).map_err(|e| engine_failure(e.into()))? {
            Record::Physical(record) => record,
            Record::Parts(record) => {
                let document = parts_document(entry, &record);
                output::result(form, &document, || serde_json::to_string_pretty(&document).unwrap_or_default() + "\n")?;
                return Ok(exit);
            }
        };
        let document = serde_json::json!({
            "schema": crate::failure::SCHEMA, "id": id.to_string(), "cluster": cluster.to_string(),
            "type": type_name(record.backup_type), "base": record.base.as_ref().map(BaseDocument::new),
            "started": record.started, "finished": record.finished, "program": record.program,
            "lsn_start": record.lsn_start, "lsn_stop": record.lsn_stop, "timeline": record.timeline,
            "pg_version": version_text(record.version_num), "data_checksums": record.data_checksums,
            "files": record.totals.files, "size_bytes": record.totals.size_bytes, "stored_bytes": entry.stored_bytes,
            "packs": record.totals.packs, "bad_blocks": record.bad_blocks, "vanished_files": record.vanished_files,
            "tablespaces": record.tablespaces.iter().map(|t| serde_json::json!({"oid": t.oid,
                "location": String::from_utf8_lossy(&t.location)})).collect::<Vec<_>>(),
            "kept": entry.kept, "kept_until": entry.kept_until, "holds": holds(entry), "damaged": entry.damaged,
            "warnings": record.warnings, "evidence": evidence(entry.evidence), "drilled": entry.drilled, "annotations": entry.annotations,
        });
        output::result(form, &document, || serde_json::to_string_pretty(&document).unwrap_or_default() + "\n")?;
        return Ok(exit);
    }
    if args.output == OutputArg::PgbackrestJson {
        pgbackrest(&clusters)?;
        return Ok(exit);
    }
    let room = crate::space::look(&context, &settings, &repo, args.count_for.0);
    let cost = match (&room, args.cost) {
        (Ok(found), true) => Some(space::cost_of(&context.settings, &settings, found)?),
        (Err(failure), true) => return Err(failure.clone()),
        (_, false) => None,
    };
    let rehearsed: Vec<Rehearsed> =
        clusters.iter().map(|c| Rehearsed::of(c, &repo, &context.settings, &context.ctx)).collect();
    let dumped: Vec<Option<Vec<Dumped>>> = clusters.iter_mut().map(|c| dumped(c, &repo)).collect();
    let document = InfoDocument::new(
        &clusters,
        &rehearsed,
        &dumped,
        room_document(&settings.name, &repo, &room, cost.as_ref()),
        &passed_over,
    );
    output::result(form, &document, || {
        let each = clusters.iter().zip(&dumped).zip(&rehearsed);
        let mut all: Vec<String> =
            each.map(|((c, dumped), r)| text(c) + &dumped_text(dumped.as_deref()) + &r.text()).collect();
        all.push(room_text(&repo, &room, cost.as_ref()));
        all.join("\n")
    })?;
    // What could not be found out is shown, and never counts as fine.
    let unknown =
        room.is_err() || clusters.iter().any(|c| !c.problems.is_empty()) || rehearsed.iter().any(Rehearsed::is_unknown);
    Ok(if unknown { Exit::Warnings } else { exit })
}

/// A dump whose record cannot be read does not restore: that is a problem of the cluster.
fn dumped(cluster: &mut ClusterInfo, repo: &Repository) -> Option<Vec<Dumped>> {
    match info::dumped(repo, cluster) {
        Ok(found) => found,
        Err(e) => {
            cluster.problems.push(format!("of which databases the dumps are is unknown: {e}"));
            None
        }
    }
}

fn dumped_text(dumped: Option<&[Dumped]>) -> String {
    let line = |d: &Dumped| {
        let what = if d.is_partial { "parts of database" } else { "database" };
        let name = d.database.escape_debug();
        format!("  {what} '{name}' can be restored as it was at {} ({})\n", timestamp(d.begun), d.backup)
    };
    dumped.unwrap_or_default().iter().map(line).collect()
}

fn parts_document(entry: &BackupEntry, record: &PartsRecord) -> serde_json::Value {
    serde_json::json!({
        "schema": crate::failure::SCHEMA, "id": record.id.to_string(), "cluster": record.cluster.to_string(),
        "kind": record.kind.as_str(), "type": type_name(record.backup_type),
        "compared_with": record.base.as_ref().map(ToString::to_string), "started": record.started,
        "finished": record.finished, "program": record.program, "pg_version": version_text(record.version_num),
        "databases": record.databases.iter().map(database).collect::<Vec<_>>(),
        "globals": record.globals.as_ref().map(globals), "files": record.totals.files,
        "contents": record.files.as_ref().map(super::backup_files::document),
        "size_bytes": record.totals.size_bytes, "stored_bytes": entry.stored_bytes, "packs": record.totals.packs,
        "kept": entry.kept, "kept_until": entry.kept_until, "holds": holds(entry), "damaged": entry.damaged,
        "warnings": record.warnings, "evidence": evidence(entry.evidence), "drilled": entry.drilled, "annotations": entry.annotations,
    })
}

type Looked = Result<Measured, Failure>;

/// That a repository cannot be counted hides nothing else of it.
fn room_document(name: &str, repo: &Repository, room: &Looked, cost: Option<&Cost>) -> serde_json::Value {
    let mut document = match room {
        Ok(found) => space::document(name, &repo.store().url(), found),
        Err(e) => {
            serde_json::json!({"name": name, "url": repo.store().url(), "problem": format!("{}: {}", e.code, e.message)})
        }
    };
    if let Some(cost) = cost {
        document["cost"] = space::cost_document(cost);
    }
    document
}

fn room_text(repo: &Repository, room: &Looked, cost: Option<&Cost>) -> String {
    let text = match room {
        Ok(found) => space::text(found),
        Err(e) => format!("  PROBLEM: its room is unknown: {}: {}\n", e.code, e.message),
    };
    format!("repository {}\n{text}{}", repo.store().url(), cost.map(space::cost_text).unwrap_or_default())
}

fn text(c: &ClusterInfo) -> String {
    let mut out =
        format!("cluster {}: PostgreSQL {}, system identifier {}\n", c.name, version_text(c.version_num), c.system_id);
    let mut table = Table::new(&[
        ("backup", Align::Left),
        ("type", Align::Left),
        ("finished (UTC)", Align::Left),
        ("size", Align::Right),
        ("stored", Align::Right),
        ("proven", Align::Left),
        ("", Align::Left),
    ]);
    for b in &c.backups {
        let mut remarks = vec![];
        remarks.extend(b.database_bytes.map(|bytes| format!("databases of {}", human_bytes(bytes))));
        if b.kept {
            remarks.push("kept".to_owned());
        }
        remarks.extend(b.kept_until.map(|until| format!("kept until {}", timestamp(until))));
        remarks.extend(b.holds.iter().map(|h| format!("legal hold '{}'", h.reason.escape_debug())));
        remarks.extend(b.damaged.map(|at| format!("DAMAGED, seen {}", timestamp(at))));
        if b.bad_blocks() > 0 {
            remarks.push(format!("{} damaged pages in the source", b.bad_blocks()));
        }
        table.row([
            b.id.to_string(),
            kind_name(b).into(),
            timestamp(b.finished),
            human_bytes(b.size_bytes),
            human_bytes(b.stored_bytes),
            proven(b),
            remarks.join(", "),
        ]);
    }
    for i in &c.incomplete {
        let state = if i.running { "running" } else { "interrupted" };
        table.row([
            i.id.to_string(),
            String::new(),
            state.into(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]);
    }
    if c.backups.is_empty() && c.incomplete.is_empty() {
        out += "  no backups\n";
    } else {
        out += &indent(&table.to_text());
    }
    for w in &c.windows {
        out += &format!(
            "  can be restored to any moment from {} (timeline {}, {} to {})\n",
            moments(w.from_time, w.to_time),
            w.timeline,
            w.from_lsn,
            w.to_lsn
        );
    }
    for g in &c.gaps {
        let (first, last) = g.names(c.segment_size);
        out += &format!(
            "  WAL GAP on timeline {}: {first} to {last} ({} segments)\n",
            g.timeline,
            g.last.0 - g.first.0 + 1
        );
    }
    if !c.expired_backups.is_empty() || c.expired_segments > 0 {
        out += &format!(
            "  {} backups and {} WAL segments have expired and go after {}\n",
            c.expired_backups.len(),
            c.expired_segments,
            c.expired_due.map_or_else(String::new, timestamp)
        );
        for e in &c.expired_backups {
            out +=
                &format!("  {0} is there until {1}: 'pgark unexpire {0}' brings it back\n", e.backup, timestamp(e.due));
        }
    }
    let lost = c.unrestorable();
    if !lost.is_empty() {
        let ids: Vec<&str> = lost.iter().map(|id| id.as_str()).collect();
        out += &format!(
            "  CANNOT BE RESTORED: {}: WAL that they need is not there; 'pgark verify' says which\n",
            ids.join(", ")
        );
    }
    for p in &c.problems {
        out += &format!("  PROBLEM: {p}\n");
    }
    for p in &c.not_opened {
        out += &format!("  NOT OPENED: {p}\n");
    }
    out
}

fn proven(b: &BackupEntry) -> String {
    b.drilled.map_or_else(|| evidence(b.evidence).to_owned(), |at| format!("drilled {}", timestamp(at)))
}

/// Both ends can be given to `restore --target-time` as they are: seconds within the window, or its exact ends where it
/// holds no two of them.
fn moments(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let (Some(from), Some(to)) = (from, to) else { return "? to ?".into() };
    let second = |s: i64| Timestamp::from_second(s).unwrap_or(from);
    let first = second(from.as_second() + i64::from(from.subsec_nanosecond() > 0));
    let last = second(to.as_second());
    if first < last {
        return format!("{} to {}", timestamp(first), timestamp(last));
    }
    let exact = |t: Timestamp| t.strftime("%Y-%m-%dT%H:%M:%S%.fZ").to_string();
    format!("{} to {}", exact(from), exact(to))
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}

/// What monitoring made for pgBackRest reads, as far as it applies.
fn pgbackrest(clusters: &[ClusterInfo]) -> Result<(), Failure> {
    let backup = |b: &BackupEntry| {
        let physical = b.physical.as_ref();
        serde_json::json!({
            "label": b.id.to_string(), "type": type_name(b.backup_type), "prior": null, "reference": null, "error": b.bad_blocks() > 0,
            "timestamp": {"start": b.started.as_second(), "stop": b.finished.as_second()},
            "lsn": physical.map(|p| serde_json::json!({"start": p.lsn_start, "stop": p.lsn_stop})),
            "info": {"size": b.size_bytes, "delta": b.read_bytes,
                "repository": {"size": b.stored_bytes, "delta": b.stored_bytes}},
            "database": {"id": 1, "repo-key": 1}, "annotation": b.annotations,
        })
    };
    let stanzas: Vec<_> = clusters
        .iter()
        .map(|c| {
            let ok = !c.backups.is_empty();
            let system_id: serde_json::Value = c.system_id.0.into();
            serde_json::json!({
                "name": c.name.to_string(), "cipher": "unknown",
                "status": {"code": if ok { 0 } else { 2 }, "message": if ok { "ok" } else { "no valid backups" },
                    "lock": {"backup": {"held": c.incomplete.iter().any(|i| i.running)}}},
                "db": [{"id": 1, "repo-key": 1, "system-id": system_id, "version": version_text(c.version_num / 10_000 * 10_000)}],
                "backup": c.backups.iter().filter(|b| b.kind == BackupKind::Physical).map(backup).collect::<Vec<_>>(),
            })
        })
        .collect();
    output::write_json(&mut std::io::stdout().lock(), &stanzas)
}

//! `unexpire ID`: brings back what retention gave up and has not removed yet.

use clap::Args;
use pgark_engine::expire::revive::{self, RevivePlan};
use pgark_pg::value::SegmentName;
use pgark_repo::wal::SegmentRange;

use super::Outcome;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use super::keep::whole_seconds;
use super::target::parse_moment;
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, timestamp};

#[derive(Debug, Args)]
pub struct UnexpireArgs {
    /// The backup; 'pgark info' shows which have expired
    id: String,
    /// Keep it only until then, instead of until 'pgark unkeep'
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn run(args: UnexpireArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let id = parse_id(&args.id)?;
    let until = args.until.map(|t| parse_moment(&t).map(whole_seconds)).transpose()?;
    let repo = context.open_repository(&context.one_repo_settings()?)?;
    let (cluster, ctx) = (context.cluster()?, &context.ctx);
    let plan = if args.dry_run.dry_run {
        revive::plan(&repo, &cluster, &id, until, ctx).map_err(engine_failure)?
    } else {
        revive::run(&repo, &cluster, &id, until, ctx).map_err(engine_failure)?
    };
    if global.says_nothing() && !args.dry_run.dry_run {
        return Ok(exit(&plan));
    }
    let names = |r: &SegmentRange| {
        let name = |segment| SegmentName { timeline: r.timeline, segment }.format(plan.segment_size);
        (name(r.first), name(r.last))
    };
    let ranges = |all: &[SegmentRange]| {
        let json = |r: &SegmentRange| {
            let (first, last) = names(r);
            serde_json::json!({"first": first, "last": last, "segments": r.count()})
        };
        all.iter().map(json).collect::<Vec<_>>()
    };
    let reaches = plan.reaches.map(|segment| segment.format(plan.segment_size));
    let document = serde_json::json!({"schema": SCHEMA, "id": id.to_string(), "kept_until": until,
        "wal": ranges(&plan.wal), "reaches": reaches, "gone": ranges(&plan.gone), "dry_run": args.dry_run.dry_run});
    output::result(global.form(), &document, || {
        let would = if args.dry_run.dry_run { "would be" } else { "is" };
        let mark = until.map_or_else(|| "'pgark unkeep'".to_owned(), timestamp);
        let segments: u64 = plan.wal.iter().map(SegmentRange::count).sum();
        let mut out = format!(
            "backup {id} {would} listed again and kept until {mark}{}\n",
            reaches.as_ref().map_or_else(String::new, |reaches| format!(
                ", with {segments} WAL segments; recovery from it goes up to the end of {reaches}"
            ))
        );
        for r in &plan.gone {
            let (first, last) = names(r);
            out += &format!("WARNING: WAL {first} to {last} was removed and does not come back\n");
        }
        out
    })?;
    Ok(exit(&plan))
}

fn exit(plan: &RevivePlan) -> Exit {
    if plan.gone.is_empty() { Exit::Done } else { Exit::Warnings }
}

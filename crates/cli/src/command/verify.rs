//! `verify`.

use clap::Args;
use pgark_engine::verify::{self, Depth, LostWindow, VerifyOptions, VerifyReport};

use super::Outcome;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use super::documents::{VerifyDocument, problem_kind};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, human_bytes, timestamp};

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// One backup and the WAL it needs; everything when left out
    id: Option<String>,
    /// Presence and size only: says nothing about content
    #[arg(long)]
    quick: bool,
}

pub fn run(args: VerifyArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let only = args.id.as_deref().map(parse_id).transpose()?;
    let repo = context.open_repository(&context.repo_settings()?)?;
    let depth = if args.quick { Depth::Quick } else { Depth::Full };
    let options = VerifyOptions { cluster: context.cluster()?, only, depth, jobs: context.jobs() };
    let report = verify::verify(&options, &repo, &context.ctx).map_err(engine_failure)?;
    output::result(global.form(), &VerifyDocument::new(&report, depth), || text(&report, depth))?;
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Damage })
}

fn text(r: &VerifyReport, depth: Depth) -> String {
    let mut out = String::new();
    for p in &r.problems {
        out += &format!("{}: {}: {}\n", problem_kind(p.kind).to_uppercase(), p.object, p.what);
        if !p.backups.is_empty() {
            let ids: Vec<String> = p.backups.iter().map(ToString::to_string).collect();
            out += &format!("  backups that cannot be restored: {}\n", ids.join(", "));
        }
        for w in &p.windows {
            out += &format!("  targets that cannot be reached: {}\n", span(w));
        }
    }
    for note in &r.notes {
        out += &format!("note: {note}\n");
    }
    let depth = match depth {
        Depth::Full => format!("every byte of {} read and authenticated", human_bytes(r.bytes_checked)),
        Depth::Quick => "presence and size only: contents were not checked".to_owned(),
    };
    let verdict = match r.problems.len() {
        0 => "no problem".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    out + &format!("{verdict}: {} backups, {} objects checked, {depth}\n", r.backups_checked.len(), r.objects_checked)
}

fn span(w: &LostWindow) -> String {
    let time = |t: Option<jiff::Timestamp>| t.map(|t| format!(" ({})", timestamp(t))).unwrap_or_default();
    format!("timeline {}, {}{} to {}{}", w.timeline, w.from_lsn, time(w.from_time), w.to_lsn, time(w.to_time))
}

//! `schedule`: when the configured jobs run next.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::Outcome;
use super::context::Context;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, Align, Table};
use crate::settings::schedule::Schedule;

/// More nobody reads.
const COUNT_MAX: u16 = 1000;

#[derive(Debug, Args)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    command: ScheduleCommand,
}

#[derive(Debug, Subcommand)]
enum ScheduleCommand {
    /// The next runs of every schedule, in its own zone and in UTC
    #[command(alias = "next")]
    List(ListArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// How many runs of each schedule
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(COUNT_MAX)))]
    count: u16,
    /// From this moment on, instead of now
    #[arg(long, value_name = "TIME")]
    after: Option<Timestamp>,
}

pub fn run(args: &ScheduleArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let ScheduleCommand::List(args) = &args.command;
    let context = Context::new(global)?;
    let after = args.after.unwrap_or_else(Timestamp::now);
    // Without -c those of all clusters.
    let wanted = |s: &&Schedule| global.cluster.as_ref().is_none_or(|name| *name == s.cluster);
    if global.cluster.is_some() {
        context.cluster_settings()?;
    }
    let mut rows = vec![];
    let mut documents = vec![];
    for schedule in context.settings.schedules.iter().filter(wanted) {
        let plan = schedule.plan().map_err(|e| {
            Failure::usage("E-CONFIG-VALUE", format!("schedule '{}': {}: {}", schedule.name(), e.key, e.message))
        })?;
        let runs = plan.upcoming(after, args.count.into());
        let zone = schedule.time_zone.clone().unwrap_or_else(|| "UTC".into());
        let local = |at: &Timestamp| at.to_zoned(plan.zone().clone()).strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string();
        for at in &runs {
            rows.push((
                *at,
                [schedule.name(), schedule.cluster.clone(), local(at), zone.clone(), output::timestamp(*at)],
            ));
        }
        documents.push(serde_json::json!({
            "name": schedule.name(),
            "job": schedule.job,
            "cluster": schedule.cluster,
            "type": schedule.backup_type,
            "kind": schedule.kind,
            "cron": schedule.cron,
            "every": schedule.every,
            "at": schedule.at,
            "time_zone": zone,
            "deadline_s": plan.deadline().as_secs(),
            "next": runs.iter().map(|at| serde_json::json!({"at": at, "local": local(at)})).collect::<Vec<_>>(),
        }));
    }
    rows.sort_by_key(|(at, _)| *at);
    let document = serde_json::json!({"schema": SCHEMA, "after": after, "schedules": documents});
    output::result(global.form(), &document, || {
        if rows.is_empty() {
            return "no schedule is configured\n".to_owned();
        }
        let titles = ["schedule", "cluster", "local time", "zone", "UTC"].map(|title| (title, Align::Left));
        let mut table = Table::new(&titles);
        rows.into_iter().for_each(|(_, cells)| table.row(cells));
        table.to_text()
    })?;
    Ok(Exit::Done)
}

//! `job`: what the server was asked to do, and what became of it. Works beside a running server, and without one.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use pgark_server::State;
use pgark_server::jobs::{Job, JobState};
use pgark_server::state::Filter;

use super::Outcome;
use super::context::Context;
use super::serve::{StateArgs, state_failure};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::output::{self, Align, Table};

#[derive(Debug, Args)]
pub struct JobArgs {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// The newest jobs, the newest first
    List(ListArgs),
    /// One job: what it does, how it ended, what it said
    Show(OneArgs),
    /// End a job: one that waits at once, one that runs at its next safe point
    Cancel(OneArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    last: u16,
    /// Only those in this state: queued, running, done, warnings, failed, cancelled, timed_out, interrupted
    #[arg(long, value_name = "STATE")]
    state: Option<JobState>,
    #[command(flatten)]
    dir: StateArgs,
}

#[derive(Debug, Args)]
struct OneArgs {
    /// Its id
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    dir: StateArgs,
}

pub fn run(args: &JobArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    match &args.command {
        JobCommand::List(args) => list(args, global, &args.dir.open_existing(&context.settings)?),
        JobCommand::Show(args) => show(&args.id, global, &args.dir.open_existing(&context.settings)?),
        JobCommand::Cancel(args) => {
            let state = args.dir.open_existing(&context.settings)?;
            let job = state.cancel_job(&args.id, Timestamp::now()).map_err(state_failure)?;
            output::result(global.form(), &document(&job, &state), || match (job.state, job.cancel_requested) {
                (JobState::Cancelled, _) => format!("{} is cancelled\n", job.id),
                (JobState::Running, _) => format!("{} is asked to end\n", job.id),
                (state, _) => format!("{} is over: {state}\n", job.id),
            })?;
            Ok(Exit::Done)
        }
    }
}

fn list(args: &ListArgs, global: &GlobalArgs, state: &State) -> Result<Outcome, Failure> {
    let filter = Filter {
        clusters: global.cluster.clone().map(|c| vec![c]),
        state: args.state,
        before: None,
        limit: usize::from(args.last),
    };
    let jobs = state.jobs(&filter).map_err(state_failure)?;
    let document = serde_json::json!({"schema": SCHEMA, "jobs": jobs});
    output::result(global.form(), &document, || {
        let titles = ["id", "job", "cluster", "state", "by", "started", "message"].map(|title| (title, Align::Left));
        let mut table = Table::new(&titles);
        for job in &jobs {
            let started = job.started.map(output::timestamp).unwrap_or_default();
            let message = job.message.clone().unwrap_or_default();
            let cells: [&str; 7] =
                [&job.id, job.request.word(), &job.cluster, job.state.word(), &job.requested_by, &started, &message];
            table.row(cells);
        }
        table.to_text()
    })?;
    Ok(Exit::Done)
}

fn show(id: &str, global: &GlobalArgs, state: &State) -> Result<Outcome, Failure> {
    let job = state.job(id).map_err(state_failure)?;
    output::result(global.form(), &document(&job, state), || {
        let at = |t: Option<Timestamp>| t.map(output::timestamp).unwrap_or_else(|| "-".into());
        let line = |what: &str, value: &str| format!("{what:<10} {}\n", escape(value));
        let mut text = line("job", &format!("{} {} of {}", job.id, job.request.word(), job.cluster));
        text += &line("state", job.state.word());
        text += &line("asked by", &job.requested_by);
        text += &line("created", &output::timestamp(job.created));
        text += &line("started", &at(job.started));
        text += &line("finished", &at(job.finished));
        for (what, value) in [("code", &job.error_code), ("message", &job.message)] {
            text += &value.as_deref().map(|value| line(what, value)).unwrap_or_default();
        }
        let log = job.log(state);
        text + &log.lines().map(|l| format!("  {}\n", escape(l))).collect::<String>()
    })?;
    Ok(Exit::Done)
}

fn document(job: &Job, state: &State) -> serde_json::Value {
    serde_json::json!({"schema": SCHEMA, "job": job, "result": job.result(state), "log": job.log(state)})
}

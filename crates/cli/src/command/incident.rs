//! `incident`: that somebody declared a disaster, and when.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use pgark_dr::alert::rules::{self, Evaluated};
use pgark_dr::alert::{Book, Severity};
use pgark_dr::incident::{self, Declaration, Incident, Incidents, Note, Opened};
use pgark_dr::trail;
use pgark_repo::names::ClusterName;

use super::Outcome;
use super::alert::state_dir;
use super::context::{Context, engine_failure};
use super::target::parse_moment;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::notices;
use crate::output::{self, Align, Table, timestamp};

#[derive(Debug, Args)]
pub struct IncidentArgs {
    #[command(subcommand)]
    command: IncidentCommand,
}

#[derive(Debug, Subcommand)]
enum IncidentCommand {
    /// Declare one: the recovery time of the cluster is measured from here
    Open(OpenArgs),
    /// All that this host knows, the newest last
    List,
    /// One, with what came in while it was open
    Show(IdArgs),
    /// It is over
    Close(CloseArgs),
}

#[derive(Debug, Args)]
struct OpenArgs {
    /// What has happened
    #[arg(long, value_name = "TEXT", required_unless_present = "alertmanager")]
    reason: Option<String>,
    /// When it was declared [default: now]
    #[arg(long, value_name = "TIME", conflicts_with = "alertmanager")]
    declared: Option<String>,
    /// Take what Alertmanager posts to a webhook: a file, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "reason")]
    alertmanager: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct IdArgs {
    id: String,
}

#[derive(Debug, Args)]
struct CloseArgs {
    id: String,
    /// How it ended
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
}

pub fn run(args: &IncidentArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let incidents = Incidents::at(&state_dir(&context)?);
    match &args.command {
        IncidentCommand::Open(args) => open(args, global, &context, &incidents),
        IncidentCommand::List => list(global, &incidents),
        IncidentCommand::Show(args) => {
            let found = incidents.one(&args.id).map_err(engine_failure)?;
            output::result(global.form(), &found, || shown(&found))?;
            Ok(Exit::Done)
        }
        IncidentCommand::Close(args) => {
            let note = Note { at: context.ctx.now(), by: by(), text: args.note.clone() };
            let closed = incidents.close(&args.id, note).map_err(engine_failure)?;
            context.trail().about("incident", &closed.id);
            let fine = Evaluated { findings: vec![], fine: vec![key(&closed)] };
            tell(&context, fine);
            output::result(global.form(), &closed, || format!("incident {} is closed\n", closed.id))?;
            Ok(Exit::Done)
        }
    }
}

const LABEL: &str = "label the alert with the name of [clusters.NAME]";

fn by() -> String {
    let who = trail::who(None);
    format!("{}@{}", who.user, who.host)
}

fn key(incident: &Incident) -> String {
    rules::key(incident.cluster.as_str(), &format!("incident-{}", incident.id), None)
}

fn open(args: &OpenArgs, global: &GlobalArgs, context: &Context, all: &Incidents) -> Result<Outcome, Failure> {
    let (cluster, now) = (context.cluster()?, (context.ctx.clock)());
    let declarations: Vec<(ClusterName, Declaration)> = match &args.alertmanager {
        Some(path) => incident::from_alertmanager(&body(path)?, &cluster, now).map_err(engine_failure)?,
        None => {
            let declared: Option<Timestamp> = args.declared.as_deref().map(parse_moment).transpose()?;
            let reason = args.reason.clone().unwrap_or_default();
            vec![(cluster, Declaration { declared, by: by(), reason })]
        }
    };
    // A label is no proof that there is such a cluster.
    let (known, unknown): (Vec<_>, Vec<_>) =
        declarations.iter().partition(|(cluster, _)| context.settings.clusters.contains_key(cluster.as_str()));
    let nowhere = |cluster: &ClusterName| format!("cluster '{cluster}' is not configured here");
    if let (Some((cluster, _)), true) = (unknown.first(), known.is_empty()) {
        return Err(Failure::refused("E-INCIDENT-CLUSTER", nowhere(cluster)).hint(LABEL));
    }
    let mut opened = vec![];
    for (cluster, declaration) in known {
        let one = all.open(cluster, declaration, now).map_err(engine_failure)?;
        context.trail().about("incident", &one.incident().id);
        if let Opened::New(incident) = &one {
            let finding = pgark_dr::alert::Finding {
                key: key(incident),
                rule: "incident".into(),
                cluster: incident.cluster.to_string(),
                severity: Severity::Critical,
                summary: format!("an incident was declared at {}: {}", incident.declared, incident.reason),
                details: [("incident".to_owned(), incident.id.clone())].into(),
            };
            tell(context, Evaluated { findings: vec![finding], fine: vec![] });
        }
        opened.push(one);
    }
    let document = serde_json::json!({"schema": SCHEMA, "incidents": opened.iter().map(|o| serde_json::json!({
        "new": matches!(o, Opened::New(_)), "incident": o.incident()})).collect::<Vec<_>>()});
    output::result(global.form(), &document, || {
        let line = |o: &Opened| match o {
            Opened::New(i) => format!("incident {} of '{}' is open, declared at {}\n", i.id, i.cluster, i.declared),
            Opened::Joined(i) => {
                format!("incident {} of '{}' is open already, since {}\n", i.id, i.cluster, i.declared)
            }
        };
        match opened.is_empty() {
            true => "nothing fires: no incident was opened\n".to_owned(),
            false => opened.iter().map(line).collect(),
        }
    })?;
    // What is open counts; that another one is not has to be seen.
    for (cluster, _) in &unknown {
        output::warning(&format!("E-INCIDENT-CLUSTER {}, and no incident of it was opened: {LABEL}", nowhere(cluster)));
    }
    Ok(if unknown.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn body(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::usage("E-INCIDENT-BODY", format!("{}: {e}", path.display()));
    let mut bytes = vec![];
    match path.as_os_str() == "-" {
        true => std::io::stdin().lock().take(incident::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?,
        false => {
            let file = std::fs::File::open(path).map_err(failed)?;
            file.take(incident::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?
        }
    };
    Ok(bytes)
}

/// People are told where that is configured; the incident is open in any case.
fn tell(context: &Context, found: Evaluated) {
    let alerts = &context.settings.alerts;
    let Some(dir) = context.settings.state_dir.as_deref().filter(|_| !alerts.routing.sinks.is_empty()) else { return };
    let book = Book::at(dir);
    let done = notices::record(&book, alerts, found, context.ctx.now())
        .and_then(|_| notices::deliver(&book, alerts, std::time::Duration::from_secs(20)));
    match done {
        Ok(delivered) => notices::tell_failed(&delivered),
        Err(e) => output::warning(&format!("{} the alert is not written down: {e}", e.code())),
    }
}

fn list(global: &GlobalArgs, incidents: &Incidents) -> Result<Outcome, Failure> {
    let all = incidents.all().map_err(engine_failure)?;
    let document = serde_json::json!({"schema": SCHEMA, "incidents": all});
    output::result(global.form(), &document, || {
        let columns = ["incident", "cluster", "declared", "state", ""].map(|c| (c, Align::Left));
        let mut table = Table::new(&columns);
        for i in &all {
            let state = i.closed.as_ref().map_or("OPEN".to_owned(), |n| format!("closed {}", timestamp(n.at)));
            let reason = escape(&i.reason).into_owned();
            table.row([i.id.clone(), i.cluster.to_string(), timestamp(i.declared), state, reason]);
        }
        if all.is_empty() { "no incident was declared\n".to_owned() } else { table.to_text() }
    })?;
    Ok(Exit::Done)
}

fn shown(i: &Incident) -> String {
    let mut out = format!("incident {} of '{}'\n", i.id, i.cluster);
    out += &format!("  declared {}\n  opened   {} by {}\n", i.declared, i.opened, escape(&i.by));
    out += &format!("  reason   {}\n", escape(&i.reason));
    for note in i.notes.iter().chain(&i.closed) {
        out += &format!("  {} {}: {}\n", note.at, escape(&note.by), escape(&note.text));
    }
    out += if i.closed.is_some() { "  closed\n" } else { "  OPEN\n" };
    out
}

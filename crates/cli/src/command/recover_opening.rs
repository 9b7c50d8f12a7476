//! The first line of a recovery's journal: what somebody asks for, by whom, since when.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use pgark_dr::incident::{Incident, Incidents};
use pgark_dr::recover::{Aim, Opening, Safety};

use super::context::{Context, engine_failure};
use super::{recover_logical, recover_physical};
use crate::failure::Failure;
use crate::settings::recover::Recover;
use crate::settings::schema::Kind;

/// What somebody asks for with this recovery.
#[derive(Default)]
pub struct Asked<'a> {
    pub backup: Option<&'a str>,
    pub declared: Option<Timestamp>,
    pub reason: Option<&'a str>,
    pub no_safety_backup: bool,
    pub aim: Aim,
    pub truths: Vec<PathBuf>,
}

/// Without its steps, which are made of it.
pub fn opening(asked: &Asked<'_>, context: &Context, settings: &Recover) -> Result<Opening, Failure> {
    let cluster = context.cluster_settings()?;
    let now = (context.ctx.clock)();
    let incident = open_incident(context)?;
    let declared = asked.declared.or(incident.as_ref().map(|i| i.declared)).unwrap_or(now);
    if declared > now {
        return Err(Failure::usage("E-RECOVER-DECLARED", format!("--declared {declared} is not in the past")));
    }
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let safety = settings.safety_backup.map_or(Safety::Try, Safety::from);
    let physical = settings.kind == Kind::Physical;
    Ok(Opening {
        id: Opening::id_of(now),
        cluster: cluster.name.clone(),
        kind: if physical { "physical" } else { "logical" }.into(),
        database: (!physical).then(|| recover_logical::database(context, settings)).transpose()?,
        backup: asked.backup.map(str::to_owned),
        aim: asked.aim.clone(),
        place: physical.then(|| recover_physical::place(context, settings)).transpose()?,
        truths: asked.truths.clone(),
        began: now,
        declared,
        rpo_ms: cluster.rpo.map(ms),
        rto_ms: cluster.rto.map(ms),
        by: who(),
        reason: asked.reason.map(str::to_owned).or(incident.map(|i| format!("incident {}: {}", i.id, i.reason))),
        safety_backup: if asked.no_safety_backup { Safety::Off } else { safety },
        steps: vec![],
    })
}

/// One that somebody declared: the clock runs already.
fn open_incident(context: &Context) -> Result<Option<Incident>, Failure> {
    let Some(dir) = context.settings.state_dir.as_deref() else { return Ok(None) };
    Incidents::at(dir).open_of(&context.cluster()?).map_err(engine_failure)
}

/// The user that this runs as, and who logged in, where the system knows that.
pub fn who() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().into_owned();
    let login = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|t| t.trim().parse::<u32>().ok());
    let login = login.filter(|l| *l != uid && *l != u32::MAX).map(|l| format!(" (logged in as {})", user(l)));
    format!("{}@{host}{}", user(uid), login.unwrap_or_default())
}

/// Also of users whom only a directory service knows.
fn user(uid: u32) -> String {
    pgark_dr::operator::name_of(uid).unwrap_or_else(|| uid.to_string())
}

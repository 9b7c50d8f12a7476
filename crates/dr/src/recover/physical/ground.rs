//! Whether everything is there, and to which moment it goes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pgark_engine::cluster::Connection;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::{RestorePlan, run as restoring};
use pgark_engine::scratch::server::room;
use serde_json::{Value, json};

use super::{DIR_BYTES_MAX, MOMENT, Physical, Place, branch, postmaster};
use crate::recover::application::{Until, answers};
use crate::recover::machine::{At, State, Step};
use crate::recover::repointing::Repoint;
use crate::recover::steps::{ANSWERS_WITHIN, PREFLIGHT};
use crate::service::State as ServiceState;

/// Looks whether everything is there that this needs, before anything is touched.
pub struct Preflight(pub Rc<Physical>);

impl Step for Preflight {
    fn name(&self) -> &'static str {
        PREFLIGHT
    }

    fn what(&self) -> String {
        "see that backup, WAL, programs, room, service managers and what is to be changed are there; nothing is touched"
            .into()
    }

    fn deadline(&self) -> Duration {
        MOMENT
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let physical = &self.0;
        let plan = match physical.place {
            Place::New => restoring::prepare(&physical.options, &physical.sources, &[])?.0,
            Place::Own => physical.plan()?,
        };
        branch::before(physical, &plan)?;
        let bin = physical.programs(plan.record.version_num)?;
        let mut told = vec![
            format!("backup {} and its WAL reach {}", plan.backup.id, plan.stop.end),
            format!("PostgreSQL {} in {}", plan.record.version_num / 10_000, bin.display()),
        ];
        if physical.dir().as_os_str().len() > DIR_BYTES_MAX {
            return Err(refused(physical.dir(), "is too long a name for a unix socket in it", "choose a shorter one"));
        }
        match physical.place {
            Place::New => self.nobody_is_there(at)?,
            Place::Own => own_place(physical.dir(), &plan)?,
        }
        for service in [physical.recovery.service.as_ref(), Some(&physical.server)].into_iter().flatten() {
            told.push(answers(service, at.ctx)?);
        }
        if let Some(fence) = &physical.fence {
            let seen = fence.look(at.ctx);
            told.push(format!("{}: {}", fence.kind, seen.detail));
        }
        if !physical.turns.is_empty() {
            let repoint =
                Repoint { recovery: physical.recovery.clone(), turns: physical.turns.clone(), until: Until::Repointed };
            told.push(format!("{} places can be pointed to it", repoint.plan(at)?.len()));
        }
        // Where the way back leads, if there is one.
        let old = Connection::open(&physical.old, ANSWERS_WITHIN).is_ok();
        Ok(json!({"told": told.join("; "), "old_answers": old}))
    }

    fn state(&self) -> State {
        State::Refused
    }
}

impl Preflight {
    /// The new instance's address is free.
    fn nobody_is_there(&self, at: &At<'_>) -> Result<()> {
        let seen = self.0.server.look(at.ctx);
        if seen.state == ServiceState::Running {
            return Err(EngineError::refused(
                "E-RECOVER-SERVER",
                format!("{} runs already: {}", self.0.server.kind, seen.detail),
                "stop it, or choose another instance: to and server in [clusters.NAME.recover]; nothing was changed",
            ));
        }
        if !postmaster::listens(&self.0.new, ANSWERS_WITHIN) {
            return Ok(());
        }
        Err(EngineError::refused(
            "E-RECOVER-SERVER",
            "somebody listens already where the new instance is to be",
            "choose another port or socket_dir in [clusters.NAME.recover]; nothing was changed",
        ))
    }
}

/// The directory can be put aside, and there is room for another one.
fn own_place(data: &Path, plan: &RestorePlan) -> Result<()> {
    if !data.join("PG_VERSION").exists() {
        return Err(refused(data, "is no data directory of PostgreSQL", "look at pgdata; for a new one give to = DIR"));
    }
    for dir in places(data)? {
        let above = dir.parent().unwrap_or(Path::new("/"));
        let device =
            |path: &Path| fs::metadata(path).map(|m| m.dev()).map_err(|e| EngineError::file("looking at", path, e));
        if device(&dir)? != device(above)? {
            return Err(refused(
                &dir,
                "is a mount point: it cannot be put aside",
                "restore to a new instance: to = DIR",
            ));
        }
        if rustix::fs::access(above, rustix::fs::Access::WRITE_OK).is_err() {
            return Err(refused(above, "cannot be written to: nothing in it can be put aside", "run as its owner"));
        }
    }
    let above = data.parent().unwrap_or(Path::new("/"));
    room(above, plan.record.totals.size_bytes, "restore to a new instance: to = DIR")
}

/// The data directory, and those of its tablespaces.
pub fn places(data: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![data.to_owned()];
    let links = data.join("pg_tblspc");
    let entries = match fs::read_dir(&links) {
        Ok(entries) => entries,
        // Damaged, perhaps: that is why it is replaced.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        Err(e) => return Err(EngineError::file("listing", links, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| EngineError::file("listing", &links, e))?.path();
        let Ok(target) = fs::canonicalize(&path) else { continue };
        let is_link = fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_symlink());
        // One in place goes along.
        if is_link && !target.starts_with(data) && !all.contains(&target) {
            all.push(target);
        }
    }
    Ok(all)
}

fn refused(path: &Path, what: &str, hint: &str) -> EngineError {
    EngineError::refused(
        "E-RECOVER-PLACE",
        format!("{} {what}", path.display()),
        format!("{hint}; nothing was changed"),
    )
}

/// Whether anything of a server works in one of these directories.
pub fn works_in(data: &Path) -> Option<u32> {
    postmaster::running(data).map(|r| r.pid).or_else(|| postmaster::processes(data).first().copied())
}

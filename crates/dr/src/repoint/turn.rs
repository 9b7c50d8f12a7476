//! One place in which it stands where the database is, whatever kind of place it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::{self, Repointed};
use super::kubernetes::{Object, Patched};
use super::{Edit, Format, Stands, repoint, take_back};
use crate::program::{self, How};

#[derive(Clone, Debug)]
pub enum Turn {
    File { file: PathBuf, format: Format, edits: Vec<Edit> },
    Kubernetes(Object),
    Command(Command),
}

/// Programs of the administrator's; each gets where the database is as JSON on its standard input.
#[derive(Clone, Debug)]
pub struct Command {
    pub turn: Vec<String>,
    pub back: Option<Vec<String>>,
    /// Ends with 0 when it points to the new database, with 1 when to the old one.
    pub status: Option<Vec<String>>,
    /// What it is told.
    pub told: Value,
    pub within: Duration,
    pub hidden: Vec<&'static str>,
}

/// What has to be known for the way back. No value is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Planned {
    File(Repointed),
    Kubernetes(Patched),
    Command,
}

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Turn::File { file, .. } => write!(f, "{}", file.display()),
            Turn::Kubernetes(object) => match &object.namespace {
                Some(namespace) => write!(f, "{} in namespace {namespace}", object.name),
                None => f.write_str(&object.name),
            },
            Turn::Command(command) => {
                write!(f, "whatever {} changes", command.turn.first().map_or("?", String::as_str))
            }
        }
    }
}

impl Turn {
    /// Changes nothing. What is kept of a file stays beside it, under this ending; what is kept of the rest in this file.
    pub fn plan(&self, kept_as: &str, kept: &Path, ctx: &Ctx) -> Result<Value> {
        let planned = match self {
            Turn::File { file, format, edits } => Planned::File(file::plan(file, *format, edits, kept_as)?.0),
            Turn::Kubernetes(object) => Planned::Kubernetes(object.plan(kept, ctx)?),
            Turn::Command(command) => command.plan(ctx)?,
        };
        serde_json::to_value(planned).map_err(|e| internal(&e))
    }

    pub fn turn(&self, planned: &Value, kept_as: &str, ctx: &Ctx) -> Result<()> {
        match (self, read(planned)?) {
            (Turn::File { file, format, edits }, Planned::File(_)) => repoint(file, *format, edits, kept_as).map(drop),
            (Turn::Kubernetes(object), Planned::Kubernetes(planned)) => object.turn(&planned, ctx),
            (Turn::Command(command), Planned::Command) => command.run(&command.turn, ctx),
            _ => Err(other()),
        }
    }

    /// `acted`: the command has ended well, just now.
    pub fn stands(&self, planned: &Value, acted: bool, ctx: &Ctx) -> Result<Stands> {
        match (self, read(planned)?) {
            (Turn::File { .. }, Planned::File(done)) => file::stands(&done),
            (Turn::Kubernetes(object), Planned::Kubernetes(planned)) => object.stands(&planned, ctx),
            (Turn::Command(command), Planned::Command) => Ok(command.stands(acted, ctx)),
            _ => Err(other()),
        }
    }

    pub fn take_back(&self, planned: &Value, ctx: &Ctx) -> Result<()> {
        match (self, read(planned)?) {
            (Turn::File { .. }, Planned::File(done)) => take_back(&done),
            (Turn::Kubernetes(object), Planned::Kubernetes(planned)) => object.take_back(&planned, ctx),
            (Turn::Command(command), Planned::Command) => command.take_back(self, ctx),
            _ => Err(other()),
        }
    }
}

impl Command {
    /// That nobody can tell where it points is found before anything is stopped.
    fn plan(&self, ctx: &Ctx) -> Result<Planned> {
        match self.status.is_some().then(|| self.stands(false, ctx)) {
            Some(Stands::Other(why)) => {
                ctx.check_cancelled()?;
                Err(EngineError::refused(
                    "E-REPOINT-COMMAND",
                    format!("status does not say to which database the application points: {why}"),
                    "it has to end with 0 for the new one, with 1 for the old one: look at [clusters.NAME.recover.repoint]",
                ))
            }
            _ => Ok(Planned::Command),
        }
    }

    fn take_back(&self, turn: &Turn, ctx: &Ctx) -> Result<()> {
        let tells = self.status.is_some();
        if tells && self.stands(false, ctx) == Stands::Old {
            return Ok(());
        }
        let failed = |why: String| {
            EngineError::failed(
                "E-REPOINT-BACK",
                why,
                "take it back by hand; back in [clusters.NAME.recover.repoint] is the command for it",
            )
        };
        let Some(back) = &self.back else {
            return Err(failed(format!("nothing is configured that takes back {turn}")));
        };
        self.run(back, ctx)?;
        let back = !tells || self.stands(true, ctx) == Stands::Old;
        ctx.check_cancelled()?;
        if back { Ok(()) } else { Err(failed(format!("{turn} was to be taken back, and status says that it is not"))) }
    }

    fn run(&self, argv: &[String], ctx: &Ctx) -> Result<()> {
        let ended = program::run_told(argv, &self.hidden, self.within, self.told.to_string().into_bytes(), ctx);
        ctx.check_cancelled()?;
        if ended.succeeded() {
            return Ok(());
        }
        Err(EngineError::failed(
            "E-REPOINT-COMMAND",
            format!("{}: {}", argv.first().map_or("?", String::as_str), ended.told()),
            "look at what it says, and at [clusters.NAME.recover.repoint]",
        ))
    }

    fn stands(&self, acted: bool, ctx: &Ctx) -> Stands {
        let Some(status) = &self.status else {
            return if acted {
                Stands::New
            } else {
                Stands::Other("the command may have run; no status is configured".into())
            };
        };
        let ended = program::run_told(status, &self.hidden, self.within, self.told.to_string().into_bytes(), ctx);
        match ended.how {
            How::Exited(0) => Stands::New,
            How::Exited(1) => Stands::Old,
            _ => Stands::Other(ended.told()),
        }
    }
}

fn read(planned: &Value) -> Result<Planned> {
    serde_json::from_value(planned.clone()).map_err(|e| internal(&e))
}

fn other() -> EngineError {
    EngineError::refused(
        "E-RECOVER-CHANGED",
        "[clusters.NAME.recover.repoint] says something else than when the recovery began",
        "make the settings what they were, and go on",
    )
}

fn internal(e: &serde_json::Error) -> EngineError {
    EngineError::failed("E-INTERNAL", format!("what is pointed to cannot be written down: {e}"), "")
}

//! Incidents: that somebody declared a disaster, and when. The clock of a recovery runs from there.
//!
//! Invariant: a cluster has one open incident at a time; what comes in while it is open is written down in it.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgark_engine::error::{EngineError, Result};
use pgark_repo::names::ClusterName;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::trail::files::{make_private, write_durably};

pub const SCHEMA: u32 = 1;
/// Largest body of a webhook, and largest file of an incident.
pub const BYTES_MAX: u64 = 1 << 20;
const NOTES_MAX: usize = 1000;
const TEXT_CHARS_MAX: usize = 2000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    pub schema: u32,
    pub id: String,
    pub cluster: ClusterName,
    /// When the clock began.
    pub declared: Timestamp,
    pub opened: Timestamp,
    /// Who, or what.
    pub by: String,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub at: Timestamp,
    pub by: String,
    pub text: String,
}

/// What an incident begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    pub declared: Option<Timestamp>,
    pub by: String,
    pub reason: String,
}

/// What became of a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    New(Incident),
    /// One was open; this is written down in it.
    Joined(Incident),
}

impl Opened {
    pub fn incident(&self) -> &Incident {
        match self {
            Opened::New(i) | Opened::Joined(i) => i,
        }
    }
}

/// The incidents that this host knows.
pub struct Incidents {
    dir: PathBuf,
}

impl Incidents {
    pub fn at(state_dir: &Path) -> Self {
        Incidents { dir: state_dir.join("incidents") }
    }

    fn locked(&self) -> Result<File> {
        make_private(&self.dir).map_err(|e| EngineError::file("making", &self.dir, e))?;
        let path = self.dir.join("lock");
        let failed = |e| EngineError::file("locking", &path, e);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        Ok(file)
    }

    /// Oldest first.
    pub fn all(&self) -> Result<Vec<Incident>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            other => other.map_err(|e| EngineError::file("reading", &self.dir, e))?,
        };
        let mut all = vec![];
        for entry in entries {
            let path = entry.map_err(|e| EngineError::file("reading", &self.dir, e))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                all.push(read(&path)?);
            }
        }
        all.sort_by(|a: &Incident, b| (a.opened, &a.id).cmp(&(b.opened, &b.id)));
        Ok(all)
    }

    /// The open one of a cluster.
    pub fn open_of(&self, cluster: &ClusterName) -> Result<Option<Incident>> {
        Ok(self.all()?.into_iter().find(|i| i.closed.is_none() && i.cluster == *cluster))
    }

    pub fn one(&self, id: &str) -> Result<Incident> {
        self.all()?
            .into_iter()
            .find(|i| i.id == id)
            .ok_or_else(|| none(format!("there is no incident '{}'", id.escape_debug())))
    }

    fn write(&self, incident: &Incident) -> Result<()> {
        let path = self.dir.join(format!("{}.json", incident.id));
        let text = serde_json::to_vec(incident)
            .map_err(|e| EngineError::failed("E-INCIDENT", format!("it cannot be written as JSON: {e}"), ""))?;
        write_durably(&path, &text).map_err(|e| EngineError::file("writing", &path, e))
    }

    pub fn open(&self, cluster: &ClusterName, what: &Declaration, now: Timestamp) -> Result<Opened> {
        let declared = what.declared.unwrap_or(now);
        if declared > now {
            let message = format!("it was declared at {declared}, and it is {now}");
            return Err(EngineError::refused(
                "E-INCIDENT-FUTURE",
                message,
                "a time in the past needs a zone, such as Z",
            ));
        }
        let _lock = self.locked()?;
        let reason = cut(&what.reason);
        if let Some(mut incident) = self.open_of(cluster)? {
            let said = incident.notes.iter().any(|n| n.text == reason && n.by == what.by) || incident.reason == reason;
            if !said && incident.notes.len() < NOTES_MAX {
                incident.notes.push(Note { at: now, by: what.by.clone(), text: reason });
                self.write(&incident)?;
            }
            return Ok(Opened::Joined(incident));
        }
        let mut random = [0; 4];
        pgark_repo::crypto::fill_random(&mut random)?;
        let utc = now.to_zoned(jiff::tz::TimeZone::UTC);
        let id = format!("{}-{}", utc.strftime("%Y%m%d-%H%M%S"), pgark_repo::crypto::hex(&random));
        let incident = Incident {
            schema: SCHEMA,
            id,
            cluster: cluster.clone(),
            declared,
            opened: now,
            by: what.by.clone(),
            reason,
            notes: vec![],
            closed: None,
        };
        self.write(&incident)?;
        Ok(Opened::New(incident))
    }

    pub fn close(&self, id: &str, note: Note) -> Result<Incident> {
        let _lock = self.locked()?;
        let mut incident = self.one(id)?;
        if let Some(closed) = &incident.closed {
            let message = format!("incident {id} was closed at {} by {}", closed.at, closed.by);
            return Err(EngineError::refused("E-INCIDENT-CLOSED", message, "nothing was changed"));
        }
        incident.closed = Some(Note { text: cut(&note.text), ..note });
        self.write(&incident)?;
        Ok(incident)
    }
}

fn cut(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_CHARS_MAX).collect()
}

fn none(what: String) -> EngineError {
    EngineError::refused("E-INCIDENT-NONE", what, "'pgark incident list' shows what there is")
}

fn read(path: &Path) -> Result<Incident> {
    let failed = |e| EngineError::file("reading", path, e);
    let mut text = vec![];
    File::open(path).and_then(|f| f.take(BYTES_MAX).read_to_end(&mut text)).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|e| {
        let message = format!("{} holds no incident: {e}", path.display());
        EngineError::failed("E-INCIDENT-DAMAGED", message, "put it aside; the others stay")
    })
}

/// What Alertmanager posts to a webhook, version 4; of it what matters here.
#[derive(Deserialize)]
struct Notification {
    version: String,
    alerts: Vec<Posted>,
}

#[derive(Deserialize)]
struct Posted {
    status: String,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    #[serde(rename = "startsAt")]
    starts_at: Timestamp,
}

/// Which clusters it declares in trouble: by the label `cluster`, or else the one that is meant. The clock runs from the
/// earliest of their alerts that fire; those that have ended declare nothing.
///
/// # Errors
/// What is no such notification, or names what cannot be a cluster.
pub fn from_alertmanager(
    body: &[u8],
    default: &ClusterName,
    now: Timestamp,
) -> Result<Vec<(ClusterName, Declaration)>> {
    let wrong = |why: String| {
        let hint = "the body of a webhook of Alertmanager, version 4, is JSON with \"alerts\"";
        EngineError::refused("E-INCIDENT-BODY", format!("this is no notification of Alertmanager: {why}"), hint)
    };
    if body.len() as u64 > BYTES_MAX {
        return Err(wrong(format!("it has more than {BYTES_MAX} bytes")));
    }
    let posted: Notification = serde_json::from_slice(body).map_err(|e| wrong(e.to_string()))?;
    if posted.version != "4" {
        return Err(wrong(format!("version {}", posted.version.escape_debug())));
    }
    let mut all: Vec<(ClusterName, Declaration)> = vec![];
    for alert in posted.alerts.iter().filter(|a| a.status == "firing") {
        let cluster = match alert.labels.get("cluster") {
            Some(name) => ClusterName::parse(name).map_err(|e| wrong(e.to_string()))?,
            None => default.clone(),
        };
        let name = alert.labels.get("alertname").map_or("an alert", String::as_str);
        let said = alert.annotations.get("summary").or_else(|| alert.annotations.get("description"));
        let reason = said.map_or(name.to_owned(), |said| format!("{name}: {said}"));
        // A clock that runs ahead elsewhere declares it now, and so does a sender that wrote no time: year 1, or 1970.
        let at = match alert.starts_at > Timestamp::UNIX_EPOCH {
            true => alert.starts_at.min(now),
            false => now,
        };
        match all.iter_mut().find(|(c, _)| *c == cluster) {
            Some((_, known)) => {
                known.declared = known.declared.min(Some(at));
                known.reason = format!("{}; {reason}", known.reason);
            }
            None => {
                all.push((cluster, Declaration { declared: Some(at), by: "alertmanager".into(), reason }));
            }
        }
    }
    Ok(all)
}

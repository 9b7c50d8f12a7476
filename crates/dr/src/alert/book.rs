//! The files of alerts on this host. One lock, which is held while a file is changed and never while somebody is told.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{FlockOperation, flock};

use super::{Acknowledged, Alert, Delivery, Finding, Routing, SCHEMA, Said, Severity};
use crate::trail::files::{give, make_private, sync, write_durably};

/// Alerts that are open, or of which somebody has still to be told.
const ALERTS_MAX: usize = 1000;
/// Of those that are over.
const HISTORY_MAX: usize = 1000;
const ALERT_BYTES_MAX: u64 = 1 << 20;
/// Of one alert; older ones that were delivered are forgotten first.
const DELIVERIES_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum AlertError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} holds no alert: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{ALERTS_MAX} alerts are open already")]
    Full,
    #[error("there is no open alert {0}")]
    None(String),
    #[error("there is no sink '{0}'")]
    NoSink(String),
    #[error("another process is telling people at this moment")]
    Busy,
    #[error("system failure: {0}")]
    System(String),
}

impl AlertError {
    pub fn code(&self) -> &'static str {
        match self {
            AlertError::File { .. } | AlertError::System(_) => "E-ALERT-STATE",
            AlertError::Damaged { .. } => "E-ALERT-DAMAGED",
            AlertError::Full => "E-ALERT-FULL",
            AlertError::None(_) => "E-ALERT-NONE",
            AlertError::NoSink(_) => "E-ALERT-SINK",
            AlertError::Busy => "E-ALERT-BUSY",
        }
    }
}

pub(super) type Result<T, E = AlertError> = std::result::Result<T, E>;

/// What became of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raised {
    New(String),
    /// It was open already; whether people are told once more.
    Known(String, bool),
}

pub struct Book {
    dir: PathBuf,
    host: String,
}

pub(super) fn new_id(at: Timestamp) -> Result<String> {
    let mut random = [0; 6];
    pgark_repo::crypto::fill_random(&mut random).map_err(|e| AlertError::System(e.to_string()))?;
    let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
    Ok(format!("{}-{}", utc.strftime("%Y%m%d-%H%M%S"), pgark_repo::crypto::hex(&random)))
}

impl Book {
    pub fn at(state_dir: &Path) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Book { dir: state_dir.join("alerts"), host }
    }

    fn failed<'p>(path: &'p Path) -> impl FnOnce(io::Error) -> AlertError + use<'p> {
        move |source| AlertError::File { path: path.to_owned(), source }
    }

    fn open_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join("open");
        make_private(&dir).map_err(Self::failed(&dir))?;
        Ok(dir)
    }

    fn lock(&self, name: &str, wait: bool) -> Result<File> {
        make_private(&self.dir).map_err(Self::failed(&self.dir))?;
        let path = self.dir.join(name);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(Self::failed(&path))?;
        give(&path).map_err(Self::failed(&path))?;
        // Nobody holds it while talking to the network, so waiting is short.
        let how = if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
        match flock(&file, how) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(AlertError::Busy),
            Err(e) => Err(AlertError::File { path, source: e.into() }),
        }
    }

    pub(super) fn locked(&self) -> Result<File> {
        self.lock("lock", true)
    }

    /// Held by who is telling people; there is one at a time.
    pub(super) fn telling(&self) -> Result<File> {
        self.lock("telling", false)
    }

    /// Those that are open or have still to be told, oldest first.
    pub fn all(&self) -> Result<Vec<Alert>> {
        self.read_dir(&self.dir.join("open"))
    }

    /// Those that are over, oldest first.
    pub fn history(&self) -> Result<Vec<Alert>> {
        self.read_dir(&self.dir.join("history"))
    }

    fn read_dir(&self, dir: &Path) -> Result<Vec<Alert>> {
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            other => other.map_err(Self::failed(dir))?,
        };
        let mut all = vec![];
        for entry in entries {
            let path = entry.map_err(Self::failed(dir))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                match read(&path) {
                    Ok(found) => all.extend(found),
                    // One that is damaged does not keep the others from being told.
                    Err(e @ AlertError::Damaged { .. }) => put_aside(&path, &e)?,
                    Err(e) => return Err(e),
                }
            }
        }
        all.sort_by(|a, b| (a.opened, &a.id).cmp(&(b.opened, &b.id)));
        Ok(all)
    }

    /// Durable when this returns; one that is over and told goes into the history.
    fn write(&self, alert: &Alert) -> Result<()> {
        let dir = self.open_dir()?;
        let path = dir.join(format!("{}.json", alert.id));
        let text = serde_json::to_vec(alert).map_err(|e| AlertError::System(e.to_string()))?;
        write_durably(&path, &text).map_err(Self::failed(&path))?;
        if alert.is_open() || alert.waiting() > 0 {
            return Ok(());
        }
        let history = self.dir.join("history");
        make_private(&history).map_err(Self::failed(&history))?;
        let over = history.join(format!("{}.json", alert.id));
        fs::rename(&path, &over).and_then(|()| sync(Some(&history))).map_err(Self::failed(&over))?;
        let mut all = self.history()?;
        while all.len() > HISTORY_MAX {
            let path = history.join(format!("{}.json", all.remove(0).id));
            fs::remove_file(&path).map_err(Self::failed(&path))?;
        }
        Ok(())
    }

    /// Changes one under the lock, as it is now; None when it is not there any more.
    pub(super) fn change(&self, id: &str, change: impl FnOnce(&mut Alert)) -> Result<Option<Alert>> {
        let _lock = self.locked()?;
        let Some(mut alert) = read(&self.open_dir()?.join(format!("{id}.json")))? else { return Ok(None) };
        change(&mut alert);
        self.write(&alert)?;
        Ok(Some(alert))
    }

    /// Writes down a finding and whom it is to be told.
    pub fn raise(&self, finding: &Finding, routing: &Routing, now: Timestamp) -> Result<Raised> {
        let _lock = self.locked()?;
        let all = self.all()?;
        if let Some(mut alert) = all.iter().rfind(|a| a.is_open() && a.finding.key == finding.key).cloned() {
            let worse = finding.severity > alert.finding.severity;
            let is_due = |every: Duration| elapsed(alert.reminded, now) >= every;
            let again = alert.acknowledged.is_none() && routing.remind_every.is_some_and(is_due);
            (alert.finding, alert.seen, alert.count) = (finding.clone(), now, alert.count.saturating_add(1));
            if worse {
                alert.acknowledged = None;
            }
            if worse || again {
                alert.reminded = now;
                for level in 0..=alert.level {
                    tell(&mut alert, routing, level, Said::Firing, now)?;
                }
            }
            self.write(&alert)?;
            return Ok(Raised::Known(alert.id, worse || again));
        }
        if all.len() >= ALERTS_MAX {
            return Err(AlertError::Full);
        }
        let mut alert = self.new_alert(finding.clone(), now)?;
        tell(&mut alert, routing, 0, Said::Firing, now)?;
        self.write(&alert)?;
        Ok(Raised::New(alert.id))
    }

    fn new_alert(&self, finding: Finding, now: Timestamp) -> Result<Alert> {
        Ok(Alert {
            schema: SCHEMA,
            id: new_id(now)?,
            host: self.host.clone(),
            finding,
            opened: now,
            seen: now,
            count: 1,
            resolved: None,
            acknowledged: None,
            level: 0,
            reminded: now,
            deliveries: vec![],
        })
    }

    /// It is over: everybody who was told of it is told so, once. False when there was none.
    pub fn resolve(&self, key: &str, now: Timestamp) -> Result<bool> {
        let _lock = self.locked()?;
        let Some(mut alert) = self.all()?.into_iter().rfind(|a| a.is_open() && a.finding.key == key) else {
            return Ok(false);
        };
        alert.resolved = Some(now);
        tell_those_who_know(&mut alert, Said::Resolved, now)?;
        self.write(&alert)?;
        Ok(true)
    }

    /// Somebody looks after it: nobody else is told, and nobody is reminded.
    pub fn acknowledge(&self, id: &str, by: &str, now: Timestamp) -> Result<Alert> {
        let _lock = self.locked()?;
        let found = self.all()?.into_iter().find(|a| a.is_open() && a.id == id);
        let mut alert = found.ok_or_else(|| AlertError::None(id.to_owned()))?;
        if alert.acknowledged.is_none() {
            alert.acknowledged = Some(Acknowledged { by: by.to_owned(), at: now });
            tell_those_who_know(&mut alert, Said::Acknowledged, now)?;
            self.write(&alert)?;
        }
        Ok(alert)
    }

    /// Goes on to those who are told later, and reminds those who know, of what nobody has acknowledged. Returns of how many.
    pub fn escalate(&self, routing: &Routing, now: Timestamp) -> Result<usize> {
        let _lock = self.locked()?;
        let mut went_on = 0;
        for mut alert in self.all()? {
            if !alert.is_open() || alert.acknowledged.is_some() {
                continue;
            }
            let before = alert.level;
            while routing.after(alert.level + 1).is_some_and(|after| elapsed(alert.opened, now) >= after) {
                alert.level += 1;
                let level = alert.level;
                tell(&mut alert, routing, level, Said::Firing, now)?;
            }
            let remind = routing.remind_every.is_some_and(|every| elapsed(alert.reminded, now) >= every);
            if remind {
                alert.reminded = now;
                for level in 0..=alert.level {
                    tell(&mut alert, routing, level, Said::Firing, now)?;
                }
            }
            if alert.level != before || remind {
                self.write(&alert)?;
                went_on += 1;
            }
        }
        Ok(went_on)
    }

    /// An alert that is over at once, to see whether a sink works.
    pub fn test(&self, sinks: &[String], routing: &Routing, cluster: &str, now: Timestamp) -> Result<String> {
        let _lock = self.locked()?;
        let id = new_id(now)?;
        let finding = Finding {
            key: format!("test:{id}"),
            rule: "test".into(),
            cluster: cluster.to_owned(),
            severity: Severity::Info,
            summary: "this is a test: nothing is wrong".into(),
            details: [].into(),
        };
        let mut alert = Alert { resolved: Some(now), ..self.new_alert(finding, now)? };
        for name in sinks {
            let sink = routing.sink(name).ok_or_else(|| AlertError::NoSink(name.clone()))?;
            alert.deliveries.push(delivery(&sink.name, Said::Test, now)?);
        }
        self.write(&alert)?;
        Ok(alert.id)
    }
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since).max(SignedDuration::ZERO)).unwrap_or_default()
}

fn delivery(sink: &str, said: Said, now: Timestamp) -> Result<Delivery> {
    Ok(Delivery {
        id: new_id(now)?,
        sink: sink.to_owned(),
        said,
        created: now,
        attempts: 0,
        next: now,
        delivered: None,
        given_up: false,
        error: None,
    })
}

/// Those of one level; who has still to be told of it is not told twice.
fn tell(alert: &mut Alert, routing: &Routing, level: usize, said: Said, now: Timestamp) -> Result<()> {
    for sink in routing.at(level, alert.finding.severity) {
        if alert.deliveries.iter().any(|d| d.is_open() && d.sink == sink.name && d.said == said) {
            continue;
        }
        alert.deliveries.push(delivery(&sink.name, said, now)?);
    }
    bound(alert);
    Ok(())
}

fn tell_those_who_know(alert: &mut Alert, said: Said, now: Timestamp) -> Result<()> {
    let mut names: Vec<String> = vec![];
    for d in alert.deliveries.iter().filter(|d| d.said == Said::Firing) {
        if !names.contains(&d.sink) {
            names.push(d.sink.clone());
        }
    }
    for name in names {
        alert.deliveries.push(delivery(&name, said, now)?);
    }
    bound(alert);
    Ok(())
}

fn bound(alert: &mut Alert) {
    while alert.deliveries.len() > DELIVERIES_MAX {
        // That one was told has to be known when it is over, so the newest of each stay.
        let Some(at) = alert.deliveries.iter().position(|d| !d.is_open()) else { return };
        alert.deliveries.remove(at);
    }
}

fn put_aside(path: &Path, why: &AlertError) -> Result<()> {
    let aside = path.with_extension("damaged");
    tracing::error!(target: "pgark", code = why.code(), "{why}; it is put aside as {}", aside.display());
    match fs::rename(path, &aside) {
        // Somebody else was faster.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Book::failed(&aside)),
    }
}

fn read(path: &Path) -> Result<Option<Alert>> {
    let failed = Book::failed(path);
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
        Ok(meta) if meta.len() > ALERT_BYTES_MAX => {
            return Err(AlertError::Damaged { path: path.to_owned(), why: format!("{} bytes", meta.len()) });
        }
        Ok(_) => {}
    }
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| AlertError::Damaged { path: path.to_owned(), why: e.to_string() })
}

#[cfg(test)]
mod tests;

//! What the repositories say of each cluster, kept at hand.
//!
//! The commands that people would type are run in the background, a few at a time, and what they print is kept: what the server
//! shows is what they show, and no repository is asked while somebody waits. A repository that hangs holds up one of these
//! processes and nobody else.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::jobs::Program;
use crate::state::{Document, Result, State};

/// At the same time: each opens repositories, and some are far away.
const RUNNING_MAX: usize = 2;
const EVERY: SignedDuration = SignedDuration::from_secs(60);
const DEADLINE: SignedDuration = SignedDuration::from_secs(300);
/// 10,000 backups are some 10 MB.
const DOCUMENT_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Which commands are asked.
pub const KINDS: [(&str, &[&str]); 3] =
    [("info", &["info"]), ("reports", &["report", "list", "--last", "200"]), ("wal", &["wal", "list"])];

pub struct Refresher {
    state: State,
    program: Program,
    running: HashMap<(usize, String), (Child, Timestamp)>,
    /// When each was asked last.
    asked: HashMap<(usize, String), Timestamp>,
}

impl Refresher {
    pub fn new(state: State, program: Program) -> Refresher {
        Refresher { state, program, running: HashMap::new(), asked: HashMap::new() }
    }

    /// Something changed: ask again soon.
    pub fn wanted(&mut self, cluster: &str) {
        self.asked.retain(|(_, name), _| name != cluster);
    }

    pub fn turn(&mut self, clusters: &[String], now: Timestamp) -> Result<()> {
        self.collect(now)?;
        for (cluster, kind) in clusters.iter().flat_map(|c| (0..KINDS.len()).map(move |kind| (c, kind))) {
            if self.running.len() >= RUNNING_MAX {
                break;
            }
            let key = (kind, cluster.clone());
            let is_old = self.asked.get(&key).is_none_or(|at| now.duration_since(*at) > EVERY);
            if is_old && !self.running.contains_key(&key) {
                self.asked.insert(key.clone(), now);
                match self.spawn(kind, cluster) {
                    Ok(child) => drop(self.running.insert(key, (child, now))),
                    Err(why) => self.state.document_failed(name(kind), cluster, &why, now)?,
                }
            }
        }
        Ok(())
    }

    /// Ends what still runs.
    pub fn stop(&mut self) {
        for (child, _) in self.running.values_mut() {
            end(child);
        }
        self.running.clear();
    }

    fn collect(&mut self, now: Timestamp) -> Result<()> {
        let mut over = vec![];
        for (key, (child, since)) in &mut self.running {
            match child.try_wait() {
                Ok(None) if now.duration_since(*since) <= DEADLINE => {}
                Ok(None) => {
                    end(child);
                    over.push((key.clone(), Some("it did not end in time".to_owned())));
                }
                Ok(Some(_)) => over.push((key.clone(), None)),
                Err(e) => over.push((key.clone(), Some(e.to_string()))),
            }
        }
        for ((kind, cluster), failed) in over {
            self.running.remove(&(kind, cluster.clone()));
            let read = failed.map_or_else(|| self.read(kind, &cluster), Err);
            match read {
                Ok(document) => self.state.keep_document(name(kind), &cluster, &document, now)?,
                Err(why) => self.state.document_failed(name(kind), &cluster, &why, now)?,
            }
        }
        Ok(())
    }

    fn path(&self, kind: usize, cluster: &str) -> PathBuf {
        self.state.dir().join(format!("refresh-{}-{cluster}", name(kind)))
    }

    fn spawn(&self, kind: usize, cluster: &str) -> Result<Child, String> {
        let path = self.path(kind, cluster);
        let mut open = OpenOptions::new();
        open.create(true).truncate(true).write(true).mode(0o600);
        let out = open.open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut words: Vec<String> =
            KINDS.get(kind).map(|(_, words)| words.iter().map(|w| (*w).to_owned()).collect()).unwrap_or_default();
        words.push(format!("--cluster={cluster}"));
        words.push("--quiet".into());
        let mut command = self.program.command(&words);
        command.stdout(out).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())
    }

    fn read(&self, kind: usize, cluster: &str) -> Result<Value, String> {
        let path = self.path(kind, cluster);
        let file = std::fs::File::open(&path).map_err(|e| e.to_string())?;
        let mut text = vec![];
        file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text).map_err(|e| e.to_string())?;
        let _ = std::fs::remove_file(&path);
        printed(&text)
    }
}

/// A failure is a document too.
fn printed(text: &[u8]) -> Result<Value, String> {
    let document: Value = serde_json::from_slice(text).map_err(|_| "it printed no document".to_owned())?;
    match document.get("error") {
        Some(error) => {
            let part = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            Err(format!("{} {}", part("code"), part("message")))
        }
        None => Ok(document),
    }
}

/// What `info` says of the cluster now, for who has no server. Waits for as long as it takes.
pub fn look(program: &Program, cluster: &str) -> Document {
    let words = ["info".to_owned(), format!("--cluster={cluster}"), "--quiet".to_owned()];
    let said = program.command(&words).stderr(Stdio::null()).output().map_err(|e| e.to_string());
    let found = said.and_then(|output| printed(&output.stdout));
    let refreshed = Timestamp::now();
    match found {
        Ok(document) => Document { document, refreshed, failed: None, error: None },
        Err(why) => Document { document: Value::Null, refreshed, failed: Some(refreshed), error: Some(why) },
    }
}

fn name(kind: usize) -> &'static str {
    KINDS.get(kind).map_or("", |(name, _)| name)
}

fn end(child: &mut Child) {
    if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
        // It may just have ended.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.wait();
}

/// How long the loop of the server sleeps.
pub const TICK: Duration = Duration::from_millis(200);

//! What the repositories say of each cluster, kept at hand.
//!
//! The commands that people would type are run in the background, a few at a time, and what they print is kept: what the server
//! shows is what they show, and no repository is asked while somebody waits. A repository that hangs holds up one of these
//! processes and nobody else.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::jobs::Program;
use crate::printing::{NotPrinted, Printing, printed};
use crate::serve::ClusterConfig;
use crate::state::{Document, Result, Sample, State};

/// At the same time: each opens repositories, and some are far away.
const RUNNING_MAX: usize = 2;
const DEADLINE: SignedDuration = SignedDuration::from_secs(300);
/// How long back it is looked what happened in the WAL; each segment costs a request.
const HISTORY: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Under this name documents are kept that are of no cluster.
pub const HOST: &str = "";

/// A command whose document is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    name: &'static str,
    words: &'static [&'static str],
    every: SignedDuration,
    /// A job of the cluster may have changed it.
    after_jobs: bool,
}

const fn source(name: &'static str, words: &'static [&'static str], minutes: i64, after_jobs: bool) -> Source {
    Source { name, words, every: SignedDuration::from_mins(minutes), after_jobs }
}

/// Cheap ones often, those that open many objects seldom. `space` counts what `info` need not count each minute.
static OF_CLUSTER: [Source; 6] = [
    source("info", &["info", "--count-for=0s"], 1, true),
    source("wal", &["wal", "list"], 1, true),
    source("reports", &["report", "list", "--last=200"], 5, true),
    source("audit", &["audit", "show", "--last=100"], 10, true),
    source("space", &["info", "--count-for=60s"], 60, false),
    source("history", &["wal", "history"], 60, false),
];
static OF_HOST: [Source; 3] = [
    source("alerts", &["alert", "list", "--history=100"], 1, true),
    source("incidents", &["incident", "list"], 1, true),
    source("settings", &["config", "explain"], 5, false),
];

type Key = (&'static str, String);

/// A document that is not the one from before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub kind: &'static str,
    /// None: of the host.
    pub cluster: Option<String>,
}

pub struct Refresher {
    state: State,
    program: Program,
    running: HashMap<Key, (Printing, Timestamp)>,
    /// When each was asked last.
    asked: HashMap<Key, Timestamp>,
    /// What each said last, without what is different each time.
    said: HashMap<Key, blake3::Hash>,
}

impl Refresher {
    pub fn new(state: State, program: Program) -> Refresher {
        Refresher { state, program, running: HashMap::new(), asked: HashMap::new(), said: HashMap::new() }
    }

    /// Something changed: ask again soon.
    pub fn wanted(&mut self, cluster: &str) {
        let changes = |name: &str| OF_CLUSTER.iter().chain(&OF_HOST).any(|s| s.name == name && s.after_jobs);
        self.asked.retain(|(name, of), _| !(changes(name) && (of == cluster || of == HOST)));
    }

    /// Gives what came in and is new.
    pub fn turn(&mut self, clusters: &[ClusterConfig], now: Timestamp) -> Result<Vec<Changed>> {
        let changed = self.collect(now)?;
        let of_clusters = clusters.iter().flat_map(|c| OF_CLUSTER.iter().map(move |source| (source, Some(c))));
        for (source, cluster) in OF_HOST.iter().map(|source| (source, None)).chain(of_clusters) {
            if self.running.len() >= RUNNING_MAX {
                break;
            }
            let key = (source.name, cluster.map_or(HOST, |c| &c.name).to_owned());
            let is_old = self.asked.get(&key).is_none_or(|at| now.duration_since(*at) > source.every);
            if is_old && !self.running.contains_key(&key) {
                self.asked.insert(key.clone(), now);
                let path = self.state.dir().join(format!("refresh-{}-{}", key.0, key.1));
                match Printing::start(&self.program, &words(source, cluster, now), path) {
                    Ok(printing) => drop(self.running.insert(key, (printing, now))),
                    Err(why) => self.state.document_failed(key.0, &key.1, &said(&why), now)?,
                }
            }
        }
        Ok(changed)
    }

    /// Ends what still runs.
    pub fn stop(&mut self) {
        self.running.clear();
    }

    fn collect(&mut self, now: Timestamp) -> Result<Vec<Changed>> {
        let mut over: Vec<(Key, Result<Value, NotPrinted>)> = vec![];
        for (key, (printing, since)) in &mut self.running {
            match printing.is_over() {
                Ok(false) if now.duration_since(*since) <= DEADLINE => {}
                Ok(false) => over.push((key.clone(), Err(NotPrinted::because("it did not end in time")))),
                Ok(true) => over.push((key.clone(), printing.document())),
                Err(why) => over.push((key.clone(), Err(why))),
            }
        }
        let mut changed = vec![];
        for (key, read) in over {
            self.running.remove(&key);
            let (name, cluster) = &key;
            let hash = match &read {
                Ok(document) => {
                    self.state.keep_document(name, cluster, document, now)?;
                    if let Some((repo, sample)) = (*name == "space").then(|| sampled(document, now)).flatten() {
                        self.state.add_sample(&repo, &sample)?;
                    }
                    // Free room is another at each look.
                    blake3::hash(document.get("clusters").unwrap_or(document).to_string().as_bytes())
                }
                Err(why) => {
                    self.state.document_failed(name, cluster, &said(why), now)?;
                    blake3::hash(said(why).as_bytes())
                }
            };
            if self.said.insert(key.clone(), hash) != Some(hash) {
                changed.push(Changed { kind: *name, cluster: (cluster != HOST).then(|| cluster.clone()) });
            }
        }
        Ok(changed)
    }
}

fn words(source: &Source, cluster: Option<&ClusterConfig>, now: Timestamp) -> Vec<String> {
    let mut words: Vec<String> = source.words.iter().map(|w| (*w).to_owned()).collect();
    if let Some(cluster) = cluster {
        words.push(format!("--cluster={}", cluster.name));
        if source.name == "space" && cluster.is_priced {
            words.push("--cost".into());
        }
    }
    if source.name == "history" {
        words.push(format!("--from={}", now.saturating_sub(HISTORY).unwrap_or(Timestamp::MIN)));
    }
    words
}

fn said(why: &NotPrinted) -> String {
    format!("{} {}", why.code, why.message)
}

/// What `info` says of the cluster now, for who has no server. Waits for as long as it takes.
pub fn look(program: &Program, cluster: &str) -> Document {
    let words = ["info".to_owned(), format!("--cluster={cluster}"), "--quiet".to_owned()];
    let output = program.command(&words).stderr(Stdio::null()).output();
    let found = output.map_err(|e| NotPrinted::because(e.to_string())).and_then(|output| printed(&output.stdout));
    let refreshed = Timestamp::now();
    match found {
        Ok(document) => Document { document, refreshed, failed: None, error: None },
        Err(why) => Document { document: Value::Null, refreshed, failed: Some(refreshed), error: Some(said(&why)) },
    }
}

/// How full the repository was, if all of it could be counted.
fn sampled(document: &Value, now: Timestamp) -> Option<(String, Sample)> {
    let room = document.get("repository")?;
    let used = room.get("used")?;
    if used.get("complete") != Some(&Value::Bool(true)) {
        return None;
    }
    let sample = Sample {
        at: now,
        used_bytes: used.get("bytes")?.as_u64()?,
        free_bytes: room.pointer("/free/bytes").and_then(Value::as_u64),
        month: room.pointer("/cost/storage_month").and_then(Value::as_f64),
        currency: room.pointer("/cost/currency").and_then(Value::as_str).map(str::to_owned),
    };
    Some((room.get("name")?.as_str()?.to_owned(), sample))
}

/// How long the loop of the server sleeps.
pub const TICK: Duration = Duration::from_millis(200);

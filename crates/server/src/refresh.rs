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
use crate::serve::{ClusterConfig, rooms};
use crate::state::{Document, Result, Sample, State};

/// At the same time: each opens repositories, and some are far away.
const RUNNING_MAX: usize = 2;
/// Whoever asks something, and every job, goes before.
const NICE: i32 = 5;
const DEADLINE: SignedDuration = SignedDuration::from_secs(300);
/// How long back it is looked what happened in the WAL; each segment costs a request.
const HISTORY: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Under this name documents are kept that are of no cluster.
pub const HOST: &str = "";

/// A command whose document is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    of: Of,
    name: &'static str,
    words: &'static [&'static str],
    every: SignedDuration,
    /// A job of the cluster may have changed it.
    after_jobs: bool,
}

/// What a document is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Host,
    Cluster,
    /// The repositories of a cluster, and of all others that have the same; kept under the name of the first of them.
    Room,
}

const fn source(of: Of, name: &'static str, words: &'static [&'static str], minutes: i64, after_jobs: bool) -> Source {
    Source { of, name, words, every: SignedDuration::from_mins(minutes), after_jobs }
}

/// Cheap ones often, those that open many objects seldom. `space` counts what `info` need not count each minute. In the order in
/// which they are asked when nothing is known yet.
static SOURCES: [Source; 9] = [
    source(Of::Host, "alerts", &["alert", "list", "--history=100"], 1, true),
    source(Of::Host, "incidents", &["incident", "list"], 1, true),
    source(Of::Host, "settings", &["config", "explain"], 5, false),
    source(Of::Cluster, "info", &["info", "--count-for=0s"], 1, true),
    source(Of::Cluster, "wal", &["wal", "list"], 1, true),
    source(Of::Cluster, "reports", &["report", "list", "--last=200"], 5, true),
    source(Of::Cluster, "audit", &["audit", "show", "--last=100"], 10, true),
    source(Of::Room, "space", &["info", "--count-for=60s"], 60, false),
    source(Of::Cluster, "history", &["wal", "history"], 60, false),
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
        let changes = |name: &str| SOURCES.iter().any(|s| s.name == name && s.after_jobs);
        self.asked.retain(|(name, of), _| !(changes(name) && (of == cluster || of == HOST)));
    }

    /// The settings in force may be others: what is shown of them is asked for again soon.
    pub fn settings_wanted(&mut self) {
        self.asked.retain(|(name, _), _| *name != "settings");
    }

    /// Gives what came in and is new.
    pub fn turn(&mut self, clusters: &[ClusterConfig], now: Timestamp) -> Result<Vec<Changed>> {
        let changed = self.collect(now)?;
        while self.running.len() < RUNNING_MAX {
            let Some((source, cluster)) = self.next(clusters, now) else { break };
            let key = (source.name, cluster.map_or(HOST, |c| &c.name).to_owned());
            self.asked.insert(key.clone(), now);
            let asked = if source.of == Of::Room { cluster.map(|c| one_of(clusters, c, now)) } else { cluster };
            let path = self.state.dir().join(format!("refresh-{}-{}", key.0, key.1));
            match Printing::start(&self.program, &words(source, asked, now), path) {
                Ok(printing) => {
                    printing.gives_way(NICE);
                    self.running.insert(key, (printing, now));
                }
                Err(why) => self.state.document_failed(key.0, &key.1, &said(&why), now)?,
            }
        }
        Ok(changed)
    }

    /// What has been due for longest; before it what was never asked. So none waits for ever, however many there are.
    fn next<'a>(
        &self,
        clusters: &'a [ClusterConfig],
        now: Timestamp,
    ) -> Option<(&'static Source, Option<&'a ClusterConfig>)> {
        let due = |(source, cluster): (&'static Source, Option<&'a ClusterConfig>)| {
            let key = (source.name, cluster.map_or(HOST, |c| &c.name).to_owned());
            let asked = self.asked.get(&key);
            let is_old = asked.is_none_or(|at| now.duration_since(*at).abs() > source.every);
            let since = asked.map(|at| at.saturating_add(source.every).unwrap_or(*at));
            (is_old && !self.running.contains_key(&key)).then_some((since, source, cluster))
        };
        let first = wanted(clusters).filter_map(due).min_by_key(|(since, ..)| *since);
        first.map(|(_, source, cluster)| (source, cluster))
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
                changed.push(Changed { kind: name, cluster: (cluster != HOST).then(|| cluster.clone()) });
            }
        }
        Ok(changed)
    }
}

/// Everything that is kept at hand.
fn wanted(clusters: &[ClusterConfig]) -> impl Iterator<Item = (&'static Source, Option<&ClusterConfig>)> {
    SOURCES.iter().flat_map(|source| {
        let of: Box<dyn Iterator<Item = Option<&ClusterConfig>>> = match source.of {
            Of::Host => Box::new(std::iter::once(None)),
            Of::Cluster => Box::new(clusters.iter().map(Some)),
            Of::Room => Box::new(rooms(clusters).map(Some)),
        };
        of.map(move |cluster| (source, cluster))
    })
}

/// Another one of those that share the room each time, since one may not be in the repository yet.
fn one_of<'a>(clusters: &'a [ClusterConfig], first: &'a ClusterConfig, now: Timestamp) -> &'a ClusterConfig {
    let all: Vec<_> = clusters.iter().filter(|c| c.shares_room(first)).collect();
    let turn = usize::try_from(now.as_second() / 3600).unwrap_or(0);
    turn.checked_rem(all.len()).and_then(|n| all.get(n)).map_or(first, |one| *one)
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
    let output = program.command(&words).and_then(|mut command| command.stderr(Stdio::null()).output());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Shared;

    fn cluster(n: usize, repo: &str) -> ClusterConfig {
        let (name, repos) = (format!("c{n:03}"), vec![repo.to_owned()]);
        ClusterConfig { name, repos, rpo: None, rto: None, system: None, is_priced: false, repoints: false }
    }

    fn refresher(label: &str) -> (Refresher, pgark_testkit::Scratch) {
        let scratch = pgark_testkit::Scratch::new(label);
        let state = State::open(&scratch.join("state")).expect("opened");
        (
            Refresher::new(state, Program { binary: "/nowhere".into(), words: vec![], settings: Shared::default() }),
            scratch,
        )
    }

    #[test]
    fn however_long_a_look_takes_every_cluster_has_its_turn() {
        let (mut refresher, _scratch) = refresher("turns");
        let clusters: Vec<_> = (0..100).map(|n| cluster(n, if n < 60 { "one" } else { "two" })).collect();
        let all = wanted(&clusters).count();
        assert_eq!(all, 3 + 5 * 100 + 2, "room is looked up once for each repository");
        let mut now = Timestamp::now();
        let mut turn = || {
            let (source, cluster) =
                refresher.next(&clusters, now).expect("something is due, for nothing is fast enough");
            let key = (source.name, cluster.map_or(HOST, |c| &c.name).to_owned());
            refresher.asked.insert(key.clone(), now);
            // A round takes longer than anything may wait.
            now += SignedDuration::from_secs(8);
            (key, now)
        };
        let first: Vec<Key> = (0..all).map(|_| turn().0).collect();
        let (info, seen): (Vec<&Key>, std::collections::HashSet<&Key>) =
            (first.iter().skip(3).take(100).collect(), first.iter().collect());
        assert_eq!(seen.len(), all, "each once before any of them twice");
        assert!(info.iter().all(|(name, _)| *name == "info"), "what is most wanted comes first");
        let mut last: HashMap<Key, Timestamp> = HashMap::new();
        let mut longest = SignedDuration::ZERO;
        for _ in 0..4 * all {
            let (key, at) = turn();
            if let Some(before) = last.insert(key, at) {
                longest = longest.max(at.duration_since(before));
            }
        }
        // A round of what is asked often, and what is asked seldom in between.
        assert!(longest < SignedDuration::from_secs(8 * 2 * i64::try_from(all).expect("few")), "{longest}");
        assert_eq!(last.len(), all);
    }

    #[test]
    fn each_of_those_that_share_a_room_is_asked_for_it_in_turn() {
        let clusters = [cluster(0, "one"), cluster(1, "two"), cluster(2, "one")];
        let at = |hour: i64| Timestamp::from_second(hour * 3600 + 5).expect("a time");
        let asked: Vec<&str> = (0..4).map(|hour| one_of(&clusters, &clusters[0], at(hour)).name.as_str()).collect();
        assert_eq!(asked, ["c000", "c002", "c000", "c002"]);
        assert_eq!(one_of(&clusters, &clusters[1], at(1)).name, "c001");
    }
}

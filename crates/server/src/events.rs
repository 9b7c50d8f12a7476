//! What happens, as it happens: jobs that begin, get on and end; and that more is known of a cluster.
//!
//! A bounded list of the newest events, numbered. Who listens reads on from the number that it had last; one that has fallen
//! behind the list, or knows another server's numbers, is told to look at everything anew. An event tells what is new, never
//! all of it: it is a reason to look, and what one sees then goes by rights like every other answer.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::Caller;
use crate::jobs::JobState;
use crate::refresh::Changed;
use crate::state::{Filter, Result, State};

const KEPT_MAX: usize = 1000;
/// Each holds a connection.
const LISTENERS_MAX: usize = 64;
const LOOK_EVERY: SignedDuration = SignedDuration::from_millis(500);
/// Jobs that are looked at, of the newest.
const JOBS_MAX: usize = 50;
/// So that nobody on the way takes a silent connection for a dead one.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Then the caller comes again, and it is looked whether it still may.
const STREAM_MAX: Duration = Duration::from_secs(300);
/// How soon a browser comes again.
const RETRY_MS: u32 = 2000;

#[derive(Clone, Debug)]
struct Event {
    number: u64,
    kind: &'static str,
    /// None: of the host, and for everybody.
    cluster: Option<String>,
    data: String,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Event>,
    newest: u64,
    jobs: HashMap<String, String>,
    looked: Option<Timestamp>,
}

/// To be cloned freely.
#[derive(Clone)]
pub struct Events(Arc<Hub>);

struct Hub {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    listeners: AtomicUsize,
    /// Nobody is to listen any longer.
    is_over: AtomicBool,
    /// Numbers of another server mean nothing.
    epoch: String,
}

impl Default for Events {
    fn default() -> Events {
        let (newest, _) = watch::channel(0);
        let epoch = format!("{:x}", Timestamp::now().as_millisecond());
        Events(Arc::new(Hub {
            ring: Mutex::default(),
            newest,
            listeners: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            epoch,
        }))
    }
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, ring: &mut Ring, kind: &'static str, cluster: Option<String>, data: &Value) {
        ring.newest += 1;
        ring.events.push_back(Event { number: ring.newest, kind, cluster, data: data.to_string() });
        if ring.events.len() > KEPT_MAX {
            ring.events.pop_front();
        }
        self.0.newest.send_replace(ring.newest);
    }

    /// More is known of a cluster, or of the host.
    pub fn known(&self, changed: &Changed) {
        let data = json!({"cluster": changed.cluster, "of": changed.kind});
        self.add(&mut self.ring(), "known", changed.cluster.clone(), &data);
    }

    /// Looks for jobs that are not as they were.
    pub fn turn(&self, state: &State, now: Timestamp) -> Result<()> {
        let looked = self.ring().looked;
        if looked.is_some_and(|at| now.duration_since(at).abs() < LOOK_EVERY) {
            return Ok(());
        }
        let mut jobs = state.open_jobs()?;
        jobs.extend(state.jobs(&Filter { limit: JOBS_MAX, ..Filter::default() })?);
        let mut seen = HashMap::new();
        let mut ring = self.ring();
        for job in jobs {
            let progress = if job.state == JobState::Running { job.progress(state) } else { None };
            let data = json!({"id": job.id, "cluster": job.cluster, "job": job.request.word(), "state": job.state,
                "progress": progress, "cancel_requested": job.cancel_requested, "finished": job.finished});
            let text = data.to_string();
            let is_new = !seen.contains_key(&job.id) && ring.jobs.get(&job.id) != Some(&text);
            // What was there when the server began is no news.
            if is_new && looked.is_some() {
                self.add(&mut ring, "job", Some(job.cluster), &data);
            }
            seen.insert(job.id, text);
        }
        ring.jobs = seen;
        ring.looked = Some(now);
        Ok(())
    }

    /// From after the event of this id. None when there are too many listeners.
    pub fn listen(&self, caller: Caller, last_id: Option<&str>) -> Option<Listening> {
        let one_more = |n: usize| (n < LISTENERS_MAX).then_some(n + 1);
        self.0.listeners.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).ok()?;
        let ring = self.ring();
        let oldest = ring.events.front().map_or(ring.newest + 1, |e| e.number);
        let (seen, begin) = match last_id {
            None => (ring.newest, "hello"),
            Some(id) => match self.number(id).filter(|n| (oldest - 1..=ring.newest).contains(n)) {
                Some(number) => (number, "hello"),
                None => (ring.newest, "reset"),
            },
        };
        drop(ring);
        let said = Some(format!("retry: {RETRY_MS}\nevent: {begin}\ndata: {{}}\n\n"));
        let newest = self.0.newest.subscribe();
        Some(Listening { events: self.clone(), caller, seen, said, newest, until: Instant::now() + STREAM_MAX })
    }

    /// Every stream ends, so that the server can.
    pub fn end(&self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        // Who waits for an event is woken.
        self.0.newest.send_modify(|_| ());
    }

    fn number(&self, id: &str) -> Option<u64> {
        let (epoch, number) = id.split_once('-')?;
        (epoch == self.0.epoch).then(|| number.parse().ok()).flatten()
    }
}

/// One who listens.
pub struct Listening {
    events: Events,
    caller: Caller,
    seen: u64,
    said: Option<String>,
    newest: watch::Receiver<u64>,
    until: Instant,
}

impl Listening {
    /// What is to be sent next, as text of `text/event-stream`. None: it is time to come again.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(said) = self.said.take() {
                return Some(said);
            }
            // What comes in from here on is waited for no more.
            self.newest.borrow_and_update();
            let now = Instant::now();
            if now >= self.until || self.events.0.is_over.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(text) = self.take() {
                return Some(text);
            }
            let wait = HEARTBEAT.min(self.until - now);
            match tokio::time::timeout(wait, self.newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(": still here\n\n".into()),
            }
        }
    }

    fn take(&mut self) -> Option<String> {
        let ring = self.events.ring();
        let oldest = ring.events.front().map_or(ring.newest + 1, |e| e.number);
        if self.seen + 1 < oldest {
            self.seen = ring.newest;
            return Some("event: reset\ndata: {}\n\n".into());
        }
        let news = ring.events.iter().filter(|e| e.number > self.seen);
        let own = news.filter(|e| e.cluster.as_ref().is_none_or(|c| self.caller.sees(c)));
        let epoch = &self.events.0.epoch;
        let text: String =
            own.map(|e| format!("id: {epoch}-{}\nevent: {}\ndata: {}\n\n", e.number, e.kind, e.data)).collect();
        self.seen = ring.newest;
        (!text.is_empty()).then_some(text)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.events.0.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Grant, Means, Role};

    fn caller(cluster: Option<&str>) -> Caller {
        let cluster = cluster.map(str::to_owned);
        Caller {
            means: Means::Token,
            id: "t".into(),
            name: "n".into(),
            grants: vec![Grant { role: Role::Viewer, cluster }],
        }
    }

    fn changed(cluster: &str) -> Changed {
        Changed { kind: "info", cluster: Some(cluster.into()) }
    }

    #[test]
    fn each_hears_of_its_own_from_where_it_was() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let events = Events::default();
        let mut all = events.listen(caller(None), None).expect("room");
        let mut own = events.listen(caller(Some("b")), None).expect("room");
        let next = |l: &mut Listening| runtime.block_on(l.next()).expect("something");
        assert!(next(&mut all).contains("event: hello") && next(&mut own).contains("event: hello"));
        events.known(&changed("a"));
        events.known(&changed("b"));
        let text = next(&mut all);
        assert_eq!(text.matches("event: known").count(), 2, "{text}");
        let heard = next(&mut own);
        assert!(heard.contains("\"b\"") && !heard.contains("\"a\""), "{heard}");
        // Come again with the first id, one hears the second event.
        let id = text.lines().find_map(|l| l.strip_prefix("id: ")).expect("an id");
        let mut again = events.listen(caller(None), Some(id)).expect("room");
        assert!(next(&mut again).contains("event: hello"));
        assert!(next(&mut again).contains("\"b\""));
        for wrong in ["0-1", "", "x", &format!("{}9", id)] {
            let mut lost = events.listen(caller(None), Some(wrong)).expect("room");
            assert!(next(&mut lost).contains("event: reset"), "{wrong}");
        }
        for _ in 0..=KEPT_MAX {
            events.known(&changed("a"));
        }
        assert!(next(&mut all).contains("event: reset"));
        assert_eq!(events.ring().events.len(), KEPT_MAX);
    }

    #[test]
    fn listeners_are_counted() {
        let events = Events::default();
        let all: Vec<_> = (0..LISTENERS_MAX).filter_map(|_| events.listen(caller(None), None)).collect();
        assert_eq!(all.len(), LISTENERS_MAX);
        assert!(events.listen(caller(None), None).is_none());
        drop(all);
        let mut last = events.listen(caller(None), None).expect("room");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        assert!(runtime.block_on(last.next()).is_some());
        events.end();
        assert_eq!(runtime.block_on(last.next()), None, "the server ends");
    }
}

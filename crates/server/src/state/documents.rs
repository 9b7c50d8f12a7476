//! What the repositories say of each cluster, as a command printed it last; and how far schedules were looked at.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use serde_json::Value;

use super::{Facts, Result, State, StateError, optional_time, text, time};
use crate::known::Known;

/// Documents of `info`, of which `Known` is made.
const HAVE_FACTS: [&str; 2] = ["info", "space"];

/// The answer of a command.
#[derive(Clone, Debug)]
pub struct Document {
    /// `null` when there was none yet.
    pub document: Value,
    /// When it was printed.
    pub refreshed: Timestamp,
    /// The last attempt failed, if it was after that.
    pub failed: Option<Timestamp>,
    pub error: Option<String>,
}

impl State {
    pub fn document(&self, kind: &str, cluster: &str) -> Result<Option<Document>> {
        let row = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?, row.get(3)?))
        };
        let found = {
            let connection = self.copies();
            let mut query = connection
                .prepare("select document, refreshed, failed, error from documents where kind = ?1 and cluster = ?2")?;
            query.query_row([kind, cluster], row).optional()?
        };
        let Some((document, refreshed, failed, error)) = found else { return Ok(None) };
        let document = serde_json::from_str(&document).map_err(|e| StateError::Content(e.to_string()))?;
        Ok(Some(Document { document, refreshed: time(&refreshed)?, failed: optional_time(failed)?, error }))
    }

    /// What a document of `info` said of the cluster, without reading it each time.
    pub fn known(&self, kind: &'static str, cluster: &str) -> Result<Arc<Known>> {
        // Held until it is in: what is put in meanwhile is newer than what is read here.
        let mut all = self.facts();
        let key = (kind, cluster.to_owned());
        if let Some(known) = all.get(&key) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(Known::of(self.document(kind, cluster)?.as_ref(), cluster));
        all.insert(key, Arc::clone(&made));
        Ok(made)
    }

    /// Another one when something else is known than before.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is the same as before is not written again, but for when it was looked at.
    pub fn keep_document(&self, kind: &'static str, cluster: &str, document: &Value, now: Timestamp) -> Result<()> {
        let words = document.to_string();
        let content = blake3::hash(words.as_bytes());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, cluster.to_owned());
        if kept.get(&key) != Some(&content) || !self.was_seen_again(kind, cluster, now)? {
            // Until it is there nothing is known of what is.
            kept.remove(&key);
            let change = "insert into documents (kind, cluster, document, refreshed) values (?1, ?2, ?3, ?4)
                on conflict do update set document = ?3, refreshed = ?4, failed = null, error = null";
            self.copies().prepare(change)?.execute(params![kind, cluster, words, text(now)])?;
            kept.insert(key, content);
        }
        drop(kept);
        if HAVE_FACTS.contains(&kind) {
            let known = Known::said(document, now, cluster);
            self.facts().insert((kind, cluster.to_owned()), Arc::new(known));
            self.version.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// SQLite writes the pages of a row that differ when its length does not: the one with the time. False when nothing is kept.
    fn was_seen_again(&self, kind: &str, cluster: &str, now: Timestamp) -> Result<bool> {
        let change =
            "update documents set refreshed = ?3, failed = null, error = null where kind = ?1 and cluster = ?2";
        Ok(self.copies().prepare(change)?.execute(params![kind, cluster, text(now)])? == 1)
    }

    /// What was known before stays, with its age.
    pub fn document_failed(&self, kind: &'static str, cluster: &str, why: &str, now: Timestamp) -> Result<()> {
        let change = "insert into documents (kind, cluster, document, refreshed, failed, error)
            values (?1, ?2, 'null', ?3, ?3, ?4) on conflict do update set failed = ?3, error = ?4";
        self.copies().prepare(change)?.execute(params![kind, cluster, text(now), why])?;
        if let Some(known) = self.facts().get_mut(&(kind, cluster.to_owned())) {
            *known = Arc::new(Known { failed: Some(now), error: Some(why.to_owned()), ..Known::clone(known) });
        }
        self.version.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// When the schedule was seen first and until when it was considered; both are now for one that is new.
    pub fn schedule(&self, name: &str, now: Timestamp) -> Result<(Timestamp, Timestamp)> {
        let connection = self.connection();
        let change = "insert into schedules (name, first_seen, considered) values (?1, ?2, ?2) on conflict do nothing";
        connection.execute(change, params![name, text(now)])?;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
        let found =
            connection.query_row("select first_seen, considered from schedules where name = ?1", [name], row)?;
        Ok((time(&found.0)?, time(&found.1)?))
    }

    pub fn consider_schedule(&self, name: &str, until: Timestamp) -> Result<()> {
        self.connection()
            .execute("update schedules set considered = ?2 where name = ?1", params![name, text(until)])?;
        Ok(())
    }

    pub fn forget_schedules(&self, is_there: impl Fn(&str) -> bool) -> Result<()> {
        let connection = self.connection();
        let mut query = connection.prepare("select name from schedules")?;
        let names = query.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        for name in names.iter().filter(|name| !is_there(name)) {
            connection.execute("delete from schedules where name = ?1", [name])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_that_is_the_same_is_written_once_and_its_age_each_time() {
        let scratch = pgark_testkit::Scratch::new("documents");
        let dir = scratch.join("state");
        let state = State::open(&dir).expect("opened");
        let (begun, each) = (Timestamp::now(), SignedDuration::from_mins(1));
        let backup = |n: u32| json!({"id": format!("{n:08}"), "complete": true, "finished": begun});
        let backups: Vec<Value> = (0..20_000).map(backup).collect();
        let clusters = json!([{"name": "a", "backups": backups}]);
        let with_room = |bytes: u64| json!({"clusters": clusters, "repository": {"free": {"bytes": bytes}}});
        let long = with_room(100_000_000);
        let length = long.to_string().len() as u64;
        let log = || std::fs::metadata(dir.join("server.sqlite-wal")).expect("a log").len();
        state.keep_document("info", "a", &long, begun).expect("kept");
        let (first, mut now) = (log(), begun);
        assert!(first > length);
        for _ in 0..20 {
            now += each;
            state.keep_document("info", "a", &long, now).expect("kept");
        }
        assert!(log() - first < length / 4, "{} after {first}, of {length} bytes", log());
        // Room is another at each look, and nothing else: what is before it stays where it is.
        for n in 1..20 {
            state.keep_document("info", "a", &with_room(100_000_000 + n), now).expect("kept");
        }
        state.keep_document("info", "a", &long, now).expect("kept");
        assert!(log() - first < length / 2, "{} after {first}, of {length} bytes", log());
        // What is said of it is of the last look, here and after a restart.
        let seconds = |at: Option<Timestamp>| at.expect("looked at").as_second();
        let known = |state: &State| state.known("info", "a").expect("known");
        assert_eq!((seconds(known(&state).refreshed), known(&state).backups), (now.as_second(), 20_000));
        state.document_failed("info", "a", "E-STORE away", now + each).expect("noted");
        let again = State::open(&dir).expect("opened");
        let found = again.document("info", "a").expect("read").expect("there");
        assert_eq!((found.refreshed.as_second(), found.failed.is_some()), (now.as_second(), true));
        assert!(found.document == long);
        state.keep_document("info", "a", &long, now + each).expect("kept");
        let found = again.document("info", "a").expect("read").expect("there");
        assert_eq!((found.refreshed.as_second(), found.failed, found.error), ((now + each).as_second(), None, None));
        // Another one is another one, also when the row is gone.
        let short = json!({"clusters": []});
        state.keep_document("info", "a", &short, now).expect("kept");
        assert_eq!(again.document("info", "a").expect("read").expect("there").document, short);
        state.copies().execute("delete from documents", []).expect("deleted");
        state.keep_document("info", "a", &short, now).expect("kept");
        assert_eq!(again.document("info", "a").expect("read").expect("there").document, short);
    }
}

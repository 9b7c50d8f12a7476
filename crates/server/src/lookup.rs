//! What is looked up when somebody asks for it: one report, the plan of a restore.
//!
//! The command that prints it is run beside the server, a few at the same time, and its document is kept for a while: who asks
//! waits a moment, then is told that it is under way and asks again. Nothing of it is written down.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::jobs::Program;
use crate::printing::{NotPrinted, Printing};

const RUNNING_MAX: usize = 3;
/// Answers that are kept; the oldest goes.
const KEPT_MAX: usize = 64;
const DEADLINE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub enum Found {
    Underway,
    /// So many others are that it was not begun.
    Busy,
    Over(Result<Arc<Value>, NotPrinted>),
}

enum Entry {
    Underway,
    Over(Result<Arc<Value>, NotPrinted>, Instant),
}

/// To be cloned freely.
#[derive(Clone)]
pub struct Lookups(Arc<Inner>);

struct Inner {
    /// None: there is nobody who could be asked.
    program: Option<Program>,
    dir: PathBuf,
    entries: Mutex<HashMap<Vec<String>, Entry>>,
    changed: Condvar,
}

impl Lookups {
    /// `dir` is private, and there.
    pub fn new(program: Option<Program>, dir: PathBuf) -> Lookups {
        Lookups(Arc::new(Inner { program, dir, entries: Mutex::default(), changed: Condvar::new() }))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Vec<String>, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the command prints; not older than `fresh`, and waited for no longer than `wait`.
    pub fn find(&self, words: &[String], fresh: Duration, wait: Duration) -> Found {
        let until = Instant::now() + wait;
        let mut entries = self.entries();
        match entries.get(words) {
            Some(Entry::Over(found, at)) if at.elapsed() <= fresh => return Found::Over(found.clone()),
            Some(Entry::Underway) => {}
            Some(Entry::Over(..)) | None => {
                if entries.values().filter(|e| matches!(e, Entry::Underway)).count() >= RUNNING_MAX {
                    return Found::Busy;
                }
                make_room(&mut entries);
                entries.insert(words.to_vec(), Entry::Underway);
                let (own, key) = (self.clone(), words.to_vec());
                let asked = key.clone();
                let spawned = std::thread::Builder::new().name("lookup".into()).spawn(move || own.look(&asked));
                if let Err(e) = spawned {
                    entries.remove(&key);
                    return Found::Over(Err(NotPrinted::because(e.to_string())));
                }
            }
        }
        loop {
            match entries.get(words) {
                Some(Entry::Over(found, _)) => return Found::Over(found.clone()),
                // It was pushed out by newer ones while we waited.
                None => return Found::Busy,
                Some(Entry::Underway) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Found::Underway;
            }
            entries = self.0.changed.wait_timeout(entries, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look(&self, words: &[String]) {
        let found = self.printed(words).map(Arc::new);
        self.entries().insert(words.to_vec(), Entry::Over(found, Instant::now()));
        self.0.changed.notify_all();
    }

    fn printed(&self, words: &[String]) -> Result<Value, NotPrinted> {
        let program = self.0.program.as_ref().ok_or_else(|| NotPrinted::because("nothing can be looked up here"))?;
        let name = blake3::hash(words.join("\0").as_bytes()).to_hex();
        let path = self.0.dir.join(format!("lookup-{}", &name[..16]));
        let (begun, mut printing) = (Instant::now(), Printing::start(program, words, path)?);
        while !printing.is_over()? {
            if begun.elapsed() > DEADLINE {
                return Err(NotPrinted::because("it did not end in time"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        printing.document()
    }
}

fn make_room(entries: &mut HashMap<Vec<String>, Entry>) {
    if entries.len() < KEPT_MAX {
        return;
    }
    let age = |entry: &Entry| match entry {
        Entry::Underway => None,
        Entry::Over(_, at) => Some(*at),
    };
    let oldest = entries.iter().filter_map(|(words, entry)| Some((age(entry)?, words))).min();
    if let Some(words) = oldest.map(|(_, words)| words.clone()) {
        entries.remove(&words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Shared;

    fn lookups(scratch: &pgark_testkit::Scratch) -> Lookups {
        // Prints its first word, or hangs as long as it is there itself.
        let script = "#!/bin/sh\ncase $1 in hang) while [ -e $0 ]; do sleep 0.1; done;; wrong) echo '{\"error\":{\"code\":\"E-X\",\"message\":\"m\"}}';; *) echo \"{\\\"said\\\":\\\"$1\\\"}\";; esac\n";
        let binary = scratch.file("print", script.as_bytes(), 0o755);
        Lookups::new(Some(Program { binary, words: vec![], settings: Shared::default() }), scratch.dir("lookups"))
    }

    #[test]
    fn what_is_looked_up_is_kept_and_what_hangs_holds_up_nobody() {
        let scratch = pgark_testkit::Scratch::new("lookups");
        let lookups = lookups(&scratch);
        let long = Duration::from_secs(60);
        let find = |word: &str, wait| lookups.find(&[word.to_owned()], long, wait);
        let said = |word: &str| match find(word, long) {
            Found::Over(Ok(document)) => document["said"].as_str().expect("a word").to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!((said("a").as_str(), said("b").as_str(), said("a").as_str()), ("a", "b", "a"));
        assert!(matches!(find("wrong", long), Found::Over(Err(e)) if e.code == "E-X"));
        assert!(matches!(find("hang", Duration::ZERO), Found::Underway));
        assert_eq!(said("c"), "c");
        for n in 0..KEPT_MAX + 2 {
            assert_eq!(said(&n.to_string()), n.to_string());
        }
        assert!(lookups.entries().len() <= KEPT_MAX);
        assert!(matches!(find("hang", Duration::ZERO), Found::Underway), "it is not pushed out");
        let none = Lookups::new(None, scratch.dir("none"));
        assert!(matches!(none.find(&["x".into()], long, long), Found::Over(Err(_))));
    }
}

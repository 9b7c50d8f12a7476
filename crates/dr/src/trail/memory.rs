//! Where a journal ended when this host saw it last: a head that nobody exported. Who cuts the end off a journal, or begins it
//! anew, does not reach it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pgark_repo::Repository;
use pgark_repo::audit::{Head, Journal, JournalName};

use super::files::{make_private, write_durably};
use super::spool::{place_of, remove};

pub(super) struct Memory {
    path: PathBuf,
}

impl Memory {
    pub fn of(state_dir: &Path, repo: &Repository, url: &str, journal: &JournalName) -> Self {
        // One that was made anew in the same place is another one.
        let place = place_of(&format!("{url}\n{}", repo.id()), journal);
        Memory { path: state_dir.join("audit-heads").join(format!("{place}.json")) }
    }

    fn read(&self) -> Option<Head> {
        serde_json::from_slice(&fs::read(&self.path).ok()?).ok()
    }

    /// In words, when the journal, which ends with `head`, cannot have come from what is remembered.
    pub fn contradicts(&self, journal: &Journal<'_>, head: Option<&Head>) -> Option<String> {
        let known = self.read()?;
        match head {
            None => Some(format!("it is empty, and had {} records", known.number)),
            Some(head) if head.chain != known.chain => Some("it was begun anew".into()),
            Some(head) if head.number < known.number => {
                Some(format!("it ends with record {}, and had {}", head.number, known.number))
            }
            Some(head) if head.number == known.number && head.hash != known.hash => Some(is_another(&known)),
            // It was cut off, and has grown since. A record that is not there may have been too old, and a writer reads none.
            Some(head) if head.number > known.number => {
                let then = journal.read(known.number).ok()?;
                (then.hash != known.hash).then(|| is_another(&known))
            }
            Some(_) => None,
        }
    }

    /// What cannot be written down is not known the next time; no command fails of it.
    pub fn keep(&self, head: &Head) {
        let kept = || -> io::Result<()> {
            make_private(self.path.parent().unwrap_or(Path::new("/")))?;
            write_durably(&self.path, &serde_json::to_vec(head)?)
        };
        if let Err(error) = kept() {
            tracing::debug!(target: "pgark", %error, "the end of the audit trail is not remembered");
        }
    }
}

fn is_another(known: &Head) -> String {
    format!("its record {} is another one than it was", known.number)
}

/// In words, when a journal cannot have come from what this host knows of it.
///
/// # Errors
/// What reading the end of the journal came to.
pub fn contradiction(
    state_dir: &Path,
    repo: &Repository,
    url: &str,
    journal: &JournalName,
) -> pgark_repo::Result<Option<String>> {
    let in_repo = Journal::new(repo, journal.clone());
    let head = in_repo.head()?;
    Ok(Memory::of(state_dir, repo, url, journal).contradicts(&in_repo, head.as_ref()))
}

/// What this host knows of a journal.
pub fn remembered(state_dir: &Path, repo: &Repository, url: &str, journal: &JournalName) -> Option<Head> {
    Memory::of(state_dir, repo, url, journal).read()
}

/// From now on the journal counts as it is.
pub fn forget(state_dir: &Path, repo: &Repository, url: &str, journal: &JournalName) -> io::Result<()> {
    remove(&Memory::of(state_dir, repo, url, journal).path)
}

//! What this host has seen of a repository's keys, beside the key cache: a key ring that was set back to an earlier one,
//! or exchanged for somebody else's, is noticed although a secret of ours opens it.
//!
//! Invariant: only a ring that carries on what was seen replaces it, or one that is proven to be that of a repository which
//! passed here itself. Without a private directory, or after the file was removed, what is found first is believed.

use std::path::{Path, PathBuf};

use pgark_repo::Repository;
use pgark_repo::crypto::{Key32, hex};
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};
use crate::key_cache::{private_dir, read_private, write_private};

/// The largest of these files, in bytes.
const BYTES_MAX: usize = 4096;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    repository_id: String,
    generation: u32,
    /// Of that generation, as `crypto::mark` has it, in hex.
    mark: String,
}

/// What a ring is, compared with what was seen before.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// It carries on: to be remembered.
    Newer,
    Older,
    /// By its name it is the same repository, and it says nothing of the key that was seen: retired by a program that left no
    /// marks, or somebody's ring with that name.
    Unproven,
    Other,
}

pub struct KeyPin {
    path: PathBuf,
    role: Role,
}

/// A host may come to have another secret: what it saw with each is remembered apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Reader,
    Writer,
}

impl KeyPin {
    /// None when there is no private directory to remember in.
    pub fn find(cache_dir: Option<&Path>, url: &str) -> Option<Self> {
        let name = blake3::hash(url.as_bytes()).to_hex();
        Some(KeyPin { path: private_dir(cache_dir?, "seen")?.join(name.get(..32)?), role: Role::Reader })
    }

    fn of_writer(&self) -> Self {
        KeyPin { path: self.path.with_extension("writer"), role: Role::Writer }
    }

    /// # Errors
    /// `E-KEY-OLDER` and `E-KEY-REPLACED`, exit code 12.
    pub fn check(&self, repo: &Repository) -> Result<(), Failure> {
        if repo.keys().writes_only().is_some() && self.role == Role::Reader {
            return self.of_writer().check(repo);
        }
        let marks = repo.keys().current().marks();
        let Some(seen) = self.seen() else {
            self.remember(repo.id(), &marks);
            return Ok(());
        };
        let newest = marks.last().map_or(0, |(generation, _)| *generation);
        match judge(&seen, repo.id(), &marks) {
            Verdict::Same => Ok(()),
            Verdict::Newer => {
                self.remember(repo.id(), &marks);
                Ok(())
            }
            verdict => Err(self.refusal(&verdict, &seen, newest)),
        }
    }

    /// What is told of a ring that does not carry on what was seen. `newest`: the generation of its newest key.
    fn refusal(&self, verdict: &Verdict, seen: &Seen, newest: u32) -> Failure {
        let (path, known) = (self.path.display(), seen.generation);
        let exchanged = format!(
            "somebody may have exchanged it; if it was you (an older copy, a new repository in the old place), remove {path}"
        );
        let (code, message, hint) = match verdict {
            Verdict::Older => {
                let message = format!(
                    "the key ring is of generation {newest} of the key, and this host has seen generation {known}"
                );
                ("E-KEY-OLDER", message, exchanged)
            }
            Verdict::Unproven => {
                let message = format!(
                    "the key ring is of generation {newest} of the key and does not prove that it carries on generation \
                     {known}, which is all that this host has seen"
                );
                let hint = format!(
                    "was generation {known} retired by an earlier version of pgark, and does 'pgark key list' show the same on \
                     a host that goes on? Then remove {path}; otherwise somebody may have exchanged the ring"
                );
                ("E-KEY-REPLACED", message, hint)
            }
            _ => {
                let message = "this is not the repository that this host has seen here before".into();
                ("E-KEY-REPLACED", message, exchanged)
            }
        };
        Failure::new(code, Exit::WrongKey, message).hint(hint)
    }

    /// The file that says that a repository was seen here, when there is one.
    pub fn remembered(&self) -> Option<PathBuf> {
        [&self.path, &self.of_writer().path].into_iter().find(|path| path.exists()).cloned()
    }

    /// What was just made here replaces what was seen.
    pub fn renew(&self, repo: &Repository) {
        self.remember(repo.id(), &repo.keys().current().marks());
    }

    /// A copy that opened with the keys of a repository that was judged itself: whatever lay there before, it is ours now. One
    /// that is set back behind what was seen is left to `check`.
    pub fn accept_copy(&self, copy: &Repository) {
        let marks = copy.keys().current().marks();
        let verdict = self.seen().map_or(Verdict::Newer, |seen| judge(&seen, copy.id(), &marks));
        if matches!(verdict, Verdict::Newer | Verdict::Unproven | Verdict::Other) {
            self.remember(copy.id(), &marks);
        }
    }

    /// A file that does not parse was not written by us, and says nothing.
    fn seen(&self) -> Option<Seen> {
        serde_json::from_slice(&read_private(&self.path, BYTES_MAX)?).ok()
    }

    /// Not being able to costs the protection; `check` of the next run tries again.
    fn remember(&self, id: &str, marks: &[(u32, Key32)]) {
        let Some((generation, mark)) = marks.last() else { return };
        let seen = Seen { repository_id: id.to_owned(), generation: *generation, mark: hex(&mark.0) };
        let written = serde_json::to_vec(&seen).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| write_private(&self.path, &bytes)) {
            tracing::debug!(target: "pgark", %error, "what was seen of the key is not remembered");
        }
    }
}

fn judge(seen: &Seen, id: &str, marks: &[(u32, Key32)]) -> Verdict {
    let newest = marks.last().map_or(0, |(generation, _)| *generation);
    // Of a key that was given up, too: its mark lies in the ring where nobody else can put it.
    let of_it = marks.iter().find(|(g, _)| *g == seen.generation);
    let carried_on = of_it.map(|(_, mark)| hex(&mark.0) == seen.mark);
    match (seen.repository_id == id, carried_on) {
        (true, Some(true)) if newest == seen.generation => Verdict::Same,
        (true, Some(true)) => Verdict::Newer,
        (true, None) if newest < seen.generation => Verdict::Older,
        (true, None) => Verdict::Unproven,
        _ => Verdict::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(n: u8) -> Key32 {
        Key32([n; 32])
    }

    #[test]
    fn only_a_ring_that_carries_on_what_was_seen_is_accepted() {
        let seen = Seen { repository_id: "a".into(), generation: 2, mark: hex(&mark(2).0) };
        let (one, two, three) = ((1, mark(1)), (2, mark(2)), (3, mark(3)));
        let of = |marks: &[&(u32, Key32)]| judge(&seen, "a", &marks.iter().map(|m| (*m).clone()).collect::<Vec<_>>());
        assert_eq!(of(&[&one, &two]), Verdict::Same);
        assert_eq!(of(&[&one, &two, &three]), Verdict::Newer);
        assert_eq!(of(&[&one]), Verdict::Older);
        assert_eq!(of(&[]), Verdict::Older);
        assert_eq!(of(&[&one, &(2, mark(9))]), Verdict::Other);
        // A ring with a high number, made by somebody who knows an older key, or by a program that left no mark of ours.
        assert_eq!(of(&[&(9, mark(1))]), Verdict::Unproven);
        assert_eq!(of(&[&one, &three]), Verdict::Unproven);
        assert_eq!(judge(&seen, "b", &[one.clone(), two.clone()]), Verdict::Other);
        assert_eq!(judge(&seen, "b", std::slice::from_ref(&three)), Verdict::Other);
    }

    #[test]
    fn each_refusal_says_what_is_known_and_what_to_compare() {
        let seen = Seen { repository_id: "a".into(), generation: 2, mark: hex(&mark(2).0) };
        let pin = KeyPin { path: "/cache/seen/x".into(), role: Role::Reader };
        let told = |verdict| pin.refusal(&verdict, &seen, 5);
        let unproven = told(Verdict::Unproven);
        assert_eq!((&*unproven.code, unproven.exit), ("E-KEY-REPLACED", Exit::WrongKey));
        let hint = unproven.hint.unwrap_or_default();
        assert!(hint.contains("retired by an earlier version") && hint.contains("remove /cache/seen/x"), "{hint}");
        assert!(unproven.message.contains("generation 5") && unproven.message.contains("generation 2"));
        assert!(told(Verdict::Other).message.contains("not the repository"));
        assert_eq!(&*told(Verdict::Older).code, "E-KEY-OLDER");
    }
}

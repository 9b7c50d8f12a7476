//! Marks of master keys that were given up. A host remembers the mark of the newest key that it has seen
//! (`crypto::mark`); a ring that has the mark of that key carries it on, although the key itself is gone.
//!
//! Invariant: a mark lies in the ring sealed under the newest master, or in what a writer's slot opens. Who does not hold a
//! key of the ring cannot put the marks of its past into a ring of their own.

use serde::{Deserialize, Serialize};

use super::wrap::{unwrap, wrap};
use crate::crypto::{Key32, hex_bytes};
use crate::error::{RepoError, Result};
use crate::limits::KEYRING_GIVEN_UP_MAX;
use crate::names::KEYRING;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GivenUp {
    generation: u32,
    /// The mark, wrapped under the newest master.
    #[serde(with = "hex_bytes")]
    wrapped: Vec<u8>,
}

/// So that a mark cannot stand for a key, nor the other way round.
fn data(repository_id: &[u8]) -> Vec<u8> {
    [repository_id, b"given up"].concat()
}

pub fn seal(repository_id: &[u8], master: &Key32, marks: &[(u32, Key32)]) -> Result<Vec<GivenUp>> {
    let one = |(generation, mark): &(u32, Key32)| {
        Ok(GivenUp { generation: *generation, wrapped: wrap(master, &data(repository_id), mark)? })
    };
    marks.iter().map(one).collect()
}

/// `first`: the oldest generation of which the ring has the key.
pub fn open(repository_id: &[u8], master: &Key32, sealed: &[GivenUp], first: u32) -> Result<Vec<(u32, Key32)>> {
    let bad = |what: &str| RepoError::corrupt(KEYRING, what);
    if sealed.len() > KEYRING_GIVEN_UP_MAX {
        return Err(bad("it has more marks of earlier keys than any we write"));
    }
    let one = |g: &GivenUp| Some((g.generation, unwrap(master, &data(repository_id), &g.wrapped)?));
    let marks: Option<Vec<(u32, Key32)>> = sealed.iter().map(one).collect();
    let marks = marks.ok_or_else(|| bad("the mark of an earlier key does not open"))?;
    if !precede(&marks, first) {
        return Err(bad("the marks of earlier keys are not in order"));
    }
    Ok(marks)
}

/// Whether these generations ascend, and end before `first`.
fn precede(marks: &[(u32, Key32)], first: u32) -> bool {
    let generations = marks.iter().map(|(generation, _)| *generation).chain([first]);
    generations.clone().zip(generations.skip(1)).all(|(a, b)| a < b)
}

/// Of all the marks that are known, ascending, those that are kept: of the newest keys that the ring has not.
pub fn kept(mut known: Vec<(u32, Key32)>, first: u32) -> Vec<(u32, Key32)> {
    known.retain(|(generation, _)| *generation < first);
    known.split_off(known.len().saturating_sub(KEYRING_GIVEN_UP_MAX))
}

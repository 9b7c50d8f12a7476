//! A repository inside another one: what one of them removes or lists as unaccounted for may be the other's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pgark_repo::store::{Store, StoreError};

use crate::command::context::{engine_failure, is_away};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Protection;
use crate::settings::repo_url::{RepoUrl, Scheme};
use crate::store::{self, Access, Missing};

/// So many directories below a new repository's place are looked at.
const LISTINGS_MAX: usize = 1000;

/// Before a repository is made: that its place lies within none, and around none. A repository that is there already is
/// left as it is. What cannot be looked at is told.
pub fn refuse_nested(url: &RepoUrl, access: &Access) -> Result<(), Failure> {
    let own = match store::open(url, Protection::default(), access, Missing::Refuse) {
        Ok(store) => Some(store),
        Err(failure) if failure.exit == Exit::NoRepository => None,
        // Whoever makes it meets the same and says so.
        Err(_) => return Ok(()),
    };
    match own.as_ref().map_or(Ok(false), |own| has_ring_in_time(own.clone(), url)) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        // What does not answer answers none of the questions below, and each would wait as long.
        Err(failure) if is_away(&failure) && failure.code != "E-REPO-DENIED" => return Err(failure),
        Err(_) => {}
    }
    for above in ancestors(url) {
        let found = match store::open(&above, Protection::default(), access, Missing::Refuse) {
            Ok(store) => has_ring(&*store, "").map_err(|e| e.to_string()),
            Err(failure) if failure.exit == Exit::NoRepository => Ok(false),
            Err(failure) => Err(failure.message),
        };
        match found {
            Ok(false) => {}
            Ok(true) => return Err(nested(&format!("{url} lies within the repository {above}"))),
            Err(why) => output::warning(&format!("whether {above} is a repository could not be looked at: {why}")),
        }
    }
    match own.as_ref().map_or(Ok(None), |own| inner(&**own)) {
        Ok(None) => Ok(()),
        Ok(Some(below)) => Err(nested(&format!("{url} is around the repository {url}/{below}"))),
        Err(why) => {
            output::warning(&format!("whether repositories lie below {url} could not be looked at: {why}"));
            Ok(())
        }
    }
}

/// For one listing; a store that is slower than this is of no use.
const PATIENCE: Duration = Duration::from_secs(30);

fn has_ring_in_time(store: Arc<dyn Store>, url: &RepoUrl) -> Result<bool, Failure> {
    let (send, receive) = std::sync::mpsc::channel();
    // A thread that is given up ends with the program.
    std::thread::spawn(move || send.send(has_ring(&*store, "")).unwrap_or_default());
    match receive.recv_timeout(PATIENCE) {
        Ok(found) => found.map_err(|e| engine_failure(pgark_repo::RepoError::from(e).into())),
        Err(_) => {
            let message = format!("{url} did not answer within {} s", PATIENCE.as_secs());
            Err(Failure::failed("E-REPO-IO", message)
                .hint("check the URL, and whether this machine reaches the store; nothing was created"))
        }
    }
}

fn nested(message: &str) -> Failure {
    Failure::refused("E-REPO-NESTED", message)
        .hint("repositories lie side by side: give this one a directory or prefix of its own; nothing was created")
}

/// The places above, the nearest first; the whole bucket is one of them.
fn ancestors(url: &RepoUrl) -> Vec<RepoUrl> {
    let absolute = matches!(url.scheme, Scheme::File | Scheme::Sftp);
    let mut path = url.path.trim_end_matches('/');
    let mut all = vec![];
    while !path.is_empty() {
        path = path.rfind('/').map_or("", |at| path.get(..at).unwrap_or_default());
        let above = if absolute && path.is_empty() { "/" } else { path };
        all.push(RepoUrl { path: above.to_owned(), ..url.clone() });
    }
    all
}

/// Whether `dir` of the store holds a key ring.
fn has_ring(store: &dyn Store, dir: &str) -> Result<bool, StoreError> {
    let prefix = if dir.is_empty() { "keyring".to_owned() } else { format!("{dir}/keyring") };
    let mut found = false;
    for ring in [prefix.clone(), format!("{prefix}-mirror")] {
        store.list(&ring, &mut |stat| {
            let name = stat.name.basename();
            found |= name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            Ok(())
        })?;
    }
    Ok(found)
}

/// A repository below, or why that is not known.
fn inner(store: &dyn Store) -> Result<Option<String>, String> {
    let mut waiting = VecDeque::from([String::new()]);
    for _ in 0..LISTINGS_MAX {
        let Some(dir) = waiting.pop_front() else { return Ok(None) };
        let below = store.list_dirs(&dir).map_err(|e| e.to_string())?;
        let rings = ["keyring", "keyring-mirror"];
        let is_one = below.iter().any(|name| rings.contains(&name.as_str()));
        if is_one && has_ring(store, &dir).map_err(|e| e.to_string())? {
            return Ok(Some(dir));
        }
        waiting.extend(below.into_iter().map(|name| if dir.is_empty() { name } else { format!("{dir}/{name}") }));
    }
    if waiting.is_empty() { Ok(None) } else { Err(format!("there are more than {LISTINGS_MAX} directories")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_repo::store::{MemoryStore, ObjectName};

    #[test]
    fn every_place_above_is_looked_at() {
        let above =
            |url: &str| -> Vec<String> { ancestors(&url.parse().unwrap()).into_iter().map(|u| u.path).collect() };
        assert_eq!(above("/a/b/c"), ["/a/b", "/a", "/"]);
        assert_eq!(above("s3://bucket/a/b"), ["a", ""]);
        assert!(above("s3://bucket").is_empty());
        assert_eq!(above("sftp://u@h/x"), ["/"]);
    }

    #[test]
    fn a_key_ring_at_any_depth_is_found_and_other_directories_are_not_taken_for_one() {
        let store = MemoryStore::new();
        let put = |name: &str| store.put_new(&ObjectName::parse(name).unwrap(), b"x").unwrap();
        put("a/keyring/readme");
        put("a/keyrings/0000000000000001");
        assert_eq!(inner(&store), Ok(None));
        put("a/b/c/keyring-mirror/0000000000000001");
        assert_eq!(inner(&store), Ok(Some("a/b/c".to_owned())));
    }
}

//! One object from store to store as it is, compared with its fingerprint before it gets its name.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pgark_repo::limits::REPORT_BYTES_MAX;
use pgark_repo::seals::{Anew, Place, origin_of, origin_of_bytes, seal_into, tail_of};
use pgark_repo::store::{ObjectName, ObjectStat, StoreError};
use pgark_repo::stream::Fingerprint;
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Bytes read at once.
const PIECE: usize = 4 * 1024 * 1024;

/// Several at once; returns objects and bytes that were written. The first failure ends it.
pub fn copy_all(
    from: &Repository,
    to: &Repository,
    objects: &[(ObjectName, Fingerprint)],
    jobs: usize,
    ctx: &Ctx,
) -> Result<(u64, u64)> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Result<(u64, u64)>> = Mutex::new(Ok((0, 0)));
    let work = || {
        while let Some((name, print)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            let copied = copy(from, to, name, print, ctx);
            let mut done = done.lock().expect("no thread panics with the lock");
            match (copied, done.as_mut()) {
                (Ok(bytes), Ok(sum)) => *sum = (sum.0 + u64::from(bytes > 0), sum.1 + bytes),
                (Err(e), Ok(_)) => *done = Err(e),
                (_, Err(_)) => {}
            }
            if done.is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        (1..jobs.min(objects.len())).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    done.into_inner().expect("the threads are gone")
}

/// Returns the bytes that were written; none when the same object was there. It gets there under the seal that it has here,
/// or, where the copy has keys of its own, under those.
pub fn copy(from: &Repository, to: &Repository, name: &ObjectName, print: &Fingerprint, ctx: &Ctx) -> Result<u64> {
    let in_target = |e: EngineError| e.in_repository(&to.store().url());
    let in_source = |e: EngineError| e.in_repository(&from.store().url());
    let failed = |e: StoreError| in_target(RepoError::from(e).into());
    // What an interrupted copy left has its whole content, or it would have no name.
    match to.store().stat(name).map(|s| s.size) {
        Ok(size) if size == print.size => return compare(to, name, print, ctx).map_err(in_target),
        Ok(_) => return Err(in_target(taken(name))),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(failed(e)),
    }
    if from.id() != to.id() {
        return match seal_into(&place(from), &place(to), name, Some(print))? {
            Anew::Sealed(bytes) => {
                ctx.progress.advance(print.size);
                Ok(bytes)
            }
            Anew::There => compare(to, name, print, ctx).map_err(in_target),
        };
    }
    let read_failed = |e: StoreError| in_source(RepoError::from(e).into());
    let found = from.store().find(name).map_err(read_failed)?;
    let mut writer = to.store().create(&found.name).map_err(failed)?;
    let stored = print_at(from, &found, print.size, ctx, &mut |piece| writer.write(piece).map_err(failed));
    if stored.map_err(in_source)? != *print {
        return Err(in_source(RepoError::corrupt(name, "not what was written").into()));
    }
    let mut tail = vec![0; usize::try_from(tail_of(&found.name)).expect("a tail is short")];
    if !tail.is_empty() {
        from.store().read_at(&found.name, found.size, &mut tail).map_err(read_failed)?;
        writer.write(&tail).map_err(failed)?;
    }
    match writer.finish() {
        Ok(()) => Ok(print.size),
        Err(StoreError::AlreadyExists { .. }) => compare(to, name, print, ctx).map_err(in_target),
        Err(e) => Err(failed(e)),
    }
}

pub fn place(of: &Repository) -> Place<'_> {
    Place { store: of.store(), keys: of.keys() }
}

/// The bytes of an object that has this fingerprint, and the name of its seal, under which they belong.
pub fn read_exactly(repo: &Repository, name: &ObjectName, print: &Fingerprint) -> Result<(ObjectName, Vec<u8>)> {
    let store = repo.store();
    let found = store.find(name).map_err(RepoError::from)?;
    let wrong = || EngineError::from(RepoError::corrupt(name, "not what was written"));
    if found.size != print.size {
        return Err(wrong());
    }
    let size = usize::try_from(found.size).map_err(|_| wrong())?;
    let mut bytes = vec![0; size.saturating_add(usize::try_from(tail_of(&found.name)).map_err(|_| wrong())?)];
    store.read_at(&found.name, 0, &mut bytes).map_err(RepoError::from)?;
    let hash = blake3::hash(bytes.get(..size).unwrap_or_default()).to_hex().to_string();
    let actual = Fingerprint { size: found.size, blake3: hash };
    if origin_of(store, repo.keys(), &found.name, actual)? != *print {
        return Err(wrong());
    }
    Ok((found.name, bytes))
}

/// Of an object that no book lists, as it lies there; it was opened before, so it is what was sealed.
pub fn print_of(repo: &Repository, name: &ObjectName) -> Result<Fingerprint> {
    let store = repo.store();
    let found = store.find(name).map_err(RepoError::from)?;
    let too_large = || EngineError::from(RepoError::corrupt(name, "it is too large"));
    let size = usize::try_from(found.size).ok().filter(|size| *size <= 2 * REPORT_BYTES_MAX).ok_or_else(too_large)?;
    let mut bytes = vec![0; size + usize::try_from(tail_of(&found.name)).map_err(|_| too_large())?];
    store.read_at(&found.name, 0, &mut bytes).map_err(RepoError::from)?;
    Ok(origin_of_bytes(repo.keys(), &found.name, &bytes)?)
}

fn compare(to: &Repository, name: &ObjectName, print: &Fingerprint, ctx: &Ctx) -> Result<u64> {
    let found = to.store().find(name).map_err(RepoError::from)?;
    if print_at(to, &found, print.size, ctx, &mut |_| Ok(()))? == *print { Ok(0) } else { Err(taken(name)) }
}

fn taken(name: &ObjectName) -> EngineError {
    RepoError::Conflict { object: name.to_string() }.into()
}

/// Reads exactly so many bytes of a seal, without its tail; returns which object they are.
fn print_at(
    repo: &Repository,
    found: &ObjectStat,
    size: u64,
    ctx: &Ctx,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Fingerprint> {
    let (store, name) = (repo.store(), &found.name);
    if found.size != size {
        return Err(RepoError::corrupt(name, "not the length that was written").into());
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut at = 0;
    while at < size {
        ctx.check_cancelled()?;
        let len = usize::try_from((size - at).min(PIECE as u64)).expect("at most a piece");
        let piece = &mut buffer[..len];
        store.read_at(name, at, piece).map_err(RepoError::from)?;
        hasher.update(piece);
        take(piece)?;
        at += len as u64;
        ctx.progress.advance(len as u64);
    }
    let actual = Fingerprint { size, blake3: hasher.finalize().to_hex().to_string() };
    Ok(origin_of(store, repo.keys(), name, actual)?)
}

//! One object from store to store as it is, compared with its fingerprint before it gets its name.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use pgark_repo::RepoError;
use pgark_repo::store::{ObjectName, Store, StoreError};
use pgark_repo::stream::Fingerprint;

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Bytes read at once.
const PIECE: usize = 4 * 1024 * 1024;

/// Several at once; returns objects and bytes that were written. The first failure ends it.
pub fn copy_all(
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
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

/// Returns the bytes that were written; none when the same object was there.
pub fn copy(
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
    name: &ObjectName,
    print: &Fingerprint,
    ctx: &Ctx,
) -> Result<u64> {
    let in_target = |e: EngineError| e.in_repository(&to.url());
    let failed = |e: StoreError| in_target(RepoError::from(e).into());
    // What an interrupted copy left has its whole content, or it would have no name.
    match to.stat(name).map(|s| s.size) {
        Ok(size) if size == print.size => return compare(to, name, print, ctx).map_err(in_target),
        Ok(_) => return Err(in_target(taken(name))),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(failed(e)),
    }
    let mut writer = to.create(name).map_err(failed)?;
    let found = each_piece(from, name, print.size, ctx, &mut |piece| writer.write(piece).map_err(failed));
    let found = found.map_err(|e| e.in_repository(&from.url()))?;
    if found != print.blake3 {
        return Err(EngineError::from(RepoError::corrupt(name, "not what was written")).in_repository(&from.url()));
    }
    match writer.finish() {
        Ok(()) => Ok(print.size),
        Err(StoreError::AlreadyExists { .. }) => compare(to, name, print, ctx).map_err(in_target),
        Err(e) => Err(failed(e)),
    }
}

/// All of an object that has this fingerprint.
pub fn read_exactly(store: &Arc<dyn Store>, name: &ObjectName, print: &Fingerprint) -> Result<Vec<u8>> {
    let bytes = store.read(name, print.size).map_err(RepoError::from)?;
    let same = bytes.len() as u64 == print.size && blake3::hash(&bytes).to_hex().as_str() == print.blake3;
    if same { Ok(bytes) } else { Err(RepoError::corrupt(name, "not what was written").into()) }
}

fn compare(to: &Arc<dyn Store>, name: &ObjectName, print: &Fingerprint, ctx: &Ctx) -> Result<u64> {
    if each_piece(to, name, print.size, ctx, &mut |_| Ok(()))? == print.blake3 { Ok(0) } else { Err(taken(name)) }
}

fn taken(name: &ObjectName) -> crate::error::EngineError {
    RepoError::Conflict { object: name.to_string() }.into()
}

/// Reads exactly so many bytes; returns their hash.
fn each_piece(
    store: &Arc<dyn Store>,
    name: &ObjectName,
    size: u64,
    ctx: &Ctx,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<String> {
    if store.stat(name).map_err(RepoError::from)?.size != size {
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
    Ok(hasher.finalize().to_hex().to_string())
}

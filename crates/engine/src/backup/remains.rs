//! What interrupted backups have stored, for the backup that repeats them: frames are found again by their content.
//!
//! Invariant: a frame is used only if its whole pack was just read, authenticated and compared with its content ids.
//! Nothing is believed of names, sizes or times.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::ContentId;
use pgark_repo::manifest::PackId;
use pgark_repo::names::{self, BackupId};
use pgark_repo::pack::{self, FrameAt, TableEntry};
use pgark_repo::stream::Fingerprint;
use pgark_repo::{RepoError, Repository};

use super::base::{Others, number_of_other};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Frames remembered, about 60 MB; more are stored again.
const FRAMES_MAX: usize = 1_000_000;

struct Remembered {
    id: ContentId,
    pack: u32,
    at: FrameAt,
}

#[derive(Default)]
pub struct Remains {
    /// Sorted by content id.
    frames: Vec<Remembered>,
    packs: Vec<(PackId, Fingerprint)>,
    /// How the manifest calls each of the packs, once it does.
    numbers: Mutex<HashMap<u32, u32>>,
    others: Others,
    used_bytes: AtomicU64,
}

impl Remains {
    /// Reads what there is. `others` is where the new manifest lists packs that are not its own.
    pub fn load(repo: &Repository, catalog: &CatalogStore, others: Others, ctx: &Ctx, jobs: usize) -> Result<Self> {
        let ids = catalog.read()?.interrupted;
        let mut names = vec![];
        for id in &ids {
            repo.store().list(&format!("{}/packs", names::backup_dir(catalog.cluster(), id)), &mut |stat| {
                names.extend(names::pack_of(&stat.name).map(|n| PackId { backup: id.clone(), number: n }));
                Ok(())
            })?;
        }
        let mut remains = Remains { others, ..Remains::default() };
        if names.is_empty() {
            return Ok(remains);
        }
        ctx.progress.note(&format!("reading the {} packs that interrupted backups have left", names.len()));
        for (id, print, table) in read_all(repo, catalog, &names, ctx, jobs)? {
            let pack = u32::try_from(remains.packs.len()).expect("fewer packs than that");
            let room = FRAMES_MAX.saturating_sub(remains.frames.len());
            remains.frames.extend(table.into_iter().take(room).map(|e| Remembered { id: e.id, pack, at: e.at }));
            remains.packs.push((id, print));
        }
        remains.frames.sort_unstable_by_key(|f| f.id.0);
        Ok(remains)
    }

    /// The place of a frame with this content, as the new manifest calls it.
    pub fn find(&self, id: &ContentId, plain_len: usize) -> Option<(u32, FrameAt)> {
        let frame = self.frames.get(self.frames.binary_search_by_key(&&id.0, |f| &f.id.0).ok()?)?;
        if frame.at.plain_len as usize != plain_len {
            return None;
        }
        self.used_bytes.fetch_add(u64::from(frame.at.stored_len), Ordering::Relaxed);
        let mut numbers = self.numbers.lock().expect("no thread panics with the lock");
        let number = match numbers.get(&frame.pack) {
            Some(number) => *number,
            None => {
                let (id, _) = self.packs.get(frame.pack as usize)?;
                let mut others = self.others.lock().expect("no thread panics with the lock");
                let number = number_of_other(others.len());
                others.push(id.clone());
                numbers.insert(frame.pack, number);
                number
            }
        };
        Some((number, frame.at))
    }

    pub fn fingerprint(&self, id: &PackId) -> Option<&Fingerprint> {
        self.packs.iter().find(|(known, _)| known == id).map(|(_, print)| print)
    }

    /// Stored bytes that did not have to be stored again.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Backups of which something was used.
    pub fn used_of(&self) -> Vec<BackupId> {
        let numbers = self.numbers.lock().expect("no thread panics with the lock");
        let mut ids: Vec<BackupId> =
            numbers.keys().filter_map(|n| self.packs.get(*n as usize)).map(|(id, _)| id.backup.clone()).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

type Pack = (PackId, Fingerprint, Vec<TableEntry>);

/// Every pack that is whole. A damaged one is passed over: what is in it is read from the database again.
fn read_all(repo: &Repository, catalog: &CatalogStore, ids: &[PackId], ctx: &Ctx, jobs: usize) -> Result<Vec<Pack>> {
    let next = AtomicUsize::new(0);
    let whole: Mutex<Vec<Pack>> = Mutex::default();
    let work = || -> Result<()> {
        while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
            ctx.check_cancelled()?;
            let name = names::pack(catalog.cluster(), &id.backup, id.number);
            match pack::read_whole(repo.store(), repo.keys(), &name) {
                Ok((print, table)) => {
                    whole.lock().expect("no thread panics with the lock").push((id.clone(), print, table));
                }
                Err(e) if e.is_damage() || matches!(e, RepoError::Store(_)) => {
                    tracing::warn!(%e, "a pack of an interrupted backup is not used");
                }
                Err(e) => return Err(EngineError::from(e)),
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..jobs.min(ids.len())).map(|_| scope.spawn(work)).collect();
        let mut outcome = work();
        for h in helpers {
            outcome = outcome.and(h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcome
    })?;
    let mut whole = whole.into_inner().expect("the threads are gone");
    whole.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(whole)
}

//! Whether a backup fits into its repositories, asked before it writes anything.
//!
//! What it will take is an estimate, and says how it was made. WAL that is archived meanwhile is never refused: a part of
//! the room is left to it.

use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pgark_pg::page::PAGE_SIZE;
use pgark_pg::value::{SegmentSize, SystemId};
use pgark_pg::wal::Changes;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, Catalog, CatalogStore, JobKind};
use pgark_repo::codec::{Compression, Encoder};
use pgark_repo::limits::FRAME_BYTES;
use pgark_repo::names::{self, BackupId, ClusterName};

use super::plan::{FileFacts, FilePlan, plan_file};
use super::scan::{Found, FoundFile, scan};
use super::source::SourceCluster;
use crate::capacity::usage::Usage;
use crate::capacity::{self, Capacity, Room, SpaceRules, bytes, growth};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::several::Member;

/// Full backups whose compression is looked at; the worst counts.
const FULLS_LOOKED_AT: usize = 3;
/// Places of the data that are compressed for a try when there is no earlier backup.
const SAMPLES: u64 = 64;
/// Headers, manifest and what was sampled badly.
const SAMPLE_MARGIN: f64 = 1.1;
/// Of the whole room, at most this part is kept for WAL unless the settings say otherwise.
const RESERVE_PART: u64 = 10;
/// Segments that are kept room for when nothing is known of the WAL.
const RESERVE_SEGMENTS: u64 = 16;
/// A repository with a configured capacity is counted for no longer.
const COUNT_FOR: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct RoomOptions {
    pub rules: SpaceRules,
    /// Go on where it seems not to fit.
    pub ignore: bool,
    /// The backup is copied into these afterwards.
    pub others: Vec<(Member, SpaceRules)>,
}

/// What a backup will add to a repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    pub bytes: u64,
    pub how: String,
}

/// Stored bytes for one byte of data, and how that is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ratio {
    pub value: f64,
    pub how: String,
}

impl Ratio {
    pub fn of(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.value) as u64
    }
}

/// By the last full backups, or by a try.
pub(super) fn ratio(
    source: &SourceCluster,
    catalog: &Catalog,
    total: u64,
    compression: Compression,
    ctx: &Ctx,
) -> Result<Ratio> {
    match known_ratio(&catalog.backups, source.control.system_id) {
        Some(known) => Ok(known),
        None => sampled_ratio(source, total, compression, ctx),
    }
}

fn known_ratio(backups: &[BackupEntry], system_id: SystemId) -> Option<Ratio> {
    let fulls = backups
        .iter()
        .rev()
        .filter(|b| b.kind == BackupKind::Physical && b.backup_type == BackupType::Full)
        .filter(|b| b.system_id == system_id && b.size_bytes > 0);
    let of = |b: &BackupEntry| b.stored_bytes as f64 / b.size_bytes as f64;
    let worst = fulls.take(FULLS_LOOKED_AT).max_by(|a, b| of(a).total_cmp(&of(b)))?;
    let how = format!("compressed as in backup {}, {:.1}x", worst.id, 1.0 / of(worst).max(1e-6));
    Some(Ratio { value: of(worst), how })
}

/// Compresses some of the data, evenly spread.
fn sampled_ratio(source: &SourceCluster, total: u64, compression: Compression, ctx: &Ctx) -> Result<Ratio> {
    let mut encoder = Encoder::new(compression)?;
    let (mut plain, mut packed) = (vec![0; FRAME_BYTES], vec![]);
    let (mut read, mut stored) = (0u64, 0u64);
    let step = (total / SAMPLES).max(FRAME_BYTES as u64);
    let (mut at, mut next) = (0u64, 0u64);
    scan(&source.pgdata, source.control.major, &mut |found| {
        let Found::File(file) = found else { return Ok(()) };
        while next < at.saturating_add(file.size) {
            ctx.check_cancelled()?;
            // A sample begins where a frame would.
            let offset = (next - at) / FRAME_BYTES as u64 * FRAME_BYTES as u64;
            let n = read_sample(&source.pgdata, &file, offset, &mut plain)?;
            ctx.pace(n as u64);
            encoder.encode(plain.get(..n).unwrap_or_default(), &mut packed)?;
            read += n as u64;
            stored += packed.len() as u64;
            next = next.saturating_add(step);
        }
        at = at.saturating_add(file.size);
        Ok(())
    })?;
    let value = if read == 0 { 1.0 } else { (stored as f64 / read as f64 * SAMPLE_MARGIN).min(1.0) };
    Ok(Ratio {
        value,
        how: format!("compressed as {} of it were for a try, {:.1}x", bytes(read), 1.0 / value.max(1e-6)),
    })
}

/// What could be read; a file may have gone or become shorter.
fn read_sample(pgdata: &Path, file: &FoundFile, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let path = pgdata.join(OsString::from_vec(file.path.clone()));
    let open = match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        other => other.map_err(|e| EngineError::file("opening", &path, e))?,
    };
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match open.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(EngineError::file("reading", &path, e)),
        }
    }
    Ok(filled)
}

/// Of a full backup, less what interrupted ones have left for it.
pub(super) fn full_need(repo: &Repository, catalog: &Catalog, total: u64, ratio: &Ratio, ctx: &Ctx) -> Result<Need> {
    let left = stored_by_interrupted(repo, catalog, ctx)?;
    let mut how = format!("{}, {}", bytes(total), ratio.how);
    if left > 0 {
        how += &format!(", less {} that interrupted backups have stored", bytes(left));
    }
    Ok(Need { bytes: ratio.of(total).saturating_sub(left), how })
}

fn stored_by_interrupted(repo: &Repository, catalog: &Catalog, ctx: &Ctx) -> Result<u64> {
    let now = ctx.now();
    let dead = catalog.jobs.iter().filter(|j| j.kind == JobKind::Backup && j.is_dead(now));
    let ids: Vec<&BackupId> = catalog.interrupted.iter().chain(dead.filter_map(|j| j.backup.as_ref())).collect();
    let mut left = 0u64;
    for id in ids {
        repo.store().list(&format!("{}/packs", names::backup_dir(&catalog.cluster, id)), &mut |stat| {
            left = left.saturating_add(stat.size);
            Ok(())
        })?;
    }
    Ok(left)
}

/// Of an incremental backup, by the blocks that changed. Files that are read as a whole count as a whole, though most of
/// them turn out to be the same.
pub(super) fn incremental_need(
    pgdata: &Path,
    control: &pgark_pg::ControlFile,
    changes: &Changes,
    ratio: &Ratio,
) -> Result<Need> {
    let mut changed = 0u64;
    scan(pgdata, control.major, &mut |found| {
        if let Found::File(f) = found {
            // Blocks that a file has grown by are in the WAL too, but for empty ones.
            let facts = FileFacts { relation: f.relation.as_ref(), size: f.size, size_before: Some(f.size) };
            let bytes = match plan_file(&facts, changes, control.relation_segment_blocks) {
                FilePlan::Whole => f.size,
                FilePlan::Blocks(blocks) => blocks.len() as u64 * PAGE_SIZE as u64,
                FilePlan::Unchanged => 0,
            };
            changed = changed.saturating_add(bytes);
        }
        Ok(())
    })?;
    Ok(Need { bytes: ratio.of(changed), how: format!("{} of changes, {}", bytes(changed), ratio.how) })
}

/// A repository, and what it lacks.
struct Place<'a> {
    name: Option<&'a str>,
    repo: &'a Repository,
    rules: &'a SpaceRules,
    required: bool,
}

/// Refuses a backup that does not fit into a repository that must have it. Returns what to warn of.
///
/// # Errors
/// `E-REPO-SPACE`, refused.
pub(super) fn check(
    need: &Need,
    options: &RoomOptions,
    repo: &Repository,
    cluster: &ClusterName,
    ctx: &Ctx,
) -> Result<Vec<String>> {
    let mut warnings = vec![];
    for (short, required) in shortages(need, options, repo, cluster, ctx)? {
        match short {
            Shortage::Unknown(why) => warnings.push(format!("whether the backup fits is not known: {why}")),
            Shortage::Known(message) if options.ignore || !required => warnings.push(message),
            Shortage::Known(message) => {
                return Err(EngineError::refused(
                    "E-REPO-SPACE",
                    message,
                    "'pgark info' shows what takes up the room and 'pgark expire --gc-grace 0s' removes what the policy gives \
                     up, at once; --ignore-space goes on all the same",
                ));
            }
        }
    }
    Ok(warnings)
}

/// Whether no repository would lack room for so much.
pub(super) fn fits(
    need: &Need,
    options: &RoomOptions,
    repo: &Repository,
    cluster: &ClusterName,
    ctx: &Ctx,
) -> Result<bool> {
    Ok(shortages(need, options, repo, cluster, ctx)?.is_empty())
}

/// Of each repository that lacks room, whether it must have the backup.
fn shortages(
    need: &Need,
    options: &RoomOptions,
    repo: &Repository,
    cluster: &ClusterName,
    ctx: &Ctx,
) -> Result<Vec<(Shortage, bool)>> {
    let first = Place { name: None, repo, rules: &options.rules, required: true };
    let others = options.others.iter().map(|(member, rules)| Place {
        name: Some(&member.name),
        repo: &member.repo,
        rules,
        required: member.required,
    });
    let mut all = vec![];
    for place in std::iter::once(first).chain(others) {
        match shortage(need, &place, cluster, ctx) {
            Ok(short) => all.extend(short.map(|short| (short, place.required))),
            // One that is away is told of when it is its turn.
            Err(_) if place.name.is_some() && !place.required => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

enum Shortage {
    Known(String),
    Unknown(String),
}

fn shortage(need: &Need, place: &Place<'_>, cluster: &ClusterName, ctx: &Ctx) -> Result<Option<Shortage>> {
    let store = place.repo.store().as_ref();
    let used = match place.rules.capacity {
        Capacity::Bytes(_) => Usage::count(store, &[], ctx.now(), Instant::now() + COUNT_FOR)?.total(),
        Capacity::AsTheStoreTells | Capacity::Unlimited => None,
    };
    let (free, total) = match capacity::room(store, place.rules, used) {
        Room::Known { free_bytes, total_bytes, .. } => (free_bytes, total_bytes),
        Room::Unlimited => return Ok(None),
        Room::Unknown(why) if place.rules.capacity != Capacity::AsTheStoreTells => {
            return Ok(Some(Shortage::Unknown(why)));
        }
        // Nobody said that it should be known.
        Room::Unknown(_) => return Ok(None),
    };
    let catalog = CatalogStore::new(place.repo, cluster).read()?;
    let reserve = reserve(place.rules, &catalog, free, total, ctx);
    let wanted = need.bytes.saturating_add(reserve);
    Ok((free < wanted).then(|| {
        let which = place.name.map(|name| format!("repository {name}: ")).unwrap_or_default();
        Shortage::Known(format!(
            "{which}the backup takes about {} ({}) and {} stay reserved for WAL, but {} has {} free",
            bytes(need.bytes),
            need.how,
            bytes(reserve),
            store.url(),
            bytes(free)
        ))
    }))
}

/// A day of WAL, uncompressed, as far as that is known; at most a part of the whole.
fn reserve(rules: &SpaceRules, catalog: &Catalog, free: u64, total: Option<u64>, ctx: &Ctx) -> u64 {
    if let Some(reserve) = rules.wal_reserve {
        return reserve;
    }
    let size = catalog.lineage().map_or(SegmentSize::DEFAULT, |l| l.segment_size);
    let per_day =
        growth::rate(&catalog.backups, Some(size.bytes()), Some(size), ctx.now()).ok().and_then(|r| r.wal_bytes);
    let wanted = per_day.map_or(0, |b| b as u64).max(RESERVE_SEGMENTS * size.bytes());
    wanted.min(total.unwrap_or(free) / RESERVE_PART)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::growth::tests::{NOW, at, backup, full};

    #[test]
    fn the_ratio_is_the_worst_of_the_last_full_backups_of_this_system() {
        let of = |days, stored_bytes| BackupEntry { size_bytes: 1000, ..full(days, stored_bytes) };
        let other = BackupEntry { system_id: SystemId(8), ..of(0, 999) };
        let all = [of(9, 900), of(3, 200), of(2, 300), of(1, 100), backup(0, 990, 0), other];
        let found = known_ratio(&all, SystemId(7)).unwrap();
        assert_eq!(found.value, 0.3, "{found:?}");
        assert!(found.how.contains("3.3x"), "{found:?}");
        assert_eq!(known_ratio(&[backup(0, 990, 0)], SystemId(7)), None);
        let empty = BackupEntry { size_bytes: 0, ..full(0, 5) };
        assert_eq!(known_ratio(&[empty], SystemId(7)), None);
    }

    #[test]
    fn the_reserve_is_a_day_of_wal_and_never_more_than_a_part_of_the_whole() {
        let mut ctx = Ctx::silent();
        ctx.clock = std::sync::Arc::new(|| at(NOW));
        let mut catalog = crate::capacity::growth::tests::catalog(vec![]);
        let rules = SpaceRules::default();
        let unknown = RESERVE_SEGMENTS * SegmentSize::DEFAULT.bytes();
        assert_eq!(reserve(&rules, &catalog, 0, Some(u64::MAX), &ctx), unknown);
        assert_eq!(reserve(&rules, &catalog, 0, Some(1000), &ctx), 100);
        assert_eq!(reserve(&rules, &catalog, 2000, None, &ctx), 200);
        let fixed = SpaceRules { wal_reserve: Some(7), ..rules };
        assert_eq!(reserve(&fixed, &catalog, 0, Some(1000), &ctx), 7);
        // A hundred segments a day.
        let day = 100 * SegmentSize::DEFAULT.bytes();
        catalog.backups = (0..5).map(|n| backup(5 - n, 1, n as u64 * day)).collect();
        let lineage = pgark_repo::catalog::Lineage {
            system_id: SystemId(7),
            version_num: 150_000,
            catalog_version: 1,
            segment_size: SegmentSize::DEFAULT,
            registered: ctx.now(),
        };
        catalog.lineages = vec![lineage];
        assert_eq!(reserve(&rules, &catalog, 0, Some(u64::MAX), &ctx), day);
    }
}

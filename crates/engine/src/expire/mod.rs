//! Retention: which backups and which WAL stay, and the removal of what does not.
//!
//! Invariant: the run obeys the plan that was shown, or refuses because something changed. Whatever cannot be read, and
//! whatever comes from the future, stops it before anything goes. Removal has two phases: first off the list, in one
//! change that proves that nobody needs it; its objects later.

pub mod forecast;
mod kinds;
mod lost;
pub mod policy;
pub(crate) mod presence;
pub mod revive;
#[cfg(test)]
mod tests;
mod time;
mod wal;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use pgark_pg::value::{SegmentSize, SystemId};
use pgark_repo::catalog::{
    BackupEntry, BackupKind, Catalog, CatalogStore, Claim, Doubt, Expiry, JobKind, PhysicalBackup, WalNeed,
};
use pgark_repo::gc::{self, Collected};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::wal::{SegmentRange, WalArchive};
use pgark_repo::{RepoError, Repository};

use crate::backup::claim::KeptClaim;
use crate::clock;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::verify::LostWindow;
use forecast::Goes;
use policy::{Branch, Candidate, FromTheFuture, Policy, Reason, Verdict, Verdicts};
use presence::Look;
use time::Time;
pub use time::ask_the_store;
use wal::{Archive, Kept};

/// How long what has expired stays readable, for recoveries that are under way.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug)]
pub struct ExpireOptions {
    pub cluster: ClusterName,
    /// For physical backups and WAL.
    pub policy: Policy,
    /// For the other kinds; one that is not named stays.
    pub others: Vec<(BackupKind, Policy)>,
    /// Everything of other kinds stays; WAL goes with physical backups.
    pub only: Option<BackupKind>,
    /// How long what expires now stays on the disk.
    pub grace: Duration,
    /// The same for what expired before, instead of what was decided then.
    pub hurry: Option<Duration>,
    pub gap: Gap,
}

/// Whether the clock of this machine is believed where others contradict it, or nothing confirms it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// It may have jumped.
    Refuse,
    /// Somebody takes responsibility; put on record by a run.
    Accept,
}

#[derive(Clone, Debug)]
pub struct ExpirePlan {
    /// How late it is for the rules: the end of the newest good backup, or now.
    pub at: Timestamp,
    /// Oldest first.
    pub backups: Vec<Fate>,
    pub wal: Vec<WalFate>,
    /// What expired before: to be removed now, or not due yet.
    pub earlier: Earlier,
    /// What the person should know.
    pub notes: Vec<String>,
    /// A doubt about the clock that somebody says is none.
    pub accepts: Option<Doubt>,
    /// The store has no room: nothing waits for its grace.
    pub is_full: bool,
    seen: Vec<BackupEntry>,
    seen_fence: u64,
}

#[derive(Clone, Debug)]
pub struct Fate {
    pub entry: BackupEntry,
    /// Empty: it goes.
    pub reasons: Vec<Reason>,
    /// The rules would keep it, but there are more than the maximum.
    pub over_maximum: bool,
    pub goes: Goes,
    /// What can be recovered only from it, and cannot when it is gone.
    pub lost: Vec<LostWindow>,
}

impl Fate {
    pub fn stays(&self) -> bool {
        self.goes != Goes::Now
    }
}

/// The WAL of one system identifier.
#[derive(Clone, Debug)]
pub struct WalFate {
    pub system_id: SystemId,
    pub size: SegmentSize,
    pub going: Vec<SegmentRange>,
    pub staying: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    pub backups_due: u64,
    pub segments_due: u64,
    pub backups_waiting: u64,
    pub segments_waiting: u64,
    /// When the grace of the last of those that wait ends.
    pub waiting_until: Option<Timestamp>,
    /// A run was cut off: a head does not follow what was decided, or objects of what is off all lists are there.
    pub unfinished: bool,
}

impl Earlier {
    /// Whether there is anything for a run to do.
    pub fn is_due(&self) -> bool {
        self.backups_due + self.segments_due > 0 || self.unfinished
    }
}

impl ExpirePlan {
    pub fn going(&self) -> impl Iterator<Item = &Fate> {
        self.backups.iter().filter(|f| !f.stays())
    }

    pub fn segments_going(&self) -> u64 {
        self.wal.iter().flat_map(|w| &w.going).map(SegmentRange::count).sum()
    }

    /// Whether a run would change anything.
    pub fn changes(&self) -> bool {
        self.going().next().is_some() || self.segments_going() > 0 || self.earlier.is_due() || self.accepts.is_some()
    }
}

impl ExpireOptions {
    /// None: everything of this kind stays.
    fn policy_of(&self, kind: BackupKind) -> Option<&Policy> {
        if self.only.is_some_and(|only| only != kind) {
            return None;
        }
        match kind {
            BackupKind::Physical => Some(&self.policy),
            _ => self.others.iter().find(|(k, _)| *k == kind).map(|(_, policy)| policy),
        }
    }

    /// The grace that was given; on a full disk there is none.
    fn hurry_of(&self, is_full: bool) -> Option<Duration> {
        if is_full { Some(Duration::ZERO) } else { self.hurry }
    }
}

/// Looks at everything and changes nothing.
pub fn plan(options: &ExpireOptions, repo: &Repository, ctx: &Ctx) -> Result<ExpirePlan> {
    if BackupKind::ALL.into_iter().filter_map(|kind| options.policy_of(kind)).all(Policy::is_empty) {
        return Err(EngineError::refused(
            "E-EXPIRE-POLICY",
            "no rule says what is to be kept, so nothing expires",
            "set [clusters.NAME.retention], or give rules such as --keep-last 7 or --window 7d",
        ));
    }
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    let time = Time::of(&catalog, &clock::here(ctx), options.gap)?;
    let current = catalog
        .lineage()
        .ok_or_else(|| RepoError::NoCluster { url: repo.store().url(), cluster: options.cluster.to_string() })?
        .system_id;
    let lineages = catalog.lineages.iter();
    let archives =
        lineages.map(|l| Archive::load(repo, &options.cluster, &catalog, l)).collect::<Result<Vec<Archive>>>()?;
    let branches: Vec<Branch> = archives.iter().flat_map(|a| &a.timelines).map(|t| t.branch.clone()).collect();
    let mut notes: Vec<String> = archives.iter().flat_map(|a| a.notes.clone()).collect();
    let mut look = Look::new(repo, &options.cluster, ctx)?;
    let mut candidates = candidates(options, ctx, &catalog, &archives, &mut look, &mut notes)?;
    let mut opened = BTreeSet::new();
    let wal_damage = |id: &BackupId| {
        let Some(b) = catalog.backup(id).and_then(BackupEntry::as_physical) else { return Ok(None) };
        archives.iter().find(|a| a.system_id == b.system_id).map_or(Ok(None), |a| a.damaged_wal_of(&b))
    };
    let series: kinds::Series =
        catalog.backups.iter().filter_map(|b| Some((b.id.clone(), b.series.clone()?))).collect();
    let (verdicts, wal) = loop {
        let verdicts = kinds::decide(&candidates, &series, &branches, current, options, time.now).map_err(future)?;
        let wal = wal_fates(&archives, &catalog, &candidates, &verdicts, options);
        let gives_up = verdicts.all.iter().any(|v| !v.stays()) || wal.iter().any(|w| !w.going.is_empty());
        if !gives_up || !look_inside(&mut candidates, &verdicts, &look, &wal_damage, &mut opened, &mut notes)? {
            break (verdicts, wal);
        }
    };
    let goes = kinds::forecast(&candidates, &series, &branches, current, options, &verdicts);
    let physical = catalog.physical();
    let staying: Vec<&PhysicalBackup> = staying(&physical, &verdicts);
    let mut backups = vec![];
    for v in &verdicts.all {
        let Some(entry) = catalog.backup(&v.id) else { continue };
        let archive = archives.iter().zip(&wal).find(|(a, _)| a.system_id == entry.system_id);
        let lost = archive.zip(entry.as_physical()).map_or_else(Vec::new, |((archive, fate), physical)| {
            let mut after = archive.head.clone();
            after.expire(u64::MAX, &fate.going);
            lost::lost(archive, &after, &physical, &staying)
        });
        backups.push(Fate {
            entry: entry.clone(),
            reasons: v.reasons.clone(),
            over_maximum: v.over_maximum,
            goes: goes.get(&v.id).copied().unwrap_or(Goes::NotByItself),
            lost,
        });
    }
    let waiting = !catalog.expired.is_empty() || !catalog.wal_expiries.is_empty();
    let is_full = is_full(repo)?;
    let hurry = options.hurry_of(is_full);
    let waits_for_time = hurry.is_none_or(|h| !h.is_zero());
    if let Some(doubt) = time.doubt.filter(|_| waiting && !time.certain && waits_for_time) {
        notes.push(format!(
            "{}. What expired before is not removed; if the clock is right, give --gc-grace 0s",
            clock::describe(&doubt)
        ));
    }
    let unfinished = archives.iter().any(|a| a.is_behind) || look.has_remains(&catalog);
    let earlier = earlier(&catalog, &|since, due| time.is_over(hurry, since, due));
    Ok(ExpirePlan {
        at: verdicts.at,
        backups,
        wal,
        earlier: Earlier { unfinished, ..earlier },
        notes,
        accepts: time.accepted(&catalog),
        is_full,
        seen_fence: catalog.fence,
        seen: catalog.backups,
    })
}

fn future(FromTheFuture(id, at): FromTheFuture) -> EngineError {
    EngineError::refused(
        "E-EXPIRE-CLOCK",
        format!("backup {id} ended at {at}, which is in the future: a clock is wrong, and nothing expires"),
        format!("set the clock of this machine right; if it is and that of the backup was not, 'pgark delete {id}'"),
    )
}

/// What each listed backup is for the rules.
fn candidates(
    options: &ExpireOptions,
    ctx: &Ctx,
    catalog: &Catalog,
    archives: &[Archive],
    look: &mut Look<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Candidate>> {
    let now = ctx.now();
    let mut out = vec![];
    for b in &catalog.backups {
        let archive = archives.iter().find(|a| a.system_id == b.system_id);
        let unseen = look.missing_with_wal(b, archive)?;
        match (&unseen, b.damaged) {
            (Some(what), _) => notes.push(damage_note(&b.id, what)),
            (None, Some(at)) => notes.push(damage_note(&b.id, &format!("a verification found that at {at}"))),
            (None, None) => {}
        }
        let reads = |j: &&pgark_repo::catalog::Job| {
            let its_own = j.kind != JobKind::Delete && j.backup.as_ref() == Some(&b.id);
            (its_own || j.needs.base.as_ref() == Some(&b.id)) && !j.is_dead(now)
        };
        out.push(Candidate {
            id: b.id.clone(),
            system_id: b.system_id,
            at: if options.gap == Gap::Accept { b.finished } else { b.time() },
            evidence: b.evidence,
            good: b.bad_blocks() == 0 && b.damaged.is_none() && unseen.is_none(),
            kept: b.kept,
            kept_until: b.kept_until,
            holds: b.holds.iter().map(|h| h.reason.clone()).collect(),
            in_use: catalog.jobs.iter().find(reads).map(pgark_repo::catalog::Job::describe),
            unseen,
        });
    }
    Ok(out)
}

fn damage_note(id: &BackupId, what: &str) -> String {
    format!("backup {id} is damaged and does not count: {what}; 'pgark verify' tells more")
}

/// Opens what others would go for and was not opened before, and the WAL that it needs. Returns whether any of it turned out
/// to be damaged.
fn look_inside(
    candidates: &mut [Candidate],
    verdicts: &Verdicts,
    look: &Look<'_>,
    wal_damage: &dyn Fn(&BackupId) -> Result<Option<String>>,
    opened: &mut BTreeSet<BackupId>,
    notes: &mut Vec<String>,
) -> Result<bool> {
    let mut any = false;
    for (c, v) in candidates.iter_mut().zip(&verdicts.all) {
        if !c.good || !v.stays() || !v.reasons.iter().any(Reason::replaces_others) || !opened.insert(c.id.clone()) {
            continue;
        }
        let damage = match look.damaged(&c.id)? {
            None => wal_damage(&c.id)?,
            found => found,
        };
        if let Some(what) = damage {
            notes.push(damage_note(&c.id, &what));
            (c.good, c.unseen, any) = (false, Some(what), true);
        }
    }
    Ok(any)
}

fn staying<'c>(physical: &'c [PhysicalBackup], verdicts: &Verdicts) -> Vec<&'c PhysicalBackup> {
    let wanted = verdicts.all.iter().filter(|v| v.stays());
    wanted.filter_map(|v| physical.iter().find(|b| b.id == v.id)).collect()
}

fn wal_fates(
    archives: &[Archive],
    catalog: &Catalog,
    candidates: &[Candidate],
    verdicts: &Verdicts,
    options: &ExpireOptions,
) -> Vec<WalFate> {
    let physical = catalog.physical();
    let mut time = Timestamp::MIN;
    let mut kept = vec![];
    // The other kinds need no WAL and say nothing of it.
    let of_physical = |(c, _): &(&Candidate, &Verdict)| c.id.kind() == BackupKind::Physical;
    for (c, v) in candidates.iter().zip(&verdicts.all).filter(of_physical) {
        time = time.max(c.at);
        if let Some(entry) = physical.iter().find(|b| b.id == c.id).filter(|_| v.stays()) {
            kept.push(Kept { entry, time, good: c.good });
        }
    }
    let needs: Vec<WalNeed> = catalog.jobs.iter().filter_map(|j| j.needs.wal).collect();
    let none_good = !candidates.iter().any(|c| c.good && c.id.kind() == BackupKind::Physical);
    let all_stays = none_good || options.policy_of(BackupKind::Physical).is_none();
    let fate = |a: &Archive| {
        let going = if all_stays { vec![] } else { a.going(&kept, &needs, &options.policy, verdicts.at) };
        let all: u64 = a.head.timelines().iter().flat_map(|t| &t.ranges).map(|(first, last)| last - first + 1).sum();
        let staying = all - going.iter().map(SegmentRange::count).sum::<u64>();
        WalFate { system_id: a.system_id, size: a.size, going, staying }
    };
    archives.iter().map(fate).collect()
}

fn earlier(catalog: &Catalog, due: &dyn Fn(Timestamp, Timestamp) -> bool) -> Earlier {
    let mut out = Earlier::default();
    for e in &catalog.expired {
        if due(e.since, e.due) {
            out.backups_due += 1;
        } else {
            out.backups_waiting += 1;
            out.waiting_until = out.waiting_until.max(Some(e.due));
        }
    }
    for e in &catalog.wal_expiries {
        let count: u64 = e.ranges.iter().map(SegmentRange::count).sum();
        if e.removing || due(e.since, e.due) {
            out.segments_due += count;
        } else {
            out.segments_waiting += count;
            out.waiting_until = out.waiting_until.max(Some(e.due));
        }
    }
    out
}

#[derive(Clone, Debug)]
pub struct ExpireReport {
    pub collected: Collected,
    /// The store had no room left, so nothing waited for its grace.
    pub was_full: bool,
}

/// Obeys the plan, and removes what is due.
pub fn run(options: &ExpireOptions, plan: &ExpirePlan, repo: &Repository, ctx: &Ctx) -> Result<ExpireReport> {
    crate::error::refuse_append_only(repo)?;
    let catalog = CatalogStore::new(repo, &options.cluster).thrifty();
    let mut was_full = false;
    let claim = match catalog.claim_expiry(ctx.now()) {
        Err(e) if e.is_no_space() => {
            was_full = true;
            ctx.progress.note("the repository is full: what is off all lists is removed first");
            gc::make_room(repo, &options.cluster)?;
            catalog.claim_expiry(ctx.now()).map_err(|e| without_room(e.into()))?
        }
        other => other?,
    };
    was_full |= is_full(repo)?;
    let kept = KeptClaim::new(claim.clone(), ctx);
    let outcome = under_claim(options, plan, repo, ctx, &claim, was_full);
    drop(kept);
    let released = claim.release();
    let collected = outcome.map_err(without_room)?;
    // What was left out, now or by a run that was cut off.
    if was_full || plan.earlier.unfinished {
        gc::complete_books(repo, &options.cluster)?;
    }
    match released {
        // Whoever took over has seen everything.
        Ok(()) | Err(RepoError::Fenced { .. }) => Ok(ExpireReport { collected, was_full }),
        Err(e) => Err(e.into()),
    }
}

/// What else could be said of a full disk is "run this command".
fn without_room(e: EngineError) -> EngineError {
    match e.repo() {
        Some(full) if full.is_no_space() => EngineError::failed(
            "E-REPO-SPACE",
            format!("{full}, and nothing is left that could make way for it"),
            "make room for a few kB there, by a file of something else, then run it again: it goes on with what it began",
        ),
        _ => e,
    }
}

/// A store with less room than this is full: a segment does not fit any more.
const FULL_BYTES: u64 = 16 * 1024 * 1024;

fn is_full(repo: &Repository) -> Result<bool> {
    Ok(repo.store().free_bytes().map_err(RepoError::from)?.is_some_and(|free| free < FULL_BYTES))
}

fn under_claim(
    options: &ExpireOptions,
    plan: &ExpirePlan,
    repo: &Repository,
    ctx: &Ctx,
    claim: &Claim,
    was_full: bool,
) -> Result<Collected> {
    let catalog = CatalogStore::new(repo, &options.cluster);
    gc::apply_what_fits(repo, &catalog)?;
    // In this order, or what somebody else writes between both would be from the future. The claim has just been written,
    // so the store says what time it is, too.
    let mut seen = catalog.read()?;
    let reading = clock::with_catalog(&catalog, ctx)?;
    if options.gap == Gap::Accept && (plan.accepts.is_some() || seen.judge(&reading).doubt.is_some()) {
        claim.accept_clock(&reading)?;
        seen = catalog.read()?;
    }
    let time = Time::of(&seen, &reading, options.gap)?;
    prune_registers(repo, &catalog)?;
    // Where only such clients back up, nobody else does it.
    repo.store().sweep_abandoned(crate::backup::ABANDONED_AFTER)?;
    let backups: Vec<BackupId> = plan.going().map(|f| f.entry.id.clone()).collect();
    let wal: Vec<(SystemId, Vec<SegmentRange>)> = plan.wal.iter().map(|w| (w.system_id, w.going.clone())).collect();
    if !backups.is_empty() || plan.segments_going() > 0 {
        let seconds = i64::try_from(options.grace.as_secs()).unwrap_or(i64::MAX);
        let due = Timestamp::from_second(time.now.as_second().saturating_add(seconds)).unwrap_or(Timestamp::MAX);
        let (seen, seen_fence) = (plan.seen.clone(), plan.seen_fence);
        claim.expire(&Expiry { backups, wal, since: time.now, due, seen, seen_fence, reading })?;
    }
    // Before anything else is written: it makes room.
    let hurry = options.hurry_of(was_full);
    let collected = gc::collect(repo, &options.cluster, claim, &|since, due| time.is_over(hurry, since, due))?;
    if time.certain {
        let newest = plan.seen.iter().map(BackupEntry::time).max();
        let newest = newest.map(|t| t.min(time.now));
        crate::reports::remove_old(repo, &options.cluster, newest, claim)?;
        crate::audit::remove_old(repo, &options.cluster, newest, claim, ctx)?;
    }
    Ok(collected)
}

/// Versions of the books that clients have left which may not remove anything.
fn prune_registers(repo: &Repository, catalog: &CatalogStore) -> Result<()> {
    catalog.register_of_books().prune()?;
    for lineage in &catalog.read()?.lineages {
        WalArchive::new(repo, catalog.cluster(), lineage.system_id).head_register().prune()?;
    }
    Ok(())
}

/// Removes what is due by what was decided when it expired; for whoever has just changed the catalog anyway. Does nothing
/// while somebody else expires.
pub fn remove_due(repo: &Repository, cluster: &ClusterName, ctx: &Ctx) -> Result<()> {
    if !repo.store().may_delete() {
        return Ok(());
    }
    let catalog = CatalogStore::new(repo, cluster);
    let before = catalog.read()?;
    // While the clocks do not agree, everything waits.
    let time = match Time::of(&before, &clock::here(ctx), Gap::Refuse) {
        Ok(time) if time.certain => time,
        Ok(_) | Err(EngineError::Refused { .. }) => return Ok(()),
        Err(e) => return Err(e),
    };
    let due = |_, due: Timestamp| due <= time.now;
    let waiting = earlier(&before, &due);
    if waiting.backups_due + waiting.segments_due == 0 {
        return Ok(());
    }
    let claim = match catalog.claim_expiry(ctx.now()) {
        Err(RepoError::Busy { .. }) => return Ok(()),
        other => other?,
    };
    let kept = KeptClaim::new(claim.clone(), ctx);
    let outcome = gc::collect(repo, cluster, &claim, &due);
    drop(kept);
    claim.release()?;
    outcome?;
    Ok(())
}

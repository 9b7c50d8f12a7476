//! The audit trail over time: how old records go, how a copy gets what it lacks, what `verify` says of it.
//!
//! Invariant: records go from the beginning alone, after the journal says so itself. A copy gets events and never records: its
//! chain is its own.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pgark_repo::audit::{self, Checked, Event, Head, Journal, JournalName, Opened, What, Who};
use pgark_repo::catalog::Claim;
use pgark_repo::names::ClusterName;
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::Result;
use crate::expire::policy;
use crate::reports::KEPT_FOR;

/// After so many events that were in both, a copy writes down how far it was compared.
const COMPARED_MAX: u64 = 256;

/// What concerns one cluster: its own journal, and that of the repository.
pub fn journals_of(cluster: &ClusterName) -> [JournalName; 2] {
    [JournalName::Repository, JournalName::Cluster(cluster.clone())]
}

/// The program itself, where nobody asked for what it does.
fn program() -> Who {
    Who { program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(), ..Who::default() }
}

/// The newest record of a cluster's journal becomes one that a writer of the cluster can go on from.
pub(crate) fn open_to_writer(repo: &Repository, cluster: &ClusterName) -> Result<()> {
    let journal = Journal::new(repo, JournalName::Cluster(cluster.clone()));
    let event = || Event::new(Timestamp::now(), Some(cluster.to_string()), program(), What::Writer);
    Ok(journal.open_to_writer(event)?)
}

/// Removes records that are six years older than the newest backup. The journal says it first, so that what is missing then is
/// known to be missing.
pub(crate) fn remove_old(
    repo: &Repository,
    cluster: &ClusterName,
    newest: Option<Timestamp>,
    claim: &Claim,
    ctx: &Ctx,
) -> Result<u64> {
    let Some(before) = newest.map(|newest| policy::before(newest, KEPT_FOR)) else { return Ok(0) };
    let mut removed = 0;
    for name in journals_of(cluster) {
        removed += shorten(&Journal::new(repo, name), before, claim, ctx)?;
    }
    Ok(removed)
}

fn shorten(journal: &Journal<'_>, before: Timestamp, claim: &Claim, ctx: &Ctx) -> Result<u64> {
    let numbers = journal.numbers()?;
    let mut last_old: Option<Head> = None;
    let mut going = vec![];
    // The last one stays, whatever its age: the chain goes on from it.
    for &number in numbers.iter().rev().skip(1).rev() {
        let opened = match journal.read(number) {
            Ok(opened) => opened,
            // What is damaged is for `verify` to tell, and stays until somebody has looked at it.
            Err(e) if e.is_damage() => break,
            Err(e) => return Err(e.into()),
        };
        if opened.record.event.at >= before {
            break;
        }
        last_old = Some(opened.head());
        going.push(number);
    }
    let Some(last) = last_old else { return Ok(0) };
    claim.check()?;
    let what = What::Shortened { first: last.number.saturating_add(1), before: last.hash };
    journal.append(&Event::new(ctx.now(), None, program(), what)?, None)?;
    for number in &going {
        claim.check()?;
        journal.remove(*number)?;
    }
    Ok(going.len() as u64)
}

/// Appends to the copy's journals what it lacks of ours; returns how many events.
pub fn copy(from: &Repository, to: &Repository, cluster: &ClusterName, ctx: &Ctx) -> Result<u64> {
    let mut copied = 0;
    for name in journals_of(cluster) {
        copied += copy_journal(&Journal::new(from, name.clone()), &Journal::new(to, name), ctx)?;
    }
    Ok(copied)
}

fn copy_journal(from: &Journal<'_>, to: &Journal<'_>, ctx: &Ctx) -> Result<u64> {
    let Some(end) = from.head()? else { return Ok(0) };
    let (known, since) = known_there(to, &end, ctx)?;
    let mut after = to.head()?;
    let (mut copied, mut both) = (0, 0);
    for number in from.numbers()?.into_iter().filter(|n| *n > since && *n <= end.number) {
        ctx.check_cancelled()?;
        let event = match from.read(number) {
            Ok(opened) => opened.record.event,
            // Told by `audit verify` of the source; the others are worth having all the same.
            Err(e) if e.is_damage() => continue,
            Err(e) => return Err(e.into()),
        };
        // What a journal says of itself is not true of another one.
        let is_its_own = matches!(event.what, What::Shortened { .. } | What::Copied { .. } | What::Writer);
        if is_its_own || known.contains(&event.id) {
            both += 1;
            continue;
        }
        after = Some(to.append(&event, after.as_ref())?);
        copied += 1;
    }
    if copied > 0 || both > COMPARED_MAX {
        to.append(&Event::new(ctx.now(), None, program(), What::Copied { head: end })?, after.as_ref())?;
    }
    Ok(copied)
}

/// Ids of events that the copy has got since it was last completed from this chain, and how far that went.
fn known_there(to: &Journal<'_>, end: &Head, ctx: &Ctx) -> Result<(BTreeSet<String>, u64)> {
    let mut known = BTreeSet::new();
    for number in to.numbers()?.into_iter().rev() {
        ctx.check_cancelled()?;
        match to.read(number) {
            Ok(Opened { record, .. }) => match record.event.what {
                What::Copied { head } if head.chain == end.chain => return Ok((known, head.number)),
                _ => drop(known.insert(record.event.id)),
            },
            // At worst an event is there twice, which is shown once.
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok((known, 0))
}

/// Reads all of a journal.
///
/// # Errors
/// `WriteOnly` for who only writes.
pub fn check(
    repo: &Repository,
    name: JournalName,
    known: &[Head],
    ctx: &Ctx,
    each: &mut dyn FnMut(&Opened),
) -> Result<Checked> {
    repo.require_reader("the audit trail")?;
    let known: Vec<Head> = known.iter().filter(|head| head.journal == name).cloned().collect();
    let checked = audit::check(&Journal::new(repo, name), &known, &mut |opened| {
        each(opened);
        // Only to stop: the caller is told by `check_cancelled` below.
        ctx.check_cancelled().map_err(|_| RepoError::Invalid { what: "wish", value: "cancelled".into() })
    });
    ctx.check_cancelled()?;
    Ok(checked?)
}

/// What one command did, as the trail tells it.
#[derive(Clone, Debug)]
pub struct Told {
    pub journal: JournalName,
    /// Of its attempt, or of what there is.
    pub number: u64,
    pub event: Event,
    /// None for what was killed, or has not ended yet.
    pub end: Option<Event>,
}

/// Pairs attempts with their ends. An event that was appended twice is told once.
pub fn pair(journal: &JournalName, records: Vec<(u64, Event)>) -> Vec<Told> {
    let mut seen = BTreeSet::new();
    let mut told: Vec<Told> = vec![];
    let mut ends: Vec<(u64, Event)> = vec![];
    for (number, event) in records {
        if !seen.insert(event.id.clone()) {
            continue;
        }
        match &event.what {
            What::End { .. } => ends.push((number, event)),
            _ => told.push(Told { journal: journal.clone(), number, event, end: None }),
        }
    }
    for (number, end) in ends {
        let What::End { attempt, .. } = &end.what else { continue };
        match told.iter_mut().find(|t| t.event.id == *attempt) {
            Some(of) => of.end = Some(end),
            // Its beginning is older than what is kept.
            None => told.push(Told { journal: journal.clone(), number, event: end.clone(), end: Some(end) }),
        }
    }
    told.sort_by_key(|t| (t.event.at, t.number));
    told
}

//! The WAL of one cluster in one repository or in several copies of it, for those who read it. Each copy has its own head,
//! and may hold what another one lacks.
//!
//! Invariant: "not there" is an answer of all copies that could know. The bytes of a segment count when all of them were
//! read and compared with the index.

use std::collections::BTreeSet;

use pgark_pg::history::TimelineHistory;
use pgark_pg::names::WalFileName;
use pgark_pg::value::{SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_repo::names::ClusterName;
use pgark_repo::wal::{Ending, SegmentReader, WalArchive, WalHead, WalIndex};
use pgark_repo::{RepoError, Repository};

use super::kinship::{Beside, OTHER_HISTORY, WHICH_IS_RIGHT};
use crate::error::{EngineError, Result};
use crate::sources::{Asked, Sources, TroubleKind};

/// Read from one archive or from several.
#[derive(Clone)]
pub struct Archives {
    system_id: SystemId,
    from: Origin,
    /// A head that is empty tells of a store that lost everything: somebody has seen WAL there.
    never_empty: bool,
    silence: Silence,
}

/// What it means that a repository which might know does not answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// What nobody else has may be there.
    Matters,
    Ignored,
}

#[derive(Clone)]
enum Origin {
    One(WalArchive),
    Several { sources: Sources, cluster: ClusterName },
}

/// What one archive says of a segment or file.
enum Answer<T> {
    Found(T),
    /// Provably beyond the end of this archive.
    Absent,
    /// It was there or was passed over, and does not come any more.
    Gone(EngineError),
}

impl Archives {
    pub fn one(archive: &WalArchive) -> Self {
        let system_id = archive.place().system_id;
        Archives { system_id, from: Origin::One(archive.clone()), never_empty: false, silence: Silence::Matters }
    }

    pub fn new(sources: &Sources, cluster: &ClusterName, system_id: SystemId) -> Self {
        let from = Origin::Several { sources: sources.clone(), cluster: cluster.clone() };
        Archives { system_id, from, never_empty: false, silence: Silence::Matters }
    }

    /// Each of them is known to hold some of this cluster's WAL.
    #[must_use]
    pub fn never_empty(self) -> Self {
        Archives { never_empty: true, ..self }
    }

    /// What nobody has who answers counts as absent.
    #[must_use]
    pub fn ignoring_silence(self) -> Self {
        Archives { silence: Silence::Ignored, ..self }
    }

    pub fn system_id(&self) -> SystemId {
        self.system_id
    }

    /// Asks for something until one has it. `answer` says what one archive makes of the question.
    fn ask<T: Send + 'static>(
        &self,
        skip: &BTreeSet<usize>,
        answer: impl Fn(&WalArchive) -> Result<Answer<T>> + Send + Sync + 'static,
        accept: impl Fn(&T) -> bool,
    ) -> Result<Asked<Answer<T>>> {
        let accept = |a: &Answer<T>| matches!(a, Answer::Found(found) if accept(found));
        match &self.from {
            Origin::One(archive) => {
                let mut asked = Asked { found: None, rest: vec![], failed: None, silent: vec![] };
                if skip.is_empty() {
                    let got = answer(archive)?;
                    if accept(&got) { asked.found = Some((0, got)) } else { asked.rest.push((0, got)) }
                }
                Ok(asked)
            }
            Origin::Several { sources, cluster } => {
                let (cluster, system_id) = (cluster.clone(), self.system_id);
                let job = move |repo: &Repository| answer(&WalArchive::new(repo, &cluster, system_id));
                sources.ask(skip, self.silence == Silence::Ignored, job, accept)
            }
        }
    }

    /// None: in no archive, and provably beyond the end of each. `skip` are those whose copy turned out to be damaged.
    fn open(
        &self,
        name: &SegmentName,
        size: SegmentSize,
        skip: &BTreeSet<usize>,
    ) -> Result<Option<(usize, SegmentReader)>> {
        let (name, never_empty) = (*name, self.never_empty);
        let answer = move |archive: &WalArchive| -> Result<Answer<SegmentReader>> {
            match archive.open_segment(&name, size) {
                Ok(reader) => Ok(Answer::Found(reader)),
                Err(e) if e.is_not_found() => absent(archive, &name, size, e.into(), never_empty),
                Err(e) => Err(e.into()),
            }
        };
        // Another archive may hold a longer copy of one that was pushed unfinished.
        let asked = self.ask(skip, answer, |reader| reader.index.ending != Ending::Ended)?;
        self.conclude(asked, &name.format(size), |best: &SegmentReader, other| {
            other.index.valid_end > best.index.valid_end
        })
    }

    /// Runs `read` on the segment, again with another copy when one turns out to be damaged on the way. None: as `open`.
    pub fn with_segment<T>(
        &self,
        name: &SegmentName,
        size: SegmentSize,
        read: &mut dyn FnMut(&mut SegmentReader) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut skip = BTreeSet::new();
        let mut failed = None;
        loop {
            let opened = match self.open(name, size, &skip) {
                // What was found damaged says more than what the others lack.
                Err(_) | Ok(None) if failed.is_some() => return Err(failed.take().expect("looked at above")),
                opened => opened?,
            };
            let Some((n, mut reader)) = opened else { return Ok(None) };
            if let Err(e) = self.admit(n, &reader.index, size) {
                if !self.is_of_other_history(n, &e) {
                    return Err(self.named(n, e));
                }
                skip.insert(n);
                failed = failed.or(Some(self.named(n, e)));
                continue;
            }
            match read(&mut reader) {
                Ok(value) => return Ok(Some(value)),
                Err(e) if self.passes(n, &e) => {
                    skip.insert(n);
                    failed = failed.or(Some(self.named(n, e)));
                }
                Err(e) => return Err(self.named(n, e)),
            }
        }
    }

    /// What the archive that is asked first does not have may be of another history where it is found: it has to go
    /// with what the others have beside it.
    fn admit(&self, n: usize, index: &WalIndex, size: SegmentSize) -> Result<()> {
        let Origin::Several { sources, cluster } = &self.from else { return Ok(()) };
        if sources.order().first() == Some(&n) {
            return Ok(());
        }
        let archive = |repo: &Repository| WalArchive::new(repo, cluster, self.system_id);
        let found_in = archive(&sources.repo(n)?);
        for (k, member) in sources.members().into_iter().filter(|(k, _)| *k != n) {
            let other = archive(&member.repo);
            let compared = Beside::of(&other, size).and_then(|other| other.admit(&Beside::of(&found_in, size)?, index));
            match compared {
                Ok(()) => {}
                Err(e) if e.code() == OTHER_HISTORY => return Err(e),
                // It does not say anything.
                Err(e) if sources.passes(k, &e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Refuses when two archives hold different WAL under the names of one stretch: the last segment of it that both have
    /// tells, for WAL that has parted stays apart.
    pub(crate) fn refuse_two_histories(&self, stretch: &[SegmentName], size: SegmentSize) -> Result<()> {
        let Origin::Several { sources, cluster } = &self.from else { return Ok(()) };
        let members = sources.members();
        let archives = members.iter().map(|(n, m)| (*n, WalArchive::new(&m.repo, cluster, self.system_id)));
        let archives: Vec<(usize, WalArchive)> = archives.collect();
        let mut sides: Vec<(usize, Beside<'_>)> = vec![];
        for (n, archive) in &archives {
            match Beside::of(archive, size) {
                Ok(side) => sides.push((*n, side)),
                Err(e) if sources.passes(*n, &e) => {}
                Err(e) => return Err(sources.named(*n, e)),
            }
        }
        let Some(((first, here), others)) = sides.split_first() else { return Ok(()) };
        for (n, there) in others {
            let compared = here.differs_in(there, stretch);
            match compared {
                Ok(None) => {}
                Ok(Some(name)) => {
                    let message = format!(
                        "repositories {} and {} hold different WAL under the name {}",
                        sources.name(*first),
                        sources.name(*n),
                        name.format(size)
                    );
                    return Err(EngineError::refused(OTHER_HISTORY, message, WHICH_IS_RIGHT));
                }
                Err(e) if sources.passes(*n, &e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn is_of_other_history(&self, n: usize, e: &EngineError) -> bool {
        let found = e.code() == OTHER_HISTORY;
        if let (Origin::Several { sources, .. }, true) = (&self.from, found) {
            sources.remember(n, TroubleKind::Foreign, None, e.to_string());
        }
        found
    }

    fn passes(&self, n: usize, e: &EngineError) -> bool {
        match &self.from {
            Origin::One(_) => false,
            Origin::Several { sources, .. } => sources.passes(n, e),
        }
    }

    fn named(&self, n: usize, e: EngineError) -> EngineError {
        match &self.from {
            Origin::One(_) => e,
            Origin::Several { sources, .. } => sources.named(n, e),
        }
    }

    pub fn index(&self, name: &SegmentName, size: SegmentSize) -> Result<WalIndex> {
        // A writer opens no segment, and knows of it what the index says to it.
        if let Origin::One(archive) = &self.from
            && archive.keys().writes_only().is_some()
        {
            return Ok(archive.index(name, size)?);
        }
        let index = self.with_segment(name, size, &mut |reader| Ok(reader.index.clone()))?;
        index.ok_or_else(|| RepoError::corrupt(name.format(size), "the archive does not hold it any more").into())
    }

    /// What the archive that is asked first holds.
    pub fn near_head(&self) -> Result<WalHead> {
        let asked = self.ask(&BTreeSet::new(), |archive| Ok(Answer::Found(archive.head()?)), |_| true)?;
        Ok(self.conclude(asked, "the head", |_, _| false)?.map(|(_, head)| head).unwrap_or_default())
    }

    /// What any of them holds.
    pub fn head(&self) -> Result<WalHead> {
        match &self.from {
            Origin::One(_) => self.near_head(),
            Origin::Several { .. } => self.joined_head(|archive| Ok(archive.head()?)),
        }
    }

    /// Of what any of them holds, what its store still lists.
    pub fn present_head(&self, size: SegmentSize) -> Result<WalHead> {
        self.joined_head(|archive| Ok(archive.present(&archive.head()?, size)?))
    }

    fn joined_head(&self, read: impl Fn(&WalArchive) -> Result<WalHead>) -> Result<WalHead> {
        let (sources, cluster) = match &self.from {
            Origin::One(archive) => return read(archive),
            Origin::Several { sources, cluster } => (sources, cluster),
        };
        let (mut heads, mut failed) = (vec![], None);
        for n in sources.order() {
            match sources.repo(n).and_then(|repo| read(&WalArchive::new(&repo, cluster, self.system_id))) {
                Ok(head) => heads.push(head),
                Err(e) if sources.passes(n, &e) => failed = failed.or(Some(sources.named(n, e))),
                Err(e) => return Err(sources.named(n, e)),
            }
        }
        match failed {
            Some(e) if heads.is_empty() => Err(e),
            _ => Ok(WalHead::joined(&heads)),
        }
    }

    /// As `archive::history`.
    pub fn history(&self, timeline: TimelineId) -> Result<TimelineHistory> {
        if timeline.get() == 1 {
            return Ok(TimelineHistory::root(timeline));
        }
        match self.side_file(&WalFileName::History(timeline))? {
            Some(bytes) => super::parse_history(timeline, &bytes),
            None => Err(super::no_history(timeline)),
        }
    }

    /// A history file or one of a backup. None: as `with_segment`.
    pub fn side_file(&self, file: &WalFileName) -> Result<Option<Vec<u8>>> {
        let (wanted, never_empty) = (*file, self.never_empty);
        let answer = move |archive: &WalArchive| -> Result<Answer<Vec<u8>>> {
            match archive.side_file(&wanted) {
                Ok(bytes) => Ok(Answer::Found(bytes)),
                Err(e) if e.is_not_found() => {
                    let head = known_head(archive, never_empty)?;
                    match &wanted {
                        WalFileName::History(t) if head.timeline(*t).is_some_and(|t| t.history) => Err(e.into()),
                        _ => Ok(Answer::Absent),
                    }
                }
                Err(e) => Err(e.into()),
            }
        };
        let asked = self.ask(&BTreeSet::new(), answer, |_: &Vec<u8>| true)?;
        Ok(self.conclude(asked, &file.to_string(), |_, _| false)?.map(|(_, bytes)| bytes))
    }

    /// The best of what was found; None only when all who could know say that there is nothing.
    fn conclude<T>(
        &self,
        asked: Asked<Answer<T>>,
        what: &str,
        better: impl Fn(&T, &T) -> bool,
    ) -> Result<Option<(usize, T)>> {
        if let Some((n, Answer::Found(found))) = asked.found {
            return Ok(Some((n, found)));
        }
        let (mut best, mut gone, mut absent) = (None, None, false);
        for (n, answer) in asked.rest {
            match answer {
                Answer::Found(other) => match &best {
                    Some((_, held)) if !better(held, &other) => {}
                    _ => best = Some((n, other)),
                },
                Answer::Absent => absent = true,
                Answer::Gone(e) => gone = gone.or(Some(e)),
            }
        }
        match (best, asked.failed, gone) {
            (Some(best), ..) => Ok(Some(best)),
            (None, Some(e), _) if e.is_damage() || !absent => Err(e),
            (None, _, Some(e)) => Err(e),
            (None, failed, None) if self.silence == Silence::Matters && !asked.silent.is_empty() => {
                Err(unknown(what, &asked.silent, failed))
            }
            (None, ..) => Ok(None),
        }
    }

    /// The repositories, when there may be several.
    pub fn sources(&self) -> Option<&Sources> {
        match &self.from {
            Origin::One(_) => None,
            Origin::Several { sources, .. } => Some(sources),
        }
    }
}

fn unknown(what: &str, silent: &[String], failed: Option<EngineError>) -> EngineError {
    let why = failed.map(|e| format!(": {e}")).unwrap_or_default();
    EngineError::failed(
        "E-WAL-UNKNOWN",
        format!("{what} is in no repository that answers, and {} could not be asked{why}", silent.join(" and ")),
        "bring the repository back; one that is gone for good is to be taken out of the configuration",
    )
}

fn known_head(archive: &WalArchive, never_empty: bool) -> Result<WalHead> {
    let head = archive.head()?;
    if never_empty && head.timelines().is_empty() {
        return Err(RepoError::NoRepository { url: archive.place().dir() }.into());
    }
    Ok(head)
}

/// The segment is not there. That is the end of the archive only if the archive says so.
fn absent(
    archive: &WalArchive,
    name: &SegmentName,
    size: SegmentSize,
    missing: EngineError,
    never_empty: bool,
) -> Result<Answer<SegmentReader>> {
    let head = known_head(archive, never_empty)?;
    let Some(span) = head.timeline(name.timeline) else { return Ok(Answer::Absent) };
    if span.contains(name.segment) {
        return Err(missing);
    }
    if span.is_expired(name.segment) {
        return Ok(Answer::Gone(EngineError::failed(
            "E-WAL-EXPIRED",
            format!("wal segment {} has expired: retention has removed it", name.format(size)),
            "'pgark info' shows what can still be recovered",
        )));
    }
    match span.end() {
        Some(last) if name.segment < last => Ok(Answer::Gone(EngineError::failed(
            "E-WAL-GAP",
            format!(
                "wal segment {} was never archived, later ones were (up to {})",
                name.format(size),
                SegmentNo(last.0).start(size)
            ),
            "recovery across this gap is impossible: choose a target before it, or a backup after it",
        ))),
        _ => Ok(Answer::Absent),
    }
}

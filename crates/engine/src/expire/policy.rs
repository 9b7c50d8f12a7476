//! Which backups the rules keep, and why. Pure: the same input gives the same answer, on a dry run and on a run.
//!
//! Invariant: a backup stays if any rule keeps it. Time never runs further than to the end of the newest good backup:
//! when backups stop, or a clock jumps, nothing more expires. A backup that is damaged counts for no rule.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use pgark_pg::value::SystemId;
use pgark_repo::catalog::Evidence;
use pgark_repo::names::BackupId;

/// A backup may be this far ahead of our clock, seconds; hosts should agree much better.
pub const FUTURE_TOLERANCE_SECONDS: i64 = 300;

/// What is to be kept. A number of 0 is no rule.
#[derive(Clone, Debug)]
pub struct Policy {
    pub keep_last: u32,
    pub keep_days: u32,
    pub keep_daily: u32,
    pub keep_weekly: u32,
    pub keep_monthly: u32,
    pub keep_yearly: u32,
    /// Every moment of this long can be recovered; the backups in it stay.
    pub window: Option<Duration>,
    /// Every moment of this long can be recovered; what is needed for that stays.
    pub wal: Option<Duration>,
    /// Never fewer good backups than this by policy.
    pub min_backups: u32,
    /// More than this go, oldest first, whatever the rules above say; not what is protected.
    pub max_backups: Option<u32>,
    /// Whose days, weeks, months and years count.
    pub time_zone: TimeZone,
}

impl Policy {
    pub fn none() -> Self {
        Policy {
            keep_last: 0,
            keep_days: 0,
            keep_daily: 0,
            keep_weekly: 0,
            keep_monthly: 0,
            keep_yearly: 0,
            window: None,
            wal: None,
            min_backups: 0,
            max_backups: None,
            time_zone: TimeZone::UTC,
        }
    }

    /// Whether any rule says which backups stay; without one all of them do.
    pub fn selects(&self) -> bool {
        let counts =
            [self.keep_last, self.keep_days, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        counts.iter().any(|n| *n > 0) || self.window.is_some()
    }

    /// Whether it says anything that could make something go.
    pub fn is_empty(&self) -> bool {
        !self.selects() && self.max_backups.is_none() && self.wal.is_none()
    }
}

/// What the rules look at, of one listed backup.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub id: BackupId,
    pub system_id: SystemId,
    /// When it ended, as far as that is certain.
    pub at: Timestamp,
    pub evidence: Evidence,
    /// No damaged pages, no known damage, all of it to be seen.
    pub good: bool,
    pub kept: bool,
    pub kept_until: Option<Timestamp>,
    /// Reasons of legal holds.
    pub holds: Vec<String>,
    /// What is using it now.
    pub in_use: Option<String>,
    /// What of it could not be found just now. It is not for this program to conclude that it may go.
    pub unseen: Option<String>,
}

/// A timeline along which one may want to recover, and the backups on its history.
#[derive(Clone, Debug)]
pub struct Branch {
    /// When anything was last written to it, as far as is known.
    pub last_time: Option<Timestamp>,
    /// In the order of their WAL positions.
    pub backups: Vec<BackupId>,
}

impl Branch {
    /// Whether a moment not before `cutoff` lies on it.
    pub fn is_alive(&self, cutoff: Timestamp) -> bool {
        self.last_time.is_none_or(|t| t >= cutoff)
    }
}

/// Why a backup stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The newest good one, of all or of the system identifier in force.
    Newest,
    /// Damaged, but newer than every good one.
    NewerThanGood,
    /// None is good, so nothing goes.
    NoGood,
    Minimum,
    Kept,
    KeptUntil(Timestamp),
    Hold(String),
    /// The newest of which this has been proven.
    Proven(Evidence),
    InUse(String),
    Unseen(String),
    /// Among the last so many, counted from 1.
    Last(u32),
    Days,
    Window,
    /// Recovery to the first moments of the window begins here.
    WindowBase,
    WalBase,
    Daily(String),
    Weekly(String),
    Monthly(String),
    Yearly(String),
    /// No rule says which backups go.
    NoRule,
}

impl Reason {
    /// Whether others go because this one stays; the rest of the reasons keep it for its own sake.
    pub fn replaces_others(&self) -> bool {
        matches!(
            self,
            Reason::Newest
                | Reason::Minimum
                | Reason::Proven(_)
                | Reason::Last(_)
                | Reason::WindowBase
                | Reason::WalBase
                | Reason::Daily(_)
                | Reason::Weekly(_)
                | Reason::Monthly(_)
                | Reason::Yearly(_)
        )
    }

    /// Whether it holds against a maximum number of backups, too.
    pub fn is_protection(&self) -> bool {
        matches!(
            self,
            Reason::Newest
                | Reason::NewerThanGood
                | Reason::NoGood
                | Reason::Minimum
                | Reason::Kept
                | Reason::KeptUntil(_)
                | Reason::Hold(_)
                | Reason::Proven(_)
                | Reason::InUse(_)
                | Reason::Unseen(_)
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub id: BackupId,
    pub reasons: Vec<Reason>,
    /// Kept by rules, but there are more than the maximum.
    pub over_maximum: bool,
}

impl Verdict {
    pub fn stays(&self) -> bool {
        !self.reasons.is_empty() && !self.over_maximum
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// How late it is for the rules.
    pub at: Timestamp,
    pub all: Vec<Verdict>,
}

/// This backup is from the future.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromTheFuture(pub BackupId, pub Timestamp);

/// `candidates` are in the order of their ids, which is that in which they were made.
pub fn decide(
    candidates: &[Candidate],
    branches: &[Branch],
    current: SystemId,
    policy: &Policy,
    now: Timestamp,
) -> Result<Verdicts, FromTheFuture> {
    let limit = now.as_second().saturating_add(FUTURE_TOLERANCE_SECONDS);
    if let Some(c) = candidates.iter().find(|c| c.at.as_second() > limit) {
        return Err(FromTheFuture(c.id.clone(), c.at));
    }
    let rules = Rules::new(candidates, branches, current, policy, now);
    let mut all: Vec<Verdict> =
        candidates.iter().map(|c| Verdict { id: c.id.clone(), reasons: vec![], over_maximum: false }).collect();
    rules.protect(&mut all);
    rules.select(&mut all);
    if let Some(max) = policy.max_backups {
        cut(&mut all, max as usize);
    }
    Ok(Verdicts { at: rules.at, all })
}

/// The oldest that nothing protects go first.
fn cut(all: &mut [Verdict], max: usize) {
    let mut surplus = all.iter().filter(|v| v.stays()).count().saturating_sub(max);
    for v in all.iter_mut().filter(|v| v.stays()) {
        if surplus > 0 && !v.reasons.iter().any(Reason::is_protection) {
            v.over_maximum = true;
            surplus -= 1;
        }
    }
}

struct Rules<'a> {
    candidates: &'a [Candidate],
    branches: &'a [Branch],
    current: SystemId,
    policy: &'a Policy,
    /// Of each candidate: never before one that was made earlier, whatever a clock said.
    times: Vec<Timestamp>,
    /// Positions of the good ones, oldest first.
    good: Vec<usize>,
    position: HashMap<&'a BackupId, usize>,
    at: Timestamp,
    /// Up to when marks have run out, as `Catalog::time_of_marks`.
    marks: Timestamp,
}

impl<'a> Rules<'a> {
    fn new(
        candidates: &'a [Candidate],
        branches: &'a [Branch],
        current: SystemId,
        policy: &'a Policy,
        now: Timestamp,
    ) -> Self {
        let mut latest = Timestamp::MIN;
        let times: Vec<Timestamp> = candidates
            .iter()
            .map(|c| {
                latest = latest.max(c.at);
                latest
            })
            .collect();
        let good: Vec<usize> = (0..candidates.len()).filter(|i| candidates[*i].good).collect();
        // Without a backup there is no time at which anything could be over.
        let newest = good.last().map(|i| times[*i]).or(times.last().copied());
        let at = newest.map_or(Timestamp::MIN, |t| t.min(now));
        let position = good.iter().map(|i| (&candidates[*i].id, *i)).collect();
        let marks = times.last().map_or(now, |t| (*t).min(now));
        Rules { candidates, branches, current, policy, times, good, position, at, marks }
    }

    fn protect(&self, all: &mut [Verdict]) {
        let newest = self.good.last().copied();
        let of_current = self.good.iter().rfind(|i| self.candidates[**i].system_id == self.current).copied();
        for (i, c) in self.candidates.iter().enumerate() {
            let reasons = &mut all[i].reasons;
            if newest == Some(i) || of_current == Some(i) {
                reasons.push(Reason::Newest);
            }
            match newest {
                None => reasons.push(Reason::NoGood),
                Some(n) if i > n => reasons.push(Reason::NewerThanGood),
                Some(_) => {}
            }
            if c.kept {
                reasons.push(Reason::Kept);
            }
            reasons.extend(c.kept_until.filter(|until| *until > self.marks).map(Reason::KeptUntil));
            reasons.extend(c.holds.iter().cloned().map(Reason::Hold));
            reasons.extend(c.in_use.iter().cloned().map(Reason::InUse));
            reasons.extend(c.unseen.iter().cloned().map(Reason::Unseen));
        }
        for level in [Evidence::Authenticated, Evidence::Started, Evidence::Replayed, Evidence::Drilled] {
            if let Some(i) = self.good.iter().rfind(|i| self.candidates[**i].evidence >= level) {
                all[*i].reasons.push(Reason::Proven(level));
            }
        }
        self.good
            .iter()
            .rev()
            .take(self.policy.min_backups as usize)
            .for_each(|i| all[*i].reasons.push(Reason::Minimum));
    }

    fn select(&self, all: &mut [Verdict]) {
        let p = self.policy;
        if !p.selects() {
            all.iter_mut().for_each(|v| v.reasons.push(Reason::NoRule));
        }
        for (n, i) in (1..=p.keep_last).zip(self.good.iter().rev()) {
            all[*i].reasons.push(Reason::Last(n));
        }
        // Damaged ones may be all there is of those days.
        let since = |span: Duration| before(self.at, span);
        for (i, time) in self.times.iter().enumerate() {
            let days = Duration::from_secs(u64::from(p.keep_days) * 86_400);
            if p.keep_days > 0 && *time > since(days) {
                all[i].reasons.push(Reason::Days);
            }
            if p.window.is_some_and(|w| *time >= since(w)) {
                all[i].reasons.push(Reason::Window);
            }
        }
        for (span, reason) in [(p.window, Reason::WindowBase), (p.wal, Reason::WalBase)] {
            for i in span.iter().flat_map(|s| self.bases(since(*s))) {
                if !all[i].reasons.contains(&reason) {
                    all[i].reasons.push(reason.clone());
                }
            }
        }
        self.periods(all);
    }

    /// On each timeline that was written to since: the newest good backup that had ended by then, or else the oldest.
    fn bases(&self, cutoff: Timestamp) -> Vec<usize> {
        let alive = self.branches.iter().filter(|b| b.is_alive(cutoff));
        alive.filter_map(|b| base(&self.on(b), cutoff)).collect()
    }

    fn on(&self, branch: &Branch) -> Vec<(usize, Timestamp)> {
        let known = branch.backups.iter().filter_map(|id| self.position.get(id).copied());
        known.map(|i| (i, self.times[i])).collect()
    }

    fn periods(&self, all: &mut [Verdict]) {
        let p = self.policy;
        let day = |i: usize| self.times[i].to_zoned(p.time_zone.clone()).date();
        let dated: Vec<(usize, Date)> = self.good.iter().map(|i| (*i, day(*i))).collect();
        let days = last_of(&dated, |d| (d.year(), d.month(), d.day()));
        let weeks = last_of(&dated, week);
        // The last weekly of a month serves as its monthly, and the last monthly of a year as its yearly.
        let of_months = if p.keep_weekly > 0 { weeks.values().copied().collect() } else { dated.clone() };
        let months = last_of(&dated, month).into_iter().chain(last_of(&of_months, month)).collect::<BTreeMap<_, _>>();
        let of_years = match (p.keep_monthly > 0, p.keep_weekly > 0) {
            (true, _) => months.values().copied().collect(),
            (false, true) => weeks.values().copied().collect(),
            (false, false) => dated.clone(),
        };
        let years = last_of(&dated, year).into_iter().chain(last_of(&of_years, year)).collect::<BTreeMap<_, _>>();
        let mut mark = |n: u32, reps: Vec<(usize, Date)>, reason: &dyn Fn(Date) -> Reason| {
            for (i, date) in reps.into_iter().rev().take(n as usize) {
                all[i].reasons.push(reason(date));
            }
        };
        mark(p.keep_daily, days.into_values().collect(), &|d| Reason::Daily(d.to_string()));
        mark(p.keep_weekly, weeks.into_values().collect(), &|d| {
            let (year, week) = week(d);
            Reason::Weekly(format!("{year}-W{week:02}"))
        });
        mark(p.keep_monthly, months.into_values().collect(), &|d| {
            Reason::Monthly(format!("{}-{:02}", d.year(), d.month()))
        });
        mark(p.keep_yearly, years.into_values().collect(), &|d| Reason::Yearly(d.year().to_string()));
    }
}

/// Of backups in the order of their WAL: the last that had ended by then, or else the first.
pub fn base<T: Copy>(on_path: &[(T, Timestamp)], cutoff: Timestamp) -> Option<T> {
    let before = on_path.iter().rfind(|(_, t)| *t <= cutoff);
    before.or(on_path.first()).map(|(i, _)| *i)
}

pub fn before(at: Timestamp, span: Duration) -> Timestamp {
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(at.as_second().saturating_sub(seconds)).unwrap_or(Timestamp::MIN)
}

fn last_of<K: Ord>(dated: &[(usize, Date)], period: impl Fn(Date) -> K) -> BTreeMap<K, (usize, Date)> {
    dated.iter().map(|(i, d)| (period(*d), (*i, *d))).collect()
}

fn week(d: Date) -> (i16, i8) {
    let iso = d.iso_week_date();
    (iso.year(), iso.week())
}

fn month(d: Date) -> (i16, i8) {
    (d.year(), d.month())
}

fn year(d: Date) -> i16 {
    d.year()
}

//! The slow oracle: every sentence of the documentation as a question about all pairs. Nothing of the planner is used, nor
//! its calendar.

use std::collections::BTreeSet;

use pgark_repo::catalog::{Evidence, Reading, Uptime};
use pgark_repo::names::BackupId;

use super::super::policy::{Candidate, decide};
use super::random::{History, Random, at, history};

/// More histories than anybody would read.
const HISTORIES: u64 = 20_000;

#[test]
fn the_rules_agree_with_a_slow_oracle() {
    let (mut refused, mut cut, mut gone) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let h = history(seed);
        let ours = decide(&h.candidates, &h.branches, h.current, &h.policy, h.now);
        let future = h.candidates.iter().any(|c| c.at.as_second() > h.now.as_second() + 300);
        let Ok(ours) = ours else {
            assert!(future, "history {seed} of {HISTORIES}, seed {seed}: refused for nothing");
            refused += 1;
            continue;
        };
        assert!(!future, "history {seed} of {HISTORIES}, seed {seed}: a backup of the future was accepted");
        let stays: BTreeSet<BackupId> = ours.all.iter().filter(|v| v.stays()).map(|v| v.id.clone()).collect();
        let expected = Oracle::new(&h).stays();
        assert!(
            stays == expected,
            "history {seed} of {HISTORIES}, seed {seed}:\n{:#?}\n{:#?}\nonly ours: {:?}\nonly the oracle's: {:?}",
            h.policy,
            h.candidates,
            stays.difference(&expected).collect::<Vec<_>>(),
            expected.difference(&stays).collect::<Vec<_>>()
        );
        cut += u64::from(ours.all.iter().any(|v| v.over_maximum));
        gone += ours.all.iter().filter(|v| !v.stays()).count();
    }
    // The histories must reach what they are for.
    assert!(refused > 100 && cut > 500 && gone > 10_000, "{refused} {cut} {gone}");
}

/// The clock by which backups are taken jumps, for some of them or for ever, by hours to years. What stays is what would
/// stay by a true clock: the oracle is asked about the true times.
#[test]
fn clocks_that_jump_change_nothing_of_what_stays() {
    let (mut jumps, mut gone, mut lasting) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let mut truth = history(seed);
        let mut r = Random(seed ^ 0xC10C);
        let mut latest = i64::MIN;
        for c in &mut truth.candidates {
            latest = latest.max(c.at.as_second());
            c.at = at(latest);
        }
        truth.now = at(latest.max(0) + 60);
        let mut seen = truth.clone();
        let (mut wrong, mut clock) = (0, None);
        for (n, c) in seen.candidates.iter_mut().enumerate() {
            if n > 0 && r.one_in(6) {
                wrong = r.pick(&[0, 3600, 86_400, 20 * 86_400, 31 * 86_400, 4000 * 86_400, -3600, -400 * 86_400]);
                jumps += u64::from(wrong != 0);
            }
            let true_time = c.at.as_second();
            let uptime = Some(Uptime { boot: "b".into(), seconds: true_time });
            let reading = Reading { wall: at(true_time + wrong), uptime, store: None, server: None };
            let (next, judged) = reading.after(clock);
            clock = Some(next);
            c.at = judged.time;
        }
        lasting += u64::from(wrong != 0);
        let place = format!("history {seed} of {HISTORIES}, seed {seed}");
        let ours = decide(&seen.candidates, &seen.branches, seen.current, &seen.policy, seen.now);
        let ours = ours.unwrap_or_else(|e| panic!("{place}: {e:?}"));
        let stays: BTreeSet<BackupId> = ours.all.iter().filter(|v| v.stays()).map(|v| v.id.clone()).collect();
        assert!(stays == Oracle::new(&truth).stays(), "{place}:\n{:#?}\n{:#?}", seen.policy, seen.candidates);
        gone += ours.all.len() - stays.len();
    }
    assert!(jumps > 30_000 && gone > 10_000 && lasting > 5000, "{jumps} {gone} {lasting}");
}

struct Oracle<'a> {
    h: &'a History,
}

/// Year, month, day of a number of days since 1970 (Howard Hinnant's algorithm).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (d, m) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    (yoe + era * 400 + i64::from(m <= 2), m, d)
}

/// A week has the year in which its Thursday lies.
fn week_of(days: i64) -> i64 {
    // 1970-01-01 was a Thursday; weeks begin on Mondays.
    (days + 3).div_euclid(7)
}

impl<'a> Oracle<'a> {
    fn new(h: &'a History) -> Self {
        Oracle { h }
    }

    fn all(&self) -> &'a [Candidate] {
        &self.h.candidates
    }

    fn n(&self) -> usize {
        self.all().len()
    }

    fn good(&self, i: usize) -> bool {
        self.all()[i].good
    }

    fn time(&self, i: usize) -> i64 {
        (0..=i).map(|j| self.all()[j].at.as_second()).max().unwrap()
    }

    fn now(&self) -> i64 {
        let newest = (0..self.n()).rfind(|i| self.good(*i)).or((0..self.n()).last());
        newest.map_or(i64::MIN / 2, |i| self.time(i).min(self.h.now.as_second()))
    }

    fn day(&self, i: usize) -> i64 {
        (self.time(i) + i64::from(self.h.offset_seconds)).div_euclid(86_400)
    }

    fn week(&self, i: usize) -> i64 {
        week_of(self.day(i))
    }

    fn month(&self, i: usize) -> i64 {
        let (y, m, _) = civil(self.day(i));
        y * 12 + m
    }

    fn year(&self, i: usize) -> i64 {
        civil(self.day(i)).0
    }

    /// Good ones made after this one, of which this holds.
    fn later(&self, i: usize, holds: impl Fn(usize) -> bool) -> usize {
        (i + 1..self.n()).filter(|j| self.good(*j) && holds(*j)).count()
    }

    fn protected(&self, i: usize) -> bool {
        let c = &self.all()[i];
        let p = &self.h.policy;
        let any_good = (0..self.n()).any(|j| self.good(j));
        let proven = |level| c.good && c.evidence >= level && self.later(i, |j| self.all()[j].evidence >= level) == 0;
        c.kept
            || !c.holds.is_empty()
            || c.in_use.is_some()
            || c.unseen.is_some()
            || c.kept_until.is_some_and(|u| u.as_second() > self.time(self.n() - 1).min(self.h.now.as_second()))
            || !any_good
            || (0..self.n()).filter(|j| self.good(*j)).all(|j| j < i)
            || (c.good && self.later(i, |_| true) == 0)
            || (c.good
                && c.system_id == self.h.current
                && self.later(i, |j| self.all()[j].system_id == self.h.current) == 0)
            || (c.good && self.later(i, |_| true) < p.min_backups as usize)
            || proven(Evidence::Authenticated)
            || proven(Evidence::Started)
            || proven(Evidence::Replayed)
            || proven(Evidence::Drilled)
    }

    /// So many periods, counted back from the newest, among those that have a good backup.
    fn within(&self, i: usize, period: impl Fn(usize) -> i64, n: u32) -> bool {
        let later: BTreeSet<i64> =
            (0..self.n()).filter(|j| self.good(*j)).map(&period).filter(|p| *p > period(i)).collect();
        later.len() < n as usize
    }

    fn is_weekly(&self, i: usize) -> bool {
        self.good(i) && self.later(i, |j| self.week(j) == self.week(i)) == 0
    }

    /// The last of its period among those that are offered, or, where none is, the last of all.
    fn is_last(&self, i: usize, period: &dyn Fn(usize) -> i64, offered: &dyn Fn(usize) -> bool) -> bool {
        let of_period = |j: &usize| self.good(*j) && period(*j) == period(i);
        let best = (0..self.n()).filter(of_period).filter(|j| offered(*j)).max();
        best.or((0..self.n()).filter(of_period).max()) == Some(i)
    }

    fn is_monthly(&self, i: usize) -> bool {
        let offered = |j: usize| self.h.policy.keep_weekly == 0 || self.is_weekly(j);
        self.good(i) && self.is_last(i, &|j| self.month(j), &offered)
    }

    fn is_yearly(&self, i: usize) -> bool {
        let p = &self.h.policy;
        let offered = |j: usize| match (p.keep_monthly > 0, p.keep_weekly > 0) {
            (true, _) => self.is_monthly(j),
            (false, true) => self.is_weekly(j),
            (false, false) => true,
        };
        self.good(i) && self.is_last(i, &|j| self.year(j), &offered)
    }

    fn is_base(&self, i: usize, span: u64) -> bool {
        let cutoff = self.now() - span as i64;
        self.h.branches.iter().filter(|b| b.last_time.is_none_or(|t| t.as_second() >= cutoff)).any(|b| {
            let position = |j: usize| b.backups.iter().position(|id| *id == self.all()[j].id);
            let on: Vec<usize> = (0..self.n()).filter(|j| self.good(*j) && position(*j).is_some()).collect();
            let ended: Vec<usize> = on.iter().copied().filter(|j| self.time(*j) <= cutoff).collect();
            let base = match ended.is_empty() {
                false => ended.into_iter().max_by_key(|j| position(*j)),
                true => on.into_iter().min_by_key(|j| position(*j)),
            };
            base == Some(i)
        })
    }

    fn selected(&self, i: usize) -> bool {
        let p = &self.h.policy;
        let age = self.now() - self.time(i);
        let numbers = [p.keep_last, p.keep_days, p.keep_daily, p.keep_weekly, p.keep_monthly, p.keep_yearly];
        let no_rule = numbers.iter().all(|n| *n == 0) && p.window.is_none();
        let good = self.good(i);
        no_rule
            || (good && self.later(i, |_| true) < p.keep_last as usize)
            || (age < i64::from(p.keep_days) * 86_400 && p.keep_days > 0)
            || p.window.is_some_and(|w| age <= w.as_secs() as i64)
            || p.window.is_some_and(|w| self.is_base(i, w.as_secs()))
            || p.wal.is_some_and(|w| self.is_base(i, w.as_secs()))
            || (good
                && self.later(i, |j| self.day(j) == self.day(i)) == 0
                && self.within(i, |j| self.day(j), p.keep_daily))
            || (self.is_weekly(i) && self.within(i, |j| self.week(j), p.keep_weekly))
            || (self.is_monthly(i) && self.within(i, |j| self.month(j), p.keep_monthly))
            || (self.is_yearly(i) && self.within(i, |j| self.year(j), p.keep_yearly))
    }

    fn stays(&self) -> BTreeSet<BackupId> {
        let mut stays: Vec<usize> = (0..self.n()).filter(|i| self.protected(*i) || self.selected(*i)).collect();
        while self.h.policy.max_backups.is_some_and(|max| stays.len() > max as usize) {
            let Some(at) = stays.iter().position(|i| !self.protected(*i)) else { break };
            stays.remove(at);
        }
        stays.into_iter().map(|i| self.all()[i].id.clone()).collect()
    }
}

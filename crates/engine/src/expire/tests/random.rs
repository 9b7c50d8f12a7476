//! Random histories. The same seed gives the same history; a failure names it.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use pgark_pg::value::SystemId;
use pgark_repo::catalog::Evidence;
use pgark_repo::names::BackupId;

use super::super::policy::{Branch, Candidate, Policy};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

pub const START: i64 = 1_700_000_000;
const DAY: i64 = 86_400;

#[derive(Clone)]
pub struct History {
    pub candidates: Vec<Candidate>,
    pub branches: Vec<Branch>,
    pub current: SystemId,
    pub policy: Policy,
    pub offset_seconds: i32,
    pub now: Timestamp,
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub fn id(n: usize) -> BackupId {
    BackupId::parse(&format!("20240101-{n:06}F")).unwrap()
}

pub fn candidate(n: usize, time: i64) -> Candidate {
    Candidate {
        id: id(n),
        system_id: SystemId(1),
        at: at(time),
        evidence: Evidence::Stored,
        good: true,
        kept: false,
        kept_until: None,
        holds: vec![],
        in_use: None,
        unseen: None,
    }
}

pub fn history(seed: u64) -> History {
    let mut r = Random(seed);
    let mut time = START;
    let step = r.pick(&[1, 3600, DAY / 2, DAY, DAY, 7 * DAY, 30 * DAY]);
    let upgraded = r.below(60) as usize;
    let (bad_one_in, marked_one_in) = (r.pick(&[2, 5, 1000]), r.pick(&[3, 10, 1000]));
    // Ages that are exactly a limit are where a rule goes wrong.
    let exact = r.one_in(3);
    let count = r.below(40) as usize;
    let mut candidates = vec![];
    for n in 0..count {
        time += match r.below(12) {
            0 => 0,
            // The clock was set back, or the machine.
            1 => -(r.below(3 * step as u64 + 1) as i64),
            2 => 10 * step,
            _ if exact => step,
            _ => step / 2 + r.below(step as u64 + 1) as i64,
        };
        let mut c = candidate(n, time);
        c.system_id = SystemId(if n < upgraded { 1 } else { 2 });
        c.good = !r.one_in(bad_one_in);
        c.kept = r.one_in(marked_one_in * 4);
        c.kept_until = r.one_in(marked_one_in * 2).then(|| at(time + r.below(400) as i64 * DAY));
        c.holds = if r.one_in(marked_one_in * 4) { vec!["case".into()] } else { vec![] };
        c.in_use = r.one_in(marked_one_in * 8).then(|| "restore".into());
        c.unseen = (!c.good && r.one_in(3)).then(|| "gone".into());
        c.evidence = match r.below(marked_one_in * 3) {
            0 => Evidence::Replayed,
            1 => Evidence::Started,
            2 => Evidence::Authenticated,
            3 => Evidence::Drilled,
            _ => Evidence::Stored,
        };
        candidates.push(c);
    }
    let branches = (0..r.below(4))
        .map(|_| Branch {
            last_time: (!r.one_in(4)).then(|| at(START + r.below((time - START).unsigned_abs() + 2) as i64)),
            backups: candidates.iter().filter(|_| !r.one_in(3)).map(|c| c.id.clone()).collect(),
        })
        .collect();
    let newest = candidates.iter().map(|c| c.at.as_second()).max().unwrap_or(time);
    let now = newest + r.pick(&[-3600, -1, 0, 1, 3600, DAY, 40 * DAY, 4000 * DAY]);
    let offset_seconds = r.pick(&[0, 0, 3600, -5 * 3600, 5 * 3600 + 1800]);
    let policy = policy(&mut r, offset_seconds);
    let current = SystemId(r.pick(&[1, 2]));
    History { candidates, branches, current, policy, offset_seconds, now: at(now) }
}

fn policy(r: &mut Random, offset_seconds: i32) -> Policy {
    let mut number = |one_in: u64, max: u64| if r.one_in(one_in) { r.below(max) as u32 } else { 0 };
    let mut p = Policy {
        keep_last: number(3, 6),
        keep_days: number(4, 40),
        keep_daily: number(3, 9),
        keep_weekly: number(3, 6),
        keep_monthly: number(3, 14),
        keep_yearly: number(4, 8),
        min_backups: number(3, 5),
        ..Policy::none()
    };
    let mut span = |one_in: u64| r.one_in(one_in).then(|| Duration::from_secs(r.below(60) * DAY as u64 / 2 + 1));
    (p.window, p.wal) = (span(4), span(3));
    p.max_backups = r.one_in(4).then(|| 1 + r.below(9) as u32);
    p.time_zone = TimeZone::fixed(Offset::from_seconds(offset_seconds).unwrap());
    p
}

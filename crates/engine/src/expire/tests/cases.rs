//! What people rely on, one sentence each.

use std::time::Duration;

use pgark_pg::value::SystemId;
use pgark_repo::catalog::Evidence;

use super::super::forecast::{Goes, forecast};
use super::super::policy::{Branch, Candidate, Policy, Reason, Verdicts, decide};
use super::random::{START, at, candidate, id};

const DAY: i64 = 86_400;

fn daily(count: usize) -> Vec<Candidate> {
    (0..count).map(|n| candidate(n, START + n as i64 * DAY)).collect()
}

fn verdicts(candidates: &[Candidate], policy: &Policy, now: i64) -> Verdicts {
    let branch = Branch { last_time: None, backups: candidates.iter().map(|c| c.id.clone()).collect() };
    decide(candidates, &[branch], SystemId(1), policy, at(now)).unwrap()
}

fn staying(candidates: &[Candidate], policy: &Policy, now: i64) -> Vec<usize> {
    let v = verdicts(candidates, policy, now);
    let found = |id: &_| candidates.iter().position(|c| c.id == *id).unwrap();
    v.all.iter().filter(|v| v.stays()).map(|v| found(&v.id)).collect()
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let backups = daily(20);
    let end = START + 19 * DAY;
    for policy in [
        Policy { keep_days: 7, ..Policy::none() },
        Policy { window: Some(Duration::from_secs(7 * 86_400)), ..Policy::none() },
        Policy { keep_daily: 3, keep_weekly: 2, keep_yearly: 7, ..Policy::none() },
    ] {
        let now = staying(&backups, &policy, end);
        for years in [1, 10, 100] {
            assert_eq!(staying(&backups, &policy, end + years * 365 * DAY), now);
        }
        let back = decide(&backups, &[], SystemId(1), &policy, at(end - 400 * DAY));
        assert!(back.is_err(), "set back, every backup is from the future");
    }
}

#[test]
fn damaged_backups_do_not_push_good_ones_out() {
    let mut backups = daily(10);
    backups[7..].iter_mut().for_each(|c| c.good = false);
    let policy = Policy { keep_last: 2, ..Policy::none() };
    // 5 and 6 are the last good ones; the damaged ones after them are all there is of those days.
    assert_eq!(staying(&backups, &policy, START + 20 * DAY), [5, 6, 7, 8, 9]);
    backups[9].good = true;
    assert_eq!(staying(&backups, &policy, START + 20 * DAY), [6, 9]);
    backups.iter_mut().for_each(|c| c.good = false);
    assert_eq!(staying(&backups, &policy, START + 20 * DAY).len(), 10);
}

#[test]
fn the_last_proven_point_stays_whatever_the_numbers() {
    let mut backups = daily(10);
    backups[1].evidence = Evidence::Replayed;
    backups[4].evidence = Evidence::Authenticated;
    let policy = Policy { keep_last: 1, max_backups: Some(1), ..Policy::none() };
    assert_eq!(staying(&backups, &policy, START + 20 * DAY), [1, 4, 9]);
}

#[test]
fn the_last_weekly_of_a_month_is_its_monthly() {
    // 120 days from Tuesday 2023-11-14.
    let backups = daily(120);
    let policy = Policy { keep_weekly: 4, keep_monthly: 12, ..Policy::none() };
    let dates: Vec<String> = staying(&backups, &policy, START + 200 * DAY)
        .into_iter()
        .map(|n| backups[n].at.strftime("%Y-%m-%d %a").to_string())
        .collect();
    let expected = [
        "2023-11-26 Sun",
        "2023-12-31 Sun",
        "2024-01-28 Sun",
        "2024-02-25 Sun",
        "2024-03-03 Sun",
        "2024-03-10 Sun",
        "2024-03-12 Tue",
    ];
    assert_eq!(dates, expected);
}

#[test]
fn holds_and_marks_stay_and_end_as_they_say() {
    let mut backups = daily(10);
    backups[0].holds = vec!["case 4711".into()];
    backups[1].kept = true;
    backups[2].kept_until = Some(at(START + 30 * DAY));
    backups[3].kept_until = Some(at(START + 5 * DAY));
    let policy = Policy { keep_last: 1, ..Policy::none() };
    // The mark that ends in the future by the newest backup's time stays, whatever the clock says.
    assert_eq!(staying(&backups, &policy, START + 3000 * DAY), [0, 1, 2, 9]);
}

#[test]
fn a_window_keeps_the_backup_that_it_begins_with() {
    let backups = daily(20);
    let policy = Policy { window: Some(Duration::from_secs(3 * 86_400 + 1)), ..Policy::none() };
    assert_eq!(staying(&backups, &policy, START + 100 * DAY), [15, 16, 17, 18, 19]);
    let wal_only = Policy { keep_last: 1, wal: Some(Duration::from_secs(3 * 86_400 + 1)), ..Policy::none() };
    assert_eq!(staying(&backups, &wal_only, START + 100 * DAY), [15, 19]);
}

#[test]
fn seven_years_are_kept() {
    let backups: Vec<Candidate> = (0..8 * 52).map(|n| candidate(n, START + n as i64 * 7 * DAY)).collect();
    let policy = Policy { keep_days: 7 * 365 + 2, ..Policy::none() };
    let stay = staying(&backups, &policy, START + 8 * 52 * 7 * DAY);
    assert_eq!(stay.len(), (7 * 365 + 2) / 7 + 1);
    let yearly = Policy { keep_yearly: 7, ..Policy::none() };
    assert_eq!(staying(&backups, &yearly, START + 8 * 52 * 7 * DAY).len(), 7);
}

#[test]
fn the_forecast_is_what_happens_when_backups_go_on() {
    let backups = daily(30);
    let policy = Policy { keep_last: 2, keep_weekly: 3, keep_monthly: 2, min_backups: 2, ..Policy::none() };
    let branch = |all: &[Candidate]| Branch { last_time: None, backups: all.iter().map(|c| c.id.clone()).collect() };
    let mut real = backups.clone();
    let first = verdicts(&real, &policy, START + 30 * DAY);
    let expected = forecast(&real, &[branch(&real)], SystemId(1), &policy, &first);
    let mut time = START + 29 * DAY;
    let mut seen = 0;
    for n in 30..200 {
        let v = decide(&real, &[branch(&real)], SystemId(1), &policy, at(time)).unwrap();
        for gone in v.all.iter().filter(|v| !v.stays()) {
            if let Some(goes) = expected.get(&gone.id) {
                let about = if n == 30 { Goes::Now } else { Goes::About(at(time)) };
                assert_eq!(*goes, about, "{}", gone.id);
                seen += 1;
            }
        }
        real.retain(|c| v.all.iter().any(|v| v.id == c.id && v.stays()));
        time += DAY;
        real.push(candidate(n, time));
    }
    assert_eq!(seen, 30, "every backup goes in the end, and at the time that was told");
}

#[test]
fn what_waits_for_somebody_is_said_not_to_go_by_itself() {
    let mut backups = daily(5);
    backups[0].holds = vec!["x".into()];
    backups[1].evidence = Evidence::Replayed;
    let policy = Policy { keep_last: 1, ..Policy::none() };
    let v = verdicts(&backups, &policy, START + 9 * DAY);
    let goes = forecast(&backups, &[], SystemId(1), &policy, &v);
    assert_eq!(goes[&id(0)], Goes::NotByItself);
    assert_eq!(goes[&id(1)], Goes::NotByItself);
    assert_eq!(goes[&id(2)], Goes::Now);
    assert_eq!(goes[&id(4)], Goes::About(at(START + 5 * DAY)));
    assert!(v.all[0].reasons.contains(&Reason::Hold("x".into())));
}

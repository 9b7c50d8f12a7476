use super::*;

const DAY: i64 = 86_400;
const START: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn uptime(boot: u64, seconds: i64) -> Option<Uptime> {
    Some(Uptime { boot: boot.to_string(), seconds })
}

fn reading(wall: i64, uptime: Option<Uptime>) -> Reading {
    Reading { wall: at(wall), uptime, store: None, server: None }
}

/// Readings one after the other; returns the times, and which witness spoke against each.
fn read(readings: &[Reading]) -> (Vec<i64>, Vec<Option<Witness>>, ClusterClock) {
    let mut clock = None;
    let (mut times, mut doubts) = (vec![], vec![]);
    for r in readings {
        let (next, judged) = r.after(clock);
        clock = Some(next);
        times.push(judged.time.as_second() - START);
        doubts.push(judged.doubt.map(|d| d.by));
    }
    (times, doubts, clock.unwrap())
}

#[test]
fn a_jump_is_noticed_by_the_time_since_the_start_and_for_as_long_as_it_lasts() {
    let day = |n: i64, ahead: i64| reading(START + n * DAY + ahead, uptime(1, 100 + n * DAY));
    let jumped = 2 * DAY;
    let (times, doubts, _) = read(&[day(0, 0), day(1, 0), day(2, jumped), day(3, jumped), day(4, jumped), day(5, 0)]);
    assert_eq!(times, [0, DAY, 2 * DAY, 3 * DAY, 4 * DAY, 5 * DAY]);
    let up = Some(Witness::Uptime);
    assert_eq!(doubts, [None, None, up, up, up, None]);
}

#[test]
fn a_jump_that_was_noticed_is_not_forgotten_by_starting_the_machine_again() {
    let before = [reading(START, uptime(1, 100)), reading(START + DAY + 2 * DAY, uptime(1, 100 + DAY))];
    let again = |wall: i64| reading(START + wall, uptime(2, 50));
    let (times, doubts, clock) = read(&[before[0].clone(), before[1].clone(), again(4 * DAY)]);
    assert_eq!((times[2], doubts[2]), (0, Some(Witness::Uptime)));
    assert!(clock.doubt.is_some());
    // Set right meanwhile.
    let (times, doubts, clock) = read(&[before[0].clone(), before[1].clone(), again(2 * DAY)]);
    assert_eq!((times[2], doubts[2], clock.doubt), (2 * DAY, None, None));
}

#[test]
fn a_long_time_by_one_clock_alone_stays_in_doubt_however_many_backups_follow() {
    let mut all = vec![reading(START, uptime(1, 100))];
    all.extend((0..6).map(|n| reading(START + (30 + n) * DAY, uptime(2, 100 + n * DAY))));
    let (times, doubts, _) = read(&all);
    assert_eq!(times, [0; 7]);
    assert!(doubts[1..].iter().all(|d| *d == Some(Witness::Nothing)), "{doubts:?}");
    // The clock of another machine confirms it; the same machine's does not.
    for own in [true, false] {
        let mut confirmed = all.clone();
        confirmed.iter_mut().for_each(|r| r.store = Some(StoreTime { at: r.wall, own }));
        let (times, doubts, _) = read(&confirmed);
        assert_eq!(doubts.iter().all(Option::is_none), own, "{doubts:?}");
        assert_eq!(times[6], if own { 35 * DAY } else { 0 });
    }
}

#[test]
fn a_store_or_a_server_that_disagrees_is_a_doubt_and_the_earlier_time_counts() {
    let with = |store: Option<i64>, server: Option<i64>| Reading {
        store: store.map(|s| StoreTime { at: at(START + s), own: true }),
        server: server.map(|s| at(START + s)),
        ..reading(START + 20 * DAY, None)
    };
    let first = Reading { store: Some(StoreTime { at: at(START), own: true }), ..reading(START, None) };
    for (other, by) in [(with(Some(DAY), None), Witness::Store), (with(Some(20 * DAY), Some(DAY)), Witness::Server)] {
        let (times, doubts, _) = read(&[first.clone(), other]);
        assert_eq!((times[1], doubts[1]), (DAY, Some(by)));
    }
    let (_, doubts, _) = read(&[first, with(Some(20 * DAY), Some(20 * DAY + 200))]);
    assert_eq!(doubts[1], None);
}

#[test]
fn a_clock_that_is_behind_or_a_machine_that_slept_makes_nothing_older() {
    let first = reading(START, uptime(1, 100));
    let (times, doubts, _) = read(&[first.clone(), reading(0, uptime(2, 10)), reading(START + DAY, uptime(2, DAY))]);
    assert_eq!(times, [0, 0, DAY]);
    assert_eq!(doubts, [None, Some(Witness::Record), None]);
    // Sleep counts as uptime; a virtual machine that was stopped from outside lacks it.
    let (times, doubts, _) = read(&[first, reading(START + DAY, uptime(1, 100 + 60))]);
    assert_eq!((times[1], doubts[1]), (60, Some(Witness::Uptime)));
}

#[test]
fn what_is_accepted_is_believed_from_then_on() {
    let offset = 3 * DAY;
    let wrong_store = |wall: i64| Reading {
        store: Some(StoreTime { at: at(START + wall - offset), own: true }),
        ..reading(START + wall, uptime(1, 100 + wall))
    };
    let (_, doubts, clock) = read(&[wrong_store(0), wrong_store(DAY)]);
    assert_eq!(doubts[1], Some(Witness::Store));
    let mut catalog = catalog(clock);
    catalog.accept_clock(&wrong_store(DAY));
    assert!(!catalog.is_clock_in_doubt());
    assert_eq!(catalog.judge(&wrong_store(2 * DAY)), Judged { time: at(START + 2 * DAY), doubt: None });
    // It counts from there: a store that is set right is another jump.
    let righted = Reading { store: Some(StoreTime { at: at(START + 2 * DAY), own: true }), ..wrong_store(2 * DAY) };
    assert!(catalog.judge(&righted).doubt.is_some());
}

fn catalog(clock: ClusterClock) -> Catalog {
    Catalog {
        cluster: crate::names::ClusterName::parse("main").unwrap(),
        lineages: vec![],
        fence: 0,
        jobs: vec![],
        backups: vec![],
        removing: vec![],
        interrupted: vec![],
        expired: vec![],
        gave_up: None,
        wal_expiries: vec![],
        last_id: None,
        resealed: None,
        clock: Some(clock),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// Machines whose clocks jump by minutes to years, that are started again, with stores of all kinds: never does more time pass
/// than has, but for what one clock alone is believed after a start.
#[test]
fn the_time_of_a_cluster_never_runs_ahead_of_the_true_one() {
    let (mut jumps, mut doubted, mut caught_up) = (0, 0, 0);
    for seed in 0..5000 {
        let mut r = Random(seed);
        let (own, starts) = (r.below(2) == 0, r.below(3) == 0);
        let (mut truth, mut wrong, mut boot, mut booted) = (START, 0, 0, START - 1000);
        let mut clock: Option<ClusterClock> = None;
        let mut last = (START, START);
        for n in 0..30 {
            truth += r.below(2 * DAY as u64) as i64;
            if n > 0 && r.below(5) == 0 {
                let far = [3600, DAY, 20 * DAY, 4000 * DAY][r.below(4) as usize];
                wrong = [0, far, -far][r.below(3) as usize];
                jumps += 1;
            }
            if starts && r.below(4) == 0 {
                (boot, booted) = (boot + 1, truth - 60);
            }
            let store = match (own, r.below(2)) {
                (true, _) => Some(StoreTime { at: at(truth), own: true }),
                (false, 0) => Some(StoreTime { at: at(truth + wrong), own: false }),
                (false, _) => None,
            };
            let now = Reading { store, ..reading(truth + wrong, uptime(boot, truth - booted)) };
            let interval = clock.as_ref().map_or(DAY, ClusterClock::interval);
            let (next, judged) = now.after(clock);
            clock = Some(next);
            let time = judged.time.as_second();
            let place = format!("seed {seed}, reading {n}: {judged:?}");
            if own || !starts {
                assert!(time - START <= truth - START + CLOCK_TOLERANCE_SECONDS, "{place}");
            }
            if !starts {
                let passed = (time - START) - (truth - START);
                let first = if n == 0 { 0 } else { passed };
                assert!(first.abs() <= CLOCK_TOLERANCE_SECONDS, "{place}");
            } else if !own {
                let alone = ALONE_SECONDS.max(ALONE_INTERVALS * interval);
                assert!(time - last.1 <= (truth - last.0).max(alone) + CLOCK_TOLERANCE_SECONDS, "{place}");
            }
            if wrong > 0 && judged.doubt.is_none() {
                caught_up += 1;
            }
            doubted += u64::from(judged.doubt.is_some());
            last = (truth, time);
        }
    }
    assert!(jumps > 10_000 && doubted > 20_000 && caught_up > 100, "{jumps} {doubted} {caught_up}");
}

use super::*;
use jiff::civil::{DateTime, date, time};
use jiff::{ToSpan, Zoned};
use proptest::prelude::*;

/// Clocks that move by an hour, by half of one, by two, at midnight, on Fridays; and some that never do.
const ZONES: &[&str] = &[
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Asia/Kolkata",
    "Pacific/Chatham",
    "America/Havana",
];

fn spec(when: When, zone: &str) -> Spec {
    Spec {
        name: "backup-main".into(),
        when,
        time_zone: Some(zone.into()),
        jitter: Duration::ZERO,
        catch_up: CatchUp::Once,
        deadline: DEADLINE,
        blackout: vec![],
    }
}

fn cron(text: &str, zone: &str) -> Schedule {
    Schedule::new(&spec(When::Cron(text.into()), zone)).expect(text)
}

fn at(text: &str) -> Timestamp {
    text.parse().expect(text)
}

fn local(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
    let shown = |t: Timestamp| t.to_zoned(schedule.zone().clone()).strftime("%a %F %H:%M %:z").to_string();
    schedule.upcoming(at(from), count).into_iter().map(shown).collect()
}

#[test]
fn words_are_sundays_and_calendars_are_crons() {
    let word = |every| Schedule::new(&spec(When::Every(every, time(4, 30, 0, 0)), "Europe/Berlin")).expect("valid");
    let from = "2026-01-15T00:00:00Z";
    let cases = [
        (Every::Day, ["Thu 2026-01-15 04:30 +01:00", "Fri 2026-01-16 04:30 +01:00"]),
        (Every::Week, ["Sun 2026-01-18 04:30 +01:00", "Sun 2026-01-25 04:30 +01:00"]),
        (Every::Month, ["Sun 2026-02-01 04:30 +01:00", "Sun 2026-03-01 04:30 +01:00"]),
        (Every::Quarter, ["Sun 2026-04-05 04:30 +02:00", "Sun 2026-07-05 04:30 +02:00"]),
        (Every::HalfYear, ["Sun 2026-07-05 04:30 +02:00", "Sun 2027-01-03 04:30 +01:00"]),
        (Every::Year, ["Sun 2027-01-03 04:30 +01:00", "Sun 2028-01-02 04:30 +01:00"]),
    ];
    for (every, expected) in cases {
        assert_eq!(local(&word(every), from, 2), expected, "{every:?}");
    }
    let first_sunday = cron("30 4 * * SUN#1", "Europe/Berlin");
    assert_eq!(first_sunday.upcoming(at(from), 30), word(Every::Month).upcoming(at(from), 30));
    assert_eq!(local(&cron("@daily", "UTC"), from, 1), ["Fri 2026-01-16 00:00 +00:00"]);
    assert_eq!(local(&cron("0 0 29 2 *", "UTC"), from, 1), ["Tue 2028-02-29 00:00 +00:00"]);
    assert_eq!(local(&cron("0 6 L * *", "UTC"), from, 1), ["Sat 2026-01-31 06:00 +00:00"]);
}

#[test]
fn what_is_no_schedule_is_refused_with_its_key() {
    let base = || spec(When::Cron("0 2 * * *".into()), "UTC");
    let key = |spec: Spec| Schedule::new(&spec).expect_err("wrong").key;
    for text in ["", "0 2 * *", "0 0 30 2 *", "0 2 * * * *", "0 2 * * FOO", "99 2 * * *", "0 0 31 4,6 *"] {
        assert_eq!(key(Spec { when: When::Cron(text.into()), ..base() }), "cron", "{text}");
    }
    assert_eq!(key(Spec { time_zone: Some("Mars/X".into()), ..base() }), "time_zone");
    assert_eq!(key(Spec { jitter: Duration::from_secs(86_401), ..base() }), "jitter");
    assert_eq!(key(Spec { deadline: Duration::ZERO, ..base() }), "deadline");
    for text in ["x", "08:00", "8:00-9:00", "mon 08:00-08:00", "fun 08:00-09:00", "00:00-24:00", "25:00-26:00"] {
        assert_eq!(key(Spec { blackout: vec![text.into()], ..base() }), "blackout", "{text}");
    }
    let halves = ["00:00-12:00".to_owned(), "12:00-24:00".into()];
    assert_eq!(key(Spec { blackout: halves.to_vec(), ..base() }), "blackout");
}

#[test]
fn a_time_that_does_not_exist_or_exists_twice_runs_once() {
    let early = cron("30 2 * * *", "Europe/Berlin");
    let spring = ["Sat 2026-03-28 02:30 +01:00", "Sun 2026-03-29 03:00 +02:00", "Mon 2026-03-30 02:30 +02:00"];
    assert_eq!(local(&early, "2026-03-27T12:00:00Z", 3), spring);
    let autumn = ["Sat 2026-10-24 02:30 +02:00", "Sun 2026-10-25 02:30 +02:00", "Mon 2026-10-26 02:30 +01:00"];
    assert_eq!(local(&early, "2026-10-23T12:00:00Z", 3), autumn);
    // Several times in the hour that is left out are one run, and lists of hours lose none.
    let list = cron("15,45 2,14 * * *", "Europe/Berlin");
    let spring = ["Sun 2026-03-29 03:00 +02:00", "Sun 2026-03-29 14:15 +02:00", "Sun 2026-03-29 14:45 +02:00"];
    assert_eq!(local(&list, "2026-03-28T20:00:00Z", 3), spring);
    // What follows the clock hour by hour follows real time.
    let hourly = cron("0 * * * *", "Europe/Berlin").upcoming(at("2026-10-24T22:00:00Z"), 6);
    assert!(hourly.windows(2).all(|w| w[1].duration_since(w[0]).as_hours() == 1), "{hourly:?}");
}

#[test]
fn missed_runs_are_made_up_for_by_one() {
    let schedule = cron("0 * * * *", "UTC");
    let past = |text: &str| Past { considered: at(text), running: false };
    let now = at("2026-05-03T10:20:00Z");
    let due = schedule.due(past("2026-05-03T04:00:00Z"), now);
    assert_eq!(due, Due::Now { planned: at("2026-05-03T10:00:00Z"), passed_over: 5, late: true });
    assert_eq!(schedule.due(past("2026-05-03T10:20:00Z"), now), Due::Later { next: Some(at("2026-05-03T11:00:00Z")) });
    let on_time = schedule.due(past("2026-05-03T09:00:00Z"), at("2026-05-03T10:00:01Z"));
    assert_eq!(on_time, Due::Now { planned: at("2026-05-03T10:00:00Z"), passed_over: 0, late: false });
    assert_eq!(schedule.due(Past { running: true, ..past("2026-05-03T04:00:00Z") }, now), Due::Running);
    // Of years that nobody counts to the end.
    let minutely = cron("* * * * *", "UTC").due(past("2020-01-01T00:00:00Z"), now);
    assert_eq!(minutely, Due::Now { planned: now, passed_over: MISSED_MAX - 1, late: false });

    let skipping = Spec { catch_up: CatchUp::Skip, ..spec(When::Cron("0 * * * *".into()), "UTC") };
    let skipping = Schedule::new(&skipping).expect("valid");
    let due = skipping.due(past("2026-05-03T04:00:00Z"), now);
    assert_eq!(due, Due::PassOver { missed: 6, next: Some(at("2026-05-03T11:00:00Z")) });
}

#[test]
fn nothing_starts_in_a_blackout() {
    let spec = Spec {
        blackout: vec!["mon-fri 08:00-18:00".into(), "18:00-19:30".into(), "sat 22:00-04:00".into()],
        ..spec(When::Cron("0 */2 * * *".into()), "Europe/Berlin")
    };
    let schedule = Schedule::new(&spec).expect("valid");
    // 8, 10, 12, 14, 16 and 18 o'clock are put off, and are one.
    let friday = ["Fri 2026-05-08 06:00 +02:00", "Fri 2026-05-08 19:30 +02:00", "Fri 2026-05-08 20:00 +02:00"];
    assert_eq!(local(&schedule, "2026-05-08T03:00:00Z", 3), friday);
    // Over midnight, from the Saturday into the Sunday.
    let saturday = ["Sat 2026-05-09 20:00 +02:00", "Sun 2026-05-10 04:00 +02:00", "Sun 2026-05-10 06:00 +02:00"];
    assert_eq!(local(&schedule, "2026-05-09T17:45:00Z", 3), saturday);
    // What was missed is not made up for in one.
    let past = Past { considered: at("2026-05-07T20:00:00Z"), running: false };
    let until = at("2026-05-08T17:30:00Z");
    assert_eq!(schedule.due(past, at("2026-05-08T10:00:00Z")), Due::Blackout { until });
    assert_eq!(schedule.due(past, until), Due::Now { planned: until, passed_over: 4, late: false });
}

#[test]
fn jitter_spreads_schedules_and_keeps_each_where_it_is() {
    let jitter = Duration::from_secs(3600);
    let named = |name: &str| {
        let spec = Spec { name: name.into(), jitter, ..spec(When::Cron("0 2 * * *".into()), "UTC") };
        Schedule::new(&spec).expect("valid").upcoming(at("2026-05-03T00:00:00Z"), 3)
    };
    let all: Vec<_> = (0..50).map(|n| named(&format!("backup-{n}"))).collect();
    for times in &all {
        assert!(times[0] >= at("2026-05-03T02:00:00Z") && times[0] <= at("2026-05-03T03:00:00Z"), "{times:?}");
        assert!(times.windows(2).all(|w| w[1].duration_since(w[0]).as_hours() == 24), "{times:?}");
    }
    let mut firsts: Vec<_> = all.iter().map(|t| t[0]).collect();
    firsts.sort();
    firsts.dedup();
    assert!(firsts.len() > 40, "{firsts:?}");
    assert_eq!(named("backup-7"), all[7]);
}

#[test]
fn a_drill_is_overdue_when_its_deadline_has_passed_without_a_success() {
    let spec =
        Spec { deadline: Duration::from_secs(6 * 3600), ..spec(When::Every(Every::Month, time(4, 0, 0, 0)), "UTC") };
    let schedule = Schedule::new(&spec).expect("valid");
    let known = at("2026-01-10T00:00:00Z");
    let overdue = |last: Option<&str>, now: &str| schedule.overdue(known, last.map(at), at(now));
    assert_eq!(overdue(None, "2026-02-01T09:59:00Z"), None);
    assert_eq!(overdue(None, "2026-02-01T10:01:00Z"), Some(at("2026-02-01T10:00:00Z")));
    assert_eq!(overdue(Some("2026-02-01T05:00:00Z"), "2026-02-20T00:00:00Z"), None);
    assert_eq!(overdue(Some("2026-02-01T05:00:00Z"), "2026-04-01T00:00:00Z"), Some(at("2026-03-01T10:00:00Z")));
}

fn any_cron() -> impl Strategy<Value = String> {
    let minute = prop_oneof![
        Just("*".to_owned()),
        (0_u8..60).prop_map(|m| m.to_string()),
        Just("*/15".into()),
        Just("5,35".into())
    ];
    let hour = prop_oneof![
        Just("*".to_owned()),
        (0_u8..24).prop_map(|h| h.to_string()),
        Just("*/3".into()),
        Just("1-4".into()),
        Just("2,14".into()),
    ];
    let day = prop_oneof![Just("* * *"), Just("* * SUN"), Just("* * SUN#1"), Just("1,15 * *"), Just("L * *")];
    (minute, hour, day).prop_map(|(m, h, d)| format!("{m} {h} {d}"))
}

fn any_zone() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(ZONES)
}

/// Of 2024 to 2027.
fn any_moment() -> impl Strategy<Value = Timestamp> {
    (1_704_067_200_i64..1_830_000_000).prop_map(|s| Timestamp::from_second(s).expect("in range"))
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    let windows = prop_oneof![
        Just(vec![]),
        Just(vec!["mon-fri 08:00-18:00".to_owned()]),
        Just(vec!["22:00-03:00".to_owned(), "sun 00:00-24:00".into()]),
    ];
    (any_cron(), any_zone(), 0_u64..7200, windows).prop_map(|(text, zone, jitter, blackout)| {
        let spec = Spec { jitter: Duration::from_secs(jitter), blackout, ..spec(When::Cron(text), zone) };
        Schedule::new(&spec).expect("valid")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Forward and backward see the same moments, in one order.
    #[test]
    fn moments_are_the_same_from_both_sides(schedule in any_schedule(), from in any_moment()) {
        let all = schedule.upcoming(from, 12);
        prop_assert_eq!(all.len(), 12);
        prop_assert!(all[0] > from && all.windows(2).all(|w| w[0] < w[1]));
        for pair in all.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            prop_assert_eq!(schedule.last_until(first), Some(first));
            prop_assert_eq!(schedule.last_until(second - 1.nanosecond()), Some(first));
            prop_assert_eq!(schedule.next_after(second - 1.nanosecond()), Some(second));
            prop_assert!(schedule.blackouts.end(first).is_none());
        }
    }

    /// One time of the day comes once on each day, on the day itself, at its time where the clocks show it.
    #[test]
    fn daily_times_come_once_a_day(zone in any_zone(), hour in 0_i8..24, minute in 0_i8..60, day in 0_i32..1400) {
        let zone_of = TimeZone::get(zone).expect("known");
        let today = date(2024, 1, 1).checked_add(day.days()).expect("in range");
        let midnight = |d: jiff::civil::Date| d.to_zoned(zone_of.clone()).expect("in range").timestamp();
        let (from, to) = (midnight(today), midnight(today.tomorrow().expect("in range")));
        let schedule = cron(&format!("{minute} {hour} * * *"), zone);
        let of_today: Vec<Zoned> = schedule
            .upcoming(from - 1.second(), 3).into_iter().filter(|t| *t >= from && *t < to)
            .map(|t| t.to_zoned(zone_of.clone())).collect();
        prop_assert_eq!(of_today.len(), 1, "{:?}", of_today);
        let wanted: DateTime = today.at(hour, minute, 0, 0);
        let shown = of_today[0].datetime();
        let exists = zone_of.to_ambiguous_timestamp(wanted).unambiguous().is_ok();
        prop_assert!(shown == wanted || (!exists && shown > wanted), "{} {}", shown, wanted);
    }

    /// A server that looks at any moments, and is down between some, starts at most once per planned moment, in order, and after
    /// each look nothing is owed.
    #[test]
    fn every_look_starts_at_most_one(schedule in any_schedule(), from in any_moment(), steps in prop::collection::vec(1_i64..200_000, 1..20)) {
        let mut past = Past { considered: from, running: false };
        let mut now = from;
        let mut started = vec![];
        for step in steps {
            now += step.seconds();
            match schedule.due(past, now) {
                Due::Now { planned, passed_over, .. } => {
                    prop_assert!(planned <= now && planned > past.considered);
                    let between = schedule.upcoming(past.considered, 200).into_iter().filter(|t| *t <= now).count();
                    prop_assert!(between == passed_over as usize + 1 || between == 200, "{between} {passed_over}");
                    started.push(planned);
                    past.considered = now;
                }
                Due::Later { next } => prop_assert!(next.is_some_and(|n| n > now)),
                Due::Blackout { until } => {
                    let then = schedule.due(past, until);
                    let starts_then = matches!(then, Due::Now { .. });
                    prop_assert!(until > now && starts_then);
                },
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(started.windows(2).all(|w| w[0] < w[1]));
    }
}

use serde_json::json;

use super::super::machine::ABANDONED;
use super::super::steps::{SMOKE, START, STOP};
use super::super::{Aim, Planned, Safety, to_html, to_markdown};
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_787_000_000 + second).expect("a time")
}

fn opening() -> Opening {
    let steps = [STOP, CHOOSE, RESTORE, START, SMOKE, NOTIFY, REPORT];
    Opening {
        id: "20260822-031500-042R".into(),
        cluster: "main".into(),
        kind: "logical".into(),
        database: Some("<b>app|\n".into()),
        backup: None,
        aim: Aim::default(),
        place: None,
        truths: vec![],
        began: at(10),
        declared: at(0),
        rpo_ms: Some(3_600_000),
        rto_ms: Some(30_000),
        by: "postgres@host".into(),
        reason: Some("<script>alert('x')</script>".into()),
        safety_backup: Safety::Try,
        steps: steps.map(|name| Planned { name: name.into(), what: name.into() }).to_vec(),
    }
}

fn lines(events: Vec<(i64, Event)>) -> Vec<Line> {
    let line =
        |(n, (second, event)): (usize, (i64, Event))| Line { n: n as u64, at: at(second), event, after: "h".into() };
    events.into_iter().enumerate().map(line).collect()
}

fn begins(step: &str) -> Event {
    Event::Begins { step: step.into(), facts: Value::Null }
}

fn is_done(step: &str, facts: Value) -> Event {
    Event::Done { step: step.into(), facts }
}

fn failed(step: &str, code: &str) -> Event {
    Event::Failed {
        step: step.into(),
        code: code.into(),
        why: "<i>so</i>".into(),
        hint: None,
        facts: json!({"left": ["it is there"]}),
    }
}

fn of(lines: &[Line], step: &str) -> StepReport {
    let report = Report::made(&opening(), lines, None, State::Restored, at(999));
    report.steps.into_iter().find(|s| s.name == step).expect("the step")
}

#[test]
fn objectives_are_judged_and_what_took_too_long_is_told() {
    let chosen = json!({"backup": "20260822-010000L", "recovery_point": at(-7200), "warnings": ["DEGRADED: another is damaged"]});
    let lines = lines(vec![
        (10, begins(CHOOSE)),
        (11, is_done(CHOOSE, chosen)),
        (11, begins(RESTORE)),
        (20, Event::Resumed { by: "somebody".into() }),
        (20, Event::Undone { step: RESTORE.into(), facts: json!({"told": "removed"}) }),
        (21, begins(RESTORE)),
        (51, is_done(RESTORE, json!({"bytes": 7, "left": ["the old one is there"]}))),
        (52, begins(START)),
        (60, is_done(START, json!({"told": "runs"}))),
        (70, begins(NOTIFY)),
        (71, failed(NOTIFY, "E-RECOVER-NOTIFY")),
        (72, begins(REPORT)),
    ]);
    let report = Report::made(&opening(), &lines, None, State::Restored, at(999));
    assert_eq!(report.rpo, Some(Goal { target_ms: Some(3_600_000), measured_ms: 7_200_000, met: Some(false) }));
    assert_eq!(report.rto, Some(Goal { target_ms: Some(30_000), measured_ms: 60_000, met: Some(false) }));
    assert_eq!((report.bytes_restored, report.severity()), (Some(7), Severity::Warning));
    assert_eq!(report.backup.as_ref().map(ToString::to_string).as_deref(), Some("20260822-010000L"));
    assert_eq!(of(&lines, RESTORE).took_ms, Some(30_000), "of the run that was not cut off");
    assert_eq!(of(&lines, SMOKE).outcome, StepOutcome::NotReached);
    assert_eq!(report.left, ["the old one is there", "it is there"]);
    for wanted in ["recovery time objective", "recovery point objective", "DEGRADED", "E-RECOVER-NOTIFY"] {
        assert!(report.warnings.iter().any(|w| w.contains(wanted)), "{wanted}: {:?}", report.warnings);
    }
    let text = to_markdown(&report);
    assert!(
        text.contains("## Post-mortem") && text.contains("exceeded by 30.0 s") && text.contains("Step restore: 30.0 s")
    );
}

#[test]
fn a_failure_says_what_is_where_and_names_stay_text() {
    let lines = lines(vec![(10, begins(RESTORE)), (20, failed(RESTORE, "E-RECOVER-VALIDATION"))]);
    let failure = Failure {
        step: RESTORE.into(),
        code: "E-RECOVER-VALIDATION".into(),
        why: "<i>so</i>".into(),
        hint: Some("look".into()),
    };
    let report = Report::made(&opening(), &lines, Some(&failure), State::Halted, at(30));
    assert_eq!((report.restored, report.rto, report.severity()), (false, None, Severity::Incident));
    assert!(report.warnings.is_empty() && report.left == ["it is there"], "{report:?}");
    assert_eq!(of(&lines, RESTORE).outcome, StepOutcome::Failed);
    for page in [to_html(&report), to_markdown(&report)] {
        assert!(!page.contains("<script>") && !page.contains("<b>") && !page.contains("<i>"), "{page}");
        assert!(page.contains("HALTED") && page.contains("the service is not back"), "{page}");
    }
    assert!(report.summary().contains("NOT restored (halted): step restore failed: E-RECOVER-VALIDATION"));
    let again: Report = serde_json::from_value(serde_json::to_value(&report).expect("JSON")).expect("the same");
    assert_eq!(again, report);
}

#[test]
fn a_database_that_took_its_place_is_restored_although_it_was_given_up() {
    let old = "the old one is there under another name";
    let given_up = |step: &str| Event::Failed {
        step: step.into(),
        code: ABANDONED.into(),
        why: "it was given up".into(),
        hint: None,
        facts: Value::Null,
    };
    let undone = |placed: bool, left: Value| {
        let facts = json!({"told": "so", PLACED: placed, "left": left});
        (4, Event::Undone { step: RESTORE.into(), facts })
    };
    let made = |step: &str, state: State, events: Vec<(i64, Event)>| {
        let chosen = json!({"backup": "20260822-010000L", "recovery_point": at(0)});
        let all = [vec![(1, is_done(CHOOSE, chosen)), (2, begins(RESTORE))], events].concat();
        let failure = Failure { step: step.into(), code: ABANDONED.into(), why: "so".into(), hint: None };
        Report::made(&opening(), &lines(all), Some(&failure), state, at(30))
    };
    let done = is_done(RESTORE, json!({"left": [old]}));
    let lost = json!({PLACED: true, "left": [old]});
    let lost = Event::Failed { step: RESTORE.into(), code: "E-PG".into(), why: "so".into(), hint: None, facts: lost };
    for (step, state, events) in [
        // Behind the restore, just when names were exchanged, and when the server went away with its answer.
        (START, State::Abandoned, vec![(3, done), (4, begins(START)), (5, given_up(START))]),
        (RESTORE, State::Abandoned, vec![(3, given_up(RESTORE)), undone(true, json!([old]))]),
        (RESTORE, State::Halted, vec![(3, lost)]),
    ] {
        let report = made(step, state, events);
        assert!(report.in_place && !report.restored, "{report:?}");
        let wanted = format!("restored, and the service is NOT back ({})", state.as_str());
        assert!(report.summary().contains(&wanted) && !report.summary().contains("NOT restored"), "{report:?}");
        let left = report.left.join("\n");
        assert!(left.contains(old) && left.contains("back when the application is started"), "{report:?}");
        assert!(to_markdown(&report).contains("objective 1h 0m met"), "{}", to_markdown(&report));
        let said = to_markdown(&report).contains("The restored database is in its place");
        assert_eq!(said, state == State::Abandoned, "{}", to_markdown(&report));
    }
    let report = made(RESTORE, State::Abandoned, vec![(3, given_up(RESTORE)), undone(false, json!([]))]);
    assert!(!report.in_place && report.summary().contains("NOT restored (abandoned)"), "{report:?}");
    assert!(report.left.is_empty() && to_markdown(&report).contains("nothing was restored"), "{report:?}");
}

#[test]
fn a_cluster_that_was_not_adopted_is_said_to_archive_nothing() {
    let failure = Failure { step: SMOKE.into(), code: "E-PROBE".into(), why: "so".into(), hint: None };
    let made = |in_place: bool, state: State, more: Vec<(i64, Event)>| {
        let mut opening = Opening { kind: "physical".into(), database: None, ..opening() };
        let steps = [(FENCE, true), (ASIDE, in_place), (REPLAY, true), (ADOPT, true)];
        let steps = steps.into_iter().filter(|(_, is_there)| *is_there);
        opening.steps.extend(steps.map(|(name, _)| Planned { name: name.into(), what: name.into() }));
        let ran = json!({"seen": {"state": "running", "detail": "", "identity": null}});
        let mut all = vec![
            (1, Event::Begins { step: FENCE.into(), facts: ran }),
            (2, is_done(FENCE, json!({"fenced": true}))),
            (3, is_done(CHOOSE, json!({"recovery_point": at(0)}))),
        ];
        all.extend(in_place.then(|| (4, is_done(ASIDE, Value::Null))));
        all.extend([(5, is_done(REPLAY, json!({HELD: "switch it on"}))), (6, failed(SMOKE, "E-PROBE"))]);
        Report::made(&opening, &lines([all, more].concat()), Some(&failure), state, at(30))
    };
    let says = |list: &[String], what: &str| list.iter().any(|line| line.contains(what));
    let report = made(true, State::NotStarted, vec![]);
    assert!(says(&report.warnings, "ARCHIVING IS OFF") && says(&report.left, "switch it on"), "{report:?}");
    assert!(report.summary().contains("restored, and the service is NOT back (not_started)"), "{}", report.summary());
    assert!(!says(&report.left, "stays stopped") && to_markdown(&report).contains("objective 1h 0m met"));
    assert!(says(&report.left, "the service is back when the server is started"), "{report:?}");
    // Given up, what is right stays where it is: it is not said to be lost.
    let report = made(true, State::Abandoned, vec![]);
    assert!(report.summary().contains("restored, and the service is NOT back (abandoned)"), "{}", report.summary());
    assert!(to_markdown(&report).contains("The recovered cluster is in its place"), "{}", to_markdown(&report));
    let runs = made(true, State::Abandoned, vec![(7, is_done(SERVE, Value::Null))]);
    assert!(says(&runs.left, "when the application is started"), "{runs:?}");
    // Only adopting it was left.
    let mut given_up = runs.clone();
    given_up.failure = Some(Failure { step: ADOPT.into(), code: ABANDONED.into(), why: "so".into(), hint: None });
    assert!(given_up.summary().contains("restored, and not adopted (abandoned)"), "{}", given_up.summary());
    assert!(to_markdown(&given_up).contains("when the service was back"), "{}", to_markdown(&given_up));
    // What was there before is back, and archives.
    let back = Event::Undone { step: ASIDE.into(), facts: Value::Null };
    let report = made(true, State::Halted, vec![(7, back)]);
    assert!(!says(&report.warnings, "ARCHIVING") && !says(&report.left, "switch it on"), "{report:?}");
    // A new instance that nobody uses; the old one is down.
    let report = made(false, State::Halted, vec![]);
    assert!(!says(&report.warnings, "ARCHIVING") && says(&report.left, "switch it on"), "{report:?}");
    assert!(says(&report.left, "stays stopped"), "{report:?}");
    assert!(to_markdown(&report).contains("nothing was restored"), "{}", to_markdown(&report));
    // One that was not found right is not to be made to archive.
    let mut opening = Opening { kind: "physical".into(), database: None, ..opening() };
    opening.steps.push(Planned { name: VALIDATE.into(), what: VALIDATE.into() });
    let lines = lines(vec![(5, is_done(REPLAY, json!({HELD: "switch it on"}))), (6, failed(VALIDATE, "E-DIFFERS"))]);
    let report = Report::made(&opening, &lines, Some(&failure), State::Halted, at(30));
    assert!(!says(&report.left, "switch it on"), "{report:?}");
}

use pgark_testkit::Scratch;

use super::*;
use crate::alert::{Level, Sink, SinkKind, Which};

fn sink(name: &str, program: &str, least: Severity) -> Sink {
    let kind = SinkKind::Command { argv: vec![program.to_owned()], hidden: vec![] };
    Sink { name: name.to_owned(), kind, least, timeout: Duration::from_secs(20), ca_file: None }
}

/// Two who are told at once, of whom one wants critical things alone, and one who is told an hour later.
fn routing() -> Routing {
    let level = |after, sinks: &[&str]| Level {
        after: Duration::from_secs(after),
        sinks: sinks.iter().map(|s| (*s).to_owned()).collect(),
    };
    Routing {
        sinks: vec![
            sink("all", "true", Severity::Info),
            sink("grave", "true", Severity::Critical),
            sink("late", "true", Severity::Info),
        ],
        levels: vec![level(0, &["all", "grave"]), level(3600, &["late"])],
        remind_every: Some(Duration::from_secs(24 * 3600)),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_787_000_000 + second).expect("a time")
}

fn finding(severity: Severity) -> Finding {
    Finding {
        key: "main/x".into(),
        rule: "x".into(),
        cluster: "main".into(),
        severity,
        summary: "it is so".into(),
        details: [].into(),
    }
}

/// Who is told what, in order.
fn said(alert: &Alert) -> Vec<(&str, Said)> {
    alert.deliveries.iter().map(|d| (d.sink.as_str(), d.said)).collect()
}

fn only(book: &Book) -> Alert {
    let mut all = book.all().expect("readable");
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn the_same_trouble_is_told_once_and_its_end_to_those_who_know() {
    let scratch = Scratch::new("book");
    let (book, routing) = (Book::at(scratch.path()), routing());
    let Raised::New(id) = book.raise(&finding(Severity::Warning), &routing, at(0)).expect("raised") else {
        panic!("it is new");
    };
    let again = book.raise(&finding(Severity::Warning), &routing, at(60)).expect("raised");
    assert_eq!(again, Raised::Known(id.clone(), false));
    assert_eq!((said(&only(&book)), only(&book).count), (vec![("all", Said::Firing)], 2));
    // Worse: told to those who were not told of less, and to the others again once they have heard of the first.
    assert_eq!(book.deliver(&routing, Which::All, Duration::from_secs(60)).expect("told").delivered, 1);
    book.acknowledge(&id, "me", at(90)).expect("acknowledged");
    let worse = book.raise(&finding(Severity::Critical), &routing, at(120)).expect("raised");
    assert_eq!(worse, Raised::Known(id.clone(), true));
    let expected =
        vec![("all", Said::Firing), ("all", Said::Acknowledged), ("all", Said::Firing), ("grave", Said::Firing)];
    assert_eq!((said(&only(&book)), only(&book).acknowledged), (expected, None), "nobody looks after the worse");
    assert!(book.resolve("main/x", at(180)).expect("resolved"));
    assert!(!book.resolve("main/x", at(181)).expect("none"), "once");
    let ended = only(&book);
    assert_eq!(said(&ended)[4..], [("all", Said::Resolved), ("grave", Said::Resolved)]);
    let told = book.deliver(&routing, Which::All, Duration::from_secs(60)).expect("told");
    assert_eq!((told.delivered, told.waiting), (5, 0));
    assert!(book.all().expect("readable").is_empty());
    assert_eq!(book.history().expect("readable")[0].id, id);
    // The same once more is another alert.
    assert!(matches!(book.raise(&finding(Severity::Info), &routing, at(200)), Ok(Raised::New(other)) if other != id));
}

#[test]
fn others_are_told_later_unless_somebody_looks_after_it() {
    let scratch = Scratch::new("escalation");
    let (book, routing) = (Book::at(scratch.path()), routing());
    book.raise(&finding(Severity::Critical), &routing, at(0)).expect("raised");
    assert_eq!(book.escalate(&routing, at(3599)).expect("looked"), 0);
    assert_eq!(book.escalate(&routing, at(3600)).expect("looked"), 1);
    assert_eq!(book.escalate(&routing, at(3601)).expect("looked"), 0);
    assert_eq!(said(&only(&book))[2..], [("late", Said::Firing)]);
    book.deliver(&routing, Which::All, Duration::from_secs(60)).expect("told");
    // All of them are reminded after a day, and not of what somebody looks after.
    assert_eq!(book.escalate(&routing, at(24 * 3600)).expect("looked"), 1);
    assert_eq!(only(&book).deliveries.len(), 6);
    book.acknowledge(&only(&book).id, "me", at(24 * 3600 + 1)).expect("acknowledged");
    assert_eq!(book.escalate(&routing, at(72 * 3600)).expect("looked"), 0);
    // It is over, and comes back: nobody looks after that one, and others are told of it again.
    assert!(book.resolve("main/x", at(73 * 3600)).expect("resolved"));
    book.raise(&finding(Severity::Critical), &routing, at(74 * 3600)).expect("raised");
    let back = book.all().expect("readable").into_iter().find(Alert::is_open).expect("open");
    assert_eq!((back.acknowledged, back.level), (None, 0));
    assert_eq!(book.escalate(&routing, at(75 * 3600)).expect("looked"), 1);
}

#[test]
fn who_fails_is_tried_again_in_order_and_given_up_in_the_end() {
    let scratch = Scratch::new("retries");
    let (book, mut routing) = (Book::at(scratch.path()), routing());
    routing.sinks[0] = sink("all", "false", Severity::Info);
    book.raise(&finding(Severity::Info), &routing, Timestamp::now()).expect("raised");
    book.resolve("main/x", Timestamp::now()).expect("resolved");
    let tries = |which| book.deliver(&routing, which, Duration::from_secs(60)).expect("tried");
    let first = tries(Which::Due);
    assert_eq!((first.delivered, first.failed.len(), first.waiting), (0, 1, 2), "the end waits for the beginning");
    assert!(tries(Which::Due).failed.is_empty(), "not at once");
    assert_eq!(tries(Which::All).failed.len(), 1);
    let alert = only(&book);
    assert_eq!((alert.deliveries[0].attempts, alert.deliveries[1].attempts), (2, 0));
    assert!(alert.deliveries[0].next > Timestamp::now());
    // Long ago.
    let old = Timestamp::now().checked_sub(SignedDuration::from_hours(24 * 4)).expect("a time");
    book.change(&alert.id, |a| a.deliveries.iter_mut().for_each(|d| d.created = old)).expect("changed");
    assert_eq!((tries(Which::All).given_up, tries(Which::All).given_up), (1, 1));
    assert!(book.all().expect("readable").is_empty() && book.history().expect("readable").len() == 1);
}

#[test]
fn many_at_once_make_one_alert_and_a_damaged_file_stops_no_other() {
    let scratch = Scratch::new("races");
    let routing = routing();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (routing, path) = (&routing, scratch.path());
            scope.spawn(move || Book::at(path).raise(&finding(Severity::Warning), routing, at(n)).expect("raised"));
        }
    });
    let book = Book::at(scratch.path());
    assert_eq!((only(&book).count, only(&book).waiting()), (8, 1));
    let held = book.telling().expect("free");
    assert!(matches!(book.deliver(&routing, Which::All, Duration::from_secs(1)), Err(AlertError::Busy)));
    drop(held);
    fs::write(scratch.path().join("alerts/open/x.json"), "{").expect("written");
    assert_eq!(only(&book).count, 8, "the others are told");
    assert!(scratch.path().join("alerts/open/x.damaged").exists());
}

//! Reports and the audit trail grow old by the newest backup, and go after six years.

use pgark_engine::reports;
use pgark_repo::audit::{self, Event, Journal, JournalName, What, Who};
use pgark_repo::report::{self, NewReport, ReportId, Severity, StoredReport};

use super::*;

fn stored(repo: &Repository, at: Timestamp) -> ReportId {
    let new = NewReport {
        what: "restore",
        severity: Severity::Incident,
        backup: Some(backup_id(1)),
        database: Some("app".into()),
        summary: "'app' is NOT what was backed up".into(),
        report: serde_json::json!({"schema": 1}),
    };
    StoredReport::store(repo, &cluster(), new, at).unwrap().id
}

#[test]
fn reports_go_when_they_are_six_years_older_than_the_newest_backup() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let before = |days: i64| sample::at(i64::from(BACKUPS) * DAY - days * DAY);
    let (old, young) = (stored(&repo, before(2193)), stored(&repo, before(2191)));
    assert_eq!(report::list(&repo, &cluster()).unwrap(), [old.clone(), young.clone()]);
    // A plan alone removes none of them.
    expire::plan(&at_once(), &repo, &evening()).unwrap();
    assert_eq!(report::list(&repo, &cluster()).unwrap().len(), 2);
    expire_now(&store, &evening()).unwrap();
    assert_eq!(report::list(&repo, &cluster()).unwrap(), std::slice::from_ref(&young));
    // Ten years without a backup make nothing older, even when somebody says that the clock is right.
    let later = at_time(i64::from(BACKUPS) * DAY + 3650 * DAY);
    let options = ExpireOptions { gap: Gap::Accept, ..at_once() };
    let plan = expire::plan(&options, &repo, &later).unwrap();
    expire::run(&options, &plan, &repo, &later).unwrap();
    let found = reports::load(&repo, &cluster(), None).unwrap();
    assert_eq!((found.id, found.severity), (young, Severity::Incident));
    assert_eq!(reports::load(&repo, &cluster(), Some(&old)).unwrap_err().code(), "E-REPORT-NONE");
}

#[test]
fn the_audit_trail_is_shortened_from_its_beginning_and_says_so() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let before = |days: i64| sample::at(i64::from(BACKUPS) * DAY - days * DAY);
    let journals = [JournalName::Repository, JournalName::Cluster(cluster())];
    for name in &journals {
        let journal = Journal::new(&repo, name.clone());
        // The last of them waited on some host: what lies before a young one stays in its place.
        for days in [2200, 2193, 2191, 2199] {
            let what = What::Attempt { command: "backup".into(), arguments: vec![] };
            journal.append(&Event::new(before(days), None, Who::default(), what).unwrap(), None).unwrap();
        }
    }
    let told = |name: &JournalName| {
        let checked = audit::check(&Journal::new(&repo, name.clone()), &[], &mut |_| Ok(())).unwrap();
        assert!(checked.faults.is_empty(), "{:?}", checked.faults);
        (checked.first, checked.records)
    };
    expire::plan(&at_once(), &repo, &evening()).unwrap();
    assert_eq!(journals.each_ref().map(told), [(1, 4), (1, 4)], "a plan removes none");
    expire_now(&store, &evening()).unwrap();
    assert_eq!(journals.each_ref().map(told), [(3, 3), (3, 3)]);
    expire_now(&store, &evening()).unwrap();
    assert_eq!(journals.each_ref().map(told), [(3, 3), (3, 3)], "once is enough");
    // One more than what was removed by age is missing.
    Journal::new(&repo, journals[1].clone()).remove(3).unwrap();
    let checked = audit::check(&Journal::new(&repo, journals[1].clone()), &[], &mut |_| Ok(())).unwrap();
    assert_eq!(checked.faults.len(), 1, "{:?}", checked.faults);
}

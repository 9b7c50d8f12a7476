//! Reports grow old by the newest backup, and go after six years.

use pgark_engine::reports;
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

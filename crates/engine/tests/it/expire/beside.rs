//! Beside backups, restores and people who change marks.

use pgark_engine::keep::{Change, Mark, mark};
use pgark_engine::{Ctx, delete, expire};
use pgark_repo::catalog::{CLAIM_TTL_SECONDS, CatalogStore, Evidence, JobKind, Needs, WalNeed};
use pgark_repo::{RepoError, Repository};

use super::*;

#[test]
fn a_backup_that_was_taken_for_dead_cannot_commit_what_expired_meanwhile() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let began = i64::from(BACKUPS) * DAY;
    let needs = Needs { base: Some(backup_id(1)), wal: None };
    let sleeper = catalog.claim_with(JobKind::Backup, &backup_id(9), needs, sample::at(began)).unwrap();
    let (mut entry, _) = sample::write_backup(&repo, &backup_id(9)).unwrap();
    complete(&mut entry, 1);

    // While it is alive, what it builds on stays.
    let plan = expire_now(&store, &at_time(began + 10)).unwrap();
    assert_eq!(plan.going().map(|f| f.entry.id.clone()).collect::<Vec<_>>(), ids([2, 3]));
    // Then it is taken for dead, and everything goes.
    expire_now(&store, &at_time(began + CLAIM_TTL_SECONDS + 11)).unwrap();
    assert_eq!(listed(&store), ids([4, 5]));
    assert!(matches!(sleeper.commit_backup(&entry), Err(RepoError::Fenced { .. })));
}

#[test]
fn wal_of_a_running_backup_stays_and_one_whose_wal_expired_is_not_committed() {
    let template = Template::new();
    for told in [true, false] {
        let store = template.fresh();
        let repo = open(&store);
        let catalog = CatalogStore::new(&repo, &cluster());
        let claim = catalog.claim(JobKind::Backup, &backup_id(9), evening().now()).unwrap();
        let (mut entry, _) = sample::write_backup(&repo, &backup_id(9)).unwrap();
        // As one of a standby may, it starts before the newest backup.
        complete(&mut entry, 2);
        entry.id = backup_id(9);
        if told {
            let (system_id, from) = (sample::SYSTEM, entry.as_physical().unwrap().lsn_start);
            claim.need_wal(WalNeed { system_id, timeline: timeline(1), from, to: None }).unwrap();
        }
        expire_now(&store, &evening()).unwrap();
        let first = archived(&store)[0].0;
        if told {
            assert_eq!(first, segment_of(2));
            claim.commit_backup(&entry).unwrap();
            everything_listed_is_whole(&store, &template.trees, "with the new one");
        } else {
            assert_eq!(first, segment_of(4));
            assert!(matches!(claim.commit_backup(&entry), Err(RepoError::Expired { .. })));
        }
    }
}

#[test]
fn what_a_restore_reads_stays_until_it_ends() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let ctx = evening();
    let plan = expire::plan(&at_once(), &repo, &ctx).unwrap();
    let wal = WalNeed {
        system_id: sample::SYSTEM,
        timeline: timeline(1),
        from: Lsn((segment_of(1) << 20) + 0x28),
        to: Some(Lsn(segment_of(2) << 20)),
    };
    let needs = Needs { base: None, wal: Some(wal) };
    let restore = catalog.claim_with(JobKind::Restore, &backup_id(1), needs, ctx.now()).unwrap();
    // The plan was made before: it is refused as a whole.
    let late = expire::run(&at_once(), &plan, &repo, &ctx).unwrap_err();
    assert_eq!(late.code(), "E-LOCKED", "{late}");
    assert_eq!(listed(&store), ids(1..=5));
    expire_now(&store, &ctx).unwrap();
    assert_eq!(listed(&store), ids([1, 4, 5]));
    assert_eq!(archived(&store)[0].0, segment_of(1));
    everything_listed_is_whole(&store, &template.trees, "beside a restore");
    restore.release().unwrap();
    expire_now(&store, &ctx).unwrap();
    settled(&store, "after the restore");
}

/// Changes something that a plan rests on.
type Changing<'a> = &'a dyn Fn(&Repository, &Ctx);

#[test]
fn what_changed_since_the_plan_stops_the_run() {
    let template = Template::new();
    let changes: [Changing<'_>; 3] = [
        &|repo, ctx| drop(mark(repo, &cluster(), &backup_id(2), &Mark::Keep, Change::Make, ctx).unwrap()),
        &|repo, ctx| {
            let plan = delete::plan(repo, &cluster(), &backup_id(5), delete::LastBackup::Refuse, ctx).unwrap();
            delete::run(repo, &cluster(), &plan, ctx).unwrap();
        },
        &|repo, _| {
            let catalog = CatalogStore::new(repo, &cluster());
            let proven = catalog.update(|c| {
                c.backups[1].evidence = Evidence::Replayed;
                Ok(Some(()))
            });
            proven.unwrap().unwrap();
        },
    ];
    for change in changes {
        let store = template.fresh();
        let (repo, ctx) = (open(&store), evening());
        let plan = expire::plan(&at_once(), &repo, &ctx).unwrap();
        change(&repo, &ctx);
        let before = listed(&store);
        let refused = expire::run(&at_once(), &plan, &repo, &ctx).unwrap_err();
        assert_eq!(refused.code(), "E-LOCKED", "{refused}");
        assert_eq!(listed(&store), before);
        assert_eq!(archived(&store), [(2, LAST_SEGMENT)]);
    }
}

#[test]
fn a_legal_hold_is_lifted_by_its_reason_alone() {
    let template = Template::new();
    let store = template.fresh();
    let (repo, ctx) = (open(&store), evening());
    let id = backup_id(1);
    let set = |what: Mark| mark(&repo, &cluster(), &id, &what, Change::Make, &ctx);
    set(Mark::Hold("case 4711".into())).unwrap();
    set(Mark::Hold("case 4712".into())).unwrap();
    set(Mark::Keep).unwrap();
    assert_eq!(set(Mark::Unkeep).unwrap().holds.len(), 2);
    let refused = delete::plan(&repo, &cluster(), &id, delete::LastBackup::Refuse, &ctx).unwrap_err();
    assert_eq!(refused.code(), "E-BACKUP-HELD");
    expire_now(&store, &ctx).unwrap();
    assert_eq!(listed(&store), ids([1, 4, 5]));
    assert_eq!(set(Mark::LiftHold("case".into())).unwrap_err().code(), "E-HOLD-UNKNOWN");
    set(Mark::LiftHold("case 4711".into())).unwrap();
    expire_now(&store, &ctx).unwrap();
    assert_eq!(listed(&store), ids([1, 4, 5]), "the other hold is there");
    set(Mark::LiftHold("case 4712".into())).unwrap();
    expire_now(&store, &ctx).unwrap();
    settled(&store, "after the holds");
    let past = mark(&repo, &cluster(), &backup_id(5), &Mark::KeepUntil(day(1)), Change::Make, &ctx).unwrap_err();
    assert_eq!(past.code(), "E-KEEP-UNTIL");
}

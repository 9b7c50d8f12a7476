//! What becomes of WAL that has expired.

use std::time::Duration;

use pgark_engine::archive::get::{Fetched, GetOptions, get};
use pgark_engine::archive::{Archives, check_kept};
use pgark_engine::expire;
use pgark_engine::keep::{Change, Mark, mark};
use pgark_pg::wal::Changes;
use pgark_repo::RepoError;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::wal::SegmentData;

use super::*;

#[test]
fn expired_wal_is_never_the_end_of_the_archive() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    expire_now(&store, &evening()).unwrap();
    let dir = std::env::temp_dir().join(format!("pgark-engine-it-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let dest = dir.join("got");
    let archive = archive(&repo);
    let fetch = |n: u64| {
        let options =
            GetOptions { segment_size: segment_size(), planned_end: None, newest_timeline: None, prefetch: None };
        get(&Archives::one(&archive), &segment(n).format(segment_size()), &dest, &options)
    };
    assert_eq!(fetch(3).unwrap_err().code(), "E-WAL-EXPIRED");
    // A restore that was planned before is told once it has pinned its backup.
    let kept = |n: u64| check_kept(&repo, &cluster(), sample::SYSTEM, &[segment(n)], segment_size());
    assert_eq!(kept(3).unwrap_err().code(), "E-WAL-EXPIRED");
    kept(LAST_SEGMENT).unwrap();
    assert_eq!(fetch(LAST_SEGMENT).unwrap(), Fetched::Delivered);
    assert_eq!(fetch(LAST_SEGMENT + 1).unwrap(), Fetched::Absent);
    // A timeline of which everything has expired is still known.
    let number = CatalogStore::new(&repo, &cluster()).read().unwrap().fence + 1;
    let all = pgark_repo::wal::SegmentRange {
        timeline: timeline(1),
        first: segment(0).segment,
        last: segment(LAST_SEGMENT).segment,
    };
    archive.expire(number, &[all]).unwrap();
    assert_eq!(fetch(segment_of(5)).unwrap(), Fetched::Delivered, "it is there until it is removed");
    archive.expire(number + 1, &[all]).unwrap();
    assert_eq!(fetch(3).unwrap_err().code(), "E-WAL-EXPIRED");
    assert_eq!(fetch(LAST_SEGMENT + 1).unwrap(), Fetched::Absent);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_segment_that_expired_is_archived_again_under_another_name_and_other_wal_is_refused() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let options = options(last_two(), Duration::from_secs(86_400));
    let plan = expire::plan(&options, &repo, &evening()).unwrap();
    expire::run(&options, &plan, &repo, &evening()).unwrap();
    let archive = archive(&repo);
    let push = |n: u64, seed: u64| {
        let bytes = sample::wal_segment(&segment(n), seed);
        let index = sample::index_of(&segment(n), &bytes);
        let head = archive.head().unwrap();
        archive.push_segment_after(&head, &index, &Changes::default(), &mut SegmentData::Memory(&bytes))
    };
    // In its grace the old one is there to be compared with.
    assert!(matches!(push(3, 77), Err(RepoError::Conflict { .. })));
    let (_, copy) = push(3, 3).unwrap();
    assert_eq!(copy, 1);
    // Under the old name nobody is told that it is archived.
    assert!(matches!(archive.acknowledge(&[(segment(3), 0)]), Err(RepoError::Expired { .. })));
    archive.acknowledge(&[(segment(3), copy)]).unwrap();
    let ctx = at_time(i64::from(BACKUPS) * DAY + 2 * DAY);
    // It goes again with the next run, and with it both copies.
    let plan = expire::plan(&options, &repo, &ctx).unwrap();
    assert_eq!(plan.segments_going(), 1);
    expire::run(&options, &plan, &repo, &ctx).unwrap();
    assert_eq!(push(3, 3).unwrap().1, 2);
    archive.acknowledge(&[(segment(3), 2)]).unwrap();
    everything_listed_is_whole(&store, &template.trees, "archived twice again");
}

#[test]
fn what_would_be_lost_with_an_old_backup_ends_where_its_wal_does() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    mark(&repo, &cluster(), &backup_id(1), &Mark::Keep, Change::Make, &evening()).unwrap();
    let policy = || Policy { wal: Some(Duration::from_secs(86_400)), ..last_two() };
    let plan = expire::plan(&options(policy(), Duration::ZERO), &repo, &evening()).unwrap();
    expire::run(&options(policy(), Duration::ZERO), &plan, &repo, &evening()).unwrap();
    assert!(archived(&store).len() > 1, "the kept backup has its own WAL alone: {:?}", archived(&store));
    let plan = expire::plan(&options(policy(), Duration::ZERO), &repo, &evening()).unwrap();
    let old = plan.backups.iter().find(|f| f.entry.id == backup_id(1)).unwrap();
    let [window] = old.lost.as_slice() else { panic!("{:?}", old.lost) };
    assert_eq!(window.to_lsn, segment(segment_of(1)).segment.end(segment_size()));
    assert!(window.to_time.is_none_or(|to| to < day(2)), "it never reached {:?}", window.to_time);
}

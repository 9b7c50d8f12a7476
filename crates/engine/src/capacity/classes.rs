//! Which packs may leave for a class that is not read at once. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, Catalog};
use pgark_repo::names::BackupId;

/// Backups whose packs no young backup needs, nor what the next one may build upon: the newest backup and the newest full
/// one count as young whatever their age. An id may be of a backup that is not listed any more and whose packs are needed.
pub fn settled(catalog: &Catalog, older_than_days: u32, now: Timestamp) -> Vec<BackupId> {
    let limit = now.as_second().saturating_sub(i64::from(older_than_days) * 86_400);
    // Of each kind: the next one of a kind builds upon those.
    let of = |kind: BackupKind| catalog.backups.iter().filter(move |b| b.kind == kind);
    let always: Vec<&BackupEntry> = BackupKind::ALL
        .into_iter()
        .flat_map(|kind| {
            let newest = of(kind).max_by_key(|b| &b.id);
            let newest_full = of(kind).filter(|b| b.backup_type == BackupType::Full).max_by_key(|b| &b.id);
            [newest, newest_full]
        })
        .flatten()
        .collect();
    let is_young = |b: &BackupEntry| b.finished.as_second() > limit || always.iter().any(|a| a.id == b.id);
    let (young, old): (Vec<&BackupEntry>, Vec<&BackupEntry>) = catalog.backups.iter().partition(|b| is_young(b));
    let needed = ids(&young);
    ids(&old).difference(&needed).cloned().collect()
}

fn ids(backups: &[&BackupEntry]) -> BTreeSet<BackupId> {
    let of = |b: &&BackupEntry| {
        std::iter::once(b.id.clone()).chain(b.needs.iter().map(|n| n.backup.clone())).collect::<Vec<_>>()
    };
    backups.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use pgark_repo::catalog::PacksOf;

    use super::super::growth::tests::{self, NOW, at, backup, catalog};
    use super::*;

    fn full(days_ago: i64) -> BackupEntry {
        tests::full(days_ago, 1)
    }

    fn on(days_ago: i64, base: &BackupEntry) -> BackupEntry {
        let mut needs = base.needs.clone();
        needs.push(PacksOf { backup: base.id.clone(), packs: vec![(1, 1)] });
        BackupEntry { needs, ..backup(days_ago, 1, 0) }
    }

    #[test]
    fn what_a_young_backup_needs_is_not_settled_however_old_it_is() {
        let (old, older) = (full(200), full(400));
        let middle = on(150, &old);
        let young = on(1, &middle);
        let settled = |c: &[&BackupEntry]| settled(&catalog(c.iter().map(|b| (*b).clone()).collect()), 90, at(NOW));
        assert_eq!(settled(&[&older, &old, &middle, &young]).as_slice(), std::slice::from_ref(&older.id));
        let fresh = full(2);
        let all = settled(&[&older, &old, &middle, &fresh]);
        assert_eq!(all, [older.id.clone(), old.id.clone(), middle.id.clone()]);
    }

    #[test]
    fn the_newest_and_the_newest_full_backup_stay_when_backups_have_stopped() {
        let (a, b) = (full(400), full(300));
        let last = on(200, &a);
        let mut catalog = catalog(vec![a.clone(), b.clone(), last]);
        assert_eq!(settled(&catalog, 90, at(NOW)), []);
        catalog.backups.pop();
        assert_eq!(settled(&catalog, 90, at(NOW)), [a.id]);
    }

    #[test]
    fn packs_of_a_backup_that_is_not_listed_any_more_settle_with_who_needs_them() {
        let gone = full(500);
        let heir = on(400, &gone);
        let fresh = full(1);
        let found = settled(&catalog(vec![heir.clone(), fresh]), 90, at(NOW));
        assert_eq!(found, [gone.id, heir.id]);
    }
}

//! What an incremental backup has to read of each file, by what the WAL says has changed.
//!
//! Invariant: a page that is not read is, up to hint bits, the page that the earlier backup has. Only main forks are
//! ever taken over without being read: visibility and free space maps change without the WAL naming them.

use pgark_pg::page::PAGE_SIZE;
use pgark_pg::relpath::{Fork, RelSegment};
use pgark_pg::wal::{Changes, DatabaseDir};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilePlan {
    /// Read everything; what turns out to be the same is not stored again.
    Whole,
    /// Read these blocks of the file, ascending; the others are those of the earlier backup. The file may have become
    /// shorter.
    Blocks(Vec<u32>),
    /// Read nothing: same length, no block changed.
    Unchanged,
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug)]
pub struct FileFacts<'a> {
    pub relation: Option<&'a RelSegment>,
    pub size: u64,
    /// In the earlier backup, if the file is in it.
    pub size_before: Option<u64>,
}

/// Above this share of changed blocks the whole file is read.
const MOSTLY_CHANGED_PERCENT: usize = 90;

pub fn plan_file(facts: &FileFacts<'_>, changes: &Changes, relation_segment_blocks: u32) -> FilePlan {
    let (Some(relation), Some(before)) = (facts.relation, facts.size_before) else { return FilePlan::Whole };
    let page = PAGE_SIZE as u64;
    let whole_pages = facts.size.is_multiple_of(page) && before.is_multiple_of(page);
    let blocks = |bytes: u64| u32::try_from(bytes / page).ok().filter(|n| *n <= relation_segment_blocks);
    let (Some(now), Some(before)) = (blocks(facts.size), blocks(before)) else { return FilePlan::Whole };
    let Some(first) = relation.segment.checked_mul(relation_segment_blocks) else { return FilePlan::Whole };
    let rel = relation.rel;
    let database = DatabaseDir { spc: rel.spc, db: rel.db };
    if rel.fork != Fork::Main || !whole_pages || now == 0 || changes.databases.contains(&database) {
        return FilePlan::Whole;
    }
    let changed = changes.relations.get(&rel);
    // From here on every block counts as changed: cut off and grown again, or never part of the earlier backup.
    let new_from = changed.and_then(|c| c.limit).map_or(before, |limit| limit.saturating_sub(first).min(before));
    if new_from == 0 {
        return FilePlan::Whole;
    }
    let kept = now.min(new_from);
    let mut list: Vec<u32> = changed
        .into_iter()
        .flat_map(|c| c.blocks.range(first..first.saturating_add(kept)))
        .map(|block| block - first)
        .collect();
    list.extend(kept..now);
    if list.len() * 100 > now as usize * MOSTLY_CHANGED_PERCENT {
        FilePlan::Whole
    } else if list.is_empty() && now == before {
        FilePlan::Unchanged
    } else {
        FilePlan::Blocks(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_pg::relpath::RelFork;
    use pgark_pg::wal::RelationChanges;
    use proptest::prelude::*;

    const SEGMENT: u32 = 16;
    const REL: RelFork = RelFork { spc: 1663, db: 5, rel: 77, fork: Fork::Main };

    /// A relation as a list of pages; each page is the number of the step that wrote it last.
    #[derive(Clone, Debug)]
    enum Step {
        Write(u32),
        Truncate(u32),
        /// Dropped, and its number given to a new relation.
        Recreate,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![8 => (0u32..60).prop_map(Step::Write), 2 => (0u32..60).prop_map(Step::Truncate), 1 => Just(Step::Recreate)]
    }

    fn replay(steps: &[Step], pages: &mut Vec<u32>, first_number: u32) -> RelationChanges {
        let mut changes = RelationChanges::default();
        let limit = |changes: &mut RelationChanges, n: u32| {
            changes.limit = Some(changes.limit.map_or(n, |l| l.min(n)));
            changes.blocks.remove_range(n..);
        };
        for (n, step) in steps.iter().enumerate() {
            match step {
                Step::Write(block) => {
                    // Extension fills the gap with pages that no record names.
                    let end = pages.len().max(*block as usize + 1);
                    pages.resize(end, 0);
                    pages[*block as usize] = first_number + n as u32;
                    changes.blocks.insert(*block);
                }
                Step::Truncate(block) => {
                    if (*block as usize) < pages.len() {
                        pages.truncate(*block as usize);
                        limit(&mut changes, *block);
                    }
                }
                Step::Recreate => {
                    pages.clear();
                    limit(&mut changes, 0);
                }
            }
        }
        changes
    }

    fn segment(pages: &[u32], number: u32) -> &[u32] {
        let from = (number * SEGMENT) as usize;
        pages.get(from..).map_or(&[], |rest| &rest[..rest.len().min(SEGMENT as usize)])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_not_read_is_what_was_there(before in proptest::collection::vec(step(), 0..40),
                                              after in proptest::collection::vec(step(), 0..40)) {
            let mut pages = vec![];
            replay(&before, &mut pages, 1);
            let old = pages.clone();
            let relation_changes = replay(&after, &mut pages, 1000);
            let changes = Changes { relations: [(REL, relation_changes)].into(), ..Changes::default() };
            for number in 0..4 {
                let (was, is) = (segment(&old, number), segment(&pages, number));
                let relation = RelSegment { rel: REL, segment: number };
                let bytes = |s: &[u32]| (s.len() * PAGE_SIZE) as u64;
                let facts = FileFacts { relation: Some(&relation), size: bytes(is), size_before: Some(bytes(was)) };
                match plan_file(&facts, &changes, SEGMENT) {
                    FilePlan::Whole => {}
                    FilePlan::Unchanged => prop_assert_eq!(was, is),
                    FilePlan::Blocks(list) => {
                        prop_assert!(list.windows(2).all(|w| w[0] < w[1]));
                        prop_assert!(list.iter().all(|b| (*b as usize) < is.len()));
                        for (n, page) in is.iter().enumerate().filter(|(n, _)| !list.contains(&(*n as u32))) {
                            prop_assert_eq!(was.get(n), Some(page), "block {} of file {}", n, number);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn everything_but_an_unchanged_main_fork_is_read_whole() {
        let changes = Changes { databases: [DatabaseDir { spc: 1663, db: 9 }].into(), ..Changes::default() };
        let plan = |rel: RelFork, size: u64, before: Option<u64>| {
            let relation = RelSegment { rel, segment: 0 };
            plan_file(&FileFacts { relation: Some(&relation), size, size_before: before }, &changes, 131_072)
        };
        assert_eq!(plan(REL, 81_920, Some(81_920)), FilePlan::Unchanged);
        assert_eq!(plan(REL, 73_728, Some(81_920)), FilePlan::Blocks(vec![]), "cut off by a vacuum of before the WAL");
        assert_eq!(plan(REL, 81_920, Some(73_728)), FilePlan::Blocks(vec![9]));
        for (rel, size, before) in [
            (REL, 81_920, None),
            (REL, 81_920, Some(0)),
            (REL, 0, Some(81_920)),
            (REL, 81_921, Some(81_920)),
            (REL, 81_920, Some(81_921)),
            (RelFork { fork: Fork::Vm, ..REL }, 8192, Some(8192)),
            (RelFork { fork: Fork::Fsm, ..REL }, 8192, Some(8192)),
            (RelFork { fork: Fork::Init, ..REL }, 8192, Some(8192)),
            (RelFork { db: 9, ..REL }, 8192, Some(8192)),
        ] {
            assert_eq!(plan(rel, size, before), FilePlan::Whole, "{rel:?} {size} {before:?}");
        }
        let other = FileFacts { relation: None, size: 8192, size_before: Some(8192) };
        assert_eq!(plan_file(&other, &changes, 131_072), FilePlan::Whole);
    }
}

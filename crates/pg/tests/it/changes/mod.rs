//! `Changes` beside two accounts of the same WAL that share no code with it: what PostgreSQL's own tools print of the
//! records, and which blocks of the files differ afterwards.
//!
//! At least 300,000 records of each major asked for; `PGARK_SWEEP=full` makes it a million.

mod files;
mod oracle;
mod walk;
mod workload;

use std::collections::BTreeMap;
use std::time::Instant;

use pgark_pg::{ControlFile, Fork, RelFork};
use pgark_testkit::{Scratch, Server, StopMode, TestCluster, majors_asked_for, skip};

use files::Files;
use oracle::{Oracle, Rel, Said, Tool};
use walk::Walked;

const RECORDS_MIN: usize = 300_000;
const RECORDS_MIN_FULL: usize = 1_000_000;

fn full_sweep() -> bool {
    std::env::var_os("PGARK_SWEEP").is_some_and(|value| value == "full")
}

#[test]
fn changes_are_what_postgresql_says_of_the_records_and_hold_every_block_that_differs() {
    let found: Result<Vec<_>, String> = majors_asked_for().into_iter().map(Server::of_major).collect();
    let servers = match found {
        Ok(servers) => servers,
        Err(why) => skip!("{why}"),
    };
    let (rounds, records_min) =
        if full_sweep() { (workload::ROUNDS_FULL, RECORDS_MIN_FULL) } else { (workload::ROUNDS, RECORDS_MIN) };
    for server in servers {
        check(&server, rounds, records_min);
    }
}

fn control(cluster: &TestCluster) -> ControlFile {
    ControlFile::parse(&std::fs::read(cluster.data_dir().join("global/pg_control")).unwrap()).unwrap()
}

fn check(server: &Server, rounds: u32, records_min: usize) {
    let started = Instant::now();
    let scratch = Scratch::new("chg");
    let mut cluster = workload::cluster(server, &scratch);
    workload::prepare(&cluster);
    cluster.stop(StopMode::Fast);
    let begin = control(&cluster).checkpoint;
    let before = Files::read(cluster.data_dir());

    cluster.start();
    let middle = workload::run(&cluster, rounds);
    let inexact = workload::first_blocks_changed_without_wal(&cluster);
    cluster.stop(StopMode::Fast);
    let control = control(&cluster);
    let after = Files::read(cluster.data_dir());
    let worked = started.elapsed();

    let walk = |from| walk::walk(&cluster.data_dir().join("pg_wal"), &control, from, control.checkpoint);
    let (walked, late) = (walk(begin), walk(middle));
    assert!(walked.records >= records_min, "the workload made {} records only", walked.records);
    assert!(walked.joined > 0 && walked.assembled > 0, "{} {}", walked.joined, walked.assembled);
    let differing = files::assert_covered(&before, &after, &walked.changes, &inexact);
    let mut compared = "no tool of this version here to ask";
    if let Some(tool) = Tool::of(&mut cluster) {
        let theirs = tool.ask(&cluster, begin, control.checkpoint);
        theirs.assert_seen_everything(server.major());
        assert_equal(server.major(), &walked, &theirs);
        // Here no record of a creation hides what the ends of the transactions say.
        let theirs = tool.ask(&cluster, middle, control.checkpoint);
        theirs.assert_seen(&["abort", "abort prepared", "commit prepared"]);
        assert_equal(server.major(), &late, &theirs);
        compared = "equal to what its tools say";
    }
    println!(
        "version {}: {} records in {} segments, {} relations, {} blocks, {} databases; {differing} blocks differ in \
         the files, all known; {compared}; {:.0} s, of which {:.0} s of workload",
        server.major(),
        walked.records,
        walked.segments,
        walked.changes.relations.len(),
        walked.changes.relations.values().map(|r| r.blocks.len()).sum::<u64>(),
        walked.changes.databases.len(),
        started.elapsed().as_secs_f64(),
        worked.as_secs_f64(),
    );
}

fn assert_equal(major: u32, walked: &Walked, theirs: &Oracle) {
    assert_eq!(walked.records, theirs.records, "version {major}: records");
    if let Some(difference) = first_difference(&as_said(walked), &theirs.relations) {
        panic!("version {major}: {difference}");
    }
    let databases: Vec<_> = walked.changes.databases.iter().map(|dir| (dir.spc, dir.db)).collect();
    assert_eq!(databases, theirs.databases.iter().copied().collect::<Vec<_>>(), "version {major}: databases");
    assert_differences_are_found(&theirs.relations);
}

fn as_said(walked: &Walked) -> BTreeMap<Rel, Said> {
    let of = |rel: &RelFork| {
        assert_eq!(rel.fork, Fork::Main);
        (rel.spc, rel.db, rel.rel)
    };
    let relations = walked.changes.relations.iter();
    relations.map(|(rel, c)| (of(rel), Said { limit: c.limit, blocks: c.blocks.iter().collect() })).collect()
}

/// The first relation, and the first block in it, of which the two say different things.
fn first_difference(ours: &BTreeMap<Rel, Said>, theirs: &BTreeMap<Rel, Said>) -> Option<String> {
    let mut relations: Vec<_> = ours.keys().chain(theirs.keys()).collect();
    relations.sort();
    let rel = relations.into_iter().find(|rel| ours.get(rel) != theirs.get(rel))?;
    let (our, their) = (ours.get(rel), theirs.get(rel));
    let none = Said::default();
    let blocks = |said: Option<&Said>| said.unwrap_or(&none).blocks.clone();
    let block = blocks(our).symmetric_difference(&blocks(their)).min().copied();
    let side = |said: Option<&Said>| match (said, block) {
        (None, _) => "does not name the relation".to_owned(),
        (Some(said), None) => format!("limit {:?}", said.limit),
        (Some(said), Some(block)) => {
            let has = if said.blocks.contains(&block) { "has" } else { "does not have" };
            format!("{has} the block, of {} in all; limit {:?}", said.blocks.len(), said.limit)
        }
    };
    let (spc, db, number) = rel;
    let block = block.map_or("no block".to_owned(), |block| format!("block {block}"));
    Some(format!("relation {spc}/{db}/{number}, {block}: Changes {}; PostgreSQL {}", side(our), side(their)))
}

/// Takes one block, one limit and one relation away, each of which has to be noticed.
fn assert_differences_are_found(whole: &BTreeMap<Rel, Said>) {
    let mut fewer = whole.clone();
    let said = fewer.values_mut().rfind(|said| !said.blocks.is_empty()).unwrap();
    let block = said.blocks.pop_last().unwrap();
    assert!(first_difference(&fewer, whole).unwrap().contains(&format!("block {block}: Changes does not have")));
    let mut unlimited = whole.clone();
    unlimited.values_mut().find(|said| said.limit.is_some()).unwrap().limit = None;
    assert!(first_difference(&unlimited, whole).unwrap().contains("Changes "));
    let mut shorter = whole.clone();
    shorter.pop_first().unwrap();
    assert!(first_difference(&shorter, whole).unwrap().contains("Changes does not name the relation"));
    assert_eq!(first_difference(whole, whole), None);
}

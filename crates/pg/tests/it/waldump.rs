//! What `pg_waldump` of the same major says about the same WAL.

use std::collections::BTreeMap;
use std::path::Path;

use pgark_pg::wal::TransactionEndKind;
use pgark_pg::{Lsn, PgTimestamp};

use super::chain::Chain;
use super::server::Server;

struct Line {
    bytes: usize,
    xid: u32,
    prev: Lsn,
    blocks: Vec<String>,
    end: Option<(TransactionEndKind, PgTimestamp)>,
}

/// The text between `before` and the next comma.
fn part<'a>(line: &'a str, before: &str) -> &'a str {
    let rest = line.split_once(before).unwrap_or_else(|| panic!("{before} in {line}")).1;
    rest.split(',').next().unwrap().trim()
}

fn parse(line: &str) -> (Lsn, Line) {
    let bytes = part(line, "len (rec/tot):").rsplit('/').next().unwrap().trim().parse().unwrap();
    let (_, desc) = line.split_once("desc: ").unwrap();
    let prev = line.split_once("prev ").unwrap().1.split([',', ' ']).next().unwrap();
    let blocks = desc.split("blkref #").skip(1).map(block);
    let parsed = Line {
        bytes,
        xid: part(line, "tx:").parse().unwrap(),
        prev: prev.parse().unwrap(),
        blocks: blocks.collect(),
        end: if line.starts_with("rmgr: Transaction") { transaction_end(desc) } else { None },
    };
    (part(line, "lsn: ").parse().unwrap(), parsed)
}

/// `0: rel 1663/5/1249 fork vm blk 0 FPW`
fn block(text: &str) -> String {
    let words: Vec<&str> = text.trim_end_matches([',', ' ', ';']).split_whitespace().collect();
    let after = |word: &str| words.iter().position(|w| *w == word).map(|at| words[at + 1].trim_end_matches(','));
    let fork = match after("fork") {
        None | Some("main") => "Main",
        Some("fsm") => "Fsm",
        Some("vm") => "Vm",
        Some("init") => "Init",
        Some(other) => panic!("{other}"),
    };
    let image = if words.contains(&"FPW") { " FPW" } else { "" };
    format!("{} {fork} {}{image}", after("rel").unwrap(), after("blk").unwrap())
}

/// `COMMIT 2026-03-01 12:00:00.123456 UTC; …`; the prepared kinds put the number before the time.
fn transaction_end(desc: &str) -> Option<(TransactionEndKind, PgTimestamp)> {
    let kind = match desc.split(' ').next()? {
        "COMMIT" => TransactionEndKind::Commit,
        "ABORT" => TransactionEndKind::Abort,
        "COMMIT_PREPARED" => TransactionEndKind::CommitPrepared,
        "ABORT_PREPARED" => TransactionEndKind::AbortPrepared,
        _ => return None,
    };
    let words: Vec<&str> = desc.split(' ').collect();
    let date = words.iter().position(|word| word.len() == 10 && word.as_bytes()[4] == b'-').unwrap();
    Some((kind, timestamp(words[date], words[date + 1])))
}

fn timestamp(date: &str, time: &str) -> PgTimestamp {
    let [year, month, day] = [0, 5, 8].map(|at| date[at..(at + if at == 0 { 4 } else { 2 })].parse::<i64>().unwrap());
    // Days since 2000-01-01 in the proleptic Gregorian calendar.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 730_425;
    let [hour, minute, second] = [0, 3, 6].map(|at| time[at..at + 2].parse::<i64>().unwrap());
    let micros: i64 = time[9..15].parse().unwrap();
    PgTimestamp(((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + micros)
}

/// Compares every record; returns how many there were.
pub fn assert_equal(server: &Server, pg_wal: &Path, chain: &Chain) -> usize {
    assert_eq!(timestamp("2000-03-01", "01:00:00.000001"), PgTimestamp((60 * 24 + 1) * 3_600_000_000 + 1));
    let first = chain.records.keys().next().unwrap();
    let output = server.as_owner(&server.bin("pg_waldump"), |command| {
        command.env("TZ", "UTC").arg("-p").arg(pg_wal).arg("-s").arg(first.to_string());
    });
    let text = String::from_utf8(output.stdout).unwrap();
    let dumped: BTreeMap<Lsn, Line> = text.lines().filter(|line| line.starts_with("rmgr: ")).map(parse).collect();
    assert_eq!(dumped.len(), chain.records.len());
    for ((start, line), (seen_start, seen)) in dumped.iter().zip(&chain.records) {
        assert_eq!((start, line.prev, line.bytes, line.xid), (seen_start, seen.prev, seen.bytes, seen.xid));
        let transaction = seen.transaction.map(|end| (end.kind, end.time));
        assert_eq!(line.end, transaction, "{start}");
        if seen.end.is_some() {
            assert_eq!(line.blocks, seen.blocks, "{start}");
        }
    }
    dumped.len()
}

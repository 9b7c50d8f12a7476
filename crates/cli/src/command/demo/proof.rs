//! The proof: the ledger against the recovered table, row by row, and the other tables against what was loaded.
//!
//! Every payment that was acknowledged was committed before the table was dropped: the DROP holds the table's
//! exclusive lock up to its own commit. So each of them must be back; one in doubt may be back; one that PostgreSQL
//! refused, and any the ledger never heard of, must not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgark_engine::cluster::Connection;
use serde::Serialize;

use super::load::Fingerprint;
use super::server::pg;
use super::writer::{Entry, Fate};
use crate::failure::Failure;

/// Differences that are spelled out.
const EXAMPLES_MAX: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRow {
    pub id: u64,
    pub content: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RowProof {
    /// Payments that PostgreSQL said were committed.
    pub acknowledged: u64,
    /// Rows in the recovered table.
    pub recovered: u64,
    /// Acknowledged payments that are back with the same content.
    pub identical: u64,
    pub missing: u64,
    pub different: u64,
    /// Rows of which the ledger knows nothing, rows twice, and rows that PostgreSQL had refused.
    pub unknown: u64,
    /// Back although no answer had come: right either way.
    pub in_doubt: u64,
    pub examples: Vec<String>,
    /// Between the last acknowledged payment and the newest recovered one; None when not one is back.
    #[serde(skip)]
    pub lost_time: Option<Duration>,
}

impl RowProof {
    pub fn holds(&self) -> bool {
        // A proof about nothing proves nothing.
        self.acknowledged > 0
            && self.identical == self.acknowledged
            && self.missing + self.different + self.unknown == 0
            && self.recovered == self.identical + self.in_doubt
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text);
        }
    }
}

pub fn recovered_rows(conn: &Connection) -> Result<Vec<FoundRow>, Failure> {
    let rows = conn.query("SELECT id, content FROM public.payments ORDER BY id", &[]).map_err(pg)?;
    let found = rows.iter().map(|row| {
        Ok(FoundRow { id: row.parse("id").map_err(pg)?, content: row.text("content").map_err(pg)?.to_owned() })
    });
    found.collect()
}

pub fn compare(ledger: &[Entry], found: &[FoundRow]) -> RowProof {
    let mut proof = RowProof { recovered: found.len() as u64, ..RowProof::default() };
    let known: BTreeMap<u64, &Entry> = ledger.iter().map(|e| (e.id, e)).collect();
    let mut seen = BTreeSet::new();
    let mut newest = None;
    for row in found {
        let entry = known.get(&row.id);
        if !seen.insert(row.id) {
            proof.unknown += 1;
            proof.example(format!("payment {} is there twice", row.id));
            continue;
        }
        match entry {
            None => {
                proof.unknown += 1;
                proof.example(format!("payment {} is not in the ledger", row.id));
            }
            Some(e) if e.fate == Fate::Refused => {
                proof.unknown += 1;
                proof.example(format!("payment {} had been refused", row.id));
            }
            Some(e) if e.content != row.content => {
                proof.different += 1;
                proof.example(format!("payment {} reads '{}' instead of '{}'", row.id, row.content, e.content));
            }
            Some(Entry { fate: Fate::Acknowledged(at), .. }) => {
                proof.identical += 1;
                newest = newest.max(Some(*at));
            }
            Some(_) => proof.in_doubt += 1,
        }
    }
    let acknowledged = ledger.iter().filter_map(|e| match e.fate {
        Fate::Acknowledged(at) => Some((e.id, at)),
        _ => None,
    });
    let mut last = None;
    for (id, at) in acknowledged {
        proof.acknowledged += 1;
        last = last.max(Some(at));
        if !seen.contains(&id) {
            proof.missing += 1;
            proof.example(format!("payment {id} is missing"));
        }
    }
    proof.lost_time = last.zip(newest).map(|(last, newest)| last.saturating_duration_since(newest));
    proof
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableProof {
    pub table: &'static str,
    pub rows: u64,
    pub identical: bool,
}

pub fn compare_tables(source: &[Fingerprint], recovered: &[Fingerprint]) -> Vec<TableProof> {
    let one = |s: &Fingerprint| TableProof {
        table: s.table,
        rows: s.rows,
        identical: s.rows > 0 && recovered.iter().any(|r| r == s),
    };
    source.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn ledger() -> Vec<Entry> {
        let start = Instant::now();
        let fate = |id| match id {
            1..=3 => Fate::Acknowledged(start + Duration::from_secs(id)),
            4 => Fate::InDoubt,
            _ => Fate::Refused,
        };
        (1..=5).map(|id| Entry { id, content: format!("content {id}"), fate: fate(id) }).collect()
    }

    fn rows(ids: &[u64]) -> Vec<FoundRow> {
        ids.iter().map(|id| FoundRow { id: *id, content: format!("content {id}") }).collect()
    }

    #[test]
    fn all_acknowledged_rows_are_a_proof_with_and_without_the_one_in_doubt() {
        let without = compare(&ledger(), &rows(&[1, 2, 3]));
        assert!(without.holds(), "{without:?}");
        assert_eq!((without.lost_time, without.in_doubt), (Some(Duration::ZERO), 0));
        let with = compare(&ledger(), &rows(&[1, 2, 3, 4]));
        assert!(with.holds(), "{with:?}");
        assert_eq!((with.identical, with.in_doubt), (3, 1));
    }

    #[test]
    fn a_missing_last_row_is_a_loss_and_is_timed() {
        let proof = compare(&ledger(), &rows(&[1, 2]));
        assert!(!proof.holds());
        assert_eq!((proof.missing, proof.lost_time), (1, Some(Duration::from_secs(1))));
        assert_eq!(proof.examples, ["payment 3 is missing"]);
        let nothing = compare(&ledger(), &[]);
        assert_eq!((nothing.holds(), nothing.missing, nothing.lost_time), (false, 3, None));
    }

    #[test]
    fn a_row_in_the_middle_counts_like_the_last() {
        let proof = compare(&ledger(), &rows(&[1, 3]));
        assert_eq!((proof.holds(), proof.missing, proof.lost_time), (false, 1, Some(Duration::ZERO)));
    }

    #[test]
    fn strangers_refused_rows_and_doubles_are_no_proof() {
        for (extra, what) in [(9, "not in the ledger"), (5, "refused"), (3, "twice")] {
            let proof = compare(&ledger(), &rows(&[1, 2, 3, extra]));
            assert_eq!((proof.holds(), proof.unknown, proof.missing), (false, 1, 0), "{what}");
            assert!(proof.examples.iter().all(|e| e.contains(what)), "{:?}", proof.examples);
        }
    }

    #[test]
    fn another_content_is_no_proof_even_when_the_count_is_right() {
        let mut found = rows(&[1, 2, 3]);
        found.iter_mut().filter(|r| r.id == 2).for_each(|r| r.content.push('x'));
        let proof = compare(&ledger(), &found);
        assert_eq!((proof.holds(), proof.different, proof.identical), (false, 1, 2));
    }

    #[test]
    fn an_empty_ledger_proves_nothing() {
        assert!(!compare(&[], &[]).holds());
    }

    #[test]
    fn tables_are_identical_only_with_rows_and_hash_the_same() {
        let print = |rows, hash: &str| Fingerprint { table: "orders", rows, hash: hash.into() };
        let same = |a: Fingerprint, b: &[Fingerprint]| compare_tables(&[a], b).iter().all(|t| t.identical);
        assert!(same(print(2, "a"), &[print(2, "a")]));
        assert!(!same(print(2, "a"), &[print(2, "b")]));
        assert!(!same(print(2, "a"), &[print(3, "a")]));
        assert!(!same(print(2, "a"), &[]));
        assert!(!same(print(0, "a"), &[print(0, "a")]), "an empty table shows nothing");
    }
}

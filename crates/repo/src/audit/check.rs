//! Whether a journal is whole: every number there, every record of the chain, nothing missing up to the heads that somebody
//! remembers. Reads all of it.

use std::collections::BTreeMap;

use super::{Head, Journal, What};
use crate::error::Result;
use crate::store::ObjectName;

/// What is wrong with a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Of the record it is about.
    pub number: u64,
    /// Something that is no record: what.
    pub strange: Option<ObjectName>,
    pub what: String,
}

#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Of the first record that is there; 0 when there is none.
    pub first: u64,
    /// The end; None for a journal without a record.
    pub head: Option<Head>,
    pub records: u64,
    pub bytes: u64,
    pub faults: Vec<Fault>,
    /// Of the remembered heads, those that are older than what is kept.
    pub heads_too_old: u64,
}

/// The chain as far as it was read.
#[derive(Default)]
struct Walk {
    checked: Checked,
    /// The record before, when it could be read.
    last: Option<Head>,
    /// By number, for remembered heads.
    hashes: BTreeMap<u64, (String, String)>,
    /// The newest removal by age: the first number that had to stay, and the hash before it.
    kept_from: Option<(u64, String)>,
    /// What the first record that is there says of the one before it.
    first_previous: Option<String>,
}

/// `known`: heads of this journal that were true once. `each` is called for every record that can be read, and may stop it all.
pub fn check(
    journal: &Journal<'_>,
    known: &[Head],
    each: &mut dyn FnMut(&super::Opened) -> Result<()>,
) -> Result<Checked> {
    let numbers = journal.numbers()?;
    let mut walk = Walk::default();
    walk.checked.first = numbers.first().copied().unwrap_or(0);
    let mut missing: Vec<(u64, u64)> = vec![];
    let mut expected = None;
    for &number in &numbers {
        let from = expected.unwrap_or(number);
        if from < number {
            missing.push((from, number - 1));
            walk.last = None;
        }
        expected = number.checked_add(1);
        match journal.read(number) {
            Ok(opened) => {
                walk.take(&opened);
                each(&opened)?;
            }
            Err(e) if e.is_damage() => walk.broken(number, e.to_string()),
            Err(e) => return Err(e),
        }
    }
    // What was removed by age, by one who said so, is not missing.
    let kept_from = walk.kept_from.as_ref().map_or(1, |(first, _)| *first);
    for (from, to) in missing {
        let from = from.max(kept_from);
        if from <= to {
            let which = if from == to { format!("record {from} is") } else { format!("records {from} to {to} are") };
            walk.fault(from, format!("{which} missing"));
        }
    }
    walk.beginning(kept_from);
    let mut known = known.to_vec();
    known.sort_by_key(|head| head.number);
    for head in known {
        walk.remembered(&head, kept_from);
    }
    for name in journal.strange()? {
        let what = format!("{name} is no record of this journal: somebody has put it there");
        walk.checked.faults.push(Fault { number: 0, strange: Some(name), what });
    }
    walk.checked.faults.sort_by_key(|fault| fault.number);
    Ok(walk.checked)
}

impl Walk {
    fn fault(&mut self, number: u64, what: impl Into<String>) {
        self.checked.faults.push(Fault { number, strange: None, what: what.into() });
    }

    fn broken(&mut self, number: u64, what: String) {
        self.fault(number, what);
        self.last = None;
        // Its hash stands in the next one.
        self.checked.records += 1;
    }

    fn take(&mut self, opened: &super::Opened) {
        let (record, head) = (&opened.record, opened.head());
        let number = record.number;
        if let Some(last) = &self.last {
            let (other_chain, other_hash) = (last.chain != record.chain, last.hash != record.previous);
            if other_chain {
                self.fault(number, format!("record {number} is of another chain than the one before it"));
            } else if other_hash {
                let before = number.saturating_sub(1);
                self.fault(
                    number,
                    format!("record {number} does not continue record {before}: one of them was exchanged"),
                );
            }
        }
        if number == self.checked.first {
            self.first_previous = Some(record.previous.clone());
        }
        if let What::Shortened { first, before } = &record.event.what
            && *first <= number
            && self.kept_from.as_ref().is_none_or(|(known, _)| first > known)
        {
            self.kept_from = Some((*first, before.clone()));
        }
        self.hashes.insert(number, (head.chain.clone(), head.hash.clone()));
        self.checked.records += 1;
        self.checked.bytes += opened.size;
        self.checked.head = Some(head.clone());
        self.last = Some(head);
    }

    fn beginning(&mut self, kept_from: u64) {
        let first = self.checked.first;
        if first > kept_from {
            let to = first - 1;
            let what =
                if kept_from == to { format!("record {to} is") } else { format!("records {kept_from} to {to} are") };
            self.fault(kept_from, format!("{what} missing"));
            return;
        }
        // Where it was shortened to the very record that is the first, that one continues what was removed.
        let before = match &self.kept_from {
            Some((from, before)) if *from == first => before.clone(),
            None if first == 1 => String::new(),
            _ => return,
        };
        if self.first_previous.as_ref().is_some_and(|previous| *previous != before) {
            self.fault(first, format!("record {first} does not continue what was before it"));
        }
    }

    fn remembered(&mut self, head: &Head, kept_from: u64) {
        let number = head.number;
        let end = self.checked.head.as_ref().map_or(0, |h| h.number);
        match self.hashes.get(&number) {
            Some((chain, hash)) if *chain == head.chain && *hash == head.hash => {}
            Some((chain, _)) if *chain != head.chain => {
                let what = format!("the journal was begun anew: record {number} is of another chain than it was");
                self.fault(number, what);
            }
            Some(_) => self.fault(number, format!("record {number} is not the one that was remembered")),
            None if number < kept_from => self.checked.heads_too_old += 1,
            None if number > end => {
                let from = end.saturating_add(1);
                let what = if from == number {
                    format!("record {number} is")
                } else {
                    format!("records {from} to {number} are")
                };
                self.fault(from, format!("the end is cut off: {what} missing"));
            }
            // Damaged or missing, and told as such.
            None => {}
        }
    }
}

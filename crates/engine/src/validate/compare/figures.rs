//! What is counted, hashed or read: rows, large objects, sequences.

use std::io::BufRead;

use super::words::{position, shown};
use super::{Comparison, Name};
use crate::truth::{LEFT, Object};

impl<R: BufRead> Comparison<R> {
    pub(super) fn rows(&mut self, recorded: &Object, live: &Object) {
        if recorded.says("relkind", "f") {
            return self.tally(Name::ForeignTables).left_out("their rows lie elsewhere");
        }
        if recorded.says("relkind", "m") && (is_left(recorded) || is_left(live)) {
            let reason = format!("{}: its owner's functions would run to count it", shown(live));
            return self.tally(Name::MaterializedViews).left_out(&reason);
        }
        let (before, now) = (recorded.fact("rows"), live.fact("rows"));
        let (before, now) = match (before, now) {
            (Some(before), Some(now)) => (before, now),
            _ => return self.unread(Name::Rows, recorded, live),
        };
        if before != now && self.expect.physical && recorded.says("persistence", "u") {
            return self.tally(Name::UnloggedTables).left_out("a physical backup does not hold them");
        }
        let hashes = |fact| (recorded.fact(fact), live.fact(fact));
        let others = matches!(hashes("hash"), (Some(a), Some(b)) if a != b) && self.contents_are_comparable();
        if recorded.says("relkind", "m") && !self.expect.physical && (before != now || others) {
            let reason = format!(
                "{}: computed anew when it was restored, with {} rows, and {} when it was backed up",
                shown(live),
                now.lossy(),
                before.lossy()
            );
            return self.tally(Name::MaterializedViews).left_out(&reason);
        }
        if before == now {
            self.tally(Name::Rows).ok();
        } else {
            let detail = format!("{}: {} rows, were {}", shown(live), now.lossy(), before.lossy());
            self.tally(Name::Rows).failed(detail);
        }
        if self.contents_are_comparable() {
            match (recorded.fact("hash"), live.fact("hash")) {
                (Some(a), Some(b)) if a == b => self.tally(Name::Contents).ok(),
                (Some(_), Some(_))
                    if !self.expect.physical && matches!(hashes("hash_given"), (Some(a), Some(b)) if a == b) =>
                {
                    let reason = format!(
                        "{}: its generated columns were computed anew when it was restored, and have other values; all others are the same",
                        shown(live)
                    );
                    self.tally(Name::GeneratedColumns).not_checked(&reason);
                }
                (None, _) | (_, None) if hashes("hash_given").0.is_some() && hashes("hash_given").1.is_some() => {
                    self.given(recorded, live);
                }
                (Some(_), Some(_)) => {
                    let what = if before == now { "other values in as many rows" } else { "other rows" };
                    self.tally(Name::Contents).failed(format!("{}: {what}", shown(live)));
                }
                _ => self.unread(Name::Contents, recorded, live),
            }
        }
    }

    /// Rows of which one side was told without the generated columns.
    fn given(&mut self, recorded: &Object, live: &Object) {
        let place = shown(live);
        if recorded.fact("hash_given") != live.fact("hash_given") {
            return self.tally(Name::Contents).failed(format!("{place}: other values or other rows"));
        }
        self.tally(Name::Contents).ok();
        let reason = format!("{place}: its generated columns are not read, all others are the same");
        self.tally(Name::GeneratedColumns).left_out(&reason);
    }

    /// One side has no figure. What only the live one lacks because reading it fails is a defect.
    pub(super) fn unread(&mut self, name: Name, recorded: &Object, live: &Object) {
        let place = shown(live);
        let reason = |side: &Object| side.fact("unread").map(|text| text.lossy().into_owned());
        match (reason(recorded), reason(live)) {
            (_, Some(why)) if live.says("unread_because", "failed") => {
                self.tally(name).failed(format!("{place} cannot be read: {why}"));
            }
            (_, Some(why)) => self.tally(name).not_checked(&format!("{place}: {why}")),
            (Some(why), None) => self.tally(name).not_checked(&format!("{place}: when the truth was taken: {why}")),
            // Views and partitioned tables have no rows of their own.
            (None, None)
                if NO_FIGURES.iter().all(|fact| recorded.fact(fact).is_none() && live.fact(fact).is_none()) => {}
            (None, None) => self.tally(name).not_checked(&format!("{place}: one side has no figure of it")),
        }
    }

    pub(super) fn large_objects(&mut self, recorded: &Object, live: &Object) {
        if self.contents_are_comparable() {
            match (recorded.fact("hash"), live.fact("hash")) {
                (Some(a), Some(b)) if a == b => self.tally(Name::LargeObjects).ok(),
                (Some(_), Some(_)) => self.tally(Name::LargeObjects).failed("their contents differ".into()),
                _ => self.unread(Name::LargeObjects, recorded, live),
            }
        } else if !recorded.says("count", "0") {
            self.tally(Name::LargeObjects).left_out("only counted: contents are not compared");
        }
    }

    /// A restored sequence may be further on than it was, since sequences go on while a snapshot stands still; never behind.
    pub(super) fn sequence(&mut self, recorded: &Object, live: &Object) {
        if is_left(recorded) || is_left(live) {
            let reason = format!("{}: never used, and where it stands is not read", shown(live));
            return self.tally(Name::SequenceValues).left_out(&reason);
        }
        let (before, now) = (position(recorded), position(live));
        let (Some(before), Some(now)) = (before, now) else { return self.unread(Name::SequenceValues, recorded, live) };
        if before.cycles && before.next != now.next {
            return self.tally(Name::SequenceValues).not_checked("a sequence that cycles stands elsewhere");
        }
        let behind = if before.increment < 0 { now.next > before.next } else { now.next < before.next };
        if behind {
            let detail = format!("{} would give {} next, {} was next", shown(live), now.next, before.next);
            self.tally(Name::SequenceValues).failed(detail);
        } else {
            self.tally(Name::SequenceValues).ok();
        }
    }

    pub(super) fn sequence_use(&mut self, recorded: Option<&Object>, live: &Object) {
        let place = shown(live);
        if live.fact("cycles").is_some() || live.fact("other_type").is_some() {
            return self
                .tally(Name::SequencesAhead)
                .left_out("sequences that cycle, or whose column is no whole number");
        }
        if let Some(why) = live.fact("unread").map(|text| text.lossy().into_owned()) {
            if is_left(live) {
                return self.tally(Name::SequencesAhead).left_out(&format!("{place}: {why}"));
            }
            return match live.says("unread_because", "failed") {
                true => self.tally(Name::SequencesAhead).failed(format!("{place}: its column cannot be read: {why}")),
                false => self.tally(Name::SequencesAhead).not_checked(&format!("{place}: {why}")),
            };
        }
        if live.says("behind", "no") {
            return self.tally(Name::SequencesAhead).ok();
        }
        let furthest = live.fact("furthest").map(|text| text.lossy().into_owned()).unwrap_or_default();
        let detail = format!("{place}: the column has {furthest} already, and the sequence would give it");
        if recorded.is_some_and(|r| r.says("behind", "yes")) {
            self.tally(Name::SequencesAhead).noted(format!("{detail}; so it was when the truth was taken"));
        } else {
            self.tally(Name::SequencesAhead).failed(detail);
        }
    }
}

fn is_left(side: &Object) -> bool {
    side.says("unread_because", LEFT)
}

/// Of what is counted, hashed or read.
const NO_FIGURES: [&str; 3] = ["rows", "hash", "last_value"];

//! The truth and a live database side by side: a merge of two sorted streams.
//!
//! Invariants: an object that one side has and the other has not is a failure; a fact that was not comparable is counted as not
//! checked. It knows what the facts mean, and no SQL.

mod figures;
mod name;
mod older;
mod words;

use std::collections::BTreeMap;
use std::io::BufRead;

use name::{Name, check_of, existence};
use words::{is_digest, said, shown, value};

use super::report::{Check, Tally};
use crate::cluster::{HIDDEN, NORMAL, ObjectKind, is_printed};
use crate::error::Result;
use crate::truth::{Header, Object, Place, Scope, Sink, Text, TruthReader};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectations {
    /// The database came from a physical backup, which does not hold the rows of unlogged tables, and holds those of extensions.
    pub physical: bool,
    pub contents: Contents,
    /// What of the dump was restored; None: all of it.
    pub scope: Option<Scope>,
    /// Settings or rights of the database that could not be restored, as was said already.
    pub settings_left: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// They are to be compared, and it is told when the truth has no hashes.
    Compared,
    /// They are compared where the truth has hashes: whoever had it taken chose.
    IfHashed,
    /// Left out by choice.
    LeftOut,
}

/// Takes the live objects in and compares them with the recorded ones, if there are any.
pub struct Comparison<R: BufRead> {
    recorded: Option<TruthReader<R>>,
    pending: Option<Object>,
    live: Option<Header>,
    expect: Expectations,
    tallies: BTreeMap<Name, Tally>,
}

impl<R: BufRead> Sink for Comparison<R> {
    fn begin(&mut self, header: &Header) -> Result<()> {
        self.live = Some(header.clone());
        self.announce_contents();
        self.announce_age();
        self.advance()
    }

    fn object(&mut self, live: Object) -> Result<()> {
        if self.recorded.is_none() {
            self.alone(&live);
            return Ok(());
        }
        while let Some(recorded) = self.pending.take() {
            match recorded.place().cmp(&live.place()) {
                std::cmp::Ordering::Less => {
                    self.missing(&recorded);
                    self.advance()?;
                }
                std::cmp::Ordering::Equal => {
                    self.both(&recorded, &live);
                    return self.advance();
                }
                std::cmp::Ordering::Greater => {
                    self.pending = Some(recorded);
                    break;
                }
            }
        }
        self.extra(&live);
        Ok(())
    }
}

impl<R: BufRead> Comparison<R> {
    pub fn new(recorded: Option<TruthReader<R>>, expect: Expectations) -> Self {
        Comparison { recorded, pending: None, live: None, expect, tallies: BTreeMap::new() }
    }

    /// After the last live object.
    pub fn finish(mut self) -> Result<(Option<Header>, Option<Header>, Vec<Check>)> {
        while let Some(recorded) = self.pending.take() {
            self.missing(&recorded);
            self.advance()?;
        }
        let against = self.recorded.as_ref().map(|r| r.header().clone());
        Ok((self.live, against, self.tallies.into_values().map(Tally::finish).collect()))
    }

    fn advance(&mut self) -> Result<()> {
        self.pending = match &mut self.recorded {
            Some(reader) => reader.next_object()?,
            None => None,
        };
        Ok(())
    }

    fn tally(&mut self, name: Name) -> &mut Tally {
        self.tallies.entry(name).or_insert_with(|| {
            let (words, kind) = name.words();
            Tally::new(words, kind)
        })
    }

    /// What cannot be compared at all is said once, not for each table.
    fn announce_contents(&mut self) {
        let Some(recorded) = self.recorded.as_ref().map(|r| r.header().hashed) else {
            for name in [Name::Rows, Name::Contents, Name::Definitions] {
                self.tally(name).left_out("there is no truth to compare with");
            }
            return;
        };
        if self.expect.contents == Contents::LeftOut {
            self.tally(Name::Contents).left_out("left out as asked for");
        } else if !recorded && self.expect.contents == Contents::IfHashed {
            self.tally(Name::Contents)
                .left_out("the backup was taken without hashes: rows are compared by their number");
        } else if !recorded {
            self.tally(Name::Contents).not_checked("the truth was taken without hashes");
        } else if let Some(why) = self.hashes_differ() {
            self.tally(Name::Contents).not_checked(why);
        }
    }

    fn hashes_differ(&self) -> Option<&'static str> {
        let (recorded, live) = (self.recorded.as_ref()?.header(), self.live.as_ref()?);
        if recorded.encoding != live.encoding {
            Some("the encoding differs, and with it every hash")
        } else if recorded.probe != live.probe {
            Some("the servers hash differently")
        } else {
            None
        }
    }

    fn contents_are_comparable(&self) -> bool {
        let hashed = |h: Option<&Header>| h.is_some_and(|h| h.hashed);
        hashed(self.recorded.as_ref().map(TruthReader::header))
            && hashed(self.live.as_ref())
            && self.hashes_differ().is_none()
    }

    fn majors_differ(&self) -> bool {
        let recorded = self.recorded.as_ref().map(|r| r.header().major());
        recorded.is_some_and(|major| self.live.as_ref().is_some_and(|live| live.major() != major))
    }

    fn missing(&mut self, recorded: &Object) {
        if !self.is_meant(recorded) {
            return;
        }
        if recorded.kind == ObjectKind::Index && recorded.says("valid", "no") && !self.expect.physical {
            let reason = format!("{}: it was not valid, and a dump leaves such out", shown(recorded));
            return self.tally(Name::InvalidIndexes).left_out(&reason);
        }
        if is_subscription(recorded) && recorded.fact(HIDDEN).is_some() && !self.expect.physical {
            let reason = format!("{}: pg_dump leaves them out unless a superuser runs it", shown(recorded));
            return self.tally(Name::Subscriptions).left_out(&reason);
        }
        let shown = shown(recorded);
        self.tally(existence(recorded)).failed(format!("{shown} is missing"));
    }

    /// Whether it was to be restored.
    fn is_meant(&mut self, recorded: &Object) -> bool {
        let place = self.expect.scope.as_ref().map_or(Place::Inside, |scope| scope.place(recorded));
        match place {
            Place::Inside => {}
            Place::Outside if self.has_its_table(recorded) && recorded.says("contype", "f") => {
                let reason = format!("{}: both of its tables would have to be restored", shown(recorded));
                self.tally(Name::NotRestored).left_out(&reason);
            }
            Place::Outside => self.tally(Name::NotRestored).left_out(NOT_RESTORED),
            Place::Unknown => {
                let reason = format!("{}: the dump writes its name in another encoding", shown(recorded));
                self.tally(existence(recorded)).not_checked(&reason);
            }
        }
        place == Place::Inside
    }

    fn has_its_table(&self, constraint: &Object) -> bool {
        let [schema, table, _] = constraint.name.as_slice() else { return false };
        self.expect.scope.as_ref().is_some_and(|scope| scope.has_relation(&schema.0, &table.0))
    }

    fn extra(&mut self, live: &Object) {
        if self.recorded.as_ref().is_some_and(|r| r.header().partial) {
            return self.tally(Name::NotRestored).left_out("the truth is of a part of the database");
        }
        if self.is_younger(live) {
            return;
        }
        let shown = shown(live);
        self.tally(existence(live)).failed(format!("{shown} is not in the truth"));
    }

    fn both(&mut self, recorded: &Object, live: &Object) {
        if !self.is_meant(recorded) {
            return;
        }
        let of_extension = recorded.fact("member_of").is_some() && live.fact("member_of") == recorded.fact("member_of");
        if of_extension && !self.expect.physical {
            if recorded.fact("rows").is_some() {
                self.tally(Name::ExtensionTables)
                    .left_out("a dump holds of the tables of extensions only what each extension says");
            }
            return;
        }
        self.tally(existence(recorded)).ok();
        let names: std::collections::BTreeSet<&String> = recorded.facts.keys().chain(live.facts.keys()).collect();
        for fact in names {
            if !SPECIAL.contains(&fact.as_str()) && !fact.starts_with(NORMAL) {
                self.fact(fact, recorded, live);
            }
        }
        match recorded.kind {
            ObjectKind::Relation if recorded.says("relkind", "S") => self.sequence(recorded, live),
            ObjectKind::Relation => self.rows(recorded, live),
            ObjectKind::SequenceUse => self.sequence_use(Some(recorded), live),
            ObjectKind::LargeObjects => self.large_objects(recorded, live),
            ObjectKind::Index => self.validity(Name::IndexValidity, "valid", "is not valid", Some(recorded), live),
            ObjectKind::Constraint => {
                self.validity(Name::ConstraintValidity, "validated", "is not validated", Some(recorded), live);
            }
            _ => {}
        }
    }

    fn fact(&mut self, fact: &str, recorded: &Object, live: &Object) {
        let check = check_of(recorded.kind, fact);
        if self.is_told_otherwise(recorded, fact) || has_no_toast(fact, recorded, live) {
            return;
        }
        let hidden = |side: &Object| side.fact(HIDDEN).is_some();
        if !ALWAYS_SEEN.contains(&fact) && (hidden(recorded) || hidden(live)) {
            let reason = format!("{}: only a superuser sees its options", shown(live));
            return self.tally(check).not_checked(&reason);
        }
        if fact == "enabled" && is_subscription(recorded) {
            return self.switched_on(recorded, live);
        }
        let normal = format!("{NORMAL}{fact}");
        // The same text, or texts of which the one is what PostgreSQL makes of the other when a dump is loaded.
        let same = recorded.fact(fact) == live.fact(fact)
            || recorded.fact(&normal).is_some() && recorded.fact(&normal) == live.fact(&normal);
        if !same && self.majors_differ() {
            if is_printed(fact) {
                return self.tally(check).not_checked("two major versions of PostgreSQL, which print it differently");
            }
            let public = recorded.kind == ObjectKind::Schema && recorded.name == [Text::from("public")];
            if public {
                return self.tally(check).not_checked("schema public belongs to others from PostgreSQL 15 on");
            }
        }
        if same {
            return self.tally(check).ok();
        }
        if self.expect.scope.as_ref().is_some_and(|scope| scope.is_spare(recorded)) {
            let reason = format!("{}: {} is not part of the selection", shown(live), said(fact));
            return self.tally(check).left_out(&reason);
        }
        if recorded.kind == ObjectKind::Other && fact == "locale" && is_of_old_form(recorded, live) {
            let reason =
                format!("{}: its locale is in ICU's older form, which PostgreSQL 16 and newer rewrite", shown(live));
            return self.tally(check).not_checked(&reason);
        }
        if self.has_other_order(recorded, fact) {
            let reason = format!(
                "{}: the truth was taken by an earlier version, which kept options in the order in which they were given",
                shown(live)
            );
            return self.tally(check).not_checked(&reason);
        }
        if recorded.kind == ObjectKind::Database && self.expect.settings_left {
            return self.tally(check).not_checked("not all settings and rights of the database could be restored");
        }
        let detail = if is_digest(fact) {
            format!("{}: {} differs", shown(live), said(fact))
        } else {
            format!("{}: {} is {}, was {}", shown(live), said(fact), value(fact, live), value(fact, recorded))
        };
        self.tally(check).failed(detail);
    }

    /// A dump leaves subscriptions switched off: two databases that receive by one slot would rob each other.
    fn switched_on(&mut self, recorded: &Object, live: &Object) {
        let (was, is) = (recorded.says("enabled", "yes"), live.says("enabled", "yes"));
        if was == is {
            self.tally(Name::Subscriptions).ok();
        } else if was && !self.expect.physical {
            let reason = format!("{}: a dump leaves it switched off; it was on", shown(live));
            self.tally(Name::Subscriptions).left_out(&reason);
        } else {
            let state = |on| if on { "on" } else { "off" };
            let detail = format!("{}: it is switched {}, and was {}", shown(live), state(is), state(was));
            self.tally(Name::Subscriptions).failed(detail);
        }
    }

    /// What is not valid is a defect, unless it was not valid before.
    fn validity(&mut self, name: Name, fact: &str, words: &str, recorded: Option<&Object>, live: &Object) {
        if live.says(fact, "yes") {
            return self.tally(name).ok();
        }
        let detail = format!("{} {words}", shown(live));
        match recorded {
            Some(recorded) if !recorded.says(fact, "yes") => {
                self.tally(name).noted(format!("{detail}; it was not before"))
            }
            Some(_) => self.tally(name).failed(detail),
            None if name == Name::IndexValidity => self.tally(name).failed(detail),
            // A constraint may be meant to be so.
            None => self.tally(name).not_checked(&format!("{detail}, and there is no truth that says whether it was")),
        }
    }

    /// What a database can be asked without anything to compare it with.
    fn alone(&mut self, live: &Object) {
        match live.kind {
            ObjectKind::Index => self.validity(Name::IndexValidity, "valid", "is not valid", None, live),
            ObjectKind::Constraint => {
                self.validity(Name::ConstraintValidity, "validated", "is not validated", None, live);
            }
            ObjectKind::SequenceUse => self.sequence_use(None, live),
            ObjectKind::Relation if live.says("unread_because", "failed") => self.unread(Name::Tables, live, live),
            ObjectKind::Relation if live.fact("rows").is_some() => self.tally(Name::Tables).ok(),
            _ => {}
        }
    }
}

/// Of kind `Other`.
fn is_of_type(object: &Object, object_type: &str) -> bool {
    object.kind == ObjectKind::Other && object.name.first().is_some_and(|name| name.0 == object_type.as_bytes())
}

fn is_subscription(object: &Object) -> bool {
    is_of_type(object, "subscription")
}

/// A table keeps its TOAST table when the last column that needed one is dropped; a dump does not bring it, nor what was said of it.
fn has_no_toast(fact: &str, recorded: &Object, live: &Object) -> bool {
    fact == "toast_options" && (recorded.fact(fact).is_none() || live.fact(fact).is_none())
}

/// `de@collation=phonebook`: whether it is the same as `de-u-co-phonebk`, ICU alone knows.
fn is_of_old_form(recorded: &Object, live: &Object) -> bool {
    // Those of the C library are quoted.
    let is_old = |locale: &Text| locale.0.contains(&b'@') && !locale.0.starts_with(b"'");
    recorded.fact("made_of") == live.fact("made_of")
        && [recorded, live].iter().any(|s| s.fact("locale").is_some_and(is_old))
}

const NOT_RESTORED: &str = "they are in the backup, and were not to be restored";
/// Also where the rest of an object is hidden from the role that looks.
const ALWAYS_SEEN: [&str; 2] = ["owner", "enabled"];
/// Compared by rules of their own.
const SPECIAL: [&str; 12] = [
    "rows",
    "hash",
    "hash_given",
    "unread",
    "unread_because",
    "last_value",
    "is_called",
    "behind",
    "furthest",
    "valid",
    "validated",
    "member_of",
];

#[cfg(test)]
mod tests;

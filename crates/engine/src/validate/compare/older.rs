//! What truths of earlier versions do not tell, or tell otherwise: not compared, and never ok.

use std::io::BufRead;

use super::{Comparison, Name, is_of_type, is_subscription};
use crate::cluster::{ObjectKind, has_foreign_options, is_of_version_2, is_of_version_3, is_type_of_version_2};
use crate::truth::{Object, Text};

impl<R: BufRead> Comparison<R> {
    fn is_before(&self, version: u32) -> bool {
        self.recorded.as_ref().is_some_and(|r| r.header().pgark_truth < version)
    }

    /// Once, not for each object.
    pub(super) fn announce_age(&mut self) {
        let all: [(u32, &[Name], &str); 3] = [
            (2, &[Name::Definitions, Name::Comments, Name::Privileges, Name::Others], OLDER),
            (3, &[Name::Database, Name::Definitions, Name::Others], BEFORE_3),
            (4, &[Name::Types, Name::Privileges, Name::Others], BEFORE_4),
        ];
        for (version, names, why) in all {
            if self.is_before(version) {
                names.iter().for_each(|name| self.tally(*name).left_out(why));
            }
        }
    }

    /// Whether the truth does not tell of such objects.
    pub(super) fn is_younger(&self, live: &Object) -> bool {
        let untold = live.kind == ObjectKind::Type && live.says("typtype", "b") || is_subscription(live);
        self.is_before(4) && untold
            || self.is_before(2) && live.kind == ObjectKind::Other && is_type_of_version_2(object_type(live))
    }

    /// Whether the truth says nothing of this, or says it in other words.
    pub(super) fn is_told_otherwise(&self, recorded: &Object, fact: &str) -> bool {
        let options_as_state = fact == "enabled" && is_of_type(recorded, "foreign-data wrapper");
        let rights_as_state = fact != "owner" && is_of_type(recorded, "default acl");
        self.is_before(2) && (is_of_version_2(recorded.kind, fact) || options_as_state)
            || self.is_before(3) && is_of_version_3(recorded.kind, fact)
            || self.is_before(4) && rights_as_state
    }

    /// Whether the truth keeps options in the order in which they were given.
    pub(super) fn has_other_order(&self, recorded: &Object, fact: &str) -> bool {
        let is_foreign_table = recorded.says("relkind", "f");
        self.is_before(3) && has_foreign_options(recorded.kind, is_foreign_table, object_type(recorded), fact)
    }
}

fn object_type(object: &Object) -> &[u8] {
    object.name.first().map(|Text(name)| name.as_slice()).unwrap_or_default()
}

const OLDER: &str = "an earlier version of pgark took the truth, which does not tell of comments, of privileges and options of foreign \
     servers, and of finer properties";
const BEFORE_3: &str = "an earlier version of pgark took the truth, which does not tell what collations, operators, casts, operator classes, \
     conversions, statistics, languages, aggregates and ranges are made of, of TOAST options, and whether the database is a template";
const BEFORE_4: &str = "an earlier version of pgark took the truth, which does not tell of subscriptions and base types, and keeps default \
     privileges in the order in which they were granted";

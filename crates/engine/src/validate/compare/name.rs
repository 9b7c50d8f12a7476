//! The checks of a comparison, and which fact of an object belongs to which.

use super::super::report::CheckKind;
use crate::cluster::ObjectKind;
use crate::truth::Object;

/// In the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Database,
    Schemas,
    Extensions,
    Types,
    Functions,
    Tables,
    Views,
    Sequences,
    Rows,
    Contents,
    MaterializedViews,
    GeneratedColumns,
    ForeignTables,
    ExtensionTables,
    UnloggedTables,
    LargeObjects,
    Definitions,
    Indexes,
    InvalidIndexes,
    IndexValidity,
    Constraints,
    ConstraintValidity,
    Triggers,
    Policies,
    Comments,
    Owners,
    Privileges,
    SequenceValues,
    SequencesAhead,
    Others,
    Subscriptions,
    /// What a selection left out: said once, and no part of any other check.
    NotRestored,
}

impl Name {
    pub fn words(self) -> (&'static str, CheckKind) {
        use CheckKind::{Catalog, Contents, Rows, Sequences};
        match self {
            Self::Database => ("database settings", Catalog),
            Self::Schemas => ("schemas", Catalog),
            Self::Extensions => ("extensions", Catalog),
            Self::Types => ("types", Catalog),
            Self::Functions => ("functions", Catalog),
            Self::Tables => ("tables", Catalog),
            Self::Views => ("views", Catalog),
            Self::Sequences => ("sequences", Catalog),
            Self::Rows => ("rows", Rows),
            Self::Contents => ("contents", Contents),
            Self::MaterializedViews => ("contents of materialized views", Contents),
            Self::GeneratedColumns => ("generated columns", Contents),
            Self::ForeignTables => ("rows of foreign tables", Rows),
            Self::ExtensionTables => ("rows of extensions' tables", Rows),
            Self::UnloggedTables => ("rows of unlogged tables", Rows),
            Self::LargeObjects => ("large objects", Contents),
            Self::Definitions => ("definitions", Catalog),
            Self::Indexes => ("indexes", Catalog),
            Self::InvalidIndexes => ("indexes that were not valid", Catalog),
            Self::IndexValidity => ("indexes are valid", Catalog),
            Self::Constraints => ("constraints", Catalog),
            Self::ConstraintValidity => ("constraints are validated", Catalog),
            Self::Triggers => ("triggers and rules", Catalog),
            Self::Policies => ("row security", Catalog),
            Self::Comments => ("comments", Catalog),
            Self::Owners => ("owners", Catalog),
            Self::Privileges => ("privileges", Catalog),
            Self::SequenceValues => ("positions of sequences", Sequences),
            Self::SequencesAhead => ("sequences are ahead of their columns", Sequences),
            Self::Others => ("other objects", Catalog),
            Self::Subscriptions => ("subscriptions are switched on", Catalog),
            Self::NotRestored => ("objects that were left out", Catalog),
        }
    }
}

pub fn existence(object: &Object) -> Name {
    match object.kind {
        ObjectKind::Database => Name::Database,
        ObjectKind::Schema => Name::Schemas,
        ObjectKind::Extension => Name::Extensions,
        ObjectKind::Type => Name::Types,
        ObjectKind::Function => Name::Functions,
        ObjectKind::Relation if object.says("relkind", "v") => Name::Views,
        ObjectKind::Relation if object.says("relkind", "S") => Name::Sequences,
        ObjectKind::Relation => Name::Tables,
        ObjectKind::Index => Name::Indexes,
        ObjectKind::Constraint => Name::Constraints,
        ObjectKind::Trigger | ObjectKind::Rule => Name::Triggers,
        ObjectKind::Policy => Name::Policies,
        ObjectKind::SequenceUse => Name::Definitions,
        ObjectKind::LargeObjects => Name::LargeObjects,
        ObjectKind::Other => Name::Others,
    }
}

/// Of a fact that is compared as it is.
pub fn check_of(kind: ObjectKind, fact: &str) -> Name {
    match (kind, fact) {
        (_, "owner") => Name::Owners,
        (_, "acl" | "column_acl") => Name::Privileges,
        (_, "comment" | "comments" | "column_comments" | "extension_comment") => Name::Comments,
        (ObjectKind::Database, _) => Name::Database,
        (ObjectKind::Extension, _) => Name::Extensions,
        (ObjectKind::LargeObjects, _) => Name::LargeObjects,
        (ObjectKind::Trigger | ObjectKind::Rule, _) | (_, "internal_triggers_off") => Name::Triggers,
        (ObjectKind::Policy, _) | (_, "row_security") => Name::Policies,
        (ObjectKind::Other, _) => Name::Others,
        _ => Name::Definitions,
    }
}

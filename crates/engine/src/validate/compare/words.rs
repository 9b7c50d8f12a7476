//! Objects and facts in words, for people.

use crate::cluster::ObjectKind;
use crate::truth::{Object, Text};

/// Facts that are stored as digests, which say nothing to people.
pub fn is_digest(fact: &str) -> bool {
    matches!(
        fact,
        "definition"
            | "defaults"
            | "columns"
            | "source"
            | "comment"
            | "comments"
            | "column_comments"
            | "extension_comment"
            | "column_details"
            | "foreign_options"
            | "details"
            | "made_of"
            | "publishes"
            | "mapping_options"
            | "connection"
    )
}

pub fn value(fact: &str, object: &Object) -> String {
    match object.fact(fact) {
        None => "not there".to_owned(),
        Some(text) => format!("'{}'", text.lossy()),
    }
}

pub fn said(fact: &str) -> String {
    match fact {
        "acl" => "what is granted".to_owned(),
        "column_acl" => "what is granted on columns".to_owned(),
        "enabled" => "its state".to_owned(),
        "columns" => "the list of columns and their types".to_owned(),
        "comment" | "extension_comment" => "its comment".to_owned(),
        "comments" => "what comments say".to_owned(),
        "column_comments" => "the comment of a column".to_owned(),
        "column_details" => "storage, compression, statistics target or options of a column".to_owned(),
        "column_statistics" => "the statistics target of a column".to_owned(),
        "foreign_options" => "its server or options".to_owned(),
        "details" => "what it is made of or its options".to_owned(),
        "made_of" => "what it is made of".to_owned(),
        "toast_options" => "the list of options of its TOAST table".to_owned(),
        "connection" => "where it connects to".to_owned(),
        "publishes" => "the list of what is published".to_owned(),
        "planner" => "cost, rows or support function".to_owned(),
        "owned_by" => "the column that it belongs to".to_owned(),
        "shape" => "its form".to_owned(),
        fact => fact.replace('_', " "),
    }
}

pub fn shown(object: &Object) -> String {
    let what = match object.kind {
        ObjectKind::Database => return "the database".to_owned(),
        ObjectKind::LargeObjects => return "large objects".to_owned(),
        ObjectKind::Schema => "schema",
        ObjectKind::Extension => "extension",
        ObjectKind::Type => "type",
        ObjectKind::Function => "function",
        ObjectKind::Relation if object.says("relkind", "v") => "view",
        ObjectKind::Relation if object.says("relkind", "m") => "materialized view",
        ObjectKind::Relation if object.says("relkind", "S") => "sequence",
        ObjectKind::Relation => "table",
        ObjectKind::Index => "index",
        ObjectKind::Constraint => "constraint",
        ObjectKind::Trigger => "trigger",
        ObjectKind::Rule => "rule",
        ObjectKind::Policy => "policy",
        ObjectKind::SequenceUse => "sequence",
        ObjectKind::Other => "",
    };
    let parts: Vec<_> = object.name.iter().map(Text::lossy).collect();
    let name = match (object.kind, parts.as_slice()) {
        (ObjectKind::Function, [schema, name, arguments]) => {
            format!("{}.{}({arguments})", quoted(schema), quoted(name))
        }
        (ObjectKind::Function, [schema, name]) => format!("{}.{}()", quoted(schema), quoted(name)),
        (ObjectKind::SequenceUse, [sequence, table, column]) => {
            format!("{sequence} of {table}, column {}", quoted(column))
        }
        (
            ObjectKind::Constraint | ObjectKind::Trigger | ObjectKind::Rule | ObjectKind::Policy,
            [schema, table, name],
        ) => {
            format!("{} of {}.{}", quoted(name), quoted(schema), quoted(table))
        }
        (ObjectKind::Other, [kind, identity]) => format!("{kind} {identity}"),
        (_, parts) => parts.iter().map(|part| quoted(part)).collect::<Vec<_>>().join("."),
    };
    format!("{what} {name}").trim_start().to_owned()
}

/// As PostgreSQL shows names, near enough for people.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

pub struct Position {
    pub next: i128,
    pub increment: i128,
    pub cycles: bool,
}

/// What a sequence gives next. Its parameters are written as `type start increment min max cache cycles`.
pub fn position(sequence: &Object) -> Option<Position> {
    let parameters = sequence.fact("sequence")?.lossy().into_owned();
    let words: Vec<&str> = parameters.split(' ').collect();
    let increment: i128 = words.get(2)?.parse().ok()?;
    let last: i128 = sequence.fact("last_value")?.lossy().parse().ok()?;
    let next = if sequence.says("is_called", "yes") { last + increment } else { last };
    Some(Position { next, increment, cycles: words.get(6) == Some(&"t") })
}

//! A configuration file as a tree that remembers where each value was written, and how trees are laid over each other.
//!
//! Invariant: a node keeps its location through every merge. This module knows no key by meaning, except that
//! alternatives (`x`, `x_file`, `x_command`) replace each other as a group.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::failure::{Exit, Failure};

/// A place in a configuration file; line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub file: Arc<PathBuf>,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A value and where it stands. `at` is `None` only for tables that no file wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    pub at: Option<Location>,
}

#[derive(Clone, PartialEq)]
pub enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(Table),
}

impl fmt::Debug for Value {
    /// Without what was written: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(_) => f.write_str("String"),
            Value::Integer(_) => f.write_str("Integer"),
            Value::Float(_) => f.write_str("Float"),
            Value::Bool(flag) => flag.fmt(f),
            Value::Datetime(_) => f.write_str("Datetime"),
            Value::Array(items) => items.fmt(f),
            Value::Table(table) => table.fmt(f),
        }
    }
}

pub type Table = BTreeMap<String, Entry>;

/// A key's own location is kept beside its value: an unknown key is reported where the key is, a wrong value where the
/// value is.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key_at: Option<Location>,
    pub node: Node,
}

impl Node {
    pub fn table() -> Node {
        Node { value: Value::Table(Table::new()), at: None }
    }

    pub fn as_table(&self) -> Option<&Table> {
        if let Value::Table(table) = &self.value { Some(table) } else { None }
    }

    pub fn as_table_mut(&mut self) -> Option<&mut Table> {
        if let Value::Table(table) = &mut self.value { Some(table) } else { None }
    }

    /// The node under a path of keys; elements of arrays by their number.
    pub fn find(&self, path: &[&str]) -> Option<&Node> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        match &self.value {
            Value::Table(table) => table.get(*first)?.node.find(rest),
            Value::Array(items) => items.get(first.parse::<usize>().ok()?)?.find(rest),
            _ => None,
        }
    }
}

/// Reads one file's text into a tree.
///
/// # Errors
/// `E-CONFIG-SYNTAX` with file, line and column. The line itself is not quoted: it may hold a secret.
pub fn parse(file: &Path, text: &str) -> Result<Node, Failure> {
    let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let places = Places { file: Arc::new(file.to_owned()), text, line_starts };
    let document = DeTable::parse(text).map_err(|error| {
        let at = places.at(error.span().map_or(0, |span| span.start));
        Failure::new("E-CONFIG-SYNTAX", Exit::Usage, format!("{at}: {}", error.message()))
            .hint("'pgark config check' reads the configuration without doing anything")
    })?;
    let start = document.span().start;
    Ok(Node { value: Value::Table(places.table(document.get_ref())?), at: Some(places.at(start)) })
}

struct Places<'a> {
    file: Arc<PathBuf>,
    text: &'a str,
    /// Byte offsets, ascending; the first is 0.
    line_starts: Vec<usize>,
}

impl Places<'_> {
    fn at(&self, offset: usize) -> Location {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|n| self.line_starts.get(n)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Location { file: Arc::clone(&self.file), line, column }
    }

    fn table(&self, table: &DeTable<'_>) -> Result<Table, Failure> {
        let entry = |(key, value): (&toml::Spanned<_>, _)| {
            let key: &toml::Spanned<std::borrow::Cow<'_, str>> = key;
            let node = self.node(value)?;
            Ok((key.get_ref().to_string(), Entry { key_at: Some(self.at(key.span().start)), node }))
        };
        table.iter().map(entry).collect()
    }

    fn node(&self, value: &toml::Spanned<DeValue<'_>>) -> Result<Node, Failure> {
        let at = self.at(value.span().start);
        let number = |what: &str| Failure::usage("E-CONFIG-TYPE", format!("{at}: this {what} is out of range"));
        let value = match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(digits) => {
                Value::Integer(i64::from_str_radix(digits.as_str(), digits.radix()).map_err(|_| number("integer"))?)
            }
            DeValue::Float(digits) => Value::Float(digits.as_str().parse().map_err(|_| number("number"))?),
            DeValue::Boolean(flag) => Value::Bool(*flag),
            DeValue::Datetime(time) => Value::Datetime(time.to_string()),
            DeValue::Array(items) => Value::Array(items.iter().map(|i| self.node(i)).collect::<Result<_, _>>()?),
            DeValue::Table(table) => Value::Table(self.table(table)?),
        };
        Ok(Node { value, at: Some(at) })
    }
}

/// What happens to arrays of tables (`[[…]]`) that both sides have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableArrays {
    /// Files of one configuration: each adds its own.
    Append,
    /// Defaults and the cluster that overrides them.
    Replace,
}

/// Lays `over` on `base`: tables key by key, everything else replaced.
pub fn merge(base: &mut Node, over: Node, arrays: TableArrays) {
    match (&mut base.value, over.value) {
        (Value::Table(base_table), Value::Table(over_table)) => {
            base.at = over.at.or(base.at.take());
            drop_replaced_alternatives(base_table, &over_table);
            for (key, entry) in over_table {
                match base_table.get_mut(&key) {
                    Some(existing) => {
                        existing.key_at = entry.key_at;
                        merge(&mut existing.node, entry.node, arrays);
                    }
                    None => {
                        base_table.insert(key, entry);
                    }
                }
            }
        }
        (Value::Array(items), Value::Array(mut more))
            if arrays == TableArrays::Append && more.iter().all(|n| n.as_table().is_some()) =>
        {
            items.append(&mut more);
        }
        (_, value) => *base = Node { value, at: over.at },
    }
}

const SERVICE_MANAGERS: &[&str] = &["systemd", "docker", "kubernetes", "windows"];
const SERVICE_COMMANDS: &[&str] = &["stop", "start", "status"];

/// A later `passphrase_command` must not meet an earlier `passphrase_file`: whoever writes one of a group of
/// alternatives has chosen among all of them.
fn drop_replaced_alternatives(base: &mut Table, over: &Table) {
    for key in over.keys() {
        let stem = key.strip_suffix("_file").or_else(|| key.strip_suffix("_command")).unwrap_or(key);
        if !super::schema::SECRET_KEYS.contains(&stem) {
            continue;
        }
        for alternative in [stem.to_owned(), format!("{stem}_file"), format!("{stem}_command")] {
            if alternative != *key {
                base.remove(&alternative);
            }
        }
    }
    let chooses_manager = over.keys().any(|k| SERVICE_MANAGERS.contains(&k.as_str()));
    let chooses_commands = over.keys().any(|k| SERVICE_COMMANDS.contains(&k.as_str()));
    if chooses_manager {
        base.retain(|k, _| !SERVICE_MANAGERS.contains(&k.as_str()) && !SERVICE_COMMANDS.contains(&k.as_str()));
    } else if chooses_commands {
        base.retain(|k, _| !SERVICE_MANAGERS.contains(&k.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        parse(Path::new("t.toml"), text).expect("parses")
    }

    #[test]
    fn values_keep_their_line_and_column() {
        let tree = tree("# ü\n[a]\nb = { c = 1 }\n");
        let node = tree.find(&["a", "b", "c"]).expect("there");
        assert_eq!(node.at.as_ref().map(ToString::to_string), Some("t.toml:3:11".into()));
        assert_eq!(node.value, Value::Integer(1));
    }

    #[test]
    fn a_syntax_error_has_a_place_and_does_not_quote_the_line() {
        let failure = parse(Path::new("t.toml"), "[repos.main]\npassphrase = hunter2 x\n").expect_err("wrong");
        assert!(failure.message.starts_with("t.toml:2:14: "), "{failure}");
        assert!(!failure.to_text().contains("hunter2"));
    }

    #[test]
    fn a_number_out_of_range_is_an_error_with_its_place() {
        let failure = parse(Path::new("t.toml"), "a = 99999999999999999999").expect_err("too big");
        assert!(failure.message.starts_with("t.toml:1:5: "), "{failure}");
    }

    #[test]
    fn merging_keeps_what_the_later_file_does_not_name() {
        let mut base = tree("[r]\nkeep_daily = 7\nwal = '7d'\nrepos = ['a', 'b']\n[[s]]\njob = 'x'\n");
        merge(&mut base, tree("[r]\nkeep_daily = 3\nrepos = ['c']\n[[s]]\njob = 'y'\n"), TableArrays::Append);
        assert_eq!(base.find(&["r", "keep_daily"]).map(|n| &n.value), Some(&Value::Integer(3)));
        assert_eq!(base.find(&["r", "wal"]).map(|n| &n.value), Some(&Value::String("7d".into())));
        assert!(base.find(&["r", "repos", "0"]).is_some() && base.find(&["r", "repos", "1"]).is_none());
        assert_eq!(base.find(&["s", "1", "job"]).map(|n| &n.value), Some(&Value::String("y".into())));
    }

    #[test]
    fn one_alternative_replaces_the_other() {
        let mut base = tree("passphrase_file = '/a'\nsystemd = 'x'\nstop_timeout = '3s'");
        merge(&mut base, tree("passphrase_command = 'pass'\nstop = ['x']"), TableArrays::Replace);
        let keys: Vec<&str> = base.as_table().expect("a table").keys().map(String::as_str).collect();
        assert_eq!(keys, ["passphrase_command", "stop", "stop_timeout"]);
    }
}

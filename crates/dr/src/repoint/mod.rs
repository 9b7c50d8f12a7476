//! Pointing an application to another database: values in one of its configuration files, in a ConfigMap or a Secret of
//! Kubernetes, or whatever a command does.
//!
//! Invariants: every byte of a file but those of the values stays as it was. What was written is read again before it takes
//! the place of the old file: these values are the new ones, and every other is what it was. No value is in what is told of it.

mod connection;
mod file;
mod format;
mod kubernetes;
mod turn;

use pgark_engine::error::{EngineError, Result};

pub use connection::{Target, redirected};
pub use file::{Repointed, plan, repoint, take_back};
pub use format::Format;
use format::Leaf;
pub use kubernetes::{Entry, Object};
pub use turn::{Command, Turn};

/// A value, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub path: Vec<String>,
    pub new: New,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum New {
    /// The connection string that is there, with another target.
    Connection(Target),
    Value(String),
}

impl New {
    pub fn of(&self, old: &str) -> Result<String> {
        match self {
            New::Connection(target) => redirected(old, target),
            New::Value(value) => Ok(value.clone()),
        }
    }
}

/// To which of the two databases something points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
    Old,
    New,
    /// To neither, or nobody knows; why.
    Other(String),
}

/// The text with all of them made.
pub fn edited(format: Format, text: &str, edits: &[Edit]) -> Result<String> {
    edits.iter().try_fold(text.to_owned(), |text, edit| {
        let new = edit.new.of(&value(format, &text, &edit.path)?)?;
        Ok(set(format, &text, &edit.path, &new)?.text)
    })
}

/// A file's text with the new value, and the old value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    pub text: String,
    pub old: String,
}

/// The value at this path.
pub fn value(format: Format, text: &str, path: &[String]) -> Result<String> {
    let leaves = read(format, text)?;
    find(&leaves, path).map(|(_, leaf)| leaf.value.clone())
}

/// Replaces the value at this path, which must be there, once.
pub fn set(format: Format, text: &str, path: &[String], new: &str) -> Result<Edited> {
    let leaves = read(format, text)?;
    let (at, leaf) = find(&leaves, path)?;
    let literal = format.literal(leaf, new).map_err(|why| cannot(path, &why))?;
    let (Some(before), Some(after)) = (text.get(..leaf.span.start), text.get(leaf.span.end..)) else {
        return Err(cannot(path, "its place in the file is not known"));
    };
    let edited = format!("{before}{literal}{after}");
    let again = read(format, &edited)?;
    let same = again.len() == leaves.len()
        && again.iter().zip(&leaves).enumerate().all(|(i, (new_leaf, old_leaf))| {
            let expected = if i == at { new } else { &old_leaf.value };
            new_leaf.path == old_leaf.path && new_leaf.value == expected
        });
    if !same {
        return Err(cannot(path, "with the new value the file would say something else elsewhere, too"));
    }
    Ok(Edited { text: edited, old: leaf.value.clone() })
}

fn read(format: Format, text: &str) -> Result<Vec<Leaf>> {
    format.leaves(text).map_err(|why| {
        EngineError::refused(
            "E-REPOINT-FORMAT",
            format!("the file is not {format}: {why}"),
            "name its format in [clusters.NAME.recover.repoint]: env, ini, toml, yaml or json",
        )
    })
}

fn find<'a>(leaves: &'a [Leaf], path: &[String]) -> Result<(usize, &'a Leaf)> {
    let mut found = leaves.iter().enumerate().filter(|(_, leaf)| leaf.path == path);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(cannot(path, "it is not there, or is no single value")),
        (Some(_), Some(_)) => Err(cannot(path, "it is there more than once")),
    }
}

fn cannot(path: &[String], why: &str) -> EngineError {
    EngineError::refused(
        "E-REPOINT-VALUE",
        format!("{} cannot be replaced: {why}", path.join(" → ")),
        "look at the file, and at key in [clusters.NAME.recover.repoint]",
    )
}

#[cfg(test)]
mod tests;

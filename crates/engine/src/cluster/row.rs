//! Rows of a result, and statements that came in one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::ClusterError;
use super::libpq::Value;

/// A statement that the server put together, so that names in it are quoted by its own rules and in its own bytes. Nothing
/// else makes one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Composed(Vec<u8>);

impl Composed {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Composed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Composed({})", String::from_utf8_lossy(&self.0))
    }
}

/// One row of a result; columns are asked for by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub(super) columns: Arc<[String]>,
    pub(super) values: Vec<Value>,
}

impl Row {
    /// The bytes of a column, `None` for NULL.
    pub fn bytes(&self, column: &str) -> Result<Option<&[u8]>, ClusterError> {
        let at = self.columns.iter().position(|name| name == column);
        let value = at.and_then(|at| self.values.get(at));
        value.map(Option::as_deref).ok_or_else(|| unexpected(column, "is missing"))
    }

    /// A column as text, `None` for NULL.
    pub fn opt_text(&self, column: &str) -> Result<Option<&str>, ClusterError> {
        let text = self.bytes(column)?.map(std::str::from_utf8).transpose();
        text.map_err(|_| unexpected(column, "is not UTF-8"))
    }

    pub fn text(&self, column: &str) -> Result<&str, ClusterError> {
        self.opt_text(column)?.ok_or_else(|| unexpected(column, "is NULL"))
    }

    pub fn opt_parse<T: FromStr>(&self, column: &str) -> Result<Option<T>, ClusterError> {
        let parsed = self.opt_text(column)?.map(str::parse).transpose();
        parsed.map_err(|_| unexpected(column, "does not parse"))
    }

    pub fn parse<T: FromStr>(&self, column: &str) -> Result<T, ClusterError> {
        self.opt_parse(column)?.ok_or_else(|| unexpected(column, "is NULL"))
    }

    /// A boolean column, `None` for NULL.
    pub fn opt_flag(&self, column: &str) -> Result<Option<bool>, ClusterError> {
        match self.opt_text(column)? {
            None => Ok(None),
            Some("t" | "true" | "on") => Ok(Some(true)),
            Some("f" | "false" | "off") => Ok(Some(false)),
            Some(_) => Err(unexpected(column, "is not a boolean")),
        }
    }

    pub fn flag(&self, column: &str) -> Result<bool, ClusterError> {
        self.opt_flag(column)?.ok_or_else(|| unexpected(column, "is NULL"))
    }

    /// A column in which a query of ours put together a statement with `format()`.
    pub(super) fn composed(&self, column: &str) -> Result<Composed, ClusterError> {
        let bytes = self.bytes(column)?.ok_or_else(|| unexpected(column, "is NULL"))?;
        Ok(Composed(bytes.to_vec()))
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The values in the order of the columns.
    pub fn values(&self) -> &[Option<Vec<u8>>] {
        &self.values
    }
}

fn unexpected(column: &str, problem: &str) -> ClusterError {
    ClusterError::Unexpected { message: format!("column {column} {problem}") }
}

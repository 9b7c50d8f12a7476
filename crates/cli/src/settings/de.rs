//! Reads typed settings out of a tree, so that every error names the file, line and column.
//!
//! Invariant: a message of this module quotes keys and choices of a fixed list, never a free value: that may be a secret.

use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess};
use serde::de::{Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::nearest::nearest;
use super::schema::LIBPQ_KEYWORDS;
use super::tree::{Entry, Location, Node, Value};
use crate::failure::Failure;

/// Reads a whole tree as `T`.
///
/// # Errors
/// `E-CONFIG-KEY` for an unknown key, `E-CONFIG-TYPE` for anything else.
pub fn read<T: DeserializeOwned>(node: &Node) -> Result<T, Failure> {
    T::deserialize(NodeDeserializer(node)).map_err(Problem::into_failure)
}

/// What is wrong, and where as soon as that is known.
#[derive(Debug)]
struct Problem {
    code: &'static str,
    message: String,
    hint: Option<String>,
    at: Option<Location>,
}

impl Problem {
    fn new(code: &'static str, message: String) -> Problem {
        Problem { code, message, hint: None, at: None }
    }

    /// The innermost place wins.
    fn at(mut self, place: Option<&Location>) -> Problem {
        self.at = self.at.or_else(|| place.cloned());
        self
    }

    fn into_failure(self) -> Failure {
        let message = match self.at {
            Some(at) => format!("{at}: {}", self.message),
            None => self.message,
        };
        let failure = Failure::usage(self.code, message);
        if let Some(hint) = self.hint { failure.hint(hint) } else { failure }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Problem {
        Problem::new("E-CONFIG-TYPE", message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Problem {
        Problem::custom(format!("expected {expected}, found {}", kind(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Problem {
        Problem::custom(format!("expected {expected}, found {} that is not", kind(found)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Problem {
        let problem = Problem::custom(format!("'{variant}' is not known here; known are: {}", expected.join(", ")));
        with_nearest(problem, variant, expected.iter().copied())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Problem {
        let problem = Problem::new("E-CONFIG-KEY", format!("unknown key '{field}'"));
        // A cluster takes libpq's keywords too; they are gathered under `libpq` before the types are read.
        let libpq = if expected.contains(&"libpq") { LIBPQ_KEYWORDS } else { &[] };
        let known = expected.iter().chain(libpq).copied().filter(|k| *k != "libpq");
        let own: Vec<&str> = expected.iter().copied().filter(|k| *k != "libpq").collect();
        let listed = format!("known keys: {}", own.join(", "));
        let mut problem = with_nearest(problem, field, known);
        problem.hint = problem.hint.or(Some(listed));
        problem
    }
}

fn with_nearest(mut problem: Problem, word: &str, known: impl IntoIterator<Item = &'static str>) -> Problem {
    problem.hint = nearest(word, known).map(|known| format!("did you mean '{known}'?"));
    problem
}

fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number with a fraction",
        Unexpected::Str(_) | Unexpected::Char(_) => "a string",
        Unexpected::Seq => "an array",
        Unexpected::Map => "a table",
        _ => "something else",
    }
}

#[derive(Clone, Copy)]
struct NodeDeserializer<'a>(&'a Node);

impl<'de> serde::Deserializer<'de> for NodeDeserializer<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let node = self.0;
        let result = match &node.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            // Nothing in the configuration is a date; as a string it gets the message of the key it stands at.
            Value::Datetime(text) => visitor.visit_str(text),
            Value::Array(items) => visitor.visit_seq(Items(items.iter())),
            Value::Table(table) => visitor.visit_map(Entries { rest: table.iter(), value: None }),
        };
        result.map_err(|problem| problem.at(node.at.as_ref()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let at = self.0.at.as_ref();
        let Value::String(text) = &self.0.value else {
            return Err(Problem::custom("expected a word in quotes").at(at));
        };
        visitor.visit_enum(text.as_str().into_deserializer()).map_err(|problem: Problem| problem.at(at))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        self.0.next().map(|node| seed.deserialize(NodeDeserializer(node))).transpose()
    }
}

struct Entries<'a> {
    rest: std::collections::btree_map::Iter<'a, String, Entry>,
    value: Option<(&'a str, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        let Some((key, entry)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, &entry.node));
        let deserializer: StringDeserializer<Problem> = key.clone().into_deserializer();
        seed.deserialize(deserializer).map(Some).map_err(|problem| problem.at(entry.key_at.as_ref()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let Some((key, node)) = self.value.take() else {
            return Err(Problem::custom("a value was asked for before its key"));
        };
        let result = seed.deserialize(NodeDeserializer(node));
        result.map_err(|mut problem| {
            // A complaint from further inside has its own place, and its own key.
            let about_this = problem.at.is_none() || problem.at == node.at;
            if about_this && problem.code == "E-CONFIG-TYPE" && !problem.message.starts_with("key ") {
                problem.message = format!("key '{key}': {}", problem.message);
            }
            problem.at(node.at.as_ref())
        })
    }
}

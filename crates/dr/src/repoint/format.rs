//! Where the single values of a configuration file are. Pure.

use std::fmt;
use std::ops::Range;

use jsonc_parser::ast::Value as Json;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use saphyr_parser::{Event, Parser, ScalarStyle};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `NAME=value`, as Compose, systemd and shells read them.
    Env,
    Ini,
    Toml,
    Yaml,
    /// With comments and trailing commas, as .NET has them in `appsettings.json`.
    Json,
}

/// A single value, and its place in the text in bytes, quotes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub path: Vec<String>,
    pub value: String,
    pub span: Range<usize>,
    pub style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without quotes: a number, a word, the rest of a line.
    Plain,
    Single,
    Double,
    /// A value that is not replaced: over several lines, or one that others refer to.
    Other,
}

/// Deeper is no configuration file.
const DEPTH_MAX: usize = 64;

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Env => "a file of variables",
            Format::Ini => "INI",
            Format::Toml => "TOML",
            Format::Yaml => "YAML",
            Format::Json => "JSON",
        })
    }
}

impl Format {
    /// By the name of the file.
    pub fn of(name: &str) -> Option<Format> {
        let lower = name.to_ascii_lowercase();
        match lower.rsplit_once('.').map(|(_, extension)| extension) {
            Some("toml") => Some(Format::Toml),
            Some("yaml" | "yml") => Some(Format::Yaml),
            Some("json" | "jsonc") => Some(Format::Json),
            Some("ini" | "cfg" | "conf" | "properties") => Some(Format::Ini),
            Some("env") => Some(Format::Env),
            _ if lower.starts_with(".env") => Some(Format::Env),
            _ => None,
        }
    }

    pub fn leaves(self, text: &str) -> Result<Vec<Leaf>, String> {
        // Programs of Windows write one.
        let bare = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut all = match self {
            Format::Env => env(bare),
            Format::Ini => ini(bare),
            Format::Toml => toml_leaves(bare),
            Format::Yaml => yaml(bare),
            Format::Json => json(bare),
        }?;
        let skipped = text.len() - bare.len();
        for leaf in &mut all {
            leaf.span = leaf.span.start + skipped..leaf.span.end + skipped;
        }
        Ok(all)
    }

    /// The new value as it has to stand there.
    pub fn literal(self, leaf: &Leaf, new: &str) -> Result<String, String> {
        if leaf.style == Style::Other {
            let how = match self {
                Format::Env | Format::Ini => "a comment behind it, escapes, or quotes in its middle",
                Format::Toml | Format::Yaml | Format::Json => "several lines, an anchor or a tag",
            };
            return Err(format!("it is written in a way that is not edited: {how}"));
        }
        if new.contains(['\n', '\r', '\0']) {
            return Err("the new value has more than one line".into());
        }
        match self {
            Format::Env => as_before(leaf, new, env_safe),
            Format::Ini => as_before(leaf, new, |c| !matches!(c, ';' | '#' | '"' | '\'')),
            Format::Toml | Format::Json | Format::Yaml if both_numbers(leaf, new) => Ok(new.to_owned()),
            Format::Toml => Ok(toml::Value::String(new.to_owned()).to_string()),
            Format::Yaml if leaf.style == Style::Single => Ok(format!("'{}'", new.replace('\'', "''"))),
            // What JSON writes in quotes, YAML reads in the same way.
            Format::Json | Format::Yaml => serde_json::to_string(new).map_err(|e| e.to_string()),
        }
    }
}

fn both_numbers(leaf: &Leaf, new: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.len() < 19 && text.bytes().all(|b| b.is_ascii_digit());
    leaf.style == Style::Plain && number(&leaf.value) && number(new)
}

/// In the quotes of the old value. Without quotes, only what every reader takes as it is, or what the old value had, too.
fn as_before(leaf: &Leaf, new: &str, safe: fn(char) -> bool) -> Result<String, String> {
    match leaf.style {
        Style::Single if !new.contains('\'') => Ok(format!("'{new}'")),
        Style::Double if !new.contains(['"', '\\', '$', '`']) => Ok(format!("\"{new}\"")),
        Style::Plain if new.chars().all(|c| safe(c) || leaf.value.contains(c)) && new.trim() == new => {
            Ok(new.to_owned())
        }
        _ => {
            Err("the new value has characters that need quotes, or other ones; write such quotes around the old value"
                .into())
        }
    }
}

fn env_safe(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_./:@%+,=-".contains(c)
}

/// Each line with where it begins, without its end.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').map(move |line| {
        let begins = at;
        at += line.len();
        (begins, line.trim_end_matches(['\n', '\r']))
    })
}

/// The value after the sign: what is inside of its quotes, if it has them.
fn line_value(line: &str, begins: usize, sign: usize) -> (String, Range<usize>, Style) {
    let rest = line.get(sign + 1..).unwrap_or_default();
    let value = rest.trim();
    let from = begins + sign + 1 + (rest.len() - rest.trim_start().len());
    let inner = |quote: char| {
        let inside = value.strip_prefix(quote)?.strip_suffix(quote)?;
        (value.len() >= 2 && !inside.contains([quote, '\\'])).then(|| inside.to_owned())
    };
    let span = from..from + value.len();
    if let Some(inside) = inner('"') {
        return (inside, span, Style::Double);
    }
    if let Some(inside) = inner('\'') {
        return (inside, span, Style::Single);
    }
    // A comment behind it, escapes, or quotes in the middle: every reader takes them differently.
    let odd = value.contains(['"', '\'', '\\', '`']) || value.contains(" #") || value.contains(" ;");
    (value.to_owned(), span, if odd { Style::Other } else { Style::Plain })
}

fn env(text: &str) -> Result<Vec<Leaf>, String> {
    let mut all = vec![];
    for (n, (begins, line)) in lines(text).enumerate() {
        let bare = line.trim_start();
        if bare.is_empty() || bare.starts_with('#') {
            continue;
        }
        let sign = line.find('=').ok_or_else(|| format!("line {} has no '='", n + 1))?;
        let name = line.get(..sign).unwrap_or_default().trim();
        let name = name.strip_prefix("export ").unwrap_or(name).trim();
        let good = |c: char| c.is_ascii_alphanumeric() || "_.-:".contains(c);
        if name.is_empty() || !name.chars().all(good) {
            return Err(format!("line {} does not begin with a name", n + 1));
        }
        let (value, span, style) = line_value(line, begins, sign);
        all.push(Leaf { path: vec![name.to_owned()], value, span, style });
    }
    Ok(all)
}

fn ini(text: &str) -> Result<Vec<Leaf>, String> {
    let (mut all, mut section) = (vec![], None);
    for (n, (begins, line)) in lines(text).enumerate() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';', '!']) {
            continue;
        }
        if let Some(name) = bare.strip_prefix('[').and_then(|b| b.split_once(']')).map(|(name, _)| name) {
            section = Some(name.trim().to_owned());
            continue;
        }
        // A line that goes on from the one before it.
        if line.starts_with([' ', '\t']) {
            return Err(format!("line {} is indented, which readers take differently", n + 1));
        }
        let sign = line.find(['=', ':']).ok_or_else(|| format!("line {} has no '='", n + 1))?;
        let key = line.get(..sign).unwrap_or_default().trim().to_owned();
        let (value, span, style) = line_value(line, begins, sign);
        all.push(Leaf { path: section.iter().cloned().chain([key]).collect(), value, span, style });
    }
    Ok(all)
}

fn toml_leaves(text: &str) -> Result<Vec<Leaf>, String> {
    let document = DeTable::parse(text).map_err(|e| e.message().to_owned())?;
    let mut all = vec![];
    for (key, value) in document.get_ref() {
        toml_leaf(text, &[key.get_ref().to_string()], value, &mut all)?;
    }
    all.sort_by_key(|l| l.span.start);
    Ok(all)
}

fn toml_leaf(text: &str, path: &[String], value: &Spanned<DeValue<'_>>, all: &mut Vec<Leaf>) -> Result<(), String> {
    if path.len() > DEPTH_MAX {
        return Err("it is too deep".into());
    }
    let deeper = |last: String| [path, &[last]].concat();
    let span = value.span();
    let (value, style) = match value.get_ref() {
        DeValue::Table(table) => {
            return table.iter().try_for_each(|(k, v)| toml_leaf(text, &deeper(k.get_ref().to_string()), v, all));
        }
        DeValue::Array(array) => {
            return array.iter().enumerate().try_for_each(|(n, v)| toml_leaf(text, &deeper(n.to_string()), v, all));
        }
        DeValue::String(s) => {
            let written = text.get(span.clone()).unwrap_or_default();
            let several = written.starts_with("\"\"\"") || written.starts_with("'''");
            (s.to_string(), if several { Style::Other } else { Style::Double })
        }
        _ => (text.get(span.clone()).unwrap_or_default().to_owned(), Style::Plain),
    };
    all.push(Leaf { path: path.to_vec(), value, span, style });
    Ok(())
}

fn json(text: &str) -> Result<Vec<Leaf>, String> {
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let ast = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|e| e.to_string())?;
    let mut all = vec![];
    json_leaf(&[], &ast.value.ok_or("it is empty")?, &mut all)?;
    Ok(all)
}

fn json_leaf(path: &[String], value: &Json<'_>, all: &mut Vec<Leaf>) -> Result<(), String> {
    if path.len() > DEPTH_MAX {
        return Err("it is too deep".into());
    }
    let deeper = |last: String| [path, &[last]].concat();
    let (range, value, style) = match value {
        Json::Object(object) => {
            return object
                .properties
                .iter()
                .try_for_each(|p| json_leaf(&deeper(p.name.as_str().to_owned()), &p.value, all));
        }
        Json::Array(array) => {
            return array.elements.iter().enumerate().try_for_each(|(n, v)| json_leaf(&deeper(n.to_string()), v, all));
        }
        Json::StringLit(s) => (s.range, s.value.to_string(), Style::Double),
        Json::NumberLit(n) => (n.range, n.value.to_string(), Style::Plain),
        Json::BooleanLit(b) => (b.range, b.value.to_string(), Style::Plain),
        Json::NullKeyword(n) => (n.range, "null".to_owned(), Style::Plain),
    };
    all.push(Leaf { path: path.to_vec(), value, span: range.start..range.end, style });
    Ok(())
}

/// What the value that comes next is: of a key, or of an element.
enum Place {
    Mapping { key: Option<String> },
    Sequence { n: usize },
}

fn yaml(text: &str) -> Result<Vec<Leaf>, String> {
    // The parser counts characters.
    let bytes: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let (mut all, mut places, mut documents) = (vec![], Vec::<Place>::new(), 0);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| e.to_string())?;
        if places.len() > DEPTH_MAX {
            return Err("it is too deep".into());
        }
        match event {
            Event::DocumentStart(_) => documents += 1,
            Event::MappingStart(..) => places.push(Place::Mapping { key: None }),
            Event::SequenceStart(..) => places.push(Place::Sequence { n: 0 }),
            Event::MappingEnd | Event::SequenceEnd => {
                places.pop();
                passed(&mut places);
            }
            Event::Alias(anchor) => {
                let at = bytes.get(span.start.index()).copied().unwrap_or(text.len());
                yaml_value(&mut places, &mut all, format!("*{anchor}"), at..at, Style::Other)?;
            }
            Event::Scalar(value, style, anchor, tag) => {
                let place = |index: usize| bytes.get(index).copied().unwrap_or(text.len());
                let span = place(span.start.index())..place(span.end.index());
                // The parser counts what is behind the quotes, too: blanks, and a comment.
                let span = match style {
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => quoted(text, span),
                    _ => span,
                };
                let style = match style {
                    _ if anchor != 0 || tag.is_some() => Style::Other,
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted => Style::Single,
                    ScalarStyle::DoubleQuoted => Style::Double,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Other,
                };
                // Over several lines, or nothing at all.
                let odd = span.is_empty() || text.get(span.clone()).is_none_or(|t| t.contains('\n'));
                yaml_value(&mut places, &mut all, value.into_owned(), span, if odd { Style::Other } else { style })?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    if documents > 1 {
        return Err("it holds several documents".into());
    }
    Ok(all)
}

/// From the first quote to the one that closes it.
fn quoted(text: &str, span: Range<usize>) -> Range<usize> {
    let written = text.get(span.clone()).unwrap_or_default();
    let quote = written.chars().next().unwrap_or_default();
    let mut is_escaped = false;
    let mut inside = written.char_indices().skip(1).peekable();
    while let Some((at, c)) = inside.next() {
        // Twice within single ones it is one.
        let is_double = quote == '\'' && c == quote && inside.peek().is_some_and(|(_, next)| *next == quote);
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if quote == '"' => is_escaped = true,
            _ if is_double => is_escaped = true,
            c if c == quote => return span.start..span.start + at + c.len_utf8(),
            _ => {}
        }
    }
    span
}

/// A key, or a value of the innermost place.
fn yaml_value(
    places: &mut [Place],
    all: &mut Vec<Leaf>,
    value: String,
    span: Range<usize>,
    style: Style,
) -> Result<(), String> {
    if let Some(Place::Mapping { key: key @ None }) = places.last_mut() {
        *key = Some(value);
        return Ok(());
    }
    let path = places
        .iter()
        .map(|place| match place {
            Place::Mapping { key } => key.clone().ok_or("a key is no single value"),
            Place::Sequence { n } => Ok(n.to_string()),
        })
        .collect::<Result<_, _>>()?;
    all.push(Leaf { path, value, span, style });
    passed(places);
    Ok(())
}

/// The innermost place had its value.
fn passed(places: &mut [Place]) {
    match places.last_mut() {
        Some(Place::Mapping { key }) => *key = None,
        Some(Place::Sequence { n }) => *n += 1,
        None => {}
    }
}

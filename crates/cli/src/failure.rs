//! How a command fails: one type, one rendering for people, one for programs, and the table of exit codes.
//!
//! Invariant: whatever a name, a server message or a log line contains, it reaches a terminal with its control
//! characters escaped. This module knows no rule about when something fails.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use serde::Serialize;

use crate::secret::{REFUSED_FLAGS, secret_on_command_line};
use crate::settings::nearest::distance;

/// The version of every JSON document this program prints.
pub const SCHEMA: u32 = 1;

/// The exit codes scripts rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Warnings = 3,
    Refused = 4,
    Cancelled = 5,
    NoRepository = 10,
    Locked = 11,
    WrongKey = 12,
    Damage = 20,
    ValidationFailed = 21,
    /// `archive-get` alone: everything that is not "delivered" or "provably beyond the end of the archive".
    ArchiveGetOther = 126,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// A command that did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Stable, starts with `E-`.
    pub code: Cow<'static, str>,
    /// Lowercase, no full stop.
    pub message: String,
    /// The next action.
    pub hint: Option<String>,
    pub exit: Exit,
}

impl Failure {
    pub fn new(code: impl Into<Cow<'static, str>>, exit: Exit, message: impl Into<String>) -> Failure {
        Failure { code: code.into(), message: message.into(), hint: None, exit }
    }

    /// A wrong flag, setting or combination of them.
    pub fn usage(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Failure {
        Failure::new(code, Exit::Usage, message)
    }

    pub fn failed(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Failure {
        Failure::new(code, Exit::Failed, message)
    }

    /// A safety rule said no, and nothing was changed.
    pub fn refused(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Failure {
        Failure::new(code, Exit::Refused, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// PostgreSQL takes 1 to 125 from a `restore_command` for the end of the archive and opens the database short,
    /// so no failure of `archive-get` may leave with one of these.
    #[must_use]
    pub fn for_archive_get(mut self) -> Failure {
        self.exit = Exit::ArchiveGetOther;
        self
    }

    /// What people read on stderr; ends with a newline.
    pub fn to_text(&self) -> String {
        let mut text = format!("{} {}\n", escape(&self.code), escape(&self.message));
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "HINT: {}", escape(hint)); // writing to a String cannot fail
        }
        text
    }

    /// What programs read on stdout with `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        let body = ErrorBody { code: &self.code, message: &self.message, hint: self.hint.as_deref() };
        serde_json::json!({ "schema": SCHEMA, "error": body })
    }

    /// Turns what the argument parser says into the answer to give: text to print (help, version) or a failure.
    /// `arguments` is the whole command line, program name first.
    pub fn from_clap(error: &clap::Error, arguments: &[OsString]) -> Result<String, Failure> {
        let rendered = error.render().to_string();
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Ok(rendered);
        }
        let failure = match error.kind() {
            // First, because the parser quotes what it does not understand, and that may be the rest of a passphrase.
            _ if gives_a_secret(arguments) => secret_on_command_line(),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
                Failure::usage("E-USAGE", "a command is missing").hint("'pgark --help' lists the commands")
            }
            _ => usage_failure(&rendered, arguments),
        };
        Err(if is_archive_get(arguments) { failure.for_archive_get() } else { failure })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", escape(&self.code), escape(&self.message))
    }
}

impl std::error::Error for Failure {}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
}

/// True when `--json` was asked for, even if the rest of the command line cannot be parsed.
pub fn wants_json(arguments: &[OsString]) -> bool {
    arguments.iter().skip(1).take_while(|a| *a != "--").any(|a| a == "--json")
}

/// True when this command line is `archive-get`, or a misspelling of it: PostgreSQL would read the usual exit code 2
/// of a misspelt `restore_command` as the end of the archive.
pub fn is_archive_get(arguments: &[OsString]) -> bool {
    let named = |a: &OsString| a == "archive-get";
    let misspelt = |a: &OsString| a.to_str().is_some_and(|a| !a.starts_with('-') && distance(a, "archive-get") <= 2);
    arguments.iter().skip(1).any(named) || arguments.iter().skip(1).find(|a| is_word(a)).is_some_and(misspelt)
}

fn gives_a_secret(arguments: &[OsString]) -> bool {
    let flag = |a: &OsString| a.to_string_lossy().split('=').next().is_some_and(|name| REFUSED_FLAGS.contains(&name));
    arguments.iter().skip(1).take_while(|a| *a != "--").any(flag)
}

fn is_word(argument: &OsString) -> bool {
    !argument.as_encoded_bytes().starts_with(b"-")
}

/// Splits the parser's paragraphs ("error: …", "tip: …", "Usage: …") into a message and a hint.
fn usage_failure(rendered: &str, arguments: &[OsString]) -> Failure {
    let paragraphs: Vec<String> = rendered
        .split("\n\n")
        .map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|p| !p.is_empty())
        .collect();
    let first = paragraphs.first().map_or("the command line cannot be understood", String::as_str);
    let message = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    let tip = paragraphs.iter().skip(1).find_map(|p| p.strip_prefix("tip: "));
    let usage = paragraphs.iter().find(|p| p.starts_with("Usage: ")).map(String::as_str);
    let failure = Failure::usage("E-USAGE", message);
    match (tip, usage) {
        // Most likely a flag that does not exist.
        (Some(tip), _) if tip.starts_with("to pass '--") => failure.hint("'--help' after a command lists its flags"),
        (Some(tip), _) => match value_of_a_flag(tip, arguments) {
            Some((flag, value)) => failure.hint(format!(
                "when '{value}' is the value of {flag}, join them: {flag}={value}; else write '--' before it"
            )),
            None => failure.hint(tip),
        },
        (None, Some(usage)) => failure.hint(usage),
        (None, None) => failure.hint("'--help' after a command lists its flags"),
    }
}

/// The parser advises '-- -x' for every value that looks like a flag; behind a flag that takes one, that does not help.
fn value_of_a_flag<'a>(tip: &'a str, arguments: &'a [OsString]) -> Option<(&'a str, &'a str)> {
    let value = tip.strip_prefix("to pass '")?.split_once("' as a value")?.0;
    let before = |pair: &'a [OsString]| match pair {
        [flag, given] if given == value => flag.to_str(),
        _ => None,
    };
    let flag = arguments.windows(2).find_map(before)?;
    (flag.len() > 2 && flag.starts_with("--") && !flag.contains('=')).then_some((flag, value))
}

/// Makes untrusted text safe for a terminal and for a line-oriented log: control characters, escape sequences, line
/// breaks and the characters that reorder text become visible escapes.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c if is_unsafe(c) => escaped.extend(c.escape_unicode()),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    #[command(name = "pgark")]
    enum Commands {
        Backup {
            #[arg(long)]
            annotate: Option<String>,
        },
        ArchiveGet {
            name: String,
            #[arg(long)]
            to: Option<String>,
        },
    }

    fn arguments(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn usage_error(line: &str) -> Failure {
        let arguments = arguments(line);
        let error = Commands::try_parse_from(&arguments).expect_err("the line is wrong");
        Failure::from_clap(&error, &arguments).expect_err("not a request for help")
    }

    #[test]
    fn text_has_the_code_first_and_the_hint_on_its_own_line() {
        let failure = Failure::failed("E-WAL-GAP", "segment is missing").hint("'pgark verify --wal' lists gaps");
        assert_eq!(failure.to_text(), "E-WAL-GAP segment is missing\nHINT: 'pgark verify --wal' lists gaps\n");
    }

    #[test]
    fn json_has_schema_code_message_and_a_null_hint() {
        let json = Failure::refused("E-X", "no").to_json();
        assert_eq!(json.to_string(), r#"{"error":{"code":"E-X","hint":null,"message":"no"},"schema":1}"#);
    }

    #[test]
    fn control_characters_and_ansi_never_reach_the_terminal() {
        let text = Failure::failed("E-X", "db \u{1b}[31mred\u{1b}[0m\nE-OK done\r\u{7}\u{9b}\u{202e}").to_text();
        assert_eq!(text.lines().count(), 1);
        assert!(text.trim_end().chars().all(|c| !is_unsafe(c)), "{text:?}");
        assert!(text.contains("\\u{1b}[31mred") && text.contains("\\nE-OK"), "{text}");
        assert!(matches!(escape("plain ü text"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_misspelt_subcommand_is_a_usage_error_with_a_tip() {
        let failure = usage_error("pgark bakup");
        assert_eq!((failure.exit.code(), &*failure.code), (2, "E-USAGE"));
        assert!(failure.message.contains("'bakup'"), "{failure:?}");
        assert!(failure.hint.is_some_and(|h| h.contains("backup")));
    }

    #[test]
    fn a_value_that_looks_like_a_flag_is_to_be_joined_to_its_own() {
        let hint = |line: &str| usage_error(line).hint.expect("a hint");
        let line = "pgark archive-get --to -x";
        assert!(hint(line).contains("--to=-x"), "{}", hint(line));
        let line = "pgark archive-get -x";
        assert!(hint(line).contains("'-- -x'"), "{}", hint(line));
    }

    #[test]
    fn no_subcommand_is_a_usage_error() {
        assert_eq!(usage_error("pgark").exit, Exit::Usage);
    }

    #[test]
    fn archive_get_never_leaves_with_a_code_postgresql_takes_for_the_end_of_the_archive() {
        for line in ["pgark archive-get", "pgark archive-get a b c", "pgark archve-get a", "pgark --x archive-get a"] {
            assert_eq!(usage_error(line).exit.code(), 126, "{line}");
        }
        assert_eq!(usage_error("pgark backup --anotate x").exit.code(), 2);
    }

    #[test]
    fn the_words_of_a_passphrase_are_not_quoted_as_unexpected_arguments() {
        for line in ["pgark backup --passphrase correct horse battery", "pgark backup --password=correct --x"] {
            let failure = usage_error(line);
            assert_eq!(failure.code, "E-SECRET-ARGV");
            assert!(["correct", "horse", "battery"].iter().all(|word| !failure.to_text().contains(word)), "{failure}");
        }
    }

    #[test]
    fn help_and_version_are_not_failures() {
        let arguments = arguments("pgark backup --help");
        let error = Commands::try_parse_from(&arguments).expect_err("clap reports help as an error");
        let help = Failure::from_clap(&error, &arguments).expect("help is text to print");
        assert!(help.contains("Usage: pgark backup"), "{help}");
    }

    #[test]
    fn json_is_recognised_on_a_line_that_cannot_be_parsed() {
        assert!(wants_json(&arguments("pgark bakup --json")));
        assert!(!wants_json(&arguments("pgark annotate -- --json")));
    }

    #[test]
    fn exit_codes_are_the_published_ones() {
        use Exit::*;
        let all = [Done, Failed, Usage, Warnings, Refused, Cancelled, NoRepository, Locked, WrongKey, Damage];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4, 5, 10, 11, 12, 20]);
        assert_eq!([ValidationFailed, ArchiveGetOther].map(Exit::code), [21, 126]);
    }
}

//! What all pages are made of: times, sizes, states, and access to documents.

use std::fmt::Write;

use jiff::Timestamp;
use maud::{Markup, Render, html};
use serde_json::Value;

/// What somebody else has named or said: as text, and without characters that would turn round or hide what stands beside it.
pub struct Text<'a>(pub &'a str);

impl Render for Text<'_> {
    fn render_to(&self, buffer: &mut String) {
        let hides = |c: char| {
            (c.is_control() && c != '\n' && c != '\t')
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        };
        let shown: String = self.0.chars().map(|c| if hides(c) { '\u{fffd}' } else { c }).collect();
        shown.as_str().render_to(buffer);
    }
}

pub fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub fn number(value: &Value, key: &str) -> Option<u64> {
    value.get(key).and_then(Value::as_u64)
}

pub fn is(value: &Value, key: &str) -> bool {
    value.get(key) == Some(&Value::Bool(true))
}

/// One part of a path, whatever it holds.
pub fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

pub fn moment(at: Timestamp) -> Markup {
    html! { time datetime=(at) { (at.strftime("%Y-%m-%d %H:%M:%S")) } }
}

/// The moment, and how long ago that was.
pub fn since(at: Timestamp, now: Timestamp) -> Markup {
    html! { span.since { (moment(at)) " (" (ago(at, now)) ")" } }
}

pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let ms = now.duration_since(at).as_millis();
    match u64::try_from(ms) {
        Ok(ms) if ms < 1000 => "just now".into(),
        Ok(ms) => format!("{} ago", duration(ms)),
        Err(_) => format!("in {}", duration(ms.unsigned_abs().try_into().unwrap_or(u64::MAX))),
    }
}

/// In the two largest units.
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3600 if s.is_multiple_of(60) => format!("{} min", s / 60),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 if s % 3600 / 60 == 0 => format!("{} h", s / 3600),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ if s % 86_400 / 3600 == 0 => format!("{} d", s / 86_400),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut unit = 0;
    let mut tenths = u128::from(n) * 10 / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).unwrap_or(&"EiB"))
}

pub fn bytes_of(value: &Value, key: &str) -> Markup {
    html! { @match number(value, key) { Some(n) => (bytes(n)), None => (unknown()) } }
}

/// Never to be taken for nothing, or for all being well.
pub fn unknown() -> Markup {
    html! { span.unknown { "not known" } }
}

/// How something stands; a sign and a word, so that it does not need its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warn,
    Bad,
    Unknown,
    Busy,
}

impl Tone {
    pub fn class(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Warn => "warn",
            Tone::Bad => "bad",
            Tone::Unknown => "unknown",
            Tone::Busy => "busy",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Tone::Good => "✓",
            Tone::Warn => "!",
            Tone::Bad => "✕",
            Tone::Unknown => "?",
            Tone::Busy => "…",
        }
    }
}

pub fn pill(tone: Tone, words: &str) -> Markup {
    html! { span class={ "pill " (tone.class()) } { span.sign aria-hidden="true" { (tone.sign()) } (Text(words)) } }
}

pub fn job_state(state: &str) -> Markup {
    let tone = match state {
        "done" => Tone::Good,
        "warnings" | "cancelled" | "waiting_for_approval" => Tone::Warn,
        "queued" | "running" => Tone::Busy,
        "failed" | "timed_out" | "interrupted" => Tone::Bad,
        _ => Tone::Unknown,
    };
    pill(tone, &state.replace('_', " "))
}

pub fn verdict(verdict: &str) -> Markup {
    match verdict {
        "green" => pill(Tone::Good, "green"),
        "red" => pill(Tone::Bad, "red"),
        "not_proven" => pill(Tone::Warn, "not proven"),
        _ => pill(Tone::Unknown, "not known"),
    }
}

/// Of a check: that something was not checked is never shown as if it were right.
pub fn outcome(outcome: &str) -> Markup {
    match outcome {
        "ok" => pill(Tone::Good, "ok"),
        "failed" => pill(Tone::Bad, "failed"),
        _ => pill(Tone::Unknown, "not checked"),
    }
}

/// A sentence in place of a table that would have no rows.
pub fn empty(words: &str) -> Markup {
    html! { p.empty { (words) } }
}

/// For people, any document: names and values, lists and tables within each other.
pub fn tree(value: &Value) -> Markup {
    html! {
        @match value {
            Value::Null => span.unknown { "none" },
            Value::Bool(b) => (if *b { "yes" } else { "no" }),
            Value::Number(n) => (n),
            Value::String(s) => (Text(s)),
            Value::Array(all) if all.is_empty() => span.unknown { "none" },
            Value::Array(all) => ul { @for one in all { li { (tree(one)) } } },
            Value::Object(fields) => dl.tree {
                @for (key, one) in fields { dt { (Text(&key.replace('_', " "))) } dd { (tree(one)) } }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_text_and_nothing_else() {
        let shown = html! { p title=("\"><script>") { (Text("<img src=x>\u{202e}\u{1b}[0m&\u{200b}")) } }.into_string();
        assert!(!shown.contains("<script>") && !shown.contains("<img"), "{shown}");
        assert!(!shown.contains('\u{202e}') && !shown.contains('\u{1b}') && !shown.contains('\u{200b}'), "{shown}");
        assert_eq!(segment("../x y/ü\""), "..%2Fx%20y%2F%C3%BC%22");
    }

    #[test]
    fn figures_are_short() {
        let shown: Vec<String> = [0, 999, 5000, 60_000, 61_000, 3_600_000, 5_400_000, 90_000_000].map(duration).into();
        assert_eq!(shown, ["0 ms", "999 ms", "5 s", "1 min", "1 min 1 s", "1 h", "1 h 30 min", "1 d 1 h"]);
        let shown: Vec<String> = [0, 1023, 1024, 1536, 10 << 20, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 MiB", "15.9 EiB"]);
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().expect("a time");
        let at = |s: i64| now + jiff::SignedDuration::from_secs(s);
        assert_eq!(
            (ago(at(-5), now).as_str(), ago(at(5), now).as_str(), ago(now, now).as_str()),
            ("5 s ago", "in 5 s", "just now")
        );
    }
}

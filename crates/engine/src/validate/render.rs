//! Reports for people: Markdown, and HTML that needs nothing else.
//!
//! Invariant: whatever a name or a server's message contains, it is text in both, and one line.

use std::fmt::Write as _;

use super::report::{Check, Outcome, Report};

pub(crate) const CSS: &str = "body{font-family:system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;line-height:1.45}\
table{border-collapse:collapse;width:100%}th,td{border:1px solid #ccc;padding:.35em .6em;text-align:left;vertical-align:top}\
.ok{color:#176117}.failed{color:#a11414;font-weight:bold}.not_checked{color:#8a5a00}ul{margin:.2em 0;padding-left:1.2em}\
td.n{text-align:right}td li{overflow-wrap:anywhere}";

pub(crate) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Failed => "FAILED",
        Outcome::NotChecked => "not checked",
    }
}

fn verdict(report: &Report) -> String {
    let open = report.not_compared_with().join(", ");
    let said = match report.outcome {
        Outcome::Ok if report.against.is_some() && !open.is_empty() => {
            return format!("What was compared of the database is what the truth says. Not compared: {open}.");
        }
        Outcome::Ok if report.against.is_some() => "The database is what the truth says.",
        Outcome::Ok => "Nothing is wrong with what was checked; there was no truth to compare with.",
        Outcome::Failed => "The database is not what it should be.",
        Outcome::NotChecked => "Nothing wrong was found, but not everything was checked.",
    };
    said.to_owned()
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let version = |n: u32| format!("{}.{}", n / 10_000, n % 10_000);
    let mut facts = vec![
        ("Database", format!("{}, {} bytes", report.database.lossy(), report.size_bytes)),
        ("Server", format!("PostgreSQL {}", version(report.server_version_num))),
        ("Begun", format!("{}, took {} ms", report.started, report.duration_ms)),
    ];
    if let Some(a) = &report.against {
        let of = format!(
            "{} as of {}, PostgreSQL {}, {} bytes",
            a.database.lossy(),
            a.taken,
            version(a.server_version_num),
            a.size_bytes
        );
        facts.push(("Compared with", of));
        facts.extend(a.backup.as_ref().map(|id| ("Backup", id.to_string())));
    }
    facts
}

/// Everything that is said about a check beside its outcome.
pub(crate) fn remarks(check: &Check) -> Vec<String> {
    let mut all: Vec<String> = check.details.clone();
    if check.more > 0 {
        all.push(format!("and {} more", check.more));
    }
    all.extend(check.reasons.iter().map(|reason| format!("not checked: {reason}")));
    all.extend(check.notes.iter().map(|note| format!("note: {note}")));
    all
}

pub(crate) fn figures(check: &Check) -> String {
    match (check.failed, check.not_checked) {
        (0, 0) => check.checked.to_string(),
        (failed, 0) => format!("{} ({failed} failed)", check.checked),
        (0, not) => format!("{} ({not} not)", check.checked),
        (failed, not) => format!("{} ({failed} failed, {not} not)", check.checked),
    }
}

pub fn to_markdown(report: &Report) -> String {
    let mut out = format!("# Validation: {}\n\n{}\n\n", word(report.outcome), verdict(report));
    for (name, value) in facts(report) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(out, "- {name}: {}", markdown(&value));
    }
    out.push_str("\n| check | outcome | checked |\n|---|---|---|\n");
    for check in &report.checks {
        let _ = writeln!(out, "| {} | {} | {} |", markdown(&check.name), word(check.outcome), figures(check));
    }
    for check in report.checks.iter().filter(|c| !remarks(c).is_empty()) {
        let _ = writeln!(out, "\n## {}: {}\n", markdown(&check.name), word(check.outcome));
        for remark in remarks(check) {
            let _ = writeln!(out, "- {}", markdown(&remark));
        }
    }
    out
}

pub fn to_html(report: &Report) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>Validation of {}</title><style>{CSS}</style></head><body>\n<h1>Validation: <span class=\"{}\">{}</span></h1>\n<p>{}</p>\n<table>\n",
        html(&report.database.lossy()),
        class(report.outcome),
        word(report.outcome),
        html(&verdict(report)),
    );
    for (name, value) in facts(report) {
        let _ = writeln!(out, "<tr><th>{name}</th><td>{}</td></tr>", html(&value));
    }
    out.push_str(
        "</table>\n<h2>Checks</h2>\n<table>\n<tr><th>check</th><th>outcome</th><th>checked</th><th>remarks</th></tr>\n",
    );
    for check in &report.checks {
        let items: String = remarks(check).iter().map(|remark| format!("<li>{}</li>", html(remark))).collect();
        let list = if items.is_empty() { items } else { format!("<ul>{items}</ul>") };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class=\"{}\">{}</td><td class=\"n\">{}</td><td>{list}</td></tr>",
            html(&check.name),
            class(check.outcome),
            word(check.outcome),
            figures(check)
        );
    }
    out.push_str("</table>\n</body></html>\n");
    out
}

pub(crate) fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Failed => "failed",
        Outcome::NotChecked => "not_checked",
    }
}

/// Any text, as text of an HTML document.
pub fn html_text(text: &str) -> String {
    html(text)
}

/// Any text, as one line of a Markdown document.
pub fn markdown_text(text: &str) -> String {
    markdown(text)
}

pub(crate) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

pub(crate) fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '<' | '>' | '#' | '|' | '!' | '~' | '&' => {
                out.push('\\');
                out.push(c);
            }
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Characters that end a line, control a terminal, or turn the direction of writing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::super::report::{CheckKind, Tally};
    use super::*;
    use crate::truth::Text;

    fn report(hostile: &str) -> Report {
        let mut tally = Tally::new(hostile, CheckKind::User);
        tally.failed(hostile.to_owned());
        tally.not_checked(hostile);
        tally.noted(hostile.to_owned());
        let checks = vec![tally.finish()];
        Report {
            schema: 1,
            database: Text::from(hostile),
            server_version_num: 150_018,
            size_bytes: 1,
            started: "2026-08-22T03:15:00Z".parse().expect("a time"),
            duration_ms: 5,
            against: None,
            outcome: Report::judge(&checks),
            checks,
        }
    }

    #[test]
    fn hostile_names_stay_text() {
        let hostile = "<script>alert('x')</script>\n# | x | `y` \u{202e}\u{1b}[31m\"&";
        let page = to_html(&report(hostile));
        assert!(!page.contains("<script>") && !page.contains('\u{1b}') && !page.contains('\u{202e}'), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)"));
        let text = to_markdown(&report(hostile));
        assert!(!text.contains("<script>") && !text.contains("\n# |") && !text.contains('\u{1b}'), "{text}");
        assert!(text.starts_with("# Validation: FAILED\n"));
    }
}

//! The report of a rehearsal for people: Markdown, and HTML that needs nothing else.
//!
//! Invariant: whatever a name or a server's message contains, it is text in both, and one line.

use std::fmt::Write as _;
use std::time::Duration;

use super::report::{Objective, Report, Verdict};
use crate::validate::Check;
use crate::validate::render::{CSS, class, figures, html, markdown, remarks, word};

fn verdict(report: &Report) -> &'static str {
    match report.verdict {
        Verdict::Green => "The backup was restored, recovered and checked, and nothing is wrong.",
        Verdict::NotProven => "Nothing wrong was found, but not everything was checked: this is no proof.",
        Verdict::Red => "The backup could not be recovered, or what came of it is not right.",
    }
}

fn span(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs_f64();
    if seconds < 120.0 { format!("{seconds:.1} s") } else { format!("{:.1} min", seconds / 60.0) }
}

fn objective(of: &Objective) -> String {
    let measured = of.measured_ms.map_or("not measured".to_owned(), span);
    match of.target_ms {
        None => format!("{measured}, no target is set"),
        Some(target) if of.measured_ms.is_none() => format!("{measured}, target {}", span(target)),
        Some(target) => {
            format!("{measured}, target {}: {}", span(target), if of.is_missed() { "MISSED" } else { "kept" })
        }
    }
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Cluster", report.cluster.to_string())];
    let finished = report.backup_finished.map_or_else(String::new, |at| format!(", finished {at}"));
    facts.extend(report.backup.as_ref().map(|id| ("Backup", format!("{id} ({}){finished}", report.kind))));
    facts.extend(report.server_version_num.map(|n| ("Server", format!("PostgreSQL {}.{}", n / 10_000, n % 10_000))));
    facts.push(("Target", report.target.clone()));
    facts.extend(report.reached.as_ref().map(|at| ("Recovered to", at.clone())));
    facts.extend(report.recovered_to.map(|at| ("Last commit", at.to_string())));
    facts.push(("Begun", format!("{}, took {}", report.started, span(report.duration_ms))));
    for step in &report.steps {
        let bytes = if step.bytes > 0 { format!(" for {} bytes", step.bytes) } else { String::new() };
        facts.push(("Step", format!("{}: {}{bytes}", step.step.as_str(), span(step.duration_ms))));
    }
    facts.push(("RPO", objective(&report.rpo)));
    facts.push(("RTO", objective(&report.rto)));
    facts
}

/// Every check with what it is about.
fn checks(report: &Report) -> Vec<(String, &Check)> {
    let of_cluster = report.checks.iter().map(|c| ("the cluster".to_owned(), c));
    let of_databases = report.databases.iter().flat_map(|d| {
        let name = format!("database '{}'", d.database.lossy().escape_debug());
        d.checks.iter().map(move |c| (name.clone(), c))
    });
    of_cluster.chain(of_databases).collect()
}

/// Headings and their lines.
fn lists(report: &Report) -> Vec<(&'static str, Vec<String>)> {
    let mut reasons: Vec<String> = report.reasons.iter().map(|r| format!("{} {}", r.code, r.what)).collect();
    if report.more_reasons > 0 {
        reasons.push(format!("and {} more", report.more_reasons));
    }
    let all =
        [("Why it is red", reasons), ("Not checked", report.not_checked.clone()), ("Notes", report.notes.clone())];
    all.into_iter().filter(|(_, lines)| !lines.is_empty()).collect()
}

pub fn to_markdown(report: &Report) -> String {
    let mut out = format!("# Drill: {}\n\n{}\n\n", report.verdict.as_str(), verdict(report));
    for (name, value) in facts(report) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(out, "- {name}: {}", markdown(&value));
    }
    for (heading, lines) in lists(report) {
        let _ = writeln!(out, "\n## {heading}\n");
        for line in &lines {
            let _ = writeln!(out, "- {}", markdown(line));
        }
    }
    out.push_str("\n## Checks\n\n| of | check | outcome | checked |\n|---|---|---|---|\n");
    for (of, check) in checks(report) {
        let (name, outcome) = (markdown(&check.name), word(check.outcome));
        let _ = writeln!(out, "| {} | {name} | {outcome} | {} |", markdown(&of), figures(check));
    }
    for (of, check) in checks(report).into_iter().filter(|(_, c)| !remarks(c).is_empty()) {
        let _ = writeln!(out, "\n### {}: {}: {}\n", markdown(&of), markdown(&check.name), word(check.outcome));
        for remark in remarks(check) {
            let _ = writeln!(out, "- {}", markdown(&remark));
        }
    }
    out
}

pub fn to_html(report: &Report) -> String {
    let color = match report.verdict {
        Verdict::Green => "ok",
        Verdict::NotProven => "not_checked",
        Verdict::Red => "failed",
    };
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>Drill of {}</title><style>{CSS}</style></head><body>\n<h1>Drill: <span class=\"{color}\">{}</span></h1>\n<p>{}</p>\n<table>\n",
        html(report.cluster.as_str()),
        report.verdict.as_str(),
        html(verdict(report)),
    );
    for (name, value) in facts(report) {
        let _ = writeln!(out, "<tr><th>{name}</th><td>{}</td></tr>", html(&value));
    }
    out.push_str("</table>\n");
    for (heading, lines) in lists(report) {
        let items: String = lines.iter().map(|line| format!("<li>{}</li>", html(line))).collect();
        let _ = writeln!(out, "<h2>{heading}</h2>\n<ul>{items}</ul>");
    }
    out.push_str(
        "<h2>Checks</h2>\n<table>\n<tr><th>of</th><th>check</th><th>outcome</th><th>checked</th><th>remarks</th></tr>\n",
    );
    for (of, check) in checks(report) {
        let items: String = remarks(check).iter().map(|remark| format!("<li>{}</li>", html(remark))).collect();
        let list = if items.is_empty() { items } else { format!("<ul>{items}</ul>") };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"{}\">{}</td><td class=\"n\">{}</td><td>{list}</td></tr>",
            html(&of),
            html(&check.name),
            class(check.outcome),
            word(check.outcome),
            figures(check)
        );
    }
    out.push_str("</table>\n</body></html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use pgark_repo::catalog::BackupKind;
    use pgark_repo::names::ClusterName;

    #[test]
    fn hostile_words_stay_text() {
        let hostile = "<script>alert('x')</script>\n# | x | `y` \u{202e}\u{1b}[31m\"&";
        let name = ClusterName::parse("main").expect("a name");
        let mut report = Report::new(&name, BackupKind::Physical, hostile.into(), Timestamp::UNIX_EPOCH);
        report.fail("E-X", hostile);
        report.not_checked(hostile);
        report.notes.push(hostile.into());
        report.conclude(Duration::from_secs(3));
        let page = to_html(&report);
        assert!(!page.contains("<script>") && !page.contains('\u{1b}') && !page.contains('\u{202e}'), "{page}");
        let text = to_markdown(&report);
        assert!(!text.contains("<script>") && !text.contains("\n# |") && !text.contains('\u{1b}'), "{text}");
        assert!(text.starts_with("# Drill: red\n"), "{text}");
    }
}

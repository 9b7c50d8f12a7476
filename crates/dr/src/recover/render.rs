//! The report for people: Markdown, and HTML that needs nothing else.
//!
//! Invariant: whatever a name or a message contains, it is text in both.

use std::fmt::Write as _;

use pgark_engine::validate::{self, html_text as html, markdown_text as markdown};

use super::report::{Report, StepOutcome, StepReport, span};
use super::{Goal, State};

const CSS: &str = "body{font-family:system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;line-height:1.45}\
table{border-collapse:collapse;width:100%}th,td{border:1px solid #ccc;padding:.35em .6em;text-align:left;vertical-align:top}\
.ok{color:#176117}.failed{color:#a11414;font-weight:bold}.warned{color:#8a5a00}td,li{overflow-wrap:anywhere}";

fn word(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Done => "done",
        StepOutcome::Failed => "FAILED",
        StepOutcome::Undone => "taken back",
        StepOutcome::Left => "NOT taken back",
        StepOutcome::Begun => "cut off",
        StepOutcome::NotReached => "not reached",
    }
}

fn class(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Done => "ok",
        StepOutcome::Failed | StepOutcome::Left => "failed",
        StepOutcome::Undone | StepOutcome::Begun | StepOutcome::NotReached => "warned",
    }
}

fn verdict(report: &Report) -> &'static str {
    match report.state {
        State::UnderWay => "It has not ended.",
        State::Restored => "The service is back.",
        State::Refused => "Nothing was changed.",
        State::NotStopped => "The application could not be stopped. No data was touched.",
        State::Halted => "Stopped here. The application is not started; the data that was there before is kept.",
        State::NotStarted => "The data is restored. The application is not up, or does not answer as it should.",
        State::RolledBack => {
            "The application points again to where it pointed before; the steps tell whether it runs on that."
        }
        State::Abandoned if report.serves() => {
            "It was given up when the service was back: what was left is that the recovered cluster archives."
        }
        State::Abandoned if report.in_place && report.database.is_some() => {
            "It was given up. The restored database is in its place; the application was not started."
        }
        State::Abandoned if report.in_place => {
            "It was given up. The recovered cluster is in its place; the application was not started."
        }
        State::Abandoned => "It was given up, and what could be was taken back. The application was not started.",
    }
}

fn goal(goal: Option<Goal>, none: &str) -> String {
    let Some(goal) = goal else { return none.to_owned() };
    let measured = span(goal.measured_ms);
    match (goal.target_ms, goal.met) {
        (Some(target), Some(true)) => format!("{measured}, objective {} met", span(target)),
        (Some(target), _) => format!("{measured}, objective {} MISSED", span(target)),
        (None, _) => format!("{measured}, no objective is set"),
    }
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Recovery", report.id.clone()), ("Cluster", report.cluster.clone())];
    facts.extend(report.database.clone().map(|d| ("Database", d)));
    facts.extend(report.place.as_ref().map(|p| ("Directory", p.display().to_string())));
    facts.extend([
        ("By", report.by.clone()),
        ("Reason", report.reason.clone().unwrap_or_else(|| "not given".into())),
        ("Declared", report.declared.to_string()),
        ("Begun", report.began.to_string()),
        ("Ended", report.ended.to_string()),
    ]);
    facts.extend(report.backup.as_ref().map(|id| ("Backup", id.to_string())));
    facts.extend(report.recovery_point.map(|p| ("Recovery point", p.to_string())));
    let rpo = report.rpo.filter(|_| report.took_place());
    let none = if report.took_place() { "no recovery point was chosen" } else { "nothing was restored" };
    facts.push(("Data lost (RPO)", goal(rpo, none)));
    facts.push(("Time taken (RTO)", goal(report.rto, "the service is not back")));
    facts.extend(report.resumed.iter().map(|r| ("Gone on with", format!("{} by {}", r.at, r.by))));
    facts.push(("Journal", format!("BLAKE3 {}", report.journal_hash)));
    facts
}

fn took(step: &StepReport) -> String {
    step.took_ms.map(span).unwrap_or_default()
}

fn told(step: &StepReport) -> String {
    let code = step.code.as_ref().map(|c| format!("{c} ")).unwrap_or_default();
    format!("{code}{}", step.told.as_deref().unwrap_or_default())
}

/// What those who look back at it have to begin with, when it took too long.
fn post_mortem(report: &Report) -> Option<Vec<String>> {
    let rto = report.rto.filter(Goal::missed)?;
    let over = rto.measured_ms.saturating_sub(rto.target_ms.unwrap_or(0));
    let mut lines = vec![format!("The objective was exceeded by {}.", span(over))];
    let before = report.began.as_millisecond().saturating_sub(report.declared.as_millisecond());
    if let Some(before) = u64::try_from(before).ok().filter(|ms| *ms > 0) {
        lines.push(format!("From the declaration to the begin of the recovery: {}.", span(before)));
    }
    let mut slow: Vec<&StepReport> = report.steps.iter().filter(|s| s.took_ms.is_some()).collect();
    slow.sort_by_key(|s| std::cmp::Reverse(s.took_ms));
    lines.extend(slow.iter().take(3).map(|s| format!("Step {}: {}.", s.name, took(s))));
    lines.extend(report.resumed.iter().map(|r| format!("It was cut off, and gone on with at {}.", r.at)));
    lines.extend(["Cause: to be filled in.", "What will be different next time: to be filled in."].map(String::from));
    Some(lines)
}

fn headline(state: State) -> String {
    state.as_str().replace('_', " ").to_uppercase()
}

/// The lists behind the table.
fn lists(report: &Report) -> Vec<(&'static str, Vec<String>)> {
    let failure = report.failure.iter().flat_map(|f| {
        let hint = f.hint.as_ref().map(|h| format!("What to do: {h}"));
        [Some(format!("Step {}: {} {}", f.step, f.code, f.why)), hint].into_iter().flatten()
    });
    let lists = [
        ("Why it stopped", failure.collect()),
        ("Warnings", report.warnings.clone()),
        ("What is where now", report.left.clone()),
        ("Post-mortem", post_mortem(report).unwrap_or_default()),
    ];
    lists.into_iter().filter(|(_, lines): &(_, Vec<String>)| !lines.is_empty()).collect()
}

pub fn to_markdown(report: &Report) -> String {
    let mut out = format!("# Recovery: {}\n\n{}\n\n", headline(report.state), verdict(report));
    for (name, value) in facts(report) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(out, "- {name}: {}", markdown(&value));
    }
    out.push_str("\n| step | outcome | began | took | |\n|---|---|---|---|---|\n");
    for step in &report.steps {
        let began = step.started.map(|t| t.strftime("%H:%M:%S").to_string()).unwrap_or_default();
        let _ = writeln!(
            out,
            "| {} | {} | {began} | {} | {} |",
            markdown(&step.name),
            word(step.outcome),
            took(step),
            markdown(&told(step))
        );
    }
    for (title, lines) in lists(report) {
        let _ = writeln!(out, "\n## {title}\n");
        for line in lines {
            let _ = writeln!(out, "- {}", markdown(&line));
        }
    }
    for found in report.validation.iter().chain(&report.validations) {
        // One document, one first heading.
        let _ = write!(out, "\n{}", validate::to_markdown(found).replacen("# ", "## ", 1).replace("\n## ", "\n### "));
    }
    out
}

pub fn to_html(report: &Report) -> String {
    let state = if report.restored { "ok" } else { "failed" };
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>Recovery {}</title><style>{CSS}</style></head><body>\n<h1>Recovery: <span class=\"{state}\">{}</span></h1>\n<p>{}</p>\n<table>\n",
        html(&report.id),
        headline(report.state),
        verdict(report),
    );
    for (name, value) in facts(report) {
        let _ = writeln!(out, "<tr><th>{name}</th><td>{}</td></tr>", html(&value));
    }
    out.push_str("</table>\n<h2>Steps</h2>\n<table>\n<tr><th>step</th><th>outcome</th><th>began</th><th>took</th><th></th></tr>\n");
    for step in &report.steps {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class=\"{}\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            html(&step.name),
            class(step.outcome),
            word(step.outcome),
            step.started.map(|t| t.strftime("%H:%M:%S").to_string()).unwrap_or_default(),
            took(step),
            html(&told(step))
        );
    }
    out.push_str("</table>\n");
    for (title, lines) in lists(report) {
        let items: String = lines.iter().map(|line| format!("<li>{}</li>", html(line))).collect();
        let _ = writeln!(out, "<h2>{title}</h2>\n<ul>{items}</ul>");
    }
    for found in report.validation.iter().chain(&report.validations) {
        let word = match found.outcome {
            validate::Outcome::Ok => "ok",
            validate::Outcome::Failed => "FAILED",
            validate::Outcome::NotChecked => "not complete",
        };
        let _ = writeln!(out, "<h2>Validation of {}: {word}</h2>\n<ul>", html(&found.database.lossy()));
        for check in &found.checks {
            let details: Vec<String> = check.details.iter().chain(&check.reasons).take(20).map(|d| html(d)).collect();
            let _ = writeln!(
                out,
                "<li>{}: {:?}, {} checked. {}</li>",
                html(&check.name),
                check.outcome,
                check.checked,
                details.join("; ")
            );
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</body></html>\n");
    out
}

//! Markdown, and HTML that needs nothing else and can be printed.

use std::fmt::Write as _;

use pgark_engine::validate::{html_text as html, markdown_text as markdown};

use super::{Block, Document};

const CSS: &str = "body{font-family:system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;line-height:1.45}\
table{border-collapse:collapse;width:100%}th,td{border:1px solid #ccc;padding:.35em .6em;text-align:left;vertical-align:top}\
pre{background:#f4f4f4;padding:.5em .8em;white-space:pre-wrap;overflow-wrap:anywhere}h2{break-before:page}";

/// A command as it is typed. Indented, so that nothing in it can end it.
fn code(command: &str) -> String {
    command.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

pub fn to_markdown(document: &Document) -> String {
    let mut out = format!("# {}\n", markdown(&document.title));
    for line in &document.about {
        // Writing to a String cannot fail, here and below.
        let _ = write!(out, "\n{}\n", markdown(line));
    }
    for section in &document.sections {
        let _ = writeln!(out, "\n## {}", markdown(&section.title));
        for block in &section.blocks {
            out.push('\n');
            markdown_block(&mut out, block);
        }
    }
    out
}

fn markdown_block(out: &mut String, block: &Block) {
    match block {
        Block::Text { text } => *out += &format!("{}\n", markdown(text)),
        Block::List { items } => out.extend(items.iter().map(|item| format!("- {}\n", markdown(item)))),
        Block::Steps { steps } => {
            for (n, step) in steps.iter().enumerate() {
                let _ = writeln!(out, "{}. {}", n + 1, markdown(&step.text));
                if !step.commands.is_empty() {
                    out.push('\n');
                }
                out.extend(step.commands.iter().map(|command| format!("        {}\n", code(command))));
                if !step.commands.is_empty() {
                    out.push('\n');
                }
            }
        }
        Block::Table { head, rows } => {
            let line =
                |cells: &[String]| format!("| {} |", cells.iter().map(|c| markdown(c)).collect::<Vec<_>>().join(" | "));
            let _ = writeln!(out, "{}\n|{}", line(head), "---|".repeat(head.len()));
            out.extend(rows.iter().map(|row| format!("{}\n", line(row))));
        }
    }
}

pub fn to_html(document: &Document) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{0}</title><style>{CSS}</style></head><body>\n<h1>{0}</h1>\n",
        html(&document.title)
    );
    for line in &document.about {
        let _ = writeln!(out, "<p>{}</p>", html(line));
    }
    for section in &document.sections {
        let _ = writeln!(out, "<h2>{}</h2>", html(&section.title));
        section.blocks.iter().for_each(|block| html_block(&mut out, block));
    }
    out.push_str("</body></html>\n");
    out
}

fn html_block(out: &mut String, block: &Block) {
    let _ = match block {
        Block::Text { text } => writeln!(out, "<p>{}</p>", html(text)),
        Block::List { items } => {
            let items: String = items.iter().map(|item| format!("<li>{}</li>", html(item))).collect();
            writeln!(out, "<ul>{items}</ul>")
        }
        Block::Steps { steps } => {
            let pre = |command: &String| format!("<pre>{}</pre>", html(&code(command)));
            let items: String = steps
                .iter()
                .map(|s| format!("<li>{}{}</li>\n", html(&s.text), s.commands.iter().map(pre).collect::<String>()))
                .collect();
            writeln!(out, "<ol>{items}</ol>")
        }
        Block::Table { head, rows } => {
            let row = |cells: &[String], tag: &str| {
                let cells: String = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", html(c))).collect();
                format!("<tr>{cells}</tr>\n")
            };
            let rows: String = rows.iter().map(|cells| row(cells, "td")).collect();
            writeln!(out, "<table>{}{rows}</table>", row(head, "th"))
        }
    };
}

//! Writes results: one JSON document or text, to standard output.
//!
//! Invariant: a reader that goes away (`pgark info | head -1`) ends the output quietly and changes no exit code; any
//! other failure to write is an error. Nothing else in this program writes to standard output.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::{Failure, escape};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ColorChoice {
    #[default]
    Auto,
    Always,
    Never,
}

impl ColorChoice {
    /// Whether to colour. In doubt a terminal gets colours, unless `NO_COLOR` is set to anything.
    pub fn enabled(self, is_terminal: bool, no_color: Option<&std::ffi::OsStr>) -> bool {
        match self {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => is_terminal && no_color.is_none_or(std::ffi::OsStr::is_empty),
        }
    }

    pub fn for_stderr(self) -> bool {
        self.enabled(io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref())
    }
}

/// The form of results and failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
}

/// Prints a result in the form that was asked for; the text is only made when it is wanted.
pub fn result<T: Serialize>(form: Form, document: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match form {
        Form::Json => write_json(&mut stdout, document),
        Form::Text => write_text(&mut stdout, &text()),
    }
}

/// Prints text as it is: help, a completion script, a man page.
pub fn text(text: &str) -> Result<(), Failure> {
    write_text(&mut io::stdout().lock(), text)
}

/// Reports a failure: to people on stderr, to programs on stdout. When that is impossible too, only the exit code is
/// left to say it.
pub fn failure(form: Form, failure: &Failure) {
    let _ = match form {
        Form::Text => io::stderr().lock().write_all(failure.to_text().as_bytes()),
        Form::Json => write_json(&mut io::stdout().lock(), &failure.to_json()).map_err(io::Error::other),
    };
}

/// Tells the user something beside the result. A stderr that is gone must not fail the job.
pub fn warning(message: &str) {
    let _ = writeln!(io::stderr().lock(), "WARNING: {}", escape(message));
}

pub fn write_json<T: Serialize>(to: &mut impl Write, document: &T) -> Result<(), Failure> {
    let mut bytes = serde_json::to_vec(document)
        .map_err(|error| Failure::failed("E-INTERNAL", format!("the result cannot be written as JSON: {error}")))?;
    bytes.push(b'\n');
    finish(to.write_all(&bytes).and_then(|()| to.flush()))
}

pub fn write_text(to: &mut impl Write, text: &str) -> Result<(), Failure> {
    finish(to.write_all(text.as_bytes()).and_then(|()| to.flush()))
}

fn finish(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed("E-OUTPUT", format!("the result cannot be written to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A text table: columns as wide as their widest cell, two spaces between them. Cells are escaped.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &[(&str, Align)]) -> Table {
        let columns = columns.iter().map(|(title, align)| ((*title).to_owned(), *align)).collect();
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row. Missing cells are empty.
    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| escape(cell.as_ref()).into_owned()).collect();
        assert!(cells.len() <= self.columns.len(), "a row has no more cells than the table has columns");
        self.rows.push(cells);
    }

    pub fn to_text(&self) -> String {
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| title.clone()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&titles).chain(&self.rows).collect();
        let cell = |line: &Vec<String>, column: usize| line.get(column).cloned().unwrap_or_default();
        let mut widths = Vec::new();
        for column in 0..self.columns.len() {
            widths.push(lines.iter().map(|line| cell(line, column).chars().count()).max().unwrap_or(0));
        }
        let mut text = String::new();
        for line in lines {
            let mut row = String::new();
            for (column, ((_, align), width)) in self.columns.iter().zip(&widths).enumerate() {
                let cell = cell(line, column);
                let gap = if column == 0 { "" } else { "  " };
                // Writing to a String cannot fail.
                let _ = match align {
                    Align::Left => write!(row, "{gap}{cell:<width$}"),
                    Align::Right => write!(row, "{gap}{cell:>width$}"),
                };
            }
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `4.4 GB`, in powers of 1000.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1000;
    let mut rest = u128::from(bytes) * 10 % 1000;
    for unit in UNITS {
        let rounded = tenths + u128::from(rest >= 500);
        if rounded < 10_000 || unit == "EB" {
            return format!("{}.{} {unit}", rounded / 10, rounded % 10);
        }
        rest = tenths % 1000;
        tenths /= 1000;
    }
    format!("{bytes} B")
}

/// `350 ms`, `12.3 s`, `1m 12s`, `2h 5m`, `3d 4h`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}.{} s", duration.subsec_millis() / 100),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// RFC 3339 in UTC, whole seconds: `2026-08-22T03:15:00Z`.
pub fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_quiet_and_a_full_disk_is_not() {
        assert_eq!(write_text(&mut Broken(ErrorKind::BrokenPipe), "x"), Ok(()));
        assert_eq!(write_json(&mut Broken(ErrorKind::BrokenPipe), &1), Ok(()));
        let failure = write_text(&mut Broken(ErrorKind::StorageFull), "x").expect_err("lost output");
        assert_eq!((&*failure.code, failure.exit.code()), ("E-OUTPUT", 1));
    }

    #[test]
    fn json_is_one_document_on_one_line() {
        let mut bytes = Vec::new();
        write_json(&mut bytes, &serde_json::json!({"schema": 1})).expect("written");
        assert_eq!(bytes, b"{\"schema\":1}\n");
    }

    #[test]
    fn tables_align_numbers_to_the_right_and_escape_cells() {
        let mut table = Table::new(&[("id", Align::Left), ("size", Align::Right), ("note", Align::Left)]);
        table.row(["20260822-031500F", "4.4 GB", ""]);
        table.row(["a", "12 B", "\u{1b}[31mx"]);
        let expected = "id                  size  note\n20260822-031500F  4.4 GB\n\
                        a                   12 B  \\u{1b}[31mx\n";
        assert_eq!(table.to_text(), expected);
    }

    #[test]
    fn sizes_are_read_by_people() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1049, "1.0 kB"),
            (1050, "1.1 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (4_400_000_000, "4.4 GB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn durations_are_read_by_people() {
        let cases = [(0, "0 ms"), (350, "350 ms"), (12_340, "12.3 s"), (72_000, "1m 12s"), (7_500_000, "2h 5m")];
        for (ms, text) in cases {
            assert_eq!(human_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(human_duration(Duration::from_secs(273_600)), "3d 4h");
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = jiff::Timestamp::from_millisecond(1_787_368_500_999).expect("in range");
        assert_eq!(timestamp(time), "2026-08-22T03:15:00Z");
    }

    #[test]
    fn colour_follows_the_flag_the_terminal_and_no_color() {
        let set = Some(std::ffi::OsStr::new("1"));
        assert!(ColorChoice::Auto.enabled(true, None) && ColorChoice::Always.enabled(false, set));
        assert!(!ColorChoice::Auto.enabled(true, set) && !ColorChoice::Auto.enabled(false, None));
        assert!(!ColorChoice::Never.enabled(true, None));
    }
}

//! The timeline of a cluster: moments that can be recovered, WAL and its gaps, backups, drills, restore points. A picture with
//! the same said in a table below it; the script makes a click in it a moment in the form.

use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use serde_json::Value;

use super::parts::{Text, empty, is, moment, segment, word};
use super::{kind_of, path, was_read};
use crate::http::Asked;
use crate::known::{list, time};

const WIDTH: i64 = 1000;
const LEFT: i64 = 118;
const RIGHT: i64 = 12;
const LANE: i64 = 34;
const TOP: i64 = 8;
/// More could not be told apart.
const MARKS_MAX: usize = 400;
const LANES: [&str; 5] = ["Recoverable", "WAL", "Backups", "Drills", "Events"];
const SPANS: [(&str, &str, i64); 5] = [
    ("1h", "1 hour", 1),
    ("24h", "24 hours", 24),
    ("7d", "7 days", 168),
    ("30d", "30 days", 720),
    ("1y", "1 year", 8784),
];
const TICKS_MAX: i64 = 7;
/// Distances of ticks, in seconds.
const STEPS: [i64; 16] = [
    60, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800, 432_000, 864_000, 2_592_000,
    5_184_000,
];

/// What is shown of time.
pub struct Span {
    name: &'static str,
    from: Timestamp,
    to: Timestamp,
}

impl Span {
    /// As asked for; otherwise the shortest that has all there is, if that is not more than a month.
    pub fn of(asked: &Asked<'_>, info: &Value, backups: &Value) -> Span {
        let begins = list(info, "windows").iter().filter_map(|w| time(w, "from_time"));
        let begin = begins.chain(list(backups, "backups").iter().filter_map(|b| time(b, "finished"))).min();
        let age = begin.map_or(0, |at| asked.now.duration_since(at).as_hours());
        let fits = SPANS.iter().find(|(_, _, hours)| *hours > age).filter(|(_, _, hours)| *hours <= 720);
        let named = SPANS.iter().find(|(name, ..)| asked.query("span") == Some(*name));
        let &(name, _, hours) = named.or(fits).unwrap_or(&SPANS[3]);
        let from = asked.now.saturating_sub(SignedDuration::from_hours(hours)).unwrap_or(Timestamp::MIN);
        Span { name, from, to: asked.now }
    }

    fn x(&self, at: Timestamp) -> i64 {
        let (from, to) = (self.from.as_millisecond(), self.to.as_millisecond());
        let along = (at.as_millisecond() - from).clamp(0, to - from);
        LEFT + along * (WIDTH - LEFT - RIGHT) / (to - from).max(1)
    }

    fn has(&self, at: Timestamp) -> bool {
        (self.from..=self.to).contains(&at)
    }

    /// A piece of a lane, if anything of it is shown; wide enough to be seen.
    fn bar(&self, from: Timestamp, to: Timestamp) -> Option<(i64, i64)> {
        (to >= self.from && from <= self.to).then(|| {
            let (from, to) = (self.x(from), self.x(to));
            (from.min(WIDTH - RIGHT - 3), (to - from).max(3))
        })
    }

    fn ticks(&self) -> Vec<Timestamp> {
        let (from, to) = (self.from.as_second(), self.to.as_second());
        let step = STEPS.into_iter().find(|step| (to - from) / step <= TICKS_MAX).unwrap_or(5_184_000);
        let first = from.div_euclid(step) * step + step;
        (0..=TICKS_MAX)
            .filter_map(|n| Timestamp::from_second(first + n * step).ok())
            .filter(|at| self.has(*at))
            .collect()
    }

    fn label(&self, at: Timestamp) -> String {
        let day = self.to.duration_since(self.from) > SignedDuration::from_hours(48);
        at.strftime(if day { "%b %d" } else { "%H:%M" }).to_string()
    }
}

type Spans = Vec<(Timestamp, Timestamp)>;

/// Times of what is archived without a break, and of what lies between; by timeline of PostgreSQL.
fn coverage(wal: &Value) -> (Spans, Spans) {
    let (mut there, mut missing) = (vec![], vec![]);
    for timeline in list(wal, "timelines") {
        let ranges = list(timeline, "ranges").iter();
        let times: Vec<_> = ranges.filter_map(|r| Some((time(r, "from_time")?, time(r, "to_time")?))).collect();
        missing.extend(times.windows(2).filter_map(|pair| match pair {
            [(_, ended), (begins, _)] => Some((*ended, *begins)),
            _ => None,
        }));
        there.extend(times);
    }
    (there, missing)
}

pub fn timeline(
    span: &Span,
    info: &Value,
    all_backups: &Value,
    wal: &Value,
    all_drills: &Value,
    history: &Value,
    asked: &Asked<'_>,
) -> Markup {
    let windows: Vec<_> =
        list(info, "windows").iter().filter_map(|w| Some((time(w, "from_time")?, time(w, "to_time")?))).collect();
    let (there, missing) = coverage(wal);
    let backups: Vec<(Timestamp, &Value)> =
        dated(list(all_backups, "backups"), "finished", span).filter(|(_, b)| is(b, "complete")).collect();
    let drills: Vec<(Timestamp, &Value)> = dated(list(all_drills, "drills"), "written", span).collect();
    let events: Vec<(Timestamp, &Value)> =
        dated(list(history, "events"), "time", span).filter(|(_, e)| word(e, "kind") != "gap").collect();
    let height = TOP + LANE * 5 + 26;
    let middle = |lane: i64| TOP + LANE * lane + LANE / 2;
    let said = format!(
        "{} backups, {} drills, {} events and {} gaps in the WAL from {} to {}. The table below has each of them.",
        counted(all_backups, backups.len()),
        counted(all_drills, drills.len()),
        counted(history, events.len()),
        counted(wal, missing.len()),
        span.from.strftime("%Y-%m-%d %H:%M"),
        span.to.strftime("%Y-%m-%d %H:%M")
    );
    html! {
        nav.spans aria-label="How much time the timeline shows" {
            ul {
                @for (name, words, _) in SPANS {
                    li { a href={ "?span=" (name) "#plan-h" } aria-current=[(name == span.name).then_some("true")] { (words) } }
                }
            }
        }
        div.scroll tabindex="0" role="region" aria-label="Timeline" {
            svg.timeline viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-labelledby="tl-title tl-desc" data-timeline
                data-from=(span.from.as_millisecond()) data-to=(span.to.as_millisecond()) data-left=(LEFT) data-right=(WIDTH - RIGHT) {
                title #tl-title { "Timeline" }
                desc #tl-desc { (said) }
                @for (n, name) in (0..).zip(LANES) {
                    rect.lane x=(LEFT) y=(TOP + LANE * n + 3) width=(WIDTH - LEFT - RIGHT) height=(LANE - 6) {}
                    text.lane-name x=(LEFT - 10) y=(middle(n) + 4) text-anchor="end" { (name) }
                }
                @for at in span.ticks() {
                    line.tick x1=(span.x(at)) x2=(span.x(at)) y1=(TOP) y2=(TOP + LANE * 5) {}
                    text.tick-name x=(span.x(at)) y=(height - 8) text-anchor="middle" { (span.label(at)) }
                }
                @for (x, width) in windows.iter().filter_map(|(a, b)| span.bar(*a, *b)) {
                    rect.recoverable x=(x) y=(TOP + 7) width=(width) height=(LANE - 14) rx="3" {}
                }
                @for (x, width) in there.iter().filter_map(|(a, b)| span.bar(*a, *b)) {
                    rect.wal x=(x) y=(TOP + LANE + 7) width=(width) height=(LANE - 14) rx="3" {}
                }
                @for (x, width) in missing.iter().filter_map(|(a, b)| span.bar(*a, *b)) {
                    rect.gap x=(x) y=(TOP + LANE + 5) width=(width) height=(LANE - 10) {}
                }
                @for (at, backup) in backups.iter().take(MARKS_MAX) { (backup_mark(span.x(*at), middle(2), backup)) }
                @for (at, drill) in drills.iter().take(MARKS_MAX) {
                    @let (x, y) = (span.x(*at), middle(3));
                    @if word(drill, "severity") == "info" {
                        path.drill-good d={ "M" (x - 6) " " (y) " l4 5 l8 -10" } {}
                    } @else {
                        path.drill-bad d={ "M" (x - 5) " " (y - 5) " l10 10 m0 -10 l-10 10" } {}
                    }
                }
                @for (at, event) in events.iter().take(MARKS_MAX) {
                    @let (x, y) = (span.x(*at), middle(4));
                    @if word(event, "kind") == "restore_point" {
                        path.point d={ "M" (x) " " (y + 9) " v-18 l10 5 l-10 5" } {}
                    } @else {
                        path.event d={ "M" (x) " " (y - 7) " l7 12 h-14 z" } {}
                    }
                }
                line.cursor data-cursor x1="0" x2="0" y1=(TOP) y2=(TOP + LANE * 5) visibility="hidden" {}
            }
        }
        p.legend aria-hidden="true" {
            span.key.k-recoverable { "recoverable" } span.key.k-gap { "WAL missing" } span.key.k-full { "full" }
            span.key.k-incr { "incremental" } span.key.k-other { "logical, files, system" }
            span.key.k-point { "restore point" } span.key.k-event { "drop, truncate, many rows" }
        }
        details.what {
            summary { "The same as a table" }
            (table(&rows(list(info, "windows"), &missing, &backups, &drills, &events), asked))
        }
    }
}

/// So many, unless nobody knows yet.
fn counted(answer: &Value, number: usize) -> String {
    if was_read(answer) { number.to_string() } else { "an unknown number of".into() }
}

fn dated<'a>(all: &'a [Value], key: &'static str, span: &'a Span) -> impl Iterator<Item = (Timestamp, &'a Value)> {
    all.iter().filter_map(move |one| Some((time(one, key)?, one))).filter(|(at, _)| span.has(*at))
}

fn backup_mark(x: i64, y: i64, backup: &Value) -> Markup {
    html! {
        @match (word(backup, "kind"), word(backup, "type")) {
            ("physical", "full") => circle.backup cx=(x) cy=(y) r="7" {},
            ("physical", _) => circle.backup.incr cx=(x) cy=(y) r="5" {},
            _ => rect.backup.other x=(x - 5) y=(y - 5) width="10" height="10" {},
        }
    }
}

/// What is offered, the page that has its plan, and what that is asked for.
type Way = (&'static str, &'static str, String);

/// When, what, more of it, and how to restore it.
type Row = (Timestamp, String, String, Vec<Way>);

/// Whether a restore reaches the second in which this is: moments are chosen by seconds.
pub fn is_reachable(windows: &[Value], at: Timestamp) -> bool {
    let Ok(second) = Timestamp::from_second(at.as_second()) else { return false };
    let mut ends = windows.iter().filter_map(|w| time(w, "from_time").zip(time(w, "to_time")));
    ends.any(|(from, to)| (from..=to).contains(&second))
}

/// As PostgreSQL writes it: two numbers of 32 bits, in hexadecimal.
fn position(value: &Value, key: &str) -> Option<u64> {
    let (high, low) = word(value, key).split_once('/')?;
    let part = |digits| u32::from_str_radix(digits, 16).ok().map(u64::from);
    Some((part(high)? << 32) | part(low)?)
}

fn plans(query: &str) -> Vec<Way> {
    vec![("Restore", "plan", query.to_owned()), ("Recover", "recover", query.to_owned())]
}

/// None where no plan could be made.
fn ways_to_moment(windows: &[Value], at: Timestamp) -> Vec<Way> {
    match is_reachable(windows, at) {
        true => plans(&format!("time={}", segment(&at.strftime("%Y-%m-%dT%H:%M:%S").to_string()))),
        false => vec![],
    }
}

/// It has a position, and its moment may lie after the last transaction.
fn ways_to_point(windows: &[Value], event: &Value) -> Vec<Way> {
    let Some(at) = position(event, "lsn") else { return vec![] };
    let mut ends = windows.iter().filter_map(|w| position(w, "from_lsn").zip(position(w, "to_lsn")));
    match ends.any(|(from, to)| (from..=to).contains(&at)) {
        true => plans(&format!("name={}", segment(word(event, "name")))),
        false => vec![],
    }
}

/// Of this backup, whatever else there is.
fn ways_of_backup(windows: &[Value], backup: &Value) -> Vec<Way> {
    let id = word(backup, "id");
    let query = format!("backup={}", segment(id));
    let serves = |w: &Value| list(w, "backups").iter().any(|b| b == id);
    match word(backup, "kind") {
        "physical" if windows.iter().any(serves) => plans(&query),
        "logical" => vec![("Recover", "recover", query)],
        _ => vec![],
    }
}

fn rows(
    windows: &[Value],
    missing: &[(Timestamp, Timestamp)],
    backups: &[(Timestamp, &Value)],
    drills: &[(Timestamp, &Value)],
    events: &[(Timestamp, &Value)],
) -> Vec<Row> {
    let until = |to: Timestamp| format!("until {}", to.strftime("%Y-%m-%d %H:%M:%S"));
    let mut rows: Vec<Row> = vec![];
    let to = |at: Timestamp| ways_to_moment(windows, at);
    rows.extend(windows.iter().filter_map(|w| {
        let (a, b) = (time(w, "from_time")?, time(w, "to_time")?);
        // The first whole second in it.
        let first = Timestamp::from_second(a.as_second() + i64::from(a.subsec_nanosecond() > 0)).ok()?;
        Some((a, "recoverable from here".into(), until(b), to(first)))
    }));
    rows.extend(missing.iter().map(|(a, b)| (*a, "WAL is missing from here".into(), until(*b), to(*a))));
    rows.extend(
        backups.iter().take(MARKS_MAX).map(|(at, b)| {
            (*at, format!("backup, {}", kind_of(b)), word(b, "id").to_owned(), ways_of_backup(windows, b))
        }),
    );
    rows.extend(
        drills.iter().take(MARKS_MAX).map(|(at, d)| (*at, "drill".into(), word(d, "summary").to_owned(), to(*at))),
    );
    rows.extend(events.iter().take(MARKS_MAX).map(|(at, e)| {
        let (name, lsn) = (word(e, "name"), word(e, "lsn"));
        let ways = match word(e, "kind") {
            "restore_point" => ways_to_point(windows, e),
            _ => to(*at),
        };
        (
            *at,
            word(e, "kind").replace('_', " "),
            if name.is_empty() { format!("at {lsn}") } else { name.to_owned() },
            ways,
        )
    }));
    rows.sort_by(|a, b| b.cmp(a));
    rows
}

fn table(rows: &[Row], asked: &Asked<'_>) -> Markup {
    if rows.is_empty() {
        return empty("Nothing is known of this time.");
    }
    let cluster = segment(path(asked, "cluster"));
    html! {
        div.scroll tabindex="0" role="region" aria-label="Timeline as a table" {
            table {
                caption { "What the timeline shows, the newest first" }
                thead { tr { th scope="col" { "When" } th scope="col" { "What" } th scope="col" { "More" } th scope="col" { "Plan" } } }
                tbody {
                    @for (at, what, more, ways) in rows {
                        tr {
                            td { (moment(*at)) }
                            td { (Text(what)) }
                            td { (Text(more)) }
                            td {
                                @for (words, page, query) in ways {
                                    @let of = if query.starts_with("backup=") { " from this backup: the plan" } else { " to this moment: the plan" };
                                    a href={ "/clusters/" (cluster) "/" (page) "?" (query) } { (words) span.hidden { (of) } } " "
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn moments_have_their_place_and_ticks_are_few() {
        for (name, _, hours) in SPANS {
            let to = at("2026-03-01T12:34:56Z");
            let span = Span { name, from: to - SignedDuration::from_hours(hours), to };
            assert_eq!((span.x(span.from), span.x(span.to)), (LEFT, WIDTH - RIGHT));
            assert_eq!(span.x(at("2000-01-01T00:00:00Z")), LEFT, "what lies before is at the edge");
            let ticks = span.ticks();
            assert!((3..=8).contains(&ticks.len()) && ticks.iter().all(|t| span.has(*t)), "{name}: {ticks:?}");
        }
    }

    #[test]
    fn only_what_can_be_restored_is_offered() {
        let windows = [
            json!({"from_time": "2026-01-01T00:00:00.5Z", "to_time": "2026-01-01T02:00:00.25Z", "from_lsn": "0/3000100",
            "to_lsn": "1/5000000", "backups": ["20260101-000000F"]}),
        ];
        let of = |at_text: &str| ways_to_moment(&windows, at(at_text));
        assert_eq!(of("2026-01-01T01:00:00.75Z"), plans("time=2026-01-01T01%3A00%3A00"));
        assert_eq!(of("2026-01-01T02:00:00.9Z").len(), 2, "by the second that is asked for");
        for beyond in
            ["2026-01-01T00:00:00.75Z", "2026-01-01T02:00:01Z", "2026-01-01T08:00:00Z", "2025-12-31T23:00:00Z"]
        {
            assert_eq!(of(beyond), [], "{beyond}");
        }
        let point = |lsn: &str| ways_to_point(&windows, &json!({"kind": "restore_point", "name": "a b", "lsn": lsn}));
        assert_eq!(point("0/FFFFFFFF"), plans("name=a%20b"));
        for beyond in ["0/3000000", "1/5000001", "x", ""] {
            assert_eq!(point(beyond), [], "{beyond}");
        }
        let backup = |kind: &str, id: &str| ways_of_backup(&windows, &json!({"kind": kind, "id": id}));
        assert_eq!(backup("physical", "20260101-000000F"), plans("backup=20260101-000000F"));
        assert_eq!(backup("physical", "20260102-000000F"), [], "its WAL is not there");
        let of_dump = ("Recover", "recover", "backup=20260102-000000L".to_owned());
        assert_eq!(backup("logical", "20260102-000000L"), [of_dump], "a dump is of one moment, its own");
        assert_eq!(backup("files", "20260102-000000D"), []);
        // The row of a window leads into it.
        let rows = rows(&windows, &[], &[], &[], &[]);
        let found: Vec<_> = rows.iter().map(|(at, _, _, ways)| (*at, ways.clone())).collect();
        assert_eq!(found, [(at("2026-01-01T00:00:00.5Z"), plans("time=2026-01-01T00%3A00%3A01"))]);
    }

    #[test]
    fn gaps_lie_between_ranges_of_one_timeline() {
        let range = |from: &str, to: &str| json!({"from_time": from, "to_time": to});
        let (a, b) = ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z");
        let (c, d) = ("2026-01-01T02:00:00Z", "2026-01-01T03:00:00Z");
        let wal = json!({"timelines": [{"ranges": [range(a, b), range(c, d)]}, {"ranges": [range(c, d)]}]});
        let (there, missing) = coverage(&wal);
        assert_eq!(there.len(), 3);
        assert_eq!(missing, [(at(b), at(c))]);
    }
}

//! What `expire` prints: a table for people, and the document for programs.

use jiff::Timestamp;
use pgark_engine::expire::forecast::Goes;
use pgark_engine::expire::policy::Reason;
use pgark_engine::expire::{ExpirePlan, ExpireReport, Fate, WalFate};
use pgark_engine::verify::LostWindow;
use pgark_pg::value::{SegmentName, SegmentSize};
use pgark_repo::wal::SegmentRange;
use serde_json::{Value, json};

use super::documents::{evidence, kind_name};
use super::locks::Locked;
use crate::failure::SCHEMA;
use crate::output::{Align, Table, human_bytes, timestamp};

/// Ranges of WAL printed one by one.
const RANGES_SHOWN: usize = 8;

pub fn text(
    cluster: &str,
    plan: &ExpirePlan,
    report: Option<&ExpireReport>,
    locked: &[Locked],
    explain: bool,
) -> String {
    let would = if report.is_some() { "" } else { "would " };
    let mut table = Table::new(&[
        ("backup", Align::Left),
        ("type", Align::Left),
        ("finished (UTC)", Align::Left),
        ("stored", Align::Right),
        ("", Align::Left),
        ("because", Align::Left),
    ]);
    for f in &plan.backups {
        let verdict = if f.stays() { "stays" } else { "GOES" };
        table.row([
            f.entry.id.to_string(),
            kind_name(&f.entry).into(),
            timestamp(f.entry.finished),
            human_bytes(f.entry.stored_bytes),
            verdict.into(),
            because(f),
        ]);
    }
    let mut out = format!("cluster {cluster}, by the rules it is {}\n", timestamp(plan.at));
    if plan.backups.is_empty() {
        out = format!("cluster {cluster}: no backups\n");
    } else if explain {
        for f in &plan.backups {
            out += &explained(f);
        }
    } else {
        out += &table.to_text();
    }
    for w in &plan.wal {
        out += &wal_text(w, plan.wal.len() > 1, would);
    }
    let going: u64 = plan.going().map(|f| f.entry.stored_bytes).sum();
    let stay = plan.backups.len() - plan.going().count();
    out += &match report {
        None if !plan.changes() && plan.earlier.waiting_until.is_some() => {
            format!("nothing more expires: {stay} backups stay\n")
        }
        None if !plan.changes() => format!("nothing expires: {stay} backups stay\n"),
        None => format!("{} of {} backups would expire\n", plan.going().count(), plan.backups.len()),
        Some(_) => format!(
            "{} of {} backups expired ({} stored by them)\n",
            plan.going().count(),
            plan.backups.len(),
            human_bytes(going)
        ),
    };
    out += &removed(plan, report);
    out += &locked.iter().map(Locked::text).collect::<String>();
    for note in &plan.notes {
        out += &format!("WARNING: {note}\n");
    }
    out
}

fn removed(plan: &ExpirePlan, report: Option<&ExpireReport>) -> String {
    let e = plan.earlier;
    let Some(r) = report else {
        let due = e.backups_due + e.segments_due;
        let full = match plan.is_full {
            true => {
                "the repository is full: what expires, and what expired earlier, would be removed at once, without its grace\n"
            }
            false => "",
        };
        let mut out = match due {
            0 => String::new(),
            _ => format!(
                "would remove what expired earlier: {} backups, {} WAL segments\n",
                e.backups_due, e.segments_due
            ),
        };
        if e.unfinished {
            out += "would finish what an earlier run began\n";
        }
        return out + full + &waiting(e.backups_waiting, e.segments_waiting, e.waiting_until);
    };
    let c = &r.collected;
    let mut out = format!("removed {} objects, {}\n", c.objects, human_bytes(c.bytes));
    if let Some(until) = c.locked_until {
        out += &format!(
            "  the store keeps versions of them by object lock: their room comes back not before {}\n",
            timestamp(until)
        );
    }
    if r.was_full {
        out += "the repository was full, so nothing waited for its grace\n";
    }
    out + &waiting(c.waiting_backups, c.waiting_segments, None)
}

fn waiting(backups: u64, segments: u64, until: Option<Timestamp>) -> String {
    if backups + segments == 0 {
        return String::new();
    }
    let until = until.map_or_else(String::new, |t| format!(", until {}", timestamp(t)));
    format!(
        "{backups} backups and {segments} WAL segments that have expired stay on the disk for their grace{until} (--gc-grace 0s: at \
         once)\n"
    )
}

fn wal_text(w: &WalFate, several: bool, would: &str) -> String {
    let going: u64 = w.going.iter().map(SegmentRange::count).sum();
    let of = if several { format!(" of system {}", w.system_id) } else { String::new() };
    if going == 0 {
        return format!("WAL{of}: all {} segments stay\n", w.staying);
    }
    let mut out = format!("WAL{of}: {would}expire {going} of {} segments\n", going + w.staying);
    for r in w.going.iter().take(RANGES_SHOWN) {
        let (first, last) = names(r, w.size);
        out += &format!("  {first} to {last} ({} segments)\n", r.count());
    }
    if w.going.len() > RANGES_SHOWN {
        out += &format!("  and {} more ranges\n", w.going.len() - RANGES_SHOWN);
    }
    out
}

fn names(r: &SegmentRange, size: SegmentSize) -> (String, String) {
    let name = |segment| SegmentName { timeline: r.timeline, segment }.format(size);
    (name(r.first), name(r.last))
}

fn explained(f: &Fate) -> String {
    let mut out = format!(
        "{}  {}  finished {}  {} stored  proven: {}\n",
        f.entry.id,
        kind_name(&f.entry),
        timestamp(f.entry.finished),
        human_bytes(f.entry.stored_bytes),
        evidence(f.entry.evidence)
    );
    let (verdict, goes) = (if f.stays() { "stays" } else { "GOES" }, goes_text(f.goes));
    out += &format!("  {verdict}: {}\n", because(f));
    if f.stays() {
        out += &format!("  goes: {goes}\n");
    }
    if f.entry.physical.is_none() {
        out += "  lost then: what this one holds as it was then; no WAL brings it back\n";
    } else if f.lost.is_empty() {
        out += "  lost then: no moment, an older backup and its WAL reach them all\n";
    }
    for w in &f.lost {
        out += &format!("  lost then: {}\n", lost_text(w));
    }
    out
}

fn goes_text(goes: Goes) -> String {
    match goes {
        Goes::Now => "now".into(),
        Goes::About(at) => format!("about {}, if backups go on as they were taken so far", timestamp(at)),
        Goes::NotBefore(at) => format!("not before {}", timestamp(at)),
        Goes::NotByItself => "not by itself".into(),
    }
}

fn lost_text(w: &LostWindow) -> String {
    let at = |t: Option<Timestamp>| t.map_or_else(|| "the end of its WAL".into(), timestamp);
    format!(
        "recovery to moments from {} to {} (timeline {}, {} to {})",
        at(w.from_time),
        at(w.to_time),
        w.timeline,
        w.from_lsn,
        w.to_lsn
    )
}

fn because(f: &Fate) -> String {
    let reasons: Vec<String> = f.reasons.iter().map(reason_text).collect();
    match (f.stays(), f.over_maximum) {
        (_, true) => format!("there are more than the maximum (otherwise: {})", reasons.join(", ")),
        (true, false) => reasons.join(", "),
        (false, false) => "no rule keeps it".into(),
    }
}

fn reason_text(r: &Reason) -> String {
    match r {
        Reason::Newest => "newest".into(),
        Reason::NewerThanGood => "newer than every good one".into(),
        Reason::NoGood => "no backup is good".into(),
        Reason::Minimum => "minimum number".into(),
        Reason::Kept => "kept".into(),
        Reason::KeptUntil(until) => format!("kept until {}", timestamp(*until)),
        Reason::Hold(why) => format!("legal hold '{}'", why.escape_debug()),
        Reason::Proven(level) => format!("the last that was {}", evidence(*level)),
        Reason::InUse(by) => format!("in use by the {by}"),
        Reason::Unseen(_) => "damaged, to be looked at".into(),
        Reason::Last(n) => format!("last {n}"),
        Reason::Days => "days".into(),
        Reason::Window => "window".into(),
        Reason::WindowBase => "the window begins with it".into(),
        Reason::WalBase => "the WAL that is kept begins with it".into(),
        Reason::Daily(p) => format!("daily {p}"),
        Reason::Weekly(p) => format!("weekly {p}"),
        Reason::Monthly(p) => format!("monthly {p}"),
        Reason::Yearly(p) => format!("yearly {p}"),
        Reason::NoRule => "no rule selects backups".into(),
    }
}

fn rule(r: &Reason) -> &'static str {
    match r {
        Reason::Newest => "newest",
        Reason::NewerThanGood => "newer_than_good",
        Reason::NoGood => "no_good",
        Reason::Minimum => "min_backups",
        Reason::Kept => "kept",
        Reason::KeptUntil(_) => "kept_until",
        Reason::Hold(_) => "legal_hold",
        Reason::Proven(_) => "proven",
        Reason::InUse(_) => "in_use",
        Reason::Unseen(_) => "damaged",
        Reason::Last(_) => "keep_last",
        Reason::Days => "keep_days",
        Reason::Window => "window",
        Reason::WindowBase => "window_base",
        Reason::WalBase => "wal_base",
        Reason::Daily(_) => "keep_daily",
        Reason::Weekly(_) => "keep_weekly",
        Reason::Monthly(_) => "keep_monthly",
        Reason::Yearly(_) => "keep_yearly",
        Reason::NoRule => "no_rule",
    }
}

pub fn document(cluster: &str, plan: &ExpirePlan, report: Option<&ExpireReport>, locked: &[Locked]) -> Value {
    let ids = |stays: bool| -> Vec<String> {
        plan.backups.iter().filter(|f| f.stays() == stays).map(|f| f.entry.id.to_string()).collect()
    };
    let e = plan.earlier;
    let mut warnings = plan.notes.clone();
    warnings.extend(locked.iter().flat_map(Locked::warnings));
    json!({"schema": SCHEMA, "cluster": cluster, "done": report.is_some(), "at": plan.at,
        "kept": ids(true), "expired": ids(false),
        "backups": plan.backups.iter().map(backup_json).collect::<Vec<_>>(),
        "wal": plan.wal.iter().map(wal_json).collect::<Vec<_>>(),
        "earlier": {"backups_due": e.backups_due, "segments_due": e.segments_due,
            "backups_waiting": e.backups_waiting, "segments_waiting": e.segments_waiting,
            "waiting_until": e.waiting_until, "unfinished": e.unfinished},
        "repository_is_full": plan.is_full,
        "removed": report.map(|r| json!({"objects": r.collected.objects, "bytes": r.collected.bytes,
            "backups_waiting": r.collected.waiting_backups, "segments_waiting": r.collected.waiting_segments,
            "locked_until": r.collected.locked_until.map(|t| t.to_string()), "repository_was_full": r.was_full})),
        "locks": locked.iter().map(Locked::document).collect::<Vec<_>>(),
        "warnings": warnings})
}

fn backup_json(f: &Fate) -> Value {
    let reasons = f.reasons.iter().map(|r| json!({"rule": rule(r), "text": reason_text(r)}));
    let (when, about) = match f.goes {
        Goes::Now => ("now", None),
        Goes::About(at) => ("about", Some(at)),
        Goes::NotBefore(at) => ("not_before", Some(at)),
        Goes::NotByItself => ("not_by_itself", None),
    };
    let lost = f.lost.iter().map(|w| {
        json!({"timeline": w.timeline, "from_lsn": w.from_lsn, "to_lsn": w.to_lsn, "from_time": w.from_time,
            "to_time": w.to_time})
    });
    json!({"id": f.entry.id.to_string(), "stays": f.stays(), "over_maximum": f.over_maximum,
        "reasons": reasons.collect::<Vec<_>>(), "goes": {"when": when, "time": about},
        "lost": lost.collect::<Vec<_>>()})
}

fn wal_json(w: &WalFate) -> Value {
    let range = |r: &SegmentRange| {
        let (first, last) = names(r, w.size);
        json!({"timeline": r.timeline, "first": first, "last": last, "segments": r.count()})
    };
    let going: u64 = w.going.iter().map(SegmentRange::count).sum();
    json!({"system_id": w.system_id.to_string(), "expired": w.going.iter().map(range).collect::<Vec<_>>(),
        "segments_expired": going, "segments_kept": w.staying})
}

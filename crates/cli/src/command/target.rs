//! Where recovery is to end, as the commands that recover take it.

use std::io::IsTerminal;

use clap::Args;
use jiff::Timestamp;
use pgark_engine::restore::{Bound, Target, TimelineChoice};
use pgark_pg::value::TimelineId;

use crate::failure::Failure;

/// One of them at most; without any, the end of the archive.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Recover to this moment, such as '2026-08-22 10:15:00+02'
    #[arg(long, value_name = "TIME", group = "target")]
    target_time: Option<String>,
    /// Recover to this position, such as 2/F3000028
    #[arg(long, value_name = "LSN", group = "target")]
    target_lsn: Option<String>,
    /// Recover to the end of this transaction
    #[arg(long, value_name = "XID", group = "target")]
    target_xid: Option<String>,
    /// Recover to this restore point
    #[arg(long, value_name = "NAME", group = "target")]
    target_name: Option<String>,
    /// Stop as soon as the backup is consistent
    #[arg(long, group = "target")]
    target_immediate: bool,
    /// latest, current (the backup's own) or a number
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    target_timeline: String,
    /// Stop just before the target instead of just after it
    #[arg(long)]
    pub target_exclusive: bool,
}

impl TargetArgs {
    pub fn is_given(&self) -> bool {
        self.target_time.is_some()
            || self.target_lsn.is_some()
            || self.target_xid.is_some()
            || self.target_name.is_some()
            || self.target_immediate
    }

    pub fn bound(&self) -> Bound {
        bound(self.target_exclusive)
    }

    pub fn target(&self) -> Result<Target, Failure> {
        target_of(&TargetText {
            time: self.target_time.as_deref(),
            lsn: self.target_lsn.as_deref(),
            xid: self.target_xid.as_deref(),
            name: self.target_name.as_deref(),
            immediate: self.target_immediate,
            exclusive: self.target_exclusive,
        })
    }

    pub fn timeline(&self) -> Result<TimelineChoice, Failure> {
        timeline(&self.target_timeline)
    }
}

/// The same as words, one of which is there at most.
pub struct TargetText<'a> {
    pub time: Option<&'a str>,
    pub lsn: Option<&'a str>,
    pub xid: Option<&'a str>,
    pub name: Option<&'a str>,
    pub immediate: bool,
    pub exclusive: bool,
}

pub fn target_of(text: &TargetText<'_>) -> Result<Target, Failure> {
    let bound = bound(text.exclusive);
    match (text.time, text.lsn, text.xid, text.name) {
        (Some(t), ..) => parse_time(t, bound),
        (_, Some(l), ..) => parse_lsn(l, bound),
        (_, _, Some(x), _) => parse_xid(x, bound),
        (_, _, _, Some(n)) => parse_name(n),
        _ if text.immediate => Ok(Target::Immediate),
        _ => Ok(Target::Latest),
    }
}

fn bound(exclusive: bool) -> Bound {
    if exclusive { Bound::Exclusive } else { Bound::Inclusive }
}

pub fn parse_time(text: &str, bound: Bound) -> Result<Target, Failure> {
    Ok(Target::Time { at: parse_moment(text)?, bound })
}

/// A time with its zone; without a zone it is the local one, on a terminal only.
pub fn parse_moment(text: &str) -> Result<Timestamp, Failure> {
    let trimmed = text.trim();
    let with_zone = trimmed.strip_suffix("UTC").map_or_else(|| trimmed.to_owned(), |t| format!("{}Z", t.trim_end()));
    if let Ok(at) = with_zone.parse::<Timestamp>() {
        return Ok(at);
    }
    let civil: jiff::civil::DateTime = trimmed.parse().map_err(|_| {
        Failure::usage("E-TARGET-TIME", format!("'{text}' is not a time"))
            .hint("such as '2026-08-22 10:15:00+02' or 2026-08-22T08:15:00Z")
    })?;
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("E-TARGET-ZONE", format!("'{text}' has no time zone"))
            .hint("add an offset, such as '+00' for UTC; the local zone is taken on a terminal only"));
    }
    let zoned =
        civil.to_zoned(jiff::tz::TimeZone::system()).map_err(|e| Failure::usage("E-TARGET-TIME", e.to_string()))?;
    Ok(zoned.timestamp())
}

pub fn parse_lsn(text: &str, bound: Bound) -> Result<Target, Failure> {
    let lsn = text.trim().parse().map_err(|_| {
        Failure::usage("E-TARGET-LSN", format!("'{text}' is not a wal position"))
            .hint("such as 2/F3000028, as pg_current_wal_lsn() prints it")
    })?;
    Ok(Target::Lsn { lsn, bound })
}

pub fn parse_xid(text: &str, bound: Bound) -> Result<Target, Failure> {
    let full: u64 = text.trim().parse().map_err(|_| {
        Failure::usage("E-TARGET-XID", format!("'{text}' is not a transaction id"))
            .hint("a number, as pg_current_xact_id() prints it")
    })?;
    // WAL holds the lower half; the upper half counts how often it wrapped.
    Ok(Target::Xid { xid: u32::try_from(full & u64::from(u32::MAX)).unwrap_or(0), bound })
}

pub fn parse_name(text: &str) -> Result<Target, Failure> {
    if text.is_empty() || text.len() > 63 {
        return Err(Failure::usage("E-TARGET-NAME", "a restore point's name has 1 to 63 bytes"));
    }
    Ok(Target::Name(text.to_owned()))
}

pub fn timeline(text: &str) -> Result<TimelineChoice, Failure> {
    match text {
        "latest" => Ok(TimelineChoice::Latest),
        "current" => Ok(TimelineChoice::Current),
        n => timeline_number(n).map(TimelineChoice::Number).map_err(|f| f.hint("latest, current, or a number")),
    }
}

pub fn timeline_number(text: &str) -> Result<TimelineId, Failure> {
    let number = text.parse().ok().and_then(TimelineId::new);
    number.ok_or_else(|| Failure::usage("E-TIMELINE", format!("'{text}' is not a timeline")).hint("a number from 1 on"))
}

//! Whether recovery is rehearsed as often as it should be, and would be as quick and lose as little as it may.

use std::time::Duration;

use pgark_repo::names::ClusterName;

use super::{CheckOptions, Findings, Verdict};
use crate::cluster::Connection;
use crate::ctx::Ctx;
use crate::drill::{self, forecast};
use crate::info;
use crate::several::Member;

/// Reports that are opened.
const REPORTS_MAX: usize = 100;

/// What was promised.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goals {
    pub rpo: Option<Duration>,
    pub rto: Option<Duration>,
    /// How often a rehearsal is to be held; None: none is configured.
    pub drill_every: Option<Duration>,
}

fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// By the reports in the first repository, which is where they are written.
pub(super) fn rehearsed(options: &CheckOptions, members: &[Member], ctx: &Ctx, f: &mut Findings) {
    let goals = options.goals;
    let Some(member) = members.first().filter(|_| goals.rto.is_some() || goals.drill_every.is_some()) else { return };
    // Not a question to a writer's secret: reports are for a reader's check.
    if member.repo.keys().writes_only().is_some() {
        return;
    }
    let history = match forecast::history(&member.repo, &options.cluster, REPORTS_MAX, ctx) {
        Ok(history) => history,
        Err(e) => return f.add("drill", Verdict::NotChecked, e.to_string()),
    };
    if let Some(every) = goals.drill_every {
        let (verdict, message) = held(&history, every, ctx);
        f.add("drill", verdict, message);
    }
    if let Some(rto) = goals.rto {
        let (verdict, message) = in_time(&history, rto, member, &options.cluster, ctx);
        f.add("rto", verdict, message);
    }
}

fn held(history: &forecast::History, every: Duration, ctx: &Ctx) -> (Verdict, String) {
    let Some(last) = history.last() else {
        return (Verdict::Warning, "no recovery was rehearsed yet: 'pgark drill'".to_owned());
    };
    if last.verdict == drill::Verdict::Red {
        return (Verdict::Failed, format!("the last one, on {}, was red: {}", last.at, last.summary));
    }
    match history.last_green() {
        None => (Verdict::Warning, format!("none was green yet; the last one: {}", last.summary)),
        Some(green) => {
            let age = Duration::try_from(ctx.now().duration_since(green.at)).unwrap_or_default();
            let message = format!("the last green one was held {} ago, one is due every {}", span(age), span(every));
            (if age > every { Verdict::Warning } else { Verdict::Ok }, message)
        }
    }
}

fn in_time(
    history: &forecast::History,
    rto: Duration,
    member: &Member,
    cluster: &ClusterName,
    ctx: &Ctx,
) -> (Verdict, String) {
    let found = match info::info(&member.repo, Some(cluster), ctx) {
        Ok(found) => found,
        Err(e) => return (Verdict::NotChecked, e.to_string()),
    };
    let forecasts: Vec<_> = found.first().map(|c| history.forecasts(c)).unwrap_or_default();
    let Some(slowest) = forecasts.iter().max_by_key(|f| f.expected) else {
        return (Verdict::NotChecked, format!("nothing was measured yet: 'pgark drill'; the rto is {}", span(rto)));
    };
    let message = format!(
        "a recovery from {} backups is expected to take {} ({} to {}, from {} drills and restores, confidence {}); the rto is {}",
        slowest.kind,
        span(slowest.expected),
        span(slowest.least),
        span(slowest.most),
        slowest.measurements,
        slowest.confidence.as_str(),
        span(rto)
    );
    let verdict = match () {
        () if slowest.expected > rto => Verdict::Failed,
        () if slowest.most > rto => Verdict::Warning,
        () => Verdict::Ok,
    };
    (verdict, message)
}

/// Whether WAL leaves the server often enough.
pub(super) fn wal_in_time(connection: &Connection, goals: Goals, f: &mut Findings) {
    let Some(rpo) = goals.rpo else { return };
    let asked = connection
        .query_one("SELECT setting AS seconds FROM pg_settings WHERE name = 'archive_timeout'", &[])
        .and_then(|row| row.parse::<u64>("seconds"));
    let (verdict, message) = match asked {
        Err(e) => (Verdict::NotChecked, e.to_string()),
        Ok(0) => (
            Verdict::Warning,
            format!(
                "archive_timeout is off: what is committed leaves the server when a segment is full, however long that takes; the rpo is {}",
                span(rpo)
            ),
        ),
        Ok(seconds) => {
            let timeout = Duration::from_secs(seconds);
            let message = format!("archive_timeout is {}; the rpo is {}", span(timeout), span(rpo));
            (if timeout > rpo { Verdict::Warning } else { Verdict::Ok }, message)
        }
    };
    f.add("rpo", verdict, message);
}

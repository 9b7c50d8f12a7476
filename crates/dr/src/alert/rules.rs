//! What the books of a repository say about trouble. Pure: facts in, findings out.
//!
//! Invariant: a question that could not be asked is neither trouble nor its end.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use pgark_engine::check;
use pgark_engine::logical::restore::SAFETY;
use pgark_repo::catalog::{BackupEntry, BackupKind};

use super::{Finding, Severity};

/// Fewer earlier backups say nothing about what is usual.
const USUAL_MIN: usize = 3;
/// What counts as usual: the newest so many before the last.
const USUAL_MAX: usize = 10;
/// Smaller changes are no sign of anything, whatever they are in percent.
const JUMP_BYTES_MIN: u64 = 16 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub no_backup_for: Duration,
    /// How much larger or smaller than usual a backup may be, in percent.
    pub size_jump_percent: u32,
    pub rpo: Option<Duration>,
}

/// What is known of a cluster in one repository.
pub struct Facts<'a> {
    pub now: Timestamp,
    pub cluster: &'a str,
    /// Of several, which one.
    pub repository: Option<&'a str>,
    pub backups: &'a [BackupEntry],
    pub gaps: usize,
    /// The latest moment that can be recovered to by WAL.
    pub recovery_point: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    pub findings: Vec<Finding>,
    /// Keys of what was looked at and is fine.
    pub fine: Vec<String>,
}

impl Evaluated {
    fn say(&mut self, finding: Finding, is_trouble: bool) {
        match is_trouble {
            true => self.findings.push(finding),
            false => self.fine.push(finding.key),
        }
    }
}

/// The same trouble has the same key.
pub fn key(cluster: &str, rule: &str, repository: Option<&str>) -> String {
    match repository {
        Some(repository) => format!("{cluster}/{rule}/{repository}"),
        None => format!("{cluster}/{rule}"),
    }
}

fn finding(facts: &Facts<'_>, rule: &str, severity: Severity, summary: String) -> Finding {
    let mut details = BTreeMap::new();
    details.extend(facts.repository.map(|name| ("repository".to_owned(), name.to_owned())));
    Finding {
        key: key(facts.cluster, rule, facts.repository),
        rule: rule.to_owned(),
        cluster: facts.cluster.to_owned(),
        severity,
        summary,
        details,
    }
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

pub fn evaluate(facts: &Facts<'_>, limits: &Limits) -> Evaluated {
    let mut out = Evaluated::default();
    no_backup(facts, limits, &mut out);
    recovery_point(facts, limits, &mut out);
    let gaps = format!("{} gaps in the archived WAL: nothing after them can be recovered from before", facts.gaps);
    out.say(finding(facts, "wal-gap", Severity::Critical, gaps), facts.gaps > 0);
    let damaged: Vec<&str> = facts.backups.iter().filter(|b| b.damaged.is_some()).map(|b| b.id.as_str()).collect();
    let what = format!("backups that cannot be restored: {}", damaged.join(", "));
    out.say(finding(facts, "damaged", Severity::Critical, what), !damaged.is_empty());
    let mut newest: Vec<&BackupEntry> = facts.backups.iter().collect();
    newest.sort_by_key(|b| b.finished);
    if let Some((last, before)) = newest.split_last() {
        let usual: Vec<&BackupEntry> =
            before.iter().rev().filter(|b| is_alike(last, b)).take(USUAL_MAX).copied().collect();
        if usual.len() >= USUAL_MIN {
            size_jump(facts, limits, last, &usual, &mut out);
            content_jump(facts, last, &usual, &mut out);
        }
    }
    out
}

/// Only like is compared with like.
fn is_alike(a: &BackupEntry, b: &BackupEntry) -> bool {
    (a.kind, a.backup_type, &a.series, a.system_id) == (b.kind, b.backup_type, &b.series, b.system_id)
}

fn no_backup(facts: &Facts<'_>, limits: &Limits, out: &mut Evaluated) {
    let last = facts.backups.iter().map(|b| b.finished).max();
    let (is_trouble, summary) = match last {
        None => (true, "there is no backup".to_owned()),
        Some(at) => {
            let since = age(facts.now, at);
            let limit = span(limits.no_backup_for);
            (
                since > limits.no_backup_for,
                format!("no backup has succeeded for {}, at most {limit} are allowed", span(since)),
            )
        }
    };
    out.say(finding(facts, "no-backup", Severity::Critical, summary), is_trouble);
    let several = facts.backups.windows(2).any(|pair| matches!(pair, [a, b] if a.kind != b.kind));
    // Where none is new enough, one alert says so.
    if several && !is_trouble {
        no_backup_of_kind(facts, limits, out);
    }
}

/// Another kind of backup is no substitute: dumps have no WAL, and files no database.
fn no_backup_of_kind(facts: &Facts<'_>, limits: &Limits, out: &mut Evaluated) {
    for kind in BackupKind::ALL {
        // Those that a restore took before it replaced something come by themselves.
        let own = facts.backups.iter().filter(|b| b.kind == kind && !b.annotations.contains_key(SAFETY));
        let finished: Vec<Timestamp> = own.map(|b| b.finished).collect();
        // A single one that somebody made by hand is no habit that is missed; without physical ones there is no recovery to a moment.
        if finished.len() < 2 && kind != BackupKind::Physical {
            continue;
        }
        let Some(at) = finished.into_iter().max() else { continue };
        let since = age(facts.now, at);
        let summary = format!(
            "no {kind} backup has succeeded for {}, at most {} are allowed; those of other kinds have",
            span(since),
            span(limits.no_backup_for)
        );
        let rule = format!("no-backup-{kind}");
        out.say(finding(facts, &rule, Severity::Critical, summary), since > limits.no_backup_for);
    }
}

fn recovery_point(facts: &Facts<'_>, limits: &Limits, out: &mut Evaluated) {
    let Some(rpo) = limits.rpo else { return };
    // A dump speaks for its databases alone: it hides no WAL that is lost.
    let is_physical = |b: &&BackupEntry| b.kind == BackupKind::Physical;
    let has_physical = facts.backups.iter().any(|b| is_physical(&b));
    let own = facts.backups.iter().filter(|b| !has_physical || is_physical(b));
    let Some(point) = facts.recovery_point.max(own.map(|b| b.started).max()) else { return };
    let lost = age(facts.now, point);
    let by_wal = facts.recovery_point.is_some();
    // WAL also stops when nobody writes, which without the server looks the same.
    let (severity, perhaps) = match by_wal {
        true => (Severity::Warning, " (or nothing was written since)"),
        false => (Severity::Critical, ""),
    };
    let summary = format!("a recovery now would lose {}{perhaps}, the RPO is {}", span(lost), span(rpo));
    out.say(finding(facts, "rpo", severity, summary), lost > rpo);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn size_jump(facts: &Facts<'_>, limits: &Limits, last: &BackupEntry, usual: &[&BackupEntry], out: &mut Evaluated) {
    let middle = median(usual.iter().map(|b| b.size_bytes as f64).collect());
    let now = last.size_bytes as f64;
    let percent = if middle > 0.0 { (now - middle) / middle * 100.0 } else { 0.0 };
    let is_large = (now - middle).abs() >= JUMP_BYTES_MIN as f64;
    let direction = if now > middle { "larger" } else { "smaller" };
    let summary =
        format!("backup {} is {:.0} % {direction} than usual ({} bytes)", last.id, percent.abs(), last.size_bytes);
    let severity = if now > middle { Severity::Warning } else { Severity::Critical };
    let is_trouble = is_large && percent.abs() > f64::from(limits.size_jump_percent);
    out.say(finding(facts, "size-jump", severity, summary), is_trouble);
}

/// Content that was encrypted is new everywhere, and compresses no more.
fn content_jump(facts: &Facts<'_>, last: &BackupEntry, usual: &[&BackupEntry], out: &mut Evaluated) {
    let share = |b: &BackupEntry| b.stored_bytes as f64 / (b.size_bytes.max(1) as f64);
    let density = |b: &BackupEntry| b.stored_bytes as f64 / (b.read_bytes.max(1) as f64);
    let (new_before, dense_before) =
        (median(usual.iter().map(|b| share(b)).collect()), median(usual.iter().map(|b| density(b)).collect()));
    let is_new = share(last) > 3.0 * new_before + 0.1;
    let is_dense = density(last) > 0.9 && dense_before < 0.7;
    let is_large = last.stored_bytes >= JUMP_BYTES_MIN;
    let summary = format!(
        "backup {} holds much more that is new or cannot be compressed than usual ({:.0} % of the cluster, usually {:.0} %): a sign of encryption by others",
        last.id,
        share(last) * 100.0,
        new_before * 100.0
    );
    out.say(finding(facts, "content-jump", Severity::Critical, summary), is_large && (is_new || is_dense));
}

/// Whether a repository could be looked at.
pub fn reachable(cluster: &str, repository: Option<&str>, why_not: Option<&str>) -> Evaluated {
    let mut out = Evaluated::default();
    let finding = Finding {
        key: key(cluster, "repository", repository),
        rule: "repository".into(),
        cluster: cluster.to_owned(),
        severity: Severity::Critical,
        summary: format!(
            "repository {} cannot be used: {}",
            repository.unwrap_or_default(),
            why_not.unwrap_or_default()
        ),
        details: BTreeMap::new(),
    };
    out.say(finding, why_not.is_some());
    out
}

/// What is looked at here anyway; and what somebody decided, which `check` says and nobody is called for.
const NOT_TOLD: &[&str] = &["wal gaps", "place"];

/// What `check` found, as alerts.
pub fn from_checks(cluster: &str, found: &[check::Finding]) -> Evaluated {
    let mut out = Evaluated::default();
    for f in found.iter().filter(|f| !NOT_TOLD.contains(&f.name)) {
        let rule = f.name.replace(' ', "-");
        let severity = match f.verdict {
            check::Verdict::NotChecked => continue,
            check::Verdict::Warning => Severity::Warning,
            check::Verdict::Ok | check::Verdict::Failed => Severity::Critical,
        };
        let repository = f.repository.as_deref();
        let finding = Finding {
            key: key(cluster, &format!("check-{rule}"), repository),
            rule,
            cluster: cluster.to_owned(),
            severity,
            summary: format!("{}: {}", f.name, f.message),
            details: repository.map(|r| ("repository".to_owned(), r.to_owned())).into_iter().collect(),
        };
        // One name may be asked about twice; a bad answer outweighs a good one.
        let known = out.findings.iter_mut().find(|k| k.key == finding.key);
        match (known, f.verdict == check::Verdict::Ok) {
            (Some(_), true) => {}
            (Some(k), false) if finding.severity > k.severity => *k = finding,
            (Some(_), false) => {}
            (None, is_fine) => out.say(finding, !is_fine),
        }
    }
    let trouble: Vec<String> = out.findings.iter().map(|f| f.key.clone()).collect();
    out.fine.retain(|key| !trouble.contains(key));
    out
}

/// How a command ended.
pub struct CommandEnd<'a> {
    pub command: &'static str,
    /// Of a backup: that one of another kind succeeds does not end the trouble of this one.
    pub kind: Option<BackupKind>,
    pub cluster: &'a str,
    pub exit_code: u8,
    /// Code and message of its failure.
    pub failure: Option<(&'a str, &'a str)>,
    pub rto_missed: bool,
}

/// What the end of a command says. A command line that made no sense, and one that somebody stopped, say nothing.
pub fn from_command(end: &CommandEnd<'_>) -> Evaluated {
    let mut out = Evaluated::default();
    let (name, cluster) = (end.command, end.cluster);
    let kind = end.kind.filter(|kind| *kind != BackupKind::Physical);
    let of_kind = kind.map(|kind| format!("-{kind}")).unwrap_or_default();
    let shown = kind.map(|kind| format!(" --kind {kind}")).unwrap_or_default();
    let is_rescue = matches!(name, "restore" | "restore-table" | "recover");
    let (is_trouble, severity) = match (name, end.exit_code) {
        (_, 2 | 5) => return out,
        // Whoever restores by hand sees what is refused.
        ("restore" | "restore-table" | "validate", 4) => return out,
        ("drill", 3) => (true, Severity::Warning),
        (_, 0 | 3) => (false, Severity::Critical),
        ("expire" | "replicate", _) => (true, Severity::Warning),
        _ => (true, Severity::Critical),
    };
    let outcome = match (name, end.exit_code) {
        ("drill", 21) => "was red: a recovery would not succeed".to_owned(),
        ("drill", 3) => "proved nothing".to_owned(),
        (_, 21) => "found that what was restored is not what was backed up".to_owned(),
        (_, 20) => "found damage".to_owned(),
        (_, 12) => "does not open the repository: wrong key".to_owned(),
        (_, 11) => "found the repository locked".to_owned(),
        (_, code) => format!("failed with exit code {code}"),
    };
    let why = end.failure.map(|(code, message)| format!(": {code} {message}")).unwrap_or_default();
    let rule = if is_rescue { "recovery-failed".to_owned() } else { format!("{name}-failed") };
    let mut details = BTreeMap::from([("exit_code".to_owned(), end.exit_code.to_string())]);
    details.extend(end.failure.map(|(code, _)| ("error".to_owned(), code.to_owned())));
    details.extend(kind.map(|kind| ("kind".to_owned(), kind.to_string())));
    let finding = Finding {
        key: key(cluster, &format!("command-{name}{of_kind}"), None),
        rule,
        cluster: cluster.to_owned(),
        severity,
        summary: format!("{name}{shown} {outcome}{why}"),
        details,
    };
    out.say(finding, is_trouble);
    if name == "recover" && !is_trouble {
        let missed = Finding {
            key: key(cluster, "rto", None),
            rule: "rto-missed".into(),
            cluster: cluster.to_owned(),
            severity: Severity::Critical,
            summary: "the service is back, later than the RTO: its report has a post-mortem section".into(),
            details: BTreeMap::new(),
        };
        out.say(missed, end.rto_missed);
    }
    out
}

#[cfg(test)]
mod tests;

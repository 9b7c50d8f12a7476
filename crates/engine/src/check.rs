//! `check`: is this set-up able to bring the database back? Each question is asked of the real thing, and a
//! question that could not be asked is never counted as answered.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgark_pg::value::{SegmentName, SegmentNo, TimelineId};
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore, Lineage, Reading};
use pgark_repo::keyring::{self, SlotInfo};
use pgark_repo::names::ClusterName;
use pgark_repo::store::Capability;
use pgark_repo::wal::WalArchive;

use crate::archive::pressure::Pressure;
use crate::archive::spool::Spool;
use crate::capacity::growth::Trend;
use crate::capacity::{Grade, Measured, Room, SpaceRules};
use crate::clock;
use crate::cluster::{ConnectOptions, Connection, Inspection, create_restore_point, inspect, switch_wal};
use crate::ctx::Ctx;
use crate::error::Result;
use crate::replicate::lacking;
use crate::rescue;
use crate::several::Member;

mod goals;
mod store;

pub use goals::Goals;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Ok,
    /// Works, and should be changed.
    Warning,
    /// Could not be found out.
    NotChecked,
    Failed,
}

#[derive(Clone, Debug)]
pub struct Finding {
    pub name: &'static str,
    /// Which one, when there are several.
    pub repository: Option<String>,
    pub verdict: Verdict,
    pub message: String,
}

pub struct CheckOptions {
    /// Whether findings say which repository they are about; also when but one of them can be looked at.
    pub several: bool,
    pub spool: Option<Spool>,
    pub cluster: ClusterName,
    pub pgdata: Option<PathBuf>,
    pub connect: ConnectOptions,
    pub connect_timeout: Duration,
    pub archive_timeout: Duration,
    /// Whether WAL may be switched to see it arrive.
    pub switch: bool,
    /// By the name of the repository.
    pub space: BTreeMap<String, SpaceLook>,
    pub goals: Goals,
}

/// How much room a repository has, or why that could not be found out.
pub struct SpaceLook {
    pub rules: SpaceRules,
    pub measured: std::result::Result<Measured, String>,
}

/// A clock that differs by more makes times of recovery targets misleading.
const CLOCK_SECONDS_MAX: i64 = 60;
/// So many segments that wait are a backlog.
const WAITING_MANY: u64 = 10;
const WAITING_LONG: Duration = Duration::from_secs(60);
const FULL_SOON: Duration = Duration::from_secs(3600);

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub findings: Vec<Finding>,
    /// What each repository's store can do, by the repository's name when there are several.
    pub capabilities: Vec<(Option<String>, Capability)>,
}

#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    capabilities: Vec<(Option<String>, Capability)>,
    several: bool,
    /// The repository that is looked at, when there are several.
    of: Option<String>,
}

impl Findings {
    fn add(&mut self, name: &'static str, verdict: Verdict, message: impl Into<String>) {
        let repository = self.of.clone();
        self.all.push(Finding { name, repository, verdict, message: message.into() });
    }

    fn done(self) -> Checked {
        Checked { findings: self.all, capabilities: self.capabilities }
    }

    fn can(&mut self, capability: Capability) {
        self.capabilities.push((self.of.clone(), capability));
    }

    fn about(&mut self, member: &Member) {
        self.of = self.several.then(|| member.name.clone());
    }

    fn each(&mut self, members: &[Member], mut look: impl FnMut(&Member, &mut Findings)) {
        for member in members {
            self.about(member);
            look(member, self);
        }
        self.of = None;
    }

    /// A yes-or-no question with its two answers.
    fn expect(&mut self, name: &'static str, fine: bool, good: impl Into<String>, bad: impl Into<String>) {
        let (verdict, message) = if fine { (Verdict::Ok, good.into()) } else { (Verdict::Failed, bad.into()) };
        self.add(name, verdict, message);
    }
}

pub fn check(options: &CheckOptions, members: &[Member], ctx: &Ctx) -> Checked {
    let mut f = Findings { several: options.several, ..Findings::default() };
    f.each(members, |member, f| repository(&member.repo, &options.cluster, ctx, f));
    f.each(members, |member, f| space(options.space.get(&member.name), f));
    place(members, options, &mut f);
    newest_backup(members, options, &mut f);
    completeness(members, options, &mut f);
    goals::rehearsed(options, members, ctx, &mut f);
    if let Some(spool) = &options.spool {
        match spool.spooled() {
            Ok(s) if s.files == 0 => f.add("spool", Verdict::Ok, "empty"),
            Ok(s) => f.add(
                "spool",
                Verdict::Warning,
                format!("{} files ({} bytes of {}) are on this machine alone", s.files, s.bytes, spool.max_bytes),
            ),
            Err(e) => f.add("spool", Verdict::NotChecked, e.to_string()),
        }
    }
    let connection = match Connection::open(&options.connect, options.connect_timeout) {
        Ok(c) => c,
        Err(e) => {
            f.add("connection", Verdict::Failed, e.to_string());
            for name in ["version", "rights", "settings", "archiving", "clock"] {
                f.add(name, Verdict::NotChecked, "no connection");
            }
            return f.done();
        }
    };
    f.add("connection", Verdict::Ok, "connected");
    pressure(options, &mut f);
    match inspect(&connection) {
        Ok(found) => {
            server(&found, options, &mut f);
            goals::wal_in_time(&connection, options.goals, &mut f);
            archiving(&connection, &found, options, members, ctx, &mut f);
        }
        Err(e) => f.add("settings", Verdict::Failed, e.to_string()),
    }
    server_clock(&connection, ctx, &mut f);
    f.done()
}

/// Whether what takes the disk of the data directory takes every repository, too.
fn place(members: &[Member], options: &CheckOptions, f: &mut Findings) {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    let Some(cluster) = options.pgdata.as_deref().and_then(device) else { return };
    let is_beside = |member: &Member| {
        let url = member.repo.store().url();
        url.strip_prefix("file://").is_some_and(|dir| device(Path::new(dir)) == Some(cluster))
    };
    match members.iter().all(is_beside) {
        true => f.add(
            "place",
            Verdict::Warning,
            "every repository that answers lies on the file system of the data directory: have one on another machine",
        ),
        false => f.add("place", Verdict::Ok, "a repository lies elsewhere than the data directory"),
    }
}

/// Of several repositories, whether each has the newest backup of all, or gave it up by itself.
fn newest_backup(members: &[Member], options: &CheckOptions, f: &mut Findings) {
    if members.len() < 2 {
        return;
    }
    let books = members.iter().map(|m| CatalogStore::new(&m.repo, &options.cluster).read());
    let books: Vec<_> = books.collect();
    let newest = books.iter().flatten().filter_map(|c| c.backups.last()).map(|b| &b.id).max();
    let Some(newest) = newest else { return };
    for (member, catalog) in members.iter().zip(&books) {
        f.of = Some(member.name.clone());
        match catalog {
            Ok(c) if c.backup(newest).is_some() => f.add("newest backup", Verdict::Ok, newest.to_string()),
            Ok(c) if c.expired.iter().any(|e| e.backup == *newest) => {
                f.add("newest backup", Verdict::Ok, format!("{newest} has expired here"));
            }
            Ok(_) => f.add("newest backup", Verdict::Warning, format!("{newest} is not here")),
            Err(e) => f.add("newest backup", Verdict::NotChecked, e.to_string()),
        }
    }
    f.of = None;
}

/// Of several repositories, whether each has what the others got.
fn completeness(members: &[Member], options: &CheckOptions, f: &mut Findings) {
    if members.len() < 2 {
        return;
    }
    let lacking = lacking::among(members, &options.cluster);
    for member in members {
        f.of = Some(member.name.clone());
        let mut all = lacking.iter().filter(|l| l.to.name == member.name).peekable();
        if all.peek().is_none() {
            f.add("completeness", Verdict::Ok, "has what the others have");
        }
        for one in all {
            match &one.found {
                Ok(lacks) => f.add("completeness", Verdict::Warning, lacks.describe(&one.from.name, &one.to.name)),
                Err(e) => f.add("completeness", Verdict::NotChecked, format!("compared with {}: {e}", one.from.name)),
            }
        }
    }
    f.of = None;
}

/// How long the server could go on without archiving.
fn pressure(options: &CheckOptions, f: &mut Findings) {
    let Some(pgdata) = &options.pgdata else {
        f.add("pg_wal", Verdict::NotChecked, "the data directory is not known");
        return;
    };
    let found = match Pressure::measure(&pgdata.join("pg_wal")) {
        Ok(found) => found,
        Err(e) => {
            f.add("pg_wal", Verdict::NotChecked, format!("{}: {e}", pgdata.join("pg_wal").display()));
            return;
        }
    };
    let behind = found.waiting >= WAITING_MANY;
    // A segment that is just being pushed is no alarm, whatever rate the last moments had.
    let stands = behind || found.oldest_waits.is_some_and(|waits| waits >= WAITING_LONG);
    let verdict = match found.until_full() {
        Some(left) if stands && left < FULL_SOON => Verdict::Failed,
        _ if behind => Verdict::Warning,
        _ => Verdict::Ok,
    };
    f.add("pg_wal", verdict, found.to_string());
}

fn repository(repo: &Repository, cluster: &ClusterName, ctx: &Ctx, f: &mut Findings) {
    let writer = repo.keys().writes_only();
    let (opened, whole) = match &writer {
        None => ("opens the repository".to_owned(), "every copy of the key ring is whole"),
        Some(of) => (
            format!("is that of a writer of '{of}', and opens no content: removed slots are for a reader's check"),
            "this secret opens every copy of the key ring",
        ),
    };
    f.add("key", Verdict::Ok, format!("{opened} ({:?}, {} slots)", repo.encryption(), repo.slots().len()));
    match repo.check_keyring() {
        Ok(problems) => {
            let first = problems.first().map(|p| p.what.clone()).unwrap_or_default();
            f.expect("key copies", problems.is_empty(), whole, first);
        }
        Err(e) => f.add("key copies", Verdict::NotChecked, e.to_string()),
    }
    match keyring::left_over(repo.store(), repo.keys().current().masters()) {
        // Not a question to it: what it is told with its key says so.
        _ if writer.is_some() => {}
        Ok(left) if left.is_empty() => {
            f.add("removed keys", Verdict::Ok, "no key ring that a removed slot opens is left")
        }
        Ok(left) => {
            let left = left.iter().map(SlotInfo::describe).collect::<Vec<_>>().join(", ");
            let message = format!(
                "an older key ring can still be read, and opened with {left}, which the newest has not: 'pgark key remove' again"
            );
            f.add("removed keys", Verdict::Warning, message);
        }
        Err(e) => f.add("removed keys", Verdict::NotChecked, e.to_string()),
    }
    match rescue::is_there(&**repo.store()) {
        Ok(true) => match rescue::look(&**repo.store()).map(|mut found| found.pop()) {
            Ok(None) => f.add("rescue", Verdict::Ok, "the extractor lies beside the data"),
            Ok(Some((object, _, what))) => {
                f.add("rescue", Verdict::Warning, format!("{object}: {what}; 'pgark verify --repair' writes it anew"));
            }
            Err(e) => f.add("rescue", Verdict::NotChecked, e.to_string()),
        },
        Ok(false) => f.add(
            "rescue",
            Verdict::Warning,
            "the extractor for the day without pgark is not here: 'pgark init' or 'pgark replicate' puts it here",
        ),
        Err(e) => f.add("rescue", Verdict::NotChecked, e.to_string()),
    }
    store::capabilities(repo, cluster, ctx, f);
    for weakness in repo.store().weaknesses() {
        f.add("durability", Verdict::Warning, weakness);
    }
}

/// How much room is left, and for how long it will do.
fn space(look: Option<&SpaceLook>, f: &mut Findings) {
    let Some(SpaceLook { rules, measured }) = look else {
        return f.add("free space", Verdict::NotChecked, "nobody looked");
    };
    let found = match measured {
        Ok(found) => found,
        Err(why) => return f.add("free space", Verdict::NotChecked, why.clone()),
    };
    let verdict = match found.room.grade(rules) {
        Some(Grade::Fine) => Verdict::Ok,
        Some(Grade::Low) => Verdict::Warning,
        Some(Grade::Full) => Verdict::Failed,
        None => Verdict::NotChecked,
    };
    if matches!(found.room, Room::Unknown(_) | Room::Unlimited) {
        return f.add("free space", verdict, found.room.to_string());
    }
    // A young repository has no growth to judge: said beside what was judged, not as a finding that nobody can mend today.
    if let Trend::NotEnough(_) = found.trend {
        return f.add("free space", verdict, format!("{}; {}", found.room, found.forecast));
    }
    f.add("free space", verdict, found.room.to_string());
    let verdict = if found.forecast.is_within(rules.warn_days) { Verdict::Warning } else { Verdict::Ok };
    f.add("growth", verdict, format!("{}; {}", found.forecast, found.trend));
}

/// The date of what was just written.
fn store_clock(reading: Result<Reading>, f: &mut Findings) {
    match reading.map(|r| (r.wall, r.store)) {
        Ok((wall, Some(store))) => {
            let off = (wall.as_second() - store.at.as_second()).abs();
            let verdict = if off <= CLOCK_SECONDS_MAX { Verdict::Ok } else { Verdict::Warning };
            f.add("repository clock", verdict, format!("this machine and the repository differ by {off} s"));
        }
        Ok((_, None)) => f.add("repository clock", Verdict::NotChecked, "the store does not date what is written"),
        Err(e) => f.add("repository clock", Verdict::NotChecked, e.to_string()),
    }
}

/// Whether an expiry would believe the time.
fn cluster_clock(catalog: &Catalog, ctx: &Ctx, f: &mut Findings) {
    let on_record = catalog.clock.as_ref().and_then(|c| c.doubt);
    match on_record.or(catalog.judge(&clock::here(ctx)).doubt) {
        None => f.add("cluster clock", Verdict::Ok, "what is on record and this machine's clock agree"),
        Some(doubt) if on_record.is_some() => {
            let what = format!("{}; the next backup settles it", clock::describe_on_record(&doubt));
            f.add("cluster clock", Verdict::Warning, what);
        }
        Some(doubt) => f.add("cluster clock", Verdict::Warning, clock::describe(&doubt)),
    }
}

fn server(found: &Inspection, options: &CheckOptions, f: &mut Findings) {
    f.add("version", Verdict::Ok, found.server_version.clone().unwrap_or_else(|| found.version_num.to_string()));
    match &found.rights {
        Some(r) => f.expect(
            "rights",
            r.backup && r.switch_wal,
            "may start and stop backups",
            "the role may not run backups: grant EXECUTE on the backup functions, or use a superuser",
        ),
        None => f.add("rights", Verdict::NotChecked, "the server did not tell"),
    }
    let setting = |v: &Option<String>| v.clone().unwrap_or_else(|| "unknown".into());
    let mode = setting(&found.archive_mode);
    f.expect(
        "archive_mode",
        mode != "off" && found.archive_mode.is_some(),
        mode.clone(),
        format!("archive_mode is {mode}"),
    );
    let level = setting(&found.wal_level);
    f.expect("wal_level", level == "replica" || level == "logical", level.clone(), format!("wal_level is {level}"));
    match found.data_checksums {
        Some(true) => f.add("data checksums", Verdict::Ok, "on"),
        Some(false) => f.add("data checksums", Verdict::Warning, "off: damage in the data files goes unnoticed"),
        None => f.add("data checksums", Verdict::NotChecked, "the server did not tell"),
    }
    match &options.pgdata {
        Some(dir) => match crate::backup::source::read_control(dir) {
            Ok(bytes) => {
                let same = pgark_pg::ControlFile::parse(&bytes).is_ok_and(|c| Some(c.system_id) == found.system_id);
                f.expect(
                    "data directory",
                    same,
                    dir.display().to_string(),
                    format!("{} is of another cluster", dir.display()),
                );
            }
            Err(e) => f.add("data directory", Verdict::Failed, e.to_string()),
        },
        None => f.add("data directory", Verdict::NotChecked, "no --pgdata was given"),
    }
}

/// Makes WAL and waits until it has really arrived.
fn archiving(
    connection: &Connection,
    found: &Inspection,
    options: &CheckOptions,
    members: &[Member],
    ctx: &Ctx,
    f: &mut Findings,
) {
    let mut registered: Vec<(&Member, Lineage)> = vec![];
    for member in members {
        f.about(member);
        match CatalogStore::new(&member.repo, &options.cluster).read() {
            Ok(catalog) => {
                cluster_clock(&catalog, ctx, f);
                match catalog.lineage().filter(|l| Some(l.system_id) == found.system_id) {
                    Some(lineage) => {
                        f.add(
                            "registration",
                            Verdict::Ok,
                            format!("'{}' is system {}", options.cluster, lineage.system_id),
                        );
                        let newest =
                            catalog.physical().last().map(|b| SegmentNo::containing(b.lsn_start, lineage.segment_size));
                        gaps(member, options, lineage, found.timeline, newest, f);
                        restorable(member, options, ctx, f);
                        registered.push((member, lineage.clone()));
                    }
                    None => {
                        f.add("registration", Verdict::Failed, "the server is not the one registered under this name")
                    }
                }
            }
            Err(e) => f.add("registration", Verdict::Failed, e.to_string()),
        }
    }
    f.of = None;
    let Some((_, lineage)) = registered.first() else { return };
    if !options.switch {
        return f.add("archiving", Verdict::NotChecked, "not asked to switch WAL");
    }
    let (Some(timeline), false) = (found.timeline, found.in_recovery) else {
        return f.add("archiving", Verdict::NotChecked, "a standby does not make WAL: check on the primary");
    };
    // A switch does nothing on an idle cluster: the restore point gives it something to switch.
    let switched = create_restore_point(connection, "pgark check").and_then(|_| switch_wal(connection));
    let lsn = match switched {
        Ok(l) => l,
        Err(e) => return f.add("archiving", Verdict::Failed, e.to_string()),
    };
    let segment = SegmentNo::containing(pgark_pg::Lsn(lsn.0.saturating_sub(1)), lineage.segment_size);
    let name = SegmentName { timeline, segment };
    let began = Instant::now();
    for (member, lineage) in &registered {
        f.about(member);
        let wal = WalArchive::new(&member.repo, &options.cluster, lineage.system_id);
        let mut describe = || crate::backup::source::describe_archiver(connection);
        match crate::archive::wait_archived(
            ctx,
            &wal,
            &[name],
            lineage.segment_size,
            options.archive_timeout.saturating_sub(began.elapsed()),
            options.pgdata.as_deref(),
            &mut describe,
        ) {
            Ok(_) => f.add(
                "archiving",
                Verdict::Ok,
                format!("{} arrived after {} ms", name.format(lineage.segment_size), began.elapsed().as_millis()),
            ),
            Err(e) => f.add("archiving", Verdict::Failed, e.to_string()),
        }
    }
    f.of = None;
}

/// WAL that this repository lacks after its newest backup, while it has later WAL: what lies behind cannot be reached.
fn gaps(
    member: &Member,
    options: &CheckOptions,
    lineage: &Lineage,
    timeline: Option<TimelineId>,
    newest: Option<SegmentNo>,
    f: &mut Findings,
) {
    let archive = WalArchive::new(&member.repo, &options.cluster, lineage.system_id);
    let head = match archive.head().and_then(|head| archive.present(&head, lineage.segment_size)) {
        Ok(head) => head,
        Err(e) => return f.add("wal gaps", Verdict::NotChecked, e.to_string()),
    };
    let Some(span) = timeline.and_then(|t| head.timeline(t)) else {
        return f.add("wal gaps", Verdict::NotChecked, "there is no WAL of the server's timeline yet");
    };
    let name = |segment| SegmentName { timeline: span.timeline, segment }.format(lineage.segment_size);
    let mut found = span.gaps();
    found.retain(|(_, last)| newest.is_some_and(|n| *last >= n));
    match found.as_slice() {
        [] => f.add("wal gaps", Verdict::Ok, "none after the newest backup"),
        [.., (first, last)] => f.add(
            "wal gaps",
            Verdict::Warning,
            format!("{} to {} never arrived here; a backup may bring them from the server, and 'pgark replicate' from another repository", name(*first), name(*last)),
        ),
    }
}

/// Whether the WAL that each backup needs for itself is there.
fn restorable(member: &Member, options: &CheckOptions, ctx: &Ctx, f: &mut Findings) {
    let found = match crate::info::info(&member.repo, Some(&options.cluster), ctx).map(|mut all| all.pop()) {
        Ok(Some(found)) if found.problems.is_empty() && found.not_opened.is_empty() => found,
        Ok(Some(found)) => {
            let why = found.problems.iter().chain(&found.not_opened).cloned().collect::<Vec<_>>().join("; ");
            return f.add("restorable", Verdict::NotChecked, why);
        }
        Ok(None) => return,
        Err(e) => return f.add("restorable", Verdict::NotChecked, e.to_string()),
    };
    let lost: Vec<String> = found.unrestorable().iter().map(ToString::to_string).collect();
    match lost.is_empty() {
        true => f.add("restorable", Verdict::Ok, "the WAL that the backups need is there"),
        false => f.add(
            "restorable",
            Verdict::Failed,
            format!(
                "{} cannot be restored: WAL that they need is not there; 'pgark verify' says which",
                lost.join(", ")
            ),
        ),
    }
}

fn server_clock(connection: &Connection, ctx: &Ctx, f: &mut Findings) {
    let server = connection
        .query_one("SELECT extract(epoch FROM clock_timestamp())::bigint AS seconds", &[])
        .and_then(|row| row.parse::<i64>("seconds"));
    match server {
        Ok(seconds) => {
            let off = (ctx.now().as_second() - seconds).abs();
            let verdict = if off <= CLOCK_SECONDS_MAX { Verdict::Ok } else { Verdict::Warning };
            f.add("clock", verdict, format!("this machine and the server differ by {off} s"));
        }
        Err(e) => f.add("clock", Verdict::NotChecked, e.to_string()),
    }
}

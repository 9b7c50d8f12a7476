//! The inner process: the story, step by step. It owns the servers; whatever ends it, they are stopped.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgark_engine::archive::{WalPath, wait_archived};
use pgark_engine::backup::base::Wanted;
use pgark_engine::backup::room::RoomOptions;
use pgark_engine::backup::{self, BackupOptions, BackupReport};
use pgark_engine::capacity::SpaceRules;
use pgark_engine::cluster::{Connection, Deadline, switch_wal};
use pgark_engine::register::{self, Identity};
use pgark_engine::restore::start::start;
use pgark_engine::restore::{
    ArchiveMode, Bound, RestoreOptions, RestorePlan, StartOptions, Started, Target, TargetAction, TimelineChoice,
    run as restoring,
};
use pgark_engine::sources::Sources;
use pgark_engine::verify::{Depth, VerifyOptions, VerifyReport, verify};
use pgark_engine::{Ctx, ProgressSink};
use pgark_pg::history::TimelineHistory;
use pgark_pg::value::{Lsn, TimelineId};
use pgark_repo::Repository;
use pgark_repo::catalog::Lineage;
use pgark_repo::codec::Compression;
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{NewKeys, Unlock};
use pgark_repo::names::ClusterName;
use pgark_repo::store::LocalStore;
use pgark_repo::wal::WalArchive;

use super::load::{self, Fingerprint};
use super::place::{Place, bytes_below, empty};
use super::proof::{compare, compare_tables, recovered_rows};
use super::report::{Facts, Kept, Parts, Proof, Report};
use super::server::{self, Server, pg};
use super::writer::{Ledger, Writer};
use super::{DemoArgs, newest_server};
use crate::args::GlobalArgs;
use crate::command::Outcome;
use crate::command::context::{CONNECT_TIMEOUT, engine_failure};
use crate::failure::{Exit, Failure, escape};
use crate::output::{self, human_bytes};

const COMPRESSION: &str = "zstd:1";
const CLUSTER: &str = "main";
/// Payments committed before the backup begins, and after it has ended.
const PAYMENTS_AROUND: u64 = 150;
const ARCHIVE_WITHIN: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);
const RECOVERY_WITHIN: Duration = Duration::from_secs(600);

pub fn run(dir: &Path, args: &DemoArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let ctx = Ctx::silent();
    stop_on_signals(&ctx)?;
    let place = Place::new(dir)?;
    let story = Story {
        began: Instant::now(),
        bin: newest_server(args)?,
        place: &place,
        ctx: &ctx,
        scale: args.scale,
        jobs: jobs(global),
        cluster: ClusterName::parse(CLUSTER).map_err(|e| Failure::failed("E-INTERNAL", e.to_string()))?,
        quiet: global.quiet,
    };
    let told = story.tell(args.keep);
    let cleaned = if args.keep { Ok(()) } else { empty(dir) };
    let report = told?;
    cleaned?;
    output::result(global.form(), &report, || report.text())?;
    Ok(if report.proven { Exit::Done } else { Exit::ValidationFailed })
}

/// No second signal ends the program at once: the servers have to be stopped, and that is quick.
fn stop_on_signals(ctx: &Ctx) -> Result<(), Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, ctx.cancel_flag())
            .map_err(|e| Failure::failed("E-SYSTEM", format!("signals cannot be handled: {e}")))?;
    }
    Ok(())
}

fn jobs(global: &GlobalArgs) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    global.jobs.and_then(|n| usize::try_from(n.get()).ok()).unwrap_or_else(cores)
}

struct Story<'a> {
    began: Instant,
    bin: PathBuf,
    place: &'a Place,
    ctx: &'a Ctx,
    scale: u32,
    jobs: usize,
    cluster: ClusterName,
    quiet: bool,
}

/// The cluster and where it is backed up to.
struct Source {
    server: Server,
    repo: Repository,
    wal: WalArchive,
    lineage: Lineage,
    version: String,
}

struct BackedUp {
    report: BackupReport,
    copied_in: Duration,
    took: Duration,
    payments_meanwhile: u64,
}

struct Disaster {
    xid: u64,
    at: Timestamp,
    ledger: Ledger,
    noticed: Instant,
}

/// From the alarm to the proof.
struct Rescue {
    server: Server,
    plan: RestorePlan,
    started: Started,
    verified: VerifyReport,
    proof: Proof,
    parts: Parts,
}

impl Story<'_> {
    fn tell(&self, keep: bool) -> Result<Report, Failure> {
        let source = self.cluster_up()?;
        let tables = self.load(&source)?;
        let writer = self.write(&source)?;
        let backup = self.back_up(&source, &writer)?;
        let disaster = self.drop_the_table(&source, writer)?;
        // From here on nothing but the rescue can fail, and a rescue that fails is a proof that does not hold.
        let rescue = self.rescue(&source, &backup, &disaster, &tables).map_err(unproven)?;
        let report = self.report(&source, &backup, &disaster, &rescue, keep)?;
        for mut server in [rescue.server, source.server] {
            if keep {
                server.leave();
            } else {
                server.stop()?;
            }
        }
        Ok(report)
    }

    fn step(&self, number: u32, what: &str) {
        if !self.quiet {
            eprintln!("{:>6.1} s  {number}  {what}", self.began.elapsed().as_secs_f64());
        }
    }

    fn check(&self) -> Result<(), Failure> {
        self.ctx.check_cancelled().map_err(engine_failure)
    }

    fn cluster_up(&self) -> Result<Source, Failure> {
        let passphrase = self.place.write_settings()?;
        let server = server::create(&self.bin, self.place, self.ctx)?;
        let store = LocalStore::create(self.place.repository());
        let store = Arc::new(store.map_err(|e| engine_failure(e.into()))?);
        let unlock = Unlock::passphrase(passphrase.as_bytes());
        let keys = NewKeys { encryption: Algorithm::Aes256Gcm, unlock, age_recipients: vec![], key_commands: vec![] };
        let data = self.place.source();
        let identity = [Identity::Directory(&data), Identity::Server(&server.connect, CONNECT_TIMEOUT)];
        let done = register::init(store, &keys, &self.cluster, &identity, false, self.ctx).map_err(engine_failure)?;
        let row = server.open()?.query_one("SHOW server_version", &[]).map_err(pg)?;
        let version = row.text("server_version").map_err(pg)?.to_owned();
        let wal = WalArchive::new(&done.repository, &self.cluster, done.lineage.system_id);
        self.step(1, &format!("cluster   PostgreSQL {version} is up and archives its WAL, encrypted"));
        Ok(Source { server, repo: done.repository, wal, lineage: done.lineage, version })
    }

    fn load(&self, source: &Source) -> Result<Vec<Fingerprint>, Failure> {
        let conn = source.server.open()?;
        let tables = load::load(&conn, self.scale, self.ctx)?;
        let rows: u64 = tables.iter().map(|t| t.rows).sum();
        let bytes = human_bytes(load::database_bytes(&conn)?);
        self.step(2, &format!("load      {rows} rows in {} tables, {bytes}", tables.len()));
        Ok(tables)
    }

    fn write(&self, source: &Source) -> Result<Writer, Failure> {
        let writer = Writer::start(&source.server)?;
        writer.wait_for_more(PAYMENTS_AROUND, self.ctx)?;
        self.step(3, "writer    an application commits payments, and notes each outside the database");
        Ok(writer)
    }

    fn back_up(&self, source: &Source, writer: &Writer) -> Result<BackedUp, Failure> {
        let watch = Arc::new(CopyWatch::default());
        let mut ctx = self.ctx.clone();
        ctx.progress = watch.clone();
        let options = BackupOptions {
            verify_incremental: false,
            wanted: Wanted::Full,
            cluster: self.cluster.clone(),
            pgdata: self.place.source(),
            connect: source.server.connect.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            jobs: self.jobs,
            compression: Compression::parse(COMPRESSION)
                .ok_or_else(|| Failure::failed("E-INTERNAL", "the compression"))?,
            keep: false,
            annotations: Default::default(),
            archive_timeout: ARCHIVE_WITHIN,
            room: RoomOptions { rules: SpaceRules::default(), ignore: false, others: vec![] },
        };
        let (began, before) = (Instant::now(), writer.acknowledged());
        let report = backup::run(&options, &source.repo, &ctx).map_err(engine_failure)?;
        let (took, payments_meanwhile) = (began.elapsed(), writer.acknowledged() - before);
        let size = human_bytes(report.entry.size_bytes);
        self.step(
            4,
            &format!("backup    {} of {size} while {payments_meanwhile} payments were committed", report.entry.id),
        );
        writer.wait_for_more(PAYMENTS_AROUND, self.ctx)?;
        Ok(BackedUp { report, copied_in: watch.took(), took, payments_meanwhile })
    }

    fn drop_the_table(&self, source: &Source, writer: Writer) -> Result<Disaster, Failure> {
        let conn = source.server.open()?;
        let run = |sql: &str| conn.execute(sql, &[]).map_err(pg);
        run("BEGIN")?;
        let row = conn.query_one("SELECT pg_current_xact_id()::text AS xid", &[]).map_err(pg)?;
        let xid: u64 = row.parse("xid").map_err(pg)?;
        run("DROP TABLE public.payments")?;
        run("COMMIT")?;
        let at = Timestamp::now();
        self.step(5, &format!("disaster  somebody ran DROP TABLE payments (transaction {xid})"));
        let ledger = writer.alarm(self.ctx)?;
        let Some((noticed, message)) = &ledger.alarm else {
            return Err(Failure::failed("E-DEMO-WRITER", "the writer ended without an error"));
        };
        self.step(5, &format!("alarm     the application: {}", escape(message)));
        Ok(Disaster { xid, at, noticed: *noticed, ledger })
    }

    fn rescue(
        &self,
        source: &Source,
        backup: &BackedUp,
        disaster: &Disaster,
        tables: &[Fingerprint],
    ) -> Result<Rescue, Failure> {
        let mut lap = Lap(disaster.noticed);
        let entry = &backup.report.entry;
        self.archive_the_rest(source, entry.timeline, entry.lsn_start)?;
        let wal = lap.next();
        let verified = self.verify(source)?;
        let verify = lap.next();
        let (options, plan) = self.restore(source, disaster)?;
        let restore = lap.next();
        let (server, started) = self.recover(source, &options, &plan)?;
        let recovery = lap.next();
        let proof = self.prove(&server, disaster, tables)?;
        let parts = Parts { wal, verify, restore, recovery, proof: lap.next(), all: disaster.noticed.elapsed() };
        Ok(Rescue { server, plan, started, verified, proof, parts })
    }

    /// The DROP is in the WAL segment that is being written: it is closed, and waited for.
    fn archive_the_rest(&self, source: &Source, timeline: TimelineId, from: Lsn) -> Result<(), Failure> {
        let conn = source.server.open()?;
        let end = switch_wal(&conn).map_err(pg)?;
        let size = source.lineage.segment_size;
        let names = WalPath::new(&TimelineHistory::root(timeline), size).segments(from, end);
        let mut describe = || " (see source.log with --keep)".to_owned();
        wait_archived(self.ctx, &source.wal, &names, size, ARCHIVE_WITHIN, None, &mut describe)
            .map_err(engine_failure)?;
        match names.last() {
            Some(last) => self.archiver_has_ended(&conn, &last.format(size)),
            None => Ok(()),
        }
    }

    /// The segment counts as archived a moment before `archive-push` has ended. What follows reads the repository at
    /// rest, so PostgreSQL too must have been told.
    fn archiver_has_ended(&self, conn: &Connection, segment: &str) -> Result<(), Failure> {
        let deadline = Deadline::after(ARCHIVE_WITHIN);
        loop {
            self.check()?;
            let row = conn.query_one("SELECT last_archived_wal AS name FROM pg_stat_archiver", &[]).map_err(pg)?;
            // Names of one timeline sort as their numbers do; a backup's history file begins with a segment's name.
            if row.opt_text("name").map_err(pg)?.is_some_and(|name| name >= segment) {
                return Ok(());
            }
            if deadline.has_passed() {
                return Err(Failure::failed(
                    "E-WAL-TIMEOUT",
                    format!("PostgreSQL does not report wal segment {segment} as archived"),
                )
                .hint("--keep leaves source.log to look at"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn verify(&self, source: &Source) -> Result<VerifyReport, Failure> {
        let options = VerifyOptions { cluster: self.cluster.clone(), only: None, depth: Depth::Full, jobs: self.jobs };
        let report = verify(&options, &source.repo, self.ctx).map_err(engine_failure)?;
        if let Some(problem) = report.problems.first() {
            return Err(Failure::new("E-DEMO-VERIFY", Exit::Damage, format!("{}: {}", problem.object, problem.what)));
        }
        let bytes = human_bytes(report.bytes_checked);
        self.step(
            6,
            &format!("verify    {} objects, {bytes}, every byte authenticated, no problem", report.objects_checked),
        );
        Ok(report)
    }

    fn restore(&self, source: &Source, disaster: &Disaster) -> Result<(RestoreOptions, RestorePlan), Failure> {
        // WAL holds the lower half of a transaction id; the upper half counts how often it wrapped.
        let xid = u32::try_from(disaster.xid & u64::from(u32::MAX)).unwrap_or(0);
        let options = RestoreOptions {
            delta: false,
            cluster: self.cluster.clone(),
            backup: None,
            to: self.place.recovered(),
            target: Target::Xid { xid, bound: Bound::Exclusive },
            timeline: TimelineChoice::Latest,
            action: TargetAction::Promote,
            tablespace_map: vec![],
            archive_mode: ArchiveMode::Off,
            jobs: self.jobs,
            program: self.place.program.clone(),
            places: vec![],
        };
        let (plan, done) = restoring::run(&options, &Sources::one(source.repo.clone()), self.ctx, &mut |_| {})
            .map_err(engine_failure)?;
        let what = format!("{} files, {}", done.files, human_bytes(done.bytes_restored));
        self.step(7, &format!("restore   {what}; planned end {}, just before transaction {xid}", plan.stop.end));
        Ok((options, plan))
    }

    fn recover(
        &self,
        source: &Source,
        options: &RestoreOptions,
        plan: &RestorePlan,
    ) -> Result<(Server, Started), Failure> {
        let start_options = StartOptions {
            bin: Some(self.bin.clone()),
            port: Some(self.place.recovered_port()),
            socket_dir: Some(self.place.dir.clone()),
            within: RECOVERY_WITHIN,
            settings: vec![],
            role: None,
        };
        let started = start(&options.to, plan, options.action, &start_options, self.ctx).map_err(engine_failure)?;
        let server = Server::adopt(options.to.clone(), started.pid, &started.socket_dir, started.port)?;
        restoring::record_replay(&Sources::one(source.repo.clone()), &self.cluster, plan).map_err(engine_failure)?;
        self.step(7, &format!("recover   reached {}, as planned, and promoted", started.reached));
        Ok((server, started))
    }

    fn prove(&self, server: &Server, disaster: &Disaster, tables: &[Fingerprint]) -> Result<Proof, Failure> {
        self.check()?;
        let conn = server.open()?;
        let payments = compare(&disaster.ledger.entries, &recovered_rows(&conn)?);
        let others = compare_tables(tables, &load::fingerprints(&conn, self.ctx)?);
        let proof = Proof { payments, tables: others };
        let same = proof.tables.iter().filter(|t| t.identical).count();
        self.step(
            8,
            &format!(
                "proof     {} of {} payments identical, {} of {} tables identical",
                proof.payments.identical,
                proof.payments.acknowledged,
                same,
                proof.tables.len()
            ),
        );
        Ok(proof)
    }

    fn report(
        &self,
        source: &Source,
        backup: &BackedUp,
        disaster: &Disaster,
        rescue: &Rescue,
        keep: bool,
    ) -> Result<Report, Failure> {
        let segments: u64 = {
            let head = source.wal.head().map_err(|e| engine_failure(e.into()))?;
            head.timelines().iter().flat_map(|t| &t.ranges).map(|(first, last)| last - first + 1).sum()
        };
        let wal_bytes = segments * source.lineage.segment_size.bytes();
        let repository_bytes = bytes_below(&self.place.repository())?;
        Ok(Report::new(Facts {
            pg_version: source.version.clone(),
            entry: &backup.report.entry,
            copied_in: backup.copied_in,
            backup_took: backup.took,
            payments_meanwhile: backup.payments_meanwhile,
            wal_segments: segments,
            wal_bytes,
            repository_bytes,
            dropped_at: disaster.at,
            dropped_by: disaster.xid,
            objects_checked: rescue.verified.objects_checked,
            bytes_checked: rescue.verified.bytes_checked,
            reached: rescue.started.reached,
            timeline: rescue.plan.timeline,
            proof: rescue.proof.clone(),
            parts: rescue.parts,
            total: self.began.elapsed(),
            kept: keep.then(|| Kept::new(self.place, &self.bin)),
        }))
    }
}

/// Cancelling is no verdict about the proof; every other failure of the rescue is.
fn unproven(failure: Failure) -> Failure {
    match failure.exit {
        Exit::Cancelled => failure,
        _ => Failure { exit: Exit::ValidationFailed, ..failure },
    }
}

/// Time since it was asked last.
struct Lap(Instant);

impl Lap {
    fn next(&mut self) -> Duration {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.0);
        self.0 = now;
        took
    }
}

/// How long the copying took, without the checkpoint before and the wait for WAL after it.
#[derive(Default)]
struct CopyWatch(Mutex<(Option<Instant>, Duration)>);

impl CopyWatch {
    fn took(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl ProgressSink for CopyWatch {
    fn begin(&self, _: &str, _: Option<u64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(Instant::now());
    }
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn end(&self) {
        let mut watch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(began) = watch.0.take() {
            watch.1 += began.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_rescue_is_a_failed_proof_and_a_cancelled_one_is_not() {
        let exit = |exit| unproven(Failure::new("E-X", exit, "x")).exit;
        assert_eq!(exit(Exit::Refused), Exit::ValidationFailed);
        assert_eq!(exit(Exit::Damage), Exit::ValidationFailed);
        assert_eq!(exit(Exit::Cancelled), Exit::Cancelled);
    }
}

//! Makes a repository of many clusters for `bench/run --case server`: `many_clusters DIR PASSPHRASE_FILE CLUSTERS BACKUPS SEGMENTS`.
//!
//! What a look at a cluster reads is there, written by the code that always writes it: catalogs and heads, the index of each
//! segment, records, reports of drills, the audit trail. What it does not read is empty: files and WAL are zeros. Nothing is
//! forced to the disk, which is the one thing that is not as it always is.

use std::error::Error;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgark_engine::drill::{Report, Step, StepKind, Verdict, WHAT};
use pgark_pg::value::{Lsn, PgTimestamp, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_pg::wal::{Activity, Changes};
use pgark_repo::Repository;
use pgark_repo::audit::{Event, Head, Journal, JournalName, What, Who};
use pgark_repo::catalog::{
    BackupEntry, BackupKind, BackupType, CatalogStore, Evidence, JobKind, Lineage, PhysicalFacts,
};
use pgark_repo::codec::{Compression, Encoder, Recheck, WalEncoding};
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{NewKeys, Unlock};
use pgark_repo::manifest::{Chunk, Directory, FileEnd, FileStart, Item, ManifestWriter};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{BackupRecord, Base, Method, Owner, Totals};
use pgark_repo::report::{NewReport, Severity, StoredReport};
use pgark_repo::store::{LocalStore, ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};
use pgark_repo::stream::Fingerprint;
use pgark_repo::wal::index::{Ending, RestorePoint};
use pgark_repo::wal::{EncodedBlock, SegmentData, SegmentHasher, WalArchive, WalIndex};

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const SEGMENT_BYTES: u64 = 16 << 20;
const BLOCK_BYTES: usize = 256 * 1024;
const FIRST_SEGMENT: u64 = 1000;
const VERSION_NUM: u32 = 150_018;
const CATALOG_VERSION: u32 = 202_209_061;
const DATA_BYTES: u64 = 40 << 30;
/// Backups from one full one, or drill, to the next.
const FULL_EVERY: u64 = 7;
/// One of so many clusters was never rehearsed; of one of so many a segment is missing.
const UNREHEARSED: u64 = 10;
const WITH_A_GAP: u64 = 20;
const THREADS: u64 = 2;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let made = match &words[..] {
        [dir, passphrase, numbers @ ..] => make(Path::new(dir), Path::new(passphrase), numbers),
        _ => Err("usage: many_clusters DIR PASSPHRASE_FILE CLUSTERS BACKUPS SEGMENTS".into()),
    };
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("many_clusters: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn make(dir: &Path, passphrase: &Path, numbers: &[String]) -> Done {
    let numbers: Vec<u64> = numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    let [clusters, backups, segments] = numbers[..] else { return Err("three numbers are needed".into()) };
    if backups == 0 || segments < 2 * backups {
        return Err("a backup takes two segments".into());
    }
    fs::create_dir(dir)?;
    let dir = dir.canonicalize()?;
    let secret = fs::read(passphrase)?;
    let unlock = Unlock::passphrase(secret.trim_ascii_end());
    let new = NewKeys { encryption: Algorithm::Aes256Gcm, unlock, age_recipients: vec![], key_commands: vec![] };
    let store = Unsynced { own: LocalStore::create(&dir)?, root: dir };
    let (repo, _) = Repository::init(Arc::new(store), &new)?;
    let plan = Plan { backups, segments, end: Timestamp::now(), size: SegmentSize::new(SEGMENT_BYTES)? };
    let empty = Empty::new(plan.size)?;
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let work = || -> Done {
            while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < clusters) {
                World {
                    repo: &repo,
                    plan: &plan,
                    empty: &empty,
                    number,
                    name: ClusterName::parse(&format!("c{number:03}"))?,
                }
                .fill()?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })
}

/// The same for all clusters: backups, with the same number of segments between them, up to now.
struct Plan {
    backups: u64,
    segments: u64,
    end: Timestamp,
    size: SegmentSize,
}

/// A day from one backup to the next.
const DAY: SignedDuration = SignedDuration::from_hours(24);

impl Plan {
    fn between(&self) -> u64 {
        self.segments / self.backups
    }

    /// When segment `n` began, counted from the first one.
    fn at(&self, n: u64) -> Timestamp {
        let left = i64::try_from(self.segments - n).unwrap_or(0);
        let each = DAY.as_secs() / i64::try_from(self.between()).unwrap_or(1);
        self.end - SignedDuration::from_secs(left * each)
    }

    fn name(&self, n: u64) -> SegmentName {
        SegmentName { timeline: TimelineId::new(1).expect("not zero"), segment: SegmentNo(FIRST_SEGMENT + n) }
    }
}

/// A segment of zeros, compressed once.
struct Empty {
    blocks: Vec<EncodedBlock>,
    content: String,
}

impl Empty {
    fn new(size: SegmentSize) -> Done<Self> {
        let plain = vec![0; BLOCK_BYTES];
        let mut encoder = Encoder::for_wal(WalEncoding { compression: Compression::DEFAULT, recheck: Recheck::No })?;
        let (mut blocks, mut hasher) = (vec![], SegmentHasher::new(size.bytes()));
        for _ in 0..size.bytes() / BLOCK_BYTES as u64 {
            let mut encoded = vec![];
            let codec = encoder.encode(&plain, &mut encoded)?;
            blocks.push(EncodedBlock { plain_len: BLOCK_BYTES, codec, encoded: encoded.into() });
            hasher.update(&plain);
        }
        Ok(Empty { blocks, content: hasher.finish().1 })
    }
}

struct World<'a> {
    repo: &'a Repository,
    plan: &'a Plan,
    empty: &'a Empty,
    number: u64,
    name: ClusterName,
}

impl World<'_> {
    fn system_id(&self) -> SystemId {
        SystemId(7_400_000_000_000_000_000 + self.number)
    }

    fn fill(&self) -> Done {
        let catalog = CatalogStore::new(self.repo, &self.name);
        let lineage = Lineage {
            system_id: self.system_id(),
            version_num: VERSION_NUM,
            catalog_version: CATALOG_VERSION,
            segment_size: self.plan.size,
            registered: self.plan.at(0),
        };
        catalog.register(&lineage, false)?;
        let wal = WalArchive::new(self.repo, &self.name, self.system_id());
        let journal = Journal::new(self.repo, JournalName::Cluster(self.name.clone()));
        let (mut head, mut last_full) = (None, None);
        for backup in 0..self.plan.backups {
            self.archive(&wal, backup)?;
            let record = self.record(backup, last_full.as_ref())?;
            let claim = catalog.claim(JobKind::Backup, &record.id, record.started)?;
            claim.commit_backup(&self.entry(backup, &record)?)?;
            head = Some(self.told(&journal, head.as_ref(), &record)?);
            if record.backup_type == BackupType::Full {
                self.rehearse(&record)?;
                last_full = Some(record.id);
            }
        }
        Ok(())
    }

    /// The segments up to the next backup; the last one takes those that are over.
    fn archive(&self, wal: &WalArchive, backup: u64) -> Done {
        let first = backup * self.plan.between();
        let last = if backup + 1 == self.plan.backups { self.plan.segments } else { first + self.plan.between() };
        let gap = (self.number % WITH_A_GAP == 7).then_some(self.plan.segments / 2);
        let mut stored = vec![];
        for n in (first..last).filter(|n| Some(*n) != gap) {
            let index = self.index(n);
            let data = &mut SegmentData::Encoded(&self.empty.blocks);
            let (_, copy) = wal.push_segment(&index, &Changes::default(), data)?;
            stored.push((index.segment_name(), copy));
        }
        Ok(wal.acknowledge(&stored)?)
    }

    fn index(&self, n: u64) -> WalIndex {
        let (name, size) = (self.plan.name(n), self.plan.size);
        let (start, end) = (name.segment.start(size).0, name.segment.end(size));
        let micros = |at: Timestamp| PgTimestamp::from_unix_micros(at.as_microsecond()).0;
        let (from, to) = (micros(self.plan.at(n)), micros(self.plan.at(n + 1)));
        let mut activity = Activity::default();
        activity.commits = (from / 60_000_000..=to / 60_000_000).step_by(2).map(|minute| (minute, 20)).collect();
        let point =
            RestorePoint { lsn: Lsn(start + 0x2000), end: Lsn(start + 0x2068), time: from, name: b"release".to_vec() };
        let xid = 1000 + u32::try_from(n).unwrap_or(0) * 300;
        WalIndex {
            system_id: self.system_id(),
            timeline: name.timeline,
            segment: name.segment,
            segment_size: size,
            major: 15,
            content: self.empty.content.clone(),
            valid_content: self.empty.content.clone(),
            valid_end: end,
            first_record: Some(Lsn(start + 0x28)),
            first_prev: Lsn(start.saturating_sub(0x60)),
            last_record: Some((Lsn(end.0 - 0x60), end)),
            leading: None,
            overwrites_crossing: false,
            crossing: None,
            ending: Ending::Filled,
            records: 40_000,
            transaction_ends: 300,
            first_time: Some(from),
            last_time: Some(to),
            min_time: Some(from),
            max_time: Some(to),
            min_xid: Some(xid),
            max_xid: Some(xid + 299),
            restore_points: if n.is_multiple_of(500) { vec![point] } else { vec![] },
            restore_points_overflow: false,
            checkpoint_time: Some(self.plan.at(n).as_second()),
            min_wal_level: Some(1),
            full_page_writes_off: false,
            undecodable: 0,
            wal_after_end: None,
            activity: Some(activity),
            changes_bytes: None,
        }
    }

    fn record(&self, backup: u64, last_full: Option<&BackupId>) -> Done<BackupRecord> {
        // In the second of its segments.
        let n = backup * self.plan.between() + 1;
        let started = Timestamp::from_second(self.plan.at(n).as_second())?;
        let is_full = backup.is_multiple_of(FULL_EVERY);
        let id = format!("{}{}", started.strftime("%Y%m%d-%H%M%S"), if is_full { 'F' } else { 'I' });
        let id = BackupId::parse(&id)?;
        let share = if is_full { 1 } else { 20 };
        let (manifest, files) = self.manifest(&id)?;
        let segment = self.plan.name(n).segment.start(self.plan.size).0;
        Ok(BackupRecord {
            cluster: self.name.clone(),
            kind: BackupKind::Physical,
            backup_type: if is_full { BackupType::Full } else { BackupType::Incremental },
            program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
            system_id: self.system_id(),
            version_num: VERSION_NUM,
            catalog_version: CATALOG_VERSION,
            segment_size: self.plan.size,
            block_size: 8192,
            data_checksums: true,
            timeline: self.plan.name(n).timeline,
            lsn_start: Lsn(segment + 0x28),
            lsn_stop: Lsn(segment + 0x138),
            started,
            finished: started + SignedDuration::from_mins(if is_full { 12 } else { 3 }),
            from_standby: false,
            backup_label: b"START WAL LOCATION\n".to_vec(),
            pg_control: vec![0; 512],
            tablespaces: vec![],
            config_files: vec![],
            owner: Owner { uid: 70, gid: 70, mode: 0o700 },
            manifest,
            totals: Totals {
                files,
                directories: 1,
                size_bytes: DATA_BYTES + backup * (1 << 26),
                read_bytes: DATA_BYTES / share,
                stored_bytes: DATA_BYTES / 4 / share,
                packs: 160 / share,
                frames: 40_000 / share,
            },
            bad_blocks: 0,
            vanished_files: 0,
            warnings: vec![],
            base: last_full.filter(|_| !is_full).map(|full| Base {
                backup: full.clone(),
                method: Method::Blocks,
                reason: None,
            }),
            full_because: None,
            id,
        })
    }

    fn manifest(&self, id: &BackupId) -> Done<(Fingerprint, u64)> {
        let name = names::manifest(&self.name, id);
        let mut writer = ManifestWriter::create(&**self.repo.store(), self.repo.keys(), &name)?;
        writer.push(&Item::Directory(Directory { path: vec![], mode: 0o700 }))?;
        writer.push(&Item::FileStart(FileStart { path: b"base".to_vec(), mode: 0o600, modified_ns: 0 }))?;
        writer.push(&Item::Chunks(vec![Chunk::Zero(DATA_BYTES)]))?;
        writer.push(&Item::FileEnd(FileEnd { size: DATA_BYTES }))?;
        Ok((writer.finish()?, 1))
    }

    fn entry(&self, backup: u64, r: &BackupRecord) -> Done<BackupEntry> {
        let is_drilled = backup.is_multiple_of(FULL_EVERY) && self.number % UNREHEARSED != 3;
        Ok(BackupEntry {
            id: r.id.clone(),
            kind: r.kind,
            backup_type: r.backup_type,
            system_id: r.system_id,
            version_num: r.version_num,
            started: r.started,
            finished: r.finished,
            physical: Some(PhysicalFacts {
                lsn_start: r.lsn_start,
                lsn_stop: r.lsn_stop,
                stopped: r.finished,
                timeline: r.timeline,
                bad_blocks: 0,
                from_standby: false,
            }),
            size_bytes: r.totals.size_bytes,
            read_bytes: r.totals.read_bytes,
            stored_bytes: r.totals.stored_bytes,
            database_bytes: None,
            series: None,
            kept: false,
            kept_until: None,
            holds: vec![],
            damaged: None,
            certain: None,
            evidence: if is_drilled { Evidence::Drilled } else { Evidence::Stored },
            drilled: is_drilled.then(|| r.finished + DAY),
            annotations: Default::default(),
            needs: vec![],
            record: r.store(self.repo)?,
        })
    }

    /// A green drill, as it leaves a report.
    fn rehearse(&self, r: &BackupRecord) -> Done {
        if self.number % UNREHEARSED == 3 {
            return Ok(());
        }
        let started = r.finished + SignedDuration::from_hours(1);
        let mut report = Report::new(&self.name, r.kind, "the end of the backup".into(), started);
        report.verdict = Verdict::Green;
        report.backup = Some(r.id.clone());
        report.backup_finished = Some(r.finished);
        report.reached = Some(r.lsn_stop.to_string());
        report.duration_ms = 900_000;
        let step = |step, duration_ms, bytes| Step { step, duration_ms, bytes };
        report.steps = vec![
            step(StepKind::Restore, 600_000, r.totals.size_bytes),
            step(StepKind::Recover, 60_000, 3 * SEGMENT_BYTES),
            step(StepKind::Check, 240_000, r.totals.size_bytes),
        ];
        let new = NewReport {
            what: WHAT,
            severity: Severity::Info,
            backup: Some(r.id.clone()),
            database: None,
            summary: format!("backup {} was restored, and all of it was right", r.id),
            report: serde_json::to_value(&report)?,
        };
        StoredReport::store(self.repo, &self.name, new, started + SignedDuration::from_mins(15))?;
        Ok(())
    }

    /// That the backup was begun, and how it ended.
    fn told(&self, journal: &Journal<'_>, after: Option<&Head>, r: &BackupRecord) -> Done<Head> {
        let who = Who {
            user: "postgres".into(),
            uid: 70,
            host: format!("{}.example.org", self.name),
            pid: 4242,
            program: r.program.clone(),
            ..Who::default()
        };
        let event = |at, what| Event::new(at, Some(self.name.to_string()), who.clone(), what);
        let arguments = vec!["backup".to_owned(), format!("--cluster={}", self.name)];
        let begun = event(r.started, What::Attempt { command: "backup".into(), arguments })?;
        let head = journal.append(&begun, after)?;
        let took = r.finished.duration_since(r.started);
        let end = What::End {
            attempt: begun.id,
            command: "backup".into(),
            exit_code: 0,
            error: None,
            about: vec![("backup".into(), r.id.to_string())],
            took_ms: u64::try_from(took.as_millis())?,
        };
        Ok(journal.append(&event(r.finished, end)?, Some(&head))?)
    }
}

/// A directory as `LocalStore` has it, written without waiting for the disk.
struct Unsynced {
    own: LocalStore,
    root: PathBuf,
}

struct Unwritten {
    name: ObjectName,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl ObjectWriter for Unwritten {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn written(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        let made = open().or_else(|e| match (e.kind(), self.path.parent()) {
            (ErrorKind::NotFound, Some(dir)) => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                open()
            }
            _ => Err(e),
        });
        made.and_then(|mut file| file.write_all(&self.bytes)).map_err(|source| failed("write", &self.name, source))
    }
}

fn failed(operation: &'static str, name: &ObjectName, source: std::io::Error) -> StoreError {
    let object = name.to_string();
    match source.kind() {
        ErrorKind::AlreadyExists => StoreError::AlreadyExists { object },
        ErrorKind::NotFound => StoreError::NotFound { object },
        _ => StoreError::Io { operation, object, source },
    }
}

impl Store for Unsynced {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let mut writer = self.create(name)?;
        writer.write(bytes)?;
        writer.finish()
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        Ok(Box::new(Unwritten { name: name.clone(), path: self.root.join(name.as_str()), bytes: vec![] }))
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.own.read(name, max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.own.read_at(name, offset, buf)
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.own.stat(name)
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.own.list(prefix, visit)
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.own.list_dirs(prefix)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        fs::remove_file(self.root.join(name.as_str())).map_err(|source| failed("delete", name, source))
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        self.own.free_bytes()
    }

    fn url(&self) -> String {
        self.own.url()
    }

    fn sweep_abandoned(&self, older_than: Duration) -> Result<u64, StoreError> {
        self.own.sweep_abandoned(older_than)
    }
}

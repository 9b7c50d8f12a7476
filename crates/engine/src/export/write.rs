//! Puts an export together, in a fixed order: what explains it, the data directory, WAL, what PostgreSQL needs to begin
//! recovery, its list of checksums, and `pg_control`.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::thread;

use aws_lc_rs::digest::{Context, SHA256};
use crossbeam_channel::bounded;
use pgark_pg::control::ControlFile;
use pgark_pg::exclude::required_dirs;
use pgark_pg::names::WalFileName;
use pgark_pg::value::Lsn;
use pgark_repo::record::BackupRecord;
use pgark_repo::wal::WalArchive;
use pgark_repo::{RepoError, Repository, names};

use super::facts;
use super::output::nameless;
use super::pack::Packer;
use super::pg_manifest::{PgManifestWriter, WalRange, each_piece};
use super::readme;
use super::stream::{Piece, stream};
use super::tar::{Entry, EntryKind, TarWriter};
use super::{ExportOptions, ExportPlan, ExportReport};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::restore::files::{local_config, major};
use crate::restore::settings::without_recovery;

/// Pieces of at most a frame that wait to be written.
const PIECES_WAITING: usize = 32;
const AUTO_CONF: &[u8] = b"postgresql.auto.conf";
const AUTO_CONF_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Of the source's own past, as in a restore, and what PostgreSQL would take for something else.
const SKIPPED: [&[u8]; 2] = [b"standby.signal", b"recovery.signal"];
/// Written by the export itself if the backup does not bring them.
const CONFIGS: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

pub fn write(
    options: &ExportOptions,
    plan: &ExportPlan,
    out: &mut dyn Write,
    repo: &Repository,
    ctx: &Ctx,
) -> Result<ExportReport> {
    let record = &plan.restore.record;
    let spool = nameless(&options.spool)?;
    let manifest = PgManifestWriter::new(spool, major(record)?, record.system_id).map_err(failed)?;
    let tar = TarWriter::new(Packer::new(options.packing, out).map_err(failed)?);
    let mut w = Writer {
        plan,
        tar,
        manifest: Some(manifest),
        report: ExportReport::default(),
        owner: (record.owner.uid, record.owner.gid),
        generated: record.finished.as_second(),
        seen: BTreeSet::new(),
        auto_conf: None,
        auto_conf_left: 0,
        under_way: None,
        hash: Context::new(&SHA256),
    };
    w.beginning()?;
    ctx.progress.begin("export", Some(record.totals.size_bytes));
    let copied = data_directory(&mut w, plan, repo, ctx);
    ctx.progress.end();
    copied?;
    w.tablespace_links()?;
    w.wal(repo, ctx)?;
    w.configuration()?;
    w.ending()
}

fn failed(e: io::Error) -> EngineError {
    EngineError::file("writing", "the export", e)
}

/// One thread reads and checks, this one writes.
fn data_directory(w: &mut Writer<'_, '_>, plan: &ExportPlan, repo: &Repository, ctx: &Ctx) -> Result<()> {
    let (tx, rx) = bounded(PIECES_WAITING);
    thread::scope(|scope| {
        let reader = scope.spawn(|| stream(&plan.restore, repo, ctx, &SKIPPED, tx));
        let mut written = Ok(());
        for piece in &rx {
            written = w.take(piece, ctx);
            if written.is_err() {
                break;
            }
        }
        drop(rx);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // When writing failed, that is why reading ended.
        written.and(read)
    })
}

struct File {
    /// In PostgreSQL's list; None: not listed there.
    listed: Option<Vec<u8>>,
    size: u64,
    left: u64,
    modified: i64,
}

struct Writer<'p, 'o> {
    plan: &'p ExportPlan,
    tar: TarWriter<Packer<&'o mut dyn Write>>,
    /// None once it has been written.
    manifest: Option<PgManifestWriter>,
    report: ExportReport,
    owner: (u32, u32),
    /// The time of what the export itself writes.
    generated: i64,
    /// Paths that must not be written twice: directories above WAL, tablespaces, configuration.
    seen: BTreeSet<Vec<u8>>,
    /// Kept to be changed.
    auto_conf: Option<(Vec<u8>, u32)>,
    auto_conf_left: u64,
    under_way: Option<File>,
    hash: Context,
}

impl Writer<'_, '_> {
    fn record(&self) -> &BackupRecord {
        &self.plan.restore.record
    }

    fn beginning(&mut self) -> Result<()> {
        self.entry(b"", EntryKind::Directory, 0o700, self.generated)?;
        let text = readme::text(self.plan);
        self.small(b"README.txt", None, text.as_bytes(), 0o600)?;
        let facts = facts::Facts::new(self.plan).to_bytes();
        self.small(facts::FILE.as_bytes(), None, &facts, 0o600)?;
        self.entry(b"data", EntryKind::Directory, (self.record().owner.mode & 0o750) | 0o700, self.generated)
    }

    fn take(&mut self, piece: Piece, ctx: &Ctx) -> Result<()> {
        match piece {
            Piece::Directory { path, .. } if path.is_empty() => Ok(()),
            Piece::Directory { path, mode } => {
                if self.is_link(&path) {
                    self.tablespaces_dir()?;
                }
                let place = self.place(&path);
                self.entry(&place, EntryKind::Directory, (mode & 0o750) | 0o700, self.generated)?;
                self.note(path);
                Ok(())
            }
            Piece::File { path, mode, size, .. } if path == AUTO_CONF => {
                if size > AUTO_CONF_BYTES_MAX as u64 {
                    let name = names::manifest(&self.record().cluster, &self.record().id);
                    return Err(RepoError::corrupt(name, "postgresql.auto.conf of an impossible size").into());
                }
                self.auto_conf = Some((vec![], mode & 0o750));
                self.auto_conf_left = size;
                Ok(())
            }
            Piece::File { path, mode, modified, size } => {
                let place = self.place(&path);
                self.note(path.clone());
                self.begin(&place, Some(path), mode & 0o750, modified, size)
            }
            Piece::Data(bytes) => {
                ctx.progress.advance(bytes.len() as u64);
                match &mut self.auto_conf {
                    Some((kept, _)) if self.auto_conf_left > 0 => {
                        kept.extend_from_slice(&bytes);
                        self.auto_conf_left = self.auto_conf_left.saturating_sub(bytes.len() as u64);
                        Ok(())
                    }
                    _ => self.data(&bytes),
                }
            }
            Piece::Warning(text) => {
                self.report.warnings.push(text);
                Ok(())
            }
        }
    }

    /// Names of the top directory and of `pg_wal` are few; what is further down does not collide with anything.
    fn note(&mut self, path: Vec<u8>) {
        if path.iter().filter(|b| **b == b'/').count() == 0 || path.starts_with(b"pg_wal/") || self.is_link(&path) {
            self.seen.insert(path);
        }
    }

    /// Whether this is where PostgreSQL has the link to a tablespace.
    fn is_link(&self, path: &[u8]) -> bool {
        let oid = path.strip_prefix(b"pg_tblspc/").and_then(|p| std::str::from_utf8(p).ok()?.parse::<u32>().ok());
        oid.is_some_and(|oid| self.record().tablespaces.iter().any(|t| t.oid == oid && !t.in_place))
    }

    /// Where a path of the data directory lies in the tar: what is in a tablespace lies beside the data directory.
    fn place(&self, path: &[u8]) -> Vec<u8> {
        if let Some(rest) = path.strip_prefix(b"pg_tblspc/") {
            let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
            let link = [b"pg_tblspc/", rest.get(..end).unwrap_or_default()].concat();
            if self.is_link(&link) {
                return [b"tablespaces/", rest].concat();
            }
        }
        [b"data/", path].concat()
    }

    fn tablespaces_dir(&mut self) -> Result<()> {
        if self.seen.insert(b"../tablespaces".to_vec()) {
            self.entry(b"tablespaces", EntryKind::Directory, 0o700, self.generated)?;
        }
        Ok(())
    }

    /// Relative, so that the whole can be unpacked and started anywhere.
    fn tablespace_links(&mut self) -> Result<()> {
        let mut oids: Vec<u32> = self.record().tablespaces.iter().filter(|t| !t.in_place).map(|t| t.oid).collect();
        oids.sort_unstable();
        for oid in oids {
            if self.seen.insert(format!("pg_tblspc/{oid}").into_bytes()) {
                self.tablespaces_dir()?;
                let dir = format!("tablespaces/{oid}");
                self.entry(dir.as_bytes(), EntryKind::Directory, 0o700, self.generated)?;
            }
            let target = format!("../../tablespaces/{oid}");
            let kind = EntryKind::Symlink { target: target.as_bytes() };
            self.entry(format!("data/pg_tblspc/{oid}").as_bytes(), kind, 0o777, self.generated)?;
        }
        Ok(())
    }

    fn wal(&mut self, repo: &Repository, ctx: &Ctx) -> Result<()> {
        let major = major(self.record())?;
        for dir in std::iter::once(&"pg_wal").chain(required_dirs(major)) {
            if self.seen.insert(dir.as_bytes().to_vec()) {
                self.entry(format!("data/{dir}").as_bytes(), EntryKind::Directory, 0o700, self.generated)?;
            }
        }
        let (cluster, size) = (&self.record().cluster, self.record().segment_size);
        let archive = WalArchive::new(repo, cluster, self.record().system_id);
        for range in self.plan.restore.path.ranges() {
            if range.timeline.get() > 1 {
                let name = WalFileName::History(range.timeline);
                let bytes = archive.side_file(&name)?;
                self.small(format!("data/pg_wal/{name}").as_bytes(), None, &bytes, 0o600)?;
            }
        }
        for name in self.plan.wal.clone() {
            ctx.check_cancelled()?;
            let mut reader = archive.open_segment(&name, size)?;
            let place = format!("data/pg_wal/{}", name.format(size));
            self.begin(place.as_bytes(), None, 0o600, self.generated, size.bytes())?;
            while let Some(bytes) = reader.next()? {
                self.data(bytes)?;
            }
        }
        Ok(())
    }

    fn configuration(&mut self) -> Result<()> {
        let (original, mode) = self.auto_conf.take().unwrap_or((vec![], 0o600));
        let content = without_recovery(&original);
        self.small(b"data/postgresql.auto.conf", Some(AUTO_CONF), &content, mode)?;
        let configs: Vec<(String, Vec<u8>)> =
            self.record().config_files.iter().map(|c| (c.name.clone(), local_config(&c.name, &c.content))).collect();
        for (name, content) in configs {
            if CONFIGS.contains(&name.as_str()) && self.seen.insert(name.clone().into_bytes()) {
                self.small(format!("data/{name}").as_bytes(), Some(name.as_bytes()), &content, 0o600)?;
            }
        }
        let label = self.record().backup_label.clone();
        self.small(b"data/backup_label", Some(b"backup_label"), &label, 0o600)
    }

    fn ending(mut self) -> Result<ExportReport> {
        let record = &self.plan.restore.record;
        let control = ControlFile::poison(&record.pg_control)
            .map_err(|e| RepoError::corrupt(names::record(&record.cluster, &record.id), e))?;
        let mut hash = Context::new(&SHA256);
        hash.update(&control);
        let sum = hash.finish();
        let (size, generated) = (control.len() as u64, self.generated);
        let mut manifest = self.manifest.take().expect("it is written once");
        manifest.add(b"global/pg_control", size, generated, sum.as_ref()).map_err(failed)?;
        let (mut list, size) = manifest.finish(&ranges(self.plan)).map_err(failed)?;
        self.begin(b"data/backup_manifest", None, 0o600, generated, size)?;
        each_piece(&mut list, &mut |bytes| self.data(bytes).map_err(io::Error::other)).map_err(failed)?;
        self.small(b"data/global/pg_control", None, &control, 0o600)?;
        let packer = self.tar.finish().map_err(failed)?;
        let (size, sha256) = packer.finish().map_err(failed)?;
        Ok(ExportReport { size, sha256, ..self.report })
    }

    fn small(&mut self, place: &[u8], listed: Option<&[u8]>, content: &[u8], mode: u32) -> Result<()> {
        self.begin(place, listed.map(<[u8]>::to_vec), mode, self.generated, content.len() as u64)?;
        self.data(content)
    }

    fn begin(&mut self, place: &[u8], listed: Option<Vec<u8>>, mode: u32, modified: i64, size: u64) -> Result<()> {
        self.entry(place, EntryKind::File { size }, mode, modified)?;
        self.under_way = Some(File { listed, size, left: size, modified });
        self.hash = Context::new(&SHA256);
        self.finish_empty()
    }

    fn finish_empty(&mut self) -> Result<()> {
        match &self.under_way {
            Some(file) if file.left == 0 => self.end(),
            _ => Ok(()),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        // A segment may end with an empty block.
        if bytes.is_empty() {
            return Ok(());
        }
        self.tar.data(bytes).map_err(failed)?;
        self.hash.update(bytes);
        let Some(file) = &mut self.under_way else { return Ok(()) };
        file.left = file.left.saturating_sub(bytes.len() as u64);
        self.finish_empty()
    }

    fn end(&mut self) -> Result<()> {
        let Some(file) = self.under_way.take() else { return Ok(()) };
        self.report.files += 1;
        self.report.bytes += file.size;
        let Some(path) = &file.listed else { return Ok(()) };
        let sum = self.hash.clone().finish();
        let manifest = self.manifest.as_mut().expect("what is listed comes before the list");
        manifest.add(path, file.size, file.modified, sum.as_ref()).map_err(failed)
    }

    fn entry(&mut self, place: &[u8], kind: EntryKind<'_>, mode: u32, modified: i64) -> Result<()> {
        let path = match place {
            b"" => self.plan.top.clone().into_bytes(),
            place => [self.plan.top.as_bytes(), b"/", place].concat(),
        };
        let entry = Entry { path: &path, kind, mode, owner: self.owner, names: None, xattrs: &[], modified };
        self.tar.begin(&entry).map_err(failed)
    }
}

/// The WAL from the backup's start to its end, by timeline.
fn ranges(plan: &ExportPlan) -> Vec<WalRange> {
    let (start, stop) = (plan.restore.backup.lsn_start, plan.restore.backup.lsn_stop);
    let clip = |r: &pgark_pg::TimelineRange| WalRange {
        timeline: r.timeline,
        start: r.begin.max(start),
        end: r.end.unwrap_or(Lsn(u64::MAX)).min(stop),
    };
    plan.restore.path.ranges().iter().map(clip).filter(|r| r.start < r.end).collect()
}

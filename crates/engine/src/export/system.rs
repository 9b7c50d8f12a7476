//! A backup of files or of a system as a tar that needs no product at all: `NAME/backup_metadata.json`, dumps as plain SQL,
//! configuration and files.
//!
//! Invariant: what comes out is compared with the manifest before it is written.

use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Stdio;

use pgark_repo::catalog::{BackupKind, CatalogStore, Claim, Needs};
use pgark_repo::manifest::{Attributes, Item, ManifestReader};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{DatabaseDump, FilesPart, LeftOut, LeftOutWhy, PartsRecord, Section, manifest_reader};
use pgark_repo::{RepoError, Repository};
use serde_json::json;

use super::pack::Packer;
use super::tar::{Entry, EntryKind, TarWriter};
use super::{Destination, ExportReport, Packing};
use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::child::{self, Running};
use crate::logical::restore::fetch_dump;
use crate::logical::tools::{self, ToolOptions};
use crate::parts::{PartReader, Source, component, nameless};
use crate::restore::run::claim_to_read;

const COPY_BYTES: usize = 256 * 1024;
const MEGABYTE: f64 = 1024.0 * 1024.0;

pub struct SystemExportOptions {
    pub cluster: ClusterName,
    pub backup: BackupId,
    pub packing: Packing,
    /// What the name of the directory in it begins with.
    pub prefix: String,
    pub tools: ToolOptions,
    /// For a dump, and for it as SQL.
    pub scratch: PathBuf,
}

pub struct SystemExportPlan {
    pub record: PartsRecord,
    /// The directory in which everything lies in the tar.
    pub name: String,
    /// `YYYYMMDD_HHMMSS`, UTC.
    pub timestamp: String,
    pub warnings: Vec<String>,
}

/// Finds the backup and whether it is there; writes nothing.
pub fn plan(options: &SystemExportOptions, repo: &Repository) -> Result<SystemExportPlan> {
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    let id = &options.backup;
    let entry = catalog.backup(id).ok_or_else(|| crate::expire::revive::not_listed(&catalog, id))?;
    if entry.kind == BackupKind::Physical {
        return Err(EngineError::refused(
            "E-BACKUP-KIND",
            format!("{id} is a physical backup"),
            "it is exported as a data directory",
        ));
    }
    crate::restore::thaw::check_one(repo, &options.cluster, entry)?;
    let record = PartsRecord::load(repo, &options.cluster, id, &entry.record)?;
    Source { repo, cluster: &options.cluster, record: &record }.check()?;
    let timestamp = record.started.strftime("%Y%m%d_%H%M%S").to_string();
    Ok(SystemExportPlan { name: format!("{}_{timestamp}", options.prefix), timestamp, warnings: vec![], record })
}

/// Writes the tar. A file appears under its name when it is whole and durable.
pub fn run(
    options: &SystemExportOptions,
    plan: &SystemExportPlan,
    to: &Destination,
    repo: &Repository,
    ctx: &Ctx,
) -> Result<ExportReport> {
    let catalog = CatalogStore::new(repo, &options.cluster);
    let claim = claim_to_read(&catalog, &plan.record.id, Needs::default(), ctx)?;
    let kept = claim.clone().map(|claim| KeptClaim::new(claim, ctx));
    ctx.progress.begin("export", Some(plan.record.totals.size_bytes));
    let outcome = to.write(&mut |out| {
        let tar = TarWriter::new(Packer::new(options.packing, out).map_err(failed)?);
        let source = Source { repo, cluster: &options.cluster, record: &plan.record };
        Export { options, plan, source, ctx, tar, report: ExportReport::default() }.all()
    });
    ctx.progress.end();
    drop(kept);
    if let Some(Err(e)) = claim.map(Claim::release) {
        tracing::warn!(%e, "the claim ends by itself");
    }
    outcome
}

/// Whether something that was named could not be read when it was backed up.
fn unread_below(part: &FilesPart, section: Section) -> bool {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let below = |l: &LeftOut| {
        let path_of = path(&l.path);
        part.roots.iter().filter(|r| r.section == section).any(|r| path_of.starts_with(path(&r.path)))
    };
    let unread = |l: &&LeftOut| matches!(l.why, LeftOutWhy::Unreadable | LeftOutWhy::Missing);
    part.left_out.iter().filter(unread).any(below)
}

fn failed(e: std::io::Error) -> EngineError {
    EngineError::file("writing", "the export", e)
}

struct Export<'a, 'o> {
    options: &'a SystemExportOptions,
    plan: &'a SystemExportPlan,
    source: Source<'a>,
    ctx: &'a Ctx,
    tar: TarWriter<Packer<&'o mut dyn Write>>,
    report: ExportReport,
}

/// Who owns what the export itself makes.
const NOBODY: Option<(&[u8], &[u8])> = Some((b"", b""));

impl Export<'_, '_> {
    fn all(mut self) -> Result<ExportReport> {
        self.made(b"", EntryKind::Directory, 0o700)?;
        let mut dumps = vec![];
        for database in &self.plan.record.databases {
            dumps.push(self.database(database)?);
        }
        let metadata = serde_json::to_vec_pretty(&self.metadata(&dumps)).expect("plain data");
        self.made(b"backup_metadata.json", EntryKind::File { size: metadata.len() as u64 }, 0o600)?;
        self.data(&metadata)?;
        self.report.files += 1;
        self.files()?;
        let packer = self.tar.finish().map_err(failed)?;
        let (size, sha256) = packer.finish().map_err(failed)?;
        Ok(ExportReport { size, sha256, ..self.report })
    }

    fn path(&self, below: &[u8]) -> Vec<u8> {
        let name = self.plan.name.as_bytes();
        if below.is_empty() { name.to_vec() } else { [name, b"/", below].concat() }
    }

    /// Something that is not in the backup as it is here.
    fn made(&mut self, below: &[u8], kind: EntryKind<'_>, mode: u32) -> Result<()> {
        let path = self.path(below);
        let modified = self.plan.record.started.as_second();
        let entry = Entry { path: &path, kind, mode, owner: (0, 0), names: NOBODY, xattrs: &[], modified };
        self.tar.begin(&entry).map_err(failed)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.report.bytes += bytes.len() as u64;
        self.tar.data(bytes).map_err(failed)
    }

    /// Returns its name and how long it is.
    fn database(&mut self, database: &DatabaseDump) -> Result<(String, u64)> {
        let mut sql = self.sql(database)?;
        let many = self.plan.record.databases.len() > 1;
        let of = if many { format!("_{}", component(database.name.as_bytes())) } else { String::new() };
        let name = format!("database{of}_{}.sql", self.plan.timestamp);
        let reading = |e| EngineError::file("reading a temporary file in", &self.options.scratch, e);
        let size = sql.seek(SeekFrom::End(0)).map_err(reading)?;
        sql.seek(SeekFrom::Start(0)).map_err(reading)?;
        self.made(name.as_bytes(), EntryKind::File { size }, 0o600)?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            self.ctx.check_cancelled()?;
            let scratch = &self.options.scratch;
            let n = sql.read(&mut buffer).map_err(|e| EngineError::file("reading a temporary file in", scratch, e))?;
            if n == 0 {
                break;
            }
            self.data(buffer.get(..n).unwrap_or_default())?;
        }
        self.report.files += 1;
        Ok((name, size))
    }

    /// The dump as a script, in a file without a name.
    fn sql(&mut self, database: &DatabaseDump) -> Result<std::fs::File> {
        let major = database.dumped_by.split('.').next().and_then(|m| m.parse().ok()).unwrap_or(0);
        let tools = tools::find(&self.options.tools, major, &mut self.report.warnings)?;
        let dump = fetch_dump(&self.source, database, &self.options.scratch, self.ctx)?;
        let scratch = &self.options.scratch;
        let writing = |e| EngineError::file("making a temporary file in", scratch, e);
        let sql = nameless(scratch).map_err(writing)?;
        let mut command = child::plain(&tools.restore);
        command.args(["--file=-", "--", "/dev/stdin"]).stdin(Stdio::from(dump));
        command.stdout(Stdio::from(sql.try_clone().map_err(writing)?));
        let (status, said) = Running::start(command)?.wait_for(self.ctx)?;
        if !status.success() {
            let doing = format!("to write the dump of '{}' as SQL", database.name.escape_debug());
            return Err(child::failure("E-EXPORT-SQL", "pg_restore", &doing, status, &said));
        }
        self.report.warnings.extend(said.lines);
        Ok(sql)
    }

    fn metadata(&self, dumps: &[(String, u64)]) -> serde_json::Value {
        let record = &self.plan.record;
        let mb = |bytes: u64| (bytes as f64 / MEGABYTE * 100.0).round() / 100.0;
        let roots = |section: Section| -> Vec<String> {
            let roots = record.files.iter().flat_map(|f| &f.roots).filter(|r| r.section == section);
            roots.map(|r| String::from_utf8_lossy(&r.path).into_owned()).collect()
        };
        let (config, directories) = (roots(Section::Config), roots(Section::Files));
        let unread = |section: Section| record.files.iter().any(|f| unread_below(f, section));
        let (no_config, no_files) = (unread(Section::Config), unread(Section::Files));
        let total: u64 = dumps.iter().map(|d| d.1).sum::<u64>() + record.files.as_ref().map_or(0, |f| f.size_bytes);
        let mut document = json!({
            "backup_name": self.plan.name, "timestamp": self.plan.timestamp, "datetime": record.started,
            "database": {"success": !dumps.is_empty(), "file": dumps.first().map(|d| &d.0),
                "size_mb": mb(dumps.iter().map(|d| d.1).sum())},
            // Where nothing was to be kept, nothing is missing.
            "configuration": {"success": !no_config, "files_count": config.len(), "files": config},
            "files": {"success": !no_files, "directories_count": directories.len(),
                "directories": directories},
            "backup_size_mb": mb(total), "pgark_backup": record.id,
        });
        if dumps.len() > 1 {
            document["database"]["files"] = dumps.iter().map(|d| d.0.clone()).collect();
        }
        document
    }

    /// A tar says how long a file is, and whose, before it has its content; the manifest says so after. A second reader of the
    /// manifest is ahead.
    fn files(&mut self) -> Result<()> {
        let open = || manifest_reader(self.source.repo, self.source.cluster, &self.source.record.id);
        let (mut manifest, mut ahead) = (open()?, Ahead { manifest: open()?, next: None });
        let mut reader = PartReader::new(&self.source)?;
        let mut wanted = false;
        let mut buffer = vec![];
        while let Some(item) = manifest.next_item()? {
            self.ctx.check_cancelled()?;
            if let Some(path) = item.path() {
                let of = |top: &[u8]| path == top || path.starts_with(&[top, b"/"].concat());
                wanted = of(b"config") || of(b"files");
            }
            match item {
                Item::Chunks(chunks) if wanted => {
                    for chunk in &chunks {
                        let ctx = self.ctx;
                        let mut put = |bytes: &[u8]| {
                            ctx.progress.advance(bytes.len() as u64);
                            self.data(bytes)?;
                            Ok(ControlFlow::Continue(()))
                        };
                        let go_on = reader.chunk(&manifest, chunk, &mut buffer, &mut put, &mut 0)?;
                        assert!(go_on.is_continue(), "nobody asked to stop");
                    }
                }
                item if wanted => self.entry(&item, &mut ahead)?,
                _ => {}
            }
        }
        if manifest.fingerprint() != self.source.record.manifest {
            let name = names::manifest(self.source.cluster, &self.source.record.id);
            return Err(RepoError::corrupt(name, "not the manifest of this backup").into());
        }
        Ok(())
    }

    fn entry(&mut self, item: &Item, ahead: &mut Ahead) -> Result<()> {
        let Some(path) = item.path() else { return Ok(()) };
        let (size, attributes) = ahead.of(path)?;
        let place = self.path(path);
        let target;
        let (kind, mode) = match item {
            Item::Directory(d) => (EntryKind::Directory, d.mode),
            Item::Symlink(s) => (EntryKind::Symlink { target: &s.target }, 0o777),
            Item::FileStart(f) => {
                self.report.files += 1;
                (EntryKind::File { size }, f.mode)
            }
            Item::HardLink(l) => {
                target = self.path(&l.target);
                (EntryKind::HardLink { target: &target }, 0o600)
            }
            _ => return Ok(()),
        };
        let known = attributes.is_some();
        let a = attributes.unwrap_or_default();
        let names: (&[u8], &[u8]) = (&a.user, &a.group);
        let modified =
            if known { a.modified_ns.div_euclid(1_000_000_000) } else { self.plan.record.started.as_second() };
        let entry =
            Entry { path: &place, kind, mode, owner: (a.uid, a.gid), names: Some(names), xattrs: &a.xattrs, modified };
        self.tar.begin(&entry).map_err(failed)
    }
}

struct Ahead {
    manifest: ManifestReader,
    /// Read already, and not of the item before.
    next: Option<Item>,
}

impl Ahead {
    /// How long this file is, and the attributes of what has this path.
    fn of(&mut self, path: &[u8]) -> Result<(u64, Option<Attributes>)> {
        let differs = || EngineError::from(RepoError::corrupt("manifest", "its two readings differ"));
        while self.item()?.ok_or_else(differs)?.path() != Some(path) {}
        let mut size = 0;
        loop {
            match self.item()? {
                Some(Item::FileEnd(end)) => size = end.size,
                Some(Item::Attributes(a)) => return Ok((size, Some(a))),
                Some(item) if item.path().is_some() => {
                    self.next = Some(item);
                    return Ok((size, None));
                }
                Some(_) => {}
                None => return Ok((size, None)),
            }
        }
    }

    fn item(&mut self) -> Result<Option<Item>> {
        match self.next.take() {
            Some(item) => Ok(Some(item)),
            None => Ok(self.manifest.next_item()?),
        }
    }
}

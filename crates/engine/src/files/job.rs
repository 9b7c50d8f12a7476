//! `backup --kind files`: files alone. No database is asked for anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{
    BackupEntry, BackupKind, BackupType, Catalog, CatalogStore, Claim, Evidence, Lineage, Reading,
};
use pgark_repo::codec::Compression;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{FilesPart, PartsRecord, Section};
use rustix::fs::AtFlags;

use super::rules::{is_secret_in, is_secret_name};
use super::{FilesOptions, FilesWriter, Root, warnings};
use crate::backup::claim::KeptClaim;
use crate::backup::job::{BackupJob, new_id};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{self, Parent, PartList, Source, Writer, WriterOptions};
use crate::series;

#[derive(Clone, Debug)]
pub struct FilesJob {
    pub cluster: ClusterName,
    pub files: FilesOptions,
    /// Where what does not fit into memory goes.
    pub scratch: PathBuf,
    pub compression: Compression,
    pub keep: bool,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct FilesPlan {
    pub id: BackupId,
    pub roots: Vec<Root>,
    /// What of them is not there.
    pub missing: Vec<Root>,
    /// Whose content would be taken over.
    pub base: Option<BackupId>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct FilesReport {
    pub entry: BackupEntry,
    pub files: FilesPart,
    pub base: Option<BackupId>,
    /// Content that no earlier backup had.
    pub new_bytes: u64,
    pub warnings: Vec<String>,
}

/// Looks at everything and changes nothing.
pub fn plan(job: &FilesJob, repo: &Repository, ctx: &Ctx) -> Result<FilesPlan> {
    let store = CatalogStore::new(repo, &job.cluster);
    let catalog = store.read()?;
    let mut warnings = vec![];
    let (roots, missing) = look_at_roots(&job.files)?;
    let parent = parent(job, &roots, repo, &catalog, &mut warnings)?;
    warnings.extend(missing.iter().map(|root| format!("{} is not there", root.as_path().display())));
    let base = parent.map(|p| p.record.id);
    Ok(FilesPlan { id: new_id(&store, ctx.now(), 'D')?, roots, missing, base, warnings })
}

/// What was named, and what of it is not there. A link is refused.
pub(crate) fn look_at_roots(options: &FilesOptions) -> Result<(Vec<Root>, Vec<Root>)> {
    super::rules::patterns(&options.include)?;
    super::rules::patterns(&options.exclude)?;
    let roots = options.roots()?;
    let mut missing = vec![];
    for root in &roots {
        match rustix::fs::statat(rustix::fs::CWD, root.as_path(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => super::scan::refuse_link(root, &stat)?,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => missing.push(root.clone()),
            // Told when it is read.
            Err(_) => {}
        }
    }
    let is_secret = |root: &&Root| {
        let mut parts = root.path.rsplit(|b| *b == b'/');
        let (name, above) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        is_secret_name(name) || is_secret_in(above, name)
    };
    let (secrets, others): (Vec<&Root>, Vec<&Root>) = roots.iter().partition(is_secret);
    if !secrets.is_empty() && others.iter().all(|root| missing.contains(root)) {
        return Err(only_secrets(secrets.iter().map(|root| root.as_path())));
    }
    if missing.len() == roots.len() {
        let names: Vec<String> = roots.iter().map(|r| r.as_path().display().to_string()).collect();
        return Err(EngineError::refused(
            "E-FILES-NONE",
            format!("nothing of what is to be backed up is there: {}", names.join(", ")),
            "check the paths, and that their file systems are mounted",
        ));
    }
    Ok((roots, missing))
}

/// Nothing else was named, or is there.
pub(crate) fn only_secrets<'p>(named: impl Iterator<Item = &'p Path>) -> EngineError {
    let names: Vec<String> = named.map(|path| path.display().to_string()).collect();
    EngineError::refused(
        "E-FILES-SECRET",
        format!(
            "{} is a secret, by its name or by what it begins with, and secrets are never backed up",
            names.join(", ")
        ),
        "keep secrets where secrets are kept; there is no setting that makes an exception",
    )
}

/// How many of these roots a backup has.
pub(crate) fn roots_in(record: &PartsRecord, roots: &[Root]) -> usize {
    let Some(part) = &record.files else { return 0 };
    roots.iter().filter(|r| part.roots.iter().any(|f| (f.section, &f.path) == (r.section, &r.path))).count()
}

fn parent(
    job: &FilesJob,
    roots: &[Root],
    repo: &Repository,
    catalog: &Catalog,
    notes: &mut Vec<String>,
) -> Result<Option<Parent>> {
    let counts = |record: &PartsRecord| roots_in(record, roots);
    parts::choose_parent(repo, &job.cluster, catalog, BackupKind::Files, &counts, notes)
}

pub fn run(job: &FilesJob, repo: &Repository, ctx: &Ctx) -> Result<FilesReport> {
    let store = CatalogStore::new(repo, &job.cluster);
    let started = ctx.now();
    let mut notes = vec![];
    let catalog = store.read()?;
    let lineage = lineage(&catalog)?;
    let (roots, _) = look_at_roots(&job.files)?;
    let parent = parent(job, &roots, repo, &catalog, &mut notes)?;
    let id = new_id(&store, started, 'D')?;
    let base = parent.as_ref().map(|p| p.record.id.clone());
    let begun = BackupJob::begin(&store, repo, ctx, &id, base, started)?;
    let (claim, kept) = (&begun.claim, &begun.kept);
    let running = Running { job, repo, ctx, claim, kept, lineage: &lineage, parent: parent.as_ref() };
    let outcome = running.under_claim(started, notes);
    let (mut report, warnings) = begun.conclude(outcome, |report| &report.entry)?;
    report.warnings.extend(warnings);
    Ok(report)
}

fn lineage(catalog: &Catalog) -> Result<Lineage> {
    catalog.lineage().cloned().ok_or_else(|| {
        EngineError::refused("E-CLUSTER-NONE", "the cluster has no lineage", "register it with 'pgark init'")
    })
}

struct Running<'a> {
    job: &'a FilesJob,
    repo: &'a Repository,
    ctx: &'a Ctx,
    claim: &'a Claim,
    kept: &'a KeptClaim,
    /// Of the cluster that the files belong to.
    lineage: &'a Lineage,
    parent: Option<&'a Parent>,
}

impl Running<'_> {
    /// Everything between the claim and the commit.
    fn under_claim(&self, started: Timestamp, notes: Vec<String>) -> Result<(FilesReport, Reading)> {
        let (job, id) = (self.job, self.claim.backup());
        check_base(self.repo, &job.cluster, self.parent)?;
        let options = WriterOptions { compression: job.compression, scratch: job.scratch.clone(), jobs: 1 };
        let writer = Writer::new(self.ctx, self.repo, &job.cluster, id, self.parent, options);
        self.ctx.progress.begin("backup of files", None);
        let written = self.write(&writer);
        self.ctx.progress.end();
        let (list, part, said, new_bytes) = written?;
        self.kept.check()?;
        let mut told = notes;
        told.extend(said);
        told.extend(warnings(&part));
        let record = self.record(started, &list, part, &told);
        let source = Source { repo: self.repo, cluster: &job.cluster, record: &record };
        source.check()?;
        let print = record.store(self.repo)?;
        let entry = BackupEntry {
            id: record.id.clone(),
            kind: BackupKind::Files,
            backup_type: BackupType::Full,
            system_id: record.system_id,
            version_num: record.version_num,
            started,
            finished: record.finished,
            physical: None,
            size_bytes: list.totals.size_bytes,
            read_bytes: list.totals.read_bytes,
            stored_bytes: list.totals.stored_bytes + print.size,
            database_bytes: None,
            series: Some(series::of_files(&job.files, &job.annotations)),
            kept: job.keep,
            kept_until: None,
            holds: vec![],
            damaged: None,
            certain: None,
            evidence: Evidence::Stored,
            drilled: None,
            annotations: job.annotations.clone(),
            needs: list.needs,
            record: print,
        };
        let reading = crate::clock::with_object(self.repo, &names::record(&job.cluster, id), self.ctx)?;
        self.kept.check()?;
        let files = record.files.clone().unwrap_or_default();
        Ok((FilesReport { entry, files, base: record.base, new_bytes, warnings: told }, reading))
    }

    fn write(&self, writer: &Writer<'_>) -> Result<(PartList, FilesPart, Vec<String>, u64)> {
        let mut files = FilesWriter::new(&self.job.files, self.ctx)?;
        let mut list = writer.begin_manifest()?;
        for section in [Section::Config, Section::Files] {
            files.section(section, writer, &mut list)?;
            self.kept.check()?;
        }
        let (part, said, new_bytes) = files.finish()?;
        Ok((list.finish()?, part, said, new_bytes))
    }

    fn record(&self, started: Timestamp, list: &PartList, part: FilesPart, told: &[String]) -> PartsRecord {
        PartsRecord {
            id: self.claim.backup().clone(),
            cluster: self.job.cluster.clone(),
            kind: BackupKind::Files,
            backup_type: BackupType::Full,
            program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
            system_id: self.lineage.system_id,
            version_num: self.lineage.version_num,
            started,
            finished: self.ctx.now(),
            from_standby: false,
            databases: vec![],
            globals: None,
            files: Some(part),
            manifest: list.manifest.clone(),
            totals: list.totals.clone(),
            base: self.parent.map(|p| p.record.id.clone()),
            warnings: told.to_vec(),
        }
    }
}

/// Between the choice and the claim the earlier backup may have been deleted.
pub(crate) fn check_base(repo: &Repository, cluster: &ClusterName, parent: Option<&Parent>) -> Result<()> {
    let Some(parent) = parent else { return Ok(()) };
    let id = &parent.record.id;
    match CatalogStore::new(repo, cluster).read()?.backup(id) {
        Some(_) => Ok(()),
        None => Err(EngineError::failed(
            "E-BACKUP-BASE",
            format!("backup {id} was deleted while this one was about to build on it"),
            "run the backup again",
        )),
    }
}

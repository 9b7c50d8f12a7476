//! What was written is read back and understood; then the record, and the entry by which the catalog will list it.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::Stdio;

use pgark_repo::catalog::{BackupEntry, BackupType, Evidence};
use pgark_repo::record::{DatabaseDump, FilesPart, GlobalsPart, PartsRecord};

use super::child::{self, Running};
use super::dump::dump_path;
use super::restore::SAFETY;
use super::select::told_outside;
use super::tools::Tools;
use super::{Job, LogicalReport};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{PartList, PartReader, Source};
use crate::series;

/// A table of contents longer than this, as text, is no table of contents.
const LISTING_BYTES_MAX: u64 = 1024 * 1024 * 1024;

impl Job<'_> {
    pub(super) fn record(
        &self,
        databases: Vec<DatabaseDump>,
        globals: Option<GlobalsPart>,
        files: Option<FilesPart>,
        list: &PartList,
        warnings: &[String],
    ) -> PartsRecord {
        PartsRecord {
            id: self.claim.backup().clone(),
            cluster: self.options.cluster.clone(),
            kind: self.options.kind(),
            backup_type: BackupType::Full,
            program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
            system_id: self.server.system_id,
            version_num: self.server.version_num,
            started: self.started,
            finished: self.ctx.now(),
            from_standby: self.server.from_standby,
            databases,
            globals,
            files,
            manifest: list.manifest.clone(),
            totals: list.totals.clone(),
            base: self.parent.map(|p| p.record.id.clone()),
            warnings: warnings.to_vec(),
        }
    }

    /// What `pg_restore --list` finds in the dumps as they lie in the repository.
    pub(super) fn read_back(&self, record: &mut PartsRecord) -> Result<()> {
        let whole = record.clone();
        let source = Source { repo: self.repo, cluster: &self.options.cluster, record: &whole };
        source.check()?;
        for database in &mut record.databases {
            let listing = listing(&source, database, &self.server.tools, self.ctx)?;
            (database.entries, database.table_data) = (listing.entries, listing.table_data);
        }
        // What it saves is about to be dropped, and earlier backups have part of its content.
        if self.options.annotations.contains_key(SAFETY) {
            let mut reader = PartReader::new(&source)?;
            for database in &record.databases {
                reader.read(&dump_path(&database.path), self.ctx, &mut |_| Ok(ControlFlow::Continue(())))?;
            }
        }
        record.finished = self.ctx.now();
        Ok(())
    }

    pub(super) fn store_record(&self, record: PartsRecord, list: PartList, new_bytes: u64) -> Result<LogicalReport> {
        let print = record.store(self.repo)?;
        let outside = record.databases.iter().filter_map(|d| told_outside(&d.name, &d.keys_outside));
        let notes = self.server.notes.iter().cloned().chain(outside).collect();
        let entry = BackupEntry {
            id: record.id.clone(),
            kind: record.kind,
            backup_type: BackupType::Full,
            system_id: record.system_id,
            version_num: record.version_num,
            started: record.started,
            finished: record.finished,
            physical: None,
            size_bytes: list.totals.size_bytes,
            read_bytes: list.totals.read_bytes,
            stored_bytes: list.totals.stored_bytes + print.size,
            database_bytes: record.databases.iter().map(|d| d.size_bytes).sum(),
            series: Some(series::of_databases(self.options)),
            kept: self.options.keep,
            kept_until: None,
            holds: vec![],
            damaged: None,
            certain: None,
            evidence: Evidence::Stored,
            drilled: None,
            annotations: self.options.annotations.clone(),
            needs: list.needs,
            record: print,
        };
        Ok(LogicalReport {
            entry,
            databases: record.databases,
            globals: record.globals,
            files: record.files,
            base: record.base,
            new_bytes,
            tools: self.server.tools.clone(),
            warnings: record.warnings,
            notes,
        })
    }
}

/// The table of contents of a dump.
pub(super) struct Listing {
    pub entries: u64,
    pub table_data: u64,
}

/// Hands a dump from the repository to `pg_restore --list`. Only the beginning of it is read: the rest was compared when it was
/// stored, and is again when it is restored or verified.
pub(super) fn listing(source: &Source<'_>, database: &DatabaseDump, tools: &Tools, ctx: &Ctx) -> Result<Listing> {
    let mut command = child::plain(&tools.restore);
    command.arg("--list").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut reader = PartReader::new(source)?;
    let path = dump_path(&database.path);
    let text = std::thread::scope(|scope| {
        let mut running = Running::start(command)?;
        let mut stdin = running.child().stdin.take().expect("it was asked for");
        let stdout = running.child().stdout.take().expect("it was asked for");
        let listing = scope.spawn(move || {
            use std::io::Read;
            let mut text = vec![];
            stdout.take(LISTING_BYTES_MAX).read_to_end(&mut text).map(|_| text)
        });
        let mut feed = |bytes: &[u8]| match stdin.write_all(bytes) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            // It has seen the table of contents and does not want the rest.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(e) => Err(EngineError::file("writing to", &tools.restore, e)),
        };
        let fed = reader.read(&path, ctx, &mut feed);
        drop(stdin);
        if let Err(e) = fed {
            drop(running);
            return Err(e);
        }
        let text = listing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let doing = format!("to read the dump of '{}' back", database.name.escape_debug());
        running.finish("E-DUMP-UNREADABLE", &doing)?;
        text.map_err(|e| EngineError::file("reading the output of", &tools.restore, e))
    })?;
    let text = String::from_utf8_lossy(&text);
    let entries = text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit()));
    let mut found = Listing { entries: 0, table_data: 0 };
    for entry in entries {
        found.entries += 1;
        found.table_data += u64::from(entry.contains(" TABLE DATA "));
    }
    Ok(found)
}

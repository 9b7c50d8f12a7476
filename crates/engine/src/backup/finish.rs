//! The record of a finished copy, and the entry by which the catalog will list it.

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, Claim, Evidence, PacksOf, PhysicalFacts};
use pgark_repo::record::{BackupRecord, Base};

use super::{BackupOptions, BackupReport, Copied, SourceFacts};
use crate::cluster::StoppedBackup;
use crate::ctx::Ctx;
use crate::error::Result;

#[allow(clippy::too_many_arguments)]
pub(super) fn write_record(
    options: &BackupOptions,
    repo: &Repository,
    ctx: &Ctx,
    claim: &Claim,
    source: &SourceFacts<'_>,
    started: Timestamp,
    copied: &Copied,
    stopped: &StoppedBackup,
    pg_control: Vec<u8>,
    base: Option<Base>,
    full_because: Option<String>,
) -> Result<BackupReport> {
    let id = claim.backup().clone();
    let control = source.control;
    let mut totals = copied.summary.totals.clone();
    totals.packs = copied.packs.len() as u64;
    totals.stored_bytes = copied.packs.iter().map(|(_, p)| p.size).sum::<u64>() + copied.manifest.size;
    totals.size_bytes += pg_control.len() as u64;
    totals.read_bytes += pg_control.len() as u64;
    let warnings = warnings(copied, stopped);
    let backup_type = if base.is_some() { BackupType::Incremental } else { BackupType::Full };
    let finished = ctx.now();
    let record = BackupRecord {
        id: id.clone(),
        cluster: options.cluster.clone(),
        kind: BackupKind::Physical,
        backup_type,
        program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
        system_id: control.system_id,
        version_num: source.version_num,
        catalog_version: control.catalog_version,
        segment_size: control.segment_size,
        block_size: control.block_size,
        data_checksums: control.data_checksum_version != 0,
        timeline: stopped.timeline,
        lsn_start: stopped.start_lsn,
        lsn_stop: stopped.stop_lsn,
        started,
        finished,
        from_standby: stopped.in_recovery,
        backup_label: stopped.backup_label.clone(),
        pg_control,
        tablespaces: copied.noticed.tablespaces.clone(),
        config_files: source.config_files.clone(),
        owner: source.owner.clone(),
        manifest: copied.manifest.clone(),
        totals: totals.clone(),
        bad_blocks: copied.summary.bad_blocks,
        vanished_files: copied.summary.vanished,
        warnings: warnings.clone(),
        base: base.clone(),
        full_because,
    };
    let print = record.store(repo)?;
    let entry = BackupEntry {
        id,
        kind: BackupKind::Physical,
        backup_type,
        system_id: control.system_id,
        version_num: record.version_num,
        started,
        finished,
        physical: Some(PhysicalFacts {
            lsn_start: record.lsn_start,
            lsn_stop: record.lsn_stop,
            stopped: crate::restore::resolve::to_timestamp(stopped.stop_time),
            timeline: record.timeline,
            bad_blocks: record.bad_blocks,
            from_standby: record.from_standby,
        }),
        size_bytes: totals.size_bytes,
        read_bytes: totals.read_bytes,
        stored_bytes: totals.stored_bytes + print.size,
        database_bytes: None,
        series: None,
        kept: options.keep,
        kept_until: None,
        holds: vec![],
        damaged: None,
        certain: None,
        evidence: Evidence::Stored,
        drilled: None,
        annotations: options.annotations.clone(),
        needs: PacksOf::gather(copied.summary.used.iter().map(|(_, id)| id.clone())),
        record: print,
    };
    let entry = entry.as_physical().expect("it has the facts of one");
    Ok(BackupReport {
        entry,
        vanished_files: record.vanished_files,
        base,
        full_because: None,
        rechecked: copied.rechecked.clone(),
        resumed: copied.resumed.clone(),
        warnings,
    })
}

fn warnings(copied: &Copied, stopped: &StoppedBackup) -> Vec<String> {
    let mut all = copied.noticed.warnings.clone();
    let bad = copied.summary.bad_blocks;
    if bad > 0 {
        let examples = copied.summary.bad_examples.join(", ");
        all.push(format!("{bad} pages of the source have wrong checksums: {examples}"));
    }
    if let Some(r) = copied.rechecked.as_ref().filter(|r| r.wrong > 0) {
        all.push(format!(
            "{} pages differ from the earlier backup although the WAL does not say that they changed: {}. Their files \
             were read as a whole. Take a full backup, and report this",
            r.wrong,
            r.examples.join(", ")
        ));
    }
    let notices = stopped.notices.iter().filter(|n| n.severity == "WARNING");
    all.extend(notices.map(|n| format!("PostgreSQL: {}", n.message)));
    all
}

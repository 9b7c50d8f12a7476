//! `global/pg_control`: what the cluster is and where its last checkpoint lies.
//!
//! Invariant: a `ControlFile` exists only if its CRC was right, so a torn read is an error and the caller reads again.
//! Layout: `ControlFileData` in catalog/pg_control.h, 64-bit builds; it is the same from 13 to 17, and 18 adds one byte
//! (`default_char_signedness`) before the nonce.

use crate::bytes::{i32_at, i64_at, u8_at, u32_at, u64_at};
use crate::major::Major;
use crate::value::{Lsn, SegmentSize, SystemId, TimelineId};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("pg_control has only {0} bytes")]
    TooShort(usize),
    #[error("pg_control has checksum {found:08X}, its content says {expected:08X}: a torn read or a damaged file")]
    Checksum { expected: u32, found: u32 },
    #[error("pg_control version {control} with catalog version {catalog} is not a supported PostgreSQL (13 to 18)")]
    Unsupported { control: u32, catalog: u32 },
    #[error("pg_control holds {value} as its {field}")]
    Field { field: &'static str, value: u64 },
}

/// `DBState`
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ControlState {
    Startup,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl ControlState {
    fn from_raw(state: u32) -> Option<Self> {
        Some(match state {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlFile {
    pub system_id: SystemId,
    pub control_version: u32,
    pub catalog_version: u32,
    pub major: Major,
    pub state: ControlState,
    /// When the file was last written, seconds since 1970.
    pub time: i64,
    /// Where the latest checkpoint record lies.
    pub checkpoint: Lsn,
    pub checkpoint_redo: Lsn,
    pub checkpoint_timeline: TimelineId,
    pub prev_timeline: TimelineId,
    pub full_page_writes: bool,
    /// Seconds since 1970.
    pub checkpoint_time: i64,
    pub min_recovery_point: Lsn,
    /// 0 when there is no minimum recovery point.
    pub min_recovery_timeline: u32,
    pub backup_start_point: Lsn,
    pub backup_end_point: Lsn,
    pub backup_end_required: bool,
    pub wal_level: i32,
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_xacts: i32,
    pub max_locks_per_xact: i32,
    pub track_commit_timestamp: bool,
    pub block_size: u32,
    /// `RELSEG_SIZE`: blocks in one file of a relation.
    pub relation_segment_blocks: u32,
    pub wal_block_size: u32,
    pub segment_size: SegmentSize,
    /// 0 = page checksums are off.
    pub data_checksum_version: u32,
}

/// `PG_CONTROL_FILE_SIZE`: the file is padded to this length.
pub const CONTROL_FILE_SIZE: usize = 8192;

const CHECKPOINT_OFFSET: usize = 32;
/// What `poison` writes: the location no checkpoint can have, as pgBackRest does.
const POISON: Lsn = Lsn(0xDEAD);

fn crc_offset(major: Major) -> usize {
    if major >= Major::V18 { 292 } else { 288 }
}

/// Checks version and CRC.
fn identify(bytes: &[u8]) -> Result<(Major, u32, u32), ControlError> {
    let short = || ControlError::TooShort(bytes.len());
    let control = u32_at(bytes, 8).ok_or_else(short)?;
    let catalog = u32_at(bytes, 12).ok_or_else(short)?;
    let major = Major::from_control_version(control, catalog).ok_or(ControlError::Unsupported { control, catalog })?;
    let covered = bytes.get(..crc_offset(major)).ok_or_else(short)?;
    let found = u32_at(bytes, crc_offset(major)).ok_or_else(short)?;
    let expected = crc32c::crc32c(covered);
    if expected != found {
        return Err(ControlError::Checksum { expected, found });
    }
    Ok((major, control, catalog))
}

impl ControlFile {
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let (major, control_version, catalog_version) = identify(bytes)?;
        let short = || ControlError::TooShort(bytes.len());
        let u32_field = |at| u32_at(bytes, at).ok_or_else(short);
        let i32_field = |at| i32_at(bytes, at).ok_or_else(short);
        let i64_field = |at| i64_at(bytes, at).ok_or_else(short);
        let bool_field = |at| u8_at(bytes, at).map(|byte| byte != 0).ok_or_else(short);
        let lsn_field = |at| u64_at(bytes, at).map(Lsn).ok_or_else(short);
        let timeline_field = |at, field| {
            let value = u32_field(at)?;
            TimelineId::new(value).ok_or(ControlError::Field { field, value: value.into() })
        };
        let state = u32_field(16)?;
        let segment_bytes = u64::from(u32_field(228)?);
        Ok(Self {
            system_id: SystemId(u64_at(bytes, 0).ok_or_else(short)?),
            control_version,
            catalog_version,
            major,
            state: ControlState::from_raw(state)
                .ok_or(ControlError::Field { field: "cluster state", value: state.into() })?,
            time: i64_field(24)?,
            checkpoint: lsn_field(CHECKPOINT_OFFSET)?,
            checkpoint_redo: lsn_field(40)?,
            checkpoint_timeline: timeline_field(48, "checkpoint timeline")?,
            prev_timeline: timeline_field(52, "previous timeline")?,
            full_page_writes: bool_field(56)?,
            checkpoint_time: i64_field(104)?,
            min_recovery_point: lsn_field(136)?,
            min_recovery_timeline: u32_field(144)?,
            backup_start_point: lsn_field(152)?,
            backup_end_point: lsn_field(160)?,
            backup_end_required: bool_field(168)?,
            wal_level: i32_field(172)?,
            max_connections: i32_field(180)?,
            max_worker_processes: i32_field(184)?,
            max_wal_senders: i32_field(188)?,
            max_prepared_xacts: i32_field(192)?,
            max_locks_per_xact: i32_field(196)?,
            track_commit_timestamp: bool_field(200)?,
            block_size: u32_field(216)?,
            relation_segment_blocks: u32_field(220)?,
            wal_block_size: u32_field(224)?,
            segment_size: SegmentSize::new(segment_bytes)
                .map_err(|_| ControlError::Field { field: "WAL segment size", value: segment_bytes })?,
            data_checksum_version: u32_field(252)?,
        })
    }

    /// A copy whose checkpoint lies at 0/DEAD, with a right CRC: PostgreSQL cannot start from it unless a
    /// `backup_label` says where to begin. So a restored directory that lost its label fails instead of coming up
    /// corrupt. Same length as the input.
    pub fn poison(bytes: &[u8]) -> Result<Vec<u8>, ControlError> {
        let (major, ..) = identify(bytes)?;
        let mut copy = bytes.to_vec();
        put(&mut copy, CHECKPOINT_OFFSET, &POISON.0.to_le_bytes())?;
        let crc = crc32c::crc32c(copy.get(..crc_offset(major)).ok_or(ControlError::TooShort(bytes.len()))?);
        put(&mut copy, crc_offset(major), &crc.to_le_bytes())?;
        Ok(copy)
    }

    pub fn is_poisoned(&self) -> bool {
        self.checkpoint == POISON
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) -> Result<(), ControlError> {
    let len = bytes.len();
    let target = bytes.get_mut(offset..offset + value.len()).ok_or(ControlError::TooShort(len))?;
    target.copy_from_slice(value);
    Ok(())
}

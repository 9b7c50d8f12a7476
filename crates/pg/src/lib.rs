//! PostgreSQL's own formats, for major versions 13 to 18: value types, `pg_control`, pages, relation paths, WAL file
//! names, timeline history, `backup_label`, and the WAL walker.
//!
//! Invariant: bytes in, values out. This crate opens no file, starts no thread and never panics on foreign bytes. It
//! does not know our repository.

#![warn(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::unwrap_used)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::unwrap_used))]

pub mod backup_label;
mod bytes;
pub mod control;
pub mod dump_toc;
pub mod exclude;
pub mod foreign_key;
pub mod history;
pub mod major;
pub mod names;
pub mod page;
pub mod printed;
pub mod relpath;
pub mod value;
pub mod wal;

pub use backup_label::{BackupFrom, BackupLabel, BackupLabelError, format_tablespace_map, parse_tablespace_map};
pub use control::{ControlError, ControlFile, ControlState};
pub use exclude::{DirRule, dir_rule, file_excluded, required_dirs};
pub use history::{HistoryEntry, HistoryError, TimelineHistory, TimelineRange};
pub use major::{Major, UnsupportedMajor};
pub use names::{NameError, RawSegment, WalFileName};
pub use page::{PAGE_SIZE, PageVerdict, check_page, is_all_zero, page_checksum, page_lsn};
pub use relpath::{Fork, PathClass, RelFork, RelSegment, classify};
pub use value::{BlockNo, Lsn, PgTimestamp, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId, ValueError};

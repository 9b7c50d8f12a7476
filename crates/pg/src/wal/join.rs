//! Assembling the record that straddles two consecutive segments.
//!
//! Invariant: a record comes out only if its two parts fit exactly and its CRC is right.

use crate::major::Major;
use crate::value::Lsn;

use super::CROSSING_BYTES_MAX;
use super::record::{OwnedRecord, RecordHeader};
use super::scan::{Leading, Tail};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error(
        "the record at {start} has {total} bytes, the next segment says that {remaining} of them remain: not its successor"
    )]
    Length { start: Lsn, total: u32, remaining: u32 },
    #[error("the record at {start}, assembled from two segments, has a wrong checksum")]
    Checksum { start: Lsn },
}

/// `Ok(None)` if nothing crosses, or if the record is too large to have been kept whole (then read the segments again
/// to check it), or if it goes on in a third segment. Do not call it when the second segment says
/// `overwrites_crossing`. If the record is a segment switch, tell the second scan with `leading_was_switch`.
pub fn join_crossing(tail: &Tail, leading: &Leading, major: Major) -> Result<Option<OwnedRecord>, JoinError> {
    let Tail::Crossing { start, total_len, data } = tail else {
        return Ok(None);
    };
    let mismatch = JoinError::Length { start: *start, total: *total_len, remaining: leading.total_remaining };
    let first_part = total_len
        .checked_sub(leading.total_remaining)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| mismatch.clone())?;
    let truncated = data.len() == CROSSING_BYTES_MAX && first_part > data.len();
    if first_part != data.len() && !truncated {
        return Err(mismatch);
    }
    let (true, false, Some(end)) = (leading.complete, truncated, leading.end) else {
        return Ok(None);
    };
    let body = [data.as_slice(), leading.data.as_slice()].concat();
    let holds = RecordHeader::parse(&body).is_some_and(|header| header.crc_holds(&body));
    if !holds {
        return Err(JoinError::Checksum { start: *start });
    }
    Ok(Some(OwnedRecord { start: *start, end, body, major }))
}

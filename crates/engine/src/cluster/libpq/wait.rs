//! Waiting for the socket.

use std::ffi::c_int;

use super::super::{ClusterError, Deadline};
use super::POLL_SLICE;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Want {
    Read,
    Write,
    ReadOrWrite,
}

/// Waits until the socket is ready or has failed (which the next libpq call reports), but not past the deadline.
pub fn wait_for(socket: c_int, want: Want, deadline: Deadline, doing: &'static str) -> Result<(), ClusterError> {
    let (read, write) = (c_int::from(want != Want::Write), c_int::from(want != Want::Read));
    loop {
        let left = deadline.remaining().min(POLL_SLICE);
        if left.is_zero() {
            return Err(ClusterError::Timeout { doing });
        }
        // A millisecond more than is left: libpq cuts off fractions, and would spin during the last one.
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX / 4) + 1000;
        // SAFETY: plain values; libpq builds the pollfd itself.
        let ready =
            unsafe { pq_sys::PQsocketPoll(socket, read, write, pq_sys::PQgetCurrentTimeUSec().saturating_add(micros)) };
        if ready > 0 {
            return Ok(());
        }
        if ready < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(ClusterError::Lost { message: format!("poll failed: {error}") });
            }
        }
    }
}

//! Results of libpq, copied into values of ours.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::NonNull;

use pq_sys::{ExecStatusType, PGresult};

use super::super::ClusterError;
use super::{ResultSet, Value};

pub struct OwnedResult(pub NonNull<PGresult>);

impl OwnedResult {
    pub fn status(&self) -> ExecStatusType {
        // SAFETY: the result is live.
        unsafe { pq_sys::PQresultStatus(self.0.as_ptr()) }
    }

    pub fn field(&self, code: u8) -> Option<String> {
        result_field(self.0.as_ptr(), code)
    }

    /// The primary message with its detail and hint, in one line each.
    pub fn message(&self) -> String {
        let parts = [pq_sys::PG_DIAG_MESSAGE_PRIMARY, pq_sys::PG_DIAG_MESSAGE_DETAIL, pq_sys::PG_DIAG_MESSAGE_HINT];
        let mut message = parts.into_iter().filter_map(|code| self.field(code)).collect::<Vec<_>>().join("; ");
        if message.is_empty() {
            // SAFETY: the result is live; its text is copied at once.
            message = unsafe { copy_text(pq_sys::PQresultErrorMessage(self.0.as_ptr())) }.unwrap_or_default();
        }
        message
    }

    pub fn to_set(&self) -> Result<ResultSet, ClusterError> {
        let result = self.0.as_ptr();
        // SAFETY: the result is live; row and column numbers stay below the counts it gives; a value that is not
        // NULL has `PQgetlength` bytes and is copied at once.
        unsafe {
            let (rows, columns) = (pq_sys::PQntuples(result), pq_sys::PQnfields(result));
            let names = (0..columns).map(|c| copy_text(pq_sys::PQfname(result, c)).unwrap_or_default());
            let value = |row, column| -> Result<Value, ClusterError> {
                if pq_sys::PQgetisnull(result, row, column) == 1 {
                    return Ok(None);
                }
                let length = usize::try_from(pq_sys::PQgetlength(result, row, column))
                    .map_err(|_| ClusterError::Unexpected { message: "a value of negative length".to_owned() })?;
                let start = pq_sys::PQgetvalue(result, row, column).cast::<u8>();
                Ok(Some(std::slice::from_raw_parts(start, length).to_vec()))
            };
            Ok(ResultSet {
                columns: names.collect(),
                rows: (0..rows).map(|r| (0..columns).map(|c| value(r, c)).collect()).collect::<Result<_, _>>()?,
                affected: copy_text(pq_sys::PQcmdTuples(result)).and_then(|n| n.parse().ok()),
            })
        }
    }
}

impl Drop for OwnedResult {
    fn drop(&mut self) {
        // SAFETY: the result is ours alone and freed once.
        unsafe { pq_sys::PQclear(self.0.as_ptr()) }
    }
}

pub fn result_field(result: *const PGresult, code: u8) -> Option<String> {
    // SAFETY: callers pass a live result; the text belongs to it and is copied at once.
    unsafe { copy_text(pq_sys::PQresultErrorField(result, c_int::from(code))) }
}

/// Copies a C string, if there is one.
///
/// # Safety
/// `at` is null or points to a C string that stays valid during the call.
pub unsafe fn copy_text(at: *const c_char) -> Option<String> {
    // SAFETY: as the caller promises.
    (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
}

/// By SQLSTATE, since the text may be in any language.
pub fn classify(sqlstate: String, message: String) -> ClusterError {
    match sqlstate.as_str() {
        "42501" => ClusterError::Denied { sqlstate: Some(sqlstate), message },
        state if state.starts_with("28") => ClusterError::Denied { sqlstate: Some(sqlstate), message },
        // The server starts, stops, crashed, or has no free connection.
        "57P01" | "57P02" | "57P03" | "57P05" | "53300" => ClusterError::Unreachable { message },
        state if state.starts_with("08") => ClusterError::Unreachable { message },
        _ => ClusterError::Query { sqlstate, message },
    }
}

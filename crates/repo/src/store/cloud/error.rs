//! What an object store's failures mean: whether they pass, and which `StoreError` they are. Messages are made of the
//! status and the store's own code and words; addresses are left out, since they may carry a signature.

use std::error::Error as _;
use std::io;

use object_store::Error;

use super::attempt::Why;
use crate::store::StoreError;

/// Longest piece of a store's own message that is shown.
const MESSAGE_CHARS_MAX: usize = 300;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Object,
    Listing,
}

/// Answers that say that the bucket, and not the object, is missing.
const NO_BUCKET: &[&str] = &["NoSuchBucket", "ContainerNotFound", "bucket does not exist", "ContainerBeingDeleted"];
/// Conflicts with a request under way, as opposed to a name that is taken.
const IN_FLIGHT: &[&str] = &["ConditionalRequestConflict", "OperationAborted"];
const NO_SPACE: &[&str] = &["QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull"];
/// The object lies in a class that is not read at once: S3, and Azure's two.
const ARCHIVED: &[&str] = &["InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"];
/// Where credentials are asked for when the environment has none: never the store itself.
const METADATA: &[&str] = &["http://169.254.169.254", "http://169.254.170.2", "http://metadata.google.internal"];
/// Refusals by credentials that are over or not yet valid.
const CREDENTIALS: &[&str] = &["ExpiredToken", "TokenRefreshRequired", "InvalidToken", "RequestTimeTooSkewed"];

pub fn short_body(expected: u64, got: usize) -> Error {
    let source = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{got} of {expected} bytes arrived"));
    Error::Generic { store: "HTTP", source: source.into() }
}

/// Whether the range that was asked for begins beyond the end: by the store's answer, or by the library's look at it.
pub fn is_range(error: &Error, status: Option<u16>) -> bool {
    status == Some(416) || whole_text(error).contains("Wanted range starting at")
}

/// Whether trying again may help.
pub fn may_pass(error: &Error, status: Option<u16>) -> bool {
    match error {
        Error::AlreadyExists { .. } | Error::Precondition { .. } => {
            let text = whole_text(error);
            status == Some(409) && IN_FLIGHT.iter().any(|code| text.contains(code))
        }
        Error::Generic { .. } if is_range(error, status) => false,
        Error::Generic { .. } => match status {
            // An answer of 400 can be about time or about a body that was cut short on the way.
            Some(400) => {
                ["RequestTimeout", "IncompleteBody", "BadDigest"].iter().any(|c| whole_text(error).contains(c))
            }
            Some(408 | 425 | 429) => true,
            // What a store does not have, it will not have later.
            Some(501) => false,
            Some(s) => !(300..500).contains(&s),
            // No answer at all: but what never left this machine for want of a name or a certificate does not pass.
            None => !is_permanent(error),
        },
        _ => false,
    }
}

fn is_permanent(error: &Error) -> bool {
    let text = whole_text(error).to_lowercase();
    ["certificate", "invalid uri", "unable to parse", "missing", "invalidcertificate"].iter().any(|w| text.contains(w))
}

/// The error with all its causes.
fn whole_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(" / ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

/// `503 SlowDown: Please reduce your request rate`, or what went wrong on the way.
pub fn message(error: &Error, status: Option<u16>) -> String {
    let text = whole_text(error);
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once("</").map(|(value, _)| value.trim().to_owned())
    };
    let code = element("Code").unwrap_or_default();
    let words = element("Message").unwrap_or_default();
    let said = match (code.is_empty(), words.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!(" {code}"),
        (true, false) => format!(" {words}"),
        (false, false) => format!(" {code}: {words}"),
    };
    let shown = match status {
        Some(status) if !said.is_empty() => format!("{status}{said}"),
        Some(status) if (200..300).contains(&status) => innermost(error),
        Some(status) => format!("{status} {}", reason(status)).trim_end().to_owned(),
        None => innermost(error),
    };
    // Some stores break their messages into lines.
    let words: Vec<&str> = shown.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(MESSAGE_CHARS_MAX).collect()
}

fn reason(status: u16) -> &'static str {
    match status {
        301 | 307 | 308 => "redirected: is the region right?",
        400 => "bad request",
        401 => "not authenticated",
        403 => "access denied",
        404 => "not found",
        409 => "conflict",
        412 => "precondition failed",
        429 => "too many requests",
        500 => "internal error",
        503 => "slow down",
        _ => "",
    }
}

/// The last cause, which is the most particular one and holds no address.
fn innermost(error: &Error) -> String {
    let mut last: &dyn std::error::Error = error;
    let mut above = String::new();
    while let Some(source) = last.source() {
        above = last.to_string();
        last = source;
    }
    let text = last.to_string();
    if text.is_empty() { above } else { text }
}

fn no_credentials(metadata: &str) -> String {
    format!(
        "no credentials were found: no variable names any (AWS_…, AZURE_…, GOOGLE_…: docs/storage.md), and the metadata service of \
         this machine gave none ({metadata})"
    )
}

pub fn store_error(why: Why, operation: &'static str, object: String, of: Of) -> StoreError {
    let (error, status) = match why {
        Why::Timeout(_) => {
            let source = io::Error::new(io::ErrorKind::TimedOut, why.to_string());
            return StoreError::Io { operation, object, source };
        }
        Why::Store { error, status } => (error, status),
    };
    let text = whole_text(&error);
    let has = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
    if has(METADATA) {
        let source = io::Error::other(no_credentials(&message(&error, status)));
        return StoreError::Denied { object, source };
    }
    let source = io::Error::other(message(&error, status));
    match error {
        _ if has(NO_BUCKET) => {
            let source =
                io::Error::new(io::ErrorKind::NotFound, format!("the bucket or container is not there ({source})"));
            StoreError::Io { operation, object, source }
        }
        _ if of == Of::Object && has(ARCHIVED) => StoreError::Archived { object, source },
        _ if has(NO_SPACE) || status == Some(507) => StoreError::NoSpace { object, source },
        _ if has(CREDENTIALS) || matches!(status, Some(401 | 403)) => StoreError::Denied { object, source },
        Error::NotFound { .. } if of == Of::Object => StoreError::NotFound { object },
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreError::AlreadyExists { object },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreError::Denied { object, source },
        _ => StoreError::Io { operation, object, source },
    }
}

//! Reading a segment while the repositories are still being opened: one call of `archive_command` takes about as long as the
//! longer of the two.
//!
//! Invariant: what was read early is used only for the cluster and segment size that the catalog names; otherwise the file is
//! read again, and whoever reads it then says what is wrong.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use pgark_pg::names::WalFileName;
use pgark_repo::catalog::Lineage;
use pgark_repo::codec::WalEncoding;

use super::segment::{Prepared, prepare_unchecked};
use crate::error::Result;

/// A segment being read. Given up without harm: it is a thread that ends by itself.
pub struct Early {
    path: PathBuf,
    reading: JoinHandle<Result<Option<Prepared>>>,
}

impl Early {
    /// None for what is no segment.
    pub fn start(path: &Path, encoding: WalEncoding, threads: usize) -> Option<Self> {
        let WalFileName::Segment(raw) = super::parse_name(path.file_name()?.to_str()?).ok()? else { return None };
        let (path, own) = (path.to_owned(), path.to_owned());
        let read = move || prepare_unchecked(&own, &raw, encoding, threads);
        // Without another thread it is read later.
        let reading = std::thread::Builder::new().name("early".into()).spawn(read).ok()?;
        Some(Early { path, reading })
    }

    pub fn is_of(&self, path: &Path) -> bool {
        self.path == path
    }

    /// The segment, if it is one of that lineage.
    pub fn finish(self, lineage: &Lineage) -> Option<Prepared> {
        let outcome = self.reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let found = outcome.inspect_err(|e| tracing::debug!(%e, "a segment could not be read early")).ok()??;
        let fits = found.index.system_id == lineage.system_id && found.index.segment_size == lineage.segment_size;
        fits.then_some(found)
    }
}

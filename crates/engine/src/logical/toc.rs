//! The table of contents at the beginning of a dump, out of a stream.

use pgark_pg::dump_toc::{DumpToc, TocProblem};

/// A table of contents is not longer than this.
pub(super) const TOC_BYTES_MAX: usize = 1024 * 1024 * 1024;
const FIRST_TRY: usize = 64 * 1024;

/// Collects the beginning until the table of contents is complete.
#[derive(Default)]
pub(super) struct TocBeginning {
    bytes: Vec<u8>,
    tried: usize,
    found: Option<Result<DumpToc, TocProblem>>,
}

impl TocBeginning {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.found.is_some() {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        // Each try is as much work as all before it together.
        if self.bytes.len() >= (self.tried * 2).max(FIRST_TRY) {
            self.look();
        }
    }

    pub fn is_complete(&self) -> bool {
        self.found.is_some()
    }

    fn look(&mut self) {
        self.tried = self.bytes.len();
        match DumpToc::parse(&self.bytes) {
            Err(TocProblem::Short) if self.tried < TOC_BYTES_MAX => return,
            found => self.found = Some(found),
        }
        self.bytes = vec![];
    }

    /// After the last bytes.
    pub fn finish(mut self) -> Result<DumpToc, TocProblem> {
        if self.found.is_none() {
            self.look();
        }
        self.found.unwrap_or(Err(TocProblem::Short))
    }
}

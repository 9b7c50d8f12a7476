//! The table of contents of a dump that lies here, and the list of what is to be restored of it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pgark_pg::dump_toc::{DumpToc, TocProblem};

use crate::error::{EngineError, Result};
use crate::logical::toc::TOC_BYTES_MAX;

pub fn read_toc(dump: &File) -> Result<DumpToc> {
    let failed = |e: std::io::Error| EngineError::file("reading the table of contents of", "the dump", e);
    let length = usize::try_from(dump.metadata().map_err(failed)?.len()).unwrap_or(usize::MAX);
    let mut want = 1024 * 1024;
    loop {
        let mut bytes = vec![0; want.min(length)];
        dump.read_exact_at(&mut bytes, 0).map_err(failed)?;
        match DumpToc::parse(&bytes) {
            Ok(toc) => return Ok(toc),
            Err(TocProblem::Short) if want < length && want < TOC_BYTES_MAX => want *= 4,
            Err(problem) => {
                return Err(EngineError::failed(
                    "E-DUMP-UNREADABLE",
                    format!("the table of contents of the dump is not understood: {problem:?}"),
                    "restore the whole database, or use a newer pgark",
                ));
            }
        }
    }
}

/// Numbers of entries for `pg_restore`; removed when it is dropped.
pub struct ListFile(pub PathBuf);

impl ListFile {
    pub fn write(dir: &Path, ids: &[u32]) -> Result<Self> {
        let mut random = [0u8; 16];
        getrandom::fill(&mut random)
            .map_err(|e| EngineError::file("making a name in", dir, std::io::Error::other(e.to_string())))?;
        let path = dir.join(format!(".pgark-list-{}", pgark_repo::crypto::hex(&random)));
        let failed = |e| EngineError::file("writing", &path, e);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let list = ListFile(path.clone());
        let text: String = ids.iter().map(|id| format!("{id};\n")).collect();
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(list)
    }
}

impl Drop for ListFile {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.0) {
            tracing::warn!(%e, "a list of entries stays in {}", self.0.display());
        }
    }
}

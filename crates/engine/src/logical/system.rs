//! The files of a system, in the same backup as its databases.
//!
//! They are read after the dumps: what a row of a dump refers to was there when the row was. An application that writes a file
//! before its row, and removes the row before its file, finds every file of every row.

use pgark_repo::manifest::path_order;
use pgark_repo::record::{FilesPart, Section};

use super::Job;
use crate::error::Result;
use crate::files::{self, FilesOptions, FilesWriter};
use crate::parts::{Finished, PartList, Writer};

impl Job<'_> {
    /// Writes the manifest of these parts and of the files. Returns also how much of the files was new.
    pub(super) fn with_files(
        &self,
        options: &FilesOptions,
        writer: &Writer<'_>,
        mut parts: Vec<Finished>,
        warnings: &mut Vec<String>,
    ) -> Result<(PartList, FilesPart, u64)> {
        parts.sort_by(|a, b| path_order(a.path().as_bytes(), b.path().as_bytes()));
        let mut files = FilesWriter::new(options, self.ctx)?;
        let mut list = writer.begin_manifest()?;
        let mut parts = parts.into_iter().peekable();
        self.ctx.progress.begin("backup of files", None);
        for section in [Section::Config, Section::Files] {
            let before = section.as_str().as_bytes();
            while let Some(part) = parts.next_if(|p| path_order(p.path().as_bytes(), before).is_lt()) {
                list.part(part)?;
            }
            files.section(section, writer, &mut list)?;
            self.kept.check()?;
        }
        self.ctx.progress.end();
        parts.try_for_each(|part| list.part(part))?;
        let (part, said, new_bytes) = files.finish()?;
        warnings.extend(said);
        warnings.extend(files::warnings(&part));
        Ok((list.finish()?, part, new_bytes))
    }
}

//! The texts of the configuration files as they were read, for processes that have to go by the same.
//!
//! Invariant: whoever is handed them takes them as they are, and looks at no file: who may write those was checked by who read them.

use std::fmt;
use std::path::PathBuf;

use pgark_server::jobs::handed::{self, Handed};
use serde::{Deserialize, Serialize};

use super::files;
use crate::failure::Failure;

/// Of what one version hands to another, when the program was exchanged under a running server.
const SCHEMA: u32 = 1;

#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Texts {
    /// In the order they were read.
    pub(super) files: Vec<FileText>,
    /// Where more of them are looked for: `conf.d`.
    pub(super) fragments: Option<PathBuf>,
}

#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct FileText {
    pub path: PathBuf,
    pub text: String,
    pub everybody_reads: bool,
}

#[derive(Deserialize, Serialize)]
struct Document {
    schema: u32,
    texts: Texts,
}

impl fmt::Debug for Texts {
    /// Names only: a text may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.paths()).finish()
    }
}

impl Texts {
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|file| &file.path)
    }

    /// For processes that have to go by these.
    ///
    /// # Errors
    /// `E-CONFIG-READ` when the name of a file is no text, `E-SYSTEM` when there is no memory for them.
    pub fn handed(&self) -> Result<Handed, Failure> {
        let document = serde_json::to_vec(&Document { schema: SCHEMA, texts: self.clone() })
            .map_err(|e| Failure::usage("E-CONFIG-READ", format!("the settings cannot be handed to jobs: {e}")))?;
        Handed::new(&document)
            .map_err(|e| Failure::failed("E-SYSTEM", format!("the settings cannot be kept for jobs: {e}")))
    }

    /// What the server handed to this process.
    ///
    /// # Errors
    /// `E-CONFIG-READ`, which repeats nothing of them.
    pub fn taken() -> Result<Texts, Failure> {
        let failed = |why: String| {
            Failure::usage(
                "E-CONFIG-READ",
                format!("the settings in force, on the standard input, cannot be read: {why}"),
            )
            .hint("the flag is for processes of 'pgark serve'; after the program was exchanged, restart the server")
        };
        let bytes = handed::take().map_err(|e| failed(e.to_string()))?;
        // What is wrong where would show a piece of it.
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|_| failed("they are no such document".into()))?;
        match document.schema {
            SCHEMA => Ok(document.texts),
            other => Err(failed(format!("their schema is {other}, and not {SCHEMA}"))),
        }
    }

    /// Files that are not as they were then: changed, new, or gone.
    pub fn changed_since(&self) -> Vec<PathBuf> {
        let is_other = |file: &&FileText| files::read(&file.path).map_or(true, |(text, _)| text != file.text);
        let other = self.files.iter().filter(is_other).map(|file| file.path.clone());
        // A directory that cannot be listed any more adds none.
        let beside = self.fragments.as_deref().map(files::fragments).and_then(Result::ok).unwrap_or_default();
        let new = beside.into_iter().filter(|path| self.paths().all(|known| known != path));
        other.chain(new).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::files::Environment;
    use super::super::testing::TempDir;
    use super::super::{Overrides, Settings};
    use super::*;

    #[test]
    fn what_was_handed_holds_whatever_the_files_say_now() {
        let dir = TempDir::new();
        let main = dir
            .write("etc/pgark/pgark.toml", "[defaults]\nrpo = '1h'\n[repos.main]\nurl = '/r'\npassphrase = 'hunter2'");
        let more = dir.write("etc/pgark/conf.d/10-a.toml", "[clusters.main]\nrepos = ['main']");
        let environment = Environment::for_test(dir.path(), &[]);
        let read = Settings::load(&Overrides::default(), &environment).expect("loads");
        assert!(!format!("{:?}", read.texts).contains("hunter2"));
        assert!(read.explain(None).expect("all").changed_since.is_none(), "it looked just now");
        // As they are carried to another process.
        let text = serde_json::to_vec(&read.texts).expect("text");
        let texts: Texts = serde_json::from_slice(&text).expect("the same");
        assert_eq!(texts, read.texts);
        let overrides = Overrides { in_force: Some(Arc::new(texts)), ..Overrides::default() };
        let handed = || {
            let settings = Settings::load(&overrides, &environment).expect("loads");
            let report = settings.explain(None).expect("all");
            (report.to_text(), report.changed_since.expect("it was handed"))
        };
        assert_eq!(handed(), (read.explain(None).expect("all").to_text(), vec![]));
        dir.write("etc/pgark/pgark.toml", "[defaults\n");
        let new = dir.write("etc/pgark/conf.d/20-b.toml", "[defaults]\nrpo = '9h'");
        std::fs::remove_file(&more).expect("removed");
        Settings::load(&Overrides::default(), &environment).expect_err("broken");
        let changed = [main, more, new].map(|path| path.display().to_string()).to_vec();
        assert_eq!(handed(), (read.explain(None).expect("all").to_text(), changed));
    }
}

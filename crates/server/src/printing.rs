//! A command of this program whose document is wanted: run beside us, for so long and no longer, its output bounded.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process_group, setpriority_process};
use serde_json::Value;

use crate::jobs::Program;

/// 10,000 backups are some 10 MB.
const DOCUMENT_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotPrinted {
    pub code: String,
    pub message: String,
    pub hint: Option<String>,
}

impl NotPrinted {
    pub fn because(message: impl Into<String>) -> NotPrinted {
        NotPrinted { code: "E-SERVER-LOOK".into(), message: message.into(), hint: None }
    }
}

/// A command that prints into a file, which goes when this goes.
pub struct Printing {
    child: Child,
    path: PathBuf,
}

impl Printing {
    pub fn start(program: &Program, words: &[String], path: PathBuf) -> Result<Printing, NotPrinted> {
        let mut open = OpenOptions::new();
        open.create(true).truncate(true).write(true).mode(0o600);
        let out = open.open(&path).map_err(|e| NotPrinted::because(format!("{}: {e}", path.display())))?;
        let command = program.command(words);
        let spawned = command.and_then(|mut command| command.arg("--quiet").stdout(out).stderr(Stdio::null()).spawn());
        match spawned {
            Ok(child) => Ok(Printing { child, path }),
            Err(e) => {
                // Nobody wrote into it.
                let _ = std::fs::remove_file(&path);
                Err(NotPrinted::because(e.to_string()))
            }
        }
    }

    /// To whatever else wants to compute.
    pub fn gives_way(&self, nice: i32) {
        // It may have ended, and otherwise it merely is in a hurry.
        let _ = setpriority_process(Pid::from_raw(self.child.id().cast_signed()), nice);
    }

    pub fn is_over(&mut self) -> Result<bool, NotPrinted> {
        self.child.try_wait().map(|status| status.is_some()).map_err(|e| NotPrinted::because(e.to_string()))
    }

    /// What it printed, once it is over.
    pub fn document(&self) -> Result<Value, NotPrinted> {
        let mut text = vec![];
        let read = File::open(&self.path).and_then(|file| file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text));
        read.map_err(|e| NotPrinted::because(e.to_string()))?;
        printed(&text)
    }
}

/// A failure is a document too.
pub fn printed(text: &[u8]) -> Result<Value, NotPrinted> {
    let document: Value = serde_json::from_slice(text).map_err(|_| NotPrinted::because("it printed no document"))?;
    match document.get("error") {
        Some(error) => {
            let part = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
            let (code, message) = (part("code").unwrap_or_default(), part("message").unwrap_or_default());
            Err(NotPrinted { code, message, hint: part("hint") })
        }
        None => Ok(document),
    }
}

impl Drop for Printing {
    /// What still runs is ended.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Some(pid) = Pid::from_raw(self.child.id().cast_signed())
        {
            // It may just have ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}

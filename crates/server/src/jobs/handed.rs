//! The settings in force, as the processes of the server get them: on their standard input, out of memory.
//!
//! Invariant: nothing of them is on a disk, among arguments or in the environment, and nobody can change them once they are made. What
//! they say is not known here.

use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Says to a process that its settings are on its standard input.
pub const FLAG: &str = "--settings-in-force";
/// More than all files together may have.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// To be cloned freely.
#[derive(Clone, Debug)]
pub struct Handed(Arc<File>);

impl Handed {
    /// # Errors
    /// When there is no memory for it.
    pub fn new(text: &[u8]) -> std::io::Result<Handed> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut memory = File::from(memfd_create("pgark-settings", flags)?);
        memory.write_all(text)?;
        fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Handed(Arc::new(memory)))
    }

    pub(super) fn stdin(&self) -> std::io::Result<Stdio> {
        Ok(self.0.try_clone()?.into())
    }
}

/// What a process was handed. After that its standard input is empty, so that nothing it starts reads it by accident.
///
/// # Errors
/// When the standard input is no such file.
pub fn take() -> std::io::Result<Vec<u8>> {
    let text = read(&File::from(std::io::stdin().as_fd().try_clone_to_owned()?))?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(text)
}

/// From its beginning: all processes share where they are in it.
fn read(memory: &File) -> std::io::Result<Vec<u8>> {
    let metadata = memory.metadata()?;
    let size = usize::try_from(metadata.len()).ok().filter(|_| metadata.is_file() && metadata.len() <= BYTES_MAX);
    let mut text = vec![0; size.ok_or_else(|| Error::other("the standard input is no file that settings fit in"))?];
    memory.read_exact_at(&mut text, 0)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Program;
    use crate::serve::{Config, Shared};

    #[test]
    fn each_process_reads_what_is_in_force_when_it_starts() {
        let scratch = pgark_testkit::Scratch::new("handed");
        // Where they are in it is shared by all; our own processes read from the beginning, and so does this one.
        let binary = scratch.file("print", b"#!/bin/sh\ncat /proc/self/fd/0\necho \" $*\"\n", 0o755);
        let with = |text: &str| {
            let handed = Handed::new(text.as_bytes()).expect("made");
            Config { handed: Some(handed), ..Config::default() }
        };
        let settings = Shared::new(with("one"));
        let program = Program { binary, words: vec!["--x".into()], settings: settings.clone() };
        let started = || program.command(&["info".into()]).expect("made");
        let printed = |mut command: std::process::Command| {
            String::from_utf8(command.output().expect("it runs").stdout).expect("text")
        };
        assert_eq!(printed(started()), "one info --x --json --settings-in-force\n");
        let before = started();
        settings.set(with("two"));
        assert_eq!(printed(started()), "two info --x --json --settings-in-force\n");
        assert_eq!(printed(before), "one info --x --json --settings-in-force\n");
        settings.set(Config::default());
        assert_eq!(printed(started()), " info --x --json\n", "it reads the files itself");
    }

    #[test]
    fn nobody_changes_what_was_handed_out() {
        let handed = Handed::new(b"[server]").expect("made");
        for _ in 0..2 {
            assert_eq!(read(&handed.0).expect("read"), b"[server]");
        }
        handed.0.write_at(b"x", 0).expect_err("it is sealed");
        handed.0.write_at(b"x", 8).expect_err("it does not grow");
        handed.0.set_len(0).expect_err("nor shrink");
        let null = File::open("/dev/null").expect("opened");
        read(&null).expect_err("it is no file");
    }
}

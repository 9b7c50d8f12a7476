//! Starts the system's ssh client with its SFTP subsystem on standard input and output.
//!
//! Invariant: it never asks, never trusts a host key it does not know, and gets no secret from us: keys come from
//! files and agents that ssh itself opens. It runs in a process group of its own, so that an interrupt from a terminal
//! reaches us alone and what is under way can be finished in order.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::failure::SftpFailure;
use super::options::SftpOptions;

const PROGRAM: &str = "ssh";

/// What ssh must not do, whatever its configuration says.
const ALWAYS: &[&str] = &[
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "VerifyHostKeyDNS=no",
    "UpdateHostKeys=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "ConnectionAttempts=1",
    "ServerAliveCountMax=3",
    // What is stored is compressed and encrypted already.
    "Compression=no",
    "EscapeChar=none",
    // Reasons of failures, but no banners.
    "LogLevel=ERROR",
];

pub(super) struct Ssh {
    pub(super) child: Child,
    /// To be kept until the host key has been checked.
    pub(super) pin: Option<PinnedKey>,
}

pub(super) fn start(options: &SftpOptions) -> Result<Ssh, SftpFailure> {
    let pin = options.host_key.as_deref().map(PinnedKey::write).transpose()?;
    let mut command = Command::new(PROGRAM);
    command.args(arguments(options, pin.as_ref()));
    // Without these nobody can be asked in a window either.
    command.env_remove("SSH_ASKPASS").env_remove("SSH_ASKPASS_REQUIRE").env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|e| {
        SftpFailure::lasting(
            "E-SFTP-CLIENT",
            format!("the program {PROGRAM} cannot be started: {e}"),
            "install the OpenSSH client (Debian: openssh-client) and see that it is in PATH",
        )
    })?;
    Ok(Ssh { child, pin })
}

fn arguments(options: &SftpOptions, pin: Option<&PinnedKey>) -> Vec<String> {
    let mut words = vec![];
    if let Some(file) = &options.ssh_config {
        words.extend(["-F".to_owned(), file.clone()]);
    }
    let mut option = |text: String| words.extend(["-o".to_owned(), text]);
    ALWAYS.iter().for_each(|text| option((*text).to_owned()));
    option(format!("ConnectTimeout={}", options.timeout.as_secs()));
    option(format!("ServerAliveInterval={}", options.timeout.as_secs().div_ceil(3)));
    if let Some(user) = &options.user {
        option(format!("User={user}"));
    }
    if let Some(port) = options.port {
        option(format!("Port={port}"));
    }
    if let Some(file) = &options.identity_file {
        option(format!("IdentityFile={file}"));
        option("IdentitiesOnly=yes".to_owned());
    }
    let known = options.known_hosts.clone().or(pin.map(|pin| pin.0.display().to_string()));
    if let Some(file) = known {
        option(format!("UserKnownHostsFile={file}"));
        option("GlobalKnownHostsFile=/dev/null".to_owned());
    }
    words.extend(["-s", "--", &options.host, "sftp"].map(str::to_owned));
    words
}

/// A file with the one host key that is accepted, for as long as ssh needs it.
pub(super) struct PinnedKey(PathBuf);

impl PinnedKey {
    fn write(key: &str) -> Result<Self, SftpFailure> {
        let failed = |e: &dyn std::fmt::Display| {
            SftpFailure::lasting(
                "E-SFTP-CLIENT",
                format!("the pinned host key cannot be written for ssh: {e}"),
                "the directory for temporary files (TMPDIR) must be writable, its path without spaces",
            )
        };
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(|e| failed(&e))?;
        let name = format!("pgark-host-key-{:032x}", u128::from_le_bytes(random));
        let path = std::env::temp_dir().join(name);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
        if !path.is_absolute() || !path.to_string_lossy().chars().all(plain) {
            return Err(failed(&"its path would be split by ssh"));
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|e| failed(&e))?;
        let pin = PinnedKey(path);
        file.write_all(format!("* {key}\n").as_bytes()).map_err(|e| failed(&e))?;
        Ok(pin)
    }
}

impl Drop for PinnedKey {
    fn drop(&mut self) {
        // It holds no secret; what stays behind in a directory for temporary files is cleared there.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::sftp::options::SftpPlace;

    fn options(more: &[(&str, &str)]) -> SftpOptions {
        let place = SftpPlace { url: "sftp://x", user: Some("me"), host: "h", port: Some(2222), path: "/srv" };
        let more: BTreeMap<_, _> = more.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        SftpOptions::new(place, &more).unwrap()
    }

    #[test]
    fn host_keys_are_always_checked_and_nobody_is_asked() {
        let words = arguments(&options(&[("identity_file", "/k"), ("known_hosts", "/kh")]), None);
        for wanted in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "User=me",
            "Port=2222",
            "IdentityFile=/k",
            "IdentitiesOnly=yes",
            "UserKnownHostsFile=/kh",
            "GlobalKnownHostsFile=/dev/null",
            "ConnectTimeout=60",
            "ServerAliveInterval=20",
        ] {
            assert!(words.iter().any(|word| word == wanted), "{wanted} is not in {words:?}");
        }
        assert_eq!(words[words.len() - 4..], ["-s", "--", "h", "sftp"]);
    }

    #[test]
    fn a_pinned_key_lies_in_a_file_of_ours_and_goes_with_it() {
        use std::os::unix::fs::PermissionsExt;
        let pin = PinnedKey::write("ssh-ed25519 AAAA").unwrap();
        let path = pin.0.clone();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "* ssh-ed25519 AAAA\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let words = arguments(&options(&[]), Some(&pin));
        assert!(words.contains(&format!("UserKnownHostsFile={}", path.display())));
        drop(pin);
        assert!(!path.exists());
    }
}

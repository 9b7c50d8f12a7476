//! Why a server cannot be used, in words for the administrator, with a code and what to do next.

use std::io;
use std::time::Duration;

use super::wire::{Malformed, Status};

/// Travels as the source of `StoreError::Io`; [`StoreError::told`](crate::store::StoreError::told) finds it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SftpFailure {
    pub code: &'static str,
    pub message: String,
    pub hint: &'static str,
    /// Another connection may do better.
    pub(super) passing: bool,
}

/// How a request ends when it does not end well.
#[derive(Clone, Debug)]
pub(super) enum Fail {
    /// The server's answer.
    Status(Status),
    /// There is no connection (any more). What was asked last may have been done.
    Connection(SftpFailure),
}

impl Fail {
    pub(super) fn is_status(&self, code: u32) -> bool {
        matches!(self, Fail::Status(status) if status.code == code)
    }
}

impl From<SftpFailure> for Fail {
    fn from(failure: SftpFailure) -> Self {
        Fail::Connection(failure)
    }
}

impl From<Malformed> for Fail {
    fn from(malformed: Malformed) -> Self {
        Fail::Connection(SftpFailure::protocol(malformed.0))
    }
}

impl From<Fail> for io::Error {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Status(status) => io::Error::other(status.to_string()),
            Fail::Connection(failure) => io::Error::other(failure),
        }
    }
}

impl SftpFailure {
    pub(super) fn lasting(code: &'static str, message: impl Into<String>, hint: &'static str) -> Self {
        SftpFailure { code, message: message.into(), hint, passing: false }
    }

    pub(super) fn lost(message: impl Into<String>) -> Self {
        SftpFailure {
            code: "E-SFTP-LOST",
            message: message.into(),
            hint: "check the network and the server; then run the command again",
            passing: true,
        }
    }

    pub(super) fn silent(limit: Duration) -> Self {
        SftpFailure {
            code: "E-SFTP-TIMEOUT",
            message: format!("the server gave no answer for {} s", limit.as_secs()),
            hint: "check the network and the server; the URL option 'timeout' sets how long an answer may take",
            passing: true,
        }
    }

    pub(super) fn late(limit: Duration) -> Self {
        SftpFailure::lasting(
            "E-SFTP-TIMEOUT",
            format!("not done within {} s", limit.as_secs()),
            "the connection is too slow; the URL option 'deadline' sets how long one operation may take",
        )
    }

    pub(super) fn protocol(what: &str) -> Self {
        SftpFailure::lasting(
            "E-SFTP-PROTOCOL",
            format!("the server does not keep to the SFTP protocol: {what}"),
            "a start-up file of the account may print text: use 'ForceCommand internal-sftp'",
        )
    }

    pub(super) fn lacking(extension: &str) -> Self {
        SftpFailure::lasting(
            "E-SFTP-SERVER",
            format!("the server does not offer {extension}, without which objects cannot be stored safely"),
            "use a server that has it, such as OpenSSH; docs/storage-sftp.md says what is needed",
        )
    }

    /// After the commit was asked for and no answer came, nor could it be found out.
    pub(super) fn unknown(why: &str) -> Self {
        SftpFailure::lasting(
            "E-SFTP-LOST",
            format!("whether it was stored is not known: {why}"),
            "check the network and the server; then run the command again",
        )
    }

    /// What the ssh program said before it ended, with no SFTP connection yet.
    pub(super) fn of_ssh(said: &str) -> Self {
        let has = |words: &str| said.contains(words);
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("ssh ended without a word");
        let quoted: String = last.escape_debug().take(300).collect();
        if has("IDENTIFICATION HAS CHANGED") || has("REVOKED HOST KEY") {
            return SftpFailure::lasting(
                "E-SFTP-HOSTKEY",
                "the server's host key is another one than the known one",
                "somebody may be answering in its place; if the server was set up anew, replace its line in known_hosts \
                 (or the URL option 'host_key') with the key its administrator gives you",
            );
        }
        if has("Host key verification failed") || has("host key is known for") {
            return SftpFailure::lasting(
                "E-SFTP-HOSTKEY",
                "the server's host key is not known here, or is not the pinned one",
                "get the key from the server's administrator, not from the network, and put it into known_hosts \
                 of the user that runs pgark, or into the URL option 'host_key'",
            );
        }
        if has("Permission denied (") || has("Too many authentication failures") || has("No supported authentication") {
            return SftpFailure::lasting(
                "E-SFTP-AUTH",
                format!("the server does not let us in: {quoted}"),
                "check user, 'identity_file' (mode 0600, no passphrase unless an agent holds it), the agent, and the \
                 account's authorized_keys",
            );
        }
        if has("subsystem request failed") || has("administratively prohibited") {
            return SftpFailure::lasting(
                "E-SFTP-SERVER",
                format!("the server offers no SFTP to this account: {quoted}"),
                "set 'Subsystem sftp internal-sftp' in its sshd_config",
            );
        }
        if has("Could not resolve hostname") {
            return SftpFailure {
                passing: true,
                ..SftpFailure::lasting("E-SFTP-UNREACHABLE", quoted, "check the host in the URL, and name resolution")
            };
        }
        if has("connect to host") || has("Connection refused") {
            return SftpFailure {
                passing: true,
                ..SftpFailure::lasting("E-SFTP-UNREACHABLE", quoted, "check host, port, firewall, and that sshd runs")
            };
        }
        if has("Bad configuration option") || has("open user config") || has("no argument after keyword") {
            return SftpFailure::lasting(
                "E-SFTP-CLIENT",
                quoted,
                "check the ssh configuration of the user that runs pgark",
            );
        }
        SftpFailure::lost(format!("the connection ended: {quoted}"))
    }
}

#[cfg(test)]
mod tests {
    use super::SftpFailure;

    #[test]
    fn what_ssh_says_becomes_a_code() {
        let cases = [
            (
                "x\r\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\r\nHost key verification failed.",
                "E-SFTP-HOSTKEY",
            ),
            ("No ED25519 host key is known for h and you have requested strict checking.\n", "E-SFTP-HOSTKEY"),
            ("backup@h: Permission denied (publickey).\n", "E-SFTP-AUTH"),
            ("subsystem request failed on channel 0\n", "E-SFTP-SERVER"),
            ("ssh: Could not resolve hostname h: Name or service not known\n", "E-SFTP-UNREACHABLE"),
            ("ssh: connect to host h port 22: Connection refused\n", "E-SFTP-UNREACHABLE"),
            ("command-line: line 0: Bad configuration option: x\n", "E-SFTP-CLIENT"),
            ("client_loop: send disconnect: Broken pipe\n", "E-SFTP-LOST"),
            ("", "E-SFTP-LOST"),
        ];
        for (said, code) in cases {
            assert_eq!(SftpFailure::of_ssh(said).code, code, "{said}");
        }
        let forged = SftpFailure::of_ssh("\u{1b}[2Jevil\n");
        assert!(!forged.message.chars().any(char::is_control), "{forged}");
    }
}

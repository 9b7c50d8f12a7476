//! One connection over TLS, as a browser keeps one open: OpenSSL's client, which shares no code with the server under test.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Ended when it is dropped.
pub struct TlsClient {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl TlsClient {
    /// To `localhost`, with this authority alone. The handshake comes with the first request.
    pub fn connect(address: &str, authority: &Path) -> TlsClient {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "localhost"]);
        command.args(["-servername", "localhost", "-connect", address, "-no-CApath", "-no-CAstore", "-CAfile"]);
        command.arg(authority).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("openssl: run scripts/setup-debian.sh --servers");
        let (requests, answers) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        TlsClient { child, requests, answers: BufReader::new(answers) }
    }

    /// Status, head and body; None when there is no connection, or none any more.
    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Option<(u16, String, String)> {
        let length = body.len();
        let text =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        self.requests.write_all(text.as_bytes()).and_then(|()| self.requests.flush()).ok()?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.answers.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let of = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let length = of("content-length").and_then(|length| length.parse().ok()).expect("an answer has a length");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut body = vec![0; length];
        self.answers.read_exact(&mut body).ok()?;
        Some((status, head, String::from_utf8(body).expect("text")))
    }
}

impl Drop for TlsClient {
    fn drop(&mut self) {
        // One that was refused is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

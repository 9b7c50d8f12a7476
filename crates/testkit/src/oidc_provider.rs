//! A real provider of OpenID Connect on this machine: oidc-provider, which `scripts/setup-debian.sh` installs, with people and
//! groups of its own (`oidc_provider.mjs`); and what a browser does there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::os::Scratch;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/oidc_provider.mjs");
const LIMIT: Duration = Duration::from_secs(60);
/// From the address that somebody is sent to until the way back: more would be a circle.
const STEPS_MAX: usize = 8;

/// Ended when it is dropped.
pub struct OidcProvider {
    child: Child,
    pub issuer: String,
    _home: Scratch,
}

impl OidcProvider {
    /// Its clients are `pgark`, with this secret, and `pgark-public`, without one; both come back to these addresses.
    ///
    /// # Errors
    /// What is not installed.
    pub fn start(secret: &str, redirects: &[String]) -> Result<OidcProvider, String> {
        let root = std::env::var_os("PGARK_TEST_SERVERS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-servers"), PathBuf::from);
        let package = root.join("oidc");
        let package = package.canonicalize().map_err(|e| {
            format!("oidc-provider is not in {}: {e}: run scripts/setup-debian.sh --servers", package.display())
        })?;
        let home = Scratch::new("oidc-provider");
        let mut command = Command::new("node");
        command.arg(SCRIPT).arg(package).arg(secret).args(redirects).env("HOME", home.path());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("node does not start: {e}: run scripts/setup-debian.sh --servers"))?;
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let issuer = lines.next().expect("a line").expect("text");
        // What it says later is not read, and must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        assert!(issuer.starts_with("http://127.0.0.1:"), "the provider does not listen: {issuer}");
        Ok(OidcProvider { child, issuer, _home: home })
    }

    /// What a browser does that is sent there, and signs in with this account: where it is sent back to.
    pub fn sign_in(&self, to: &str, account: &str) -> String {
        let mut cookies = BTreeMap::from([("account".to_owned(), account.to_owned())]);
        let mut at = to.to_owned();
        for _ in 0..STEPS_MAX {
            let path = at.strip_prefix(&self.issuer).unwrap_or_else(|| panic!("{at} is elsewhere"));
            let (head, body) = self.get(path, &cookies);
            let headers = || head.lines().filter_map(|line| line.split_once(": "));
            let of = |name: &'static str| headers().filter(move |(key, _)| key.eq_ignore_ascii_case(name));
            for (_, cookie) in of("set-cookie") {
                let pair = cookie.split(';').next().and_then(|pair| pair.split_once('='));
                let (key, value) = pair.expect("a cookie");
                cookies.insert(key.to_owned(), value.to_owned());
            }
            let (_, next) = of("location").next().unwrap_or_else(|| panic!("{at} leads nowhere: {head}\n{body}"));
            if next.starts_with('/') {
                at = format!("{}{next}", self.issuer);
            } else if next.starts_with(&self.issuer) {
                next.clone_into(&mut at);
            } else {
                return next.to_owned();
            }
        }
        panic!("{to} leads nowhere in {STEPS_MAX} steps");
    }

    fn get(&self, path: &str, cookies: &BTreeMap<String, String>) -> (String, String) {
        let address = self.issuer.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the provider listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let cookies: Vec<String> = cookies.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let cookies = cookies.join("; ");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n")
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    }
}

impl Drop for OidcProvider {
    fn drop(&mut self) {
        // One that ended by itself is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

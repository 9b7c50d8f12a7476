//! Those who are told: an HTTP receiver that keeps what it gets and answers as it is told, a mail server with TLS and passwords,
//! and Alertmanager. All on loopback, ended with their value.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{env, fs};

use serde_json::Value;

use crate::os::{Scratch, run_bounded, wait_until};

const TIMEOUT: Duration = Duration::from_secs(30);
const BODY_BYTES_MAX: u64 = 1 << 20;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON: {e}: {self:?}"))
    }
}

#[derive(Debug, Default)]
struct Kept {
    received: Vec<Received>,
    answers: VecDeque<u16>,
}

/// Answers 202 unless it was told otherwise.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    pub fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let (kept, ended) = (Arc::new(Mutex::new(Kept::default())), Arc::new(AtomicBool::new(false)));
        let (of_thread, stop) = (kept.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that breaks off is none of ours.
                let _ = client.and_then(|client| serve(&client, &of_thread));
            }
        });
        Receiver { address, kept, ended, thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The next requests are answered so.
    pub fn answer(&self, statuses: &[u16]) {
        lock(&self.kept).answers.extend(statuses);
    }

    /// What came since the last time that somebody asked.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut lock(&self.kept).received)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread up; if it has ended, there is nobody to wake.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut client: &TcpStream, kept: &Mutex<Kept>) -> std::io::Result<()> {
    client.set_read_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    if method.is_empty() {
        return Ok(());
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length: u64 = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![];
    reader.take(length.min(BODY_BYTES_MAX)).read_to_end(&mut body)?;
    let status = {
        let mut kept = lock(kept);
        kept.received.push(Received { method, path, headers, body });
        kept.answers.pop_front().unwrap_or(202)
    };
    write!(
        client,
        "HTTP/1.1 {status} Told\r\nContent-Length: 2\r\nLocation: http://127.0.0.1:1/\r\nConnection: close\r\n\r\n{{}}"
    )
}

/// Sends requests that an OpenAPI document allows, and others.
///
/// # Errors
/// When it is not installed, with what to do.
pub fn schemathesis() -> Result<PathBuf, String> {
    place("schemathesis/bin/st")
}

fn place(program: &str) -> Result<PathBuf, String> {
    let root = env::var_os("PGARK_TEST_SERVERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-servers"), PathBuf::from);
    let path = root.join(program);
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not installed: run scripts/setup-debian.sh --servers", path.display()))
    }
}

/// A certificate of `localhost`, its key, and that of who signed it.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

impl Certificate {
    pub fn of_localhost(scratch: &Scratch) -> Certificate {
        let file = |name: &str| scratch.join(name);
        let (authority, authority_key) = (file("ca.pem"), file("ca.key"));
        let (certificate, key, request) = (file("tls.pem"), file("tls.key"), file("tls.csr"));
        let extensions =
            scratch.file("tls.ext", b"subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n", 0o644);
        let text = |path: &Path| path.display().to_string();
        let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!(
            "req -x509 {new_key} -days 2 -subj /CN=pgark-tests -keyout {} -out {}",
            text(&authority_key),
            text(&authority)
        ));
        openssl(&format!("req {new_key} -subj /CN=localhost -keyout {} -out {}", text(&key), text(&request)));
        openssl(&format!(
            "x509 -req -days 2 -in {} -CA {} -CAkey {} -CAcreateserial -extfile {} -out {}",
            text(&request),
            text(&authority),
            text(&authority_key),
            text(&extensions),
            text(&certificate)
        ));
        for path in [&certificate, &key, &authority] {
            crate::os::give_to_postgres(path);
        }
        Certificate { certificate, key, authority }
    }
}

fn openssl(words: &str) {
    let mut command = Command::new("openssl");
    command.args(words.split(' '));
    let made = run_bounded(command, b"", TIMEOUT).expect("openssl");
    assert!(made.status.is_some_and(|s| s.success()), "{words}: {}", String::from_utf8_lossy(&made.stderr));
}

/// A mail as it was taken.
#[derive(Debug, Clone)]
pub struct Mail {
    pub from: String,
    pub to: Vec<String>,
    /// Headers and body, as they came.
    pub text: String,
    pub encrypted: bool,
    pub user: Option<String>,
}

/// A mail server that insists on TLS and on a password.
#[derive(Debug)]
pub struct MailServer {
    pub port: u16,
    taken: PathBuf,
    child: Child,
}

const MAIL_SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/mail_server.py");

impl MailServer {
    /// `wrapped`: TLS from the first byte. It refuses so many mails for the time being before it takes one.
    pub fn start(
        scratch: &Scratch,
        tls: &Certificate,
        wrapped: bool,
        login: (&str, &str),
        refuses: u32,
    ) -> Result<MailServer, String> {
        let python = place("mail/bin/python")?;
        let port = crate::free_port();
        let taken = scratch.join(format!("mails-{port}"));
        let mut command = Command::new(python);
        command.arg(MAIL_SERVER).arg(port.to_string()).arg(&taken).args([&tls.certificate, &tls.key]);
        command.arg(if wrapped { "wrapped" } else { "starttls" }).args([login.0, login.1]).arg(refuses.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|e| e.to_string())?;
        let server = MailServer { port, taken, child };
        wait_until("the mail server listens", TIMEOUT, || TcpStream::connect(("127.0.0.1", port)).ok());
        Ok(server)
    }

    pub fn mails(&self) -> Vec<Mail> {
        let text = fs::read_to_string(&self.taken).unwrap_or_default();
        let mail = |line: &str| {
            let v: Value = serde_json::from_str(line).expect("a line of the mail server");
            Mail {
                from: v["from"].as_str().unwrap_or_default().to_owned(),
                to: v["to"].as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
                text: v["text"].as_str().unwrap_or_default().to_owned(),
                encrypted: v["encrypted"] == true,
                user: v["user"].as_str().map(str::to_owned),
            }
        };
        text.lines().map(mail).collect()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ALERTMANAGER: &str = "/usr/bin/prometheus-alertmanager";

/// Debian's Alertmanager, which tells a webhook.
#[derive(Debug)]
pub struct Alertmanager {
    address: SocketAddr,
    child: Child,
}

impl Alertmanager {
    pub fn start(scratch: &Scratch, webhook: &str) -> Result<Alertmanager, String> {
        let program = Path::new(ALERTMANAGER);
        if !program.exists() {
            return Err(format!("{ALERTMANAGER} is not installed: run scripts/setup-debian.sh --servers"));
        }
        let port = crate::free_port();
        let config = scratch.join(format!("alertmanager-{port}.yml"));
        let text = format!(
            "route:\n  receiver: hook\n  group_by: ['...']\n  group_wait: 0s\n  group_interval: 1s\n\
             receivers:\n- name: hook\n  webhook_configs:\n  - url: '{webhook}'\n    send_resolved: true\n"
        );
        fs::write(&config, text).map_err(|e| e.to_string())?;
        let log = fs::File::create(scratch.join(format!("alertmanager-{port}.log"))).map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.path={}", scratch.join(format!("alertmanager-{port}")).display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--cluster.listen-address=");
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        let child = command.spawn().map_err(|e| e.to_string())?;
        let server = Alertmanager { address: SocketAddr::from(([127, 0, 0, 1], port)), child };
        wait_until("Alertmanager is ready", TIMEOUT, || server.get("/-/ready").filter(|a| a.contains(" 200 ")));
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has at this moment.
    pub fn alerts(&self) -> Vec<Value> {
        let answer = self.get("/api/v2/alerts").unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        serde_json::from_str::<Value>(&body).ok().and_then(|v| v.as_array().cloned()).unwrap_or_default()
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

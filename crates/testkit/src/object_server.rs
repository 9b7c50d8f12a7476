//! Real object stores on this machine: moto and s3s-fs speak S3, azurite speaks Azure's protocol.
//! `scripts/setup-debian.sh` installs them; each test starts its own, on loopback, with a bucket of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use crate::os::{Scratch, run_bounded, wait_until};

pub const BUCKET: &str = "backups";
const START_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectServerKind {
    /// S3 with versions and object lock; does not check signatures.
    Moto,
    /// S3 with signatures; no versions.
    S3s,
    Azurite,
    /// Google's XML API, by a fake of ours: none of the emulators that can be installed speaks it whole.
    Gcs,
}

/// A running server; ended when dropped.
#[derive(Debug)]
pub struct ObjectServer {
    kind: ObjectServerKind,
    address: SocketAddr,
    child: Child,
    _scratch: Scratch,
}

impl ObjectServer {
    /// Starts one, or says why it cannot be had.
    pub fn start(kind: ObjectServerKind) -> Result<ObjectServer, String> {
        ObjectServer::start_with(kind, "")
    }

    /// moto with a bucket that keeps versions and can lock them.
    pub fn start_locking() -> Result<ObjectServer, String> {
        ObjectServer::start_with(ObjectServerKind::Moto, "x-amz-bucket-object-lock-enabled: true\r\n")
    }

    fn start_with(kind: ObjectServerKind, bucket_headers: &str) -> Result<ObjectServer, String> {
        let program = program(kind)?;
        let scratch = Scratch::new("objects");
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let data = scratch.path().join("data");
        fs::create_dir_all(data.join(BUCKET)).map_err(|e| e.to_string())?;
        let log = fs::File::create(scratch.path().join("server.log")).map_err(|e| e.to_string())?;
        let mut command = Command::new(&program);
        match kind {
            ObjectServerKind::Moto => command.args(["-H", "127.0.0.1", "-p", &port.to_string()]),
            ObjectServerKind::S3s => command
                .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--access-key", ACCESS_KEY])
                .args(["--secret-key", SECRET_KEY])
                .arg(&data),
            ObjectServerKind::Azurite => command
                .args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"])
                .args(["--blobPort", &port.to_string(), "-l"])
                .arg(&data),
            ObjectServerKind::Gcs => command.arg(GCS_FAKE).args([&port.to_string(), BUCKET]),
        };
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        let child = command.spawn().map_err(|e| format!("{}: {e}", program.display()))?;
        let server = ObjectServer { kind, address, child, _scratch: scratch };
        wait_until("the object server listens", START_TIMEOUT, || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
        });
        server.make_bucket(bucket_headers);
        Ok(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A repository URL whose requests go to `address`: this server's own, or that of a proxy before it.
    pub fn url_by(&self, address: SocketAddr, prefix: &str, more: &str) -> String {
        match self.kind {
            ObjectServerKind::Azurite => {
                format!("az://{BUCKET}/{prefix}?emulator=true&endpoint=http://{address}/devstoreaccount1{more}")
            }
            ObjectServerKind::Gcs => format!("gs://{BUCKET}/{prefix}?endpoint=http://{address}{more}"),
            _ => format!("s3://{BUCKET}/{prefix}?endpoint=http://{address}&region=us-east-1{more}"),
        }
    }

    pub fn url(&self, prefix: &str) -> String {
        self.url_by(self.address, prefix, "")
    }

    /// Variables that give access.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs: &[(&str, &str)] = match self.kind {
            ObjectServerKind::Azurite => &[],
            ObjectServerKind::Gcs => &[("GOOGLE_SERVICE_ACCOUNT_KEY", GCS_ACCOUNT)],
            _ => &[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)],
        };
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    /// Stops answering at once, as a machine that loses power.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Moves an object of moto's into a class that must be thawed, as a rule of the bucket would.
    pub fn archive(&self, key: &str) {
        let headers = format!("x-amz-copy-source: /{BUCKET}/{key}\r\nx-amz-storage-class: GLACIER\r\n");
        let (status, answer) = self.ask(&format!("PUT /{BUCKET}/{key}"), &headers, "");
        assert_eq!(status, 200, "{answer}");
    }

    /// Of all objects that begin so, in moto.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let (status, answer) = self.ask(&format!("GET /{BUCKET}?list-type=2&prefix={prefix}"), "", "");
        assert_eq!(status, 200, "{answer}");
        let found = answer.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        found.map(|(key, _)| key.to_owned()).collect()
    }

    /// Makes an archived object readable; moto does at once what takes hours elsewhere.
    pub fn thaw(&self, key: &str) {
        let body = "<RestoreRequest><Days>1</Days></RestoreRequest>";
        let (status, answer) = self.ask(&format!("POST /{BUCKET}/{key}?restore"), "", body);
        assert!((200..300).contains(&status), "{answer}");
    }

    fn make_bucket(&self, headers: &str) {
        match self.kind {
            // A directory is a bucket; the fake is told its name.
            ObjectServerKind::S3s | ObjectServerKind::Gcs => {}
            ObjectServerKind::Moto => {
                let answer = request(self.address, &format!("PUT /{BUCKET}"), headers, "").expect("moto answers");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
            ObjectServerKind::Azurite => {
                let mut python = Command::new("python3");
                python.args(["-c", MAKE_CONTAINER, &self.address.to_string(), BUCKET]);
                let output = run_bounded(python, b"", START_TIMEOUT).expect("python3 runs");
                assert!(output.status.is_some_and(|s| s.success()), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        self.kill();
    }
}

const ACCESS_KEY: &str = "test-access-key";
const SECRET_KEY: &str = "test-secret-key-of-no-value";

/// Creates a container: "Create Container" of the Blob service, signed with the emulator's published key.
const MAKE_CONTAINER: &str = r#"
import base64, hashlib, hmac, sys, urllib.request
from email.utils import formatdate
address, name = sys.argv[1:3]
account = "devstoreaccount1"
key = base64.b64decode("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
date = formatdate(usegmt=True)
text = "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:%s\nx-ms-version:2021-08-06\n/%s/%s/%s\nrestype:container" % (date, account, account, name)
signature = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
request = urllib.request.Request("http://%s/%s/%s?restype=container" % (address, account, name), method="PUT", headers={
    "x-ms-date": date, "x-ms-version": "2021-08-06", "Content-Length": "0",
    "Authorization": "SharedKey %s:%s" % (account, signature)})
urllib.request.urlopen(request, timeout=20)
"#;

const GCS_FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gcs_fake.py");
/// A service account that asks nobody for tokens.
const GCS_ACCOUNT: &str = r#"{"disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}"#;

fn program(kind: ObjectServerKind) -> Result<PathBuf, String> {
    let root = env::var_os("PGARK_TEST_SERVERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-servers"), PathBuf::from);
    let place = match kind {
        ObjectServerKind::Moto => "moto/bin/moto_server",
        ObjectServerKind::S3s => "s3s/bin/s3s-fs",
        ObjectServerKind::Azurite => "azurite/node_modules/.bin/azurite-blob",
        ObjectServerKind::Gcs => return Ok("python3".into()),
    };
    let path = root.join(place);
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not installed: run scripts/setup-debian.sh", path.display()))
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn request(to: SocketAddr, first: &str, headers: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let length = body.len();
    write!(
        stream,
        "{first} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// One version of an object, or a delete marker, as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVersion {
    pub key: String,
    pub id: String,
    pub is_marker: bool,
}

/// What somebody can do who has the credentials of the backup host. For moto, which asks for no signature.
impl ObjectServer {
    fn ask(&self, first: &str, headers: &str, body: &str) -> (u16, String) {
        // moto takes any signature, and tells requests without one from those of the bucket's owner.
        let owner = "Authorization: AWS4-HMAC-SHA256 Credential=test-access-key/20260101/us-east-1/s3/aws4_request, \
                     SignedHeaders=host, Signature=0\r\n";
        let answer = request(self.address, first, &format!("{owner}{headers}"), body).expect("the server answers");
        let status = answer.split_whitespace().nth(1).and_then(|s| s.parse().ok());
        (status.unwrap_or_else(|| panic!("no status in {answer}")), answer)
    }

    /// Everything that the bucket keeps.
    pub fn versions(&self) -> Vec<StoredVersion> {
        let (status, answer) = self.ask(&format!("GET /{BUCKET}?versions&max-keys=100000"), "", "");
        assert!(status == 200 && answer.contains("<IsTruncated>false"), "{answer}");
        let element = |text: &str, name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {text}"));
            rest.split_once("</").expect("its end").0.to_owned()
        };
        let mut found = vec![];
        for (tag, is_marker) in [("Version", false), ("DeleteMarker", true)] {
            for entry in answer.split(&format!("<{tag}>")).skip(1) {
                found.push(StoredVersion { key: element(entry, "Key"), id: element(entry, "VersionId"), is_marker });
            }
        }
        found
    }

    /// Removes one version for good; gives the status.
    pub fn delete_version(&self, version: &StoredVersion) -> u16 {
        self.ask(&format!("DELETE /{BUCKET}/{}?versionId={}", version.key, version.id), "", "").0
    }

    /// As every tool deletes: by name.
    pub fn delete(&self, key: &str) -> u16 {
        self.ask(&format!("DELETE /{BUCKET}/{key}"), "", "").0
    }

    pub fn overwrite(&self, key: &str, content: &str) -> u16 {
        self.ask(&format!("PUT /{BUCKET}/{key}"), "", content).0
    }

    /// What the store says of the lock of a version: its mode and date.
    pub fn lock_of(&self, version: &StoredVersion) -> Option<(String, String)> {
        let (status, answer) = self.ask(&format!("HEAD /{BUCKET}/{}?versionId={}", version.key, version.id), "", "");
        assert_eq!(status, 200, "{answer}");
        let header = |name: &str| {
            let line = answer.lines().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        header("x-amz-object-lock-mode").zip(header("x-amz-object-lock-retain-until-date"))
    }
}

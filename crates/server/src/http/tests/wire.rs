//! Over real connections on the loopback: what large, slow and many clients get, TLS, certificates, the end of the server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::*;
use crate::http::tls::TlsFiles;
use crate::jobs::{JobState, Program};
use crate::notify::Manager;
use crate::serve::{self, CertificateRule, Options, Signals, WebConfig};

const LIMIT: Duration = Duration::from_secs(60);

fn quick() -> Times {
    let short = Duration::from_millis(300);
    Times { handshake: short, head: short, body: short, taken: Duration::from_secs(30), end: Duration::from_secs(10) }
}

fn served(bench: &Bench, times: Times) -> Serving {
    let listen = "127.0.0.1:0".parse().expect("an address");
    let Api { state, config, lookups, .. } = bench.api.clone();
    Serving::start_in_time(listen, state, config, lookups, times).expect("it listens")
}

fn connect(serving: &Serving) -> TcpStream {
    let stream = TcpStream::connect(serving.address()).expect("the server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    stream
}

/// Everything until the other end closes.
fn answer_of(mut stream: impl Read) -> (u16, Value) {
    let mut bytes = vec![];
    // A server that does not read on resets the connection after its answer.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or(Value::String(text.into_owned())))
}

fn asked(mut stream: impl Read + Write, head: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let text = format!("{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    // What is refused before all of it was read cannot be sent to its end.
    let _ = stream.write_all(text.as_bytes());
    answer_of(stream)
}

fn is_told(found: &(u16, Value), status: u16, code: &str) {
    assert_eq!((found.0, &found.1["error"]["code"]), (status, &json!(code)), "{}", found.1);
    assert!(found.1["error"]["hint"].is_string(), "{}", found.1);
}

#[test]
fn large_and_slow_clients_are_told_so_and_hold_nobody_up() {
    let bench = bench("large-slow");
    let serving = served(&bench, quick());
    let ask = |head: &str, body: &str| asked(connect(&serving), head, body);
    assert_eq!(ask("GET /health/live HTTP/1.1", "").0, 200);
    // Large: the address, the head, many heads, the body, with its length and without.
    is_told(&ask(&format!("GET /{} HTTP/1.1", "x".repeat(5000)), ""), 404, "E-NOT-FOUND");
    is_told(&ask(&format!("GET /health/live?{} HTTP/1.1", "x".repeat(5000)), ""), 414, "E-REQUEST-SIZE");
    is_told(&ask(&format!("GET /health/live HTTP/1.1\r\nX-A: {}", "x".repeat(20_000)), ""), 431, "E-REQUEST-SIZE");
    assert_eq!(ask(&format!("GET /health/live HTTP/1.1{}", "\r\nX-A: x".repeat(100)), "").0, 431);
    assert_eq!(ask(&format!("GET /health/live HTTP/1.1\r\nX-A: {}", "x".repeat(200_000)), "").0, 431);
    let body = "x".repeat(BODY_BYTES_MAX + 1);
    is_told(&ask("POST /api/v1/session HTTP/1.1", &body), 413, "E-REQUEST-SIZE");
    let chunks: String = (0..70).map(|_| format!("400\r\n{}\r\n", "x".repeat(1024))).collect();
    let mut stream = connect(&serving);
    let head = "POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let _ = write!(stream, "{head}{chunks}0\r\n\r\n").and_then(|()| stream.shutdown(Shutdown::Write));
    is_told(&answer_of(stream), 413, "E-REQUEST-SIZE");
    // Slow: half a head, half a body. Nothing at all is merely closed.
    let mut stream = connect(&serving);
    write!(stream, "GET /health/live HTTP/1.1\r\nHost: loc").expect("sent");
    is_told(&answer_of(stream), 408, "E-REQUEST-TIME");
    let mut stream = connect(&serving);
    write!(
        stream,
        "POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{{"
    )
    .expect("sent");
    is_told(&answer_of(stream), 408, "E-REQUEST-TIME");
    assert_eq!(answer_of(connect(&serving)), (0, json!("")));
    // What is no HTTP, no known version, and no path that leads anywhere.
    for (head, status) in [
        ("nonsense", 400),
        ("GET / HTTP/9.9", 400),
        ("TRACE /health/live HTTP/1.1", 405),
        ("GET /api/v1/../../etc/passwd HTTP/1.1", 404),
        ("GET /api/v1/jobs/..%2f..%2fserver.sqlite HTTP/1.1", 404),
        ("GET //health/live HTTP/1.1", 404),
        ("GET /health/live/ HTTP/1.1", 404),
        ("GET /health/live HTTP/1.1\r\nHost: evil.example", 421),
    ] {
        assert_eq!(ask(head, "").0, status, "{head}");
    }
    assert_eq!(ask("GET /health/live HTTP/1.1", "").0, 200);
}

#[test]
fn a_flood_is_turned_away_and_passes() {
    let bench = bench("flood");
    let mut config = (*bench.api.config.get()).clone();
    config.web.requests_per_second = 2;
    bench.api.config.set(config);
    let serving = served(&bench, Times::default());
    let statuses: Vec<u16> = (0..20).map(|_| asked(connect(&serving), "GET /health/live HTTP/1.1", "").0).collect();
    let turned_away = statuses.iter().filter(|s| **s == 429).count();
    assert!(statuses.starts_with(&[200; 10]) && turned_away > 0, "{statuses:?}");
    let found = loop {
        let found = asked(connect(&serving), "GET /health/live HTTP/1.1", "");
        if found.0 != 429 {
            break found;
        }
        is_told(&found, 429, "E-REQUEST-RATE");
    };
    assert_eq!(found.0, 200, "it passes by itself");
    // Connections that say nothing have places of their own number, and give them back.
    let silent: Vec<TcpStream> = (0..256).map(|_| connect(&serving)).collect();
    is_told(&answer_of(connect(&serving)), 503, "E-SERVER-BUSY");
    drop(silent);
    let begun = Instant::now();
    while !matches!(asked(connect(&serving), "GET /health/live HTTP/1.1", "").0, 200 | 429) {
        assert!(begun.elapsed() < LIMIT, "the places do not come back");
    }
}

#[test]
fn what_was_asked_is_answered_when_the_server_ends() {
    let bench = bench("ends");
    let serving = served(&bench, Times::default());
    let admin = bench.token(Role::Admin, None);
    let mut waiting = connect(&serving);
    write!(
        waiting,
        "POST /api/backups/create-sync HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {admin}\r\nContent-Length: 0\r\n\r\n"
    )
    .expect("sent");
    let job = loop {
        let all = bench.api.state.jobs(&crate::state::Filter { limit: 1, ..Default::default() }).expect("listed");
        if let Some(job) = all.into_iter().next() {
            break job;
        }
        std::thread::yield_now();
    };
    let idle = connect(&serving);
    let mut listening = connect(&serving);
    write!(listening, "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {admin}\r\n\r\n")
        .expect("sent");
    let mut head = [0; 12];
    listening.read_exact(&mut head).expect("it is heard");
    assert_eq!(&head, b"HTTP/1.1 200");
    let ending = std::thread::spawn(move || drop(serving));
    bench.api.state.cancel_job(&job.id, Timestamp::now()).expect("cancelled");
    let found = answer_of(waiting);
    assert_eq!((found.0, &found.1["error"]["code"]), (500, &json!("E-JOB-FAILED")), "{}", found.1);
    assert_eq!(answer_of(idle).0, 0);
    // A stream of events would go on for minutes: it ends with its last line.
    let mut rest = String::new();
    listening.read_to_string(&mut rest).expect("it ends");
    assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
    ending.join().expect("it ended");
}

/// An authority, and what it signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key.
    pub(super) fn sign(&self, common_name: &str, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params =
            CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }
}

pub(super) fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

fn client(roots: &Authority, own: Option<&(String, String)>) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from_pem_slice(roots.pem.as_bytes()).expect("PEM")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let config = config.with_root_certificates(store);
    Arc::new(match own {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
            config
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"))
                .expect("both")
        }
    })
}

type Secret = StreamOwned<ClientConnection, TcpStream>;

fn handshaken(serving: &Serving, client: &Arc<ClientConfig>) -> Result<Secret, String> {
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::clone(client), name).expect("a connection");
    let mut stream = StreamOwned::new(connection, connect(serving));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|e| e.to_string())?;
    }
    Ok(stream)
}

fn ask_tls(serving: &Serving, client: &Arc<ClientConfig>, head: &str) -> Result<(u16, Value), String> {
    match asked(handshaken(serving, client)?, head, "") {
        (0, why) => Err(why.to_string()),
        found => Ok(found),
    }
}

#[test]
fn under_tls_large_slow_and_many_clients_get_no_further() {
    let bench = bench("tls-limits");
    let ca = Authority::new("ours");
    let (certificate, key) = ca.sign("server", &["localhost"]);
    let files = TlsFiles {
        certificate: bench.scratch.file("server.crt", certificate.as_bytes(), 0o644),
        key: bench.scratch.file("server.key", key.as_bytes(), 0o600),
        client_ca: None,
        client_required: false,
    };
    bench.with(|config| config.tls = Some(files));
    let client = client(&ca, None);
    let (second, defaults) = (Duration::from_secs(1), Times::default());
    let serving = served(&bench, Times { head: second, body: second, ..defaults });
    let open = || handshaken(&serving, &client).expect("TLS");
    let ask = |head: &str, body: &str| asked(open(), head, body);
    assert_eq!(ask("GET /health/live HTTP/1.1", "").0, 200);
    is_told(&ask(&format!("GET /health/live?{} HTTP/1.1", "x".repeat(5000)), ""), 414, "E-REQUEST-SIZE");
    is_told(&ask(&format!("GET /health/live HTTP/1.1\r\nX-A: {}", "x".repeat(20_000)), ""), 431, "E-REQUEST-SIZE");
    is_told(&ask("POST /api/v1/session HTTP/1.1", &"x".repeat(BODY_BYTES_MAX + 1)), 413, "E-REQUEST-SIZE");
    // Half a head, half a body; after the handshake nothing; half a handshake.
    let half = |text: &str| {
        let mut stream = open();
        stream.write_all(text.as_bytes()).expect("sent");
        answer_of(stream)
    };
    is_told(&half("GET /health/live HTTP/1.1\r\nHost: loc"), 408, "E-REQUEST-TIME");
    let head = "POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10\r\n\r\n";
    is_told(&half(&format!("{head}{{")), 408, "E-REQUEST-TIME");
    assert_eq!(answer_of(open()), (0, json!("")));
    drop(serving);
    let serving = served(&bench, quick());
    let mut stream = connect(&serving);
    // A record that says that more of a ClientHello comes (RFC 8446, 5.1).
    stream.write_all(&[22, 3, 1, 2, 0, 1]).expect("sent");
    assert_eq!(answer_of(stream), (0, json!("")));
    drop(serving);

    // Many requests; many connections that never shake hands, and give their places back.
    bench.with(|config| config.web.requests_per_second = 2);
    let serving = served(&bench, defaults);
    let live = "GET /health/live HTTP/1.1";
    let found = (0..20).map(|_| ask_tls(&serving, &client, live).expect("TLS")).find(|found| found.0 == 429);
    is_told(&found.expect("it is turned away"), 429, "E-REQUEST-RATE");
    let silent: Vec<TcpStream> = (0..256).map(|_| connect(&serving)).collect();
    assert!(handshaken(&serving, &client).is_err());
    drop(silent);
    let begun = Instant::now();
    while handshaken(&serving, &client).is_err() {
        assert!(begun.elapsed() < LIMIT, "the places do not come back");
    }
}

#[test]
fn certificates_are_asked_for_compared_mapped_and_exchanged() {
    let bench = bench("tls");
    let (ca, others) = (Authority::new("ours"), Authority::new("others"));
    let at = |name: &str| bench.scratch.join(name);
    let (certificate, key) = ca.sign("server", &["localhost"]);
    std::fs::write(at("server.crt"), &certificate).expect("written");
    write_private(&at("server.key"), &key);
    std::fs::write(at("clients.crt"), &ca.pem).expect("written");
    let files = TlsFiles {
        certificate: at("server.crt"),
        key: at("server.key"),
        client_ca: Some(at("clients.crt")),
        client_required: false,
    };
    let rule = |subject: &str, cluster: Option<&str>| CertificateRule {
        subject: subject.into(),
        role: Role::Viewer,
        cluster: cluster.map(str::to_owned),
    };
    let mut config = (*bench.api.config.get()).clone();
    config.tls = Some(files.clone());
    config.web = WebConfig { certificates: vec![rule("CN=prometheus,O=Example", Some("a"))], ..WebConfig::default() };
    bench.api.config.set(config.clone());
    let serving = served(&bench, quick());
    let me = "GET /api/v1/me HTTP/1.1";
    // In the clear there is no answer; a client that says nothing is not waited for.
    assert_eq!(asked(connect(&serving), me, "").0, 0);
    assert_eq!(answer_of(connect(&serving)).0, 0);
    // Without a certificate a token is needed; with one that is mapped none; one that is not mapped is nobody.
    let known = ca.sign("prometheus", &[]);
    assert_eq!(ask_tls(&serving, &client(&ca, None), me).expect("TLS").0, 401);
    let (status, value) = ask_tls(&serving, &client(&ca, Some(&known)), me).expect("TLS");
    assert_eq!((status, &value["role"], &value["cluster"]), (200, &json!("viewer"), &json!("a")), "{value}");
    let post = "POST /api/v1/clusters/a/jobs HTTP/1.1";
    assert_eq!(ask_tls(&serving, &client(&ca, Some(&known)), post).expect("TLS").0, 403);
    assert_eq!(ask_tls(&serving, &client(&ca, Some(&known)), "GET /api/v1/clusters/b HTTP/1.1").expect("TLS").0, 404);
    // A browser sends it by itself, whoever's page asks for it.
    let from_a_page = format!("{post}\r\nSec-Fetch-Site: cross-site");
    let found = ask_tls(&serving, &client(&ca, Some(&known)), &from_a_page).expect("TLS");
    assert_eq!(found.1["error"]["code"], "E-ORIGIN", "{}", found.1);
    assert_eq!(ask_tls(&serving, &client(&ca, Some(&ca.sign("stranger", &[]))), me).expect("TLS").0, 401);
    // Signed by somebody else: no connection. And the client does not take a server of somebody else's.
    ask_tls(&serving, &client(&ca, Some(&others.sign("prometheus", &[]))), me).expect_err("not one of ours");
    ask_tls(&serving, &client(&others, None), me).expect_err("not the one that is trusted");
    // A token over TLS; an origin in the clear is another one.
    let admin = bench.token(Role::Admin, None);
    let bearer = format!("{me}\r\nAuthorization: Bearer {admin}");
    assert_eq!(ask_tls(&serving, &client(&ca, None), &bearer).expect("TLS").0, 200);
    let origin = |scheme: &str| format!("{bearer}\r\nOrigin: {scheme}://localhost");
    assert_eq!(ask_tls(&serving, &client(&ca, None), &origin("https")).expect("TLS").0, 200);
    assert_eq!(ask_tls(&serving, &client(&ca, None), &origin("http")).expect("TLS").0, 403);
    // What is wrong changes nothing; what is right counts for the next connection.
    let (next, next_key) = others.sign("server", &["localhost"]);
    std::fs::write(at("server.crt"), &next).expect("written");
    let why = serving.reload(&config).expect_err("the key is of another one");
    assert!(why.contains("do not go together"), "{why}");
    assert_eq!(ask_tls(&serving, &client(&ca, None), me).expect("the old one").0, 401);
    write_private(&at("server.key"), &next_key);
    serving.reload(&config).expect("both are right");
    assert_eq!(ask_tls(&serving, &client(&others, None), me).expect("the new one").0, 401);
    serving.reload(&Config { tls: None, ..config.clone() }).expect_err("not while it runs");
    // Required: nobody without one gets to ask.
    let required = TlsFiles { client_required: true, ..files.clone() };
    serving.reload(&Config { tls: Some(required), ..config }).expect("right");
    ask_tls(&serving, &client(&others, None), me).expect_err("without a certificate");
    assert_eq!(ask_tls(&serving, &client(&others, Some(&known)), me).expect("with one").0, 200);
    // Files that cannot be.
    std::fs::set_permissions(at("server.key"), std::fs::Permissions::from_mode(0o644)).expect("mode");
    assert!(matches!(tls::load(&files), Err(TlsError::Mode(_))));
    write_private(&at("server.key"), "no key");
    assert!(matches!(tls::load(&files), Err(TlsError::Content(..))));
    let absent = TlsFiles { certificate: at("absent"), ..files };
    assert!(matches!(tls::load(&absent), Err(TlsError::File { .. })));
}

/// Also when a test fails.
struct Ends<'a>(&'a Signals);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end.store(2, Ordering::SeqCst);
    }
}

#[test]
fn a_disk_that_takes_nothing_ends_no_server() {
    let bench = bench("unwritable");
    let state = &bench.api.state;
    let earlier = Timestamp::now() - jiff::SignedDuration::from_mins(5);
    let (token, _) = state.create_token("t", Role::Admin, None, None, earlier).expect("made");
    let hours = jiff::SignedDuration::from_hours(1);
    let (session, _) = state.sign_in_by_token(token.expose(), hours, earlier).expect("asked").expect("signed in");
    let serving = served(&bench, Times::default());
    let program = Program { binary: "/bin/false".into(), words: vec![], settings: Shared::default() };
    let options = Options { program, running_max: 1, drain: Duration::ZERO };
    let signals = Signals::default();
    let until = |is: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !is() {
            assert!(begun.elapsed() < LIMIT, "it does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let ready = || asked(connect(&serving), "GET /health/ready HTTP/1.1", "");
    assert_eq!(ready().0, 200);
    state.takes_nothing(true);
    let left = std::thread::scope(|scope| {
        let _ends = Ends(&signals);
        let run = || {
            let (mut manager, mut reload) = (Manager::default(), || Err("not asked for".to_owned()));
            serve::run(state, &bench.api.config, &options, &signals, &serving, &mut manager, &mut reload)
        };
        let running = scope.spawn(run);
        until(&|| ready().0 == 503);
        is_told(&ready(), 503, "E-SERVER-STATE");
        // Who asks is told what is known, and that nothing is accepted; nothing is left of that.
        let bearer = format!("Authorization: Bearer {}", token.expose());
        let cookie = format!("Cookie: pgark_session={}", session.expose());
        for who in [&bearer, &cookie] {
            let found = asked(connect(&serving), &format!("GET /api/v1/clusters HTTP/1.1\r\n{who}"), "");
            assert_eq!((found.0, &found.1["clusters"][0]["name"]), (200, &json!("a")), "{}", found.1);
        }
        let post = format!("POST /api/v1/clusters/a/jobs HTTP/1.1\r\n{bearer}");
        let refused = asked(connect(&serving), &post, r#"{"job": "check"}"#);
        is_told(&refused, 503, "E-SERVER-STATE");
        assert!(refused.1["error"]["message"].as_str().is_some_and(|m| m.contains("disk")), "{}", refused.1);
        let jobs = std::fs::read_dir(state.dir().join("jobs")).map_or(0, Iterator::count);
        assert_eq!(jobs, 0);
        assert!(!running.is_finished());
        // It goes on when there is room.
        state.takes_nothing(false);
        let (status, job) = asked(connect(&serving), &post, r#"{"job": "check"}"#);
        assert_eq!(status, 202, "{job}");
        let id = job["id"].as_str().expect("an id").to_owned();
        until(&|| state.job(&id).expect("there").state == JobState::Failed);
        signals.end.store(1, Ordering::SeqCst);
        running.join().expect("it does not panic")
    });
    assert_eq!(left.expect("it was told to end"), 0);
}

//! Signing in by a provider of OpenID Connect that means no good, in every way that it can; and what a browser sends back that
//! should not. That a real one signs people in is in `crates/cli/tests/it/oidc.rs`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::wire::Authority;
use super::*;
use crate::access::Role;
use crate::http::tls::TlsFiles;
use crate::oidc::{GroupRule, OidcConfig};

const CLIENT: &str = "pgark";
const SECRET: &str = "canary of the client";
const CODE: &str = "canary of a code";

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn new_key() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key")
}

/// What the provider answers, each changed by the test as it likes.
struct Answers {
    discovery: Value,
    keys: Value,
    token: (u16, String),
    /// What was sent for a token last.
    asked: String,
}

/// Listens until the test ends.
struct Provider {
    issuer: String,
    answers: Arc<Mutex<Answers>>,
}

impl Provider {
    fn start() -> Provider {
        Provider::listening("http", None)
    }

    /// With a certificate of this authority for these names.
    fn over_tls(bench: &Bench, ca: &Authority, names: &[&str]) -> Provider {
        let (certificate, key) = ca.sign("provider", names);
        let files = TlsFiles {
            certificate: bench.scratch.file("provider.crt", certificate.as_bytes(), 0o644),
            key: bench.scratch.file("provider.key", key.as_bytes(), 0o600),
            client_ca: None,
            client_required: false,
        };
        Provider::listening("https", Some(tls::load(&files).expect("both are right")))
    }

    fn listening(scheme: &str, tls: Option<Arc<ServerConfig>>) -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let issuer = format!("{scheme}://{}", listener.local_addr().expect("an address"));
        let discovery = json!({"issuer": issuer, "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"), "jwks_uri": format!("{issuer}/keys"),
            "end_session_endpoint": format!("{issuer}/end?theme=dark"),
            "response_types_supported": ["code"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["none", "HS256", "ES256"]});
        let answers =
            Answers { discovery, keys: json!({"keys": []}), token: (500, String::new()), asked: String::new() };
        let answers = Arc::new(Mutex::new(answers));
        let shared = Arc::clone(&answers);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who hangs up is not waited for.
                let _ = match &tls {
                    None => served(stream, &shared),
                    Some(tls) => {
                        let connection = ServerConnection::new(Arc::clone(tls)).expect("a connection");
                        served(StreamOwned::new(connection, stream), &shared)
                    }
                };
            }
        });
        Provider { issuer, answers }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().expect("unlocked")
    }

    fn publish(&self, kid: &str, key: &EcdsaKeyPair) {
        let point = key.public_key().as_ref();
        let (x, y) = (base64(&point[1..33]), base64(&point[33..65]));
        let key = json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": x, "y": y});
        self.answers().keys = json!({"keys": [key]});
    }

    fn gives(&self, id_token: &str) {
        let answer = json!({"access_token": "a", "token_type": "Bearer", "id_token": id_token});
        self.answers().token = (200, answer.to_string());
    }
}

fn served(stream: impl Read + Write, answers: &Mutex<Answers>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, body) = {
        let mut answers = answers.lock().expect("unlocked");
        match head.split(' ').nth(1).unwrap_or_default() {
            "/.well-known/openid-configuration" => (200, answers.discovery.to_string()),
            "/keys" => (200, answers.keys.to_string()),
            "/token" => {
                answers.asked = format!("{head}\n{}", String::from_utf8_lossy(&body));
                answers.token.clone()
            }
            _ => (404, String::new()),
        }
    };
    // A redirect leads to where the token would be.
    write!(
        reader.get_mut(),
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nLocation: /keys\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn signed(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let text = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    let signature = base64(sign(text.as_bytes()));
    format!("{text}.{signature}")
}

fn by_key(kid: &str, key: &EcdsaKeyPair, claims: &Value) -> String {
    let sign = |text: &[u8]| key.sign(&SystemRandom::new(), text).expect("signed").as_ref().to_vec();
    signed(&json!({"alg": "ES256", "typ": "JWT", "kid": kid}), claims, sign)
}

/// A sign-in that has begun: what the provider was told, and what the browser keeps.
struct Begun {
    query: Vec<(String, String)>,
    cookie: String,
}

impl Begun {
    fn has(&self, name: &str) -> &str {
        self.query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// Somebody who signs in, each from an address of their own, so that nobody is slowed down.
struct Visit<'a> {
    bench: &'a Bench,
    peer: Peer,
}

impl Visit<'_> {
    fn answer(&self, path: &str, query: &str, cookie: &str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("127.0.0.1:7432"));
        headers.insert("cookie", cookie.parse().expect("a header"));
        let uri: Uri = format!("/x?{query}").parse().expect("a query");
        match answer(&self.bench.api, &self.peer, route("GET", path), vec![], &uri, &headers, b"") {
            Ok(made) => made,
            Err(problem) => page::problem(&problem, &uri),
        }
    }

    fn begin(&self, next: &str) -> Begun {
        let Answer::Goto { to, cookies } = self.answer("/sign-in/oidc", &format!("next={next}"), "") else {
            panic!("not sent to the provider")
        };
        let (_, query) = to.split_once('?').expect("a query");
        let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        assert!(cookies[0].ends_with("; Path=/sign-in/oidc; HttpOnly; SameSite=Lax; Max-Age=600"), "{cookies:?}");
        let cookie = cookies[0].split(';').next().expect("a pair").to_owned();
        Begun { query, cookie }
    }

    /// The code of what is wrong, and the page.
    fn refused(&self, path: &str, query: &str, cookie: &str) -> (String, String) {
        let Answer::Page { status, html, cookies } = self.answer(path, query, cookie) else { panic!("no page") };
        assert!(status.as_u16() >= 400 && !cookies.iter().any(|c| c.starts_with("pgark_session=")), "{status} {html}");
        for secret in [SECRET, CODE] {
            assert!(!html.contains(secret), "{html}");
        }
        let code = html.split_once("<strong>E-").and_then(|(_, rest)| rest.split_once('<'));
        (format!("E-{}", code.expect("a code").0), html)
    }

    fn returned(&self, begun: &Begun) -> String {
        self.refused("/sign-in/oidc/callback", &back(begun), &begun.cookie).0
    }
}

fn back(begun: &Begun) -> String {
    let pairs = [("code", CODE), ("state", begun.has("state"))];
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

fn config(issuer: &str) -> OidcConfig {
    OidcConfig {
        issuer: issuer.to_owned(),
        client_id: CLIENT.into(),
        client_secret: Some(Arc::new(|| Ok(zeroize::Zeroizing::new(SECRET.to_owned())))),
        url: "http://127.0.0.1:7432/".into(),
        name: "Example & Co".into(),
        scopes: vec!["openid".into(), "profile".into()],
        name_claim: None,
        groups_claim: "groups".into(),
        roles: vec![GroupRule::new("dba", Role::Operator, Some("a")), GroupRule::new("staff", Role::Viewer, None)],
        session: Duration::from_secs(3600),
        ca_file: None,
    }
}

fn claims(issuer: &str, nonce: &str) -> Value {
    let now = Timestamp::now().as_second();
    json!({"iss": issuer, "aud": CLIENT, "sub": "4711", "exp": now + 300, "iat": now, "nonce": nonce,
        "preferred_username": "ada", "groups": ["dba", "other"]})
}

#[test]
fn a_provider_that_means_no_good_signs_nobody_in() {
    let bench = bench("oidc-evil");
    let provider = Provider::start();
    let addresses = std::cell::Cell::new(1);
    let visit = || {
        addresses.set(addresses.get() + 1);
        let address = Ipv4Addr::new(192, 0, 2, addresses.get());
        Visit { bench: &bench, peer: Peer { address: address.into(), ..bench.peer.clone() } }
    };
    let key = new_key();
    provider.publish("one", &key);
    // Without settings there is nothing, and no button.
    let sign_in = |bench: &Bench| bench.ask(route("GET", "/sign-in"), &[], None, "").1.to_string();
    assert!(!sign_in(&bench).contains("/sign-in/oidc"));
    assert_eq!(bench.ask(route("GET", "/sign-in/oidc"), &[], None, "").0, 404);
    bench.with(|all| all.web.oidc = Some(config(&provider.issuer)));
    assert!(sign_in(&bench).contains("Sign in with Example &amp; Co"), "{}", sign_in(&bench));

    // The whole way; what is asked for is what the flow says.
    let one = visit();
    let begun = one.begin("/jobs");
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", CLIENT),
        ("redirect_uri", "http://127.0.0.1:7432/sign-in/oidc/callback"),
        ("scope", "openid profile"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(begun.has(name), value);
    }
    let good = |begun: &Begun| claims(&provider.issuer, begun.has("nonce"));
    provider.gives(&by_key("one", &key, &good(&begun)));
    let Answer::Page { status, html, cookies } = one.answer("/sign-in/oidc/callback", &back(&begun), &begun.cookie)
    else {
        panic!("no page")
    };
    assert!(status == 200 && html.contains("url=/jobs\""), "{html}");
    assert!(cookies[0].contains("; HttpOnly; SameSite=Strict; Max-Age=3600"), "{cookies:?}");
    assert!(cookies[1].starts_with("pgark_oidc=;") && cookies[1].contains("Max-Age=0"), "{cookies:?}");
    let asked = provider.answers().asked.clone();
    assert!(asked.contains(&format!("Basic {}", STANDARD.encode("pgark:canary+of+the+client"))), "{asked}");
    let verifier = form_urlencoded::parse(asked.lines().last().expect("a body").as_bytes()).into_owned();
    let verifier = verifier.into_iter().find(|(key, _)| key == "code_verifier").expect("a verifier").1;
    assert_eq!(base64(digest(&SHA256, verifier.as_bytes())), begun.has("code_challenge"));
    let session = ("cookie", cookies[0].split(';').next().expect("a pair").to_owned());
    let me = || bench.ask_with(route("GET", "/api/v1/me"), &[], std::slice::from_ref(&session), "", "");
    assert_eq!(me().1["grants"], json!([{"role": "operator", "cluster": "a"}]));

    // Out again, in another browser: here, and where the provider does it, with what it gave.
    let callback = "/sign-in/oidc/callback";
    let signs_in = || {
        let one = visit();
        let begun = one.begin("/");
        let token = by_key("one", &key, &good(&begun));
        provider.gives(&token);
        let Answer::Page { cookies, .. } = one.answer(callback, &back(&begun), &begun.cookie) else {
            panic!("no page")
        };
        (cookies[0].split(';').next().expect("a pair").to_owned(), token)
    };
    let own = |cookie: &str| super::pages::headers(cookie, &[super::pages::OWN]);
    let out = |cookie: &str| bench.ask_with(route("DELETE", "/api/v1/session"), &[], &own(cookie), "", "");
    let (cookie, token) = signs_in();
    let (status, document) = out(&cookie);
    let expected = format!(
        "{}/end?theme=dark&client_id={CLIENT}&post_logout_redirect_uri=http%3A%2F%2F127.0.0.1%3A7432%2Fsign-in&id_token_hint={token}",
        provider.issuer
    );
    assert_eq!((status, &document["end_session"]), (200, &json!(expected)), "{document}");
    assert_eq!(out(&cookie).0, 401, "it is over");
    let (cookie, token) = signs_in();
    let word = Session::of(cookie.split_once('=').expect("a value").1).csrf;
    let (status, page) = bench.ask_with(route("POST", "/sign-out"), &[], &own(&cookie), "", &format!("csrf={word}"));
    let page = page.as_str().expect("a page");
    assert!(status == 200 && page.contains("You are signed out here") && page.contains(&token), "{page}");
    assert!(page.contains(&format!("content=\"0; url={}/end?theme=dark&amp;client_id=", provider.issuer)), "{page}");
    // With another client, or another provider, in the settings there is nothing to be ended there.
    let (cookie, _) = signs_in();
    bench.with(|all| all.web.oidc.as_mut().expect("set").client_id = "another".into());
    assert_eq!(out(&cookie).1["end_session"], Value::Null);
    bench.with(|all| all.web.oidc = Some(config(&provider.issuer)));

    // What comes back that should not.
    assert_eq!(one.returned(&begun), "E-OIDC-STATE", "used already");
    let state = |query: &str, cookie: &str| visit().refused(callback, query, cookie).0;
    assert_eq!(state("code=x&state=other", &begun.cookie), "E-OIDC-STATE");
    assert_eq!(state("", ""), "E-OIDC-STATE");
    let (mine, other) = (one.begin("/"), one.begin("/"));
    provider.gives(&by_key("one", &key, &good(&mine)));
    assert_eq!(state(&back(&mine), ""), "E-OIDC-STATE", "another browser");
    assert_eq!(one.returned(&mine), "E-OIDC-STATE", "and it is used up by that");
    assert_eq!(state(&back(&other), &mine.cookie), "E-OIDC-STATE", "the cookie of another sign-in");
    let mixed = one.begin("/");
    let query = format!("{}&iss=https%3A%2F%2Fevil.example", back(&mixed));
    assert_eq!(one.refused(callback, &query, &mixed.cookie).0, "E-OIDC-TOKEN");
    let denied = one.begin("/");
    let query = format!("error=access_denied%0D%0A%3Cb%3E&state={}", denied.has("state"));
    let (code, html) = one.refused(callback, &query, &denied.cookie);
    assert!(code == "E-OIDC-REFUSED" && html.contains("access_denied  &lt;b&gt;"), "{html}");
    assert_eq!(one.refused(callback, &format!("state={}", one.begin("/").has("state")), "").0, "E-OIDC-STATE");

    // Tokens that are not right.
    let changed = |name: &str, value: Value| {
        let name = name.to_owned();
        move |mut claims: Value| {
            claims[name.as_str()] = value.clone();
            claims
        }
    };
    let past = Timestamp::now().as_second() - 1;
    let wrong: [(&str, Value); 8] = [
        ("nonce", json!("another")),
        ("nonce", Value::Null),
        ("aud", json!("somebody")),
        ("aud", json!([CLIENT, "somebody"])),
        ("iss", json!("https://evil.example")),
        ("iss", json!(format!("{}/", provider.issuer))),
        ("exp", json!(past)),
        ("azp", json!("somebody")),
    ];
    for (name, value) in wrong {
        let (one, what) = (visit(), format!("{name}: {value}"));
        let begun = one.begin("/");
        provider.gives(&by_key("one", &key, &changed(name, value)(good(&begun))));
        assert_eq!(one.returned(&begun), "E-OIDC-TOKEN", "{what}");
    }
    let (stranger, public) = (new_key(), key.public_key().as_ref().to_vec());
    let mac = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec();
    type Forge<'a> = &'a dyn Fn(&Value) -> String;
    let forged: [(&str, Forge<'_>); 6] = [
        ("another's key", &|claims| by_key("one", &stranger, claims)),
        ("a key that nobody knows", &|claims| by_key("two", &stranger, claims)),
        ("no signature", &|claims| signed(&json!({"alg": "none"}), claims, |_| vec![])),
        ("none beside a signature", &|claims| {
            signed(&json!({"alg": "none", "kid": "one"}), claims, |_| b"signature".to_vec())
        }),
        ("a MAC with the public key", &|claims| {
            signed(&json!({"alg": "HS256", "kid": "one"}), claims, |text| mac(&public, text))
        }),
        ("a MAC with the client's secret", &|claims| {
            signed(&json!({"alg": "HS256"}), claims, |text| mac(SECRET.as_bytes(), text))
        }),
    ];
    for (what, forge) in forged {
        let one = visit();
        let begun = one.begin("/");
        provider.gives(&forge(&good(&begun)));
        let code = one.returned(&begun);
        // What is no token at all cannot be read.
        assert!(matches!(code.as_str(), "E-OIDC-TOKEN" | "E-OIDC-PROVIDER"), "{what}: {code}");
    }
    let odd = |name: &str, value: Value| {
        let one = visit();
        let begun = one.begin("/");
        provider.gives(&by_key("one", &key, &changed(name, value)(good(&begun))));
        one.refused(callback, &back(&begun), &begun.cookie)
    };
    assert_eq!(odd("groups", json!([1, 2])).0, "E-OIDC-CLAIM");
    assert_eq!(odd("preferred_username", json!("ada\nroot")).0, "E-OIDC-CLAIM");
    let (code, html) = odd("groups", json!(["DBA", "dba "]));
    assert!(code == "E-OIDC-GROUP" && html.contains("knows you as ada"), "{html}");
    assert_eq!(odd("groups", Value::Null).0, "E-OIDC-GROUP");

    // Answers that are none.
    for (status, text) in [
        (400, json!({"error": "invalid_client", "error_description": format!("not {SECRET}")}).to_string()),
        (302, String::new()),
        (200, "{}".into()),
        (200, json!({"access_token": "a", "token_type": "Bearer"}).to_string()),
        (200, json!({"access_token": "a", "token_type": "Bearer", "id_token": CODE}).to_string()),
        (200, "x".repeat(2 << 20)),
    ] {
        let one = visit();
        let begun = one.begin("/");
        let what = text.get(..text.len().min(80)).unwrap_or_default().to_owned();
        provider.answers().token = (status, text);
        assert_eq!(one.returned(&begun), "E-OIDC-PROVIDER", "{status} {what}");
    }

    // Other keys, without a word: they are read again. Who was signed in stays so.
    let two = new_key();
    provider.publish("two", &two);
    let one = visit();
    let begun = one.begin("//evil.example");
    provider.gives(&by_key("two", &two, &good(&begun)));
    let Answer::Page { status, html, .. } = one.answer(callback, &back(&begun), &begun.cookie) else {
        panic!("no page")
    };
    assert!(status == 200 && html.contains("url=/\""), "{html}");
    assert_eq!(me().0, 200);

    // The settings of now say what a group may do, and whose word counts.
    bench.with(|all| all.web.oidc.as_mut().expect("set").roles[0] = GroupRule::new("other", Role::Viewer, None));
    assert_eq!(me().1["grants"], json!([{"role": "viewer", "cluster": null}]));
    bench.with(|all| all.web.oidc.as_mut().expect("set").roles.truncate(0));
    assert_eq!(me().0, 401);
    bench.with(|all| all.web.oidc = Some(config(&provider.issuer)));
    assert_eq!(me().0, 200);
    bench.with(|all| all.web.oidc.as_mut().expect("set").issuer = "https://id.example.org".into());
    assert_eq!(me().0, 401, "somebody else's 4711");
    bench.with(|all| all.web.oidc = None);
    assert_eq!(me().0, 401);

    // A provider that is not who it should be, or sends people and us elsewhere; and one that is not there.
    let discovery = provider.answers().discovery.clone();
    // Where people are to be signed out matters to nobody who signs in.
    for value in [json!("http://evil.example/end"), json!("javascript:alert(1)"), json!(7), Value::Null] {
        let fresh = super::bench("oidc-end");
        fresh.with(|all| all.web.oidc = Some(config(&provider.issuer)));
        provider.answers().discovery["end_session_endpoint"] = value.clone();
        let known = fresh.api.oidc.begin(&config(&provider.issuer), "/");
        assert!(known.is_ok() && fresh.api.oidc.signs_out().is_none(), "{value}");
    }
    for (name, value) in [
        ("issuer", "https://id.example.org"),
        ("authorization_endpoint", "http://evil.example/authorize"),
        ("authorization_endpoint", "javascript:alert(1)"),
        ("jwks_uri", "http://evil.example/keys"),
        ("jwks_uri", "file:///etc/passwd"),
    ] {
        // Nothing is known of it.
        let fresh = super::bench("oidc-discovery");
        fresh.with(|all| all.web.oidc = Some(config(&provider.issuer)));
        let mut evil = discovery.clone();
        evil[name] = value.into();
        provider.answers().discovery = evil;
        let visit = Visit { bench: &fresh, peer: fresh.peer.clone() };
        assert_eq!(visit.refused("/sign-in/oidc", "", "").0, "E-OIDC-PROVIDER", "{name}: {value}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
    bench.with(|all| all.web.oidc = Some(config(&format!("http://{closed}"))));
    let (code, html) = visit().refused("/sign-in/oidc", "", "");
    assert!(code == "E-OIDC-PROVIDER" && html.contains("id=\"password\""), "others sign in as ever: {html}");
    // Nobody asks it without end.
    let one = visit();
    let codes: Vec<String> = (0..21).map(|_| one.refused("/sign-in/oidc", "", "").0).collect();
    assert!(codes[19] == "E-OIDC-PROVIDER" && codes[20] == "E-REQUEST-RATE", "{codes:?}");
}

#[test]
fn a_provider_with_an_authority_of_its_own_is_believed_by_ca_file_alone() {
    let bench = bench("oidc-tls");
    let (ca, other) = (Authority::new("ours"), Authority::new("others"));
    let right = bench.scratch.file("ca.crt", format!("{}{}", other.pem, ca.pem).as_bytes(), 0o644);
    let wrong = bench.scratch.file("other.crt", other.pem.as_bytes(), 0o644);
    let provider = Provider::over_tls(&bench, &ca, &["127.0.0.1"]);
    let named = Provider::over_tls(&bench, &ca, &["id.example.org"]);
    let key = new_key();
    provider.publish("one", &key);
    let with = |provider: &Provider, ca_file: Option<&Path>| {
        let oidc = OidcConfig { ca_file: ca_file.map(Path::to_owned), ..config(&provider.issuer) };
        bench.with(|all| all.web.oidc = Some(oidc.clone()));
        oidc
    };
    let visit = || Visit { bench: &bench, peer: bench.peer.clone() };
    // Neither without it, nor with another one; nor under another name.
    let unknown = "UnknownIssuer; ca_file in [server.oidc] names certificates";
    for (provider, ca_file, why) in [
        (&provider, None, unknown),
        (&provider, Some(&*wrong), unknown),
        (&named, Some(&*right), "certificate not valid for name \"127.0.0.1\""),
    ] {
        let oidc = with(provider, ca_file);
        assert_eq!(oidc.check(), Ok(()));
        let said = bench.api.oidc.begin(&oidc, "/").err().expect("it is not believed").to_string();
        assert!(said.contains("cannot be asked what it is") && said.contains(why), "{said}");
        assert_eq!(visit().refused("/sign-in/oidc", "", "").0, "E-OIDC-PROVIDER");
    }
    assert!(provider.answers().asked.is_empty());

    // One of several in the file is enough: discovery, keys and token come over TLS.
    with(&provider, Some(&right));
    let signs_in = || {
        let visit = visit();
        let begun = visit.begin("/");
        provider.gives(&by_key("one", &key, &claims(&provider.issuer, begun.has("nonce"))));
        (begun.cookie.clone(), back(&begun))
    };
    let (cookie, query) = signs_in();
    let Answer::Page { status, html, .. } = visit().answer("/sign-in/oidc/callback", &query, &cookie) else {
        panic!("no page")
    };
    assert!(status == 200 && html.contains("url=/\""), "{html}");
    assert!(provider.answers().asked.contains("canary+of+a+code"));
    // What is known of a provider does not make up for a certificate that is believed no longer.
    let (cookie, query) = signs_in();
    provider.answers().asked.clear();
    with(&provider, Some(&wrong));
    assert_eq!(visit().refused("/sign-in/oidc/callback", &query, &cookie).0, "E-OIDC-PROVIDER");
    assert!(provider.answers().asked.is_empty(), "the code was told to nobody");
    // A file that holds none is found before anybody is asked.
    let empty = bench.scratch.file("empty.crt", b"no certificate", 0o644);
    let why = with(&provider, Some(&empty)).check().expect_err("nothing in it");
    assert!(why.contains("empty.crt cannot be used"), "{why}");
    let why = with(&provider, Some(Path::new("/nowhere.crt"))).check().expect_err("not there");
    assert!(why.contains("/nowhere.crt cannot be used"), "{why}");
}

//! People whom a real provider of OpenID Connect signs in: what their groups give them, on which clusters, for how long, and what
//! is left of it afterwards. Providers that mean no good are in `crates/server/src/http/tests/oidc.rs`.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use pgark_testkit::{Browser, OidcProvider, Pgark, Scratch};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::serve::{Serving, files_under, until};
use crate::site::BINARY;

const SECRET: &str = "canary-of-the-client";
const PASSWORD: &str = "canary of a user";
/// Accounts of the provider, which calls them ada, grace and mallory.
const ADA: &str = "1001";
const GRACE: &str = "1002";
const MALLORY: &str = "1003";
const ROLES: &str = "[[server.oidc.roles]]\ngroup = \"staff\"\nrole = \"viewer\"\n\
    [[server.oidc.roles]]\ngroup = \"dba\"\nrole = \"recovery-operator\"\nclusters = [\"main\"]\n\
    [[server.oidc.roles]]\ngroup = \"dba-of-other\"\nrole = \"operator\"\nclusters = [\"other\"]\n";

struct Visitor<'a> {
    serving: &'a Serving,
    cookie: String,
}

impl Visitor<'_> {
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let headers = format!("Cookie: {}\r\nSec-Fetch-Site: same-origin\r\n", self.cookie);
        let (status, text) = self.serving.raw(method, path, &headers, body);
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn may_not(&self, method: &str, path: &str, body: &str) -> u16 {
        let (status, value) = self.ask(method, path, body);
        assert!(matches!(status, 401 | 403 | 404), "{method} {path}: {status} {value}");
        status
    }
}

/// Of what the server wants a browser to keep under this name.
fn cookie(head: &str, name: &str) -> Option<String> {
    let mut all = head.lines().filter_map(|line| line.strip_prefix("set-cookie: "));
    let found = all.find(|cookie| cookie.starts_with(&format!("{name}=")));
    found.and_then(|cookie| cookie.split(';').next()).map(str::to_owned)
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
}

/// To the provider and back: the answer, and where it was given.
fn returned(serving: &Serving, provider: &OidcProvider, account: &str) -> ((u16, String, String), String) {
    let (status, head, body) = serving.heads("GET", "/sign-in/oidc?next=/jobs", "", "");
    assert_eq!(status, 303, "{body}");
    let flow = cookie(&head, "pgark_oidc").expect("a cookie");
    let back = provider.sign_in(header(&head, "location"), account);
    let path = back.strip_prefix(&format!("http://{}", serving.address)).unwrap_or_else(|| panic!("{back}"));
    (serving.heads("GET", path, &format!("Cookie: {flow}\r\n"), ""), path.to_owned())
}

fn signs_in<'a>(serving: &'a Serving, provider: &OidcProvider, account: &str) -> Visitor<'a> {
    let ((status, head, body), _) = returned(serving, provider, account);
    assert!(status == 200 && body.contains("url=/jobs\""), "{status} {body}");
    Visitor { serving, cookie: cookie(&head, "pgark_session").expect("a session") }
}

/// To a browser the provider is another site (127.0.0.1, and not localhost), and what a way from there leads to gets no cookie of
/// ours; the page that goes on does. Signing out ends both sessions, and comes back, too.
fn a_browser_comes_back_with_its_session_and_leaves(provider_host: &str, issuer: &str, own: &str) {
    let browser = match Browser::start() {
        Ok(browser) => browser,
        Err(why) => pgark_testkit::skip!("{why}"),
    };
    // Cookies know no ports: the provider gets it too.
    browser.open(&format!("{provider_host}/sign-in"));
    browser.value(&format!("document.cookie = 'account={ADA}; path=/'"));
    browser.open(&format!("{own}/jobs"));
    browser.press("Sign in with Local");
    until("the jobs", || (browser.value("document.querySelector('.caller')?.textContent") == "ada").then_some(()));
    assert_eq!(browser.url(), format!("{own}/jobs"));
    browser.click(".who form button");
    browser.wait_for("Yes, sign me out");
    assert!(browser.url().starts_with(&format!("{issuer}/session/end?")), "{}", browser.url());
    browser.press("Yes, sign me out");
    browser.wait_for("Sign in with Local");
    assert_eq!(browser.url(), format!("{own}/sign-in"));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn people_of_a_provider_may_do_what_their_groups_give_them() {
    let scratch = Scratch::new("oidc");
    let state = scratch.join("server");
    let text = format!(
        "[repos.main]\nurl = \"{}\"\npassphrase = \"canary of the passphrase\"\n[clusters.main]\nhost = \"/nowhere\"\n[clusters.other]\n\
         [server]\nstate_dir = \"{}\"\nrequire_second_person = true\n",
        scratch.join("absent").display(),
        state.display()
    );
    let config = scratch.file("pgark.toml", text.as_bytes(), 0o600);
    let pgark = Pgark::new(BINARY, &scratch, &scratch.join("repo"));
    let bare = ["PGARK_REPO", "PGARK_PASSPHRASE_FILE", "PGARK_CLUSTER"];
    let pgark = bare.iter().fold(pgark, |pgark, name| pgark.without_env(name)).env("PGARK_CONFIG", &config);
    let password = scratch.file("password", PASSWORD.as_bytes(), 0o600).display().to_string();
    pgark.run(["user", "add", "bob", "--role", "recovery-operator", "--password-file", &password]).expect_code(0);
    let log = scratch.join("log");
    let serving = Serving::logged(&pgark, &log);
    let url = format!("http://{}", serving.address);
    let local = url.replace("127.0.0.1", "localhost");
    let back = [&url, &local].map(|url| format!("{url}/sign-in/oidc/callback"));
    let provider = match OidcProvider::start(SECRET, &back) {
        Ok(provider) => provider,
        Err(why) => pgark_testkit::skip!("{why}"),
    };

    let secret = scratch.file("client", format!("{SECRET}\n").as_bytes(), 0o644);
    let confidential = format!("client_id = \"pgark\"\nclient_secret_file = \"{}\"\n", secret.display());
    let write = |name: &str, issuer: &str, client: &str, roles: &str| {
        let section = format!(
            "[server.oidc]\nissuer = \"{issuer}\"\n{client}url = \"{url}\"\nname = \"{name}\"\n\
             scopes = [\"profile\", \"groups\"]\n{roles}"
        );
        fs::write(&config, format!("{text}{section}")).expect("written");
    };
    let reload = |name: &str, issuer: &str, client: &str, roles: &str| {
        write(name, issuer, client, roles);
        serving.signal(Signal::HUP);
        let button = format!("Sign in with {name}<");
        until(name, || serving.raw("GET", "/sign-in", "", "").1.contains(&button).then_some(()));
    };
    // What is wrong is found without asking anybody.
    let nobody = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
    let nobody = format!("http://{nobody}");
    write("Nobody", &nobody, &confidential, ROLES);
    assert!(pgark.run(["config", "check"]).expect_code(4).stderr.contains("E-SECRET-MODE"));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode");
    pgark.run(["config", "check"]).expect_code(0);
    let bad = format!("{confidential}ca_file = \"{}\"\n", secret.display());
    write("Nobody", &nobody, &bad, ROLES);
    assert!(pgark.run(["config", "check"]).expect_code(2).stderr.contains("E-SERVER-OIDC"));

    // A provider that is away keeps nobody else out, and does not keep the server from starting.
    reload("Nobody", &nobody, &confidential, ROLES);
    let (status, page) = serving.raw("GET", "/sign-in/oidc", "", "");
    assert!(status == 502 && page.contains("E-OIDC-PROVIDER") && page.contains("id=\"password\""), "{status} {page}");
    let body = json!({"name": "bob", "password": PASSWORD}).to_string();
    let (status, head, _) = serving.heads("POST", "/api/v1/session", "", &body);
    assert_eq!(status, 200);
    let bob = Visitor { serving: &serving, cookie: cookie(&head, "pgark_session").expect("a session") };

    // Groups give roles, on their clusters; several add up.
    reload("Example", &provider.issuer, &confidential, ROLES);
    let ada = signs_in(&serving, &provider, ADA);
    let me = ada.ask("GET", "/api/v1/me", "").1;
    let grants = json!([{"role": "viewer", "cluster": null}, {"role": "recovery-operator", "cluster": "main"}]);
    assert_eq!(
        (&me["name"], &me["role"], &me["grants"]),
        (&json!("ada"), &json!("recovery-operator"), &grants),
        "{me}"
    );
    assert_eq!(ada.ask("GET", "/api/v1/clusters", "").1["clusters"].as_array().map(Vec::len), Some(2));
    let page = ada.ask("GET", "/jobs", "").1.to_string();
    assert!(page.contains("Sign out") && page.contains("recovery-operator of main"), "{page}");
    let check = r#"{"job": "check"}"#;
    assert_eq!(ada.may_not("POST", "/api/v1/clusters/other/jobs", check), 403);
    assert_eq!(ada.may_not("GET", "/api/v1/tokens", ""), 403);
    let grace = signs_in(&serving, &provider, GRACE);
    assert_eq!(grace.may_not("GET", "/api/v1/clusters/main", ""), 404);
    let (status, job) = grace.ask("POST", "/api/v1/clusters/other/jobs", check);
    assert_eq!((status, &job["requested_by"]), (202, &json!("oidc grace (1002)")), "{job}");
    let ((status, head, page), _) = returned(&serving, &provider, MALLORY);
    assert!(status == 403 && page.contains("E-OIDC-GROUP") && page.contains("knows you as mallory"), "{page}");
    assert!(cookie(&head, "pgark_session").is_none(), "{head}");
    // What was used is used.
    let ((status, ..), path) = returned(&serving, &provider, ADA);
    assert_eq!(status, 200);
    let (status, page) = serving.raw("GET", &path, "", "");
    assert!(status == 403 && page.contains("E-OIDC-STATE"), "{page}");
    // The provider signs nobody in whom it does not know.
    let ((status, _, page), _) = returned(&serving, &provider, "nobody");
    assert!(status == 403 && page.contains("E-OIDC-REFUSED") && page.contains("access_denied"), "{page}");

    // A person is a second person, and not for what they asked for themselves.
    let restore = json!({"job": "restore", "to": scratch.join("to"), "confirm": "main"}).to_string();
    let asks = |who: &Visitor<'_>| {
        let (status, job) = who.ask("POST", "/api/v1/clusters/main/jobs", &restore);
        assert_eq!((status, &job["state"]), (202, &json!("waiting_for_approval")), "{job}");
        format!("/api/v1/jobs/{}/approve", job["id"].as_str().expect("an id"))
    };
    let (own, of_bob) = (asks(&ada), asks(&bob));
    assert_eq!(ada.may_not("POST", &own, ""), 403);
    assert_eq!(signs_in(&serving, &provider, ADA).may_not("POST", &own, ""), 403, "in another browser neither");
    let (status, job) = ada.ask("POST", &of_bob, "");
    assert_eq!((status, &job["approved_by"]), (200, &json!("oidc ada (1001)")), "{job}");

    // A public client, and another kind of signature. A session outlives that: its provider and its groups are the same.
    reload("Public", &provider.issuer, "client_id = \"pgark-public\"\n", ROLES);
    let again = signs_in(&serving, &provider, ADA);
    assert_eq!(again.ask("GET", "/api/v1/me", "").1["grants"], grants);

    write("Local", &provider.issuer, &confidential, ROLES);
    let text =
        fs::read_to_string(&config).expect("readable").replace(&format!("url = \"{url}"), &format!("url = \"{local}"));
    fs::write(&config, text).expect("written");
    serving.signal(Signal::HUP);
    until("localhost", || serving.raw("GET", "/sign-in", "", "").1.contains("Sign in with Local<").then_some(()));
    a_browser_comes_back_with_its_session_and_leaves(&url, &provider.issuer, &local);

    // Rights are those of now: of the settings, at each request.
    let viewers = ROLES.split_inclusive("role = \"viewer\"\n").next().expect("the first");
    reload("Less", &provider.issuer, &confidential, viewers);
    assert_eq!(ada.ask("GET", "/api/v1/me", "").1["role"], "viewer");
    assert_eq!(ada.may_not("POST", "/api/v1/clusters/main/jobs", check), 403);
    assert_eq!(grace.may_not("GET", "/api/v1/me", ""), 401);
    let (status, out) = ada.ask("DELETE", "/api/v1/session", "");
    assert_eq!(status, 200, "{out}");
    let (end, hint) = out["end_session"].as_str().and_then(|to| to.split_once("&id_token_hint=")).expect("an address");
    assert!(end.starts_with(&format!("{}/session/end?client_id=pgark&", provider.issuer)), "{end}");
    assert_eq!(ada.may_not("GET", "/api/v1/me", ""), 401);
    assert_eq!(again.ask("GET", "/api/v1/me", "").0, 200, "her other browser");

    let sessions = [&ada, &grace, &bob, &again].map(|who| who.cookie.split_once('=').expect("a value").1.to_owned());
    serving.drained();
    let said = fs::read_to_string(&log).expect("a log");
    for part in
        ["signed in by the provider", "oidc ada (1001)", "no group is mapped to a role", "cannot be asked what it is"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let secrets = [SECRET, PASSWORD, hint].map(str::to_owned).into_iter().chain(sessions);
    let secrets: Vec<String> = secrets.collect();
    for (path, bytes) in files_under(&state).into_iter().chain([(log.clone(), said.into_bytes())]) {
        let found = secrets.iter().find(|secret| bytes.windows(secret.len()).any(|w| w == secret.as_bytes()));
        assert_eq!(found, None, "{}", path.display());
    }
    let shown = pgark.run(["config", "explain", "server.oidc"]).expect_code(0);
    assert!(shown.stdout.contains("server.oidc.groups_claim = groups") && !shown.stdout.contains(SECRET), "{shown}");
}

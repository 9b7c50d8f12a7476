//! A real browser without a window: Chromium, told what to do by its driver (W3C WebDriver, JSON over HTTP).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::os::Scratch;

const LIMIT: Duration = Duration::from_secs(60);
const DRIVER: &str = "/usr/bin/chromedriver";
const BROWSER: &str = "/usr/bin/chromium";
/// The field of an answer that names an element (W3C WebDriver, 11.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Ended when it is dropped.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    axe: String,
    _profile: Scratch,
}

impl Browser {
    /// # Errors
    /// What is not installed.
    pub fn start() -> Result<Browser, String> {
        for program in [DRIVER, BROWSER] {
            if !Path::new(program).exists() {
                return Err(format!("{program} is not installed: run scripts/setup-debian.sh --servers"));
            }
        }
        let root = std::env::var_os("PGARK_TEST_SERVERS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-servers"), PathBuf::from);
        let axe = root.join("axe/node_modules/axe-core/axe.min.js");
        let axe = std::fs::read_to_string(&axe)
            .map_err(|e| format!("{}: {e}: run scripts/setup-debian.sh --servers", axe.display()))?;
        let profile = Scratch::new("browser");
        let mut command = Command::new(DRIVER);
        command.args(["--port=0"]).env("HOME", profile.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().expect("the driver starts");
        let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
        let port = lines.find_map(|line| {
            let line = line.expect("text");
            let (_, port) = line.split_once("started successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        // What it says later is not read, and must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let address = format!("127.0.0.1:{}", port.expect("a port"));
        let mut browser = Browser { driver, address, session: String::new(), axe, _profile: profile };
        let data = format!("--user-data-dir={}", browser._profile.dir("data").display());
        let words = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--window-size=1280,900",
            &data,
        ];
        let options = json!({"binary": BROWSER, "args": words});
        let wanted = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let made = browser.ask("POST", "/session", &json!({"capabilities": {"alwaysMatch": wanted}}));
        browser.session = made["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {made}")).to_owned();
        Ok(browser)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(&self.address).expect("the driver listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let length = body.len();
        let kind = "application/json; charset=utf-8";
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}",
            self.address
        )
        .expect("sent");
        // The driver leaves the connection open.
        let mut reader = BufReader::new(stream);
        let mut length = 0_usize;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("answered");
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().expect("a length");
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("answered");
        let document: Value = serde_json::from_slice(&body).expect("JSON");
        document["value"].clone()
    }

    fn tell(&self, method: &str, what: &str, body: &Value) -> Value {
        let value = self.ask(method, &format!("/session/{}{what}", self.session), body);
        assert!(value.get("error").is_none(), "{method} {what}: {} {}", value["error"], value["message"]);
        value
    }

    pub fn open(&self, url: &str) {
        self.tell("POST", "/url", &json!({"url": url}));
    }

    pub fn url(&self) -> String {
        self.tell("GET", "/url", &Value::Null).as_str().unwrap_or_default().to_owned()
    }

    /// The value of an expression in the page.
    pub fn value(&self, expression: &str) -> Value {
        self.tell("POST", "/execute/sync", &json!({"script": format!("return {expression}"), "args": []}))
    }

    pub fn text(&self) -> String {
        self.value("document.querySelector('main').innerText").as_str().unwrap_or_default().to_owned()
    }

    fn element(&self, selector: &str) -> String {
        let found = self.tell("POST", "/element", &json!({"using": "css selector", "value": selector}));
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("{selector}: {found}")).to_owned()
    }

    pub fn click(&self, selector: &str) {
        self.tell("POST", &format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    /// The link or the button that is called so.
    pub fn press(&self, name: &str) {
        let words = json!({"using": "xpath", "value": format!("//main//*[self::a or self::button][starts-with(normalize-space(.), '{name}')]")});
        let found = self.tell("POST", "/element", &words);
        let id = found[ELEMENT].as_str().unwrap_or_else(|| panic!("{name}: {found}"));
        self.tell("POST", &format!("/element/{id}/click"), &json!({}));
    }

    pub fn type_into(&self, selector: &str, text: &str) {
        self.tell("POST", &format!("/element/{}/value", self.element(selector)), &json!({"text": text}));
    }

    /// Until the text is on the page, which nobody reloads.
    pub fn wait_for(&self, words: &str) {
        let begun = Instant::now();
        while !self.text().contains(words) {
            assert!(begun.elapsed() < LIMIT, "'{words}' did not come on {}:\n{}", self.url(), self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How the surroundings are: the width of the window in pixels, and 'light' or 'dark'.
    pub fn surroundings(&self, width: u32, theme: &str) {
        let cdp =
            |cmd: &str, params: Value| self.tell("POST", "/goog/cdp/execute", &json!({"cmd": cmd, "params": params}));
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        cdp("Emulation.setDeviceMetricsOverride", metrics);
        cdp("Emulation.setEmulatedMedia", json!({"features": [{"name": "prefers-color-scheme", "value": theme}]}));
    }

    /// The whole page, as a PNG.
    pub fn picture(&self) -> Vec<u8> {
        let params = json!({"captureBeyondViewport": true, "format": "png"});
        let made = self.tell("POST", "/goog/cdp/execute", &json!({"cmd": "Page.captureScreenshot", "params": params}));
        STANDARD.decode(made["data"].as_str().expect("a picture")).expect("base64")
    }

    /// What axe-core finds wrong with the page, of those faults that keep people from using it: rule and places.
    pub fn serious_faults(&self) -> Vec<String> {
        self.tell("POST", "/execute/sync", &json!({"script": self.axe, "args": []}));
        let script = "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations
            .filter(v => ['serious', 'critical'].includes(v.impact))
            .map(v => v.id + ': ' + v.nodes.map(n => n.target.join(' ') + ' ' + n.failureSummary).join(' | '))), e => done([String(e)]))";
        let found = self.tell("POST", "/execute/async", &json!({"script": script, "args": []}));
        found.as_array().into_iter().flatten().map(|f| f.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// What the console of the page complained about: a policy that was broken, a script that failed.
    pub fn complaints(&self) -> Vec<String> {
        let found = self.tell("POST", "/se/log", &json!({"type": "browser"}));
        // That a page was refused, as it should be, is in there too.
        let own = |f: &&Value| f["level"] == "SEVERE" && f["source"] != "network";
        let found = found.as_array().into_iter().flatten().filter(own);
        found.map(|f| f["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // It ends the browser; a driver that is gone already has.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.ask("DELETE", &format!("/session/{}", self.session), &json!({}))
            }));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

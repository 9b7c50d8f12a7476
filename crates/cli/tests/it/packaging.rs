//! What is packed: each file is read by the program that will read it, where that is installed; and the package holds what it should.
//!
//! What Debian packages is demanded like everything else. Other linters (hadolint, helm, kubernetes-validate) are used when they are
//! found, and named when they are not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgark_testkit::{Pgark, Scratch, run_bounded, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::site::BINARY;

const LIMIT: Duration = Duration::from_secs(600);

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the top directory")
}

fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Which of these Debian packages is missing.
fn lacking(names: &[&str]) -> Option<String> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !installed(name)).collect();
    (!missing.is_empty())
        .then(|| format!("{} is not installed: 'scripts/setup-debian.sh --servers' does that", missing.join(", ")))
}

/// Runs it in a directory, and gives what it said.
fn run(dir: &Path, words: &[&str]) -> (bool, String) {
    let [program, arguments @ ..] = words else { panic!("a program") };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir);
    let output = run_bounded(command, b"", LIMIT).unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = [output.stdout, output.stderr].concat();
    (output.status.is_some_and(|status| status.success()), String::from_utf8_lossy(&said).into_owned())
}

fn done(dir: &Path, words: &[&str]) -> String {
    let (well, said) = run(dir, words);
    assert!(well, "{}\n{said}", words.join(" "));
    said
}

fn done_if_installed(dir: &Path, words: &[&str]) {
    match installed(words[0]) {
        true => drop(done(dir, words)),
        false => eprintln!("NOT CHECKED: {} is not installed", words.join(" ")),
    }
}

#[test]
fn the_package_holds_what_runs_and_its_units_are_right() {
    if let Some(why) = lacking(&["dpkg-deb", "lintian", "systemd-analyze", "strip", "objdump", "python3"]) {
        skip!("{why}");
    }
    let scratch = Scratch::new("deb");
    let here = scratch.path();
    let output = here.display().to_string();
    let said = done(&top(), &["scripts/build-deb", "--binary", BINARY, "--output", &output, "--fast"]);
    let deb = said.lines().last().expect("its name");
    let contents = done(here, &["dpkg-deb", "--contents", deb]);
    for path in [
        "./usr/bin/pgark",
        "./etc/pgark/pgark.toml",
        "./lib/systemd/system/pgark.service",
        "./lib/systemd/system/pgark-backup@.timer",
        "./lib/systemd/system/pgark-.service.d/10-hardening.conf",
        "./usr/share/man/man1/pgark.1.gz",
        "./usr/share/man/man1/pgark-restore.1.gz",
        "./usr/share/bash-completion/completions/pgark",
        "./usr/share/zsh/vendor-completions/_pgark",
        "./usr/share/fish/vendor_completions.d/pgark.fish",
        "./usr/share/doc/pgark/copyright",
        "./usr/share/doc/pgark/third-party.txt.gz",
        "./usr/share/doc/pgark/examples/prometheus/pgark.rules.yml",
    ] {
        assert!(contents.lines().any(|line| line.ends_with(path)), "{path} is not in\n{contents}");
    }
    assert!(contents.lines().all(|line| line.contains(" root/root ")), "{contents}");
    assert_eq!(done(here, &["dpkg-deb", "--info", deb, "conffiles"]), "/etc/pgark/pgark.toml\n");
    done(here, &["lintian", "--fail-on", "error,warning", "--allow-root", deb]);

    let root = here.join("root");
    done(here, &["dpkg-deb", "--extract", deb, &root.display().to_string()]);
    let program = root.join("usr/bin/pgark").display().to_string();
    assert_eq!(done(here, &[&program, "--version"]), done(here, &[BINARY, "--version"]));
    let shipped = root.join("etc/pgark/pgark.toml").display().to_string();
    done(here, &[&program, "config", "check", "--config", &shipped]);
    for example in fs::read_dir(root.join("usr/share/doc/pgark/examples")).expect("examples") {
        let path = example.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "toml") {
            done(here, &[&program, "config", "check", "--config", &path.display().to_string()]);
        }
    }

    units(here, &root, &program);
}

/// systemd reads them as it would on the machine, but for where the program lies.
fn units(here: &Path, root: &Path, program: &str) {
    let (from, to) = (root.join("lib/systemd/system"), here.join("units"));
    fs::create_dir_all(to.join("pgark-.service.d")).expect("made");
    let mut services = vec![];
    for entry in fs::read_dir(&from).expect("units").chain(fs::read_dir(from.join("pgark-.service.d")).expect("units"))
    {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let name = path.strip_prefix(&from).expect("inside").display().to_string();
            let text = fs::read_to_string(&path).expect("text").replace("/usr/bin/pgark", program);
            fs::write(to.join(&name), text).expect("written");
            // A template is looked at as one of its instances.
            let instance = name.replace("@.", "@main.");
            if instance.ends_with(".service") || instance.ends_with(".timer") {
                if instance != name {
                    fs::copy(to.join(&name), to.join(&instance)).expect("copied");
                }
                services.push(instance);
            }
        }
    }
    assert_eq!(services.len(), 13, "{services:?}");
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=one"]).args(services.iter().map(|name| to.join(name)));
    command.env("SYSTEMD_UNIT_PATH", format!("{}:", to.display())).current_dir(&to);
    let output = run_bounded(command, b"", LIMIT).expect("systemd-analyze");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("pgark")).collect();
    assert!(output.status.is_some_and(|s| s.success()) && ours.is_empty(), "{said}");
    for service in services.iter().filter(|name| name.ends_with(".service")) {
        let mut command = Command::new("systemd-analyze");
        // Out of 100; a unit without anything has 96.
        command.args(["security", "--offline=true", "--threshold=30", "--no-pager"]).arg(to.join(service));
        command.env("SYSTEMD_UNIT_PATH", format!("{}:", to.display()));
        let output = run_bounded(command, b"", LIMIT).expect("systemd-analyze");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.is_some_and(|s| s.success()), "{service}\n{said}");
    }
}

#[test]
fn alert_rules_fire_when_they_should_and_name_metrics_that_exist() {
    if let Some(why) = lacking(&["promtool"]) {
        skip!("{why}");
    }
    let dir = top().join("packaging/prometheus");
    done(&dir, &["promtool", "check", "rules", "pgark.rules.yml"]);
    done(&dir, &["promtool", "test", "rules", "pgark.rules.test.yml", "pgark.rules.days.test.yml"]);

    // As they are registered, without the prefix.
    let mut known = BTreeSet::new();
    for source in ["metrics.rs", "http/metrics.rs"] {
        let text = fs::read_to_string(top().join("crates/server/src").join(source)).expect("the source");
        known.extend(text.split('"').skip(1).step_by(2).map(str::to_owned));
    }
    let mut named = BTreeSet::new();
    for file in ["prometheus/pgark.rules.yml", "prometheus/pgark.rules.days.test.yml", "grafana/pgark.json"] {
        let text = fs::read_to_string(top().join("packaging").join(file)).expect("a file");
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        named.extend(text.split(|c| !part(c)).filter_map(|word| word.strip_prefix("pgark_")).map(str::to_owned));
    }
    assert!(named.len() > 15, "{named:?}");
    for name in &named {
        assert!(known.contains(name.strip_suffix("_total").unwrap_or(name)), "no metric is called pgark_{name}");
    }
    let dashboard: Value =
        serde_json::from_slice(&fs::read(top().join("packaging/grafana/pgark.json")).expect("a file")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|p| p["id"].as_u64()).collect();
    assert_eq!((ids.len(), panels.len() > 10), (panels.len(), true));
}

#[test]
fn containers_and_charts_are_well_formed() {
    let packaging = top().join("packaging");
    done_if_installed(&packaging, &["hadolint", "--failure-threshold", "info", "docker/Dockerfile"]);
    done_if_installed(&packaging.join("docker"), &["docker-compose", "-f", "compose.yaml", "config", "-q"]);
    let scratch = Scratch::new("chart");
    let path = scratch.path().join("pgark.toml");
    fs::copy(packaging.join("docker/pgark.toml"), &path).expect("copied");
    done(scratch.path(), &[BINARY, "config", "check", "--config", &path.display().to_string()]);
    // The configuration in the values is one.
    let values = fs::read_to_string(packaging.join("helm/pgark/values.yaml")).expect("values");
    let inside = values.split("config: |\n").nth(1).expect("a configuration");
    let lines = inside.lines().take_while(|line| line.is_empty() || line.starts_with("  "));
    let text: String = lines.map(|line| format!("{}\n", line.trim_start_matches("  "))).collect();
    let path = scratch.path().join("values.toml");
    fs::write(&path, text).expect("written");
    done(scratch.path(), &[BINARY, "config", "check", "--config", &path.display().to_string()]);

    if !installed("helm") {
        eprintln!("NOT CHECKED: helm is not installed; packaging/helm was rendered by nobody");
        return;
    }
    let chart = packaging.join("helm/pgark").display().to_string();
    done(scratch.path(), &["helm", "lint", "--strict", &chart]);
    let server = ["--set", "flavour=server", "--set", "pgdata.existingClaim=d", "--set", "repository.existingClaim=r"];
    for (name, more) in [("cronjob", &[][..]), ("server", &server[..])] {
        let words = [&["helm", "template", "x", &chart, "--kube-version", "1.27.0"][..], more].concat();
        let rendered = done(scratch.path(), &words);
        for kind in ["ConfigMap", "ServiceAccount", if name == "server" { "Deployment" } else { "CronJob" }] {
            assert!(rendered.contains(&format!("kind: {kind}\n")), "{name} has no {kind}\n{rendered}");
        }
        fs::write(scratch.path().join(name), rendered).expect("written");
        done_if_installed(scratch.path(), &["kubernetes-validate", "--strict", "-k", "1.27", name]);
    }
}

/// What pgark.service relies on: `Type=notify`, `WatchdogSec`, `ExecReload`. There is no repository: the server does not need one.
#[test]
fn a_service_manager_hears_of_the_server() {
    let scratch = Scratch::new("notify");
    let state = scratch.join("server").display().to_string();
    let text = format!("[repos.main]\nurl = \"/nowhere\"\n[clusters.main]\n[server]\nstate_dir = \"{state}\"\n");
    let config = scratch.file("pgark.toml", text.as_bytes(), 0o644);
    let path = scratch.join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("mode");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let pgark = Pgark::new(BINARY, &scratch, &scratch.join("repo")).without_env("PGARK_CLUSTER");
    let pgark = pgark.env("PGARK_CONFIG", &config).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "500000");
    let mut command = pgark.command(["serve", "--listen", "127.0.0.1:0"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
    let mut server = Ended(child);
    let hear = |wanted: &str| {
        let begun = Instant::now();
        let mut buffer = [0; 1024];
        while begun.elapsed() < Duration::from_secs(60) {
            let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted} did not come: {e}"));
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.lines().any(|line| line == wanted) {
                return message;
            }
            // It says that it lives, over and over.
            assert_eq!(message, "WATCHDOG=1", "before {wanted}");
        }
        panic!("{wanted} did not come");
    };
    let pid = Pid::from_raw(server.0.id().cast_signed()).expect("a process");
    assert!(hear("READY=1").contains("STATUS=listening on 127.0.0.1:"));
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    kill_process(pid, Signal::HUP).expect("sent");
    hear("RELOADING=1");
    hear("READY=1");
    kill_process(pid, Signal::TERM).expect("sent");
    hear("STOPPING=1");
    let status = server.0.wait().expect("ended");
    assert_eq!(status.code(), Some(0));
}

/// A server that is gone when the test ends, however it ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // One that was waited for is no longer there.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

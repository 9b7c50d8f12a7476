//! What is packed: each file is read by the program that will read it, where that is installed; and the package holds what it should.
//!
//! What Debian packages is demanded like everything else. Other linters (hadolint, helm, kubernetes-validate) are used when they are
//! found, and named when they are not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgark_testkit::{Pgark, Scratch, run_bounded, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::serve::files_under;
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
        "./lib/systemd/system/pgark-drill@.service.d/20-drill.conf",
        "./lib/systemd/system/pgark-metrics.service.d/20-metrics.conf",
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
    installed_and_purged(here, deb);
}

/// What a directory of drop-ins says counts more than the unit itself, and of two the one that sorts behind the other.
fn nothing_is_lost_to_hardening(units: &Path) {
    let keys = |path: &Path| -> BTreeSet<String> {
        let text = fs::read_to_string(path).expect("text");
        let set = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        // Of these each adds to the others.
        let adds = ["StateDirectory", "ReadWritePaths"];
        set.map(|(key, _)| key.to_owned()).filter(|key| !adds.contains(&key.as_str())).collect()
    };
    let hardening = units.join("pgark-.service.d/10-hardening.conf");
    let hardened = keys(&hardening);
    assert!(hardened.len() > 20, "{hardened:?}");
    for (path, _) in files_under(units).into_iter().filter(|(path, _)| *path != hardening) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.starts_with("pgark-") && name.ends_with(".service") {
            let lost: Vec<_> = keys(&path).intersection(&hardened).cloned().collect();
            assert!(lost.is_empty(), "{name} sets what 10-hardening.conf sets again: {lost:?}");
        }
        assert!(!name.ends_with(".conf") || *name > *"10-hardening.conf", "{name} comes before 10-hardening.conf");
    }
}

/// dpkg itself installs, updates, removes and purges it, in a root where nothing else is.
fn installed_and_purged(here: &Path, deb: &str) {
    if !pgark_testkit::is_root() {
        eprintln!("NOT CHECKED: dpkg --install takes root");
        return;
    }
    let root = here.join("installed");
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/pgark"] {
        fs::create_dir_all(root.join(dir)).expect("made");
    }
    for file in ["var/lib/dpkg/status", "var/lib/pgark/repository"] {
        fs::write(root.join(file), "").expect("written");
    }
    let options = [format!("--root={}", root.display()), format!("--log={}", here.join("dpkg.log").display())];
    let options = [options[0].as_str(), options[1].as_str(), "--force-depends", "--force-script-chrootless"];
    let dpkg = |words: &[&str]| done(here, &[&["dpkg"][..], &options[..], words].concat());
    dpkg(&["--install", deb]);
    assert!(dpkg(&["--status", "pgark"]).contains("Status: install ok installed"));
    assert_eq!(dpkg(&["--verify", "pgark"]), "");
    let listed = dpkg(&["--listfiles", "pgark"]);
    let listed: Vec<&str> = listed.lines().filter(|line| *line != "/.").collect();
    for path in &listed {
        let found = fs::symlink_metadata(root.join(&path[1..])).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mode = if found.is_dir() || *path == "/usr/bin/pgark" { 0o755 } else { 0o644 };
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (mode, 0, 0), "{path}");
    }
    let program = root.join("usr/bin/pgark").display().to_string();
    assert_eq!(done(here, &[&program, "--version"]), done(here, &[BINARY, "--version"]));

    // What somebody has written into it stays when it is installed again, and when it is removed.
    let (settings, passphrase) = (root.join("etc/pgark/pgark.toml"), root.join("etc/pgark/passphrase"));
    let own = fs::read_to_string(&settings).expect("readable") + "# ours\n";
    fs::write(&settings, &own).expect("written");
    fs::write(&passphrase, "secret").expect("written");
    dpkg(&["--install", deb]);
    assert_eq!(fs::read_to_string(&settings).expect("there"), own);
    dpkg(&["--remove", "pgark"]);
    assert_eq!(fs::read_to_string(&settings).expect("there"), own);
    let left = |path: &&&str| !root.join(&path[1..]).is_dir() && root.join(&path[1..]).exists();
    assert_eq!(listed.iter().filter(left).collect::<Vec<_>>(), [&"/etc/pgark/pgark.toml"]);
    // What is ours alone goes; secrets and backups are nobody's but theirs.
    dpkg(&["--purge", "pgark"]);
    assert_eq!(listed.iter().filter(left).collect::<Vec<_>>(), [&""; 0]);
    assert!(!root.join("usr").exists() && passphrase.exists() && root.join("var/lib/pgark/repository").exists());
}

/// systemd reads them as it would on the machine, but for where the program lies.
fn units(here: &Path, root: &Path, program: &str) {
    let (from, to) = (root.join("lib/systemd/system"), here.join("units"));
    let mut services = vec![];
    for (path, text) in files_under(&from) {
        let name = path.strip_prefix(&from).expect("inside").display().to_string();
        fs::create_dir_all(to.join(&name).parent().expect("a directory")).expect("made");
        let text = String::from_utf8(text).expect("text").replace("/usr/bin/pgark", program);
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
    nothing_is_lost_to_hardening(&from);
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
    let tls = ["--set", "flavour=server", "--set", "server.tls=true"];
    for (name, more) in [("cronjob", &[][..]), ("server", &server[..]), ("server-tls", &tls[..])] {
        let is_server = name.starts_with("server");
        let words = [&["helm", "template", "x", &chart, "--kube-version", "1.27.0"][..], more].concat();
        let rendered = done(scratch.path(), &words);
        for probe in ["/health/live", "/health/ready"] {
            assert_eq!(rendered.contains(probe), is_server, "{name} {probe}\n{rendered}");
        }
        for kind in ["ConfigMap", "ServiceAccount", if is_server { "Deployment" } else { "CronJob" }] {
            assert!(rendered.contains(&format!("kind: {kind}\n")), "{name} has no {kind}\n{rendered}");
        }
        fs::write(scratch.path().join(name), rendered).expect("written");
        done_if_installed(scratch.path(), &["kubernetes-validate", "--strict", "-k", "1.27", name]);
    }
}

/// What units, cron, Compose and the chart would run, as words after the program; with where it stands.
fn packed_commands() -> Vec<(String, Vec<String>)> {
    let mut found = vec![];
    for (path, text) in files_under(&top().join("packaging")) {
        let Ok(text) = String::from_utf8(text) else { continue };
        let name = path.strip_prefix(top()).expect("inside").display().to_string();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let unit = ["ExecStart=", "ExecStartPre=", "ExecReload="].iter().find_map(|key| line.strip_prefix(key));
            let shell = line.split_once("archive_command=").map(|(_, command)| command);
            let list = ["command: ", "args: "].iter().find_map(|key| line.strip_prefix(key)?.strip_prefix('['));
            let words: Vec<String> = match (unit.or(shell), list) {
                (Some(command), _) => command.split_whitespace().map(str::to_owned).collect(),
                (None, Some(list)) => {
                    serde_json::from_str(&format!("[{list}")).unwrap_or_else(|e| panic!("{name}: {line}: {e}"))
                }
                // Times, a user, the command, and where its output goes.
                (None, None) if name.ends_with("cron/pgark") => {
                    let command = line.split_once("pgark ").map(|(_, command)| command).unwrap_or_default();
                    command.split_whitespace().take_while(|word| !word.starts_with('>')).map(str::to_owned).collect()
                }
                (None, None) => continue,
            };
            // Other programs are begun too.
            if words.first().is_none_or(|first| first.starts_with('/') && !first.ends_with("bin/pgark")) {
                continue;
            }
            let words = words.into_iter().skip_while(|word| word == "pgark" || word.ends_with("bin/pgark"));
            let words: Vec<String> = words.map(|word| word.replace("%i", "main")).collect();
            if !words.is_empty() {
                found.push((name.clone(), words));
            }
        }
    }
    found
}

#[test]
fn packed_commands_are_ones_that_the_program_takes() {
    // What comes before is looked at first.
    let takes = |words: &[String]| {
        let words: Vec<&str> = [BINARY].into_iter().chain(words.iter().map(String::as_str)).chain(["--help"]).collect();
        run(&top(), &words)
    };
    let commands = packed_commands();
    for (file, words) in &commands {
        let (well, said) = takes(words);
        assert!(well, "{file}: {}\n{said}", words.join(" "));
    }
    let from = |part: &str| commands.iter().filter(|(file, _)| file.contains(part)).count();
    assert_eq!((from("systemd"), from("cron"), from("docker"), from("helm")), (9, 6, 3, 5), "{commands:?}");
    assert!(!takes(&["backup".into(), "--no-such-flag".into()]).0);
}

/// Docker sees what is copied, and of that what `.dockerignore` lets through: the rest of this directory is not there.
#[test]
fn an_image_is_built_of_all_that_the_program_is_made_of() {
    let dockerfile = fs::read_to_string(top().join("packaging/docker/Dockerfile")).expect("a file");
    let ignored = fs::read_to_string(top().join(".dockerignore")).expect("a file");
    let of_here =
        dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--"));
    let copied: Vec<&Path> =
        of_here.flat_map(|line| line.rsplit_once(' ').expect("from and to").0.split(' ')).map(Path::new).collect();
    let let_through: Vec<&Path> = ignored.lines().filter_map(|line| line.strip_prefix('!')).map(Path::new).collect();
    for path in &copied {
        assert!(top().join(path).exists(), "{} is not there", path.display());
        assert!(let_through.iter().any(|dir| path.starts_with(dir)), "{} is ignored", path.display());
    }
    let mut included = 0;
    for (source, text) in files_under(&top().join("crates")) {
        if source.extension().is_none_or(|e| e != "rs") || !source.components().any(|part| part.as_os_str() == "src") {
            continue;
        }
        let text = String::from_utf8(text).expect("text");
        let text = text.split("#[cfg(test)]\nmod tests {").next().expect("the program");
        for part in text.split("include_str!(\"").skip(1).chain(text.split("include_bytes!(\"").skip(1)) {
            let name = part.split('"').next().expect("a path");
            let path = source.parent().expect("a directory").join(name).canonicalize();
            let path = path.unwrap_or_else(|e| panic!("{}: {name}: {e}", source.display()));
            let path = path.strip_prefix(top()).expect("inside").to_owned();
            assert!(copied.iter().any(|dir| path.starts_with(dir)), "{} includes {name}", source.display());
            included += 1;
        }
    }
    assert!(included > 5, "{included}");
    let manifest = fs::read_to_string(top().join("Cargo.toml")).expect("a file");
    let version =
        manifest.split("rust-version = \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a version");
    assert!(dockerfile.contains(&format!("ARG RUST_VERSION={version}\n")), "{version}");
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

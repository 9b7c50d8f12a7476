//! The guides under docs/guide: their marked commands are run, page after page, on a cluster of its own; and the reference is up to date.
//!
//! A block below `<!-- run -->` must end with 0, one below `<!-- run: 0 3 -->` with one of these codes; `s3` among them asks for an
//! object store. What a reader would have elsewhere (places, `sudo`) is replaced, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgark_testkit::{ObjectServer, ObjectServerKind, Scratch, TestCluster, as_postgres, demanded, run_bounded};

use crate::site::BINARY;

/// In the order in which somebody would read them.
const PAGES: [&str; 6] = ["first-backup.md", "pitr.md", "several-repositories.md", "s3.md", "drills.md", "recovery.md"];
const LIMIT: Duration = Duration::from_secs(300);

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

struct Block {
    codes: Vec<i32>,
    wants_s3: bool,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(docs().join("guide").join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
    let mut found = vec![];
    for part in text.split("<!-- run").skip(1) {
        let (mark, rest) = part.split_once("-->").expect("the end of the mark");
        let words: Vec<&str> = mark.trim_start_matches(':').split_whitespace().collect();
        let mut codes: Vec<i32> = words.iter().filter_map(|word| word.parse().ok()).collect();
        if codes.is_empty() {
            codes.push(0);
        }
        let text = rest.strip_prefix("\n```sh\n").and_then(|rest| rest.split_once("\n```")).expect("a block of sh").0;
        found.push(Block { codes, wants_s3: words.contains(&"s3"), text: text.to_owned() });
    }
    assert!(!found.is_empty(), "{page} has no marked block");
    found
}

#[test]
fn the_commands_in_the_guides_work() {
    let server = installed_or_skip!();
    // Before the cluster, so that it is dropped after it.
    let scratch = Scratch::new("guide");
    for dir in ["mnt", "pg", "bin", "home"] {
        scratch.dir(dir);
    }
    let cluster =
        TestCluster::builder(&server).archive_command("false").conf("archive_timeout = '5min'").start(&scratch, "c");
    let store = ObjectServer::start(ObjectServerKind::Moto);
    if let Err(why) = &store {
        assert!(!demanded(), "skipping is not allowed here (PGARK_TEST_DEMAND=1): {why}");
        eprintln!("SKIPPED: {}:{}: s3.md: {why}", file!(), line!());
    }
    let place = |name: &str| scratch.join(name).display().to_string();
    // What the package puts into /usr/bin, with the configuration where this test has it.
    let access: String =
        store.iter().flat_map(ObjectServer::environment).map(|(n, v)| format!("export {n}='{v}'\n")).collect();
    let wrapper =
        format!("#!/bin/sh\nexport PGARK_CONFIG='{}'\n{access}exec '{BINARY}' \"$@\"\n", place("etc/pgark.toml"));
    let program = scratch.file("bin/pgark", wrapper.as_bytes(), 0o755);
    let places = [
        ("sudo -E -u postgres ", String::new()),
        ("sudo -u postgres ", String::new()),
        ("sudo ", String::new()),
        ("/var/lib/postgresql/15/main", cluster.data_dir().display().to_string()),
        ("/var/lib/postgresql/15", place("pg")),
        ("/var/run/postgresql", cluster.socket_dir().display().to_string()),
        ("port = 5432", format!("port = {}", cluster.port())),
        ("/var/lib/pgark", place("lib")),
        ("/etc/pgark", place("etc")),
        ("/mnt/backup", place("mnt")),
        ("/usr/bin/pgark", program.display().to_string()),
        (
            "s3://example-backups/prod?region=eu-central-1",
            store.as_ref().map_or_else(|_| String::new(), |s| s.url("prod")),
        ),
    ];
    for page in PAGES {
        let mut script = "set -euo pipefail\n".to_owned();
        let runs = |block: &Block| store.is_ok() || !block.wants_s3;
        for block in blocks(page).iter().filter(|block| runs(block)) {
            let text = places.iter().fold(block.text.clone(), |text, (from, to)| text.replace(from, to));
            assert!(!text.contains("sudo"), "{page}: {text}");
            // Variables live from one block to the next; the last command says how a block ended.
            let codes: Vec<String> = block.codes.iter().map(ToString::to_string).collect();
            script += "set -x\n";
            match codes.as_slice() {
                [code] if code == "0" => script += &format!("{text}\n"),
                _ => {
                    let (first, last) = text.rsplit_once('\n').unwrap_or(("", &text));
                    script += &format!(
                        "{first}\ncode=0\n{last} || code=$?\ncase $code in {}) ;; *) exit 99 ;; esac\n",
                        codes.join("|")
                    );
                }
            }
        }
        let path = scratch.file(page, script.as_bytes(), 0o755);
        let mut command = as_postgres("bash");
        command.arg(&path).current_dir(scratch.join("home"));
        command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", place("bin"))).env("HOME", place("home"));
        command.env("PGHOST", cluster.socket_dir()).env("PGPORT", cluster.port().to_string());
        let output = run_bounded(command, b"", LIMIT).unwrap_or_else(|e| panic!("{page}: {e}"));
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.is_some_and(|status| status.success()),
            "{page} ended with {:?}\n--- stdout\n{}--- stderr\n{}",
            output.status,
            said(&output.stdout),
            said(&output.stderr)
        );
    }
    textfile(&program, &scratch);
}

/// What node_exporter would read, written in one step, and read by Prometheus' own tool.
fn textfile(program: &Path, scratch: &Scratch) {
    let dir = scratch.dir("textfile");
    let file = dir.join("pgark.prom");
    let run = |file: &Path| {
        let mut command = as_postgres(program);
        command.arg("metrics").arg("--textfile").arg(file);
        run_bounded(command, b"", LIMIT).expect("pgark").status.and_then(|s| s.code())
    };
    assert_eq!(run(&dir.join("pgark.txt")), Some(2));
    assert_eq!((run(&file), run(&file)), (Some(0), Some(0)));
    let names: Vec<_> = fs::read_dir(&dir).expect("a directory").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(names, ["pgark.prom"]);
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o644);
    let text = fs::read_to_string(&file).expect("text");
    for line in ["pgark_repo_readable{cluster=\"main\"} 1.0", "pgark_rto_seconds{cluster=\"main\"} 14400.0"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    for name in [
        "pgark_backup_last_success_timestamp_seconds{cluster=\"main\",kind=\"physical\",type=\"incr",
        "pgark_repo_used_bytes",
    ] {
        assert!(text.contains(name), "{name}\n{text}");
    }
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]);
    match run_bounded(promtool, text.as_bytes(), LIMIT) {
        Ok(output) => {
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.is_some_and(|s| s.code() != Some(1)) && !said.contains("error"), "{said}\n{text}");
        }
        Err(why) if !demanded() => eprintln!("SKIPPED: {}:{}: promtool: {why}", file!(), line!()),
        Err(why) => panic!("promtool: {why}"),
    }
    // What cannot be read is what the file says, and the exit code.
    let secret = scratch.join("etc/passphrase");
    fs::rename(&secret, scratch.join("away")).expect("moved");
    assert_eq!(run(&file), Some(3));
    assert!(fs::read_to_string(&file).expect("text").contains("pgark_repo_readable{cluster=\"main\"} 0.0"));
}

/// Made of the program and its sources: 'make reference' writes it.
#[test]
fn the_reference_is_up_to_date_and_every_error_is_explained() {
    let mut command = Command::new("python3");
    command.arg(docs().join("../scripts/reference")).args(["--check", "--binary", BINARY]);
    let output = run_bounded(command, b"", LIMIT).expect("python3");
    assert!(output.status.is_some_and(|s| s.success()), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Commands in blocks of documents, and in the heads of examples, by file; those with parts left open are not.
fn documented_commands() -> Vec<(PathBuf, String)> {
    let top = docs().join("..");
    let files = |dir: &str, kind: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(top.join(dir)).expect("a directory").map(|e| e.expect("an entry").path());
        entries.filter(|path| path.extension().is_some_and(|e| e == kind)).collect()
    };
    let mut found = vec![];
    let markdown = [vec![top.join("README.md")], files("docs", "md"), files("docs/guide", "md")].concat();
    for path in markdown.into_iter().chain(files("examples", "toml")) {
        let text = fs::read_to_string(&path).expect("text");
        let blocks: Vec<&str> = match path.extension().is_some_and(|e| e == "md") {
            true => text.split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect(),
            false => vec![text.as_str()],
        };
        for line in blocks.join("\n").replace("\\\n", " ").lines() {
            let line = line.trim_start_matches("#   ").replace(" -E ", " ");
            let line = line.strip_prefix("sudo -u postgres ").unwrap_or(&line);
            let Some(command) = line.strip_prefix("pgark ").filter(|command| !command.contains(['…', '['])) else {
                continue;
            };
            let ends = [" #", " | ", " || ", " && ", " > ", " < ", ";"];
            let end = ends.iter().filter_map(|end| command.find(end)).min().unwrap_or(command.len());
            found.push((path.clone(), command[..end].trim().to_owned()));
        }
    }
    found
}

#[test]
fn commands_in_the_documents_are_ones_that_the_program_takes() {
    let commands = documented_commands();
    assert!(commands.len() > 90, "{}", commands.len());
    for (path, text) in commands {
        // What is between quotes is one word, and has spaces that no other word has.
        let mut words: Vec<String> = vec![];
        for (n, part) in text.split(['\'', '"']).enumerate() {
            match n % 2 {
                0 => words.extend(part.split_whitespace().map(str::to_owned)),
                _ => words.push(part.to_owned()),
            }
        }
        let mut command = Command::new(BINARY);
        // What comes before is looked at first.
        command.args(&words).arg("--help");
        let output = run_bounded(command, b"", LIMIT).expect("pgark");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.is_some_and(|s| s.success()), "{}: pgark {text}\n{said}", path.display());
    }
}

//! The audit trail: every command that changes or reads data is in it, whatever became of it, and nobody takes it out again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgark_testkit::{Pgark, give_to_postgres, objects_under};
use serde_json::Value;

use crate::keys::with_passphrase;
use crate::site::Site;

const LIMIT: Duration = Duration::from_secs(60);

fn events(pgark: &Pgark) -> Vec<Value> {
    pgark.json(["audit", "show"])["events"].as_array().expect("events").clone()
}

fn commands(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|e| e["command"].as_str()).collect()
}

fn last<'a>(events: &'a [Value], command: &str) -> &'a Value {
    events.iter().rev().find(|e| e["command"] == command).unwrap_or_else(|| panic!("no {command} in {events:?}"))
}

fn spooled(state: &Path) -> Vec<PathBuf> {
    let is_record = |p: &PathBuf| p.extension().is_some_and(|e| e == "json");
    objects_under(&state.join("audit")).into_iter().filter(is_record).collect()
}

fn records(repo: &Path) -> Vec<PathBuf> {
    let mut all = objects_under(&repo.join("audit/main"));
    all.sort();
    all
}

fn problems(pgark: &Pgark, more: &[&str], code: i32) -> String {
    let outcome = pgark.run([&["audit", "verify", "--json"], more].concat()).expect_code(code);
    let document = outcome.json();
    assert_eq!(document["ok"], code == 0, "{document}");
    let journals = document["repositories"].as_array().into_iter().flatten().flat_map(|r| r["journals"].as_array());
    let problems = journals.flatten().flat_map(|j| j["problems"].as_array()).flatten();
    problems.filter_map(|p| p["what"].as_str()).collect::<Vec<_>>().join("; ")
}

#[test]
fn what_was_tried_stays_written_down_whatever_became_of_it() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "audit");
    let state = site.scratch.join("state");
    let id = site.pgark.backup("full");
    site.pgark.run(["delete", "20200101-000000F", "--yes"]).expect_code(4);
    site.pgark.run(["annotate", &id, "note=token=geheim-canary"]).expect_code(0);
    site.pgark.run(["delete", &id, "--dry-run"]);
    site.pgark.run(["info"]).expect_code(0);
    let all = events(&site.pgark);
    assert_eq!(commands(&all), ["init", "backup", "delete", "annotate"], "reading no data and planning are no events");
    let backup = last(&all, "backup");
    assert_eq!((&backup["end"]["exit_code"], &backup["cluster"]), (&0.into(), &"main".into()), "{backup}");
    assert_eq!(backup["end"]["about"][0], serde_json::json!({"what": "backup", "id": id}), "{backup}");
    assert!(backup["user"].is_string() && backup["host"].is_string() && backup["ended"] == true, "{backup}");
    let delete = last(&all, "delete");
    assert_eq!(
        (&delete["end"]["exit_code"], &delete["end"]["error"]),
        (&4.into(), &"E-BACKUP-NONE".into()),
        "{delete}"
    );
    // Secrets are in none of it, and nothing waits on this host.
    let exported = site.pgark.run(["audit", "export"]).expect_code(0).stdout;
    assert!(exported.contains("note=token=***") && !exported.contains("geheim-canary"), "{exported}");
    assert!(spooled(&state).is_empty(), "{:?}", spooled(&state));
    let raw = objects_under(&site.pgark.repo().join("audit"));
    let sealed = |p: &PathBuf| !fs::read(p).expect("an object").windows(8).any(|w| w == b"exit_cod");
    assert!(raw.len() >= 8 && raw.iter().all(sealed), "records are sealed");
    for path in objects_under(&state) {
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o077, 0, "{}", path.display());
    }

    a_killed_command_has_no_end(&site, &state);
    a_repository_that_is_away_stops_nobody(&site, &state);
    nobody_takes_it_out_again(&site);
    copies_new_keys_and_writers(&site);
}

/// Killed before the repository is open: the attempt is on this host already, and goes there with the next command.
fn a_killed_command_has_no_end(site: &Site, state: &Path) {
    let waits = site.scratch.file("waits", b"#!/bin/sh\nwhile kill -0 $PPID; do sleep 0.02; done 2>/dev/null\n", 0o755);
    give_to_postgres(&waits);
    let waiting = site.pgark.clone().without_env("PGARK_PASSPHRASE_FILE").env("PGARK_PASSPHRASE_COMMAND", &waits);
    let mut child = waiting.command(["backup", "--type", "full", "-q"]).spawn().expect("a program");
    let until = Instant::now() + LIMIT;
    while spooled(state).is_empty() {
        assert!(Instant::now() < until, "the attempt is written down before anything is done");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().and_then(|()| child.wait()).expect("killed");
    site.pgark.run(["keep", "20200101-000000F"]).expect_code(4);
    assert!(spooled(state).is_empty());
    let all = events(&site.pgark);
    let killed = last(&all, "backup");
    assert_eq!((&killed["ended"], &killed["end"]), (&false.into(), &Value::Null), "{killed}");
    assert!(site.pgark.run(["audit", "show"]).expect_code(0).stdout.contains("NO END"));
    assert_eq!(problems(&site.pgark, &[], 0), "");
}

fn a_repository_that_is_away_stops_nobody(site: &Site, state: &Path) {
    let other = site.scratch.join("other");
    let (first, second) = (site.pgark.repo().display().to_string(), other.display().to_string());
    let both = ["--repo", first.as_str(), "--repo", second.as_str()];
    site.pgark.run([&["init"], both.as_slice()].concat()).expect_code(0);
    site.pgark.run(["replicate", "--from", &first, "--to", &second]).expect_code(0);
    let gone = site.scratch.join("gone");
    fs::rename(&other, &gone).expect("taken away");
    let outcome = site.pgark.run([&["backup", "--json"], both.as_slice()].concat());
    assert!(outcome.succeeded() && outcome.stderr.contains("E-AUDIT-SPOOLED"), "{outcome}");
    let id = outcome.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(spooled(state).len(), 2, "attempt and end wait for the other one");
    // Told once, and from then on by `check`.
    let in_other = site.pgark.clone().env("PGARK_REPO", &other);
    let again = in_other.run(["keep", "20200101-000000F"]).expect_code(10);
    assert!(!again.stderr.contains("E-AUDIT"), "{again}");
    let waits = |n: usize| {
        let checked = site.pgark.run([&["check", "--no-switch", "--json"], both.as_slice()].concat()).json();
        let all = checked["checks"].as_array().expect("checks").clone();
        let found: Vec<Value> = all.into_iter().filter(|c| c["name"] == "audit trail").collect();
        assert_eq!(found.len(), 2, "{found:?}");
        found[n].clone()
    };
    assert_eq!(waits(0)["verdict"], "ok");
    let told = waits(1);
    assert!(told["message"].as_str().is_some_and(|m| m.starts_with("4 records wait on this host since ")), "{told}");
    assert_eq!(told["verdict"], "warning", "{told}");
    fs::rename(&gone, &other).expect("brought back");
    in_other.run(["keep", "20200101-000000F"]).expect_code(4);
    assert!(spooled(state).is_empty());
    assert_eq!((&waits(1)["verdict"], &waits(1)["message"]), (&"ok".into(), &"no record waits on this host".into()));
    let all = events(&in_other);
    assert_eq!(last(&all, "backup")["end"]["about"][0]["id"], id.as_str(), "{all:?}");
    assert_eq!(commands(&all).first(), Some(&"init"), "what was before it was a copy is there too");
    let here: Vec<Value> = events(&site.pgark).iter().map(|e| e["id"].clone()).collect();
    let there: Vec<Value> = all.iter().map(|e| e["id"].clone()).collect();
    assert!(there.iter().filter(|id| here.contains(id)).count() >= 6, "the same events: {here:?} {there:?}");
    // Where this host may write nothing the command does its work all the same, and says so.
    let closed = site.pgark.clone().env("PGARK_STATE_DIR", "/proc/nowhere");
    let outcome = closed.run(["annotate", &id, "a=b"]).expect_code(0);
    assert!(!outcome.stderr.contains("E-AUDIT"), "the repository takes it: {outcome}");
    assert_eq!(problems(&site.pgark, &both, 0), "");
}

fn nobody_takes_it_out_again(site: &Site) {
    // This host saw the end itself.
    site.pgark.run(["keep", "20200101-000000F"]).expect_code(4);
    let head = site.scratch.join("head.json").display().to_string();
    site.pgark.run(["audit", "export", "--head", "--to", &head]).expect_code(0);
    let elsewhere = site.elsewhere.clone().env("PGARK_STATE_DIR", site.scratch.join("another-state"));
    assert_eq!(problems(&elsewhere, &["--head", &head], 0), "");
    let all = records(site.pgark.repo());
    let changed = |pgark: &Pgark, code: i32, more: &[&str], change: &dyn Fn()| {
        let kept: Vec<Vec<u8>> = all.iter().map(|p| fs::read(p).expect("a record")).collect();
        change();
        let told = problems(pgark, more, code);
        for (path, bytes) in all.iter().zip(kept) {
            fs::write(path, bytes).expect("put back");
            give_to_postgres(path);
        }
        told
    };
    let remove = |n: usize| fs::remove_file(&all[n]).expect("removed");
    assert!(changed(&elsewhere, 20, &[], &|| remove(2)).contains("record 3 is missing"));
    assert!(changed(&elsewhere, 20, &[], &|| fs::write(&all[2], "x").expect("written")).contains("damaged"));
    let swap = || {
        let (a, b) = (fs::read(&all[2]).expect("a record"), fs::read(&all[3]).expect("a record"));
        fs::write(&all[2], b).and_then(|()| fs::write(&all[3], a)).expect("written");
    };
    assert!(changed(&elsewhere, 20, &[], &swap).contains("another name"));
    // The end: seen by who remembers it, which is this host, and whoever exported a head.
    let cut = || (all.len() - 2..all.len()).for_each(remove);
    assert_eq!(changed(&elsewhere, 0, &[], &cut), "");
    assert!(changed(&elsewhere, 20, &["--head", &head], &cut).contains("the end is cut off"));
    assert!(changed(&site.pgark, 20, &[], &cut).contains("the end is cut off"));
    told_after_it_has_grown(site, &all);
    assert!(changed(&site.pgark, 0, &["--accept", "--yes"], &cut).is_empty(), "accepted");
    assert_eq!(problems(&site.pgark, &[], 0), "");
    // What was put in is none of its records.
    let beside = all[2].ancestors().nth(3).expect("the directory of the trail").join("strange");
    for strange in [all[2].with_file_name("ffffffffffffffff"), all[2].with_file_name("strange"), beside] {
        fs::copy(&all[2], &strange).expect("a copy");
        give_to_postgres(&strange);
        assert!(problems(&site.pgark, &[], 20).contains("is no record of this journal"));
        let verified = site.elsewhere.run(["verify", "--json"]).expect_code(20).json();
        let object = verified["problems"][0]["object"].as_str().unwrap_or_default();
        assert!(strange.ends_with(object), "{verified}");
        fs::remove_file(strange).expect("removed");
    }
    // `verify` looks at it too.
    fs::rename(&all[2], site.scratch.join("record")).expect("moved");
    let verified = site.elsewhere.run(["verify", "--json"]).expect_code(20).json();
    assert!(verified["problems"][0]["object"].as_str().is_some_and(|o| o.starts_with("audit/main/")), "{verified}");
    fs::rename(site.scratch.join("record"), &all[2]).expect("moved back");
    site.elsewhere.run(["verify"]).expect_code(0);
    let wrong = site.scratch.file("wrong.json", b"{}", 0o644);
    give_to_postgres(&wrong);
    site.pgark.run(["audit", "verify", "--head", &wrong.display().to_string()]).expect_code(2);
    site.pgark.run(["audit", "show", "--since", "tomorrow"]).expect_code(2);
}

/// The journal is set back, as with an older copy of the repository, and is as long as it was soon.
fn told_after_it_has_grown(site: &Site, all: &[PathBuf]) {
    let (repo, state) = (site.pgark.repo(), site.scratch.join("state"));
    let heads: Vec<(PathBuf, Vec<u8>)> = objects_under(&state.join("audit-heads"))
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).expect("a head")))
        .collect();
    let kept: Vec<Vec<u8>> = all.iter().map(|p| fs::read(p).expect("a record")).collect();
    all.iter().rev().take(2).for_each(|path| fs::remove_file(path).expect("removed"));
    for _ in 0..3 {
        let told = site.pgark.run(["keep", "20200101-000000F"]).expect_code(4);
        assert!(told.stderr.contains("E-AUDIT-CUT"), "{told}");
    }
    assert!(records(repo).len() > all.len());
    let checked = site.pgark.run(["check", "--no-switch", "--json"]).json();
    let found = checked["checks"].as_array().expect("checks").iter().find(|c| c["name"] == "audit trail").cloned();
    let found = found.unwrap_or_else(|| panic!("{checked}"));
    let message = found["message"].as_str().unwrap_or_default();
    assert!(found["verdict"] == "warning" && message.contains("is another one than it was"), "{found}");
    // As it was.
    records(repo).into_iter().skip(all.len()).for_each(|path| fs::remove_file(path).expect("removed"));
    for (path, bytes) in all.iter().zip(kept).map(|(path, bytes)| (path.clone(), bytes)).chain(heads) {
        fs::write(&path, bytes).expect("put back");
        give_to_postgres(&path);
    }
}

fn copies_new_keys_and_writers(site: &Site) {
    let (from, to) = (site.pgark.repo().display().to_string(), site.scratch.join("copy").display().to_string());
    site.pgark.run(["replicate", "--from", &from, "--to", &to]).expect_code(0);
    let again = site.pgark.json(["replicate", "--from", &from, "--to", &to]);
    assert_eq!(again["objects"], 0, "{again}");
    let copy = site.pgark.clone().env("PGARK_REPO", &to);
    let (here, there) = (events(&site.pgark), events(&copy));
    let ids = |all: &[Value]| all.iter().map(|e| e["id"].clone()).collect::<Vec<_>>();
    assert!(ids(&here).iter().all(|id| ids(&there).contains(id)), "{:?} {:?}", ids(&here), ids(&there));
    assert_eq!(problems(&copy, &[], 0), "");

    site.pgark.run(["key", "rotate", "--yes"]).expect_code(0);
    site.pgark.run(["key", "reencrypt", "--yes", "--grace", "0s"]).expect_code(0);
    site.pgark.run(["key", "retire", "--yes", "--grace", "0s"]).expect_code(0);
    assert_eq!(problems(&site.pgark, &[], 0), "");
    let verified = |pgark: &Pgark| pgark.run(["audit", "verify"]).expect_code(0).stdout;
    assert!(verified(&site.pgark).ends_with("the audit trail is whole\n"));
    // Who has never been here knows nothing of its end.
    let stranger = site.pgark.clone().env("PGARK_STATE_DIR", site.scratch.join("stranger"));
    assert!(verified(&stranger).ends_with("was not checked\n"), "{}", verified(&stranger));
    assert!(commands(&events(&site.pgark)).ends_with(&["key", "key", "key"]));
    site.pgark.run(["verify"]).expect_code(0);

    let (writer, file) = with_passphrase(&site.pgark, &site.scratch, "writer", "canary writer passphrase");
    let file = file.display().to_string();
    site.elsewhere.run(["key", "add", "--writer", "--new-passphrase-file", &file]).expect_code(0);
    let outcome = writer.run(["backup", "--json"]);
    assert!(outcome.succeeded() && !outcome.stderr.contains("E-AUDIT"), "{outcome}");
    let id = outcome.json()["id"].as_str().expect("an id").to_owned();
    writer.run(["audit", "show"]).expect_code(4);
    let refused = writer.run(["restore", "--to", &site.scratch.join("x").display().to_string()]).expect_code(4);
    assert!(!refused.stdout.contains("restored"), "{refused}");
    let all = events(&site.pgark);
    assert_eq!(last(&all, "backup")["end"]["about"][0]["id"], id.as_str(), "{all:?}");
    assert_eq!(problems(&site.pgark, &[], 0), "");
    site.pgark.run(["verify"]).expect_code(0);
}

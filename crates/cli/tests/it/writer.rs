//! A host with a writer's secret archives and backs up, and neither reads nor removes anything; others restore what it stored.

use std::fs;
use std::path::Path;

use pgark_testkit::{
    Fault, Pgark, StopMode, Target, as_postgres, assert_same_state, give_to_postgres, objects_under, points_of,
    repository_tree, skip, state_of, strace_works, traced,
};
use serde_json::Value;

use crate::crash::{Template, assert_delivers, next_segment, visited};
use crate::keys::{SECOND, refused, rotate, with_passphrase};
use crate::site::{Site, assert_only_beside};

const WRITER: &str = "canary writer passphrase";

/// The same host with a secret that reads nothing, made by the one that reads. PostgreSQL archives with it from now on.
fn writer_of(site: &Site) -> Pgark {
    let cache = site.scratch.dir("writer-cache");
    let (writer, file) = with_passphrase(&site.pgark, &site.scratch, "writer", WRITER);
    let add = ["key", "add", "--writer", "--new-passphrase-file", file.to_str().expect("text"), "--label", "host a"];
    let added = site.elsewhere.json(add);
    assert_eq!((&added["added"], &added["slot"]["writer"]), (&true.into(), &"main".into()), "{added}");
    assert_eq!(site.elsewhere.json(add)["added"], false, "once more changes nothing");
    let command = site.elsewhere.archive_command();
    let (before, after) = command.split_once(" archive-push ").expect("a push");
    let after = after.replace(&site.elsewhere.passphrase_file().display().to_string(), &file.display().to_string());
    let command = format!("PGARK_CACHE_DIR={} {before} archive-push {after}", cache.display());
    site.cluster.psql(&format!("alter system set archive_command = '{command}'"));
    site.cluster.reload();
    writer.env("PGARK_CACHE_DIR", &cache)
}

fn version(path: &Path) -> u8 {
    fs::read(path).expect("object")[9]
}

fn relative(pgark: &Pgark, path: &Path) -> String {
    path.strip_prefix(pgark.repo()).expect("below").to_str().expect("text").to_owned()
}

#[test]
fn a_writer_archives_and_backs_up_and_a_reader_restores() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "writer");
    site.cluster.psql("create table t as select g i, repeat(md5(g::text), 5) m from generate_series(1, 20000) g");
    site.ledger.write_rows(&site.cluster, 3);
    let first = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let early = Target::Time { at: site.ledger.last().committed, inclusive: true };
    let old: Vec<_> = objects_under(&site.elsewhere.repo().join("clusters"));
    let writer = writer_of(&site);

    let slots = writer.json(["key", "list"])["slots"].as_array().expect("slots").clone();
    let opened: Vec<bool> = slots.iter().map(|s| s["opened"] == true).collect();
    assert_eq!(opened, [false, true], "{slots:?}");
    site.cluster.psql("update t set m = 'later' where i % 900 = 0");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let full = writer.json(["backup", "--type", "full"]);
    assert_eq!((&full["type"], &full["full_because"]), (&"full".into(), &Value::Null), "{full}");
    let second = writer.json(["backup"]);
    let why = second["full_because"].as_str().unwrap_or_default();
    assert!(second["type"] == "full" && why.contains("a writer's"), "{second}");
    site.ledger.write_rows(&site.cluster, 3);
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    let checked = writer.run(["check", "--json"]);
    assert_only_beside(&checked);
    assert!(checked.stdout.contains("writer of 'main'"), "{checked}");
    let info = writer.json(["info"]);
    let windows = info["clusters"][0]["windows"].as_array().expect("windows");
    assert!(windows.iter().any(|w| w["backups"].as_array().is_some_and(|b| b.len() == 3)), "{info}");
    assert_eq!(info["clusters"][0]["backups"].as_array().map(Vec::len), Some(3), "{info}");

    // What it stored is of its form; what was there stays what it was, but for the books.
    let all = objects_under(&site.elsewhere.repo().join("clusters"));
    let new: Vec<_> = all.iter().filter(|p| !old.contains(p)).collect();
    assert!(new.len() > 15 && new.iter().all(|p| version(p) == 2), "{new:?}");
    assert!(old.iter().filter(|p| p.exists()).all(|p| version(p) == 1));

    site.elsewhere.run(["verify"]).expect_code(0);
    for id in [&first, &full["id"].as_str().expect("id").to_owned(), &second["id"].as_str().expect("id").to_owned()] {
        let recovered = site.restore(&format!("from-{id}"), &latest, &[id]);
        assert_same_state(&state, &state_of(&recovered), id);
        site.ledger.assert_exact(&recovered, &latest, 1);
    }
    site.assert_restores("early", &early, 1, &[&first]);
    // A reader builds on what a writer has stored.
    site.cluster.psql("update t set m = 'latest' where i % 1100 = 0");
    site.ledger.write_rows(&site.cluster, 3);
    let incr = site.pgark.json(["backup"]);
    assert_eq!((&incr["type"], &incr["base"]["method"]), (&"incr".into(), &"blocks".into()), "{incr}");
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    let recovered = site.restore("incr", &latest, &[incr["id"].as_str().expect("id")]);
    assert_same_state(&state, &state_of(&recovered), "incr");
    site.elsewhere.run(["verify"]).expect_code(0);
}

#[test]
fn a_writer_opens_no_content_and_every_other_command_refuses_it() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "writer-refused");
    let first = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let writer = writer_of(&site);
    let id = writer.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let name = fs::read_dir(site.cluster.data_dir().join("pg_wal/archive_status")).expect("status");
    let name = name.filter_map(|e| e.expect("entry").file_name().into_string().ok());
    let name = name.filter_map(|n| n.strip_suffix(".done").map(str::to_owned)).find(|n| n.len() == 24).expect("done");

    let scratch = |name: &str| site.scratch.join(name).display().to_string();
    let copy = site.scratch.dir("copy").display().to_string();
    let (to, got, tar) = (scratch("to"), scratch("got"), scratch("x.tar"));
    let before = repository_tree(site.elsewhere.repo());
    let refusals: Vec<Vec<&str>> = vec![
        vec!["restore", "--to", &to],
        vec!["restore", "--to", &to, "--dry-run"],
        vec!["verify"],
        vec!["verify", &id],
        vec!["verify", "--repair"],
        vec!["info", &id],
        vec!["wal", "history"],
        vec!["export", &id, "--to", &tar],
        vec!["replicate", "--from", site.elsewhere.repo().to_str().expect("text"), "--to", &copy],
        vec!["delete", &first, "--yes"],
        vec!["expire", "--yes"],
        vec!["expire", "--dry-run"],
        vec!["unexpire", &first],
        vec!["keep", &id],
        vec!["unkeep", &id],
        vec!["annotate", &id, "a=b"],
        vec!["key", "add", "--age-recipient", "age1up7jlexn7tc3sja3e22hhh4npqul7q5e8sauvfqlmvv5l0kh9prqxpj29d"],
        vec![
            "key",
            "add",
            "--writer",
            "--age-recipient",
            "age1up7jlexn7tc3sja3e22hhh4npqul7q5e8sauvfqlmvv5l0kh9prqxpj29d",
        ],
        vec!["key", "remove", "00000000", "--yes"],
        vec!["key", "rotate", "--yes"],
        vec!["key", "reencrypt", "--yes"],
        vec!["key", "retire", "--yes"],
        vec!["init"],
    ];
    for words in &refusals {
        let outcome = writer.run(words);
        if outcome.code == Some(2) {
            panic!("the test does not know this command: {outcome}");
        }
        assert!(!outcome.stderr.contains("E-AUDIT"), "{outcome}");
        refused(outcome, 4, "E-KEY-WRITER");
    }
    // Each is on record where it was refused, and nothing waits on this host.
    let events = site.elsewhere.json(["audit", "show", "--last", "200"])["events"].as_array().expect("events").clone();
    for command in ["restore", "delete", "expire", "export", "key", "annotate"] {
        let refused = |e: &&Value| e["command"] == command && e["end"]["error"] == "E-KEY-WRITER";
        assert!(events.iter().any(|e| refused(&e)), "{command}: {events:?}");
    }
    // To PostgreSQL every other code would say that the end of the archive was reached.
    let get = writer.run(["archive-get", &name, &got]).expect_code(126);
    assert!(get.stderr.contains("E-KEY-WRITER") && !Path::new(&got).exists(), "{get}");
    // Not even content of its own cluster, object by object.
    let mut tried = 0;
    for path in objects_under(&site.elsewhere.repo().join("clusters")) {
        let object = relative(&site.elsewhere, &path);
        let outcome = writer.run(["repo-get", &object]);
        assert!(!outcome.succeeded() && outcome.stdout.is_empty(), "{object}: {outcome}");
        tried += 1;
        if tried == 12 {
            break;
        }
    }
    before.assert_same(&repository_tree(site.elsewhere.repo()), "refusals");
    assert!(!Path::new(&to).exists() && !Path::new(&tar).exists());

    // What books tell, and what of it was not looked at.
    let quick = writer.json(["verify", "--quick"]);
    let notes = quick["notes"].to_string();
    assert_eq!(
        (&quick["ok"], &quick["depth"], &quick["backups"]),
        (&true.into(), &"books".into(), &serde_json::json!([])),
        "{quick}"
    );
    assert!(
        notes.contains("2 backups were not checked") && notes.contains("when the cluster had no writer"),
        "{quick}"
    );
    let listed = writer.json(["wal", "list", "--segments"]);
    let segments = listed["segments"].as_array().expect("segments");
    assert!(!segments.is_empty() && listed["not_opened"].as_u64() > Some(0), "{listed}");
    assert!(segments.iter().all(|s| s["restore_points"].is_null()), "{listed}");
    assert_eq!(listed["timelines"][0]["ranges"][0]["not_opened"], true, "{listed}");
    // A secret that opens one thing is not made to open another.
    let file = site.scratch.join("writer").display().to_string();
    refused(site.elsewhere.run(["key", "add", "--new-passphrase-file", &file]), 4, "E-KEY-SLOT-TAKEN");
    let own = site.elsewhere.passphrase_file().display().to_string();
    refused(site.elsewhere.run(["key", "add", "--writer", "--new-passphrase-file", &own]), 4, "E-KEY-SLOT-TAKEN");
    let nobody = site.elsewhere.clone().env("PGARK_CLUSTER", "nobody");
    refused(
        nobody.run([
            "key",
            "add",
            "--writer",
            "--age-recipient",
            "age1vgd6k5n5vhktywlz9rrlpd0afjxz90tk7nykl7pssg4rncdnuf3q84k2mk",
        ]),
        4,
        "E-CLUSTER-NONE",
    );
    let other = writer.clone().env("PGARK_CLUSTER", "other");
    assert_ne!(other.run(["info"]).code, Some(0));
    // The last slot that reads stays.
    let reader = site.elsewhere.json(["key", "list"])["slots"][0]["id"].as_str().expect("id").to_owned();
    refused(site.elsewhere.run(["key", "remove", &reader, "--yes"]), 4, "E-KEY-SLOT-LAST");
    site.elsewhere.run(["verify"]).expect_code(0);
}

#[test]
fn a_writers_push_that_is_killed_anywhere_can_be_repeated_and_other_wal_is_refused() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let site = Site::small(&server, "writer-kill");
    site.ledger.write_rows(&site.cluster, 3);
    site.pgark.backup("full");
    let writer = writer_of(&site);
    site.ledger.write_rows(&site.cluster, 3);
    site.archive_all();
    let segment = next_segment(&site);
    let template = Template::of(&site);
    let push = ["archive-push".as_ref(), segment.as_os_str()];
    let points = points_of(&writer, &site.scratch, &push);
    let mut killed = 0;
    for point in visited(&points, 12) {
        template.put_back();
        let outcome = traced(&writer, point, Fault::Kill, &push);
        killed += u32::from(!outcome.succeeded());
        writer.run(push).expect_code(0);
        writer.run(push).expect_code(0);
        assert_delivers(&site, &segment);
        site.elsewhere.run(["verify"]).expect_code(0);
    }
    assert!(killed > 5, "only {killed} of the kills hit the push");
    // Without a word of what it pushed, the host finds it again.
    fs::remove_dir_all(site.scratch.join("writer-cache")).expect("remove");
    site.scratch.dir("writer-cache");
    assert_eq!(writer.json(push.map(|w| w.to_str().expect("text")))["outcome"], "already_there");
    // The same name with another record in it.
    let other = site.scratch.dir("other").join(segment.file_name().expect("name"));
    let mut bytes = fs::read(&segment).expect("segment");
    let at = bytes.windows(8).position(|w| w == [0; 8]).map_or(9000, |_| 9000);
    bytes[at] ^= 1;
    fs::write(&other, &bytes).expect("write");
    give_to_postgres(&other);
    let outcome = writer.run(["archive-push", "--accept-damaged", other.to_str().expect("text")]);
    refused(outcome, 4, "E-WAL-CONFLICT");
    let problems = site.elsewhere.run(["verify", "--json"]).expect_code(20).json();
    assert_eq!(problems["problems"][0]["kind"], "conflict", "{problems}");
}

#[test]
fn a_writer_goes_on_over_a_rotation_and_its_objects_are_sealed_anew() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "writer-rotate");
    site.ledger.write_rows(&site.cluster, 3);
    let writer = writer_of(&site);
    let full = writer.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    // This host looks again only when the key that it has seen is gone.
    let late = writer.clone().env("PGARK_CACHE_DIR", site.scratch.dir("late-cache"));
    late.run(["info"]).expect_code(0);
    let rotated = rotate(&site.elsewhere, &[]);
    assert_eq!(rotated["rewrapped"].as_array().map(Vec::len), Some(2), "{rotated}");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let second = writer.backup("full");
    let generation = |path: &Path| u32::from_le_bytes(fs::read(path).expect("object")[12..16].try_into().expect("4"));
    let packs = site.elsewhere.repo().join(format!("clusters/main/backups/{second}/packs"));
    assert!(objects_under(&packs).iter().all(|p| generation(p) == 2 && version(p) == 2));
    site.elsewhere.run(["verify"]).expect_code(0);
    site.elsewhere.json(["key", "reencrypt", "--yes", "--grace", "0s"]);
    let all = objects_under(&site.elsewhere.repo().join("clusters"));
    assert!(all.iter().all(|p| generation(p) == 2 && version(p) == 2), "{all:?}");
    site.elsewhere.json(["key", "retire", "--yes", "--grace", "0s"]);
    late.run(["info"]).expect_code(0);
    site.ledger.write_rows(&site.cluster, 3);
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    assert_eq!(writer.json(["verify", "--quick"])["ok"], true);
    site.elsewhere.run(["verify"]).expect_code(0);
    for id in [&full, &second] {
        let recovered = site.restore(&format!("from-{id}"), &latest, &[id]);
        assert_same_state(&state, &state_of(&recovered), id);
    }
    // A writer whose slot was taken away is out with the next rotation at the latest.
    let slots = site.elsewhere.json(["key", "list"])["slots"].clone();
    let own = slots.as_array().expect("slots").iter().find(|s| s["writer"] == "main").expect("a writer").clone();
    site.elsewhere.json(["key", "remove", own["id"].as_str().expect("id"), "--yes"]);
    refused(writer.run(["info"]), 12, "E-KEY-WRONG");
    // Those that read go on as before, and so does what reads them.
    let (second_reader, file) = with_passphrase(&site.elsewhere, &site.scratch, "second", SECOND);
    site.elsewhere.json(["key", "add", "--new-passphrase-file", file.to_str().expect("text")]);
    second_reader.run(["verify"]).expect_code(0);
}

#[test]
fn copies_of_what_a_writer_stored_restore_and_damage_of_it_is_found_and_repaired() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "writer-copy");
    site.ledger.write_rows(&site.cluster, 3);
    let writer = writer_of(&site);
    let id = writer.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    let (copy, rekeyed) = (site.scratch.dir("copy"), site.scratch.dir("rekeyed"));
    let (from, to) = (site.elsewhere.repo().display().to_string(), copy.display().to_string());
    site.elsewhere.json(["replicate", "--from", &from, "--to", &to]);
    let (other, file) = with_passphrase(&site.elsewhere, &site.scratch, "other", SECOND);
    let re = rekeyed.display().to_string();
    site.elsewhere.json([
        "replicate",
        "--from",
        &from,
        "--to",
        &re,
        "--rekey",
        "--new-passphrase-file",
        file.to_str().expect("text"),
    ]);
    for pgark in [site.elsewhere.clone().env("PGARK_REPO", &copy), other.env("PGARK_REPO", &rekeyed)] {
        pgark.run(["verify"]).expect_code(0);
        let to = site.scratch.join("restored");
        pgark.run(site.restore_arguments(&to, &latest, &[&id])).expect_code(0);
        let recovered = pgark_testkit::Recovered::start(&site.server, &site.scratch, &to);
        let recovered = recovered.expect(pgark_testkit::Ending::Promoted);
        assert_same_state(&state, &state_of(&recovered), "copy");
        drop(recovered);
        fs::remove_dir_all(&to).expect("remove");
    }
    // One flipped bit in each kind of object, in the header and behind it.
    let find = |what: &str| {
        let all = objects_under(&site.elsewhere.repo().join("clusters"));
        let found = all.into_iter().find(|p| relative(&site.elsewhere, p).contains(what));
        found.unwrap_or_else(|| panic!("no {what}"))
    };
    for what in ["/packs/", "/manifest", "/record", "/wal/"] {
        let path = match what {
            "/wal/" => {
                let all = objects_under(&site.elsewhere.repo().join("clusters/main/wal"));
                all.into_iter().find(|p| p.file_name().is_some_and(|n| n.len() == 24)).expect("a segment")
            }
            _ => find(what),
        };
        let good = fs::read(&path).expect("object");
        for at in [9, 20, 40, 50, 70, good.len() / 2] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            overwrite(&path, &bad);
            let outcome = site.elsewhere.run(["verify", "--json"]);
            assert_eq!(outcome.code, Some(20), "byte {at} of {what}: {outcome}");
        }
        let repaired = site.elsewhere.run(["verify", "--repair", "--from", &to]);
        assert!(repaired.succeeded(), "{what}: {repaired}");
        assert!(fs::read(&path).expect("object") == good, "{what}");
    }
    site.elsewhere.run(["verify"]).expect_code(0);
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let temp = path.with_extension("overwrite");
    fs::write(&temp, bytes).expect("write");
    assert!(as_postgres("cp").arg(&temp).arg(path).status().expect("cp").success());
    fs::remove_file(&temp).expect("remove");
}

#[test]
fn a_writer_archives_into_each_repository_in_which_its_secret_has_a_slot() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "writer-two");
    let (a, b) = (site.elsewhere.repo().display().to_string(), site.scratch.join("b").display().to_string());
    site.pgark.run(["init", "--repo", &a, "--repo", &b]).expect_code(0);
    site.pgark.backup("full");
    let writer = writer_of(&site);
    let segment = next_segment(&site);
    let push = ["archive-push", "--repo", &a, "--repo", &b, segment.to_str().expect("text")];
    // The copy does not know it yet, and is not required: it is told, and lacks the segment.
    let told = writer.run(push).expect_code(0);
    assert!(told.stderr.contains("cannot be used: E-KEY-WRONG"), "{told}");
    let file = site.scratch.join("writer").display().to_string();
    site.elsewhere.json(["key", "add", "--writer", "--repo", &b, "--new-passphrase-file", &file]);
    writer.run(push).expect_code(0);
    writer.run(push).expect_code(0);
    assert_delivers(&site, &segment);
    let (name, got) = (segment.file_name().expect("name").to_str().expect("text"), site.scratch.join("of-b"));
    let words = ["archive-get", "--repo", &b, name, got.to_str().expect("text")];
    site.elsewhere.run(words).expect_code(0);
    assert!(fs::read(&got).expect("got") == fs::read(&segment).expect("segment"));
    refused(writer.run(["restore", "--repo", &a, "--repo", &b, "--to", "/nonexistent/x"]), 4, "E-KEY-WRITER");
    refused(writer.run(["verify", "--repo", &b]), 4, "E-KEY-WRITER");
}

#[test]
fn a_writer_goes_on_where_the_cluster_was_promoted_before_there_was_one() {
    let server = installed_or_skip!();
    let mut site = Site::small(&server, "writer-promoted");
    site.ledger.write_rows(&site.cluster, 3);
    site.pgark.backup("full");
    site.cluster.stop(StopMode::Fast);
    let signal = site.cluster.data_dir().join("standby.signal");
    fs::write(&signal, "").expect("write");
    give_to_postgres(&signal);
    site.cluster.start();
    site.cluster.promote();
    site.cluster.switch_and_archive();
    let writer = writer_of(&site);
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    // The history of timeline 2 is not for it to read; the server has it.
    let id = writer.backup("full");
    assert_eq!(writer.backup_info(&id)["timeline"], 2);
    site.ledger.write_rows(&site.cluster, 3);
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    let info = writer.json(["info"]);
    assert!(info["clusters"][0]["problems"].to_string().contains("on timeline 2"), "{info}");
    let listed = writer.json(["wal", "list"]);
    assert_eq!(listed["timelines"][1]["history_not_opened"], true, "{listed}");
    let quick = writer.json(["verify", "--quick"]);
    assert!(quick["notes"].to_string().contains("when the cluster had no writer"), "{quick}");
    site.elsewhere.run(["verify"]).expect_code(0);
    let recovered = site.restore("restored", &latest, &[&id]);
    assert_same_state(&state, &state_of(&recovered), "recovered");
}

//! A leaked key is made worthless: rotated, everything sealed anew under the next one while the server archives, retired.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use pgark_testkit::{
    Fault, Pgark, Target, as_postgres, assert_same_state, objects_under, points_of, skip, state_of, strace_works,
    traced,
};
use serde_json::Value;

use crate::crash::{Template, quiet_site, visited};
use crate::keys::{
    SECOND, assert_restores_by, generations, kill_anywhere, opened_by_age, refused, rotate, slot_of, with_passphrase,
};
use crate::site::{BINARY, Site};

const NOW: [&str; 5] = ["key", "reencrypt", "--yes", "--grace", "0s"];
const RETIRE: [&str; 5] = ["key", "retire", "--yes", "--grace", "0s"];

fn number(document: &Value, path: &str) -> u64 {
    document.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} of {document}"))
}

fn copy(from: &Path, to: &Path) {
    assert!(as_postgres("cp").arg("-a").arg(from).arg(to).status().expect("cp").success());
}

#[test]
fn what_was_under_the_old_key_restores_from_the_new_one_and_the_old_one_opens_nothing() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "reencrypt");
    site.cluster.psql("create table t as select g i, repeat(md5(g::text), 5) m from generate_series(1, 20000) g");
    site.ledger.write_rows(&site.cluster, 3);
    let full = site.pgark.backup("full");
    site.cluster.psql("update t set m = 'before' where i % 900 = 0");
    site.ledger.write_rows(&site.cluster, 3);
    let first_incr = site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let before = Target::Time { at: site.ledger.last().committed, inclusive: true };
    // This host looks again only when the key that it has seen is gone.
    let late = site.elsewhere.clone().env("PGARK_CACHE_DIR", site.scratch.dir("late"));
    late.run(["info"]).expect_code(0);
    // Whoever has the passphrase has copied the ring as well.
    let stolen_ring = site.scratch.join("stolen-ring");
    copy(&site.elsewhere.repo().join("keyring"), &stolen_ring);
    rotate(&site.pgark, &[]);
    site.cluster.psql("update t set m = 'after' where i % 1100 = 0");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let second_incr = site.pgark.backup("incr");

    refused(site.pgark.run(["key", "reencrypt"]), 4, "E-CONFIRM");
    refused(site.pgark.run(RETIRE), 4, "E-KEY-IN-USE");
    let plan = site.elsewhere.json(["key", "reencrypt", "--dry-run"]);
    let (objects, needed) = (number(&plan, "/clusters/0/old/objects"), number(&plan, "/needed_bytes"));
    assert!(objects > 10 && needed > 1_000_000 && plan["free_bytes"].is_u64(), "{plan}");
    let listed = site.elsewhere.run(["key", "retire", "--dry-run", "--json"]).expect_code(4).json();
    assert!(number(&listed, "/in_use") >= objects, "and older versions of the books, while there are such: {listed}");

    // The server archives meanwhile, and the older seals stay for a day.
    let size = |site: &Site| {
        objects_under(site.elsewhere.repo()).iter().map(|p| fs::metadata(p).map_or(0, |m| m.len())).sum::<u64>()
    };
    let before_bytes = size(&site);
    let mut command = site.elsewhere.command(["key", "reencrypt", "--yes", "--json", "-j", "2"]);
    let running = command.stdout(Stdio::piped()).spawn().expect("start");
    for _ in 0..3 {
        site.ledger.write_rows(&site.cluster, 2);
        site.cluster.switch_and_archive();
    }
    let output = running.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((number(&report, "/sealed/objects"), number(&report, "/sealed/bytes")), (objects, needed), "{report}");
    assert_eq!(number(&report, "/waiting/objects"), objects, "{report}");
    assert!(size(&site) >= before_bytes + needed);
    site.elsewhere.run(["verify"]).expect_code(0);
    let third_incr = site.pgark.backup("incr");
    let done = site.elsewhere.json(NOW);
    assert_eq!((number(&done, "/removed/objects"), number(&done, "/sealed/objects")), (objects, 0), "{done}");
    assert_eq!(generations(&site.elsewhere, "clusters"), [2]);
    refused(site.pgark.run(["key", "retire", "--yes"]), 4, "E-KEY-YOUNG");
    let retired = site.elsewhere.json(RETIRE);
    assert_eq!((&retired["retired"], &retired["in_use"]), (&serde_json::json!([1]), &0.into()), "{retired}");
    assert_eq!(site.elsewhere.json(["key", "list"])["older_generations"], serde_json::json!([]));
    late.run(["info"]).expect_code(0);

    // Archiving, backups and restores go on, from the oldest backup to the newest.
    site.ledger.write_rows(&site.cluster, 3);
    let last_incr = site.pgark.json(["backup"]);
    assert_eq!(last_incr["type"], "incr", "{last_incr}");
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("early", &before, 1, &[&full]);
    for id in [&full, &first_incr, &second_incr, &third_incr, &last_incr["id"].as_str().expect("id").to_owned()] {
        let recovered = site.restore(&format!("from-{id}"), &latest, &[id]);
        assert_same_state(&state, &state_of(&recovered), id);
        site.ledger.assert_exact(&recovered, &latest, 1);
    }

    // With the ring of then, the passphrase that opened it opens nothing that is there now.
    let repo = site.elsewhere.repo();
    let ours = site.scratch.join("our-ring");
    fs::rename(repo.join("keyring"), &ours).expect("rename");
    fs::remove_dir_all(repo.join("keyring-mirror")).expect("remove");
    copy(&stolen_ring, &repo.join("keyring"));
    copy(&stolen_ring, &repo.join("keyring-mirror"));
    assert!(site.elsewhere.run(["key", "list"]).succeeded(), "the old ring opens");
    refused(late.run(["info"]), 12, "E-KEY-OLDER");
    let mut tried = 0;
    for path in objects_under(&repo.join("clusters")) {
        let name = path.strip_prefix(repo).expect("below").to_str().expect("text").to_owned();
        if name.contains("/packs/") {
            continue;
        }
        let got = site.elsewhere.run(["repo-get", &name]);
        assert!(!got.succeeded() && got.stdout.is_empty(), "{name}: {got}");
        tried += 1;
        if tried == 25 {
            break;
        }
    }
    assert!(tried > 15, "{tried}");
    assert!(!site.elsewhere.run(["info"]).succeeded());
    fs::remove_dir_all(repo.join("keyring")).expect("remove");
    copy(&ours, &repo.join("keyring"));
    site.elsewhere.run(["info"]).expect_code(0);
}

#[test]
fn reencryption_and_retirement_can_be_killed_anywhere() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, id, latest) = quiet_site("kill-reencrypt", &server);
    // Without a passphrase slot, no run pays for slow key derivations.
    let by_age = opened_by_age(&site);
    by_age.json(["key", "remove", &slot_of(&by_age, "passphrase"), "--yes"]);
    rotate(&by_age, &[]);
    let template = Template::of(&site);
    let points = points_of(&by_age, &site.scratch, &NOW);
    assert!(points.iter().any(|p| matches!(p.syscall, "fsync" | "fdatasync" | "syncfs")));
    assert!(points.iter().any(|p| matches!(p.syscall, "unlink" | "unlinkat")), "nothing was removed");
    let mut killed = 0;
    for point in visited(&points, 8) {
        template.put_back();
        let outcome = traced(&by_age, point, Fault::Kill, &NOW);
        killed += u32::from(!outcome.succeeded());
        let verified = by_age.run(["verify", "--json"]).json();
        for problem in verified["problems"].as_array().expect("problems") {
            let object = problem["object"].as_str().unwrap_or_default();
            assert!(object.contains("-mirror/") && problem["kind"] == "missing", "{point:?}: {verified}");
        }
        by_age.run(NOW).expect_code(0);
        by_age.run(RETIRE).expect_code(0);
        by_age.run(["verify"]).expect_code(0);
        assert_eq!(generations(&by_age, "clusters"), [2], "{point:?}");
    }
    assert!(killed > 5, "only {killed} kills hit the reencryption");
    assert_restores_by(&by_age, &site, &latest, &id);
    fs::remove_dir_all(site.scratch.join("template")).expect("remove");

    rotate(&by_age, &[]);
    by_age.run(NOW).expect_code(0);
    kill_anywhere(&site, &by_age, &RETIRE);
    assert_eq!(by_age.json(["key", "list"])["older_generations"], serde_json::json!([]));
    by_age.run(["verify"]).expect_code(0);
}

#[test]
fn a_copy_with_keys_of_its_own_restores_and_follows() {
    let server = installed_or_skip!();
    let (site, id, _) = quiet_site("rekey", &server);
    let from = site.elsewhere.repo().to_str().expect("text").to_owned();
    let to = site.scratch.join("rekeyed");
    let (theirs, file) = with_passphrase(&Pgark::new(BINARY, &site.scratch, &to), &site.scratch, "theirs", SECOND);
    let file = file.to_str().expect("text").to_owned();
    let to = to.to_str().expect("text").to_owned();
    let replicate = ["replicate", "--from", &from, "--to", &to, "--rekey"];
    let with_file = [&replicate[..], &["--new-passphrase-file", &file]].concat();
    refused(site.elsewhere.run(replicate), 2, "E-KEY-NEW");
    refused(
        site.elsewhere.run(["replicate", "--from", &from, "--to", &to, "--new-passphrase-file", &file]),
        2,
        "E-USAGE",
    );
    let plan = site.elsewhere.json([&with_file[..], &["--dry-run"]].concat());
    assert_eq!(plan["backups"], serde_json::json!([id]), "{plan}");
    assert!(!Path::new(&to).exists(), "a dry run made the copy");
    let done = site.elsewhere.json(&with_file);
    assert_eq!(done["failed"], serde_json::json!([]), "{done}");
    // Its secret opens it, and ours does not; nor can it be taken for a plain copy.
    let ours = site.elsewhere.run(["info", "--repo", &to]);
    refused(ours, 12, "E-KEY-WRONG");
    refused(site.elsewhere.run(["replicate", "--from", &from, "--to", &to]), 12, "E-KEY-WRONG");
    theirs.run(["verify"]).expect_code(0);
    // It follows: a backup and WAL from after.
    site.ledger.write_rows(&site.cluster, 2);
    let incr = site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 2);
    let latest = site.archive_all();
    let more = site.elsewhere.json(&with_file);
    assert_eq!((&more["backups"], &more["failed"]), (&serde_json::json!([incr]), &serde_json::json!([])), "{more}");
    theirs.run(["verify"]).expect_code(0);
    what_is_damaged_in_it_comes_from_its_source(&site, &theirs, Path::new(&to), &file);
    let other = Site { elsewhere: theirs, ..site };
    other.assert_restores("old", &latest, 1, &[&id]);
    other.assert_restores("new", &latest, 1, &[&incr]);
}

/// Nothing of either is the same bytes; what is compared is what was sealed.
fn what_is_damaged_in_it_comes_from_its_source(site: &Site, theirs: &Pgark, copy: &Path, file: &str) {
    let source = site.elsewhere.repo();
    let text = format!(
        "[repos.source]\nurl = \"{}\"\npassphrase_file = \"{}\"\n[repos.copy]\nurl = \"{}\"\npassphrase_file = \
         \"{file}\"\n[clusters.main]\nrepos = [\"copy\"]\n",
        source.display(),
        site.elsewhere.passphrase_file().display(),
        copy.display()
    );
    let config = site.scratch.file("both.toml", text.as_bytes(), 0o600);
    let both = site.elsewhere.clone().without_env("PGARK_REPO").without_env("PGARK_PASSPHRASE_FILE");
    let both = both.env("PGARK_CONFIG", &config);
    let of = |part: &str| {
        let all = objects_under(&copy.join("clusters/main"));
        let fits = |p: &std::path::PathBuf| p.to_string_lossy().contains(part);
        let mut found: Vec<_> = all.into_iter().filter(fits).collect();
        assert!(!found.is_empty(), "no {part}");
        found.remove(found.len() / 2)
    };
    let segment = {
        let all = objects_under(&copy.join("clusters/main/wal"));
        let is_segment =
            |p: &std::path::PathBuf| p.file_name().is_some_and(|f| f.len() == "000000010000000000000001.g2".len());
        let found: Vec<_> = all.into_iter().filter(is_segment).collect();
        found.get(found.len() / 2).expect("segments").clone()
    };
    let damaged = [of("/packs/"), of("/manifest"), of("/record"), segment];
    for path in &damaged {
        let mut bytes = fs::read(path).expect("an object");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(path, bytes).expect("damage");
    }
    let whole =
        objects_under(copy).into_iter().filter(|p| !damaged.contains(p) && p.to_string_lossy().contains("/backups/"));
    let whole: Vec<_> = whole.map(|p| (fs::read(&p).expect("an object"), p)).collect();
    theirs.run(["verify"]).expect_code(20);
    // The source's key is asked for when nothing else opens it.
    let unnamed = theirs.run(["verify", "--repair", "--from", source.to_str().expect("text")]);
    assert!(unnamed.code == Some(12), "{unnamed}");
    let planned = both.run(["verify", "--repair", "--dry-run", "--from", "source", "--json"]).expect_code(20).json();
    assert!(planned["repairable"].as_array().is_some_and(|r| !r.is_empty() && r[0]["from"] == "source"), "{planned}");
    let mended = both.run(["verify", "--repair", "--from", "source", "--json"]).expect_code(0).json();
    assert!(mended["repaired"].as_array().is_some_and(|r| r.len() == damaged.len()), "{mended}");
    theirs.run(["verify"]).expect_code(0);
    for (bytes, path) in whole {
        assert!(fs::read(&path).expect("an object") == bytes, "{} was replaced", path.display());
    }
}

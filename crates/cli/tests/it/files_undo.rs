//! A restore of files in place that is killed in the midst of its exchange is undone by a command; and places that are no place for
//! files, and backups that were not meant, are not taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pgark_testkit::{Fault, Outcome, Point, skip, strace_works, traced_without};

use crate::files::{Facts, facts};
use crate::site::{Site, strings};

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
    fs::write(path, content).expect("write");
}

/// A directory, and beside it a single file: two places.
fn before(site: &Site) -> (PathBuf, PathBuf) {
    let (up, one) = (site.scratch.dir("up"), site.scratch.dir("etc").join("one.conf"));
    for n in 0..3 {
        write(&up.join(format!("sub/{n}.txt")), &format!("backed up {n}"));
    }
    write(&up.join("gone/deep/file"), "backed up");
    write(&up.join("kind"), "was a file");
    write(&one, "backed up");
    pgark_testkit::give_to_postgres(&up);
    (up, one)
}

fn spoil(up: &Path, one: &Path) {
    for n in 0..2 {
        write(&up.join(format!("sub/{n}.txt")), &format!("spoiled {n}"));
    }
    fs::remove_dir_all(up.join("gone")).expect("remove");
    fs::remove_file(up.join("kind")).expect("remove");
    write(&up.join("kind/is/a/directory"), "spoiled");
    write(&up.join("new"), "not in the backup");
    write(one, "spoiled");
}

fn own(path: &Path) {
    pgark_testkit::give_to_postgres(path);
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        fs::read_dir(path).expect("list").for_each(|e| own(&e.expect("entry").path()));
    }
}

fn all(up: &Path, one: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = facts(up);
    found.extend(
        facts(one.parent().expect("a directory")).into_iter().map(|(path, f)| (Path::new("etc").join(path), f)),
    );
    found
}

fn remains(up: &Path, one: &Path) -> Vec<PathBuf> {
    let dirs = [up, one.parent().expect("a directory")];
    let names = dirs.iter().flat_map(|dir| fs::read_dir(dir).expect("list")).map(|e| e.expect("entry").path());
    names.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".pgark"))).collect()
}

fn failed(outcome: Outcome, code: i32, name: &str) {
    let outcome = outcome.expect_code(code);
    assert!(outcome.stdout.contains(name) || outcome.stderr.contains(name), "{name} is not said\n{outcome}");
}

#[test]
fn an_exchange_that_is_killed_anywhere_is_put_back_by_a_command() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let site = Site::small(&server, "files-undo");
    let pgark = &site.elsewhere;
    let (up, one) = before(&site);
    own(&up);
    own(one.parent().expect("a directory"));
    let (path, file) = (up.display().to_string(), one.display().to_string());
    let backup = pgark.json(["backup", "--kind", "files", "--path", &path, &file]);
    let id = backup["id"].as_str().expect("an id").to_owned();
    let backed_up = all(&up, &one);
    spoil(&up, &one);
    own(&up);
    own(&one);
    let mut spoiled = all(&up, &one);

    let words = ["restore", &id, "--kind", "files", "--in-place", "--yes", "--no-safety-backup", "--json"];
    let undo_where = |lacking: Option<&'static str>, dir: &Path| {
        let dir = dir.display().to_string();
        let words = ["restore", "--kind", "files", "--yes", "--json", "--undo", &dir];
        if lacking.is_some() { traced_without(pgark, lacking, None, &words) } else { pgark.run(words) }
    };
    let undo = |dir: &Path| undo_where(None, dir);
    let mut seen = BTreeMap::<String, u32>::new();
    let mut busy = false;
    // Exchanges are renames with flags; plain ones are those of the journal and what is cleared away. Where a file system knows no
    // flags, an exchange is three plain ones.
    for (lacking, syscall, most) in
        [(None, "renameat2", 40), (None, "renameat", 16), (Some("renameat2"), "renameat", 64)]
    {
        for when in 1..=most {
            let outcome = traced_without(pgark, lacking, Some((Point { syscall, when }, Fault::Kill)), &words);
            if outcome.succeeded() {
                // Past the last of them.
                clear(&remains(&up, &one));
                spoil_again(&up, &one);
                spoiled = all(&up, &one);
                break;
            }
            let left = remains(&up, &one);
            let what = format!("{syscall} {when}, without {lacking:?}: {left:?}");
            // Any of the places will do; what was put aside is no staging.
            let is_staging = |p: &&PathBuf| p.to_string_lossy().contains(".pgark-restore-");
            let stagings: Vec<&PathBuf> = left.iter().filter(is_staging).collect();
            let Some(staging) = stagings.get(when as usize % stagings.len().max(1)) else {
                // Not begun, or done but for what was put aside.
                if fs::read(up.join("sub/0.txt")).expect("read") != b"spoiled 0" {
                    clear(&left);
                    spoil_again(&up, &one);
                    spoiled = all(&up, &one);
                }
                continue;
            };
            if !busy {
                // As one that is at work holds it: nobody else begins, or puts anything back.
                let held = fs::File::open(staging).expect("open");
                held.lock().expect("lock");
                let during = all(&up, &one);
                failed(pgark.run(words), 4, "E-FILES-BUSY");
                failed(undo(staging), 4, "E-FILES-BUSY");
                assert!(during == all(&up, &one), "{what}");
                busy = true;
            }
            failed(pgark.run(words), 4, "E-FILES-REMAINS");
            // It may be put back by other means than it was done by.
            let document = undo_where(lacking.filter(|_| when % 2 == 0), staging).expect_code(0).json();
            let state = document["undone"].as_str().expect("a word").to_owned();
            *seen.entry(state.clone()).or_default() += 1;
            if lacking.is_some() {
                *seen.entry(format!("{state}, in three steps")).or_default() += 1;
            }
            if state == "was_placed" {
                let kept: Vec<PathBuf> = strings(&document["kept"]).iter().map(PathBuf::from).collect();
                assert!(!kept.is_empty() && kept.iter().all(|p| p.is_dir()), "{what}");
                clear(&remains(&up, &one));
                spoil_again(&up, &one);
                spoiled = all(&up, &one);
                continue;
            }
            // What served for a while is kept, since somebody may have written into it.
            let kept: Vec<PathBuf> = strings(&document["kept"]).iter().map(PathBuf::from).collect();
            assert!((state == "put_back") != kept.is_empty() || document["put_back"] == 0, "{what}: {document}");
            clear(&kept);
            // Those that no journal knew of yet go one by one.
            for more in remains(&up, &one) {
                undo(&more).expect_code(0);
            }
            let found = all(&up, &one);
            for (path, facts) in &spoiled {
                // A staging that was hardly there yet does not know what time its directory had.
                let exact = state == "put_back" && kept.is_empty();
                let same = |f: &Facts| if exact { f == facts } else { f.same_but_for_times(facts) };
                let now = found.get(path);
                assert!(now.is_some_and(same), "{what}: {state}: {} is {now:?}, was {facts:?}", path.display());
            }
            assert_eq!(found.len(), spoiled.len(), "{what}: {state}");
            spoiled = found;
        }
    }
    for by in ["put_back", "put_back, in three steps"] {
        assert!(seen.get(by).is_some_and(|n| *n > 3), "{seen:?}");
    }
    assert!(busy);
    assert!(seen.contains_key("not_begun") && seen.contains_key("was_placed"), "{seen:?}");
    // And then it can be restored as ever.
    pgark.run(words).expect_code(0);
    let found = all(&up, &one);
    for (path, facts) in backed_up.iter().filter(|(path, _)| path.file_name().is_some() && **path != Path::new("etc")) {
        assert!(found.get(path).is_some_and(|f| f.same_but_for_times(facts)), "{}", path.display());
    }
    failed(undo(&up), 4, "E-FILES-UNDO");
}

fn clear(left: &[PathBuf]) {
    left.iter().for_each(|path| fs::remove_dir_all(path).expect("remove"));
}

fn spoil_again(up: &Path, one: &Path) {
    spoil(up, one);
    own(up);
    own(one);
}

#[test]
fn files_go_to_no_place_of_others_and_come_from_the_backup_that_was_meant() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "files-meant");
    let (up, other) = (site.scratch.dir("up"), site.scratch.dir("other"));
    write(&up.join("a"), "meant");
    write(&other.join("b"), "one-off");
    own(&up);
    own(&other);
    let config = format!("[clusters.main.system]\ndirectories = [{:?}]\n", up.display().to_string());
    let config = site.scratch.file("pgark.toml", config.as_bytes(), 0o644);
    let pgark = site.elsewhere.clone().env("PGARK_CONFIG", &config);
    let id = |words: &[&str]| {
        let document = pgark.json([&["backup", "--kind", "files"], words].concat());
        document["id"].as_str().expect("an id").to_owned()
    };
    let meant = id(&[]);
    let newer = id(&["--path", &other.display().to_string()]);
    let restore = |words: &[&str], to: &Path| {
        pgark.run([&["restore"], words, &["--kind", "files", "--json", "--to", &to.display().to_string()]].concat())
    };
    let document = restore(&[], &site.scratch.join("to")).expect_code(0).json();
    assert_eq!(document["backup"], meant.as_str(), "{document}");
    assert!(strings(&document["notes"]).iter().any(|n| n.contains(&newer)), "{document}");
    let document = restore(&[&newer], &site.scratch.join("named")).expect_code(0).json();
    assert_eq!(document["backup"], newer.as_str(), "{document}");

    // Neither into a repository nor into a data directory, also below a link.
    let link = site.scratch.join("link");
    std::os::unix::fs::symlink(pgark.repo(), &link).expect("link");
    for place in [pgark.repo().to_owned(), link, site.cluster.data_dir().join("base")] {
        failed(restore(&[], &place.join("new/here")), 4, "E-FILES-PLACE");
        assert!(!place.join("new").exists());
    }
    // A secret that was named is called one.
    write(&up.join("service.env"), "PASSWORD=hunter2");
    write(
        &up.join("key.json"),
        "{\"private_key\": \"-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\\n\"}",
    );
    own(&up);
    for secret in ["service.env", "key.json"] {
        let path = up.join(secret).display().to_string();
        failed(pgark.run(["backup", "--kind", "files", "--path", &path]), 4, "E-FILES-SECRET");
    }
    let document = pgark.json(["backup", "--kind", "files"]);
    assert_eq!(document["files"]["left_out_counts"]["secret"], 2, "{document}");
    failed(pgark.run(["report", "list", "--last", "0"]), 2, "E-REPORT-LAST");
}

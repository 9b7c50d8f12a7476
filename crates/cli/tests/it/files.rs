//! Directories and files: everything that a file system keeps of them comes back; secrets never go in; what cannot be read, or
//! changes meanwhile, is told; and a restore that fails leaves what is there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgark_testkit::{Damage, Damaged, Outcome, Pgark, as_postgres, give_to_postgres, objects_under};
use rustix::fs::{CWD, Mode, RenameFlags, XattrFlags};
use serde_json::Value;

use crate::site::{Site, strings};

/// What a file system keeps of one name, but for what changes by looking at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    content: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
    links: u64,
}

impl Facts {
    pub fn same_but_for_times(&self, other: &Facts) -> bool {
        Facts { modified: other.modified, ..self.clone() } == *other
    }
}

/// Everything below, by path.
pub fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = BTreeMap::new();
    gather(root, root, &mut all);
    all
}

fn gather(root: &Path, path: &Path, all: &mut BTreeMap<PathBuf, Facts>) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let kind = meta.file_type();
    let content = match () {
        () if kind.is_file() => fs::read(path).expect("read"),
        () if kind.is_symlink() => fs::read_link(path).expect("link").into_os_string().into_vec(),
        () => vec![],
    };
    let mut xattrs = vec![];
    if !kind.is_symlink() {
        for name in ["user.note", "user.dir"] {
            let mut value = vec![0; 100];
            if let Ok(n) = rustix::fs::getxattr(path, name, &mut value[..]) {
                value.truncate(n);
                xattrs.push((name.to_owned(), value));
            }
        }
    }
    let found = Facts {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        content,
        xattrs,
        links: if kind.is_file() { meta.nlink() } else { 0 },
    };
    all.insert(path.strip_prefix(root).expect("below").to_owned(), found);
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("list") {
            gather(root, &entry.expect("entry").path(), all);
        }
    }
}

fn write(path: PathBuf, content: &[u8], mode: u32) {
    fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
}

fn own(path: &Path) {
    give_to_postgres(path);
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        fs::read_dir(path).expect("list").for_each(|e| own(&e.expect("entry").path()));
    }
}

fn noise(n: usize, mut seed: u64) -> Vec<u8> {
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Names that are left out of every backup of `uploads`.
pub const NEVER: [&str; 12] = [
    ".env",
    "2025/.env.production",
    "2025/id_ed25519",
    "key.pem",
    "pipe",
    "2025/pgpass.conf",
    "keys.p12",
    ".env~",
    "2025/id_rsa.bak",
    ".docker/config.json",
    "putty.txt",
    "age.txt",
];

/// An application of some files. Returns its directory; what it uploads is in `uploads`.
pub fn app(site: &Site) -> PathBuf {
    let app = site.scratch.dir("app");
    let up = app.join("uploads");
    fs::create_dir_all(up.join("2025/empty")).expect("directories");
    write(app.join("docker-compose.yml"), b"services: {}\n", 0o644);
    write(app.join(".env"), b"PASSWORD=hunter2\n", 0o600);
    write(app.join(".env.example"), b"PASSWORD=\n", 0o644);
    write(up.join(".env"), b"PASSWORD=hunter2\n", 0o600);
    write(up.join(".env.example"), b"PASSWORD=\n", 0o640);
    write(up.join("2025/.env.production"), b"hunter2", 0o600);
    write(up.join("2025/id_ed25519"), b"hunter2", 0o600);
    write(up.join("2025/pgpass.conf"), b"hunter2", 0o600);
    write(up.join("keys.p12"), b"hunter2", 0o600);
    fs::create_dir_all(up.join(".docker")).expect("directories");
    for name in [".env~", "2025/id_rsa.bak", ".docker/config.json"] {
        write(up.join(name), b"hunter2", 0o600);
    }
    write(up.join("putty.txt"), b"PuTTY-User-Key-File-3: ssh-rsa\nhunter2\n", 0o600);
    write(up.join("age.txt"), format!("AGE-SECRET-KEY-1{}\nhunter2\n", "Q".repeat(58)).as_bytes(), 0o600);
    write(up.join("key.pem"), b"-----BEGIN EC PRIVATE KEY-----\nhunter2\n", 0o600);
    write(up.join("cert.pem"), b"-----BEGIN CERTIFICATE-----\nMIIB\n", 0o600);
    write(up.join("slides.key"), b"no key at all", 0o600);
    write(up.join("2025/scan.dcm"), &noise(700_000, 7), 0o640);
    write(up.join("2025/nothing"), b"", 0o400);
    write(up.join("2025/program"), b"#!/bin/sh\n", 0o4755);
    (0..300)
        .for_each(|n| write(up.join(format!("2025/{n:03}.txt")), format!("file {n}\n").repeat(20).as_bytes(), 0o600));
    let odd = |name: &[u8]| up.join(std::ffi::OsStr::from_bytes(name));
    write(odd(b"odd \xff\n\\ \"name'"), b"odd", 0o600);
    write(odd("--file=x 🐘".as_bytes()), b"odd", 0o600);
    symlink("../../../etc/passwd", up.join("out")).expect("link");
    symlink("/nowhere at all", up.join("nowhere")).expect("link");
    fs::hard_link(up.join("2025/scan.dcm"), up.join("z-again")).expect("hard link");
    rustix::fs::mknodat(CWD, up.join("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).expect("pipe");
    let sparse = fs::File::create(up.join("sparse")).expect("create");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 40 << 20).expect("write");
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise(5000, 9), 0).expect("write");
    drop(sparse);
    own(&app);
    for (name, key) in [("2025/scan.dcm", "user.note"), ("2025", "user.dir")] {
        // Some file systems of temporary directories have none; then there is nothing to compare.
        if let Err(e) = rustix::fs::setxattr(up.join(name), key, b"a \0 value", XattrFlags::empty()) {
            eprintln!("no extended attributes here: {e}");
        }
    }
    fs::set_permissions(up.join("2025/program"), fs::Permissions::from_mode(0o4755)).expect("mode");
    fs::set_permissions(up.join("2025/empty"), fs::Permissions::from_mode(0o2710)).expect("mode");
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 7);
    for name in ["2025/000.txt", "2025/empty"] {
        fs::File::open(up.join(name)).expect("open").set_modified(old).expect("time");
    }
    app
}

/// What comes back of `uploads`.
pub fn wanted(up: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = facts(up);
    NEVER.iter().for_each(|name| assert!(all.remove(Path::new(name)).is_some(), "{name}"));
    all
}

fn assert_equal(found: &BTreeMap<PathBuf, Facts>, wanted: &BTreeMap<PathBuf, Facts>, what: &str) {
    let names = |m: &BTreeMap<PathBuf, Facts>| m.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(wanted), "{what}");
    for (path, facts) in wanted {
        let other = &found[path];
        let same = other == facts;
        assert!(same, "{what}: {path:?}: {:?} and not {:?}", shown(other), shown(facts));
    }
}

fn shown(f: &Facts) -> String {
    format!("{:o} {:?} {:?} {} bytes {:?} {} links", f.mode, f.owner, f.modified, f.content.len(), f.xattrs, f.links)
}

fn backup(pgark: &Pgark, code: i32, more: &[&str]) -> Value {
    let words = [&["backup", "--kind", "files", "--json"], more].concat();
    pgark.run(words).expect_code(code).json()
}

fn id_of(document: &Value) -> String {
    document["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
}

fn failed(outcome: Outcome, code: i32, name: &str) {
    let outcome = outcome.expect_code(code);
    assert!(outcome.stdout.contains(name) || outcome.stderr.contains(name), "{name} is not said\n{outcome}");
}

/// With or without warnings.
fn done_or_told(outcome: Outcome) -> Outcome {
    let code = if outcome.code == Some(3) { 3 } else { 0 };
    outcome.expect_code(code)
}

/// Where a root lies in what was restored.
fn in_copy(to: &Path, root: &Path) -> PathBuf {
    to.join("files").join(root.strip_prefix("/").expect("absolute"))
}

#[test]
fn files_come_back_as_they_were_and_secrets_never_go_in() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "files");
    let up = app(&site).join("uploads");
    let wanted_now = wanted(&up);
    let path = up.display().to_string();
    // It knows the repository alone, and no database.
    let pgark = &site.elsewhere;
    let first = backup(pgark, 0, &["--path", &path]);
    let id = id_of(&first);
    assert!(id.ends_with('D') && first["kind"] == "files" && first["files"]["symlinks"] == 2, "{first}");
    let left_out: Vec<&Value> = first["files"]["left_out"].as_array().into_iter().flatten().collect();
    let told: Vec<String> = left_out.iter().filter_map(|l| l["path"].as_str().map(str::to_owned)).collect();
    for name in NEVER {
        assert!(told.contains(&format!("{path}/{name}")), "{name}: {told:?}");
    }
    assert_eq!((told.len(), &first["files"]["left_out_counts"]["secret"]), (12, &Value::from(11)));
    assert_eq!(pgark.json(["info", &id])["contents"]["left_out"], first["files"]["left_out"]);
    let raw: Vec<u8> = objects_under(pgark.repo()).iter().flat_map(|p| fs::read(p).expect("an object")).collect();
    assert!(!raw.windows(7).any(|w| w == b"hunter2"));

    let restore = |pgark: &Pgark, id: &str, name: &str| {
        let to = site.scratch.join(name);
        pgark.run(["restore", id, "--kind", "files", "--to", &to.display().to_string()]).expect_code(0);
        to
    };
    let to = restore(pgark, &id, "one");
    let found = facts(&in_copy(&to, &up));
    assert_equal(&found, &wanted_now, "restored");
    assert!(!found.values().any(|f| f.content.windows(7).any(|w| w == b"hunter2")));
    let meta = |name: &str| fs::metadata(in_copy(&to, &up).join(name)).expect("restored");
    assert_eq!(meta("z-again").ino(), meta("2025/scan.dcm").ino());
    assert!(meta("sparse").blocks() * 512 < 1 << 20, "a hole is a hole");

    // The same again costs next to nothing, also after everything has moved.
    fs::rename(up.join("2025"), up.join("2024")).expect("rename");
    let second = backup(pgark, 0, &["--path", &path]);
    assert!(second["stored_bytes"].as_u64().is_some_and(|n| n < 30_000), "{second}");
    assert_eq!(second["files"]["compared_with"], id.as_str());
    let mut moved = facts(&up);
    let never = |p: &Path| NEVER.iter().any(|n| Path::new(&n.replace("2025", "2024")) == p);
    moved.retain(|p, _| !never(p));
    assert_equal(&facts(&in_copy(&restore(pgark, "latest", "two"), &up)), &moved, "moved");

    // Copies, retention, verification and the program in the repository know them.
    let copy = site.scratch.join("copy");
    let (from, into) = (pgark.repo().display().to_string(), copy.display().to_string());
    pgark.run(["replicate", "--from", &from, "--to", &into]).expect_code(0);
    let elsewhere = pgark.clone().env("PGARK_REPO", &copy);
    elsewhere.run(["verify"]).expect_code(0);
    assert_equal(&facts(&in_copy(&restore(&elsewhere, &id, "copied"), &up)), &wanted_now, "from a copy");
    rescued(&site, &id, &up, &wanted_now);
    pgark.run(["expire", "--yes", "--gc-grace", "0s", "--kind", "files", "--keep-last", "1"]).expect_code(0);
    pgark.run(["verify"]).expect_code(0);
    failed(pgark.run(["restore", &id, "--kind", "files", "--to", "/nowhere/x"]), 4, "E-BACKUP-NONE");
    restore(pgark, "latest", "after");
}

/// With Python alone.
fn rescued(site: &Site, id: &str, up: &Path, wanted: &BTreeMap<PathBuf, Facts>) {
    let is_it = |p: &PathBuf| p.to_string_lossy().contains("/rescue/") && p.ends_with("extract.py");
    let program = objects_under(site.pgark.repo()).into_iter().find(is_it).expect("extract.py in the repository");
    let to = site.scratch.join("rescued");
    let mut command = as_postgres("/usr/bin/python3");
    command.arg(&program).arg("--repo").arg(site.pgark.repo());
    command.arg("--passphrase-file").arg(site.pgark.passphrase_file()).args(["backup", id, "--to"]).arg(&to);
    let output = command.output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_equal(&facts(&in_copy(&to, up)), wanted, "rescued without pgark");
}

#[test]
fn what_is_chosen_is_what_comes_and_what_cannot_be_read_is_told() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "chosen");
    let app = app(&site);
    let up = app.join("uploads");
    let path = up.display().to_string();
    let pgark = &site.elsewhere;
    let some = backup(pgark, 0, &["--path", &path, "--include", "*.txt", "--exclude", "2025/1*"]);
    assert_eq!(some["files"]["files"], 200, "{some}");
    let some = id_of(&some);

    // One file cannot be read, one is written all the time, one place is not there.
    write(up.join("locked"), b"x", 0o000);
    let stop = AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::create(up.join("busy")).expect("create");
            own(&up.join("busy"));
            while !stop.load(Ordering::Relaxed) {
                std::os::unix::fs::FileExt::write_all_at(&file, &noise(3000, 1), 0).expect("write");
            }
        });
        pgark_testkit::wait_until("the file is there", Duration::from_secs(20), || {
            up.join("busy").exists().then_some(())
        });
        let none = app.join("none").display().to_string();
        let told = backup(pgark, 3, &["--path", &path, &none]);
        stop.store(true, Ordering::Relaxed);
        told
    });
    assert_eq!(strings(&told["files"]["changed"]), [format!("{path}/busy")]);
    let counts = &told["files"]["left_out_counts"];
    assert_eq!((&counts["unreadable"], &counts["missing"]), (&Value::from(1), &Value::from(1)), "{told}");
    let warnings = told["warnings"].to_string();
    assert!(warnings.contains("locked") && warnings.contains("busy") && warnings.contains("none"), "{warnings}");
    let to = site.scratch.join("marked").display().to_string();
    failed(pgark.run(["restore", "--kind", "files", "--to", &to]), 3, "was being written");

    // A selection: by name, by path; a link whose file is not chosen brings its content.
    let select = |name: &str, patterns: &[&str]| -> Vec<String> {
        let to = site.scratch.join(name);
        let words = ["restore", "--kind", "files", "--to", to.to_str().expect("UTF-8")];
        let words: Vec<&str> = words.into_iter().chain(patterns.iter().flat_map(|p| ["--path", p])).collect();
        done_or_told(pgark.run(words));
        let found = facts(&in_copy(&to, &up));
        found.iter().filter(|(_, f)| f.mode & 0o170_000 != 0o040_000).map(|(p, _)| p.display().to_string()).collect()
    };
    assert_eq!(select("s1", &["z-again"]), ["z-again"]);
    assert_eq!(fs::read(in_copy(&site.scratch.join("s1"), &up).join("z-again")).expect("read"), noise(700_000, 7));
    assert_eq!(select("s2", &["2025/29?.txt"]).len(), 10);
    assert_eq!(select("s3", &[&format!("{path}/2025/**/scan.dcm"), "out"]), ["2025/scan.dcm", "out"]);
    let none = site.scratch.join("s4").display().to_string();
    failed(pgark.run(["restore", "--kind", "files", "--to", &none, "--path", "*.none"]), 4, "E-SELECT-NONE");
    assert!(!site.scratch.join("s4").exists());

    // Refused before anything is begun.
    let link = site.scratch.join("link");
    symlink(&up, &link).expect("link");
    let refuse = |words: &[&str], code: i32, name: &str| {
        failed(pgark.run([&["backup", "--kind", "files"], words].concat()), code, name);
    };
    refuse(&["--path", &link.display().to_string()], 4, "E-FILES-LINK");
    refuse(&["--path", &app.join("none").display().to_string()], 4, "E-FILES-NONE");
    refuse(&[], 4, "E-FILES-NONE");
    refuse(&["--path", "/"], 4, "E-FILES-PATH");
    refuse(&["--path", &path, "--exclude", "[a"], 4, "E-FILES-PATTERN");
    refuse(&["--path", &path, "--database", "x"], 2, "E-KIND");
    failed(pgark.run(["backup", "--path", &path]), 2, "E-KIND");
    failed(pgark.run(["restore", &some, "--kind", "files"]), 2, "E-FILES-TO");
    // The id says what it is a backup of.
    failed(pgark.run(["restore", &some, "--to", &path]), 4, "E-TARGET-NOT-EMPTY");
    failed(pgark.run(["restore", &some, "--kind", "files", "--in-place"]), 4, "E-CONFIRM");
    let logical = ["restore", &some, "--kind", "logical", "--database", "app", "--to-database", "x"];
    assert!(site.pgark.run(logical).expect_code(4).stderr.contains("E-DATABASE-NONE"));
}

#[test]
fn a_directory_that_becomes_a_link_meanwhile_leads_nowhere() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "races");
    let root = site.scratch.dir("root");
    let outside = site.scratch.dir("outside");
    write(outside.join("stolen"), b"outside of what was named", 0o644);
    fs::create_dir(root.join("dir")).expect("directory");
    (0..50).for_each(|n| write(root.join(format!("dir/{n}")), b"inside", 0o644));
    symlink(&outside, root.join("link")).expect("link");
    own(&root);
    own(&outside);
    let stop = AtomicBool::new(false);
    let path = root.display().to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (a, b) = (root.join("dir"), root.join("link"));
                rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).expect("exchange");
            }
        });
        for n in 0..15 {
            let told = done_or_told(site.elsewhere.run(["backup", "--kind", "files", "--path", &path, "--json"]));
            let id = id_of(&told.json());
            let to = site.scratch.join(format!("out{n}"));
            site.elsewhere.run(["restore", &id, "--to", &to.display().to_string()]).expect_code(0);
            for (path, found) in facts(&to) {
                let stolen = found.content.starts_with(b"outside of") || path.ends_with("stolen");
                assert!(!stolen, "{}: read through a link", path.display());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_restore_in_place_is_all_or_nothing_and_touches_nothing_else() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "inplace-files");
    let up = app(&site).join("uploads");
    let path = up.display().to_string();
    let pgark = &site.elsewhere;
    let older = id_of(&backup(pgark, 0, &["--path", &path]));
    let then = facts(&up);
    write(up.join("2025/scan.dcm"), &noise(700_000, 99), 0o640);
    own(&up);
    fs::set_permissions(up.join("2025/program"), fs::Permissions::from_mode(0o4755)).expect("mode");
    let newer = id_of(&backup(pgark, 0, &["--path", &path]));

    // Spoiled: changed, gone, another kind of thing, another mode; and something new.
    write(up.join("2025/000.txt"), b"changed", 0o666);
    fs::remove_file(up.join("2025/001.txt")).expect("remove");
    fs::remove_file(up.join("out")).expect("remove");
    write(up.join("out"), b"no link any more", 0o600);
    fs::remove_dir_all(up.join("2025/empty")).expect("remove");
    symlink("/tmp", up.join("2025/empty")).expect("link");
    write(up.join("new"), b"new", 0o600);
    own(&up);
    fs::set_permissions(up.join("2025"), fs::Permissions::from_mode(0o711)).expect("mode");
    let spoiled = facts(&up);
    let secret = fs::metadata(up.join(".env")).expect("there").ino();

    // The newer backup's own pack is damaged: nothing is touched, and the older one serves when none is named.
    let pack = format!("/backups/{newer}/packs/");
    let own_pack =
        objects_under(pgark.repo()).into_iter().find(|p| p.to_string_lossy().contains(&pack)).expect("a pack");
    let damaged = Damaged::apply(&own_pack, &Damage::FlipBit { per_mille: 500 });
    let in_place = |id: &str, more: &[&str]| {
        pgark.run([&["restore", id, "--kind", "files", "--in-place", "--yes", "--json"], more].concat())
    };
    in_place(&newer, &[]).expect_code(20);
    assert_equal(&facts(&up), &spoiled, "refused");
    let done = in_place("latest", &[]).expect_code(3).json();
    assert_eq!(done["backup"], older.as_str(), "{done}");
    drop(damaged);

    let mut expected = then.clone();
    expected.insert("new".into(), spoiled[Path::new("new")].clone());
    let found = facts(&up);
    // The time of a directory that keeps more than the backup has is the backup's all the same.
    assert_equal(&found, &expected, "in place");
    assert_eq!(fs::metadata(up.join(".env")).expect("there").ino(), secret, "secrets are not touched");
    assert_eq!(done["others"].as_u64().map(|n| n >= 2), Some(true), "{done}");

    // What was there is in a backup, which is not taken by itself.
    let safety = done["safety_backup"].as_str().expect("a safety backup").to_owned();
    let to = site.scratch.join("before");
    pgark.run(["restore", &safety, "--to", &to.display().to_string()]).expect_code(0);
    let mut before = spoiled.clone();
    before.retain(|p, _| !NEVER.iter().any(|n| p == Path::new(n)));
    let mut saved = facts(&in_copy(&to, &up));
    // The restore had made its own directory in it by then.
    before.remove(Path::new(""));
    saved.remove(Path::new(""));
    assert_equal(&saved, &before, "the safety backup");
    let again =
        in_place("latest", &["--no-safety-backup", "--keep-old", "--path", "2025/scan.dcm"]).expect_code(0).json();
    assert_eq!((again["backup"].as_str(), again["files"].as_u64()), (Some(newer.as_str()), Some(1)), "{again}");
    assert_eq!(fs::read(up.join("2025/scan.dcm")).expect("read"), noise(700_000, 99));
    let kept = PathBuf::from(strings(&again["kept"])[0].clone());
    let old = kept.join("files").join(up.strip_prefix("/").expect("absolute")).join("2025/scan.dcm");
    assert_eq!(fs::read(old).expect("what was replaced"), noise(700_000, 7));
    // Remains of which nothing is known are told, nothing is done over them, and nobody takes them away.
    let remains = up.join(format!(".pgark-restore-{newer}"));
    fs::create_dir(&remains).expect("remains");
    write(remains.join("what"), b"somebody's", 0o600);
    own(&remains);
    failed(in_place(&newer, &[]), 4, "E-FILES-REMAINS");
    let words = ["restore", "--kind", "files", "--yes", "--undo"];
    failed(pgark.run([&words[..], &[&remains.display().to_string()]].concat()), 4, "E-FILES-JOURNAL");
    assert!(remains.is_dir());
}

//! The program that lies in each repository gets the data out without pgark: what it writes is, byte by byte, what
//! `pgark restore` writes, PostgreSQL starts on it, and damage ends it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgark_testkit::{
    Damage, Damaged, Ending, Pgark, Recovered, Scratch, Server, TestCluster, assert_same_state, objects_under, state_of,
};

use crate::export::{change, eventful_shape, fill, run_tool};
use crate::keys::rotate;
use crate::site::BINARY;

const PYTHON: &str = "/usr/bin/python3";

/// A cluster, and a repository in which everything is of these kinds.
struct Vault {
    cluster: TestCluster,
    pgark: Pgark,
    elsewhere: Pgark,
    encrypted: bool,
    scratch: Scratch,
}

impl Vault {
    fn new(server: &Server, label: &str, encryption: &str) -> Vault {
        let scratch = Scratch::new(label);
        let repo = scratch.join("repo");
        let encrypted = encryption != "none";
        let mut elsewhere = Pgark::new(BINARY, &scratch, &repo);
        let mut archive = elsewhere.archive_command();
        if !encrypted {
            elsewhere = elsewhere.without_env("PGARK_PASSPHRASE_FILE");
            let secret = format!("--passphrase-file {} ", elsewhere.passphrase_file().display());
            archive = archive.replace(&secret, "");
        }
        let builder = TestCluster::builder(server).archive_command(archive);
        let cluster = eventful_shape(builder).start(&scratch, "c");
        let pgark = elsewhere.on(&cluster);
        pgark.run(["init", "--encryption", encryption]).expect_code(0);
        Vault { cluster, pgark, elsewhere, encrypted, scratch }
    }

    /// Takes a backup of its own kinds and gives its id.
    fn backup(&self, kind: &str, compress: &str) -> String {
        let done = self.pgark.json(["backup", "--type", kind, "--compress", compress]);
        done["id"].as_str().expect("an id").to_owned()
    }

    /// The program as it lies in the repository.
    fn program(&self) -> PathBuf {
        let is_it = |p: &PathBuf| p.display().to_string().contains("rescue/") && p.ends_with("extract.py");
        let found = objects_under(self.elsewhere.repo()).into_iter().find(is_it).expect("extract.py in the repository");
        self.elsewhere.repo().join(found)
    }

    fn extract(&self, words: &[&str]) -> Result<String, String> {
        let (program, repo) = (self.program().display().to_string(), self.elsewhere.repo().display().to_string());
        let secret = self.elsewhere.passphrase_file().display().to_string();
        let key = if self.encrypted { vec!["--passphrase-file", &secret] } else { vec![] };
        run_tool(Path::new(PYTHON), &[&[program.as_str(), "--repo", &repo], key.as_slice(), words].concat())
    }

    fn extract_backup(&self, id: &str, name: &str) -> Result<PathBuf, String> {
        let to = self.scratch.join(name);
        self.extract(&["backup", id, "--to", &to.display().to_string()])?;
        Ok(to)
    }

    fn restore(&self, id: &str, name: &str) -> PathBuf {
        let to = self.scratch.join(name);
        let mut words = vec!["restore".to_owned(), id.to_owned(), "--target-immediate".to_owned()];
        words.extend(["--to".to_owned(), to.display().to_string()]);
        for line in self.cluster.psql("select oid from pg_tablespace where oid > 16000").lines() {
            let place = self.scratch.join(format!("{name}.tablespaces")).join(line);
            fs::create_dir_all(place.parent().expect("a parent")).expect("the directory above");
            pgark_testkit::give_to_postgres(place.parent().expect("a parent"));
            words.extend(["--tablespace-map".to_owned(), format!("{line}={}", place.display())]);
        }
        self.elsewhere.run(words).expect_code(0);
        to
    }
}

/// Which packages of Debian the program needs here, and whether they are there.
fn python_is_there() -> Result<(), String> {
    let words = ["-c", "import cryptography, zstandard, lz4.block, argon2"];
    run_tool(Path::new(PYTHON), &words).map(drop).map_err(|e| format!("extract.py cannot run: {e}"))
}

/// Mode and content of every file and directory below, without what a restore and an extraction add each in its own way.
fn contents(root: &Path) -> BTreeMap<PathBuf, (u32, Option<Vec<u8>>)> {
    let own = ["recovery.signal", "pgark-restore.key", "postgresql.auto.conf"];
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("list") {
            let path = entry.expect("an entry").path();
            let meta = fs::symlink_metadata(&path).expect("attributes");
            let relative = path.strip_prefix(root).expect("below").to_owned();
            let wal = relative.starts_with("pg_wal") && meta.is_file();
            if own.iter().any(|name| relative == Path::new(name)) || wal || meta.file_type().is_symlink() {
                continue;
            }
            let content = meta.is_file().then(|| fs::read(&path).expect("read"));
            if meta.is_dir() {
                dirs.push(path);
            }
            found.insert(relative, (meta.mode() & 0o7777, content));
        }
    }
    found
}

fn assert_same_files(restored: &Path, extracted: &Path, what: &str) {
    let tablespaces = |p: &Path| PathBuf::from(format!("{}.tablespaces", p.display()));
    let places = [(restored.to_owned(), extracted.to_owned()), (tablespaces(restored), tablespaces(extracted))];
    for (a, b) in places {
        let (a, b) = (contents(&a), contents(&b));
        assert!(a.len() > 4, "{what}: {a:?}");
        let names = |m: &BTreeMap<PathBuf, _>| m.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&a), names(&b), "{what}");
        for (path, content) in &a {
            assert!(b.get(path) == Some(content), "{what}: {} differs", path.display());
        }
    }
}

#[test]
fn what_the_program_extracts_is_what_is_restored() {
    let server = installed_or_skip!();
    if let Err(why) = python_is_there() {
        pgark_testkit::skip!("{why}");
    }
    for (encryption, compress) in [("aes-256-gcm", "zstd"), ("chacha20-poly1305", "lz4"), ("none", "none")] {
        let vault = Vault::new(&server, "extract", encryption);
        fill(&vault.cluster);
        let full = vault.backup("full", compress);
        change(&vault.cluster, 1);
        vault.backup("incr", compress);
        if vault.encrypted {
            rotate(&vault.pgark, &[]);
        }
        change(&vault.cluster, 2);
        // Frames of two generations and of two codecs in one backup.
        let last = vault.backup("incr", "zstd:3");
        let state = state_of(&vault.cluster);
        vault.cluster.psql("create table later(a int)");
        vault.cluster.switch_and_archive();

        let listed = vault.extract(&["list"]).expect("the list");
        assert_eq!(listed.lines().count(), 3, "{listed}");
        for (n, id) in [&full, &last].into_iter().enumerate() {
            let what = format!("{encryption} {compress} {id}");
            assert!(listed.contains(id.as_str()), "{what}: {listed}");
            let extracted = vault.extract_backup(id, &format!("ex{n}")).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_same_files(&vault.restore(id, &format!("re{n}")), &extracted, &what);
            let again = vault.extract_backup(id, &format!("ex{n}")).expect_err("it is not empty");
            assert!(again.contains("not an empty directory"), "{again}");
        }
        if vault.encrypted {
            // Everything under the newest key alone, as later seals.
            vault.pgark.run(["key", "reencrypt", "--yes", "--grace", "0s"]).expect_code(0);
            let sealed_anew = |p: &PathBuf| p.to_string_lossy().ends_with(".g2");
            assert!(objects_under(vault.elsewhere.repo()).iter().any(sealed_anew));
            let extracted = vault.extract_backup(&last, "anew").expect("later seals are read");
            assert_same_files(&vault.scratch.join("re1"), &extracted, "later seals");
        }
        let recovered = Recovered::start(&server, &vault.scratch, &vault.scratch.join("ex1")).expect(Ending::Promoted);
        assert_same_state(&state, &state_of(&recovered), encryption);
        assert_eq!(recovered.psql("show archive_mode"), "off");
        recovered.verify_checksums();

        let segment = vault.cluster.switch_and_archive();
        let (one, other) = (vault.scratch.join("w1"), vault.scratch.join("w2"));
        vault.extract(&["wal", &segment, "--to", &one.display().to_string()]).expect("a segment");
        vault.pgark.run(["archive-get", &segment, &other.display().to_string()]).expect_code(0);
        assert!(fs::read(one).expect("it") == fs::read(other).expect("the other"), "the segment of {encryption}");
        let absent = vault.scratch.join("absent");
        vault
            .extract(&["wal", "0000000100000000000000FF", "--to", &absent.display().to_string()])
            .expect_err("it is not archived");
        assert!(!absent.exists());
        // What lies there is known to verify.
        vault.elsewhere.run(["verify"]).expect_code(0);
    }
}

#[test]
fn what_a_writer_stored_is_extracted_with_a_readers_secret_alone() {
    let server = installed_or_skip!();
    if let Err(why) = python_is_there() {
        pgark_testkit::skip!("{why}");
    }
    let vault = Vault::new(&server, "exwriter", "aes-256-gcm");
    let file = vault.scratch.file("writer", b"canary writer passphrase\n", 0o600);
    let secret = file.to_str().expect("text");
    vault.elsewhere.json(["key", "add", "--writer", "--new-passphrase-file", secret]);
    fill(&vault.cluster);
    let writer = vault.pgark.clone().env("PGARK_PASSPHRASE_FILE", &file);
    let id = writer.backup("full");
    rotate(&vault.elsewhere, &[]);
    let segment = vault.cluster.switch_and_archive();
    let second = writer.backup("full");
    let assert_extracts = |name: &str, id: &str, what: &str| {
        let extracted = vault.extract_backup(id, name).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_same_files(&vault.restore(id, &format!("{name}-restored")), &extracted, what);
    };
    assert_extracts("first", &id, "the first key");
    assert_extracts("second", &second, "the second key");
    vault.elsewhere.run(["key", "reencrypt", "--yes", "--grace", "0s"]).expect_code(0);
    assert_extracts("anew", &id, "sealed anew");
    let (one, other) = (vault.scratch.join("w1"), vault.scratch.join("w2"));
    vault.extract(&["wal", &segment, "--to", &one.display().to_string()]).expect("a segment");
    vault.elsewhere.run(["archive-get", &segment, &other.display().to_string()]).expect_code(0);
    assert!(fs::read(one).expect("it") == fs::read(other).expect("the other"));
    // The same program with the writer's secret.
    let (program, repo) = (vault.program().display().to_string(), vault.elsewhere.repo().display().to_string());
    let words = [program.as_str(), "--repo", &repo, "--passphrase-file", secret, "list"];
    let refused = run_tool(Path::new(PYTHON), &words).expect_err("it opens nothing that could be extracted");
    assert!(refused.contains("opens no slot"), "{refused}");
}

#[test]
fn the_program_never_takes_damage_for_data() {
    let server = installed_or_skip!();
    if let Err(why) = python_is_there() {
        pgark_testkit::skip!("{why}");
    }
    for encryption in ["aes-256-gcm", "none"] {
        let vault = Vault::new(&server, "exdamaged", encryption);
        vault.cluster.psql("create table t as select g id, repeat(md5(g::text), 9) m from generate_series(1,3000) g");
        let id = vault.backup("full", "zstd");
        let right = vault.extract_backup(&id, "right").expect("nothing is damaged yet");
        let expected = contents(&right);
        let start = vault.pgark.backup_info(&id)["lsn_start"].as_str().expect("lsn_start").to_owned();
        let first = vault.cluster.psql(&format!("select pg_walfile_name('{start}')"));
        let is_used = |p: &PathBuf| {
            let name = p.display().to_string();
            let register = ["keyring", "/catalog", "/head"].iter().any(|word| name.contains(word));
            name.contains("/backups/") || name.ends_with(&first) || register
        };
        let objects: Vec<PathBuf> = objects_under(vault.elsewhere.repo()).into_iter().filter(is_used).collect();
        let (mut refused, mut unharmed) = (0, 0);
        for object in &objects {
            let name = object.display().to_string();
            let is_data = name.contains("/backups/") || name.ends_with(&first);
            let everywhere = [
                Damage::FlipBit { per_mille: 600 },
                Damage::FlipBit { per_mille: 10 },
                Damage::Truncate { per_mille: 700 },
            ];
            // Registers are read alike in both kinds of repository.
            let tried = match (is_data, vault.encrypted) {
                (true, _) => 3,
                (false, encrypted) => usize::from(encrypted),
            };
            for damage in everywhere.into_iter().take(tried) {
                let damaged = Damaged::apply(&vault.elsewhere.repo().join(object), &damage);
                match vault.extract_backup(&id, "wrong") {
                    Err(why) => {
                        assert!(why.contains("error:") && !why.contains("Traceback"), "{object:?} {damage:?}: {why}");
                        assert!(!vault.scratch.join("wrong/global/pg_control").exists(), "{object:?} {damage:?}");
                        refused += 1;
                    }
                    // A register has two copies, and older versions that nobody reads.
                    Ok(to) => {
                        assert!(contents(&to) == expected, "{object:?} {damage:?}: other bytes");
                        assert!(!is_data, "{object:?} {damage:?}");
                        unharmed += 1;
                    }
                }
                drop(damaged);
                for left in ["wrong", "wrong.tablespaces"] {
                    match fs::remove_dir_all(vault.scratch.join(left)) {
                        Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{left}: {e}"),
                        _ => {}
                    }
                }
            }
        }
        assert!(
            refused >= 12 && (unharmed > 0 || !vault.encrypted),
            "{refused} refused, {unharmed} unharmed, of {objects:?}"
        );
    }
}

#[test]
fn age_keys_open_it_and_wrong_ones_do_not() {
    let server = installed_or_skip!();
    if let Err(why) = python_is_there().and_then(|()| run_tool(Path::new("age"), &["--version"]).map(drop)) {
        pgark_testkit::skip!("{why}");
    }
    let vault = Vault::new(&server, "exage", "aes-256-gcm");
    let identity = vault.scratch.join("identity");
    run_tool(Path::new("age-keygen"), &["-o", &identity.display().to_string()]).expect("age-keygen");
    let text = fs::read_to_string(&identity).expect("the identity");
    let recipient = text.lines().find_map(|l| l.strip_prefix("# public key: ")).expect("its public key");
    vault.pgark.json(["key", "add", "--age-recipient", recipient]);
    let id = vault.backup("full", "zstd");

    let (program, repo) = (vault.program().display().to_string(), vault.elsewhere.repo().display().to_string());
    let list =
        |key: &[&str]| run_tool(Path::new(PYTHON), &[&[program.as_str(), "--repo", &repo], key, &["list"]].concat());
    let listed = list(&["--age-identity-file", &identity.display().to_string()]).expect("the list");
    assert!(listed.contains(&id), "{listed}");
    assert!(list(&[]).expect_err("no key").contains("is encrypted"));
    let wrong = vault.scratch.file("wrong", b"wrong passphrase\n", 0o600);
    assert!(list(&["--passphrase-file", &wrong.display().to_string()]).expect_err("wrong").contains("opens no slot"));
}

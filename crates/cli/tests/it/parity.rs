//! A repository on a disk with bad sectors: parity makes it whole again, without another repository.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgark_testkit::{Ending, Outcome, Pgark, Recovered, Scratch, Server, Target, TestCluster, objects_under};
use serde_json::Value;

use crate::site::{BINARY, Site, strings};

const SECTOR: u64 = 4096;
const PERCENT: u64 = 10;

/// A site whose one repository is configured, with parity or without.
struct Disk {
    site: Site,
    config: PathBuf,
    repo: PathBuf,
}

fn config(scratch: &Scratch, repo: &Path, parity: &str) -> PathBuf {
    let text = format!(
        "[repos.disk]\nurl = \"{}\"\npassphrase_file = \"{}\"\n{parity}\n[clusters.main]\nrepos = [\"disk\"]\n",
        repo.display(),
        scratch.join("passphrase").display()
    );
    scratch.file("pgark.toml", text.as_bytes(), 0o600)
}

fn with_parity() -> String {
    format!("parity = \"{PERCENT}%\"")
}

impl Disk {
    fn new(server: &Server, label: &str, parity: &str) -> Disk {
        let scratch = Scratch::new(label);
        let repo = scratch.join("repo");
        let elsewhere = Pgark::new(BINARY, &scratch, &repo);
        let config = config(&scratch, &repo, parity);
        let elsewhere =
            elsewhere.without_env("PGARK_REPO").without_env("PGARK_PASSPHRASE_FILE").env("PGARK_CONFIG", &config);
        let command = format!("{} archive-push --config {} \"%p\"", elsewhere.binary().display(), config.display());
        let builder = TestCluster::builder(server).archive_command(command);
        let cluster = builder.wal_segsize_mb(1).conf("autovacuum = off").start(&scratch, "c");
        let pgark = elsewhere.on(&cluster);
        pgark.run(["init"]).expect_code(0);
        let ledger = pgark_testkit::Ledger::create(&cluster);
        Disk { site: Site { cluster, ledger, pgark, elsewhere, server: server.clone(), scratch }, config, repo }
    }

    /// A full and an incremental backup, and WAL after them; nothing changes the repository from here on.
    fn fill(&self) -> (Vec<String>, Target) {
        let site = &self.site;
        site.cluster.psql("create table t as select g id, md5(g::text) m from generate_series(1, 60000) g");
        site.ledger.write_rows(&site.cluster, 3);
        let full = site.pgark.backup("full");
        site.cluster.psql("update t set m = md5(m) where id % 9 = 0");
        site.ledger.write_rows(&site.cluster, 3);
        let incr = site.pgark.backup("incr");
        site.cluster.psql("insert into t select g, md5(g::text) from generate_series(1, 20000) g");
        site.ledger.write_rows(&site.cluster, 3);
        let latest = site.archive_all();
        site.cluster.psql("alter system set archive_command = '/bin/false'");
        site.cluster.reload();
        (vec![full, incr], latest)
    }

    /// Objects of backups and of WAL that have parity beside them.
    fn protected(&self) -> Vec<PathBuf> {
        let all = objects_under(&self.repo.join("clusters"));
        all.into_iter().filter(|path| parity_of(path).exists()).collect()
    }

    fn verify(&self, words: &[&str]) -> Outcome {
        self.site.elsewhere.run([&["verify", "--json"], words].concat())
    }

    fn restore(&self, name: &str, latest: &Target, code: i32) -> Outcome {
        let (to, outcome) = self.site.try_restore(name, latest, &[]);
        let outcome = outcome.expect_code(code);
        let recovered = Recovered::start(&self.site.server, &self.site.scratch, &to).expect(Ending::Promoted);
        self.site.ledger.assert_exact(&recovered, latest, 1);
        let sum = "select count(*) || ' ' || md5(string_agg(id || m, ',' order by id, m)) from t";
        assert_eq!(recovered.psql(sum), self.site.cluster.psql(sum));
        drop(recovered);
        fs::remove_dir_all(to).expect("remove the restored directory");
        outcome
    }
}

fn parity_of(object: &Path) -> PathBuf {
    let mut name = object.as_os_str().to_owned();
    name.push(".parity");
    name.into()
}

/// Sectors that an object of this length has parity for.
fn limit(len: u64) -> u64 {
    let sectors = len.div_ceil(SECTOR);
    (sectors * PERCENT).div_ceil(100).max(sectors.min(2))
}

/// Overwrites that many sectors, spread unevenly over the object, with bytes that were never in it.
fn damage(object: &Path, sectors: u64) {
    let len = fs::metadata(object).expect("an object").len();
    let all = len.div_ceil(SECTOR);
    let file = OpenOptions::new().write(true).open(object).expect("open an object");
    let mut hit = std::collections::BTreeSet::new();
    for n in 0.. {
        if hit.len() as u64 == sectors.min(all) {
            break;
        }
        hit.insert((n * n * 7 + 3 * n + len) % all);
        if n > all {
            hit.insert(n % all);
        }
    }
    for sector in hit {
        let at = sector * SECTOR;
        let rubbish = vec![0xa5; usize::try_from(SECTOR.min(len - at)).expect("a sector")];
        file.write_all_at(&rubbish, at).expect("damage");
    }
}

fn cut(object: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(object).expect("open an object");
    let len = file.metadata().expect("stat").len();
    file.set_len(len - bytes).expect("cut");
}

fn objects_of_problems(document: &Value) -> Vec<String> {
    let problems = document["problems"].as_array().expect("problems");
    problems.iter().map(|p| p["object"].as_str().expect("object").to_owned()).collect()
}

#[test]
fn bad_sectors_in_every_object_heal_without_another_repository() {
    let server = installed_or_skip!();
    let disk = Disk::new(&server, "parity", &with_parity());
    let (_, latest) = disk.fill();
    let whole = disk.verify(&[]).expect_code(0).json();
    let protected = disk.protected();
    assert_eq!(whole["parity"]["present"], protected.len(), "{whole}");
    assert_eq!(whole["parity"]["missing"], 0, "{whole}");
    let kinds = |word: &str| protected.iter().filter(|p| p.to_string_lossy().contains(word)).count();
    assert!(kinds("/packs/") >= 2 && kinds("/manifest") == 2 && kinds("/record") == 2 && kinds("/wal/") >= 5);
    let before: Vec<Vec<u8>> = protected.iter().map(|path| fs::read(path).expect("read")).collect();

    for (n, object) in protected.iter().enumerate() {
        let len = fs::metadata(object).expect("stat").len();
        match n % 4 {
            // The end of the object is missing, and a sector besides.
            1 if limit(len) > 2 => {
                cut(object, SECTOR);
                damage(object, 1);
            }
            2 if len < 2 * SECTOR => fs::remove_file(object).expect("remove"),
            _ => damage(object, limit(len)),
        }
        // Parity lies on the same disk.
        if n % 4 == 3 && limit(len) > 2 {
            fs::write(object, &before[n]).expect("undo");
            damage(object, limit(len) - 2);
            damage(&parity_of(object), 1);
        }
    }

    // On the fly: the backup's part by restore, the WAL by the recovering server.
    let restored = disk.restore("while-damaged", &latest, 3);
    assert!(restored.stderr.contains("healed in memory from its parity"), "{restored}");

    let found = disk.verify(&[]).expect_code(20).json();
    let named = objects_of_problems(&found);
    // Damaged records and manifests hide packs; all of the WAL is named.
    for object in protected.iter().filter(|p| p.to_string_lossy().contains("/wal/")) {
        let object = object.strip_prefix(&disk.repo).expect("in the repository").to_string_lossy().into_owned();
        assert!(named.contains(&object), "{object} is not in {found}");
    }
    let damaged = |p: &&Value| matches!(p["kind"].as_str(), Some("missing" | "damaged"));
    for problem in found["problems"].as_array().expect("problems").iter().filter(damaged) {
        assert!(problem["what"].as_str().is_some_and(|w| w.contains("its parity can heal it")), "{problem}");
    }

    let repaired = disk.verify(&["--repair"]).expect_code(0).json();
    assert!(strings(&repaired["repaired"]).len() >= protected.len(), "{repaired}");
    for (object, bytes) in protected.iter().zip(&before) {
        assert!(fs::read(object).expect("read") == *bytes, "{}", object.display());
    }
    let again = disk.verify(&[]).expect_code(0).json();
    assert_eq!(again["parity"], whole["parity"], "{again}");
    disk.restore("after-repair", &latest, 0);
}

/// After a rotation everything lies under other names, and heals there as well.
#[test]
fn later_seals_have_parity_of_their_own() {
    let server = installed_or_skip!();
    let disk = Disk::new(&server, "parity-anew", &with_parity());
    let (_, latest) = disk.fill();
    crate::keys::rotate(&disk.site.pgark, &[]);
    disk.site.pgark.run(["key", "reencrypt", "--yes", "--grace", "0s"]).expect_code(0);
    let protected = disk.protected();
    assert!(protected.iter().all(|p| p.to_string_lossy().ends_with(".g2")), "{protected:?}");
    let parity = objects_under(&disk.repo).into_iter().filter(|p| p.to_string_lossy().ends_with(".parity"));
    assert_eq!(parity.count(), protected.len(), "parity of the older seals went with them");
    let whole = disk.verify(&[]).expect_code(0).json();
    assert_eq!(whole["parity"]["present"], protected.len(), "{whole}");
    let before: Vec<Vec<u8>> = protected.iter().map(|path| fs::read(path).expect("read")).collect();
    for object in &protected {
        damage(object, limit(fs::metadata(object).expect("stat").len()));
    }
    disk.restore("while-damaged", &latest, 3);
    disk.verify(&[]).expect_code(20);
    disk.verify(&["--repair"]).expect_code(0);
    for (object, bytes) in protected.iter().zip(&before) {
        assert!(fs::read(object).expect("read") == *bytes, "{}", object.display());
    }
    let again = disk.verify(&[]).expect_code(0).json();
    assert_eq!(again["parity"], whole["parity"], "{again}");
    disk.site.pgark.run(["key", "retire", "--yes", "--grace", "0s"]).expect_code(0);
    disk.restore("after-retire", &latest, 0);
}

#[test]
fn one_sector_too_many_is_said_and_changes_nothing() {
    let server = installed_or_skip!();
    let disk = Disk::new(&server, "parity2", &with_parity());
    let (_, latest) = disk.fill();
    let packs = disk.protected().into_iter().filter(|p| p.to_string_lossy().contains("/packs/"));
    let pack = packs.max_by_key(|p| fs::metadata(p).expect("stat").len()).expect("a pack");
    let sectors = limit(fs::metadata(&pack).expect("stat").len()) + 1;
    damage(&pack, sectors);
    let damaged = fs::read(&pack).expect("read");
    let found = disk.verify(&[]).expect_code(20).json();
    let what = found["problems"][0]["what"].as_str().expect("what").to_owned();
    assert!(what.contains(&format!("{sectors} of ")), "{what}");
    let tried = disk.verify(&["--repair"]).expect_code(20);
    assert!(tried.stderr.contains("could not be repaired"), "{tried}");
    assert!(fs::read(&pack).expect("read") == damaged, "it is as it was");
    let beside = objects_under(pack.parent().expect("packs"));
    assert!(!beside.iter().any(|p| p.to_string_lossy().ends_with(".healed")), "{beside:?}");
    let (_, refused) = disk.site.try_restore("refused", &latest, &[]);
    assert!(!refused.succeeded() && refused.failed_cleanly(), "{refused}");
}

#[test]
fn parity_is_added_to_a_repository_that_had_none_and_goes_with_its_objects() {
    let server = installed_or_skip!();
    let disk = Disk::new(&server, "parity3", "");
    let (ids, latest) = disk.fill();
    assert_eq!(disk.protected().len(), 0);
    // Nobody asked for it.
    assert_eq!(disk.verify(&[]).expect_code(0).json()["parity"]["missing"], 0);
    config(&disk.site.scratch, &disk.repo, &with_parity());
    let lacking = disk.verify(&[]).expect_code(0).json();
    let missing = lacking["parity"]["missing"].as_u64().expect("a number");
    assert!(missing > 8, "{lacking}");
    let done = disk.verify(&["--repair"]).expect_code(0).json();
    assert_eq!((done["parity"]["present"].as_u64(), done["parity"]["missing"].as_u64()), (Some(missing), Some(0)));
    assert_eq!(disk.protected().len() as u64, missing);

    // A bit of parity itself.
    let parity = parity_of(&disk.protected()[0]);
    let good = fs::read(&parity).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&parity, &bad).expect("damage");
    let found = disk.verify(&[]).expect_code(20).json();
    assert!(objects_of_problems(&found)[0].ends_with(".parity"), "{found}");
    disk.verify(&["--repair"]).expect_code(0);
    assert!(fs::read(&parity).expect("read") == good);

    // A repair that lost power after it had taken the damaged object away.
    let object = disk.protected().into_iter().find(|p| p.to_string_lossy().contains("/packs/")).expect("a pack");
    let mut healed = object.clone().into_os_string();
    healed.push(".healed");
    fs::rename(&object, &healed).expect("as it lies then");
    let found = disk.verify(&[]).expect_code(20).json();
    assert!(objects_of_problems(&found).iter().any(|o| o.ends_with(".healed")), "{found}");
    disk.verify(&["--repair"]).expect_code(0);
    assert!(object.exists() && !Path::new(&healed).exists());
    disk.verify(&[]).expect_code(0);
    // One that lost power behind that: what it had healed is whole, and nothing is wrong any more.
    fs::copy(&object, &healed).expect("as it lies then");
    let noted = disk.verify(&[]).expect_code(0).json();
    let notes = noted["notes"].to_string();
    assert!(noted["ok"] == true && notes.contains(".healed") && notes.contains("--repair"), "{noted}");
    disk.verify(&["--quick"]).expect_code(20);
    let cleaned = disk.verify(&["--repair"]).expect_code(0).json();
    assert!(!Path::new(&healed).exists() && cleaned["notes"] == serde_json::json!([]), "{cleaned}");

    // What retention and people remove takes its parity along.
    disk.site.elsewhere.run(["expire", "--yes", "--keep-last", "1", "--gc-grace", "0s"]).expect_code(0);
    for path in objects_under(&disk.repo.join("clusters")) {
        let orphan = path.to_string_lossy().strip_suffix(".parity").is_some_and(|of| !Path::new(of).exists());
        assert!(!orphan, "{}", path.display());
    }
    disk.verify(&[]).expect_code(0);
    disk.restore("later", &latest, 0);
    disk.site.elsewhere.run(["delete", "--yes", "--last", &ids[1]]).expect_code(0);
    let left = objects_under(&disk.repo.join("clusters/main"));
    assert!(!left.iter().any(|p| p.to_string_lossy().contains("/backups/")), "{left:?}");
    assert!(disk.config.exists());
}

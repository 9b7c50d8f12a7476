//! Room in the repository: what is told of it, what is refused for want of it, and what a full disk leaves behind.

use std::fs;
use std::path::{Path, PathBuf};

use pgark_testkit::{LoopFs, ObjectServer, ObjectServerKind, Pgark, Scratch, repository_tree, skip};
use serde_json::Value;

use crate::site::{BINARY, Site};

/// The same program with a configuration in which its repository has these settings.
fn configured(pgark: &Pgark, scratch: &Scratch, name: &str, settings: &str, more: &str) -> Pgark {
    let text = format!("[repos.main]\nurl = '{}'\n{settings}\n{more}\n", pgark.repo().display());
    let file = scratch.file(name, text.as_bytes(), 0o600);
    pgark.clone().env("PGARK_CONFIG", file).env("PGARK_CACHE_DIR", scratch.join("cache"))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    for entry in fs::read_dir(dir).expect("list").flatten() {
        match entry.metadata().expect("stat").is_dir() {
            true => all.extend(files(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}

fn bytes_of(paths: &[PathBuf], part: &str) -> u64 {
    let of = paths.iter().filter(|p| p.to_string_lossy().contains(part));
    of.map(|p| fs::metadata(p).expect("stat").len()).sum()
}

fn finding<'a>(checked: &'a Value, name: &str) -> &'a Value {
    let found = checked["checks"].as_array().into_iter().flatten().find(|f| f["name"] == name);
    found.unwrap_or_else(|| panic!("no finding '{name}' in {checked}"))
}

fn incomplete(pgark: &Pgark) -> usize {
    let info = pgark.json(["info"]);
    let backups = info["clusters"][0]["backups"].as_array().expect("backups");
    backups.iter().filter(|b| b["complete"] == false).count()
}

/// About as much that hardly compresses.
fn grow(site: &Site, table: &str, megabytes: u32) {
    let rows = megabytes * 1024 * 1024 / 70;
    site.cluster.psql(&format!(
        "create table {table} as select md5(random()::text) || md5(random()::text) as m from generate_series(1,{rows}) g"
    ));
    site.cluster.psql("checkpoint");
}

#[test]
fn info_tells_every_byte_by_its_kind_and_a_young_repository_that_it_is_young() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "used");
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 5);
    site.cluster.switch_and_archive();
    site.pgark.backup("incr");
    let pgark = configured(&site.elsewhere, &site.scratch, "c.toml", "", "");

    let info = pgark.json(["info"]);
    let all = files(site.elsewhere.repo());
    let repository = &info["repository"];
    let used = &repository["used"];
    assert_eq!(used["bytes"].as_u64(), Some(bytes_of(&all, "")), "{repository}");
    assert_eq!(used["complete"], true, "{repository}");
    let main = &used["clusters"][0];
    assert_eq!(main["packs"]["bytes"].as_u64(), Some(bytes_of(&all, "/packs/")), "{repository}");
    assert_eq!(main["wal"]["bytes"].as_u64(), Some(bytes_of(&all, "/wal/")), "{repository}");
    assert!(repository["free"]["bytes"].as_u64() > Some(0), "{repository}");
    assert!(repository["free"]["total_bytes"].as_u64() >= repository["free"]["bytes"].as_u64(), "{repository}");
    assert_eq!(repository["growth"]["method"], "not enough history", "{repository}");
    assert_eq!(repository["forecast"]["unknown"], true, "{repository}");
    assert_eq!(repository["forecast"]["full_at"], Value::Null, "{repository}");

    let text = pgark.run(["info"]).expect_code(0).stdout;
    assert!(text.contains("free space: ") && text.contains("not enough history"), "{text}");
    let stopped = pgark.json(["info", "--count-for", "0s"]);
    assert_eq!(stopped["repository"]["used"]["complete"], false, "{stopped}");
}

#[test]
fn check_warns_by_what_was_counted_and_by_the_settings() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "grows");
    site.pgark.backup("full");
    let with = |name: &str, settings: &str| configured(&site.pgark, &site.scratch, name, settings, "");
    let plenty = with("plenty.toml", "capacity = '1GB'\nwarn_days = 60");
    let fine = plenty.run(["check", "--no-switch", "--json"]).json();
    assert_eq!(finding(&fine, "free space")["verdict"], "ok", "{fine}");
    assert!(finding(&fine, "free space")["message"].to_string().contains("not enough history"), "{fine}");

    // What was counted on the days before, as this user's cache has it.
    let remembered = files(&site.scratch.join("cache/used"));
    let [remembered] = remembered.as_slice() else { panic!("one file: {remembered:?}") };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
    let line = |days: u64| format!("{} {}\n", now - days * 86_400, (4 - days) * 100_000_000);
    let lines: String = [4, 3, 2, 1].map(line).concat();
    fs::write(remembered, lines).expect("remember");
    let grows = plenty.run(["check", "--no-switch", "--json"]).expect_code(3).json();
    assert_eq!(finding(&grows, "growth")["verdict"], "warning", "{grows}");
    assert!(finding(&grows, "growth")["message"].to_string().contains("as counted 5 times"), "{grows}");
    let repository = &grows["repositories"][0];
    let days = repository["forecast"]["full_in_days"].as_u64().expect("a forecast");
    assert!((20..60).contains(&days), "{repository}");
    // The same with a shorter patience is fine.
    let patient =
        with("patient.toml", "capacity = '1GB'\nwarn_days = 14").run(["check", "--no-switch", "--json"]).json();
    assert_eq!(finding(&patient, "growth")["verdict"], "ok", "{patient}");

    let low = with("low.toml", "capacity = '1GB'\nwarn_free = '999MB'").run(["check", "--no-switch", "--json"]);
    assert_eq!(finding(&low.clone().expect_code(3).json(), "free space")["verdict"], "warning", "{low}");
    let full = with("full.toml", "capacity = '1MB'").run(["check", "--no-switch", "--json"]);
    assert_eq!(finding(&full.clone().expect_code(1).json(), "free space")["verdict"], "FAILED", "{full}");
}

#[test]
fn a_backup_that_does_not_fit_is_refused_before_it_writes_anything() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "fits");
    grow(&site, "filler", 8);
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let with = |name: &str, capacity: u64| {
        let settings = format!("capacity = '{capacity}'\nwal_reserve = '0'");
        configured(&site.pgark, &site.scratch, name, &settings, "")
    };
    let used = || bytes_of(&files(site.elsewhere.repo()), "");
    let small = with("small.toml", used() + 2_000_000);
    let before = repository_tree(site.elsewhere.repo());
    for words in [&["backup", "--type", "full"][..], &["backup", "--type", "full", "--dry-run"]] {
        let refused = small.run(words).expect_code(4);
        assert!(refused.stderr.contains("E-REPO-SPACE") && refused.stderr.contains("--ignore-space"), "{refused}");
    }
    assert_eq!(repository_tree(site.elsewhere.repo()), before, "a refused backup has left something");

    let planned = with("large.toml", 1 << 30).json(["backup", "--type", "full", "--dry-run"]);
    let estimated = planned["estimated_stored_bytes"].as_u64().expect("an estimate");
    let forced = small.run(["backup", "--type", "full", "--ignore-space", "--json"]).expect_code(3).json();
    assert!(forced["warnings"].to_string().contains("the backup takes about"), "{forced}");
    let stored = forced["stored_bytes"].as_u64().expect("stored");
    assert!(estimated > stored / 2 && estimated < stored * 2, "estimated {estimated}, stored {stored}");

    // What little changed fits where a full backup does not.
    site.ledger.write_rows(&site.cluster, 3);
    let little = with("little.toml", used() + 3_000_000);
    little.run(["backup", "--type", "full"]).expect_code(4);
    little.run(["backup", "--type", "incr"]).expect_code(0);
    grow(&site, "more", 30);
    site.cluster.switch_and_archive();
    let listed = site.elsewhere.json(["info"])["clusters"][0]["backups"].as_array().expect("backups").len();
    let less = with("less.toml", used() + 3_000_000);
    let refused = less.run(["backup", "--type", "incr"]).expect_code(4);
    assert!(refused.stderr.contains("E-REPO-SPACE") && refused.stderr.contains("of changes"), "{refused}");
    assert_eq!(incomplete(&site.elsewhere), 0, "a refused backup is shown as interrupted");
    assert_eq!(site.elsewhere.json(["info"])["clusters"][0]["backups"].as_array().expect("backups").len(), listed);

    // WAL is stored all the same, and with room the same backup is taken.
    site.ledger.write_rows(&site.cluster, 3);
    site.archive_all();
    with("again.toml", 1 << 30).run(["backup", "--type", "incr"]).expect_code(0);
    site.elsewhere.run(["verify"]).expect_code(0);
    let latest = site.archive_all();
    site.assert_restores("r", &latest, 1, &[]);
}

#[test]
fn a_reserve_for_wal_is_left_and_can_be_set() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "reserve");
    let with = |name: &str, settings: &str| configured(&site.pgark, &site.scratch, name, settings, "");
    let refused = with("a.toml", "capacity = '1GB'\nwal_reserve = '999MB'").run(["backup"]).expect_code(4);
    assert!(refused.stderr.contains("999.0 MB stay reserved for WAL"), "{refused}");
    with("b.toml", "capacity = '1GB'").run(["backup"]).expect_code(0);
}

#[test]
fn a_disk_that_is_too_small_is_told_before_and_one_that_fills_up_meanwhile_is_left_clean() {
    let server = installed_or_skip!();
    let disk = match LoopFs::new(96) {
        Ok(disk) => disk,
        Err(why) => skip!("{why}"),
    };
    let repo = disk.dir("repo");
    let shape = |b: pgark_testkit::ClusterBuilder| b.wal_segsize_mb(1).conf("autovacuum = off");
    let site = Site::with_repo(&server, Scratch::new("small-disk"), &repo, shape);
    site.ledger.write_rows(&site.cluster, 3);
    let first = site.pgark.backup("full");
    grow(&site, "filler", 30);
    site.cluster.switch_and_archive();
    let ballast = disk.fill_leaving(10 << 20);
    let checked = site.pgark.run(["check", "--no-switch", "--json"]).expect_code(1).json();
    assert_eq!(finding(&checked, "free space")["verdict"], "FAILED", "{checked}");
    let before = repository_tree(&repo);
    let refused = site.pgark.run(["backup", "--type", "full"]).expect_code(4);
    assert!(refused.stderr.contains("E-REPO-SPACE"), "{refused}");
    assert_eq!(repository_tree(&repo), before);

    let free = || {
        let output = std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(&repo).output().expect("df");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .nth(1)
            .and_then(|n| n.trim().parse::<u64>().ok())
            .expect("a size")
    };
    let had = free();
    let failed = site.pgark.run(["backup", "--type", "full", "--ignore-space"]).expect_code(1);
    assert!(failed.stderr.contains("E-REPO-SPACE"), "{failed}");
    assert!(free() + (2 << 20) > had, "{} bytes are left of {had}", free());
    assert_eq!(incomplete(&site.elsewhere), 0);
    // There is room for WAL, and what was there before is whole.
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();
    site.assert_restores("r", &latest, 1, &[&first]);
    fs::remove_file(ballast).expect("room");
    site.pgark.run(["backup", "--type", "full"]).expect_code(0);
    site.elsewhere.run(["verify"]).expect_code(0);
}

#[test]
fn the_other_repositories_of_a_cluster_are_looked_at_too() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "others");
    let second = site.scratch.dir("second");
    let both = |name: &str, required: bool| {
        let more = format!(
            "[repos.second]\nurl = '{}'\ncapacity = '1MB'\nwal_reserve = '0'\nrequired = {required}",
            second.display()
        );
        let repos = format!("{},{}", site.elsewhere.repo().display(), second.display());
        configured(&site.pgark, &site.scratch, name, "", &more).env("PGARK_REPO", repos)
    };
    both("init.toml", true).run(["init"]).expect_code(0);
    let refused = both("required.toml", true).run(["backup", "--type", "full"]).expect_code(4);
    assert!(refused.stderr.contains("E-REPO-SPACE") && refused.stderr.contains("repository second"), "{refused}");
    assert_eq!(incomplete(&site.elsewhere), 0);
    let warned = both("other.toml", false).run(["backup", "--type", "full", "--json"]).expect_code(3).json();
    assert!(warned["warnings"].to_string().contains("repository second: the backup takes about"), "{warned}");
    // The full one comes first, and need not have it.
    let small = |name: &str, required: bool| {
        let turned = format!("{},{}", second.display(), site.elsewhere.repo().display());
        both(name, required).env("PGARK_REPO", turned)
    };
    let passed_over = small("first.toml", false).run(["backup", "--type", "full", "--json"]).expect_code(3);
    assert!(passed_over.stderr.contains("repository second has no room for the backup: E-REPO-SPACE"), "{passed_over}");
    let told = passed_over.json()["repos"].clone();
    assert_eq!(
        told,
        serde_json::json!([{"name": "main", "ok": true}, {"name": "second", "ok": false}]),
        "{passed_over}"
    );
    small("first-required.toml", true).run(["backup", "--type", "full"]).expect_code(4);
    let checked = both("check.toml", false).run(["check", "--no-switch", "--json"]).json();
    let names: Vec<&str> =
        checked["repositories"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["main", "second"], "{checked}");
}

const PRICES: &str = "[prices.test]\ncurrency = 'EUR'\nwrite_requests = 0.005\nread_requests = 0.0004\negress = 90000\n\
                      [prices.test.storage]\nSTANDARD = 200000\nSTANDARD_IA = 0.01\n\
                      [prices.test.retrieval]\nSTANDARD_IA = 0.01";

#[test]
fn costs_come_from_the_price_table_that_the_repository_names_and_from_no_other() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "cost");
    site.pgark.backup("full");
    let none = configured(&site.elsewhere, &site.scratch, "none.toml", "", PRICES);
    let refused = none.run(["info", "--cost"]).expect_code(2);
    assert!(refused.stderr.contains("E-PRICES"), "{refused}");
    let priced = configured(&site.elsewhere, &site.scratch, "priced.toml", "prices = 'test'", PRICES);
    let info = priced.json(["info", "--cost"]);
    let cost = &info["repository"]["cost"];
    let used = info["repository"]["used"]["bytes"].as_u64().expect("bytes") as f64;
    let month = cost["storage_month"].as_f64().expect("a price");
    assert!((month - used / f64::from(1u32 << 30) * 200_000.0).abs() < 0.02, "{cost}");
    assert_eq!((cost["currency"].as_str(), cost["storage"][0]["class"].as_str()), (Some("EUR"), Some("STANDARD")));
    // A young repository is not extrapolated.
    assert_eq!(cost["requests_month"], Value::Null, "{cost}");
    assert_eq!(cost["forecast"][2]["storage_month"], Value::Null, "{cost}");
    let packs = info["repository"]["used"]["clusters"][0]["packs"]["bytes"].as_u64().expect("bytes") as f64;
    let restore = cost["restores"][0]["egress"].as_f64().expect("a price");
    assert!((restore - packs / f64::from(1u32 << 30) * 90_000.0).abs() < 0.02, "{cost}");
    let text = priced.run(["info", "--cost"]).expect_code(0).stdout;
    assert!(text.contains("EUR for storage") && text.contains("one restore of the newest backup"), "{text}");
}

/// An S3 store that knows classes.
#[test]
fn archived_packs_are_told_before_a_restore_writes_anything() {
    let server = installed_or_skip!();
    let store = match ObjectServer::start(ObjectServerKind::Moto) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let scratch = Scratch::new("classes");
    let mut elsewhere =
        Pgark::new(BINARY, &scratch, Path::new(&store.url_by(store.address(), "prod/pg", "&timeout=5")));
    for (name, value) in store.environment() {
        elsewhere = elsewhere.env(&name, value);
    }
    let shape = |b: pgark_testkit::ClusterBuilder| b.wal_segsize_mb(1).conf("autovacuum = off");
    let site = Site::with_pgark(&server, scratch, elsewhere, shape);
    site.ledger.write_rows(&site.cluster, 3);
    let full = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let incr = site.pgark.backup("incr");
    let latest = site.archive_all();
    let objects = site.elsewhere.json(["repo-ls", &format!("clusters/main/backups/{full}/packs")]);
    let packs: Vec<String> = objects["objects"]
        .as_array()
        .expect("objects")
        .iter()
        .map(|o| format!("prod/pg/{}", o["object"].as_str().expect("a name")))
        .collect();
    assert!(!packs.is_empty(), "{objects}");
    packs.iter().for_each(|key| store.archive(key));

    // The incremental one needs packs of the full one.
    for id in [&full, &incr] {
        let (to, refused) = site.try_restore(&format!("r-{id}"), &latest, &[id]);
        assert_eq!(refused.code, Some(4), "{refused}");
        let wanted = format!("clusters/main/backups/{full}/packs/ ({})", packs.len());
        assert!(refused.stderr.contains("E-REPO-ARCHIVED") && refused.stderr.contains(&wanted), "{refused}");
        assert!(refused.stderr.contains("thaw"), "{refused}");
        assert!(!to.exists(), "something was written");
        let (_, dry) = site.try_restore(&format!("d-{id}"), &latest, &[id, "--dry-run"]);
        assert!(dry.code == Some(4) && dry.stderr.contains("E-REPO-ARCHIVED"), "{dry}");
    }
    // What cannot be read is neither right nor wrong, and nothing is proven by it; all else is checked.
    let evidence = || site.elsewhere.json(["info"])["clusters"][0]["backups"][0]["evidence"].clone();
    let verify = site.elsewhere.run(["verify", "--json"]).expect_code(3).json();
    assert_eq!(verify["unchecked"].as_array().map(Vec::len), Some(packs.len()), "{verify}");
    assert_eq!((&verify["ok"], &verify["problems"]), (&false.into(), &serde_json::json!([])), "{verify}");
    assert_eq!(evidence(), "stored");
    let verify = site.elsewhere.run(["verify"]).expect_code(3);
    assert!(verify.stdout.contains("NOT CHECKED") && !verify.stdout.contains("every byte"), "{verify}");
    packs.iter().for_each(|key| store.thaw(key));
    let verify = site.elsewhere.run(["verify", "--json"]).expect_code(0).json();
    assert_eq!((&verify["ok"], verify.get("unchecked")), (&true.into(), None), "{verify}");
    assert_eq!(evidence(), "authenticated");
    site.assert_restores("thawed", &latest, 1, &[&incr]);

    let of = |name: &str, settings: &str| configured(&site.elsewhere, &site.scratch, name, settings, "");
    let rules =
        of("rules.toml", "class_after = { '30d' = 'STANDARD_IA', '90d' = 'GLACIER_IR' }").run(["repo-lifecycle"]);
    let rules = rules.expect_code(0).json();
    assert_eq!(rules["Rules"][0]["Filter"]["Prefix"], "prod/pg/clusters/main/backups/", "{rules}");
    assert_eq!(rules["Rules"][0]["Transitions"][1]["StorageClass"], "GLACIER_IR", "{rules}");
    let refused = of("deep.toml", "class_after = { '180d' = 'DEEP_ARCHIVE' }").run(["repo-lifecycle"]).expect_code(2);
    assert!(refused.stderr.contains("allow_archive_classes"), "{refused}");
    // Nothing is old enough: no rule but that for uploads.
    let deep = "class_after = { '180d' = 'DEEP_ARCHIVE' }\nallow_archive_classes = true";
    let rules = of("allowed.toml", deep).run(["repo-lifecycle"]).expect_code(0).json();
    assert_eq!(rules["Rules"].as_array().map(Vec::len), Some(1), "{rules}");
}

//! `examples/pharmacy.toml`: dumps and base backups with WAL into a directory and an object store; what was lost, in part or whole,
//! comes back out of either.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgark_testkit::{
    Ending, Ledger, ObjectServer, ObjectServerKind, Pgark, Recovered, Scratch, Server, Target, TestCluster,
    objects_under, skip,
};
use serde_json::Value;

use crate::site::{BINARY, Site, alerts_into, strings};

const EXAMPLE: &str = include_str!("../../../../examples/pharmacy.toml");

/// Nowhere in the repositories.
const MARK: &str = "amoxicillin 500 mg, 3 x daily";

pub const DATABASE: &str = "create schema stock; create table stock.products (id int primary key, name text not null); \
    insert into stock.products select i, 'product ' || i from generate_series(1, 300) i; \
    create table prescriptions (id bigint generated always as identity primary key, product int references stock.products, text text); \
    create index on prescriptions (product); alter table prescriptions owner to pharmacist; \
    insert into prescriptions (product, text) select 1 + i % 300, 'amoxicillin 500 mg, 3 x daily' from generate_series(1, 2000) i";

pub fn configured(server: &Server, store: &ObjectServer) -> (Site, PathBuf) {
    let scratch = Scratch::new("pharmacy");
    let (onsite, drill) = (scratch.join("nas"), scratch.join("drill"));
    let passphrase = scratch.file("passphrase", b"correct horse battery staple\n", 0o600);
    let config = scratch.join("pgark.toml");
    let bare = Pgark::new(BINARY, &scratch, &onsite).without_env("PGARK_REPO").without_env("PGARK_PASSPHRASE_FILE");
    let access = store.environment();
    let elsewhere = access.iter().fold(bare, |p, (name, value)| p.env(name, value)).env("PGARK_CONFIG", &config);
    let set: String = access.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
    let push = format!("{set}{} archive-push --config {} \"%p\"", elsewhere.binary().display(), config.display());
    let builder = TestCluster::builder(server).archive_command(push).wal_segsize_mb(1).conf("archive_timeout = 5min");
    let cluster = builder.start(&scratch, "c");
    let places = [
        ("\"/mnt/nas/pgark\"", format!("\"{}\"", onsite.display())),
        (
            "\"s3://pharmacy-backups/pgark?region=eu-central-1\"",
            format!("\"{}\"", store.url_by(store.address(), "pharmacy", "&timeout=2")),
        ),
        ("\"/etc/pgark/passphrase\"", format!("\"{}\"", passphrase.display())),
        ("\"/var/run/postgresql\"", format!("\"{}\"", cluster.socket_dir().display())),
        ("\"/var/lib/pgark-drill\"", format!("\"{}\"", drill.display())),
        ("\"/var/lib/postgresql/16/main\"", format!("\"{}\"", cluster.data_dir().display())),
        ("port = 5432", format!("port = {}", cluster.port())),
    ];
    let text = places.iter().fold(EXAMPLE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    let text = alerts_into(&scratch.join("told"), &text);
    scratch.file("pgark.toml", text.as_bytes(), 0o644);
    let pgark = elsewhere.clone().env("PGDATA", cluster.data_dir());
    pgark.run(["init"]).expect_code(0);
    let ledger = Ledger::create(&cluster);
    (Site { cluster, ledger, pgark, elsewhere, server: server.clone(), scratch }, onsite)
}

fn dump(site: &Site) -> Value {
    site.pgark.json(["backup", "--kind", "logical"])
}

fn id(document: &Value) -> String {
    document["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
}

/// For its owner alone, and without a word of what is in the database.
fn assert_private(dir: &Path) {
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let mut directories = vec![dir.to_owned()];
    while let Some(next) = directories.pop() {
        assert_eq!(mode(&next), 0o700, "{}", next.display());
        let entries = fs::read_dir(&next).expect("list").map(|e| e.expect("an entry").path());
        directories.extend(entries.filter(|path| path.is_dir()));
    }
    for path in objects_under(dir) {
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        let bytes = fs::read(&path).expect("an object");
        assert!(!bytes.windows(MARK.len()).any(|w| w == MARK.as_bytes()), "{}", path.display());
    }
}

#[test]
fn a_pharmacy_loses_a_table_a_schema_its_disk_and_its_object_store() {
    let server = installed_or_skip!();
    let mut store = match ObjectServer::start(ObjectServerKind::S3s) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let (site, onsite) = configured(&server, &store);
    let (pgark, cluster) = (&site.pgark, &site.cluster);
    pgark.run(["config", "check"]).expect_code(0);
    cluster.psql("create role pharmacist login password 'x'");
    cluster.psql("create role pgark_check login; grant pg_read_all_data to pgark_check");
    cluster.psql("create database pharmacy owner pharmacist");
    cluster.psql_db("pharmacy", DATABASE);

    // Sunday, and a night; a day later the database has grown.
    let base = pgark.backup("full");
    let first = dump(&site);
    assert_eq!(first["logical"]["globals"]["roles"], 3, "{first}");
    assert_eq!(strings(&first["repos"]).len(), 0);
    assert!(first["repos"].as_array().is_some_and(|r| r.len() == 2 && r.iter().all(|r| r["ok"] == true)), "{first}");
    cluster
        .psql_db("pharmacy", "create table stock.counts as select i, md5(i::text) m from generate_series(1, 20000) i");
    let rows = "select count(*), sum(id), count(distinct product) from prescriptions";
    let (whole, second) = (cluster.psql_db("pharmacy", rows), dump(&site));
    let size = |document: &Value| pgark.backup_info(&id(document))["database_bytes"].as_u64().expect("a size");
    assert!(size(&second) > size(&first), "{} {}", size(&first), size(&second));
    let shown = pgark.run(["info"]).expect_code(0).stdout;
    assert!(shown.matches("databases of ").count() == 2, "{shown}");

    // Monitoring has one line. A promise that was never rehearsed is not known to be kept.
    let nagios = |code: i32, word: &str| {
        let outcome = pgark.run(["check", "--nagios"]).expect_code(code);
        assert!(
            outcome.stdout.starts_with(&format!("PGARK {word}")) && outcome.stdout.lines().count() == 1,
            "{outcome}"
        );
        outcome.stdout
    };
    assert!(nagios(3, "UNKNOWN").contains("no recovery was rehearsed yet"));
    let held = pgark.json(["drill"]);
    assert_eq!((&held["verdict"], &held["backup"]), (&"green".into(), &base.as_str().into()), "{held}");
    assert!(held["rto"]["measured_ms"].as_u64().is_some_and(|ms| ms > 0), "{held}");
    assert!(nagios(0, "OK").contains("checks passed"));

    lost_in_part(&site, &whole);
    retention(&site, &base, &[&id(&first), &id(&second)]);
    assert_private(&onsite);

    // A moment between two backups, of the whole cluster, when the disk with the repository is gone.
    site.ledger.write_rows(cluster, 5);
    let moment = Target::Time { at: site.ledger.last().after, inclusive: true };
    site.ledger.write_rows(cluster, 5);
    site.archive_all();
    fs::remove_dir_all(&onsite).expect("the disk is gone");
    let to = site.scratch.join("elsewhere");
    let words = site.restore_arguments(&to, &moment, &["--repo", "offsite"]);
    site.elsewhere.run(words).expect_code(0);
    let recovered = Recovered::start(&server, &site.scratch, &to).expect(Ending::Promoted);
    site.ledger.assert_exact(&recovered, &moment, 1);
    assert!(nagios(2, "CRITICAL").contains("onsite"));
    // And a dump out of the same, into the place of the database.
    cluster.psql_db("pharmacy", "truncate prescriptions");
    let words = [
        "restore",
        "--kind",
        "logical",
        "--repo",
        "offsite",
        "--database",
        "pharmacy",
        "--in-place",
        "--yes",
        "--json",
    ];
    let document = pgark.run([&words[..], &["--no-safety-backup"]].concat()).expect_code(0).json();
    assert_eq!(
        (&document["backup"], &document["validation"]["outcome"]),
        (&id(&second).into(), &"ok".into()),
        "{document}"
    );
    assert_eq!(cluster.psql_db("pharmacy", rows), whole);
    store.kill();
    // With no repository at all nothing can be checked.
    assert!(nagios(2, "CRITICAL").contains("E-"));
    let wrong = site.scratch.file("wrong.toml", b"[clusters.main]\nnonsense = 1\n", 0o600);
    let outcome = pgark.clone().env("PGARK_CONFIG", wrong).run(["check", "--nagios"]).expect_code(3);
    assert!(outcome.stdout.starts_with("PGARK UNKNOWN - "), "{outcome}");
}

/// A table at a moment, a table and a schema of last night: beside what is live.
fn lost_in_part(site: &Site, whole: &str) {
    let (pgark, cluster) = (&site.pgark, &site.cluster);
    cluster.psql_db(
        "pharmacy",
        "insert into prescriptions (product, text) select 7, 'of today' from generate_series(1, 50)",
    );
    let before = cluster.psql("select clock_timestamp()");
    cluster.psql("select pg_sleep(0.02)");
    cluster.psql_db("pharmacy", "delete from prescriptions where id > 10; truncate stock.counts");
    site.archive_all();
    let scratch = site.scratch.dir("s").display().to_string();
    let words =
        ["restore-table", "prescriptions", "--database", "pharmacy", "--scratch-dir", &scratch, "--target-time"];
    pgark.run([&words[..], &[&before, "--json"]].concat()).expect_code(0);
    assert_eq!(cluster.psql_db("pharmacy", "select count(*), max(id) from prescriptions_rescued"), "2050|2050");
    assert_eq!(cluster.psql_db("pharmacy", "select count(*) from prescriptions"), "10");
    let out = |database: &str, part: [&str; 2], code: i32| {
        let words = ["restore", "--kind", "logical", "--database", "pharmacy", "--to-database", database, "--json"];
        pgark.run([&words[..], &part].concat()).expect_code(code).json()
    };
    // Alone, it cannot refer to the products.
    let document = out("table of last night", ["--table", "prescriptions"], 3);
    assert!(
        document["warnings"][0].to_string().contains("the table that it refers to is not part of the selection"),
        "{document}"
    );
    assert_eq!(document["validation"]["outcome"], "ok", "{document}");
    let rows = "select count(*), sum(id), count(distinct product) from prescriptions";
    assert_eq!(cluster.psql_db("table of last night", rows), whole);
    out("stock of last night", ["--schema", "stock"], 0);
    let counts = "select count(*), (select count(*) from stock.products) from stock.counts";
    assert_eq!(cluster.psql_db("stock of last night", counts), "20000|300");
    cluster.psql_db("pharmacy", "drop table prescriptions_rescued");
    // What was restored is on record.
    let log = pgark.json(["report", "list"]);
    let what: Vec<&str> = log["reports"].as_array().into_iter().flatten().filter_map(|r| r["what"].as_str()).collect();
    assert_eq!(what.len(), 3, "two dumps and a drill: {log}");
}

/// As configured; of each kind and in each repository.
fn retention(site: &Site, base: &str, dumps: &[&str]) {
    let shown = site.pgark.run(["config", "explain"]).expect_code(0).stdout;
    for rule in ["keep_daily = 7", "keep_weekly = 4", "keep_monthly = 12"] {
        assert!(shown.contains(rule), "{rule}: {shown}");
    }
    for repo in ["onsite", "offsite"] {
        let explained = site.pgark.run(["expire", "--explain", "--repo", repo]).expect_code(0).stdout;
        assert!(explained.contains(base) && dumps.iter().all(|id| explained.contains(id)), "{explained}");
        for reason in ["daily", "weekly", "monthly"] {
            assert!(explained.contains(reason), "{reason}: {explained}");
        }
        // Of one night the last dump is its daily.
        let plan = site.pgark.json(["expire", "--dry-run", "--repo", repo]);
        assert_eq!(strings(&plan["expired"]), [dumps[0]], "{plan}");
        site.pgark.run(["expire", "--yes", "--repo", repo]).expect_code(0);
    }
    site.pgark.run(["verify"]).expect_code(0);
}

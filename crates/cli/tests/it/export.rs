//! An export is used the way somebody does who has no pgark: `tar`, `pg_verifybackup`, `pg_ctl`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_testkit::{
    ClusterBuilder, Damage, Damaged, Ending, Recovered, Server, TestCluster, as_postgres, assert_same_state,
    assert_sound, objects_under, run_bounded, state_of,
};

use crate::site::Site;

/// Runs a program of the system; what it said when it failed.
pub fn run_tool(program: &Path, words: &[&str]) -> Result<String, String> {
    let mut command = as_postgres(program);
    command.args(words);
    let done = run_bounded(command, b"", Duration::from_secs(300)).map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match done.status {
        Some(status) if status.success() => Ok(text(&done.stdout)),
        status => Err(format!("{program:?} {words:?}: {status:?}\n{}{}", text(&done.stdout), text(&done.stderr))),
    }
}

fn unpack(site: &Site, tar: &Path, name: &str) -> PathBuf {
    let dir = site.scratch.dir(name);
    let (tar, into) = (tar.display().to_string(), dir.display().to_string());
    run_tool(Path::new("tar"), &["-xf", &tar, "-C", &into]).expect("tar unpacks it");
    dir
}

fn verify_backup(server: &Server, data: &Path) -> Result<String, String> {
    run_tool(&server.program("pg_verifybackup"), &[&data.display().to_string()])
}

fn eventful_site(server: &Server, label: &str) -> Site {
    let site = Site::new(server, label, eventful_shape);
    fill(&site.cluster);
    site
}

pub fn eventful_shape(builder: ClusterBuilder) -> ClusterBuilder {
    builder.wal_segsize_mb(1).tablespace("ts1", "ts one").tablespace("empty", "empty").conf("autovacuum = off")
}

/// Everything that is hard to carry: long and odd names, holes, tablespaces, another database.
pub fn fill(cluster: &TestCluster) {
    cluster.psql(
        "create table t as select g id, repeat(md5(g::text), 9) m from generate_series(1,9000) g; \
         create table s tablespace ts1 as select g id, md5(g::text) m from generate_series(1,9000) g; create index on s(m); \
         create database other; vacuum (freeze, analyze)",
    );
    let file = |name: &[u8], content: &[u8]| {
        let path = cluster.data_dir().join(std::ffi::OsStr::from_bytes(name));
        fs::write(&path, content).expect("a file in the data directory");
        pgark_testkit::give_to_postgres(&path);
    };
    file(&[b'n'; 200], b"a long name");
    file("späß 'n \" \\ \n name".as_bytes(), b"an odd name");
    file(b"holes", &[vec![7; 10], vec![0; 3_000_000], vec![9; 10]].concat());
    file(b"nothing", b"");
}

pub fn change(cluster: &TestCluster, n: usize) {
    cluster.psql(&format!(
        "update t set m = 'changed {n}' where id % 3000 = {n}; update s set m = '{n}' where id % 2500 = {n}; checkpoint"
    ));
}

#[test]
fn an_export_starts_without_pgark_and_pg_verifybackup_accepts_it() {
    for server in majors_or_skip!() {
        let site = eventful_site(&server, "export");
        site.pgark.backup("full");
        change(&site.cluster, 1);
        site.pgark.backup("incr");
        change(&site.cluster, 2);
        let id = site.pgark.backup("incr");
        let state = state_of(&site.cluster);
        // What comes after the backup is not in it.
        site.cluster.psql("create table later(a int)");
        site.archive_all();

        let tar = site.scratch.join("out.tar.gz");
        let words = ["export", id.as_str(), "--to", &tar.display().to_string()];
        let done = site.elsewhere.run([&words[..], &["--json"]].concat()).expect_code(0);
        assert!(done.stderr.contains("not encrypted"), "{done}");
        let document = done.json();
        assert_eq!((&document["schema"], &document["backup"]), (&1.into(), &id.as_str().into()), "{document}");
        let meta = fs::metadata(&tar).expect("the export");
        assert_eq!(meta.mode() & 0o777, 0o600);
        assert_eq!(document["written"]["file_bytes"], meta.len(), "{document}");
        let sum = run_tool(Path::new("sha256sum"), &[&tar.display().to_string()]).expect("sha256sum");
        assert!(sum.starts_with(document["written"]["sha256"].as_str().expect("a sum")), "{sum} {document}");

        // Nothing is replaced.
        let again = site.elsewhere.run(words).expect_code(4);
        assert!(again.stderr.contains("E-EXPORT-EXISTS"), "{again}");
        assert_eq!(fs::metadata(&tar).expect("the export").len(), meta.len());

        let top = unpack(&site, &tar, "unpacked").join(format!("main-{id}"));
        let data = top.join("data");
        assert_eq!(fs::read(data.join("n".repeat(200))).expect("the long name"), b"a long name");
        assert_eq!(fs::metadata(data.join("holes")).expect("holes").len(), 3_000_020);
        assert!(fs::read_to_string(top.join("README.txt")).expect("the text").contains("pg_verifybackup"));
        // 13 to 18 have it; not every build here does.
        if server.program("pg_verifybackup").exists() {
            verify_backup(&server, &data).expect("pg_verifybackup accepts it");
            let table = data.join("base/1/1259");
            let whole = fs::read(&table).expect("pg_class");
            let mut bad = whole.clone();
            bad[100] ^= 1;
            fs::write(&table, &bad).expect("damage");
            verify_backup(&server, &data).expect_err("damage is seen");
            fs::write(&table, &whole).expect("mend");
        }
        let link = fs::read_link(data.join("pg_tblspc").join(oid(&site, "ts1"))).expect("a link");
        assert!(link.starts_with("../../tablespaces"), "{}", link.display());

        let recovered = Recovered::start(&server, &site.scratch, &data).expect(Ending::Promoted);
        assert_same_state(&state, &state_of(&recovered), "the export");
        assert_sound(&recovered, server.major(), "the export");
        assert_eq!(recovered.psql("show archive_mode"), "off");
        assert_eq!(recovered.psql("select count(*) from pg_class where relname = 'later'"), "0");
        recovered.psql("create table mine tablespace ts1 as select 1; create table empty_one(a int) tablespace empty");
        recovered.verify_checksums();
    }
}

fn oid(site: &Site, tablespace: &str) -> String {
    site.cluster.psql(&format!("select oid from pg_tablespace where spcname = '{tablespace}'"))
}

#[test]
fn the_same_backup_gives_the_same_bytes_in_every_form() {
    let server = installed_or_skip!();
    let site = eventful_site(&server, "forms");
    let id = site.pgark.backup("full");
    let export = |name: &str| {
        let to = site.scratch.join(name);
        site.elsewhere.run(["export", &id, "--to", &to.display().to_string()]).expect_code(0);
        fs::read(&to).expect("the export")
    };
    let plain = export("a.tar");
    // Later, with more in the archive.
    site.ledger.write_rows(&site.cluster, 3);
    site.archive_all();
    assert!(plain == export("b.tar"), "the same tar");
    assert!(export("a.tar.gz") == export("b.tgz"), "the same compressed tar");
    let zstd = export("a.tar.zst");
    assert!(zstd.len() < plain.len() / 2 && zstd.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "{}", zstd.len());
    let streamed = site.elsewhere.command(["export", &id, "--to", "-"]).output().expect("pgark runs");
    assert!(streamed.status.success(), "{}", String::from_utf8_lossy(&streamed.stderr));
    assert!(streamed.stdout == plain, "the same on standard output");
    let gz = site.scratch.join("a.tar.gz").display().to_string();
    let plain_size = run_tool(Path::new("sh"), &["-c", &format!("gzip -dc '{gz}' | wc -c")]).expect("gzip");
    assert_eq!(plain_size.trim(), plain.len().to_string());

    // The last entry is what makes a directory start.
    let listed = run_tool(Path::new("tar"), &["-tf", &site.scratch.join("a.tar").display().to_string()]).expect("tar");
    assert!(listed.trim_end().ends_with("/data/global/pg_control"), "{listed}");
    assert!(listed.lines().all(|l| l.starts_with(&format!("main-{id}/"))), "{listed}");

    let planned = site.elsewhere.json(["export", &id, "--to", "x.tar", "--dry-run"]);
    assert!(planned["wal"].as_array().is_some_and(|w| !w.is_empty()), "{planned}");
    site.elsewhere.run(["export", &id, "--to", "x.zip"]).expect_code(2);
    site.elsewhere.run(["export", "20200101-000000F", "--to", "x.tar"]).expect_code(4);
    assert_eq!(fs::read_dir(site.scratch.path()).expect("list").filter(|e| is_part(e.as_ref())).count(), 0);
}

fn is_part(entry: Result<&fs::DirEntry, &std::io::Error>) -> bool {
    entry.is_ok_and(|e| e.file_name().to_string_lossy().contains(".part"))
}

#[test]
fn what_is_damaged_is_not_exported() {
    let server = installed_or_skip!();
    let site = eventful_site(&server, "exdamage");
    let id = site.pgark.backup("full");
    let to = site.scratch.join("out.tar");
    let start = site.pgark.backup_info(&id)["lsn_start"].as_str().expect("lsn_start").to_owned();
    let first = site.cluster.psql(&format!("select pg_walfile_name('{start}')"));
    let needed = |p: &PathBuf| {
        let name = p.display().to_string();
        name.contains(&format!("{id}/packs/")) || name.ends_with("/manifest") || name.ends_with(&first)
    };
    let objects: Vec<PathBuf> = objects_under(site.elsewhere.repo()).into_iter().filter(needed).collect();
    assert!(objects.len() >= 3, "{objects:?}");
    for object in objects {
        let path = site.elsewhere.repo().join(&object);
        let damaged = Damaged::apply(&path, &Damage::FlipBit { per_mille: 500 });
        let outcome = site.elsewhere.run(["export", &id, "--to", &to.display().to_string()]);
        assert_eq!(outcome.code, Some(20), "{}: {outcome}", object.display());
        assert!(!to.exists(), "{}", object.display());
        drop(damaged);
    }
    site.elsewhere.run(["export", &id, "--to", &to.display().to_string()]).expect_code(0);
}

//! What was exported, or written by pg_basebackup, becomes a backup that restores; what is not whole, or not what its list
//! says, does not.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use pgark_testkit::{Ending, Pgark, Recovered, assert_same_state, give_to_postgres, state_of};

use crate::export::{change, eventful_shape, fill, run_tool};
use crate::site::{BINARY, Site};

/// An empty repository, as on another site.
fn other_repository(site: &Site, name: &str) -> Pgark {
    let other = Pgark::new(BINARY, &site.scratch, &site.scratch.join(name));
    let on = other.on(&site.cluster);
    // A repository is made with a cluster; the one that is imported gets a name of its own.
    on.clone().env("PGARK_CLUSTER", "local").run(["init"]).expect_code(0);
    other
}

fn restore(site: &Site, pgark: &Pgark, name: &str, more: &[&str]) -> Recovered {
    let to = site.scratch.join(name);
    let target = to.display().to_string();
    let mut words = vec!["restore", "--to", &target];
    words.extend(more);
    pgark.run(words).expect_code(0);
    Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted)
}

#[test]
fn an_export_is_imported_and_restores_to_the_same_state() {
    let server = installed_or_skip!();
    let site = Site::new(&server, "import", eventful_shape);
    fill(&site.cluster);
    site.pgark.backup("full");
    change(&site.cluster, 1);
    let id = site.pgark.backup("incr");
    let state = state_of(&site.cluster);
    let tar = site.scratch.join("out.tar").display().to_string();
    site.elsewhere.run(["export", &id, "--to", &tar]).expect_code(0);
    let into = site.scratch.dir("unpacked");
    run_tool(Path::new("tar"), &["-xf", &tar, "-C", &into.display().to_string()]).expect("tar");
    let top = into.join(format!("main-{id}"));
    let from = top.display().to_string();

    // A tar is not taken, and the message says what to do.
    let other = other_repository(&site, "other");
    let refused = other.run(["import", &tar]).expect_code(4);
    assert!(refused.stderr.contains("E-IMPORT-FORM") && refused.stderr.contains("unpack"), "{refused}");

    let planned = other.json(["import", &from, "--dry-run"]);
    assert_eq!(planned["registers"], true, "{planned}");
    let imported = other.json(["import", &from, "--annotate", "from=export"]);
    assert_eq!(imported["type"], "full", "{imported}");
    let new_id = imported["id"].as_str().expect("an id");
    let (was, is) = (site.elsewhere.backup_info(&id), other.backup_info(new_id));
    for field in ["lsn_start", "lsn_stop", "timeline", "started"] {
        assert_eq!(was[field], is[field], "{field}: {was} {is}");
    }
    other.run(["verify"]).expect_code(0);
    // Where tablespaces were is known again.
    let maps: Vec<String> = ["ts1", "empty"]
        .iter()
        .map(|t| {
            site.cluster.psql(&format!("select pg_tablespace_location(oid) from pg_tablespace where spcname = '{t}'"))
        })
        .map(|place| format!("{place}={place}-imported"))
        .collect();
    let more = ["--tablespace-map", &maps[0], "--tablespace-map", &maps[1]];
    let recovered = restore(&site, &other, "restored", &more);
    assert_same_state(&state, &state_of(&recovered), "the import");
    recovered.verify_checksums();

    // Twice is refused: there is a backup as new as it.
    let again = other.run(["import", &from]).expect_code(4);
    assert!(again.stderr.contains("E-IMPORT-ORDER"), "{again}");
    // The same WAL in the same archive is no conflict.
    let again = site.elsewhere.run(["import", &from]).expect_code(4);
    assert!(again.stderr.contains("E-IMPORT-ORDER"), "{again}");
    // Another cluster's name.
    let own = other.clone().env("PGARK_CLUSTER", "local");
    own.run(["import", &from]).expect_code(0);
}

#[test]
fn what_pg_basebackup_wrote_is_imported_as_it_is() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "basebackup");
    site.cluster.psql("create table t as select g id, md5(g::text) m from generate_series(1,9000) g");
    let state = state_of(&site.cluster);
    for sums in ["CRC32C", "SHA512", "NONE"] {
        let to = site.scratch.join(format!("base-{sums}"));
        let words = format!(
            "-h {} -p {} -U postgres -D {} -X stream -c fast --no-sync --manifest-checksums={sums}",
            site.cluster.socket_dir().display(),
            site.cluster.port(),
            to.display()
        );
        run_tool(&server.program("pg_basebackup"), &words.split(' ').collect::<Vec<_>>()).expect("pg_basebackup");
        let cluster = format!("of-{}", sums.to_lowercase());
        let pgark = site.elsewhere.clone().env("PGARK_CLUSTER", &cluster);
        pgark.run(["import", &to.display().to_string()]).expect_code(0);
        let recovered = restore(&site, &pgark, &format!("re-{sums}"), &[]);
        assert_same_state(&state, &state_of(&recovered), sums);
    }
    site.elsewhere.run(["verify"]).expect_code(0);
}

/// What is done to a data directory.
type Spoil<'a> = &'a dyn Fn(&Path);

#[test]
fn what_is_not_what_its_list_says_is_refused_and_leaves_nothing() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "importbad");
    site.cluster.psql("create table t as select g id, md5(g::text) m from generate_series(1,3000) g");
    let id = site.pgark.backup("full");
    let tar = site.scratch.join("out.tar").display().to_string();
    site.elsewhere.run(["export", &id, "--to", &tar]).expect_code(0);
    let other = other_repository(&site, "other");
    let segment = |data: &Path| {
        let all = fs::read_dir(data.join("pg_wal")).expect("list").map(|e| e.expect("an entry").path());
        all.into_iter().find(|p| p.is_file()).expect("a segment")
    };
    let flip = |path: &Path, at: u64| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("write");
    };
    let control = |data: &Path| fs::remove_file(data.join("global/pg_control")).expect("remove");
    let cases: [(&str, &str, Spoil<'_>); 9] = [
        ("a changed page", "E-IMPORT-DIFFERS", &|data| flip(&data.join("base/1/1259"), 5000)),
        ("a file less", "E-IMPORT-DIFFERS", &|data| fs::remove_file(data.join("base/1/1259")).expect("remove")),
        ("a file more", "E-IMPORT-DIFFERS", &|data| {
            fs::write(data.join("base/1/99999"), b"more").expect("write");
            give_to_postgres(&data.join("base/1/99999"));
        }),
        ("a changed list", "E-IMPORT-FORM", &|data| flip(&data.join("backup_manifest"), 300)),
        ("no list", "E-IMPORT-FORM", &|data| fs::remove_file(data.join("backup_manifest")).expect("remove")),
        ("no label", "E-IMPORT-FORM", &|data| fs::remove_file(data.join("backup_label")).expect("remove")),
        ("a link", "E-IMPORT-FORM", &|data| symlink("/etc/passwd", data.join("base/link")).expect("link")),
        ("no WAL", "E-IMPORT-WAL", &|data| fs::remove_file(segment(data)).expect("remove")),
        ("no pg_control", "E-IMPORT-FORM", &control),
    ];
    for (n, (what, code, spoil)) in cases.into_iter().enumerate() {
        let into = site.scratch.dir(format!("bad{n}"));
        run_tool(Path::new("tar"), &["-xf", &tar, "-C", &into.display().to_string()]).expect("tar");
        let top: PathBuf = into.join(format!("main-{id}"));
        spoil(&top.join("data"));
        let outcome = other.run(["import", &top.display().to_string()]);
        assert!(matches!(outcome.code, Some(1 | 4)), "{what}: {outcome}");
        assert!(outcome.stderr.contains(code), "{what}: {outcome}");
        fs::remove_dir_all(into).expect("remove");
    }
    assert!(!other.repo().join("clusters/main").exists(), "nothing was registered");

    // Other WAL under the name of archived WAL is refused, and no backup is listed.
    let into = site.scratch.dir("otherwal");
    run_tool(Path::new("tar"), &["-xf", &tar, "-C", &into.display().to_string()]).expect("tar");
    let top = into.join(format!("main-{id}"));
    flip(&segment(&top.join("data")), 60);
    let outcome = other.run(["import", &top.display().to_string()]);
    assert!(matches!(outcome.code, Some(1 | 4)), "{outcome}");
    let listed = other.json(["info"]);
    let all = listed["clusters"].as_array().expect("clusters");
    let complete =
        all.iter().flat_map(|c| c["backups"].as_array().into_iter().flatten()).filter(|b| b["complete"] == true);
    assert_eq!(complete.count(), 0, "{listed}");
    assert!(outcome.stderr.contains("E-IMPORT-WAL") || outcome.stderr.contains("E-WAL"), "{outcome}");
}

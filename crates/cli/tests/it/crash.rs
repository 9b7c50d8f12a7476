//! SIGKILL, a full disk and failing fsyncs at the system calls of backup, archive-push and restore.
//!
//! After each: no earlier backup is lost, nothing half-done counts as done, the next run of the same command succeeds
//! without a manual step, and a restore that was cut short cannot be started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgark_testkit::{
    Ending, Errno, Fault, Point, Recovered, StopMode, Target, as_postgres, points_of, skip, strace_works, traced,
    wait_until,
};
use serde_json::Value;

use crate::site::{Site, full_sweep, sample};

/// One point per system call and end, then a spread over the rest.
pub fn visited(points: &[Point], count: usize) -> Vec<Point> {
    if full_sweep() {
        return points.to_vec();
    }
    let mut chosen = sample(points, count);
    let edges = points.iter().enumerate().filter(|(at, point)| {
        let next = points.get(at + 1).map(|next| next.syscall);
        point.when == 1 || next != Some(point.syscall)
    });
    for (_, point) in edges {
        if !chosen.contains(point) {
            chosen.push(*point);
        }
    }
    chosen
}

/// Copies the repository as it is now, so that every point of a sweep starts alike.
pub struct Template {
    repo: PathBuf,
    saved: PathBuf,
}

impl Template {
    pub fn of(site: &Site) -> Template {
        let template = Template { repo: site.elsewhere.repo().to_owned(), saved: site.scratch.join("template") };
        copy(&template.repo, &template.saved);
        template
    }

    pub fn put_back(&self) {
        fs::remove_dir_all(&self.repo).expect("remove the repository");
        copy(&self.saved, &self.repo);
    }
}

fn copy(from: &Path, to: &Path) {
    let mut command: Command = as_postgres("cp");
    command.arg("-a").arg(from).arg(to);
    // The scratch directory belongs to PostgreSQL's user, so its tools can copy beside it.
    assert!(command.status().expect("cp").success(), "copy {} to {}", from.display(), to.display());
}

/// A site with one backup and more WAL after it.
pub fn quiet_site(label: &str, server: &pgark_testkit::Server) -> (Site, String, Target) {
    let site = Site::small(server, label);
    site.ledger.write_rows(&site.cluster, 3);
    let id = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();
    (site, id, latest)
}

/// A segment that the repository does not have yet.
pub fn next_segment(site: &Site) -> PathBuf {
    site.cluster.psql("alter system set archive_command = '/bin/false'");
    site.cluster.reload();
    site.ledger.write_rows(&site.cluster, 1);
    let name = site.cluster.psql("select pg_walfile_name(pg_switch_wal())");
    let path = site.cluster.data_dir().join("pg_wal").join(&name);
    assert!(path.exists(), "{}", path.display());
    path
}

pub fn assert_delivers(site: &Site, segment: &Path) {
    let to = site.scratch.join("got");
    let name = segment.file_name().expect("a segment name");
    site.elsewhere.run(["archive-get".as_ref(), name, to.as_os_str()]).expect_code(0);
    assert!(fs::read(&to).expect("got") == fs::read(segment).expect("segment"), "other bytes than were pushed");
    fs::remove_file(&to).expect("remove");
}

#[test]
fn a_push_that_is_killed_anywhere_can_be_repeated() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, _, _) = quiet_site("kill-push", &server);
    let segment = next_segment(&site);
    let template = Template::of(&site);
    let push = ["archive-push".as_ref(), segment.as_os_str()];
    let points = points_of(&site.pgark, &site.scratch, &push);
    let synced = points.iter().any(|point| matches!(point.syscall, "fsync" | "fdatasync" | "syncfs"));
    assert!(synced, "a push that never syncs cannot be durable");
    let mut killed = 0;
    for point in visited(&points, 16) {
        template.put_back();
        let outcome = traced(&site.pgark, point, Fault::Kill, &push);
        killed += u32::from(!outcome.succeeded());
        site.elsewhere.run(["verify"]).expect_code(0);
        site.pgark.run(push).expect_code(0);
        assert_delivers(&site, &segment);
        site.elsewhere.run(["verify"]).expect_code(0);
    }
    assert!(killed > 5, "only {killed} of the kills hit the push");
}

#[test]
fn a_push_onto_a_failing_disk_never_claims_success() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, _, _) = quiet_site("fail-push", &server);
    let segment = next_segment(&site);
    let template = Template::of(&site);
    let push = ["archive-push".as_ref(), segment.as_os_str()];
    let points = points_of(&site.pgark, &site.scratch, &push);
    let mut failed = 0;
    for point in visited(&points, 16) {
        let faults: &[Fault] = match point.syscall {
            "write" | "pwrite64" | "writev" | "pwritev" | "fallocate" | "ftruncate" | "mkdir" | "mkdirat" | "link"
            | "linkat" => &[Fault::Fail(Errno::Enospc), Fault::FailFromHere(Errno::Enospc)],
            "fsync" | "fdatasync" | "syncfs" | "rename" | "renameat" | "renameat2" => {
                &[Fault::Fail(Errno::Eio), Fault::FailFromHere(Errno::Eio)]
            }
            _ => &[],
        };
        for &fault in faults {
            template.put_back();
            let outcome = traced(&site.pgark, point, fault, &push);
            assert!(!outcome.stderr.contains("panicked at"), "{outcome}");
            if outcome.succeeded() {
                let hopeless = matches!(point.syscall, "fsync" | "fdatasync" | "syncfs")
                    && fault == Fault::FailFromHere(Errno::Eio);
                assert!(!hopeless, "no fsync ever worked, yet the push was acknowledged: {outcome}");
                assert_delivers(&site, &segment);
            } else {
                failed += 1;
            }
            site.pgark.run(push).expect_code(0);
            assert_delivers(&site, &segment);
        }
    }
    assert!(failed > 2, "only {failed} of the faults hit the push");
}

#[test]
fn a_backup_that_is_killed_anywhere_leaves_the_others_and_can_be_repeated() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, first, latest) = quiet_site("kill-bkp", &server);
    let backup = ["backup", "--type", "full"];
    let points = points_of(&site.pgark, &site.scratch, &backup);
    let mut killed = 0;
    for (number, point) in visited(&points, 8).into_iter().enumerate() {
        let outcome = traced(&site.pgark, point, Fault::Kill, &backup);
        let info = site.pgark.json(["info"]);
        let listed = info["clusters"][0]["backups"].as_array().cloned().unwrap_or_default();
        let complete = |id: &str| listed.iter().any(|one| one["id"] == id && one["complete"] == true);
        assert!(complete(&first), "{point:?}: {info}");
        site.elsewhere.run(["verify"]).expect_code(0);
        killed += u32::from(!outcome.succeeded());
        assert_backup_mode_ends(&site);
        if number % 6 == 0 {
            let again = site.pgark.backup("full");
            let stop = site.pgark.backup_info(&again)["lsn_stop"].as_str().expect("lsn_stop").to_owned();
            site.assert_restores("again", &Target::Immediate { lsn_stop: stop }, 1, &[&again]);
        }
    }
    assert!(killed > 5, "only {killed} of the kills hit the backup");
    site.assert_restores("first", &latest, 1, &[&first]);
}

/// A backup lives in its session: when no session of a client is left, PostgreSQL is out of backup mode.
fn assert_backup_mode_ends(site: &Site) {
    let others =
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
    wait_until("the killed backup's session is gone", Duration::from_secs(60), || {
        (site.cluster.psql(others) == "0").then_some(())
    });
}

#[test]
fn a_backup_onto_a_failing_disk_is_never_complete_and_broken() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, first, latest) = quiet_site("fail-bkp", &server);
    let backup = ["backup", "--type", "full"];
    let points = points_of(&site.pgark, &site.scratch, &backup);
    let writes = |point: &&Point| {
        matches!(
            point.syscall,
            "write" | "pwrite64" | "writev" | "fsync" | "fdatasync" | "rename" | "renameat2" | "linkat"
        )
    };
    let points: Vec<Point> = points.iter().filter(writes).copied().collect();
    for point in visited(&points, 6) {
        let errno = if point.syscall.contains("sync") { Errno::Eio } else { Errno::Enospc };
        let outcome = traced(&site.pgark, point, Fault::FailFromHere(errno), &backup);
        assert!(!outcome.stderr.contains("panicked at"), "{outcome}");
        // Complete or not, whatever is in the repository holds together.
        site.elsewhere.run(["verify"]).expect_code(0);
    }
    site.pgark.backup("full");
    site.assert_restores("first", &latest, 1, &[&first]);
}

/// What NFS and its like say and local file systems do not: of names, of what another host removed, and of space, which they may
/// know only when the bytes are to be durable.
#[test]
fn what_a_network_file_system_says_stops_nothing_or_is_told_and_nothing_is_lost() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, first, latest) = quiet_site("net-fs", &server);
    let segment = next_segment(&site);
    let template = Template::of(&site);
    let push = ["archive-push".as_ref(), segment.as_os_str()];
    let at = |syscall: &'static str| Point { syscall, when: 1 };

    // No hard links, said as EXDEV: the name is given in another way, which replaces nothing either.
    traced(&site.pgark, at("linkat"), Fault::FailFromHere(Errno::Exdev), &push).expect_code(0);
    assert_delivers(&site, &segment);
    site.elsewhere.run(["verify"]).expect_code(0);

    // A quota that is told by fsync: nothing is acknowledged.
    template.put_back();
    let full = traced(&site.pgark, at("fsync"), Fault::FailFromHere(Errno::Edquot), &push);
    assert!(!full.succeeded() && full.stderr.contains("quota exceeded"), "{full}");
    site.pgark.run(push).expect_code(0);
    assert_delivers(&site, &segment);

    // Stale once: it is opened again. Stale for good: that is said, and taken for neither damage nor absence.
    // The first call in the first thread asks whether the kernel has it.
    let opening = Point { syscall: "openat2", when: 2 };
    traced(&site.elsewhere, opening, Fault::Fail(Errno::Estale), &["verify"]).expect_code(0);
    let gone = traced(&site.elsewhere, opening, Fault::FailFromHere(Errno::Estale), &["verify"]);
    assert!(!gone.succeeded() && gone.stderr.contains("Stale file handle"), "{gone}");
    assert!(!gone.stderr.contains("E-REPO-NONE") && !gone.stderr.contains("E-REPO-DAMAGED"), "{gone}");
    site.elsewhere.run(["verify"]).expect_code(0);
    // As it was before the segment came.
    template.put_back();
    site.assert_restores("first", &latest, 1, &[&first]);
}

#[test]
fn a_restore_that_is_killed_anywhere_cannot_be_started_and_can_be_repeated() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let mut site = Site::small(&server, "kill-rst");
    only_one_database(&site);
    site.ledger.write_rows(&site.cluster, 3);
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();
    site.cluster.stop(StopMode::Fast);
    let to = site.scratch.join("r");
    let arguments = site.restore_arguments(&to, &latest, &[]);
    let points = points_of(&site.elsewhere, &site.scratch, &arguments);
    fs::remove_dir_all(&to).expect("remove");
    let mut killed = 0;
    for (number, point) in visited(&points, 8).into_iter().enumerate() {
        let outcome = traced(&site.elsewhere, point, Fault::Kill, &arguments);
        killed += u32::from(!outcome.succeeded());
        if to.join("PG_VERSION").exists() {
            started_only_when_whole(&site, &to, &latest, outcome.succeeded());
        }
        if number % 4 == 0 {
            repeat(&site, &to, &latest);
        }
        if to.exists() {
            fs::remove_dir_all(&to).expect("remove");
        }
    }
    assert!(killed > 5, "only {killed} of the kills hit the restore");
}

/// Drops the template databases: each is three hundred files more, that a restore writes by the same calls.
fn only_one_database(site: &Site) {
    site.cluster.psql("update pg_database set datistemplate = false");
    for name in ["template0", "template1"] {
        site.cluster.psql(&format!("drop database {name}"));
    }
}

/// A kill after the last write may leave a whole directory; everything else must not start.
fn started_only_when_whole(site: &Site, to: &Path, latest: &Target, reported: bool) {
    // Looked at in a copy: a start changes the directory, and the repetition must meet it as the kill left it.
    let seen = site.scratch.join("seen");
    copy(to, &seen);
    let recovered = Recovered::start(&site.server, &site.scratch, &seen);
    match recovered.ending() {
        Ending::Promoted => site.ledger.assert_exact(&recovered, latest, 1),
        Ending::Down => assert!(!reported, "a restore that reported success does not start:\n{}", recovered.log()),
        Ending::Paused => panic!("recovery stopped at a place nobody asked for:\n{}", recovered.log()),
    }
    drop(recovered);
    fs::remove_dir_all(&seen).expect("remove");
}

/// The same command again. Where the kill came after the last write the directory is whole, and a restore over it
/// is refused.
fn repeat(site: &Site, to: &Path, latest: &Target) {
    let again = site.elsewhere.run(site.restore_arguments(to, latest, &[]));
    if !again.succeeded() {
        assert_eq!(again.code, Some(4), "{again}");
        assert!(to.join("global/pg_control").exists(), "{again}");
    }
    let recovered = Recovered::start(&site.server, &site.scratch, to).expect(Ending::Promoted);
    site.ledger.assert_exact(&recovered, latest, 1);
}

/// A list that cannot be read is not an empty one: nothing is shown as gone for that, and nothing goes.
#[test]
fn a_directory_that_cannot_be_read_is_told_and_costs_nothing() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, first, _) = quiet_site("unread", &server);
    let second = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();
    let template = Template::of(&site);
    let listed = |of: &Value| {
        let backups = of["clusters"][0]["backups"].as_array().into_iter().flatten();
        backups.filter_map(|b| b["id"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let expire = ["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes"];
    let mut told = 0;
    for words in [&["info", "--json"][..], &["verify", "--json"], &expire] {
        for when in sample(&(1..=30).collect::<Vec<u32>>(), 8) {
            template.put_back();
            let point = Point { syscall: "getdents64", when };
            let outcome = traced(&site.elsewhere, point, Fault::Fail(Errno::Eio), words);
            assert!(outcome.succeeded() || outcome.failed_cleanly(), "{point:?}: {outcome}");
            told += u32::from(outcome.code != Some(0));
            let document = site.elsewhere.json(["info"]);
            let both = [first.clone(), second.clone()];
            match words {
                ["info", ..] if outcome.succeeded() => assert_eq!(listed(&outcome.json()), both, "{point:?}"),
                ["expire", ..] => assert_eq!(listed(&document).last(), Some(&second), "{point:?}: {document}"),
                _ => assert_eq!(listed(&document), both, "{point:?}: {document}"),
            }
            site.elsewhere.run(["verify"]).expect_code(0);
        }
    }
    assert!(told > 5, "only {told} of the faults were met");
    site.assert_restores("r", &latest, 1, &[&second]);
}

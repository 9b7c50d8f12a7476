//! Restores that must not happen: refused before the first write, with the target as it was.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use pgark_testkit::{Ending, LoopFs, Recovered, StopMode, Target, TestCluster, skip, tree_of};

use crate::site::Site;

fn backed_up(label: &str, server: &pgark_testkit::Server) -> (Site, Target) {
    let site = Site::small(server, label);
    site.ledger.write_rows(&site.cluster, 3);
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();
    (site, latest)
}

fn assert_refused(site: &Site, what: &str, to: &Path, target: &Target, more: &[&str], code: &[i32]) {
    let before = tree_of(to);
    let outcome = site.elsewhere.run(site.restore_arguments(to, target, more));
    assert!(outcome.code.is_some_and(|found| code.contains(&found)), "{what}: expected exit code {code:?}\n{outcome}");
    assert!(!outcome.stderr.contains("panicked at"), "{what}: {outcome}");
    before.assert_same(&tree_of(to), what);
}

#[test]
fn a_restore_never_writes_into_what_is_already_there() {
    let server = installed_or_skip!();
    let (site, latest) = backed_up("into", &server);
    let scratch = &site.scratch;

    let full = scratch.dir("full");
    fs::write(full.join("letter"), b"dear").expect("write");
    assert_refused(&site, "a directory with a file", &full, &latest, &[], &[4]);
    let hidden = scratch.dir("hidden");
    fs::write(hidden.join(".keep"), b"").expect("write");
    assert_refused(&site, "a directory with a hidden file", &hidden, &latest, &[], &[4]);
    assert_refused(&site, "a directory of something else, with --delta", &full, &latest, &["--delta"], &[2, 4]);
    let file = scratch.file("file", b"content", 0o600);
    assert_refused(&site, "a file", &file, &latest, &[], &[4]);
    let empty = scratch.dir("empty");
    let link = scratch.join("link");
    symlink(&empty, &link).expect("link");
    assert_refused(&site, "a link to an empty directory", &link, &latest, &[], &[4]);
    assert_eq!(tree_of(&empty).paths().count(), 1, "the restore followed a link");
    let dangling = scratch.join("dangling");
    symlink(scratch.join("nowhere"), &dangling).expect("link");
    assert_refused(&site, "a dangling link", &dangling, &latest, &[], &[4]);
    assert!(!scratch.join("nowhere").exists(), "the restore followed a link");
}

#[test]
fn a_restore_never_touches_a_running_cluster() {
    let server = installed_or_skip!();
    let (site, latest) = backed_up("live", &server);
    let data = site.cluster.data_dir().to_owned();
    let identity =
        || site.cluster.psql("select count(*), (select system_identifier from pg_control_system()) from ledger");
    let before = identity();
    for more in [&[][..], &["--delta"], &["--delta", "--yes"]] {
        let outcome = site.elsewhere.run(site.restore_arguments(&data, &latest, more));
        // 2 where this way of restoring is not offered.
        assert!(outcome.code == Some(4) || (!more.is_empty() && outcome.code == Some(2)), "{outcome}");
        assert_eq!(identity(), before);
    }
    // The pid file says it all the same when the server is not reachable for us.
    assert!(data.join("postmaster.pid").exists());
}

#[test]
fn a_delta_restore_over_another_cluster_is_refused() {
    let server = installed_or_skip!();
    let (site, latest) = backed_up("delta", &server);
    let mut other = TestCluster::builder(&server).start(&site.scratch, "other");
    other.stop(StopMode::Fast);
    assert_refused(&site, "another system id", other.data_dir(), &latest, &["--delta", "--yes"], &[2, 4]);
    other.start();
}

#[test]
fn an_unreachable_target_is_refused_before_anything_is_written() {
    let server = installed_or_skip!();
    let (site, latest) = backed_up("unreach", &server);
    let first = site.ledger.rows().remove(0);
    let time = |at: &str| Target::Time { at: at.to_owned(), inclusive: true };
    let cases: [(&str, Target, &[&str]); 8] = [
        ("a time in the future", time("2999-01-01T00:00:00Z"), &[]),
        ("a time before the first backup", time(&first.committed), &[]),
        ("an LSN beyond the archive", Target::Lsn("FF/0".into()), &[]),
        ("an LSN before the backup's stop", Target::Lsn("0/100".into()), &[]),
        ("an unknown name", Target::Name("nobody made this".into()), &[]),
        ("an unknown transaction", Target::Xid { xid: 4_000_000, inclusive: true }, &[]),
        ("an unknown timeline", latest.clone(), &["--target-timeline", "99"]),
        ("an unknown backup", latest.clone(), &["20010101-000000F"]),
    ];
    let to = site.scratch.join("absent");
    let empty = site.scratch.dir("empty");
    for (what, target, more) in cases {
        assert_refused(&site, what, &to, &target, more, &[4]);
        assert!(!to.exists(), "{what}: the directory was created");
        assert_refused(&site, what, &empty, &target, more, &[4]);
    }
    // Nobody can say which instant this is when there is no terminal to ask.
    let zoneless = time(first.committed.trim_end_matches('Z'));
    assert_refused(&site, "a time without a zone", &to, &zoneless, &[], &[2, 4]);
    // The same repository and program do restore: the refusals above were not for another reason.
    site.assert_restores("good", &latest, 1, &[]);
}

#[test]
fn a_restore_that_does_not_fit_is_refused_and_leaves_the_disk_empty() {
    let server = installed_or_skip!();
    let disk = match LoopFs::new(12) {
        Ok(disk) => disk,
        Err(why) => skip!("{why}"),
    };
    let (site, latest) = backed_up("full", &server);
    let to = disk.path().join("data");
    assert_refused(&site, "a disk that is too small", &to, &latest, &[], &[4]);
    assert!(!to.exists(), "the directory was created");
}

#[test]
fn a_disk_that_fills_up_or_fails_during_a_restore_leaves_nothing_that_starts() {
    let server = installed_or_skip!();
    let (site, latest) = backed_up("fills", &server);
    if let Err(why) = pgark_testkit::strace_works() {
        skip!("{why}");
    }
    let to = site.scratch.join("r");
    let arguments = site.restore_arguments(&to, &latest, &[]);
    let points = pgark_testkit::points_of(&site.elsewhere, &site.scratch, &arguments);
    let of = |calls: &[&str]| -> Vec<_> { points.iter().copied().filter(|p| calls.contains(&p.syscall)).collect() };
    let (writes, syncs) = (of(&["write", "pwrite64"]), of(&["fsync", "fdatasync", "syncfs"]));
    assert!(!writes.is_empty() && !syncs.is_empty(), "a restore that never writes, or never syncs");
    fs::remove_dir_all(&to).expect("remove");
    let writes = crate::site::sample(&writes, 6).into_iter().map(|p| (p, pgark_testkit::Errno::Enospc));
    let syncs = crate::site::sample(&syncs, 6).into_iter().map(|p| (p, pgark_testkit::Errno::Eio));
    for (point, errno) in writes.chain(syncs) {
        let fault = pgark_testkit::Fault::FailFromHere(errno);
        let outcome = pgark_testkit::traced(&site.elsewhere, point, fault, &arguments);
        assert!(!outcome.stderr.contains("panicked at"), "{outcome}");
        if to.join("PG_VERSION").exists() && !outcome.succeeded() {
            let recovered = Recovered::start(&site.server, &site.scratch, &to);
            match recovered.ending() {
                Ending::Down => {}
                // The last writes are those of the report: all that is restored is there then.
                Ending::Promoted => site.ledger.assert_exact(&recovered, &latest, 1),
                Ending::Paused => panic!("recovery stopped at a place nobody asked for: {outcome}"),
            }
        }
        if to.exists() {
            fs::remove_dir_all(&to).expect("remove");
        }
    }
}

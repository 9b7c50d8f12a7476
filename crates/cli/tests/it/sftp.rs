//! A repository on an SFTP server: the whole way from `init` to a restored cluster, and what breaks on it.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use pgark_testkit::{Pgark, Proxy, Scratch, Server, Sshd, Subsystem, skip, wait_until};

use crate::site::{BINARY, Site};

const SOON: Duration = Duration::from_secs(60);

/// The server outlives what uses it.
struct Remote {
    site: Site,
    /// Where the repository really lies.
    dir: PathBuf,
    proxy: Proxy,
    sshd: Sshd,
    _place: Scratch,
}

impl Remote {
    fn new(server: &Server, label: &str) -> Result<Remote, String> {
        let place = Scratch::new(&format!("{label}-ssh"));
        let sshd = Sshd::start(&place, Subsystem::Internal)?;
        let proxy = Proxy::start(sshd.port());
        let dir = place.join("repo");
        let url = sshd.url_through(proxy.port(), &dir, "&timeout=10");
        let scratch = Scratch::new(label);
        let site = Site::with_repo(server, scratch, Path::new(&url), |builder| {
            builder.wal_segsize_mb(1).conf("autovacuum = off")
        });
        Ok(Remote { site, dir, proxy, sshd, _place: place })
    }

    /// The same repository as a directory, as on the backup server itself.
    fn as_directory(&self) -> Pgark {
        self.site.elsewhere.clone().env("PGARK_REPO", &self.dir)
    }

    /// A backup that takes a while, and has sent this much of it.
    fn backup_under_way(&self, bytes: u64) -> Child {
        let before = self.proxy.forwarded();
        let mut command = self.site.pgark.command(["backup", "--type", "full", "--limit-rate", "4MB", "--json"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start a backup");
        wait_until("the backup is under way", SOON, || {
            assert!(child.try_wait().expect("wait").is_none(), "the backup ended too early");
            (self.proxy.forwarded() > before + bytes).then_some(())
        });
        child
    }
}

macro_rules! remote_or_skip {
    ($server:expr, $label:expr) => {
        match Remote::new($server, $label) {
            Ok(remote) => remote,
            Err(why) => skip!("{why}"),
        }
    };
}

#[test]
fn a_repository_over_sftp_goes_the_whole_way() {
    let server = installed_or_skip!();
    let remote = remote_or_skip!(&server, "sftp");
    let site = &remote.site;
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 20);
    site.archive_all();
    site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 20);
    let latest = site.archive_all();
    site.pgark.run(["check"]).expect_code(0);
    let checked = site.pgark.run(["check", "--no-switch", "--json"]).json();
    assert!(!checked.to_string().contains("\"durability\""), "{checked}");
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
    // The layout is that of a local repository, so the server can look after it by itself.
    remote.as_directory().run(["verify"]).expect_code(0);
}

#[test]
fn a_backup_over_sftp_survives_lost_connections_and_its_own_death() {
    let server = installed_or_skip!();
    let remote = remote_or_skip!(&server, "sftpcut");
    let site = &remote.site;
    site.cluster.psql(
        "create table ballast as select g, md5(g::text) a, md5((g * 7)::text) b from generate_series(1, 150000) g",
    );
    site.archive_all();

    // Every connection is lost twice.
    let mut backup = remote.backup_under_way(1_000_000);
    remote.proxy.cut();
    let sent = remote.proxy.forwarded();
    let more = || (remote.proxy.forwarded() > sent + 1_000_000).then_some(());
    wait_until("more was sent", SOON, more);
    assert!(remote.sshd.kill_connections() > 0);
    let status = backup.wait().expect("wait");
    assert_eq!(status.code(), Some(0), "a lost connection ended the backup");
    site.elsewhere.run(["verify"]).expect_code(0);

    // It is killed half-way: nothing of it counts, the next one succeeds without a manual step.
    let mut backup = remote.backup_under_way(1_000_000);
    backup.kill().expect("kill");
    backup.wait().expect("wait");
    let listed = site.elsewhere.json(["info"]);
    let backups = listed["clusters"][0]["backups"].as_array().expect("backups");
    assert_eq!(backups.iter().filter(|backup| backup["complete"] == true).count(), 1, "{listed}");
    site.pgark.backup("full");
    site.elsewhere.run(["verify"]).expect_code(0);
    site.ledger.write_rows(&site.cluster, 5);
    let after = site.archive_all();
    site.assert_restores("r", &after, 1, &[]);
}

#[test]
fn wal_waits_at_the_server_while_the_repository_cannot_be_reached() {
    let server = installed_or_skip!();
    let remote = remote_or_skip!(&server, "sftpaway");
    let site = &remote.site;
    site.pgark.backup("full");
    remote.proxy.refuse();
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.psql("select pg_switch_wal()");
    wait_until("the archiver has failed", SOON, || {
        (site.cluster.psql("select failed_count > 0 from pg_stat_archiver") == "t").then_some(())
    });
    let gone = site.elsewhere.run(["info"]).expect_code(1);
    assert!(gone.stderr.contains("E-SFTP-"), "{gone}");
    // For PostgreSQL that must never look like the end of the archive.
    let dest = site.scratch.join("segment");
    let dest = dest.to_str().expect("UTF-8");
    site.elsewhere.run(["archive-get", "000000010000000000000001", dest]).expect_code(126);
    remote.proxy.forward();
    let latest = site.archive_all();
    site.assert_restores("r", &latest, 1, &[]);
}

#[test]
fn nothing_is_sent_to_a_server_with_another_host_key() {
    let place = Scratch::new("sftpkey");
    let sshd = match Sshd::start(&place, Subsystem::Internal) {
        Ok(sshd) => sshd,
        Err(why) => skip!("{why}"),
    };
    let repo = place.join("repo");
    let wrong = sshd.url(&repo, "").replace("known_hosts_any", "known_hosts_any_wrong");
    let stranger = Pgark::new(BINARY, &place, Path::new(&wrong));
    for (arguments, exit) in [
        (vec!["info"], 1),
        (vec!["verify"], 1),
        (vec!["archive-get", "000000010000000000000001", "/nonexistent/x"], 126),
    ] {
        let refused = stranger.run(&arguments).expect_code(exit);
        assert!(refused.stderr.contains("E-SFTP-HOSTKEY") && refused.stderr.contains("HINT"), "{refused}");
    }
    let key = stranger.env("PGARK_REPO", sshd.url(&repo, "").replace("client_key", "other_client_key"));
    let refused = key.run(["info"]).expect_code(1);
    assert!(refused.stderr.contains("E-SFTP-AUTH"), "{refused}");
    let missing = key.env("PGARK_REPO", sshd.url(&repo, ""));
    missing.run(["info"]).expect_code(10);
    assert!(!repo.exists(), "looking made a directory");
    for options in ["timeout=0", "host_key=SHA256:abc", "identity_file=relative"] {
        let wrong = missing.clone().env("PGARK_REPO", format!("sftp://u@127.0.0.1/srv?{options}"));
        let refused = wrong.run(["info"]).expect_code(2);
        assert!(refused.stderr.contains("E-REPO-URL"), "{refused}");
    }
}

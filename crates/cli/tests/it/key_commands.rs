//! Programs that wrap the repository's key, as for a KMS: openssl stands for them.

use std::fs;

use pgark_testkit::{Ending, Pgark, Recovered, repository_tree, skip};

use crate::crash::quiet_site;
use crate::keys::{FIRST, SECOND, refused, rotate, slot_of};
use crate::site::Site;

/// A configuration whose key command is openssl, and no passphrase.
fn with_openssl(site: &Site, wrap: &[&str], timeout: &str) -> Pgark {
    let key = site.scratch.file("kms.key", b"what the KMS keeps\n", 0o600);
    let pass = format!("file:{}", key.display());
    let cipher = ["openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-pass", &pass];
    let wrap = if wrap.is_empty() { &cipher[..] } else { wrap };
    let config = format!(
        "[repos.main]\nurl = {:?}\n[repos.main.key_commands.kms]\nwrap_command = {wrap:?}\nunwrap_command = {:?}\n\
         timeout = {timeout:?}\n",
        site.pgark.repo(),
        [&cipher[..], &["-d"]].concat(),
    );
    let config = site.scratch.file("kms.toml", config.as_bytes(), 0o644);
    site.pgark.clone().env("PGARK_CONFIG", config)
}

fn openssl_is_there() -> bool {
    std::process::Command::new("openssl").arg("version").output().is_ok_and(|o| o.status.success())
}

#[test]
fn a_key_command_opens_the_repository_and_follows_a_rotation() {
    let server = installed_or_skip!();
    if !openssl_is_there() {
        skip!("openssl is not installed");
    }
    let (site, id, latest) = quiet_site("kms", &server);
    let both = with_openssl(&site, &[], "20s");
    // By command alone: the slot is not there yet.
    let alone = both.clone().without_env("PGARK_PASSPHRASE_FILE");
    refused(alone.run(["info"]), 12, "E-KEY-WRONG");
    refused(both.run(["key", "add", "--key-command", "other"]), 2, "E-KEY-COMMAND");
    let added = both.json(["key", "add", "--key-command", "kms"]);
    assert_eq!((&added["slot"]["command"], &added["slot"]["opened"]), (&"kms".into(), &true.into()));
    assert_eq!(both.json(["key", "add", "--key-command", "kms"])["added"], false);
    alone.run(["info"]).expect_code(0);
    alone.run(["verify", &id]).expect_code(0);
    // Who has no such command in the configuration cannot rotate it along, and runs nothing.
    refused(site.pgark.run(["key", "rotate", "--yes"]), 4, "E-KEY-SLOT-LOCKED");
    rotate(&both, &[]);
    assert_eq!(alone.json(["key", "list"])["generation"], 2);
    alone.run(["key", "remove", &slot_of(&alone, "passphrase"), "--yes"]).expect_code(0);
    refused(site.pgark.run(["info"]), 12, "E-KEY-WRONG");
    let to = site.scratch.join("by-kms");
    alone.run(site.restore_arguments(&to, &latest, &[])).expect_code(0);
    let recovered = Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted);
    site.ledger.assert_exact(&recovered, &latest, 1);
}

#[test]
fn wal_waits_in_the_spool_while_the_vault_is_away() {
    let server = installed_or_skip!();
    if !openssl_is_there() {
        skip!("openssl is not installed");
    }
    let (site, _, _) = quiet_site("kms-away", &server);
    let both = with_openssl(&site, &[], "20s");
    both.json(["key", "add", "--key-command", "kms"]);
    let alone = both.clone().without_env("PGARK_PASSPHRASE_FILE");
    site.cluster.psql("alter system set archive_command = '/bin/false'");
    site.cluster.reload();
    site.ledger.write_rows(&site.cluster, 1);
    let name = site.cluster.psql("select pg_walfile_name(pg_switch_wal())");
    let segment = site.cluster.data_dir().join("pg_wal").join(&name);
    let segment = segment.to_str().expect("text");
    let (key, away) = (site.scratch.join("kms.key"), site.scratch.join("kms.key.away"));
    fs::rename(&key, &away).expect("rename");
    refused(alone.run(["archive-push", segment]), 1, "E-KEY-COMMAND");
    let spool = site.scratch.dir("spool");
    let push = ["archive-push", "--spool", spool.to_str().expect("text"), segment];
    let spooled = alone.run(push).expect_code(0);
    assert!(spooled.stderr.contains("E-KEY-COMMAND") && spool.join(&name).exists(), "{spooled}");
    fs::rename(&away, &key).expect("rename");
    alone.run(push).expect_code(0);
    assert!(!spool.join(&name).exists());
    let got = site.scratch.join("got");
    site.elsewhere.run(["archive-get", &name, got.to_str().expect("text")]).expect_code(0);
}

#[test]
fn key_commands_that_fail_hang_or_flood_change_nothing() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "kms-bad");
    let before = repository_tree(site.pgark.repo());
    let cases: [(&[&str], &str); 6] = [
        (&["sh", "-c", "exit 3"], "exit status: 3"),
        (&["sh", "-c", "cat > /dev/null; sleep 60 & wait"], "took longer"),
        (&["sh", "-c", "head -c 100000 /dev/zero"], "more output"),
        (&["/nonexistent/kms"], "cannot be started"),
        (&["true"], "0 bytes"),
        // What comes back from openssl's -d is an error.
        (&["cat"], "unwrap_command"),
    ];
    for (wrap, why) in cases {
        let outcome = with_openssl(&site, wrap, "2s").run(["key", "add", "--key-command", "kms"]).expect_code(1);
        assert!(outcome.stderr.contains("E-KEY-COMMAND") && outcome.stderr.contains(why), "{why}: {outcome}");
    }
    before.assert_same(&repository_tree(site.pgark.repo()), "failing key commands");
    // The program sees what it is to wrap, and none of our other secrets.
    let seen = site.scratch.join("seen");
    let script = format!("env > {0}; tr '\\0' ' ' < /proc/$$/cmdline >> {0}; cat", seen.display());
    let spy = with_openssl(&site, &["sh", "-c", &script], "5s").env("PGARK_NEW_PASSPHRASE", SECOND);
    spy.run(["key", "add", "--key-command", "kms"]).expect_code(1);
    let seen = fs::read_to_string(seen).expect("seen");
    assert!(seen.contains("PGARK_REPO") && !seen.contains(SECOND) && !seen.contains(FIRST), "{seen}");
}

//! Copies on other kinds of stores: they follow over a rotation, their own retention thins them out, and they restore; with
//! the key ring of the first repository, and with keys of their own.

use std::path::PathBuf;

use pgark_testkit::{
    Ending, ObjectServer, ObjectServerKind, Pgark, Recovered, Scratch, Sshd, Subsystem, objects_under, skip,
};
use serde_json::{Value, json};

use crate::crash::quiet_site;
use crate::keys::{SECOND, rotate, with_passphrase};

/// A copy of the first repository.
struct Elsewhere {
    name: &'static str,
    url: String,
    settings: &'static str,
    has_own_keys: bool,
}

struct Copies {
    pgark: Pgark,
    /// Of those with keys of their own.
    passphrase: PathBuf,
}

impl Copies {
    fn replicate(&self, to: &Elsewhere) -> Value {
        let file = self.passphrase.display().to_string();
        let mut words = vec!["replicate", "--from", "first", "--to", to.name];
        if to.has_own_keys {
            words.extend(["--rekey", "--new-passphrase-file", &file]);
        }
        let done = self.pgark.json(words);
        assert_eq!(done["failed"], json!([]), "{}: {done}", to.name);
        done
    }

    fn on(&self, copy: &Elsewhere, words: &[&str]) -> pgark_testkit::Outcome {
        self.pgark.run([words, &["--repo", copy.name]].concat())
    }
}

#[test]
fn copies_on_every_store_follow_are_thinned_out_and_restore() {
    let server = installed_or_skip!();
    let outside = Scratch::new("copies-outside");
    let servers = [
        Sshd::start(&outside, Subsystem::AppendOnly).map(|sshd| (Some(sshd), None)),
        ObjectServer::start(ObjectServerKind::Azurite).map(|store| (None, Some(store))),
        ObjectServer::start(ObjectServerKind::Gcs).map(|store| (None, Some(store))),
        ObjectServer::start_locking().map(|store| (None, Some(store))),
    ];
    let servers: Vec<_> = match servers.into_iter().collect::<Result<_, String>>() {
        Ok(servers) => servers,
        Err(why) => skip!("{why}"),
    };
    let [(Some(sshd), _), (_, Some(azure)), (_, Some(google)), (_, Some(locking))] = servers.as_slice() else {
        unreachable!("in this order")
    };
    let appended = outside.join("repo");
    let in_store = |store: &ObjectServer| store.url_by(store.address(), "copy/pg", "&timeout=5");
    let all = [
        Elsewhere {
            name: "appended",
            url: sshd.url(&appended, "&timeout=10"),
            settings: "append_only = true\n",
            has_own_keys: false,
        },
        Elsewhere { name: "google", url: in_store(google), settings: "", has_own_keys: false },
        Elsewhere { name: "azure", url: in_store(azure), settings: "", has_own_keys: true },
        Elsewhere {
            name: "locked",
            url: in_store(locking),
            settings: "lock = 'compliance'\nlock_days = 7\n",
            has_own_keys: true,
        },
    ];

    let (site, full, _) = quiet_site("copies", &server);
    let (_, passphrase) = with_passphrase(&site.elsewhere, &site.scratch, "theirs", SECOND);
    let own = site.elsewhere.passphrase_file();
    let mut text =
        format!("[repos.first]\nurl = '{}'\npassphrase_file = '{}'\n", site.elsewhere.repo().display(), own.display());
    for Elsewhere { name, url, settings, has_own_keys } in &all {
        let secret = if *has_own_keys { passphrase.as_path() } else { own };
        text += &format!("[repos.{name}]\nurl = '{url}'\npassphrase_file = '{}'\n{settings}", secret.display());
    }
    let config = site.scratch.file("copies.toml", text.as_bytes(), 0o600);
    let mut pgark = site.elsewhere.clone().without_env("PGARK_REPO").without_env("PGARK_PASSPHRASE_FILE");
    for (name, value) in [azure, google, locking].into_iter().flat_map(ObjectServer::environment) {
        pgark = pgark.env(&name, value);
    }
    let copies = Copies { pgark: pgark.env("PGARK_CONFIG", &config), passphrase };
    for copy in &all {
        let done = copies.replicate(copy);
        assert_eq!((&done["backups"], &done["key_ring"]), (&json!([full]), &true.into()), "{}: {done}", copy.name);
    }

    // Another key where there is one, then more to copy: each is sealed under what is newest there.
    rotate(&site.elsewhere, &[]);
    for copy in all.iter().filter(|copy| copy.has_own_keys) {
        copies.on(copy, &["key", "rotate", "--yes"]).expect_code(0);
    }
    site.ledger.write_rows(&site.cluster, 3);
    let incr = site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();
    for copy in &all {
        let done = copies.replicate(copy);
        assert_eq!(done["backups"], json!([incr]), "{}: {done}", copy.name);
        assert_eq!(done["key_ring"], !copy.has_own_keys, "{}: {done}", copy.name);
        let again = copies.replicate(copy);
        assert_eq!((&again["objects"], &again["backups"]), (&0.into(), &json!([])), "{}: {again}", copy.name);
        copies.on(copy, &["verify"]).expect_code(0);
    }
    // The store of one keeps what is superseded, and is none to seal anew in.
    let azure = &all[2];
    for words in [["key", "reencrypt", "--yes", "--grace", "0s"], ["key", "retire", "--yes", "--grace", "0s"]] {
        copies.on(azure, &words).expect_code(0);
    }

    let expire = ["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes"];
    let before = objects_under(&appended);
    for copy in &all {
        match copy.name {
            "appended" => {
                let refused = copies.on(copy, &expire).expect_code(4);
                assert!(refused.stderr.contains("E-REPO-APPEND-ONLY"), "{refused}");
            }
            _ => drop(copies.on(copy, &expire).expect_code(0)),
        }
        copies.on(copy, &["verify"]).expect_code(0);
        let listed = copies.on(copy, &["info", "--json"]).expect_code(0).json();
        let listed: Vec<&Value> =
            listed["clusters"][0]["backups"].as_array().expect("backups").iter().map(|b| &b["id"]).collect();
        let expected = if copy.name == "appended" { vec![&full, &incr] } else { vec![&incr] };
        assert_eq!(listed, expected, "{}", copy.name);
        let to = site.scratch.join(format!("r-{}", copy.name));
        copies.pgark.run(site.restore_arguments(&to, &latest, &["--repo", copy.name])).expect_code(0);
        let recovered = Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted);
        site.ledger.assert_exact(&recovered, &latest, 1);
    }
    let now = objects_under(&appended);
    assert!(before.iter().all(|object| now.contains(object)), "an append-only client removed something");
}

//! The SFTP store against a real OpenSSH server: what every store has to do, and what happens when the server, the
//! network or the disk does not do its part.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime};

use pgark_repo::store::conformance::conformance;
use pgark_repo::store::{ObjectName, SftpOptions, SftpPlace, SftpStore, Store, StoreError, StoreErrorKind};
use pgark_testkit::{LoopFs, Proxy, Scratch, Sshd, Subsystem, give_to_postgres, is_root, skip};

macro_rules! sshd_or_skip {
    ($scratch:expr, $subsystem:expr) => {
        match Sshd::start($scratch, $subsystem) {
            Ok(sshd) => sshd,
            Err(why) => skip!("{why}"),
        }
    };
}

fn name(name: &str) -> ObjectName {
    ObjectName::parse(name).unwrap()
}

/// What the command line does with a URL.
fn options(url: &str) -> SftpOptions {
    let rest = url.strip_prefix("sftp://").unwrap();
    let (place, query) = rest.split_once('?').unwrap();
    let (user, place) = place.split_once('@').unwrap();
    let (host, path) = place.split_at(place.find('/').unwrap());
    let (host, port) = host.split_once(':').unwrap();
    // The last of the same name counts, so that tests can change one.
    let more: BTreeMap<String, String> =
        query.split('&').map(|pair| pair.split_once('=').unwrap()).map(|(n, v)| (n.into(), v.into())).collect();
    let more = more.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let place = SftpPlace { url, user: Some(user), host, port: Some(port.parse().unwrap()), path };
    SftpOptions::new(place, &more).unwrap()
}

fn open(url: &str) -> Result<SftpStore, StoreError> {
    SftpStore::open(options(url))
}

fn code(error: &StoreError) -> &'static str {
    error.told().map_or("", |failure| failure.code)
}

fn names(store: &dyn Store) -> Result<Vec<String>, StoreError> {
    let mut names = vec![];
    store.list("", &mut |stat| {
        names.push(stat.name.to_string());
        Ok(())
    })?;
    Ok(names)
}

/// Everything below a directory, temporary files too.
fn files(dir: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(|e| e.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => found.push(entry.path().strip_prefix(dir).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn sftp_store_conforms() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let made = Cell::new(0);
    conformance(&|| {
        made.set(made.get() + 1);
        let path = scratch.join(format!("stores/{}/store", made.get()));
        let store = SftpStore::create(options(&sshd.url(&path, ""))).unwrap();
        assert!(store.weaknesses().is_empty(), "OpenSSH can force directories to the disk");
        Arc::new(store)
    });
}

#[test]
fn files_and_directories_are_ours_alone_and_links_lead_nowhere() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let (root, outside) = (scratch.join("x/y"), scratch.dir("outside"));
    let store = SftpStore::create(options(&sshd.url(&root, ""))).unwrap();
    store.put_new(&name("a/b/c"), b"1").unwrap();
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    };
    for dir in [&scratch.join("x"), &root, &root.join("a"), &root.join("a/b")] {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
    }
    assert_eq!(mode(&root.join("a/b/c")), 0o600);

    std::fs::write(outside.join("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("dir")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), root.join("file")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
    for object in ["dir/secret", "file", "dangling"] {
        let n = name(object);
        assert_eq!(store.read(&n, 100).unwrap_err().kind(), StoreErrorKind::Io, "{object}");
        assert_eq!(store.read_at(&n, 0, &mut [0]).unwrap_err().kind(), StoreErrorKind::Io, "{object}");
        assert_eq!(store.stat(&n).unwrap_err().kind(), StoreErrorKind::Io, "{object}");
        assert_eq!(store.delete(&n).unwrap_err().kind(), StoreErrorKind::Io, "{object}");
        assert_eq!(store.put_new(&n, b"x").unwrap_err().kind(), StoreErrorKind::Io, "{object}");
    }
    assert!(store.put_new(&name("dir/new/er"), b"x").is_err());
    assert!(store.list("dir", &mut |_| Ok(())).is_err(), "a link must not read as an empty list");
    assert!(store.list_dirs("dir").is_err());
    assert!(store.list_dirs("").is_err());
    assert!(names(&store).is_err());
    assert_eq!(files(&outside), ["secret"]);
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
}

#[test]
fn what_is_no_object_is_told_and_does_not_stop_the_server() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let root = scratch.dir("store");
    let store = open(&sshd.url(&root, "")).unwrap();
    store.put_new(&name("a/b"), b"1").unwrap();
    assert_eq!(store.put_new(&name("a"), b"2").unwrap_err().kind(), StoreErrorKind::Io);
    assert_eq!(store.put_new(&name("a/b/c"), b"2").unwrap_err().kind(), StoreErrorKind::Io);
    assert_eq!(files(&root), ["a/b"]);
    let made = std::process::Command::new("mkfifo").arg(root.join("a/fifo")).status().unwrap();
    assert!(made.success());
    give_to_postgres(&root.join("a/fifo"));
    assert_eq!(store.read(&name("a/fifo"), 10).unwrap_err().kind(), StoreErrorKind::Io);
    assert_eq!(names(&store).unwrap_err().object(), Some("a/fifo"));
    std::fs::remove_file(root.join("a/fifo")).unwrap();
    std::fs::write(root.join("a/with space"), b"").unwrap();
    assert_eq!(names(&store).unwrap_err().object(), Some("a/with space"));
}

#[test]
fn a_store_that_is_not_there_is_not_made_by_opening_it() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    assert!(open(&sshd.url(&scratch.join("none"), "")).err().unwrap().is_not_found());
    assert!(!scratch.join("none").exists());
    scratch.file("file", b"", 0o600);
    assert!(open(&sshd.url(&scratch.join("file"), "")).is_err());
    assert!(SftpStore::create(options(&sshd.url(&scratch.join("file"), ""))).is_err());
    for _ in 0..2 {
        SftpStore::create(options(&sshd.url(&scratch.join("new"), ""))).unwrap();
    }
    let free = open(&sshd.url(&scratch.join("new"), "")).unwrap().free_bytes().unwrap();
    assert!(free.is_some_and(|free| free > 0));
}

#[test]
fn leftovers_are_invisible_and_swept_by_age() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let root = scratch.dir("store");
    let store = open(&sshd.url(&root, "")).unwrap();
    store.put_new(&name("a/x"), b"1").unwrap();
    store.put_new(&name("gone/deep/x"), b"1").unwrap();
    let leave = |path: &str, age: i64| {
        std::fs::write(root.join(path), b"left").unwrap();
        give_to_postgres(&root.join(path));
        let when = SystemTime::now();
        let shift = Duration::from_secs(age.unsigned_abs());
        let when = if age < 0 { when + shift } else { when - shift };
        std::fs::File::options().append(true).open(root.join(path)).unwrap().set_modified(when).unwrap();
    };
    leave("a/.tmp-old", 7200);
    leave("a/.tmp-young", 60);
    leave("a/.tmp-future", -86_400);
    leave("a/.other", 7200);
    leave("gone/deep/.tmp-dead", 7200);
    std::fs::remove_file(root.join("gone/deep/x")).unwrap();
    assert_eq!(names(&store).unwrap(), ["a/x"]);
    let mut live = store.create(&name("a/live")).unwrap();
    live.write(b"live").unwrap();
    assert_eq!(store.sweep_abandoned(Duration::from_secs(3600)).unwrap(), 2);
    assert_eq!(store.sweep_abandoned(Duration::ZERO).unwrap(), 1, "the young one; not the writer at work");
    live.finish().unwrap();
    assert_eq!(files(&root), ["a/.other", "a/.tmp-future", "a/live", "a/x"]);
    assert!(!root.join("gone").exists(), "a directory that became empty is left");
}

#[test]
fn who_answers_is_verified_and_who_asks_too() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let root = scratch.dir("store");
    let url = |more: &str| sshd.url(&root, more);
    let pinned = |key: String| format!("&known_hosts=&host_key={}", key.replace(' ', ":"));
    let file = |option: &str, file: &str| format!("&{option}={}", sshd.file(file).display());
    for fine in [String::new(), pinned(sshd.host_key()), file("known_hosts", "known_hosts")] {
        open(&url(&fine)).unwrap_or_else(|e| panic!("{fine}: {e}"));
    }
    let wrong = [
        (pinned(sshd.other_host_key()), "E-SFTP-HOSTKEY"),
        (file("known_hosts", "known_hosts_wrong"), "E-SFTP-HOSTKEY"),
        (file("known_hosts", "known_hosts_any_wrong"), "E-SFTP-HOSTKEY"),
        (file("known_hosts", "known_hosts_empty"), "E-SFTP-HOSTKEY"),
        (file("identity_file", "other_client_key"), "E-SFTP-AUTH"),
        ("&identity_file=/nonexistent/key".to_owned(), "E-SFTP-AUTH"),
        ("&ssh_config=/nonexistent/config".to_owned(), "E-SFTP-CLIENT"),
    ];
    for (more, expected) in wrong {
        let error = open(&url(&more)).err().unwrap();
        assert_eq!(code(&error), expected, "{more}: {error}");
        assert!(error.told().is_some_and(|told| !told.hint.is_empty()));
    }
    let nobody = url("").replace(&format!(":{}/", sshd.port()), ":1/");
    assert_eq!(code(&open(&nobody).err().unwrap()), "E-SFTP-UNREACHABLE");
    // Others that test beside this one have keys of their own.
    let keys = [sshd.host_key(), sshd.other_host_key()];
    let pins = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| keys.iter().any(|key| text.contains(key)));
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("pgark-host-key-"));
    let ours = left.filter(|entry| pins(&entry.path())).count();
    assert_eq!(ours, 0, "a pinned key was left behind");
}

#[test]
fn a_server_that_cannot_store_safely_is_refused() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Faulty);
    let root = scratch.dir("store");
    for lacking in ["fsync@openssh.com", "hardlink@openssh.com"] {
        sshd.hide(&[lacking]);
        let error = open(&sshd.url(&root, "")).err().unwrap();
        assert_eq!(code(&error), "E-SFTP-SERVER");
        assert!(error.to_string().contains(lacking), "{error}");
    }
    // Without these it is slower, or knows less.
    sshd.hide(&["limits@openssh.com", "statvfs@openssh.com"]);
    let store = open(&sshd.url(&root, "")).unwrap();
    let bytes = pattern(1_000_000);
    store.put_new(&name("a/x"), &bytes).unwrap();
    assert!(store.read(&name("a/x"), 1_000_000).unwrap() == bytes);
    assert_eq!(store.free_bytes().unwrap(), None);
}

/// Every answer that can get lost in the making of an object, and what has to come of it.
#[test]
fn a_connection_that_is_lost_at_any_step_of_a_put_is_survived() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Faulty);
    let bytes = pattern(3_000_000);
    const OPEN: &str = "3";
    const WRITE: &str = "6";
    const MKDIR: &str = "14";
    let points = [
        (MKDIR, 1),
        (OPEN, 1),
        (OPEN, 4),
        (WRITE, 1),
        (WRITE, 7),
        (WRITE, 23),
        ("fsync@openssh.com", 1),
        ("fsync@openssh.com", 4),
        ("hardlink@openssh.com", 1),
    ];
    for (kind, nth) in points {
        for action in ["cut-before", "cut-after"] {
            let root = scratch.dir(format!("{kind}-{nth}-{action}"));
            let store = open(&sshd.url(&root, "")).unwrap();
            sshd.fail_at(kind, nth, action);
            store.put_new(&name("a/b/x"), &bytes).unwrap_or_else(|e| panic!("{kind} {nth} {action}: {e}"));
            assert!(sshd.failed(), "{kind} {nth} {action} never came");
            assert!(store.read(&name("a/b/x"), 3_000_000).unwrap() == bytes, "{kind} {nth} {action}");
            let stat = store.stat(&name("a/b/x")).unwrap();
            let age = stat.modified.unwrap().elapsed().unwrap_or_default();
            assert!(age < Duration::from_secs(600), "its date was not put right again: {:?}", stat.modified);
            assert_eq!(store.put_new(&name("a/b/x"), &bytes).unwrap_err().kind(), StoreErrorKind::AlreadyExists);
            let left = files(&root);
            assert!(left.iter().all(|file| file == "a/b/x" || file.contains(".tmp-")), "{left:?}");
            // An object that was begun anew may leave its first file behind, for the sweeper.
            assert!(left.len() <= 2, "{kind} {nth} {action}: {left:?}");
            store.sweep_abandoned(Duration::ZERO).unwrap();
            assert_eq!(files(&root), ["a/b/x"]);
        }
    }
}

#[test]
fn a_stream_goes_on_in_the_same_file_when_its_connection_is_lost() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Faulty);
    let root = scratch.dir("store");
    let bytes = pattern(6_000_000);
    let write = |store: &SftpStore, object: &str| {
        let mut writer = store.create(&name(object))?;
        bytes.chunks(100_000).try_for_each(|piece| writer.write(piece))?;
        writer.finish()
    };
    for (nth, action) in [(1, "cut-before"), (20, "cut-before"), (30, "cut-after"), (46, "cut-after")] {
        let store = open(&sshd.url(&root, "")).unwrap();
        let object = format!("s/{nth}");
        sshd.fail_at("6", nth, action);
        write(&store, &object).unwrap_or_else(|e| panic!("{nth} {action}: {e}"));
        assert!(sshd.failed());
        assert!(store.read(&name(&object), 6_000_000).unwrap() == bytes, "{nth} {action}");
    }
    assert_eq!(files(&root).len(), 4, "{:?}", files(&root));

    // The server was restarted and has lost what it had not been asked to sync.
    let store = open(&sshd.url(&root, "")).unwrap();
    sshd.fail_at("6", 30, "spoil");
    let error = write(&store, "s/spoilt").unwrap_err();
    assert!(error.to_string().contains("lost some of what it had acknowledged"), "{error}");
    assert!(store.stat(&name("s/spoilt")).unwrap_err().is_not_found());

    // Whether the disk took everything can be learned only once: no second sync of the same file.
    sshd.fail_at("fsync@openssh.com", 4, "cut-after");
    let store = open(&sshd.url(&root, "")).unwrap();
    assert!(write(&store, "s/unsure").is_err());
    assert!(sshd.failed());
    assert!(store.stat(&name("s/unsure")).unwrap_err().is_not_found());
    sshd.fail_at("fsync@openssh.com", 4, "fail");
    let store = open(&sshd.url(&root, "")).unwrap();
    let error = write(&store, "s/unsynced").unwrap_err();
    assert!(error.is_durability(), "{error}");
    assert!(store.stat(&name("s/unsynced")).unwrap_err().is_not_found());
}

#[test]
fn a_name_lost_with_the_servers_power_is_given_again() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Faulty);
    let root = scratch.dir("store");
    let store = open(&sshd.url(&root, "")).unwrap();
    sshd.fail_at("hardlink@openssh.com", 1, "undo");
    store.put_new(&name("a/x"), b"kept").unwrap();
    assert!(sshd.failed());
    assert_eq!(files(&root), ["a/x"]);
}

#[test]
fn the_same_bytes_of_another_are_not_ours() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Faulty);
    let root = scratch.dir("store");
    let first = open(&sshd.url(&root, "")).unwrap();
    first.put_new(&name("a/x"), b"same").unwrap();
    // Its request is lost with the connection, and the name is taken: was it us?
    for action in ["cut-before", "cut-after"] {
        let store = open(&sshd.url(&root, "")).unwrap();
        let mut writer = store.create(&name("a/x")).unwrap();
        writer.write(b"same").unwrap();
        sshd.fail_at("hardlink@openssh.com", 1, action);
        assert_eq!(writer.finish().unwrap_err().kind(), StoreErrorKind::AlreadyExists, "{action}");
        assert!(sshd.failed());
    }
    assert_eq!(files(&root), ["a/x"]);
}

#[test]
fn a_delete_whose_answer_was_lost_is_done_and_reads_are_repeated() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Faulty);
    let root = scratch.dir("store");
    let bytes = pattern(2_000_000);
    let store = open(&sshd.url(&root, "")).unwrap();
    for n in 0..300 {
        store.put_new(&name(&format!("many/{n:03}")), b"").unwrap();
    }
    for action in ["cut-before", "cut-after"] {
        store.put_new(&name("a/x"), &bytes).unwrap();
        for (kind, nth) in [("5", 1), ("5", 9), ("3", 1), ("7", 1), ("8", 1)] {
            let store = open(&sshd.url(&root, "")).unwrap();
            sshd.fail_at(kind, nth, action);
            assert!(store.read(&name("a/x"), 2_000_000).unwrap() == bytes, "{kind} {nth} {action}");
            assert!(sshd.failed(), "{kind} {nth} {action} never came");
        }
        let store = open(&sshd.url(&root, "")).unwrap();
        let mut part = vec![0; 1_000_000];
        store.read_at(&name("a/x"), 0, &mut part).unwrap();
        sshd.fail_at("5", 5, action);
        store.read_at(&name("a/x"), 1_000_000, &mut part).unwrap();
        assert!(sshd.failed());
        assert!(part == bytes[1_000_000..]);
        for (kind, nth) in [("11", 1), ("12", 2)] {
            let store = open(&sshd.url(&root, "")).unwrap();
            sshd.fail_at(kind, nth, action);
            assert_eq!(names(&store).unwrap().len(), 301, "{kind} {nth} {action}");
            assert!(sshd.failed());
        }
        let store = open(&sshd.url(&root, "")).unwrap();
        sshd.fail_at("13", 1, action);
        store.delete(&name("a/x")).unwrap();
        assert!(sshd.failed());
        assert!(!root.join("a").exists());
    }
    // A batch of a listing that fails is no end of it.
    let store = open(&sshd.url(&root, "")).unwrap();
    sshd.fail_at("12", 6, "fail");
    assert!(names(&store).is_err());
    assert!(sshd.failed());
}

#[test]
fn a_server_that_hangs_is_given_up_in_time() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Faulty);
    let root = scratch.dir("store");
    let url = sshd.url(&root, "&timeout=3");
    // It answers nothing any more at one point, and the next connection is fine.
    for (kind, nth) in [("6", 5), ("hardlink@openssh.com", 1), ("fsync@openssh.com", 1)] {
        let store = open(&url).unwrap();
        sshd.fail_at(kind, nth, "hang");
        let begun = Instant::now();
        store.put_new(&name(&format!("a/{kind}")), &pattern(2_000_000)).unwrap();
        assert!(sshd.failed());
        assert!((3..30).contains(&begun.elapsed().as_secs()), "{kind}: {:?}", begun.elapsed());
    }
    assert_eq!(names(&open(&url).unwrap()).unwrap().len(), 3);

    // The network swallows everything from now on.
    let proxy = Proxy::start(sshd.port());
    let store = Arc::new(open(&sshd.url_through(proxy.port(), &root, "&timeout=3")).unwrap());
    let mut writer = store.create(&name("a/stream")).unwrap();
    writer.write(&pattern(1_000_000)).unwrap();
    proxy.swallow();
    let begun = Instant::now();
    let more = pattern(30_000_000);
    let error = writer.write(&more).and_then(|()| writer.finish()).unwrap_err();
    assert!(code(&error).starts_with("E-SFTP-"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    for operation in [
        (|store| store.stat(&name("a/6")).map(drop)) as fn(&SftpStore) -> Result<(), StoreError>,
        |store| store.put_new(&name("a/y"), b"x"),
        |store| store.delete(&name("a/6")),
        |store| names(store).map(drop),
    ] {
        let begun = Instant::now();
        let error = operation(&store).unwrap_err();
        assert!(code(&error).starts_with("E-SFTP-"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    }
    // It is back.
    proxy.forward();
    store.put_new(&name("a/y"), b"x").unwrap();
    // An object too large for its deadline fails then, although something moves all the time.
    let slow = open(&sshd.url(&root, "&deadline=5")).unwrap();
    let begun = Instant::now();
    let mut writer = slow.create(&name("a/slow")).unwrap();
    sshd.fail_at("fsync@openssh.com", 1, "hang");
    writer.write(b"x").unwrap();
    assert_eq!(code(&writer.finish().unwrap_err()), "E-SFTP-TIMEOUT");
    assert!((5..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // What hung does not outlive the test.
    sshd.stop();
}

#[test]
fn a_restart_of_the_network_is_survived_and_an_outage_told() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let root = scratch.dir("store");
    let proxy = Proxy::start(sshd.port());
    let store = open(&sshd.url_through(proxy.port(), &root, "")).unwrap();
    for round in 0..5 {
        store.put_new(&name(&format!("a/{round}")), &pattern(500_000)).unwrap();
        proxy.cut();
    }
    assert_eq!(names(&store).unwrap().len(), 5);
    assert!(sshd.kill_connections() > 0);
    assert_eq!(names(&store).unwrap().len(), 5);
    proxy.refuse();
    let begun = Instant::now();
    let error = store.stat(&name("a/1")).unwrap_err();
    assert!(matches!(code(&error), "E-SFTP-LOST" | "E-SFTP-UNREACHABLE"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    proxy.forward();
    assert_eq!(store.stat(&name("a/1")).unwrap().size, 500_000);
}

#[test]
fn a_full_disk_and_denied_access_are_told_apart() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let root = scratch.dir("store");
    let store = open(&sshd.url(&root, "")).unwrap();
    store.put_new(&name("a/x"), b"1").unwrap();
    let allow = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(root.join("a"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(0o500);
    assert_eq!(store.put_new(&name("a/y"), b"1").unwrap_err().kind(), StoreErrorKind::Denied);
    assert_eq!(store.put_new(&name("a/b/y"), b"1").unwrap_err().kind(), StoreErrorKind::Denied);
    assert_eq!(store.delete(&name("a/x")).unwrap_err().kind(), StoreErrorKind::Denied);
    assert_eq!(store.read(&name("a/x"), 1).unwrap(), b"1");
    allow(0o300);
    assert_eq!(names(&store).unwrap_err().kind(), StoreErrorKind::Denied, "unreadable is not empty");
    assert_eq!(store.list_dirs("a").unwrap_err().kind(), StoreErrorKind::Denied);
    allow(0o000);
    assert_eq!(store.read(&name("a/x"), 1).unwrap_err().kind(), StoreErrorKind::Denied);
    assert_eq!(store.stat(&name("a/x")).unwrap_err().kind(), StoreErrorKind::Denied);
    allow(0o700);
    assert_eq!(names(&store).unwrap(), ["a/x"]);
    std::fs::rename(&root, scratch.join("away")).unwrap();
    assert!(names(&store).is_err(), "a store that went away is not empty");
}

#[test]
fn a_full_disk_is_told() {
    if !is_root() {
        skip!("a small file system needs root");
    }
    let small = match LoopFs::new(16) {
        Ok(small) => small,
        Err(why) => skip!("{why}"),
    };
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let root = small.path().join("store");
    let store = SftpStore::create(options(&sshd.url(&root, ""))).unwrap();
    store.put_new(&name("a/small"), b"1").unwrap();
    let error = store.put_new(&name("b/large"), &pattern(40_000_000)).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NoSpace, "{error}");
    let mut writer = store.create(&name("b/stream")).unwrap();
    let error = pattern(40_000_000).chunks(1_000_000).find_map(|piece| writer.write(piece).err());
    let error = error.or_else(|| writer.finish().err()).unwrap();
    assert_eq!(error.kind(), StoreErrorKind::NoSpace, "{error}");
    drop(error);
    assert_eq!(names(&store).unwrap(), ["a/small"]);
    store.put_new(&name("b/fits"), &pattern(1_000_000)).unwrap();
}

#[test]
fn of_many_processes_one_gets_the_name() {
    let scratch = Scratch::new("sftp");
    let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
    let root = scratch.dir("store");
    // Stores of their own share nothing, like processes.
    let stores: Vec<_> = (0..6).map(|_| open(&sshd.url(&root, "&connections=1")).unwrap()).collect();
    for round in 0..20 {
        let object = name(&format!("race/{round}"));
        let barrier = Barrier::new(stores.len());
        let wins: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = stores
                .iter()
                .map(|store| {
                    scope.spawn(|| {
                        barrier.wait();
                        // All the same bytes, in the same second: only the file itself tells who was first.
                        match store.put_new(&object, b"the same for all") {
                            Ok(()) => 1,
                            Err(e) if e.is_already_exists() => 0,
                            Err(e) => panic!("{e}"),
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(wins, 1, "round {round}");
    }
    assert_eq!(files(&root).len(), 20);
}

/// The server loses power right after it acknowledged something: that holds, whatever came last.
#[test]
fn what_was_acknowledged_survives_a_power_cut_of_the_server() {
    if !is_root() {
        skip!("a power cut needs root");
    }
    for last in ["put", "delete"] {
        let mut disk = match LoopFs::new(64) {
            Ok(disk) => disk,
            Err(why) => skip!("{why}"),
        };
        let scratch = Scratch::new("sftp");
        let root: PathBuf = disk.path().join("deep/store");
        let bytes = pattern(300_000);
        {
            let sshd = sshd_or_skip!(&scratch, Subsystem::Internal);
            let store = SftpStore::create(options(&sshd.url(&root, ""))).unwrap();
            for object in ["a/b/x", "a/b/y", "c/d/gone"] {
                store.put_new(&name(object), &bytes).unwrap();
            }
            match last {
                "put" => store.put_new(&name("e/f/g/last"), &bytes).unwrap(),
                _ => store.delete(&name("c/d/gone")).unwrap(),
            }
            disk.cut_power();
        }
        disk.restore_power();
        let (kept, other) = match last {
            "put" => (vec!["a/b/x", "a/b/y", "c/d/gone", "e/f/g/last"], "e/f/g/none"),
            _ => (vec!["a/b/x", "a/b/y"], "c/d/gone"),
        };
        for object in kept {
            assert!(std::fs::read(root.join(object)).is_ok_and(|found| found == bytes), "{object}, last: {last}");
        }
        assert!(!root.join(other).exists(), "{other} is back");
    }
}

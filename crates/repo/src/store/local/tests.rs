#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::root::Lookup;
use super::*;
use crate::store::StoreErrorKind;
use crate::store::conformance::conformance;

/// A directory of its own for each test, removed with the test.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("pgark-local-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).unwrap();
        TestDir(path)
    }

    fn store(&self) -> LocalStore {
        LocalStore::open(&self.0).unwrap()
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn name(s: &str) -> ObjectName {
    ObjectName::parse(s).unwrap()
}

fn names(store: &LocalStore) -> Result<Vec<String>, StoreError> {
    let mut names = vec![];
    store.list("", &mut |stat| {
        names.push(stat.name.to_string());
        Ok(())
    })?;
    Ok(names)
}

fn conforms(change: &dyn Fn(&mut Root)) {
    let parent = TestDir::new();
    let made = std::cell::Cell::new(0);
    conformance(&|| {
        made.set(made.get() + 1);
        let path = parent.0.join(made.get().to_string()).join("store");
        let mut store = LocalStore::create(path).unwrap();
        change(Arc::get_mut(&mut store.root).unwrap());
        Arc::new(store)
    });
}

#[test]
fn local_store_conforms() {
    conforms(&|_| ());
}

#[test]
fn local_store_conforms_without_openat2() {
    conforms(&|root| root.set_lookup(Lookup::Parts));
}

#[test]
fn local_store_conforms_without_hard_links() {
    conforms(&|root| root.without_hard_links());
}

#[test]
fn files_and_directories_are_ours_alone() {
    let dir = TestDir::new();
    let store = LocalStore::create(dir.0.join("x/y")).unwrap();
    store.put_new(&name("a/b/c"), b"1").unwrap();
    let mode = |path: &str| std::fs::metadata(dir.0.join(path)).unwrap().mode() & 0o7777;
    for path in ["x", "x/y", "x/y/a", "x/y/a/b"] {
        assert_eq!(mode(path), 0o700, "{path}");
    }
    assert_eq!(mode("x/y/a/b/c"), 0o600);
    assert_eq!(std::fs::metadata(dir.0.join("x/y/a/b/c")).unwrap().nlink(), 1);
}

#[test]
fn a_store_that_is_not_there_is_not_made_by_opening_it() {
    let dir = TestDir::new();
    assert!(LocalStore::open(dir.0.join("none")).err().unwrap().is_not_found());
    assert!(!dir.0.join("none").exists());
    assert_eq!(LocalStore::open("relative").err().unwrap().kind(), StoreErrorKind::Io);
    std::fs::write(dir.0.join("file"), b"").unwrap();
    assert!(LocalStore::open(dir.0.join("file")).is_err());
    assert!(LocalStore::create(dir.0.join("file")).is_err());
    LocalStore::create(dir.0.join("new")).unwrap();
    LocalStore::create(dir.0.join("new")).unwrap();
    assert!(LocalStore::open(dir.0.join("new")).unwrap().free_bytes().unwrap().is_some());
}

#[test]
fn links_lead_nowhere() {
    for lookup in [Lookup::Kernel, Lookup::Parts] {
        let (outside, dir) = (TestDir::new(), TestDir::new());
        std::fs::write(outside.0.join("secret"), b"secret").unwrap();
        let mut root = Root::open(&dir.0).unwrap();
        root.set_lookup(lookup);
        let store = LocalStore { root: Arc::new(root) };
        symlink(&outside.0, dir.0.join("dir")).unwrap();
        symlink(outside.0.join("secret"), dir.0.join("file")).unwrap();
        symlink("nowhere", dir.0.join("dangling")).unwrap();
        for object in ["dir/secret", "file", "dangling"] {
            let n = name(object);
            assert_eq!(store.read(&n, 100).unwrap_err().kind(), StoreErrorKind::Io, "{lookup:?} {object}");
            assert_eq!(store.stat(&n).unwrap_err().kind(), StoreErrorKind::Io, "{lookup:?} {object}");
            assert!(store.put_new(&n, b"x").is_err(), "{lookup:?} {object}");
        }
        assert!(store.delete(&name("dir/secret")).is_err());
        assert!(store.put_new(&name("dir/new"), b"x").is_err());
        assert!(store.put_new(&name("dir/new/er"), b"x").is_err());
        assert!(store.list("dir", &mut |_| Ok(())).is_err(), "a link must not read as an empty list");
        assert!(store.list_dirs("dir").is_err());
        assert!(store.list_dirs("").is_err());
        assert!(names(&store).is_err());
        // A link can be removed, and what it leads to stays.
        store.delete(&name("file")).unwrap();
        let left: Vec<_> = std::fs::read_dir(&outside.0).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["secret"]);
        assert_eq!(std::fs::read(outside.0.join("secret")).unwrap(), b"secret");
    }
}

#[test]
fn what_is_no_object_is_named_by_the_list() {
    for (make, object) in [
        ((|p| rustix::fs::mkfifoat(rustix::fs::CWD, p, Mode::RUSR).unwrap()) as fn(PathBuf), "a/fifo"),
        (|p| drop(std::os::unix::net::UnixListener::bind(p).unwrap()), "a/socket"),
        (|p| std::fs::write(p, b"").unwrap(), "a/with space"),
    ] {
        let dir = TestDir::new();
        let store = dir.store();
        store.put_new(&name("a/fine"), b"").unwrap();
        make(dir.0.join(object));
        assert_eq!(names(&store).unwrap_err().object(), Some(object));
        if let Ok(n) = ObjectName::parse(object) {
            assert_eq!(store.read(&n, 10).unwrap_err().kind(), StoreErrorKind::Io);
        }
    }
}

#[test]
fn an_object_in_the_place_of_a_directory_is_no_lost_race() {
    let dir = TestDir::new();
    let store = dir.store();
    store.put_new(&name("a/b"), b"1").unwrap();
    assert_eq!(store.put_new(&name("a"), b"2").unwrap_err().kind(), StoreErrorKind::Io);
    assert_eq!(store.put_new(&name("a/b/c"), b"2").unwrap_err().kind(), StoreErrorKind::Io);
    assert_eq!(names(&store).unwrap(), ["a/b"]);
}

#[test]
fn leftovers_are_invisible_and_swept_by_age_and_basename() {
    let dir = TestDir::new();
    let store = dir.store();
    store.put_new(&name("a/x"), b"1").unwrap();
    store.put_new(&name("a.tmp-1/tmp.keep"), b"2").unwrap();
    std::fs::write(dir.0.join("a/.tmp-dead"), b"left").unwrap();
    std::fs::hard_link(dir.0.join("a/x"), dir.0.join("a/.tmp-linked")).unwrap();
    std::fs::create_dir_all(dir.0.join("gone/deep")).unwrap();
    std::fs::write(dir.0.join("gone/deep/.tmp-dead"), b"left").unwrap();
    std::fs::create_dir(dir.0.join(".tmp-dir")).unwrap();
    std::fs::write(dir.0.join(".other"), b"not ours").unwrap();
    assert_eq!(names(&store).unwrap(), ["a.tmp-1/tmp.keep", "a/x"]);

    assert_eq!(store.sweep_abandoned(Duration::from_secs(3600)).unwrap(), 0);
    let future = SystemTime::now() + Duration::from_secs(1_000_000);
    let young = std::fs::File::create(dir.0.join("a/.tmp-future")).unwrap();
    young.set_modified(future).unwrap();
    let mut live = store.create(&name("a/live")).unwrap();
    live.write(b"live").unwrap();
    assert_eq!(store.sweep_abandoned(Duration::ZERO).unwrap(), 3);
    live.finish().unwrap();

    assert_eq!(names(&store).unwrap(), ["a.tmp-1/tmp.keep", "a/live", "a/x"]);
    assert_eq!(store.read(&name("a/x"), 10).unwrap(), b"1");
    assert!(dir.0.join("a/.tmp-future").exists());
    assert!(dir.0.join(".other").exists() && dir.0.join(".tmp-dir").exists());
    assert!(!dir.0.join("gone").exists(), "a directory that became empty is left");
}

#[test]
fn a_directory_made_anew_is_not_taken_for_the_durable_one() {
    let dir = TestDir::new();
    let root = Root::open(&dir.0).unwrap();
    drop(root.create_file("a/b", "1").unwrap());
    assert!(root.knows_durable("a/b"));
    std::fs::rename(dir.0.join("a"), dir.0.join("old")).unwrap();
    std::fs::create_dir_all(dir.0.join("a/b")).unwrap();
    assert!(!root.knows_durable("a/b"));
    drop(root.create_file("a/b", "1").unwrap());
    assert!(root.knows_durable("a/b"));
}

#[test]
fn empty_directories_go_even_when_some_are_gone_already() {
    let dir = TestDir::new();
    let root = Root::open(&dir.0).unwrap();
    std::fs::create_dir_all(dir.0.join("keep/a/b")).unwrap();
    std::fs::write(dir.0.join("keep/file"), b"").unwrap();
    root.prune("keep/a/b/never/made").unwrap();
    assert!(!dir.0.join("keep/a").exists());
    assert!(dir.0.join("keep/file").exists());
    root.prune("").unwrap();
    assert!(dir.0.exists());
}

#[test]
fn a_failed_write_cannot_be_finished() {
    let dir = TestDir::new();
    let root = Arc::new(Root::open(&dir.0).unwrap());
    let mut writer = LocalWriter::create(&root, &name("a/x")).unwrap();
    writer.write(b"some").unwrap();
    writer.fail_writes();
    // More than is gathered before it is written.
    assert!(writer.write(&vec![1; 2 << 20]).is_err());
    assert!(writer.write(b"more").is_err());
    assert!(Box::new(writer).finish().is_err());
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
}

#[test]
fn a_write_that_fails_at_the_end_is_reported_there() {
    let dir = TestDir::new();
    let root = Arc::new(Root::open(&dir.0).unwrap());
    let mut writer = LocalWriter::create(&root, &name("a/x")).unwrap();
    writer.fail_writes();
    writer.write(b"gathered, not yet written").unwrap();
    assert!(Box::new(writer).finish().is_err());
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
}

#[test]
fn errors_of_the_system_are_told_apart() {
    let kind = |e| system_error("test", "x", e).kind();
    assert_eq!(kind(Errno::NOSPC), StoreErrorKind::NoSpace);
    assert_eq!(kind(Errno::DQUOT), StoreErrorKind::NoSpace);
    assert_eq!(kind(Errno::ACCESS), StoreErrorKind::Denied);
    assert_eq!(kind(Errno::ROFS), StoreErrorKind::ReadOnly);
    assert_eq!(kind(Errno::IO), StoreErrorKind::Io);
    // When writing, something missing is not the object the caller asked about.
    assert_eq!(kind(Errno::NOENT), StoreErrorKind::Io);
    assert_eq!(read_error("test", "x", Errno::NOENT).kind(), StoreErrorKind::NotFound);
}

#[test]
fn a_name_that_is_not_durable_is_never_a_question_of_space() {
    // NFS may know of a full disk only when it is asked to make things durable; a damaged file system becomes read-only then.
    for e in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::ACCESS, Errno::STALE] {
        let told = super::writer::not_durable(&name("a/x"), e);
        assert!(told.is_durability(), "{told}");
    }
}

#[test]
fn what_is_stale_is_opened_once_more_and_then_told() {
    let stale = || -> Result<u32, StoreError> { Err(system_error("read", "x", Errno::STALE)) };
    let (mut calls, mut answers) = (0, vec![Ok(7), stale()]);
    let read = again_when_stale(|| {
        calls += 1;
        answers.pop().unwrap()
    });
    assert_eq!((read.unwrap(), calls), (7, 2));
    // It was removed by another host: that is what the second look says.
    let mut answers = vec![Err(StoreError::not_found("x")), stale()];
    assert!(again_when_stale(|| answers.pop().unwrap()).unwrap_err().is_not_found());
    // The whole mount is gone: no absence, and no third look.
    let mut answers = vec![Ok(7), stale(), stale()];
    let gone = again_when_stale(|| answers.pop().unwrap()).unwrap_err();
    assert_eq!((gone.kind(), answers.len()), (StoreErrorKind::Io, 1), "{gone}");
    let mut calls = 0;
    let other: Result<(), _> = again_when_stale(|| {
        calls += 1;
        Err(system_error("read", "x", Errno::IO))
    });
    assert!(other.is_err() && calls == 1);
}

#[test]
fn what_root_writes_belongs_to_the_owner_of_the_store() {
    const OWNER: u32 = 12_345;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = TestDir::new();
    std::os::unix::fs::chown(&dir.0, Some(OWNER), Some(OWNER)).unwrap();
    // Left by one that did not know of it.
    std::fs::create_dir(dir.0.join("audit")).unwrap();
    dir.store().put_new(&name("audit/main/0/1"), b"x").unwrap();
    for part in ["audit", "audit/main", "audit/main/0", "audit/main/0/1"] {
        let meta = std::fs::symlink_metadata(dir.0.join(part)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (OWNER, OWNER), "{part}");
    }
}

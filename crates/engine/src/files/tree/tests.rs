//! Manifests that somebody made to write where nothing must be written.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use pgark_pg::value::SystemId;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupKind, BackupType};
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{NewKeys, Unlock};
use pgark_repo::manifest::{Directory, FileEnd, FileStart, ManifestWriter, Symlink};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::{PartsRecord, Totals};
use pgark_repo::store::MemoryStore;

use super::*;

struct Scene {
    repo: Repository,
    cluster: ClusterName,
    record: PartsRecord,
    dir: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// A backup whose manifest has these items.
fn scene(name: &str, items: &[Item]) -> Scene {
    let keys = NewKeys {
        encryption: Algorithm::None,
        unlock: Unlock::default(),
        age_recipients: vec![],
        key_commands: vec![],
    };
    let (repo, _) = Repository::init(Arc::new(MemoryStore::new()), &keys).unwrap();
    let cluster = ClusterName::parse("main").unwrap();
    let id = BackupId::parse("20260822-031500D").unwrap();
    let mut manifest =
        ManifestWriter::create(repo.store().as_ref(), repo.keys(), &names::manifest(&cluster, &id)).unwrap();
    items.iter().for_each(|item| manifest.push(item).unwrap());
    let manifest = manifest.finish().unwrap();
    let now = jiff::Timestamp::UNIX_EPOCH;
    let record = PartsRecord {
        id,
        cluster: cluster.clone(),
        kind: BackupKind::Files,
        backup_type: BackupType::Full,
        program: String::new(),
        system_id: SystemId(1),
        version_num: 150_000,
        started: now,
        finished: now,
        from_standby: false,
        databases: vec![],
        globals: None,
        files: None,
        manifest,
        totals: Totals::default(),
        base: None,
        warnings: vec![],
    };
    let dir = std::env::temp_dir().join(format!("pgark-tree-{}-{name}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    std::fs::create_dir(dir.join("to")).unwrap();
    std::fs::create_dir(dir.join("outside")).unwrap();
    Scene { repo, cluster, record, dir }
}

impl Scene {
    fn write(&self) -> Result<Written> {
        let to = self.dir.join("to");
        let source = Source { repo: &self.repo, cluster: &self.cluster, record: &self.record };
        TreeWriter::new(source, &to, File::open(&to).unwrap(), &Ctx::silent())?.write(&|_, _| Want::Yes)
    }

    fn is_refused(&self) {
        let error = self.write().expect_err("it was written");
        assert!(error.is_damage(), "{error}");
        assert_eq!(std::fs::read_dir(self.dir.join("outside")).unwrap().count(), 0);
    }
}

fn dir(path: &str) -> Item {
    Item::Directory(Directory { path: path.into(), mode: 0o755 })
}

fn link(path: &str, target: &str) -> Item {
    Item::Symlink(Symlink { path: path.into(), target: target.into() })
}

fn file(path: &str) -> [Item; 2] {
    let start = FileStart { path: path.into(), mode: 0o644, modified_ns: 0 };
    [Item::FileStart(start), Item::FileEnd(FileEnd { size: 0 })]
}

fn hard(path: &str, target: &str) -> Item {
    Item::HardLink(HardLink { path: path.into(), target: target.into() })
}

#[test]
fn nothing_is_written_below_a_link() {
    let [start, end] = file("files/a/b");
    scene("below-link", &[dir("files"), link("files/a", "../../outside"), start, end]).is_refused();
    scene("dir-below-link", &[dir("files"), link("files/a", "../../outside"), dir("files/a/b")]).is_refused();
    let below = link("files/a/b", "x");
    scene("link-below-link", &[dir("files"), link("files/a", "../../outside"), below]).is_refused();
}

#[test]
fn nothing_is_written_where_no_directory_was_made() {
    let [start, end] = file("files/a/b");
    scene("no-parent", &[dir("files"), start, end]).is_refused();
    let [start, end] = file("files/a");
    let [inner, inner_end] = file("files/a/b");
    scene("file-parent", &[dir("files"), start, end, inner, inner_end]).is_refused();
}

#[test]
fn hard_links_lead_to_files_of_the_backup_alone() {
    scene("to-symlink", &[dir("files"), link("files/a", "../../outside"), hard("files/b", "files/a")]).is_refused();
    scene("to-directory", &[dir("files"), dir("files/a"), hard("files/b", "files/a")]).is_refused();
    scene("to-nothing", &[dir("files"), hard("files/b", "files/a")]).is_refused();
    let through = [dir("files"), link("files/a", "../../outside"), hard("files/b", "files/a/x")];
    let scene = scene("through-link", &through);
    std::fs::write(scene.dir.join("outside/x"), b"not of the backup").unwrap();
    assert!(scene.write().is_err());
    assert!(!scene.dir.join("to/files/b").exists());
}

#[test]
fn directories_deeper_than_any_are_damage() {
    let paths = (1..=DEPTH_MAX + 2).map(|n| vec!["d"; n].join("/"));
    scene("deep", &paths.map(|p| dir(&p)).collect::<Vec<_>>()).is_refused();
}

#[test]
fn what_is_in_the_way_is_not_written_through() {
    let [start, end] = file("files/a");
    let scene = scene("in-the-way", &[dir("files"), start, end]);
    symlink("../outside", scene.dir.join("to/files")).unwrap();
    assert!(scene.write().is_err());
    assert_eq!(std::fs::read_dir(scene.dir.join("outside")).unwrap().count(), 0);
}

#[test]
fn without_attributes_no_set_id_bit_comes_back() {
    let start = Item::FileStart(FileStart { path: b"files/a".to_vec(), mode: 0o6755, modified_ns: 0 });
    let scene = scene("set-id", &[dir("files"), start, Item::FileEnd(FileEnd { size: 0 })]);
    assert_eq!(scene.write().unwrap().files, 1);
    let mode = std::fs::metadata(scene.dir.join("to/files/a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

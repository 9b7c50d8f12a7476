//! Writes and reads a manifest of many files in a directory, and says what it took:
//! `cargo run --release --example manifest_scale -- [ENTRIES]`. Fails when memory grew with the number of files.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgark_repo::codec::Codec;
use pgark_repo::crypto::{Algorithm, ContentId, Key32, KeySet, content_key};
use pgark_repo::manifest::{Chunk, Directory, FileEnd, FileStart, Item, ManifestReader, ManifestWriter, PackId, Part};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack::FrameAt;
use pgark_repo::store::{LocalStore, Store};
use pgark_repo::stream::Fingerprint;

const ENTRIES: u64 = 5_000_000;
const FILES_PER_DIRECTORY: u64 = 1000;
const FRAMES_PER_PACK: u64 = 1000;
const STORED: u32 = 9000;
const PLAIN: u32 = 32 * 1024;
const PEAK_KIB_MAX: u64 = 256 * 1024;

fn main() {
    let entries = std::env::args().nth(1).map_or(ENTRIES, |n| n.parse().expect("a number of entries"));
    let dir = std::env::temp_dir().join(format!("pgark-manifest-scale-{}", std::process::id()));
    let store = Arc::new(LocalStore::create(&dir).unwrap());
    let master = Key32::random().unwrap();
    let keys = KeySet::from_masters(Algorithm::Aes256Gcm, &[(1, master.clone())], &content_key(&master));
    let id = BackupId::parse("20260822-031500F").unwrap();
    let name = names::manifest(&ClusterName::parse("main").unwrap(), &id);

    let began = Instant::now();
    let print = write(&*store, &keys, &name, &id, entries);
    let (written, write_peak) = (began.elapsed(), peak_kib());
    let began = Instant::now();
    read(store, &keys, &name, entries, &print);
    let (read, read_peak) = (began.elapsed(), peak_kib());
    std::fs::remove_dir_all(&dir).unwrap();

    let rate = |t: Duration| entries as f64 / t.as_secs_f64() / 1e6;
    println!("entries            {entries}");
    println!("manifest           {:.1} MiB, {:.1} bytes an entry", mib(print.size), print.size as f64 / entries as f64);
    println!("written in         {:.1} s, {:.2} million entries a second", written.as_secs_f64(), rate(written));
    println!("read in            {:.1} s, {:.2} million entries a second", read.as_secs_f64(), rate(read));
    println!("peak memory        {:.1} MiB after writing, {:.1} MiB after reading", kib(write_peak), kib(read_peak));
    assert!(read_peak < PEAK_KIB_MAX, "memory grew with the manifest");
}

fn kib(n: u64) -> f64 {
    n as f64 / 1024.0
}

fn mib(n: u64) -> f64 {
    n as f64 / 1_048_576.0
}

/// The most memory that this process ever had, KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn content_id(n: u64) -> ContentId {
    ContentId(blake3::hash(&n.to_le_bytes()).as_bytes()[..16].try_into().unwrap())
}

fn write(
    store: &dyn Store,
    keys: &KeySet,
    name: &pgark_repo::store::ObjectName,
    id: &BackupId,
    entries: u64,
) -> Fingerprint {
    let mut w = ManifestWriter::create(store, keys, name).unwrap();
    let done = |n| Item::PackDone(n, Fingerprint { size: 1 << 26, blake3: "ab".repeat(32) });
    let mut pack = 0;
    for n in 0..entries {
        if n % FRAMES_PER_PACK == 0 {
            if n > 0 {
                w.push(&done(pack)).unwrap();
            }
            pack = u32::try_from(n / FRAMES_PER_PACK).unwrap();
            w.push(&Item::Pack(pack, PackId::new(id, pack))).unwrap();
        }
        let directory = format!("base/{:08}", n / FILES_PER_DIRECTORY);
        if n % FILES_PER_DIRECTORY == 0 {
            w.push(&Item::Directory(Directory { path: directory.clone().into(), mode: 0o700 })).unwrap();
        }
        let path = format!("{directory}/{n:010}").into_bytes();
        let modified_ns = 1_787_000_000_000_000_000 + i64::try_from(n).unwrap() * 1_000_003;
        w.push(&Item::FileStart(FileStart { path, mode: 0o600, modified_ns })).unwrap();
        let offset = 64 + (n % FRAMES_PER_PACK) * u64::from(STORED);
        let frame = FrameAt { offset, stored_len: STORED, plain_len: PLAIN, codec: Codec::Zstd };
        let parts = vec![Part { pack, frame, skip: 0, len: PLAIN }];
        w.push(&Item::Chunks(vec![Chunk::Data { id: content_id(n), parts }])).unwrap();
        w.push(&Item::FileEnd(FileEnd { size: PLAIN.into() })).unwrap();
    }
    w.push(&done(pack)).unwrap();
    w.finish().unwrap()
}

fn read(
    store: Arc<LocalStore>,
    keys: &KeySet,
    name: &pgark_repo::store::ObjectName,
    entries: u64,
    print: &Fingerprint,
) {
    let mut reader = ManifestReader::open(store, keys, name).unwrap();
    let mut files = 0;
    while let Some(item) = reader.next_item().unwrap() {
        if let Item::Chunks(chunks) = item {
            assert!(matches!(&chunks[..], [Chunk::Data { id, .. }] if *id == content_id(files)));
            files += 1;
        }
    }
    assert_eq!(files, entries);
    assert_eq!(reader.fingerprint(), *print);
}

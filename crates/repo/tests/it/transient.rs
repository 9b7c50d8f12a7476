//! What is read wrong once, and right the next time, spoils nothing.

use std::sync::Arc;

use pgark_repo::catalog::CatalogStore;
use pgark_repo::manifest::packs_of;
use pgark_repo::pack::{self, FrameAt, PackReader};
use pgark_repo::record::{BackupRecord, manifest_reader};
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, ObjectName, Store};

use crate::common::objects;
use crate::crash::{memory, one_backup, open};
use crate::sample::{self, archive, cluster, segment};

const SEED: u64 = 20_261_122;

/// A frame of a pack, and what it holds.
type Frame = (ObjectName, FrameAt, Vec<u8>);

fn frames(store: &Arc<dyn Store>) -> Vec<Frame> {
    let repo = open(store).unwrap();
    let packs = objects(&**store).into_iter().filter(|name| name.as_str().contains("/packs/"));
    let of_pack = |name: ObjectName| {
        let (_, table) = pack::read_whole(repo.store(), repo.keys(), &name).unwrap();
        let reader = PackReader::open(repo.store().clone(), repo.keys(), &name).unwrap();
        table.into_iter().map(|e| (name.clone(), e.at, sample::read_frame(&reader, &e.at).unwrap())).collect::<Vec<_>>()
    };
    packs.flat_map(of_pack).collect()
}

/// As a restore reads it.
fn everything_reads(store: &Arc<dyn Store>, frames: &[Frame]) -> pgark_repo::Result<()> {
    let repo = open(store)?;
    for entry in &CatalogStore::new(&repo, &cluster()).read()?.backups {
        let record = BackupRecord::load(&repo, &cluster(), &entry.id, &entry.record)?;
        let (_, print) = packs_of(manifest_reader(&repo, &cluster(), &entry.id)?)?;
        assert_eq!(print, record.manifest);
    }
    for (name, at, plain) in frames {
        let reader = PackReader::open(repo.store().clone(), repo.keys(), name)?;
        assert!(sample::read_frame(&reader, at)? == *plain, "{name}: other bytes");
    }
    let wal = archive(&repo);
    for n in wal.head()?.timelines().iter().flat_map(|t| &t.ranges).flat_map(|(a, b)| *a..=*b) {
        assert!(sample::read_segment(&wal, &segment(n))?.1 == sample::wal_segment(&segment(n), n), "segment {n}");
    }
    Ok(())
}

#[test]
fn everything_reads_although_any_one_read_goes_wrong() {
    let inner = memory();
    one_backup(&inner);
    let frames = frames(&inner);
    for fault in [Fault::FlipBit, Fault::Truncate] {
        let mut reached = 0;
        for nth in 1.. {
            let faulty = Arc::new(FaultStore::new(inner.clone(), SEED + nth));
            faulty.inject(Op::READS, When::Nth(nth), fault);
            let store: Arc<dyn Store> = faulty.clone();
            everything_reads(&store, &frames).unwrap_or_else(|e| panic!("{fault:?} at read {nth}: {e}"));
            if faulty.count(Op::READS) < nth {
                break;
            }
            reached = nth;
        }
        assert!(reached > 10, "{fault:?}: {reached}");
    }
}

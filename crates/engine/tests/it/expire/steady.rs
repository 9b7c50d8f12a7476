//! A verification believes damage that it sees twice.

use pgark_engine::verify::{Depth, VerifyOptions, verify};
use pgark_repo::store::FaultStore;
use pgark_repo::store::fault::{Fault, Op, Outcome, When};

use super::*;

#[test]
fn a_read_that_goes_wrong_once_makes_no_backup_a_damaged_one() {
    let template = Template::new();
    let options = VerifyOptions { cluster: cluster(), only: None, depth: Depth::Full, jobs: 1 };
    let undisturbed = template.fresh();
    let before = verify(&options, &open(&undisturbed), &evening()).unwrap();
    let known: Vec<String> = before.problems.iter().map(|p| p.object.clone()).collect();
    let damaged = |store: &Arc<dyn Store>| -> Vec<bool> {
        let catalog = CatalogStore::new(&open(store), &cluster()).read().unwrap();
        catalog.backups.iter().map(|b| b.damaged.is_some()).collect()
    };
    let known_damage = damaged(&undisturbed);
    // Registers have copies, of which each is told by itself.
    let of_register = |object: &str| {
        let dir = object.rsplit('/').nth(1).unwrap_or_default();
        matches!(dir.trim_end_matches("-mirror"), "keyring" | "catalog" | "head")
    };
    let (mut spoiled, mut told) = (0, 0);
    for nth in (1..).step_by(5) {
        let inner = template.fresh();
        let faulty = Arc::new(FaultStore::new(inner.clone(), SEED + nth));
        faulty.inject(Op::READS, When::Nth(nth), Fault::FlipBit);
        let store: Arc<dyn Store> = faulty.clone();
        let report = verify(&options, &open_quietly(&store, &inner), &evening()).unwrap();
        let log = faulty.log();
        let Some(hit) = log.iter().find(|e| e.outcome == Outcome::Injected(Fault::FlipBit)) else { break };
        let place = format!("read {nth}, of {}", hit.object);
        let new = report.problems.iter().filter(|p| !known.contains(&p.object) && !of_register(&p.object));
        assert_eq!(new.map(|p| &p.object).collect::<Vec<_>>(), Vec::<&String>::new(), "{place}");
        assert_eq!(damaged(&inner), known_damage, "{place}");
        spoiled += u64::from(!of_register(&hit.object));
        told += u64::from(report.notes.iter().any(|n| n.contains("was read wrong once")));
    }
    assert!(spoiled > 10 && told > 0, "{spoiled} {told}");
}

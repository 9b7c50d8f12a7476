//! Copies in other repositories: what does not fit gives its room back, and what one never got is told from what it gave up.

use pgark_engine::replicate::lacking::{Lacks, lacks};
use pgark_engine::replicate::{self, ReplicateOptions, Which};
use pgark_engine::verify::{Depth, VerifyOptions, verify};
use pgark_repo::names;
use pgark_repo::store::FaultStore;
use pgark_repo::store::fault::{Fault, Op, When};

use super::*;
use crate::reencrypt::Directory;
use crate::stores::{PausingStore, used};

fn all() -> ReplicateOptions {
    ReplicateOptions { cluster: cluster(), which: Which::Missing, jobs: 1 }
}

fn copied(from: &Repository, to: &Repository) -> Result<(), EngineError> {
    let plan = replicate::plan(from, Some(to), &all())?;
    let report = replicate::run(from, to, &all(), &plan, &evening())?;
    assert_eq!(report.failed, vec![]);
    Ok(())
}

#[test]
fn a_copy_that_does_not_fit_gives_its_room_back_at_once() {
    let template = Template::new();
    let source = open(&template.store);
    let directory = Directory::new("full");
    let inner = directory.store();
    let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
    let store: Arc<dyn Store> = faulty.clone();
    let (to, _) = source.open_copy(store).unwrap();
    // WAL and one backup go through; of the next one, the pack does and the manifest does not.
    let options = ReplicateOptions { which: Which::One(backup_id(1)), ..all() };
    let plan = replicate::plan(&source, Some(&to), &options).unwrap();
    replicate::run(&source, &to, &options, &plan, &evening()).unwrap();
    let before = used(&*inner);
    faulty.clear_log();
    for nth in 1.. {
        faulty.inject(&[Op::Create, Op::Write, Op::Finish], When::From(nth), Fault::NoSpace);
        let outcome = copied(&source, &to);
        faulty.heal();
        let Err(e) = outcome else { break };
        assert_eq!(e.code(), "E-REPO-SPACE", "{nth}: {e}");
        let catalog = CatalogStore::new(&to, &cluster()).read().unwrap();
        assert!(catalog.removing.is_empty() && catalog.interrupted.is_empty(), "{nth}: {:?}", catalog.removing);
        let kept: Vec<ObjectName> = objects(&inner)
            .into_iter()
            .filter(|n| {
                n.as_str().contains("/backups/") && listed(&inner).iter().all(|id| !n.as_str().contains(id.as_str()))
            })
            .collect();
        assert_eq!(kept, vec![], "{nth}");
    }
    assert!(used(&*inner) > before);
    assert_eq!(listed(&inner), listed(&template.store));
}

/// Who may only add objects there is faster than the copy, and stops one backup with that and no other.
#[test]
fn what_stands_in_the_way_of_one_backup_leaves_the_others_alone() {
    let template = Template::new();
    let source = open(&template.store);
    let there: Arc<dyn Store> = Arc::new(MemoryStore::called("copy"));
    let (to, _) = source.open_copy(there.clone()).unwrap();
    let planted = names::pack(&cluster(), &backup_id(2), 1);
    there.put_new(&planted, b"pay us").unwrap();
    let plan = replicate::plan(&source, Some(&to), &all()).unwrap();
    let report = replicate::run(&source, &to, &all(), &plan, &evening()).unwrap();
    let [(what, why)] = report.failed.as_slice() else { panic!("{report:?}") };
    assert!(what == backup_id(2).as_str() && why.contains(planted.as_str()), "{what}: {why}");
    assert_eq!(listed(&there), ids([1, 3, 4, 5]));
    assert_eq!(there.read(&planted, 100).unwrap(), b"pay us");
    there.delete(&planted).unwrap();
    copied(&source, &to).unwrap();
    assert_eq!(listed(&there), listed(&template.store));
}

#[test]
fn what_a_repository_never_got_is_told_from_what_it_gave_up() {
    let template = Template::new();
    let source = open(&template.store);
    let directory = Directory::new("gave-up");
    let there = directory.store();
    let (copy, _) = source.open_copy(there.clone()).unwrap();
    copied(&source, &copy).unwrap();
    // From here on it is dated as the sample is.
    let store = Template { store: there, trees: Trees::new() }.fresh();
    let to = open(&store);
    let missing = |from: &Repository, to: &Repository| lacks(from, to, &cluster()).unwrap();
    assert_eq!((missing(&source, &to), missing(&to, &source)), (Lacks::default(), Lacks::default()));

    // By retention with its WAL, and by hand: nothing of that is missed, when all traces are removed too.
    expire_now(&store, &evening()).unwrap();
    let catalog = CatalogStore::new(&to, &cluster());
    let claim = catalog.claim(JobKind::Delete, &backup_id(4), sample::at(0)).unwrap();
    claim.unlist().unwrap();
    claim.release().unwrap();
    (0..2).for_each(|_| drop(catalog.sweep().unwrap()));
    assert!(catalog.read().unwrap().removing.is_empty());
    assert_eq!((missing(&source, &to), missing(&to, &source)), (Lacks::default(), Lacks::default()));

    // A backup and WAL that only the copy got, and later ones that both did.
    let both = CatalogStore::new(&source, &cluster());
    let claim = catalog.claim(JobKind::Backup, &backup_id(6), day(6)).unwrap();
    committed(&to, 6, claim);
    sample::push_wal(&to, &[27, 28, 29, 30]).unwrap();
    sample::push_wal(&source, &[30]).unwrap();
    let (claim, later) = (catalog.claim(JobKind::Backup, &backup_id(7), day(7)).unwrap(), [&source, &to]);
    let (entry, _) = committed(&to, 7, claim);
    both.update(|c| {
        c.backups.push(entry.clone());
        Ok(Some(()))
    })
    .unwrap();
    later.iter().for_each(|repo| sample::push_wal(repo, &[31]).unwrap());
    assert_eq!(missing(&to, &source), Lacks { backups: vec![backup_id(6)], segments: 3, keys_apart: false });
    let said = missing(&to, &source).describe("b", "a");
    assert!(said.contains("'pgark replicate --from b --to a'") && said.contains("3 WAL segments"), "{said}");
    assert_eq!(missing(&source, &to), Lacks::default());
    // Brought back on request, it is missed again once it is lost.
    let claim = catalog.claim_copy(&backup_id(4), sample::at(0)).unwrap();
    assert!(!catalog.read().unwrap().has_given_up(&backup_id(4)));
    claim.abandon(false).unwrap();
}

#[test]
fn what_expires_beside_a_verification_that_stands_still_is_not_missing() {
    let template = Template::new();
    let options = VerifyOptions { cluster: cluster(), only: None, depth: Depth::Full, jobs: 1 };
    let before = verify(&options, &open(&template.fresh()), &evening()).unwrap();
    let known: Vec<String> = before.problems.iter().map(|p| p.object.clone()).collect();
    let mut settled = 0;
    for nth in (2..).step_by(5) {
        let inner = template.fresh();
        let meanwhile = {
            let inner = inner.clone();
            move || drop(expire_now(&inner, &evening()).unwrap())
        };
        let pausing = Arc::new(PausingStore::new(inner.clone(), nth, meanwhile));
        let store: Arc<dyn Store> = pausing.clone();
        let report = verify(&options, &open_quietly(&store, &inner), &evening()).unwrap();
        let told: Vec<_> = report.problems.iter().filter(|p| !known.contains(&p.object)).collect();
        assert!(told.is_empty(), "{nth}: {told:?}");
        settled += u64::from(report.notes.iter().any(|n| n.contains("were given up while this ran")));
        if pausing.operations() < nth {
            break;
        }
    }
    assert!(settled > 3, "{settled}");
}

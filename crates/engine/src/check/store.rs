//! What the store of a repository can do: each thing tried, never inferred from a request that succeeded.

use pgark_repo::Repository;
use pgark_repo::names::ClusterName;
use pgark_repo::store::{Ability, Capability, ObjectName, Store, StoreError, StoreErrorKind};

use super::{Findings, Verdict};
use crate::clock;
use crate::ctx::Ctx;
use crate::lock;

pub(super) fn capabilities(repo: &Repository, cluster: &ClusterName, ctx: &Ctx, f: &mut Findings) {
    let store = repo.store();
    let probed = store.probe();
    let create = conditional_create(repo, &mut |probe| {
        super::store_clock(clock::with_object(repo, probe, ctx), f);
        if folds_case(&**store, probe) {
            f.add("names", Verdict::Warning, ONE_CASE);
        }
    });
    f.add("conditional create", verdict(create.state), create.reason.clone());
    // A client that looks before it writes passes the test, and is no second writer's equal.
    let single = probed.iter().find(|c| c.name == Capability::CREATE);
    if let Some(single) = single {
        f.add("single writer", Verdict::Warning, single.reason.clone());
    } else {
        f.can(create);
    }
    let object_lock = probed.iter().find(|c| c.name == Capability::LOCK).cloned();
    probed.into_iter().for_each(|c| f.can(c));
    if !store.may_delete() {
        f.add("append only", Verdict::Ok, "this client removes nothing; whether the storage refuses it is not asked");
    }
    if let (Some(lock), Some(found)) = (store.object_lock(), object_lock) {
        let policy = lock.policy();
        f.add(
            "object lock",
            verdict(found.state),
            format!("{} for {} days: {}", policy.mode(), policy.days(), found.reason),
        );
        locks(repo, cluster, ctx, f);
    }
}

fn verdict(ability: Ability) -> Verdict {
    match ability {
        Ability::Yes => Verdict::Ok,
        Ability::No => Verdict::Failed,
        Ability::NotChecked => Verdict::NotChecked,
    }
}

/// Locks that nobody extends run out.
fn locks(repo: &Repository, cluster: &ClusterName, ctx: &Ctx, f: &mut Findings) {
    let least = repo.store().object_lock().map(|l| l.policy().at_least(ctx.now()));
    match lock::soonest(repo, cluster) {
        Ok(None) => f.add("locks", Verdict::NotChecked, "there is no backup yet"),
        Ok(Some((id, None))) => {
            let message =
                format!("backup {id} is not locked: the next 'pgark backup' or 'pgark expire' locks what it needs");
            f.add("locks", Verdict::Warning, message);
        }
        // A day's grace: each backup extends what ends too early.
        Ok(Some((id, Some(until)))) if least.is_some_and(|l| until.as_second() + 24 * 3600 < l.as_second()) => {
            let message =
                format!("the lock of backup {id} ends at {until}: 'pgark backup' and 'pgark expire' extend it");
            f.add("locks", Verdict::Warning, message);
        }
        Ok(Some((id, Some(until)))) => f.add(
            "locks",
            Verdict::Ok,
            format!("the first to end is that of backup {id}, at {until}, as far as records tell"),
        ),
        Err(e) => f.add("locks", Verdict::NotChecked, e.to_string()),
    }
}

const ONE_CASE: &str =
    "the store does not tell upper case from lower case: names of clusters must differ in more than that";

/// Whether an object is found under its name in the other case, where nobody has put one.
fn folds_case(store: &dyn Store, there: &ObjectName) -> bool {
    let other = there.as_str().to_ascii_uppercase();
    ObjectName::parse(&other).is_ok_and(|other| other != *there && store.stat(&other).is_ok())
}

/// The one thing everything rests on: creating a name that is taken must fail. `written` is told what was just created.
fn conditional_create(repo: &Repository, written: &mut dyn FnMut(&ObjectName)) -> Capability {
    let of = |state, reason: String| Capability::new(Capability::CREATE, state, reason);
    let store = repo.store();
    // A client that removes nothing leaves its probe for the next one.
    let name = match store.may_delete() {
        true => format!("probe/{}-{}", std::process::id(), repo.id()),
        false => format!("probe/append-only-{}", repo.id()),
    };
    let Ok(name) = ObjectName::parse(&name) else {
        return of(Ability::NotChecked, "the probe's name is invalid".into());
    };
    let first = store.put_new(&name, b"first");
    if first.is_ok() {
        written(&name);
    }
    let first = match first {
        Err(e) if e.is_already_exists() && !store.may_delete() => Ok(()),
        other => other,
    };
    if matches!(&first, Err(StoreError::ReadOnly)) {
        return of(Ability::NotChecked, "nothing is written to this repository".into());
    }
    let second = store.put_new(&name, b"second");
    let kept = store.read(&name, 100);
    match (first, second, kept, remove(&**store, &name)) {
        (Err(e), ..) => of(Ability::No, format!("the repository cannot be written to: {e}")),
        (Ok(()), Err(second), Ok(kept), Ok(())) if second.is_already_exists() && kept == b"first" => {
            of(Ability::Yes, "a name that is taken is not overwritten".into())
        }
        (Ok(()), Err(second), Ok(_), Ok(())) => {
            of(Ability::No, format!("the second creation of a name ended with: {second}"))
        }
        (Ok(()), Ok(()), ..) => of(Ability::No, "the store overwrites objects: only one writer may use it".into()),
        (Ok(()), Err(_), kept, removed) => {
            let why = kept.err().or(removed.err()).map(|e| e.to_string()).unwrap_or_default();
            of(Ability::No, format!("the probe could not be read and removed: {why}"))
        }
    }
}

fn remove(store: &dyn Store, name: &ObjectName) -> Result<(), StoreError> {
    match store.delete(name) {
        Err(e) if e.kind() == StoreErrorKind::AppendOnly => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_repo::store::MemoryStore;

    #[test]
    fn a_store_that_folds_case_is_known_by_a_name_that_nobody_gave() {
        let store = MemoryStore::new();
        let name = |s: &str| ObjectName::parse(s).expect("a name");
        store.put_new(&name("probe/1-abc"), b"first").expect("stored");
        assert!(!folds_case(&store, &name("probe/1-abc")));
        // As such a store answers.
        store.put_new(&name("PROBE/1-ABC"), b"first").expect("stored");
        assert!(folds_case(&store, &name("probe/1-abc")));
        assert!(!folds_case(&store, &name("PROBE/1-ABC")), "it has no other case");
    }
}

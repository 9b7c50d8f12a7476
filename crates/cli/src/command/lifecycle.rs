//! `repo-lifecycle`: the rules by which a bucket moves packs into cheaper classes, for the cloud's own tools.

use clap::Args;
use pgark_engine::capacity::classes;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::names::{self, BackupId, ClusterName};
use serde_json::{Value, json};

use super::Outcome;
use super::context::{Context, engine_failure};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::RepoSettings;
use crate::settings::repo_url::{RepoUrl, Scheme};
use crate::settings::space::archive_classes;

/// Unfinished uploads are rubbish after so many days.
const UPLOAD_DAYS: u32 = 7;
/// What one bucket takes, less some for its other rules (S3: 1000 rules, Azure: 100 with 10 prefixes each).
const S3_RULES_MAX: usize = 900;
const AZURE_PREFIXES_MAX: usize = 10;
const AZURE_RULES_MAX: usize = 90;

#[derive(Debug, Args)]
pub struct LifecycleArgs {}

/// The packs of one cluster, and when they go where.
struct Packs {
    cluster: ClusterName,
    /// By age in days.
    immediate: Vec<(u32, String)>,
    /// Backups whose packs may go into a class that is not read at once.
    archived: Vec<(u32, String, Vec<BackupId>)>,
}

pub fn run(_: &LifecycleArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let settings = context.one_repo_settings()?;
    let scheme = settings.url.scheme;
    if matches!(scheme, Scheme::File | Scheme::Sftp) {
        return Err(Failure::usage("E-CLASS", "only object stores have classes and lifecycle rules")
            .hint("choose a repository in S3, Azure or Google Cloud Storage with --repo"));
    }
    if settings.space.class_after.is_empty() {
        return Err(Failure::usage("E-CLASS", format!("repository {} has no class_after", settings.name))
            .hint("add class_after = { \"30d\" = \"…\" } to it; docs/capacity.md tells which classes there are"));
    }
    let repo = context.open_repository(&settings)?;
    let mut all = vec![];
    for cluster in repo.clusters().map_err(|e| engine_failure(e.into()))? {
        let catalog = CatalogStore::new(&repo, &cluster).read().map_err(|e| engine_failure(e.into()))?;
        let (archived, immediate): (Vec<_>, Vec<_>) = settings
            .space
            .class_after
            .iter()
            .cloned()
            .partition(|(_, class)| archive_classes(scheme).contains(&class.as_str()));
        let settled = |days| classes::settled(&catalog, days, context.ctx.now());
        let archived = archived.into_iter().map(|(days, class)| (days, class, settled(days))).collect();
        all.push(Packs { cluster, immediate, archived });
    }
    let rules = match scheme {
        Scheme::S3 => s3(&settings, &all)?,
        Scheme::Azure => azure(&settings, &all)?,
        Scheme::Gcs => gcs(&settings.url, &all),
        Scheme::File | Scheme::Sftp => unreachable!("refused above"),
    };
    output::warning("setting these rules replaces all that the bucket has: add those of others by hand");
    let text = serde_json::to_string_pretty(&rules)
        .map_err(|e| Failure::failed("E-INTERNAL", format!("the rules cannot be written as JSON: {e}")))?;
    output::text(&(text + "\n"))?;
    Ok(Exit::Done)
}

fn below(url: &RepoUrl, path: &str) -> String {
    if url.path.is_empty() { path.to_owned() } else { format!("{}/{path}", url.path) }
}

/// Packs, with the manifests and records beside them: prefixes cannot tell them apart, and all of them stay readable.
fn backups_of(url: &RepoUrl, cluster: &ClusterName) -> String {
    below(url, &format!("{}/", names::backups_dir(cluster)))
}

fn packs_of(url: &RepoUrl, cluster: &ClusterName, id: &BackupId) -> String {
    below(url, &format!("{}/packs/", names::backup_dir(cluster, id)))
}

fn too_many(found: usize, max: usize) -> Failure {
    Failure::refused("E-CLASS", format!("{found} rules would be needed, and a bucket takes about {max}"))
        .hint("take a class that is read at once: it needs one rule for all backups of a cluster")
}

fn s3(settings: &RepoSettings, all: &[Packs]) -> Result<Value, Failure> {
    let url = &settings.url;
    let mut rules = vec![];
    let rule = |id: String, prefix: String, transitions: Vec<(u32, String)>| {
        let transitions: Vec<Value> =
            transitions.into_iter().map(|(days, class)| json!({"Days": days, "StorageClass": class})).collect();
        json!({"ID": id, "Status": "Enabled", "Filter": {"Prefix": prefix}, "Transitions": transitions})
    };
    for packs in all {
        if !packs.immediate.is_empty() {
            let id = format!("pgark-{}", packs.cluster);
            rules.push(rule(id, backups_of(url, &packs.cluster), packs.immediate.clone()));
        }
        for (days, class, ids) in &packs.archived {
            for backup in ids {
                let id = format!("pgark-{}-{backup}-{class}", packs.cluster);
                rules.push(rule(id, packs_of(url, &packs.cluster, backup), vec![(*days, class.clone())]));
            }
        }
    }
    let prefix = if url.path.is_empty() { String::new() } else { format!("{}/", url.path) };
    rules.push(json!({"ID": "pgark-unfinished-uploads", "Status": "Enabled", "Filter": {"Prefix": prefix},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS}}));
    if rules.len() > S3_RULES_MAX {
        return Err(too_many(rules.len(), S3_RULES_MAX));
    }
    Ok(json!({"Rules": rules}))
}

fn azure(settings: &RepoSettings, all: &[Packs]) -> Result<Value, Failure> {
    let container = settings.url.host.clone().unwrap_or_default();
    let mut rules: Vec<Value> = vec![];
    let mut add = |days: u32, class: &str, prefixes: &[String]| {
        let name = format!("pgark-{}", rules.len() + 1);
        rules.push(json!({"enabled": true, "name": name, "type": "Lifecycle", "definition": {
            "filters": {"blobTypes": ["blockBlob"], "prefixMatch": prefixes},
            "actions": {"baseBlob": {format!("tierTo{class}"): {"daysAfterCreationGreaterThan": days}}}}}));
    };
    let whole = |path: String| format!("{container}/{path}");
    for packs in all {
        for (days, class) in &packs.immediate {
            add(*days, class, &[whole(backups_of(&settings.url, &packs.cluster))]);
        }
        for (days, class, ids) in &packs.archived {
            let prefixes: Vec<String> =
                ids.iter().map(|id| whole(packs_of(&settings.url, &packs.cluster, id))).collect();
            prefixes.chunks(AZURE_PREFIXES_MAX).for_each(|some| add(*days, class, some));
        }
    }
    if rules.len() > AZURE_RULES_MAX {
        return Err(too_many(rules.len(), AZURE_RULES_MAX));
    }
    Ok(json!({"rules": rules}))
}

/// Every class of Google's is read at once.
fn gcs(url: &RepoUrl, all: &[Packs]) -> Value {
    let mut rules = vec![];
    for packs in all {
        for (days, class) in &packs.immediate {
            rules.push(json!({"action": {"type": "SetStorageClass", "storageClass": class},
                "condition": {"age": days, "matchesPrefix": [backups_of(url, &packs.cluster)]}}));
        }
    }
    let mut condition = json!({"age": UPLOAD_DAYS});
    if !url.path.is_empty() {
        condition["matchesPrefix"] = json!([format!("{}/", url.path)]);
    }
    rules.push(json!({"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": condition}));
    json!({"rule": rules})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::space::SpaceSettings;

    fn settings(url: &str) -> RepoSettings {
        RepoSettings {
            name: "main".into(),
            url: url.parse().expect(url),
            passphrase: crate::secret::SecretSource::None,
            encryption: Default::default(),
            required: false,
            parity: None,
            protection: Default::default(),
            key_commands: Default::default(),
            space: SpaceSettings::default(),
        }
    }

    fn packs(ids: usize, archive: &str) -> Vec<Packs> {
        let id = |n: usize| BackupId::new(jiff::Timestamp::from_second(1_780_000_000 + n as i64).expect("a time"), 'F');
        let archived = if ids == 0 { vec![] } else { vec![(180, archive.to_owned(), (0..ids).map(id).collect())] };
        let cluster = ClusterName::parse("main").expect("a name");
        vec![Packs { cluster, immediate: vec![(30, "Cool".into())], archived }]
    }

    /// Prefixes of everything that is moved to another class.
    fn moved(rules: &Value) -> Vec<String> {
        let rules = [&rules["Rules"], &rules["rules"], &rules["rule"]];
        let of = |rule: &Value| -> Vec<Value> {
            let uploads = rule.get("AbortIncompleteMultipartUpload").is_some()
                || rule["action"]["type"] == "AbortIncompleteMultipartUpload";
            if uploads {
                return vec![];
            }
            let lists = [&rule["condition"]["matchesPrefix"], &rule["definition"]["filters"]["prefixMatch"]];
            let listed = lists.into_iter().filter_map(Value::as_array).flatten().cloned();
            listed.chain(rule["Filter"].get("Prefix").cloned()).collect()
        };
        let all = rules.into_iter().filter_map(Value::as_array).flatten().flat_map(of);
        all.map(|prefix| prefix.as_str().expect("text").to_owned()).collect()
    }

    #[test]
    fn no_rule_ever_reaches_catalog_keys_or_wal() {
        for (prefix, rest) in [("prod/pg/", "prod/pg"), ("", "")] {
            let s3 = s3(&settings(&format!("s3://b/{rest}")), &packs(3, "GLACIER")).expect("rules");
            let azure = azure(&settings(&format!("az://b/{rest}")), &packs(3, "Archive")).expect("rules");
            let gcs = gcs(&settings(&format!("gs://b/{rest}")).url, &packs(0, ""));
            for (rules, bucket, count) in [(&s3, "", 4), (&azure, "b/", 4), (&gcs, "", 1)] {
                let found = moved(rules);
                assert_eq!(found.len(), count, "{rules}");
                let wanted = format!("{bucket}{prefix}clusters/main/backups/");
                assert!(found.iter().all(|p| p.starts_with(&wanted)), "{found:?}");
                // Never what lies beside the packs, in a class that is not read at once.
                assert!(found.iter().skip(1).all(|p| p.ends_with("/packs/")), "{found:?}");
            }
        }
    }

    #[test]
    fn more_rules_than_a_bucket_takes_are_refused() {
        assert!(s3(&settings("s3://b/p"), &packs(880, "GLACIER")).is_ok());
        assert_eq!(s3(&settings("s3://b/p"), &packs(900, "GLACIER")).expect_err("too many").code, "E-CLASS");
        assert!(azure(&settings("az://b/p"), &packs(890, "Archive")).is_ok());
        assert!(azure(&settings("az://b/p"), &packs(901, "Archive")).is_err());
    }
}

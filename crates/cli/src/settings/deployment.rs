//! The variables by which applications tell their backup service where the database is and where backups go. They are read
//! only where a cluster asks for it (`[clusters.NAME.system] deployment_variables = true`): elsewhere a `DB_HOST` of somebody
//! else would lead a backup to another database.
//!
//! As all variables they overrule the file, and flags overrule them.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use super::explain::Entry;
use super::files::Environment;
use super::resolve::repo;
use super::schema::{RetentionRules, System};
use super::{ClusterSettings, Origin, RepoSettings};
use crate::failure::Failure;
use crate::secret::{Secret, SecretSource};

pub const VARIABLES: [&str; 13] = [
    "BACKUP_DIR",
    "BACKUP_ENABLED",
    "BACKUP_ENCRYPTION_KEY",
    "BACKUP_RETENTION_DAYS",
    "DB_HOST",
    "DB_NAME",
    "DB_PASSWORD",
    "DB_PORT",
    "DB_USER",
    "MAX_BACKUPS",
    "REMOTE_BACKUP_ENABLED",
    "REMOTE_BACKUP_PATH",
    "S3_BACKUP_BUCKET",
];

/// Names of the repositories that are made of variables.
const LOCAL: &str = "backup_dir";
const REMOTE: &str = "remote_backup";
const BUCKET: &str = "s3_backup";

/// What the variables say about a cluster, put over what the file says. Returns what was taken from where.
pub fn apply(
    cluster: &mut ClusterSettings,
    repos: &mut BTreeMap<String, RepoSettings>,
    environment: &Environment,
) -> Result<Vec<Entry>, Failure> {
    if !cluster.system.as_ref().is_some_and(|s| s.deployment_variables) {
        return Ok(vec![]);
    }
    let mut taken = Taken { cluster: cluster.name.clone(), environment, entries: vec![] };
    taken.connection(cluster)?;
    taken.repositories(cluster, repos)?;
    taken.retention(cluster)?;
    if let Some(enabled) = taken.flag("BACKUP_ENABLED")? {
        cluster.backups_enabled = enabled;
        taken.note("backups_enabled", enabled, "BACKUP_ENABLED");
    }
    Ok(taken.entries)
}

struct Taken<'a> {
    cluster: String,
    environment: &'a Environment,
    entries: Vec<Entry>,
}

impl Taken<'_> {
    fn connection(&mut self, cluster: &mut ClusterSettings) -> Result<(), Failure> {
        for (variable, keyword) in
            [("DB_HOST", "host"), ("DB_PORT", "port"), ("DB_USER", "user"), ("DB_NAME", "dbname")]
        {
            let Some(value) = self.environment.get(variable)? else { continue };
            if keyword == "port" && value.trim().parse::<u16>().is_err() {
                return Err(wrong(variable, "is not a port"));
            }
            cluster.libpq.retain(|(name, _)| name != keyword);
            cluster.libpq.push((keyword.to_owned(), value.trim().to_owned()));
            self.note(keyword, value.trim(), variable);
        }
        if let Some(name) = self.environment.get("DB_NAME")? {
            let system = cluster.system.get_or_insert_with(System::default);
            system.database = Some(name.trim().to_owned());
            self.note("system.database", name.trim(), "DB_NAME");
        }
        if let Some(source) = self.secret("DB_PASSWORD") {
            self.note("password", source.to_string(), "DB_PASSWORD");
            cluster.libpq_secrets.retain(|(name, _)| name != "password");
            cluster.libpq_secrets.push(("password".to_owned(), source));
        }
        Ok(())
    }

    fn repositories(
        &mut self,
        cluster: &mut ClusterSettings,
        repos: &mut BTreeMap<String, RepoSettings>,
    ) -> Result<(), Failure> {
        let remote = self.flag("REMOTE_BACKUP_ENABLED")?.unwrap_or(false);
        let bucket = self.environment.get("S3_BACKUP_BUCKET")?.map(|name| match name.contains("://") {
            true => name.to_owned(),
            false => format!("s3://{name}"),
        });
        let own = |variable| self.environment.get(variable).map(|v| v.map(str::to_owned));
        let places = [
            (LOCAL, "BACKUP_DIR", own("BACKUP_DIR")?),
            (REMOTE, "REMOTE_BACKUP_PATH", own("REMOTE_BACKUP_PATH")?.filter(|_| remote)),
            (BUCKET, "S3_BACKUP_BUCKET", bucket.filter(|_| remote)),
        ];
        if remote && places.iter().skip(1).all(|(.., place)| place.is_none()) {
            let why = "asks for a remote copy, and neither REMOTE_BACKUP_PATH nor S3_BACKUP_BUCKET says where";
            return Err(wrong("REMOTE_BACKUP_ENABLED", why));
        }
        let passphrase = self.secret("BACKUP_ENCRYPTION_KEY");
        let mut named = vec![];
        for (name, variable, place) in places {
            let Some(place) = place else { continue };
            if repos.contains_key(name) {
                return Err(wrong(variable, &format!("makes the repository {name}, which the configuration has, too")));
            }
            let mut made = repo(repos, &place).map_err(|e| wrong(variable, &e.message))?;
            if let Some(passphrase) = &passphrase {
                made.passphrase = passphrase.clone();
            }
            self.entries.push(Entry::new(
                &format!("repos.{name}.url"),
                made.url.to_string(),
                Origin::Variable(variable),
            ));
            repos.insert(name.to_owned(), RepoSettings { name: name.to_owned(), ..made });
            named.push(name.to_owned());
        }
        if named.first().is_some_and(|first| first == LOCAL) {
            cluster.repos = named;
        } else {
            cluster.repos.extend(named);
        }
        if let Some(passphrase) = passphrase {
            self.note("passphrase", passphrase.to_string(), "BACKUP_ENCRYPTION_KEY");
            for name in &cluster.repos {
                if let Some(repo) = repos.get_mut(name) {
                    repo.passphrase = passphrase.clone();
                }
            }
        }
        Ok(())
    }

    fn retention(&mut self, cluster: &mut ClusterSettings) -> Result<(), Failure> {
        let (days, most) = (self.number("BACKUP_RETENTION_DAYS")?, self.number("MAX_BACKUPS")?);
        if days.is_none() && most.is_none() {
            return Ok(());
        }
        let rules = cluster.retention.system.get_or_insert_with(RetentionRules::default);
        rules.keep_days = days.or(rules.keep_days);
        rules.max_backups = most.or(rules.max_backups);
        for (key, value, variable) in
            [("keep_days", days, "BACKUP_RETENTION_DAYS"), ("max_backups", most, "MAX_BACKUPS")]
        {
            if let Some(value) = value {
                self.note(&format!("retention.system.{key}"), value, variable);
            }
        }
        Ok(())
    }

    fn note(&mut self, key: &str, value: impl Into<serde_json::Value>, variable: &'static str) {
        let key = format!("clusters.{}.{key}", self.cluster);
        self.entries.push(Entry::new(&key, value, Origin::Variable(variable)));
    }

    fn secret(&self, variable: &str) -> Option<SecretSource> {
        let value = Secret::new(self.environment.get_os(variable)?.as_bytes().to_vec());
        Some(SecretSource::Environment { variable: variable.to_owned(), value })
    }

    fn flag(&self, variable: &'static str) -> Result<Option<bool>, Failure> {
        match self.environment.get(variable)?.map(|v| v.trim().to_ascii_lowercase()).as_deref() {
            None => Ok(None),
            Some("true" | "1" | "yes" | "on") => Ok(Some(true)),
            Some("false" | "0" | "no" | "off") => Ok(Some(false)),
            Some(_) => Err(wrong(variable, "is neither true nor false")),
        }
    }

    fn number(&self, variable: &'static str) -> Result<Option<u32>, Failure> {
        let Some(text) = self.environment.get(variable)? else { return Ok(None) };
        let number = text.trim().parse().ok().filter(|n| *n > 0);
        number.map(Some).ok_or_else(|| wrong(variable, "is not a whole number above 0"))
    }
}

fn wrong(variable: &str, why: &str) -> Failure {
    Failure::usage("E-CONFIG-VALUE", format!("variable {variable} {why}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::super::{Overrides, Settings};
    use super::*;

    const ASKED: &str = "[clusters.main.system]\ndeployment_variables = true\n";

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        let dir = TempDir::new();
        dir.write("cwd/pgark.toml", text);
        Settings::load(&Overrides::default(), &Environment::for_test(dir.path(), variables))
    }

    const ALL: [(&str, &str); 13] = [
        ("BACKUP_DIR", "/var/backups/app"),
        ("BACKUP_ENABLED", "True"),
        ("BACKUP_ENCRYPTION_KEY", "k3y-of-the-backups"),
        ("BACKUP_RETENTION_DAYS", "30"),
        ("DB_HOST", "db.internal"),
        ("DB_NAME", "radiology_db"),
        ("DB_PASSWORD", "s3cret"),
        ("DB_PORT", "5433"),
        ("DB_USER", "radio"),
        ("MAX_BACKUPS", "50"),
        ("REMOTE_BACKUP_ENABLED", "true"),
        ("REMOTE_BACKUP_PATH", "/mnt/nas/app"),
        ("S3_BACKUP_BUCKET", "app-backups"),
    ];

    #[test]
    fn all_of_them_are_known() {
        assert_eq!(ALL.map(|(name, _)| name), VARIABLES);
    }

    #[test]
    fn a_cluster_that_asks_for_them_has_them() {
        let file = format!(
            "[clusters.main]\nhost = \"/tmp\"\nuser = \"other\"\n{ASKED}[clusters.main.retention]\nkeep_days = 7\n"
        );
        let settings = load(&file, &ALL).expect("loads");
        let cluster = &settings.clusters["main"];
        for (keyword, value) in
            [("host", "db.internal"), ("port", "5433"), ("user", "radio"), ("dbname", "radiology_db")]
        {
            let found: Vec<&String> = cluster.libpq.iter().filter(|(k, _)| k == keyword).map(|(_, v)| v).collect();
            assert_eq!(found, [value], "{keyword}");
        }
        assert_eq!(cluster.system.as_ref().and_then(|s| s.database.as_deref()), Some("radiology_db"));
        let urls: Vec<String> = settings.configured_repos().iter().map(|r| r.url.to_string()).collect();
        assert_eq!(urls, ["/var/backups/app", "/mnt/nas/app", "s3://app-backups"]);
        for repo in settings.configured_repos() {
            let passphrase = repo.passphrase.read().expect("reads").expect("a passphrase");
            assert_eq!(passphrase.expose(), b"k3y-of-the-backups");
        }
        let rules = cluster.retention.rules(super::super::schema::Kind::System);
        assert_eq!((rules.keep_days, rules.max_backups), (Some(30), Some(50)));
        assert_eq!(cluster.retention.rules(super::super::schema::Kind::Physical).keep_days, Some(7));
        assert!(cluster.backups_enabled);
        let shown = serde_json::to_string(&settings.explain(None).expect("explains")).expect("JSON");
        assert!(shown.contains("DB_HOST") && !shown.contains("s3cret") && !shown.contains("k3y"), "{shown}");
    }

    #[test]
    fn nobody_else_has_them() {
        let settings = load("[clusters.main]\nhost = \"/tmp\"\n", &ALL).expect("loads");
        let cluster = &settings.clusters["main"];
        assert_eq!(cluster.libpq, [("host".to_owned(), "/tmp".to_owned())]);
        assert!(cluster.repos.is_empty() && settings.repos.is_empty() && cluster.libpq_secrets.is_empty());
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (variables, what) in [
            (vec![("DB_PORT", "many")], "DB_PORT"),
            (vec![("BACKUP_RETENTION_DAYS", "0")], "BACKUP_RETENTION_DAYS"),
            (vec![("MAX_BACKUPS", "-1")], "MAX_BACKUPS"),
            (vec![("BACKUP_ENABLED", "perhaps")], "BACKUP_ENABLED"),
            (vec![("REMOTE_BACKUP_ENABLED", "true")], "REMOTE_BACKUP_PATH"),
            (vec![("BACKUP_DIR", "relative/path")], "BACKUP_DIR"),
        ] {
            let failure = load(ASKED, &variables).expect_err(what);
            assert!(failure.code == "E-CONFIG-VALUE" && failure.message.contains(what), "{failure:?}");
        }
        let twice = format!("{ASKED}[repos.backup_dir]\nurl = \"/srv/x\"\n");
        assert!(load(&twice, &[("BACKUP_DIR", "/srv/y")]).is_err());
        // Without a remote copy, where it would be does not count.
        let settings = load(ASKED, &[("BACKUP_DIR", "/srv/y"), ("S3_BACKUP_BUCKET", "b")]).expect("loads");
        assert_eq!(settings.configured_repos().len(), 1);
        assert!(!load(ASKED, &[("BACKUP_ENABLED", "false")]).expect("loads").clusters["main"].backups_enabled);
    }
}

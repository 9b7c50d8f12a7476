//! What a job does, and the arguments it is run with.
//!
//! Invariant: the words are made here of values that were read as what they are; none of them can be taken for another flag,
//! and none is a secret.

use std::path::PathBuf;

use jiff::Timestamp;
use pgark_repo::names::{BackupId, ClusterName};
use serde::{Deserialize, Serialize};

use crate::access::Right;

const NAME_CHARS_MAX: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "job", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Backup {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<Kind>,
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        backup_type: Option<BackupType>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repo: Option<String>,
    },
    Verify {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<String>,
        #[serde(default)]
        quick: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repo: Option<String>,
    },
    Expire {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repo: Option<String>,
    },
    Check {},
    /// Raises and ends alerts by what is found, and tells people.
    Alerts {},
    Replicate {
        from: String,
        to: String,
    },
    Drill {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<Kind>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<String>,
    },
    Delete {
        backup: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repo: Option<String>,
    },
    /// Of the whole cluster, into a directory that is absent or empty.
    Restore {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<String>,
        to: PathBuf,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_time: Option<Timestamp>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_lsn: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_name: Option<String>,
    },
    /// Of a system, in place: what is named, or all of it.
    RestoreSystem {
        backup: String,
        database: bool,
        config: bool,
        files: bool,
    },
    /// As the settings of the cluster say.
    Recover {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_time: Option<Timestamp>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_lsn: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_name: Option<String>,
    },
    /// Somebody looks after an alert of the cluster.
    Acknowledge {
        alert: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Physical,
    Logical,
    Files,
    System,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupType {
    Full,
    Incr,
    Diff,
}

/// Jobs of one lane and one cluster run one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Into the repository: backups, what removes some, copies.
    Write,
    Read,
    /// What is to come every few minutes, however long something is read.
    Watch,
    Rehearse,
    Restore,
    /// What takes no time, and waits for no other lane, however many jobs run.
    Prompt,
}

impl Request {
    pub fn word(&self) -> &'static str {
        match self {
            Request::Backup { .. } => "backup",
            Request::Verify { .. } => "verify",
            Request::Expire { .. } => "expire",
            Request::Check {} => "check",
            Request::Alerts {} => "alerts",
            Request::Replicate { .. } => "replicate",
            Request::Drill { .. } => "drill",
            Request::Delete { .. } => "delete",
            Request::Restore { .. } => "restore",
            Request::RestoreSystem { .. } => "restore_system",
            Request::Recover { .. } => "recover",
            Request::Acknowledge { .. } => "acknowledge",
        }
    }

    /// What it takes to ask for it.
    pub fn right(&self) -> Right {
        match self {
            Request::Backup { .. }
            | Request::Verify { .. }
            | Request::Expire { .. }
            | Request::Check {}
            | Request::Alerts {}
            | Request::Replicate { .. }
            | Request::Drill { .. }
            | Request::Acknowledge { .. } => Right::Operate,
            Request::Delete { .. }
            | Request::Restore { .. }
            | Request::RestoreSystem { .. }
            | Request::Recover { .. } => Right::Recover,
        }
    }

    /// Who asks for one of these says so a second time.
    pub fn needs_confirmation(&self) -> bool {
        self.right() == Right::Recover
    }

    pub fn lane(&self) -> Lane {
        match self {
            Request::Backup { .. } | Request::Expire { .. } | Request::Replicate { .. } | Request::Delete { .. } => {
                Lane::Write
            }
            Request::Verify { .. } => Lane::Read,
            Request::Check {} | Request::Alerts {} => Lane::Watch,
            Request::Drill { .. } => Lane::Rehearse,
            Request::Restore { .. } | Request::RestoreSystem { .. } | Request::Recover { .. } => Lane::Restore,
            Request::Acknowledge { .. } => Lane::Prompt,
        }
    }

    /// Whether a second try can do no harm when the first one failed half-way.
    pub fn can_be_tried_again(&self) -> bool {
        self.right() == Right::Operate
    }

    /// The repositories that it names.
    pub fn repos(&self) -> Vec<&str> {
        match self {
            Request::Backup { repo, .. }
            | Request::Verify { repo, .. }
            | Request::Expire { repo }
            | Request::Delete { repo, .. } => repo.iter().map(String::as_str).collect(),
            Request::Replicate { from, to } => vec![from, to],
            Request::Check {}
            | Request::Alerts {}
            | Request::Drill { .. }
            | Request::Restore { .. }
            | Request::RestoreSystem { .. }
            | Request::Recover { .. }
            | Request::Acknowledge { .. } => vec![],
        }
    }

    /// The command line without the program, `--json` and where settings are.
    ///
    /// # Errors
    /// What is wrong with a value.
    pub fn words(&self, cluster: &str) -> Result<Vec<String>, String> {
        let cluster = ClusterName::parse(cluster).map_err(|_| format!("'{cluster}' is no name of a cluster"))?;
        let mut words = Words(vec![]);
        match self {
            Request::Backup { kind, backup_type, repo } => {
                words.push("backup");
                words.option("--kind", kind.map(Kind::word));
                words.option("--type", backup_type.map(BackupType::word));
                words.repo(repo.as_deref())?;
            }
            Request::Verify { backup, quick, repo } => {
                words.push("verify");
                words.backup(backup.as_deref())?;
                words.flag("--quick", *quick);
                words.repo(repo.as_deref())?;
            }
            Request::Expire { repo } => {
                words.push("expire");
                words.push("--yes");
                words.repo(repo.as_deref())?;
            }
            Request::Check {} => words.push("check"),
            Request::Alerts {} => words.0.extend(["alert", "run"].map(str::to_owned)),
            Request::Replicate { from, to } => {
                words.push("replicate");
                words.option("--from", Some(name(from)?));
                words.option("--to", Some(name(to)?));
            }
            Request::Drill { kind, backup } => {
                words.push("drill");
                words.option("--kind", kind.map(Kind::word));
                match backup.as_deref() {
                    Some(word @ ("latest" | "random")) => words.option("--backup", Some(word)),
                    Some(id) => words.option("--backup", Some(backup_id(id)?)),
                    None => {}
                }
            }
            Request::Delete { backup, repo } => {
                words.push("delete");
                words.push(backup_id(backup)?);
                words.push("--yes");
                words.repo(repo.as_deref())?;
            }
            Request::Restore { backup, to, target_time, target_lsn, target_name } => {
                words.push("restore");
                words.backup(backup.as_deref())?;
                let to = to.to_str().filter(|t| t.starts_with('/') && !t.contains('\0'));
                words.option("--to", Some(to.ok_or("'to' is an absolute path")?));
                words.target(*target_time, target_lsn.as_deref(), target_name.as_deref())?;
                words.push("--yes");
            }
            Request::RestoreSystem { backup, database, config, files } => {
                words.push("restore");
                words.push(backup_id(backup)?);
                words.option("--kind", Some("system"));
                words.push("--in-place");
                words.push("--yes");
                words.flag("--files", *files);
                words.flag("--config-files", *config);
                words.flag("--database", *database);
            }
            Request::Recover { backup, reason, target_time, target_lsn, target_name } => {
                words.push("recover");
                words.backup(backup.as_deref())?;
                words.target(*target_time, target_lsn.as_deref(), target_name.as_deref())?;
                let reason =
                    reason.as_deref().map(|r| r.chars().filter(|c| !c.is_control()).take(1000).collect::<String>());
                words.option("--reason", reason.as_deref());
                words.push("--yes");
            }
            Request::Acknowledge { alert } => {
                words.0.extend(["alert", "ack"].map(str::to_owned));
                words.push(alert_id(alert)?);
            }
        }
        words.option("--cluster", Some(cluster.as_str()));
        Ok(words.0)
    }
}

struct Words(Vec<String>);

impl Words {
    fn push(&mut self, word: &str) {
        self.0.push(word.to_owned());
    }

    fn flag(&mut self, flag: &str, given: bool) {
        if given {
            self.push(flag);
        }
    }

    /// In one word, so that no value is ever taken for a flag.
    fn option(&mut self, flag: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.push(format!("{flag}={value}"));
        }
    }

    fn repo(&mut self, repo: Option<&str>) -> Result<(), String> {
        self.option("--repo", repo.map(name).transpose()?);
        Ok(())
    }

    /// A moment, a position or a restore point; none is the end of the archive.
    fn target(&mut self, time: Option<Timestamp>, at: Option<&str>, name: Option<&str>) -> Result<(), String> {
        if [time.is_some(), at.is_some(), name.is_some()].into_iter().filter(|given| *given).count() > 1 {
            return Err("there is more than one target".into());
        }
        self.option("--target-time", time.map(|t| t.to_string()).as_deref());
        self.option("--target-lsn", at.map(lsn).transpose()?);
        self.option("--target-name", name.map(point).transpose()?);
        Ok(())
    }

    fn backup(&mut self, id: Option<&str>) -> Result<(), String> {
        match id {
            Some("latest") => self.push("latest"),
            Some(id) => self.push(backup_id(id)?),
            None => {}
        }
        Ok(())
    }
}

fn backup_id(id: &str) -> Result<&str, String> {
    BackupId::parse(id).map(|_| id).map_err(|_| format!("'{}' is no id of a backup", id.escape_debug()))
}

fn alert_id(text: &str) -> Result<&str, String> {
    let right = !text.is_empty() && text.len() <= NAME_CHARS_MAX && !text.starts_with('-');
    let right = right && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    right.then_some(text).ok_or_else(|| format!("'{}' is no id of an alert", text.escape_debug()))
}

/// Of a configured repository: never a path or a URL, which would say where to write.
fn name(text: &str) -> Result<&str, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let right = !text.is_empty() && text.len() <= NAME_CHARS_MAX && !text.starts_with(['.', '-']);
    let right = right && text.chars().all(allowed);
    right.then_some(text).ok_or_else(|| format!("'{}' is no name of a repository", text.escape_debug()))
}

fn lsn(text: &str) -> Result<&str, String> {
    let half = |part: &str| (1..=8).contains(&part.len()) && part.chars().all(|c| c.is_ascii_hexdigit());
    let right = text.split_once('/').is_some_and(|(high, low)| half(high) && half(low));
    right.then_some(text).ok_or_else(|| format!("'{}' is no position such as 2/F3000028", text.escape_debug()))
}

/// PostgreSQL's MAXFNAMELEN (xlog_internal.h) bounds the name of a restore point.
fn point(text: &str) -> Result<&str, String> {
    let right = !text.is_empty() && text.len() < 64 && !text.chars().any(char::is_control);
    right.then_some(text).ok_or_else(|| "that is no name of a restore point".to_owned())
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Physical => "physical",
            Kind::Logical => "logical",
            Kind::Files => "files",
            Kind::System => "system",
        }
    }
}

impl BackupType {
    fn word(self) -> &'static str {
        match self {
            BackupType::Full => "full",
            BackupType::Incr => "incr",
            BackupType::Diff => "diff",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(json: &str) -> Result<String, String> {
        let request: Request = serde_json::from_str(json).map_err(|e| e.to_string())?;
        request.words("main").map(|words| words.join(" "))
    }

    #[test]
    fn requests_are_command_lines() {
        let cases = [
            (r#"{"job":"backup"}"#, "backup --cluster=main"),
            (r#"{"job":"backup","kind":"logical","type":"full"}"#, "backup --kind=logical --type=full --cluster=main"),
            (r#"{"job":"expire","repo":"second"}"#, "expire --yes --repo=second --cluster=main"),
            (r#"{"job":"alerts"}"#, "alert run --cluster=main"),
            (r#"{"job":"drill","backup":"random"}"#, "drill --backup=random --cluster=main"),
            (
                r#"{"job":"restore","to":"/r","target_time":"2026-01-02T03:04:05Z"}"#,
                "restore --to=/r --target-time=2026-01-02T03:04:05Z --yes --cluster=main",
            ),
            (r#"{"job":"recover","reason":"--help\nme"}"#, "recover --reason=--helpme --yes --cluster=main"),
            (
                r#"{"job":"recover","target_time":"2026-01-02T03:04:05Z"}"#,
                "recover --target-time=2026-01-02T03:04:05Z --yes --cluster=main",
            ),
            (r#"{"job":"acknowledge","alert":"20260102-030405-ab"}"#, "alert ack 20260102-030405-ab --cluster=main"),
        ];
        for (json, expected) in cases {
            assert_eq!(words(json).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_value_becomes_no_word() {
        for json in [
            r#"{"job":"demo"}"#,
            r#"{"job":"backup","shell":"x"}"#,
            r#"{"job":"delete","backup":"--last"}"#,
            r#"{"job":"delete","backup":"latest"}"#,
            r#"{"job":"verify","backup":"../x"}"#,
            r#"{"job":"expire","repo":"/etc"}"#,
            r#"{"job":"replicate","from":"s3://x","to":"b"}"#,
            r#"{"job":"restore","to":"relative"}"#,
            r#"{"job":"restore","to":"/r","target_lsn":"x/y"}"#,
            r#"{"job":"restore","to":"/r","target_lsn":"0/1","target_name":"p"}"#,
            r#"{"job":"recover","target_lsn":"0/1","target_name":"p"}"#,
            r#"{"job":"acknowledge","alert":"--help"}"#,
            r#"{"job":"acknowledge","alert":"../x"}"#,
        ] {
            assert!(words(json).is_err(), "{json}: {:?}", words(json));
        }
        assert!(Request::Check {}.words("../main").is_err());
    }
}

//! `config check` and `config explain`: the effective value of every key and where it came from.
//!
//! Invariant: a secret appears as "(not shown)"; what is shown is what the commands use.

use serde::Serialize;
use serde_json::Value as Json;

use super::nearest::nearest;
use super::schedule::{Job, Schedule};
use super::schema::{Document, Kind};
use super::tree::Node;
use super::{Origin, Settings};
use crate::failure::{Failure, SCHEMA, escape};

/// One effective setting.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Dotted, as in the file; elements of arrays of tables as `key[0]`.
    pub key: String,
    /// `null` when nothing is set and there is no default.
    pub value: Json,
    pub origin: Origin,
}

impl Entry {
    pub fn new(key: &str, value: impl Into<Json>, origin: Origin) -> Entry {
        Entry { key: key.to_owned(), value: value.into(), origin }
    }
}

/// The answer to `config check`.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    pub schema: u32,
    pub ok: bool,
    pub files: Vec<String>,
    pub clusters: Vec<String>,
    pub repos: Vec<RepoLine>,
    pub schedules: usize,
    pub warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct RepoLine {
    pub name: String,
    pub url: String,
    pub passphrase: String,
}

/// The answer to `config explain`.
#[derive(Debug, Serialize)]
pub struct ExplainReport {
    pub schema: u32,
    pub settings: Vec<Explained>,
    /// In a process of the server: files that are not as they were when these settings were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_since: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
pub struct Explained {
    pub key: String,
    pub value: Json,
    pub origin: String,
}

impl Settings {
    pub fn check_report(&self) -> CheckReport {
        let repo = |r: &super::RepoSettings| RepoLine {
            name: r.name.clone(),
            url: r.url.to_string(),
            passphrase: r.passphrase.to_string(),
        };
        CheckReport {
            schema: SCHEMA,
            ok: true,
            files: self.texts.paths().map(|f| f.display().to_string()).collect(),
            clusters: self.clusters.keys().cloned().collect(),
            repos: self.repos.values().map(repo).collect(),
            schedules: self.schedules.len(),
            warnings: self.warnings.iter().cloned().chain(self.without_pgdata()).collect(),
        }
    }

    /// Scheduled backups of files that nobody could find.
    fn without_pgdata(&self) -> Vec<String> {
        let physical = |s: &&Schedule| s.job == Job::Backup && matches!(s.kind, None | Some(Kind::Physical));
        let lacks = |s: &&Schedule| self.clusters.get(&s.cluster).is_some_and(|c| c.pgdata.is_none());
        let say = |s: &Schedule| {
            format!(
                "schedule '{}' backs up the files of cluster '{}', and nothing says where they are: set clusters.{}.pgdata",
                s.name(),
                s.cluster,
                s.cluster
            )
        };
        self.schedules.iter().filter(physical).filter(lacks).map(say).collect()
    }

    /// Explains a key, or everything under it; `rpo` alone means that of the selected cluster. All keys for `None`.
    ///
    /// # Errors
    /// `E-CONFIG-KEY` when there is no such key, with the nearest one.
    pub fn explain(&self, key: Option<&str>) -> Result<ExplainReport, Failure> {
        let Some(key) = key else { return Ok(self.report(self.entries.iter())) };
        let of_cluster = format!("clusters.{}.{key}", self.selected_cluster.value);
        for wanted in [key, &of_cluster] {
            let mut found = self.entries.iter().filter(|entry| is_under(&entry.key, wanted)).peekable();
            if found.peek().is_some() {
                return Ok(self.report(found));
            }
        }
        let cluster = format!("clusters.{}.", self.selected_cluster.value);
        let known = self.entries.iter().flat_map(|e| [Some(e.key.as_str()), e.key.strip_prefix(&cluster)]).flatten();
        let failure = Failure::usage("E-CONFIG-KEY", format!("there is no setting '{key}'"));
        Err(match nearest(key, known) {
            Some(near) => failure.hint(format!("did you mean '{near}'?")),
            None => failure.hint("'pgark config explain' without a key shows all"),
        })
    }

    fn report<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> ExplainReport {
        let explained =
            |e: &Entry| Explained { key: e.key.clone(), value: e.value.clone(), origin: e.origin.to_string() };
        let changed = || self.texts.changed_since().iter().map(|file| file.display().to_string()).collect();
        let changed_since = self.is_handed.then(changed);
        ExplainReport { schema: SCHEMA, settings: entries.map(explained).collect(), changed_since }
    }
}

fn is_under(key: &str, wanted: &str) -> bool {
    key.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

impl CheckReport {
    pub fn to_text(&self) -> String {
        let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
        let mut lines =
            vec![format!("files      {}", list(&self.files)), format!("clusters   {}", list(&self.clusters))];
        if self.repos.is_empty() {
            lines.push("repos      none".into());
        }
        for repo in &self.repos {
            lines.push(format!("repo       {}: {}, passphrase from {}", repo.name, repo.url, repo.passphrase));
        }
        lines.push(format!("schedules  {}", self.schedules));
        lines.extend(self.warnings.iter().map(|w| format!("WARNING: {w}")));
        lines.push("the configuration is correct".into());
        lines.iter().map(|line| format!("{}\n", escape(line))).collect()
    }
}

impl ExplainReport {
    pub fn to_text(&self) -> String {
        let line = |s: &Explained| {
            let value = match &s.value {
                Json::Null => "(not set)".to_owned(),
                Json::String(text) => text.clone(),
                other => other.to_string(),
            };
            format!("{}\n", escape(&format!("{} = {value}  [{}]", s.key, s.origin)))
        };
        self.settings.iter().map(line).collect()
    }
}

/// Every setting of the files, with defaults where they say nothing.
pub(super) fn entries(document: &Document, tree: &Node) -> Result<Vec<Entry>, Failure> {
    let json = serde_json::to_value(document)
        .map_err(|error| Failure::failed("E-INTERNAL", format!("the settings cannot be shown: {error}")))?;
    let mut entries = Vec::new();
    collect(&json, &mut Vec::new(), tree, &mut entries);
    Ok(entries)
}

fn collect(value: &Json, path: &mut Vec<String>, tree: &Node, entries: &mut Vec<Entry>) {
    match value {
        Json::Object(fields) => {
            for (key, value) in fields {
                path.push(key.clone());
                collect(value, path, tree, entries);
                path.pop();
            }
        }
        Json::Array(items) if items.iter().any(Json::is_object) => {
            for (index, value) in items.iter().enumerate() {
                path.push(index.to_string());
                collect(value, path, tree, entries);
                path.pop();
            }
        }
        scalar => {
            let segments: Vec<&str> = path.iter().map(String::as_str).collect();
            let at = tree.find(&segments).and_then(|node| node.at.clone());
            let origin = at.map_or(Origin::Default, Origin::File);
            entries.push(Entry { key: shown_key(&segments), value: scalar.clone(), origin });
        }
    }
}

/// The key as the user writes it: libpq's keywords stand directly under the cluster.
fn shown_key(path: &[&str]) -> String {
    let mut key = String::new();
    for (depth, segment) in path.iter().enumerate() {
        let under_cluster = depth == 2 && path.first() == Some(&"clusters");
        if under_cluster && *segment == "libpq" {
            continue;
        }
        let is_name = depth == 1 && matches!(path.first(), Some(&"repos" | &"clusters"));
        if depth > 0 && !is_name && segment.parse::<usize>().is_ok() {
            key.push_str(&format!("[{segment}]"));
            continue;
        }
        if !key.is_empty() {
            key.push('.');
        }
        key.push_str(segment);
    }
    key
}

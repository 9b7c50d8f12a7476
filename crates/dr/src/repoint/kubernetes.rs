//! A ConfigMap or a Secret, through `kubectl`. Values go through its standard input, never into its arguments.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::file::hash;
use super::{Edit, Format, Stands, edited};
use crate::program::{self, Ended};

const KEPT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Of an encoded value.
const QUOTED_BYTES: usize = 8;

/// Which object, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// `configmap/NAME`, `secret/NAME`.
    pub name: String,
    pub namespace: Option<String>,
    pub entries: Vec<Entry>,
    pub within: Duration,
    /// Variables of the environment that `kubectl` does not get.
    pub hidden: Vec<&'static str>,
}

/// One entry of its data: a value, or a file with values in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// None: the whole entry is the value, and the path of its one edit is empty.
    pub format: Option<Format>,
    pub edits: Vec<Edit>,
}

/// What was done, for the way back. The values are in `kept` alone, a file that only its owner can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Patched {
    kept: PathBuf,
    before: String,
    after: String,
}

/// Entries as the object has them: those of a Secret are base64.
type Data = BTreeMap<String, String>;

impl Object {
    fn is_secret(&self) -> bool {
        self.name.to_ascii_lowercase().starts_with("secret")
    }

    fn argv(&self, words: &[&str]) -> Vec<String> {
        let namespace = self.namespace.iter().map(|n| format!("--namespace={n}"));
        let words = words.iter().map(|w| (*w).to_owned());
        std::iter::once("kubectl".to_owned())
            .chain(namespace)
            .chain(words)
            .chain(["--".to_owned(), self.name.clone()])
            .collect()
    }

    fn failed(&self, what: &str, why: &str) -> EngineError {
        EngineError::failed(
            "E-REPOINT-KUBERNETES",
            format!("{} could not be {what}: {why}", self.name),
            "look at [clusters.NAME.recover.repoint], and whether kubectl may get and patch it",
        )
    }

    /// The entries that are meant, and the version of the object.
    fn read(&self, ctx: &Ctx) -> Result<(Data, Option<String>)> {
        let ended = program::run(&self.argv(&["get", "--output=json"]), &self.hidden, self.within, ctx);
        ctx.check_cancelled()?;
        if !ended.succeeded() {
            return Err(self.failed("read", &self.said(&ended, &Data::new())));
        }
        let object: Value =
            serde_json::from_slice(&ended.stdout).map_err(|_| self.failed("read", "the answer is not JSON"))?;
        let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
        let entry = |entry: &Entry| {
            let value = object.get("data").and_then(|d| d.get(&entry.name)).and_then(Value::as_str);
            let missing = || self.failed("read", &format!("it has no entry {:?} that is text", entry.name));
            Ok((entry.name.clone(), value.ok_or_else(missing)?.to_owned()))
        };
        Ok((self.entries.iter().map(entry).collect::<Result<_>>()?, version))
    }

    fn changed(&self, old: &Data) -> Result<Data> {
        let mut new = Data::new();
        for entry in &self.entries {
            let raw = old.get(&entry.name).map_or("", String::as_str);
            let text = if self.is_secret() { self.decoded(raw)? } else { raw.to_owned() };
            let text = match (entry.format, entry.edits.as_slice()) {
                (Some(format), edits) => edited(format, &text, edits)?,
                (None, edits) => edits.iter().try_fold(text, |text, edit| edit.new.of(&text))?,
            };
            new.insert(entry.name.clone(), if self.is_secret() { STANDARD.encode(text) } else { text });
        }
        Ok(new)
    }

    fn decoded(&self, raw: &str) -> Result<String> {
        let bytes = STANDARD.decode(raw).map_err(|_| self.failed("read", "an entry is not base64"))?;
        String::from_utf8(bytes).map_err(|_| self.failed("read", "an entry is not UTF-8"))
    }

    pub(super) fn plan(&self, kept: &Path, ctx: &Ctx) -> Result<Patched> {
        let (old, _) = self.read(ctx)?;
        let new = self.changed(&old)?;
        Ok(Patched { kept: kept.to_owned(), before: print(&old), after: print(&new) })
    }

    pub(super) fn turn(&self, planned: &Patched, ctx: &Ctx) -> Result<()> {
        let (old, version) = self.read(ctx)?;
        if print(&old) != planned.before {
            return Err(self.changed_by_somebody(planned));
        }
        keep(&planned.kept, &old)?;
        self.patch(&self.changed(&old)?, version, ctx)
    }

    pub(super) fn stands(&self, planned: &Patched, ctx: &Ctx) -> Result<Stands> {
        let now = print(&self.read(ctx)?.0);
        Ok(match (now == planned.after, now == planned.before) {
            (true, _) => Stands::New,
            (_, true) => Stands::Old,
            _ => Stands::Other(format!("{} was changed by somebody else", self.name)),
        })
    }

    pub(super) fn take_back(&self, planned: &Patched, ctx: &Ctx) -> Result<()> {
        let (now, version) = self.read(ctx)?;
        if print(&now) == planned.before {
            return Ok(());
        }
        let old = kept(&planned.kept)?;
        if print(&now) != planned.after || print(&old) != planned.before {
            return Err(self.changed_by_somebody(planned));
        }
        self.patch(&old, version, ctx)?;
        match print(&self.read(ctx)?.0) == planned.before {
            true => Ok(()),
            false => Err(self.failed("put back", "it was told so, and is not as it was")),
        }
    }

    /// Only when it is still the one that was read.
    fn patch(&self, data: &Data, version: Option<String>, ctx: &Ctx) -> Result<()> {
        let patch = json!({"metadata": {"resourceVersion": version}, "data": data});
        let argv = self.argv(&["patch", "--type=merge", "--patch-file=/dev/stdin"]);
        let ended = program::run_told(&argv, &self.hidden, self.within, patch.to_string().into_bytes(), ctx);
        ctx.check_cancelled()?;
        if ended.succeeded() { Ok(()) } else { Err(self.failed("changed", &self.said(&ended, data))) }
    }

    /// What `kubectl` said. Of a Secret: its standard output is the object, and a server that refuses a patch may quote it.
    fn said(&self, ended: &Ended, data: &Data) -> String {
        if !self.is_secret() {
            return ended.told();
        }
        let told = ended.complained();
        if data.values().any(|value| quotes(&told, value)) {
            return format!("{}; what it said quotes an entry, and is not repeated", ended.how);
        }
        told
    }

    fn changed_by_somebody(&self, planned: &Patched) -> EngineError {
        EngineError::refused(
            "E-REPOINT-CHANGED",
            format!("{} was changed by somebody else; how it was before is in {}", self.name, planned.kept.display()),
            "compare the two, and put right what is wrong",
        )
    }
}

/// Whether a part of the value is in the text that is long enough to be no coincidence.
fn quotes(text: &str, value: &str) -> bool {
    if value.len() <= QUOTED_BYTES {
        return !value.is_empty() && text.contains(value);
    }
    let mut parts = (0..text.len()).filter_map(|at| text.get(at..at + QUOTED_BYTES));
    parts.any(|part| value.contains(part))
}

fn print(data: &Data) -> String {
    let all: Vec<String> =
        data.iter().map(|(name, value)| format!("{}:{name}{}:{value}", name.len(), value.len())).collect();
    hash(&all.concat())
}

/// What an earlier try has kept is the same, or nothing is overwritten.
fn keep(path: &Path, data: &Data) -> Result<()> {
    let failed = |e| EngineError::file("writing", path, e);
    match kept(path) {
        Ok(there) if there == *data => return Ok(()),
        // One that was cut off is of no use to anybody.
        _ => {}
    }
    let text = serde_json::to_vec(data).map_err(|e| failed(e.into()))?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)
}

fn kept(path: &Path) -> Result<Data> {
    let failed = |e| EngineError::file("reading", path, e);
    let mut text = vec![];
    std::fs::File::open(path).and_then(|f| f.take(KEPT_BYTES_MAX).read_to_end(&mut text)).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::super::{New, Target};
    use super::*;

    #[test]
    fn entries_of_a_secret_change_and_come_back() {
        let to = New::Connection(Target { host: Some("db-2".into()), port: Some(5433), database: None });
        let edit = |path: &[&str]| Edit { path: path.iter().map(|w| (*w).to_owned()).collect(), new: to.clone() };
        let entry = |name: &str, format, edits| Entry { name: name.into(), format, edits };
        let secret = Object {
            name: "secret/app".into(),
            namespace: None,
            entries: vec![
                entry("url", None, vec![edit(&[])]),
                entry("appsettings.json", Some(Format::Json), vec![edit(&["Db", "Url"])]),
            ],
            within: Duration::from_secs(10),
            hidden: vec![],
        };
        let file = "{\n  // here\n  \"Db\": { \"Url\": \"Host=a;Port=1;Password=x\" }\n}\n";
        let old = Data::from([
            ("url".to_owned(), STANDARD.encode("postgres://u:p@a:1/d")),
            ("appsettings.json".to_owned(), STANDARD.encode(file)),
        ]);
        let new = secret.changed(&old).expect("changed");
        let decoded = |name: &str| secret.decoded(&new[name]).expect("text");
        assert_eq!(decoded("url"), "postgres://u:p@db-2:5433/d");
        assert_eq!(decoded("appsettings.json"), file.replace("Host=a;Port=1", "Host=db-2;Port=5433"));
        let dir = pgark_testkit::Scratch::new("secret");
        let path = dir.path().join("kept");
        keep(&path, &old).expect("kept");
        keep(&path, &old).expect("and once more");
        assert_eq!(kept(&path).expect("there"), old);
        assert_ne!(print(&old), print(&new));
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).expect("there")) & 0o777, 0o600);
        // Neither the arguments nor what is planned holds a value.
        let planned = Patched { kept: path, before: print(&old), after: print(&new) };
        let told = format!("{:?} {}", secret.argv(&["get"]), serde_json::to_string(&planned).expect("JSON"));
        assert!(!told.contains(new["url"].as_str()) && !told.contains("db-2"), "{told}");
    }

    #[test]
    fn what_is_told_of_a_secret_quotes_nothing_of_it() {
        let object = |name: &str| Object {
            name: name.into(),
            namespace: None,
            entries: vec![],
            within: Duration::from_secs(10),
            hidden: vec![],
        };
        let data = Data::from([("url".to_owned(), STANDARD.encode("postgres://u:hunter2@a:1/d"))]);
        let said = |name: &str, stdout: &str, stderr: &str| {
            let (stdout, stderr) = (stdout.as_bytes().to_vec(), stderr.as_bytes().to_vec());
            let how = crate::program::How::Exited(1);
            object(name).said(&Ended { how, stdout, stderr, took: Duration::ZERO }, &data)
        };
        let forbidden = "Error from server (Forbidden): secrets \"app\" is forbidden";
        assert!(said("secret/app", "", forbidden).ends_with("is forbidden"));
        assert!(!said("secret/app", &data["url"], "").contains(&data["url"]));
        for quoted in [data["url"].as_str(), &data["url"][3..14]] {
            let told = said("secret/app", "", &format!("illegal base64: ...|{quoted}|..."));
            assert_eq!(told, "exit code 1; what it said quotes an entry, and is not repeated");
            assert!(said("configmap/app", "", quoted).contains(quoted), "nothing of it is secret");
        }
    }
}

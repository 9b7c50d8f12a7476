//! The audit trail: who tried what, and what came of it. One journal per cluster and one of the repository itself, each a chain
//! of small sealed objects with numbers.
//!
//! Invariant: a record holds the hash of the one before it, and its number is taken by creating it. So no record can be changed,
//! exchanged or taken out of the middle unseen by who holds no key; that the end is missing is seen by who remembers a head.
//! The hash is of what a record says and not of its stored bytes, so sealing it anew changes nothing.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crypto::{Form, ObjectKind};
use crate::error::{RepoError, Result};
use crate::limits::{AUDIT_BYTES_MAX, AUDIT_RETRIES};
use crate::names::{self, ClusterName};
use crate::repository::Repository;
use crate::store::{ObjectName, StoreError};
use crate::stream::{Sink, Source, StreamReader, StreamWriter, read_facts};

mod check;
pub use check::{Checked, Fault, check};

pub const SCHEMA: u32 = 1;

/// Whose journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum JournalName {
    /// Of what concerns all clusters, such as keys.
    Repository,
    Cluster(ClusterName),
}

/// Which no cluster can be called.
const OF_REPOSITORY: &str = "@";

impl JournalName {
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            OF_REPOSITORY => Ok(JournalName::Repository),
            name => ClusterName::parse(name).map(JournalName::Cluster),
        }
    }
}

impl fmt::Display for JournalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JournalName::Repository => f.write_str(OF_REPOSITORY),
            JournalName::Cluster(name) => name.fmt(f),
        }
    }
}

impl TryFrom<String> for JournalName {
    type Error = RepoError;
    fn try_from(text: String) -> Result<Self> {
        JournalName::parse(&text)
    }
}

impl From<JournalName> for String {
    fn from(name: JournalName) -> String {
        name.to_string()
    }
}

/// Who ran a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    pub user: String,
    pub uid: u32,
    /// Who became this user by sudo, as sudo says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    pub host: String,
    pub pid: u32,
    pub program: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// Written before anything is done.
    Attempt {
        command: String,
        /// Without secrets.
        arguments: Vec<String>,
    },
    End {
        /// Id of the event of its beginning.
        attempt: String,
        command: String,
        exit_code: u8,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// Ids of what was made, removed or read, each with what it is.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        about: Vec<(String, String)>,
        took_ms: u64,
    },
    /// The cluster has a writer: from here on it can go on with the chain.
    Writer,
    /// The events of another copy's journal are here, up to where that one ended then.
    Copied { head: Head },
    /// Records before this number are removed, since they are old.
    Shortened {
        first: u64,
        /// Hash of the last of those.
        before: String,
    },
}

/// What happened. The same event has the same id in every repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: String,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    pub who: Who,
    #[serde(flatten)]
    pub what: What,
}

impl Event {
    pub fn new(at: Timestamp, cluster: Option<String>, who: Who, what: What) -> Result<Self> {
        let mut random = [0; 8];
        crate::crypto::fill_random(&mut random)?;
        let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
        let id = format!("{}-{}", utc.strftime("%Y%m%d-%H%M%S"), crate::crypto::hex(&random));
        Ok(Event { id, at, cluster, who, what })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub journal: JournalName,
    /// Random, the same in all records of a chain.
    pub chain: String,
    /// From 1.
    pub number: u64,
    /// Hash of the record before; empty in the first.
    pub previous: String,
    pub event: Event,
}

/// Where a chain ends, or ended once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub journal: JournalName,
    pub chain: String,
    pub number: u64,
    /// Of the record with that number.
    pub hash: String,
}

/// A record as it was read.
pub struct Opened {
    pub record: Record,
    pub hash: String,
    /// Bytes it takes.
    pub size: u64,
    form: Form,
}

impl Opened {
    pub fn head(&self) -> Head {
        let Record { journal, chain, number, .. } = &self.record;
        Head { journal: journal.clone(), chain: chain.clone(), number: *number, hash: self.hash.clone() }
    }
}

fn hash_of(text: &[u8]) -> String {
    blake3::hash(text).to_hex().to_string()
}

/// All that lie in the repository, the repository's own first.
pub fn journals(repo: &Repository) -> Result<Vec<JournalName>> {
    let dirs = repo.store().list_dirs(names::AUDIT)?;
    let mut all: Vec<JournalName> = dirs.iter().filter_map(|dir| JournalName::parse(dir).ok()).collect();
    all.sort();
    Ok(all)
}

/// One journal of a repository.
pub struct Journal<'a> {
    repo: &'a Repository,
    name: JournalName,
}

impl<'a> Journal<'a> {
    pub fn new(repo: &'a Repository, name: JournalName) -> Self {
        Journal { repo, name }
    }

    pub fn name(&self) -> &JournalName {
        &self.name
    }

    pub fn object(&self, number: u64) -> ObjectName {
        names::audit_record(&self.name, number)
    }

    /// The numbers that are there, ascending.
    pub fn numbers(&self) -> Result<Vec<u64>> {
        self.numbers_below(&names::audit_journal(&self.name))
    }

    fn numbers_below(&self, prefix: &str) -> Result<Vec<u64>> {
        let mut found = vec![];
        self.repo.store().list(prefix, &mut |stat| {
            found.extend(names::audit_number(&stat.name));
            Ok(())
        })?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// What lies among the records and is none. Of the repository's journal, also what lies beside all journals.
    pub(super) fn strange(&self) -> Result<Vec<ObjectName>> {
        let mut found = vec![];
        if self.name == JournalName::Repository {
            self.repo.store().list(names::AUDIT, &mut |stat| {
                found.extend((!names::is_below_a_journal(&stat.name)).then(|| stat.name.clone()));
                Ok(())
            })?;
        }
        self.repo.store().list(&names::audit_journal(&self.name), &mut |stat| {
            found.extend(names::audit_number(&stat.name).is_none().then(|| stat.name.clone()));
            Ok(())
        })?;
        Ok(found)
    }

    /// The end of the chain. Only names and one object are looked at.
    pub fn head(&self) -> Result<Option<Head>> {
        Ok(self.end()?.map(|(head, _)| head))
    }

    /// Also whether a writer can go on from there.
    fn end(&self) -> Result<Option<(Head, Form)>> {
        let dir = names::audit_journal(&self.name);
        let mut dirs = self.repo.store().list_dirs(&dir)?;
        // One that is just being made, or was left behind, holds nothing.
        while let Some(last) = dirs.pop() {
            if let Some(number) = self.numbers_below(&format!("{dir}/{last}"))?.pop() {
                return self.end_at(number).map(Some);
            }
        }
        Ok(None)
    }

    /// By what everybody may read of it who may append.
    fn end_at(&self, number: u64) -> Result<(Head, Form)> {
        if self.repo.keys().writes_only().is_none() {
            let opened = self.read(number)?;
            return Ok((opened.head(), opened.form));
        }
        let name = self.object(number);
        let source = Source::object(self.repo.store().clone(), &name)?;
        let facts = read_facts(self.repo.keys(), ObjectKind::Audit, &name, source)?;
        let head: Head = serde_json::from_slice(&facts).map_err(|e| RepoError::corrupt(&name, e))?;
        self.check_place(&name, number, &head.journal, head.number)?;
        Ok((head, Form::Writer))
    }

    fn check_place(&self, name: &ObjectName, number: u64, journal: &JournalName, says: u64) -> Result<()> {
        match *journal == self.name && says == number {
            true => Ok(()),
            false => Err(RepoError::corrupt(name, format!("it says that it is record {says} of journal {journal}"))),
        }
    }

    pub fn read(&self, number: u64) -> Result<Opened> {
        let name = self.object(number);
        let mut reader = StreamReader::open(self.repo.store().clone(), self.repo.keys(), ObjectKind::Audit, &name)?;
        let text = reader.read_to_end(AUDIT_BYTES_MAX)?;
        let record: Record = serde_json::from_slice(&text).map_err(|e| RepoError::corrupt(&name, e))?;
        if record.schema != SCHEMA {
            return Err(RepoError::Unsupported { object: name.to_string(), found: record.schema, known: SCHEMA });
        }
        self.check_place(&name, number, &record.journal, record.number)?;
        let form = if reader.facts().is_some() { Form::Writer } else { Form::Readers };
        let opened = Opened { record, hash: hash_of(&text), size: reader.fingerprint().size, form };
        if let Some(facts) = reader.facts() {
            let told: Head = serde_json::from_slice(facts).map_err(|e| RepoError::corrupt(&name, e))?;
            if told != opened.head() {
                return Err(RepoError::corrupt(&name, "it says something else to the writer of its cluster"));
            }
        }
        Ok(opened)
    }

    /// Appends an event; durable when this returns. `after` is where the chain is believed to end.
    pub fn append(&self, event: &Event, after: Option<&Head>) -> Result<Head> {
        let mut end = match after {
            Some(head) => Some((head.clone(), Form::Readers)),
            None => self.end()?,
        };
        for _ in 0..AUDIT_RETRIES {
            let (chain, number, previous) = match &end {
                Some((head, _)) => (head.chain.clone(), head.number.saturating_add(1), head.hash.clone()),
                None => {
                    let mut random = [0; 16];
                    crate::crypto::fill_random(&mut random)?;
                    (crate::crypto::hex(&random), 1, String::new())
                }
            };
            let record =
                Record { schema: SCHEMA, journal: self.name.clone(), chain, number, previous, event: event.clone() };
            // Who knows of no writer does not lock it out.
            let before = end.as_ref().map_or(Form::Readers, |(_, form)| *form);
            match self.put(&record, before) {
                // Somebody else was faster; theirs comes first.
                Err(e) if e.is_already_exists() => end = Some(self.end_at(number)?),
                other => return other,
            }
        }
        let what = format!("journal {}", self.name);
        Err(RepoError::Busy { what, holder: "others who append to it all the time".into() })
    }

    /// For a cluster that has a writer: makes it able to go on with the chain. Once more changes nothing.
    pub fn open_to_writer(&self, event: impl FnOnce() -> Result<Event>) -> Result<()> {
        match self.end()? {
            Some((head, Form::Readers)) => self.append(&event()?, Some(&head)).map(drop),
            Some((_, Form::Writer)) | None => Ok(()),
        }
    }

    fn put(&self, record: &Record, before: Form) -> Result<Head> {
        let name = self.object(record.number);
        let form = match before {
            Form::Readers => self.repo.keys().form_of_new(&name),
            Form::Writer => Form::Writer,
        };
        let text = serde_json::to_vec(record).map_err(|e| RepoError::corrupt(&name, e))?;
        if text.len() > AUDIT_BYTES_MAX {
            return Err(RepoError::Invalid { what: "audit record", value: format!("{} bytes", text.len()) });
        }
        let head = Head {
            journal: record.journal.clone(),
            chain: record.chain.clone(),
            number: record.number,
            hash: hash_of(&text),
        };
        let memory = Sink::Memory(Vec::new());
        let compression = crate::codec::Compression::DEFAULT;
        let mut w = StreamWriter::new_in(form, self.repo.keys(), ObjectKind::Audit, &name, memory, compression)?;
        if w.has_facts() {
            w.facts(&serde_json::to_vec(&head).map_err(|e| RepoError::corrupt(&name, e))?)?;
        }
        w.write(&text)?;
        let Sink::Memory(sealed) = w.seal()?.0 else { unreachable!("sealed into memory") };
        self.repo.store().put_new(&name, &sealed)?;
        Ok(head)
    }

    /// Removes one with all of its seals. It need not be there.
    pub fn remove(&self, number: u64) -> Result<()> {
        match self.repo.store().delete(&self.object(number)) {
            Err(e) if !StoreError::is_not_found(&e) => Err(e.into()),
            _ => Ok(()),
        }
    }
}

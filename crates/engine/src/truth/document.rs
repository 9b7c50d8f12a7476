//! A truth as a file: JSON lines, so that it can be written, read and compared as a stream, whatever the size of the database.
//!
//! ```text
//! {"pgark_truth":4, …}                                   the header
//! {"kind":"relation","name":["app","orders"],"facts":{…}}   objects, in the order of kind and of the bytes of their names
//! {"objects":…,"blake3":…}                               the end: what came before, counted and hashed
//! ```
//!
//! Invariants: a truth that is cut short, or out of order, is refused; names are kept exactly, also those that are not UTF-8. The
//! hash finds accidents; that nobody else wrote it is for the repository to prove.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cluster::ObjectKind;
use crate::error::{EngineError, Result};

/// 2 also tells of comments, of options and of finer properties, 3 of options of foreign objects in an order of their own and of what
/// collations, operators and the like are made of, 4 of subscriptions, base types, and default privileges as what they add and take
/// away; 1 to 3 are still read.
pub const SCHEMA: u32 = 4;
const SCHEMA_MIN: u32 = 1;
/// The longest line that is read. An enumeration of ten thousand labels, or the settings of a database, stay far below.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// Bytes that are text as a rule: a string, or `{"hex": …}` where they are not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Text(pub Vec<u8>);

impl Text {
    pub fn lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text(text.as_bytes().to_vec())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text(text.into_bytes())
    }
}

#[derive(Serialize, Deserialize)]
struct Hex {
    hex: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextForm {
    Plain(String),
    Hex(Hex),
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Hex { hex: pgark_repo::crypto::hex(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match TextForm::deserialize(deserializer)? {
            TextForm::Plain(text) => Ok(Text(text.into_bytes())),
            TextForm::Hex(Hex { hex }) => {
                let bytes = pgark_repo::crypto::unhex(&hex);
                bytes.map(Text).ok_or_else(|| serde::de::Error::custom("not hexadecimal"))
            }
        }
    }
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub pgark_truth: u32,
    pub database: Text,
    /// When it was taken, by the clock of the machine that took it.
    pub taken: Timestamp,
    /// 150018 is 15.18.
    pub server_version_num: u32,
    pub encoding: String,
    /// `pg_database_size` then.
    pub size_bytes: u64,
    /// Taken from a server in recovery.
    pub in_recovery: bool,
    /// Whether contents are hashed.
    pub hashed: bool,
    /// It tells of parts of the database, and nothing of the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Tells servers apart that hash differently.
    pub probe: String,
}

impl Header {
    pub fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }
}

/// One object of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub kind: ObjectKind,
    pub name: Vec<Text>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Text>,
}

impl Object {
    pub fn fact(&self, name: &str) -> Option<&Text> {
        self.facts.get(name)
    }

    /// Whether a fact is there and says so.
    pub fn says(&self, name: &str, value: &str) -> bool {
        self.fact(name).is_some_and(|text| text.0 == value.as_bytes())
    }

    pub fn place(&self) -> (ObjectKind, &[Text]) {
        (self.kind, &self.name)
    }
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub objects: u64,
    pub tables: u64,
    pub rows: u64,
    /// Of the rows' texts; 0 when they were not hashed.
    pub text_bytes: u64,
    pub duration_ms: u64,
    /// Of all lines before this one.
    pub blake3: String,
}

/// Writes a truth. Without `finish` it is not one.
pub struct TruthWriter<W: Write> {
    to: W,
    hasher: blake3::Hasher,
}

impl<W: Write> TruthWriter<W> {
    pub fn begin(to: W, header: &Header) -> Result<Self> {
        let mut writer = TruthWriter { to, hasher: blake3::Hasher::new() };
        writer.line(header)?;
        Ok(writer)
    }

    pub fn object(&mut self, object: &Object) -> Result<()> {
        self.line(object)
    }

    /// `end.blake3` is filled in here.
    pub fn finish(mut self, end: End) -> Result<W> {
        let blake3 = self.hasher.finalize().to_hex().to_string();
        self.line(&End { blake3, ..end })?;
        self.to.flush().map_err(failed)?;
        Ok(self.to)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|e| {
            EngineError::failed("E-TRUTH-WRITE", format!("the truth cannot be written as JSON: {e}"), "")
        })?;
        line.push(b'\n');
        if line.len() as u64 > LINE_BYTES_MAX {
            return Err(EngineError::failed(
                "E-TRUTH-WRITE",
                format!("an object of the database takes {} bytes to describe", line.len()),
                "look for a very long list of privileges or settings",
            ));
        }
        self.hasher.update(&line);
        self.to.write_all(&line).map_err(failed)
    }
}

fn failed(e: std::io::Error) -> EngineError {
    EngineError::failed("E-TRUTH-WRITE", format!("the truth cannot be written: {e}"), "is there room for it?")
}

/// Reads a truth as a stream.
pub struct TruthReader<R: BufRead> {
    from: R,
    header: Header,
    hasher: blake3::Hasher,
    objects: u64,
    last: Option<(ObjectKind, Vec<Text>)>,
    end: Option<End>,
}

impl<R: BufRead> TruthReader<R> {
    pub fn open(mut from: R) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        let line = line(&mut from)?.ok_or_else(|| bad("it is empty"))?;
        let version: Version = serde_json::from_slice(&line).map_err(|_| bad("it does not begin like one"))?;
        if !(SCHEMA_MIN..=SCHEMA).contains(&version.pgark_truth) {
            return Err(EngineError::failed(
                "E-TRUTH-VERSION",
                format!(
                    "the truth is of version {}, this program reads versions {SCHEMA_MIN} to {SCHEMA}",
                    version.pgark_truth
                ),
                "use a newer pgark",
            ));
        }
        let header = serde_json::from_slice(&line).map_err(|e| bad(&format!("its first line: {e}")))?;
        hasher.update(&line);
        Ok(TruthReader { from, header, hasher, objects: 0, last: None, end: None })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next object; None at the end, when all of it was seen to be whole.
    pub fn next_object(&mut self) -> Result<Option<Object>> {
        if self.end.is_some() {
            return Ok(None);
        }
        let line = line(&mut self.from)?.ok_or_else(|| bad("it is cut short"))?;
        // Objects have a kind and the end has none.
        if let Ok(end) = serde_json::from_slice::<End>(&line) {
            let whole = end.objects == self.objects && end.blake3 == self.hasher.finalize().to_hex().as_str();
            if !whole || self::line(&mut self.from)?.is_some() {
                return Err(bad("it is not as it was written"));
            }
            self.end = Some(end);
            return Ok(None);
        }
        let object: Object =
            serde_json::from_slice(&line).map_err(|e| bad(&format!("line {}: {e}", self.objects + 2)))?;
        let place = (object.kind, object.name.clone());
        if self.last.as_ref().is_some_and(|last| *last >= place) {
            return Err(bad(&format!("line {}: it is out of order", self.objects + 2)));
        }
        self.last = Some(place);
        self.objects += 1;
        self.hasher.update(&line);
        Ok(Some(object))
    }

    /// There once `next_object` has given None.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }
}

#[derive(Deserialize)]
struct Version {
    pgark_truth: u32,
}

fn bad(why: &str) -> EngineError {
    EngineError::failed(
        "E-TRUTH-DAMAGED",
        format!("this is not a whole truth: {why}"),
        "take it again, or use another backup's",
    )
}

/// With its line feed; None at the end of the file.
fn line(from: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut line = vec![];
    from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(|e| bad(&e.to_string()))?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(bad("a line does not end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            pgark_truth: SCHEMA,
            database: Text(b"caf\xe9".to_vec()),
            taken: "2026-08-22T03:15:00Z".parse().expect("a time"),
            server_version_num: 150_018,
            encoding: "SQL_ASCII".into(),
            size_bytes: 1,
            in_recovery: false,
            hashed: true,
            partial: false,
            probe: "1:2".into(),
        }
    }

    fn object(name: &[u8]) -> Object {
        let facts = [("owner".to_owned(), Text::from("it's \"me\"\n"))].into();
        Object { kind: ObjectKind::Relation, name: vec![Text(b"s".to_vec()), Text(name.to_vec())], facts }
    }

    fn written(names: &[&[u8]]) -> Vec<u8> {
        let mut writer = TruthWriter::begin(vec![], &header()).expect("begun");
        names.iter().for_each(|name| writer.object(&object(name)).expect("written"));
        let end = End {
            objects: names.len() as u64,
            tables: 0,
            rows: 0,
            text_bytes: 0,
            duration_ms: 0,
            blake3: String::new(),
        };
        writer.finish(end).expect("finished")
    }

    fn read(bytes: &[u8]) -> Result<Vec<Object>> {
        let mut reader = TruthReader::open(bytes)?;
        let mut all = vec![];
        while let Some(object) = reader.next_object()? {
            all.push(object);
        }
        assert!(reader.end().is_some());
        Ok(all)
    }

    #[test]
    fn names_of_any_bytes_come_back_exactly() {
        let names: [&[u8]; 4] = [b"\"; drop table x", b"a\nb", b"plain", b"\xff\xfe"];
        let back = read(&written(&names)).expect("whole");
        assert_eq!(back, names.map(object));
        let bytes = written(&names);
        assert_eq!(TruthReader::open(&bytes[..]).expect("opens").header().database.0, b"caf\xe9");
    }

    #[test]
    fn a_truth_that_is_cut_changed_or_out_of_order_is_refused() {
        let whole = written(&[b"a", b"b", b"c"]);
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 1;
            // In the end line, what is not covered by the hash is a figure of the report.
            let in_end = at > whole.len() - 180;
            assert!(read(&other).is_err() || in_end, "changed at {at}");
        }
        assert!(read(&written(&[b"b", b"a"])).is_err());
        assert!(read(&written(&[b"a", b"a"])).is_err());
        assert!(read(&[&whole[..], b"{}\n"].concat()).is_err());
        let other = String::from_utf8_lossy(&whole).replace("\"pgark_truth\":4", "\"pgark_truth\":5");
        assert_eq!(TruthReader::open(other.as_bytes()).err().expect("newer").code(), "E-TRUTH-VERSION");
        let endless = vec![b'['; (LINE_BYTES_MAX + 10) as usize];
        assert!(TruthReader::open(&endless[..]).is_err());
    }
}

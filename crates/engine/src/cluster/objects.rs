//! What a database consists of, object by object, as facts that can be compared with those of another database.
//!
//! Invariants: objects come in the order of their kind and of their names' bytes, each once; a fact that may change with the
//! server's major version, because PostgreSQL prints it, is marked as such, and has a second one beside it that a dump and reload
//! does not change; what an extension made belongs to the extension
//! and is left out, but for its tables. Names are bytes.

use pgark_pg::Major;
use pgark_pg::printed::{Elements, normal_form};

use super::libpq::conninfo;
use super::objects_sql;
use super::row::Row;
use super::{ClusterError, Deadline, SnapshotSession};

/// Objects fetched from the server at a time.
const PAGE_OBJECTS: usize = 1000;
/// Of a digest: it tells accidents apart.
const DIGEST_CHARS: usize = 32;
/// Before the name of a fact: the text that is its digest, in hexadecimal.
pub(super) const PRINTED: &str = "printed_";
/// Before the name of a fact: a digest of the normal form of that text.
pub const NORMAL: &str = "normal_";

/// A connection string, in hexadecimal: told as a digest of what it says, without its secrets.
pub(super) const CONNINFO: &str = "conninfo_hexadecimal";

/// A column that says "yes" where no array constructor of the object has arrays for elements.
pub(super) const SCALARS: &str = "arrays_of_scalars";

/// In the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    Database,
    Schema,
    Extension,
    Type,
    Function,
    Relation,
    Index,
    Constraint,
    Trigger,
    Rule,
    Policy,
    /// A column that takes its values from a sequence.
    SequenceUse,
    LargeObjects,
    Other,
}

impl ObjectKind {
    pub const ALL: [ObjectKind; 14] = [
        Self::Database,
        Self::Schema,
        Self::Extension,
        Self::Type,
        Self::Function,
        Self::Relation,
        Self::Index,
        Self::Constraint,
        Self::Trigger,
        Self::Rule,
        Self::Policy,
        Self::SequenceUse,
        Self::LargeObjects,
        Self::Other,
    ];
}

/// What of an object's secrets the role can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    All,
    NoSecrets,
}

/// One object: up to three names that tell it apart, and its facts under fixed names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFacts {
    pub kind: ObjectKind,
    pub name: Vec<Vec<u8>>,
    /// Of relations and of columns that use a sequence: what `content` knows them by.
    pub key: Option<u64>,
    pub facts: Vec<(String, Vec<u8>)>,
}

/// Tells every object of the database in order. `each` may end it with an error of its own.
pub fn each_object<E: From<ClusterError>>(
    session: &SnapshotSession,
    deadline: Deadline,
    mut each: impl FnMut(ObjectFacts) -> Result<(), E>,
) -> Result<(), E> {
    let conn = session.connection();
    let role = conn.query_one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])?;
    let sight = if role.flag("rolsuper")? { Sight::All } else { Sight::NoSecrets };
    for kind in ObjectKind::ALL {
        let sql = objects_sql::of(kind, conn.major(), sight);
        // A cursor, so that neither side ever holds all of it.
        conn.query_by(&format!("DECLARE pgark_objects NO SCROLL CURSOR FOR {sql}"), &[], deadline)?;
        loop {
            let rows = conn.query_by(&format!("FETCH FORWARD {PAGE_OBJECTS} FROM pgark_objects"), &[], deadline)?;
            let last = rows.len() < PAGE_OBJECTS;
            for row in &rows {
                each(object(kind, row)?)?;
            }
            if last {
                break;
            }
        }
        conn.query_by("CLOSE pgark_objects", &[], deadline)?;
    }
    Ok(())
}

fn object(kind: ObjectKind, row: &Row) -> Result<ObjectFacts, ClusterError> {
    let mut object = ObjectFacts { kind, name: vec![], key: None, facts: vec![] };
    let of_scalars = row.columns().iter().zip(row.values()).any(|(column, value)| column == SCALARS && value.is_some());
    let elements = if of_scalars { Elements::Scalars } else { Elements::Unknown };
    for (column, value) in row.columns().iter().zip(row.values()) {
        let value = value.clone().unwrap_or_default();
        match column.as_str() {
            "id1" | "id2" | "id3" => object.name.push(value),
            SCALARS => {}
            "key" => object.key = Some(row.parse("key")?),
            // What does not apply is NULL; that a fact is missing says the same.
            _ if value.is_empty() => {}
            CONNINFO => object.facts.push(connection(&value)?),
            fact if fact.starts_with(PRINTED) => {
                let name = fact.trim_start_matches(PRINTED);
                object.facts.push((format!("{NORMAL}{name}"), normal_digest(&value, elements)?));
            }
            fact => object.facts.push((fact.to_owned(), value)),
        }
    }
    // Names that do not apply are empty, and only the last ones.
    while object.name.last().is_some_and(Vec::is_empty) {
        object.name.pop();
    }
    Ok(object)
}

fn normal_digest(hexadecimal: &[u8], elements: Elements) -> Result<Vec<u8>, ClusterError> {
    Ok(digest(&normal_form(&bytes_of(hexadecimal)?, elements)))
}

fn bytes_of(hexadecimal: &[u8]) -> Result<Vec<u8>, ClusterError> {
    let bytes = std::str::from_utf8(hexadecimal).ok().and_then(pgark_repo::crypto::unhex);
    bytes.ok_or_else(|| ClusterError::Unexpected { message: "a definition is not hexadecimal".to_owned() })
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    let mut digest = blake3::hash(bytes).to_hex().to_string();
    digest.truncate(DIGEST_CHARS);
    digest.into_bytes()
}

/// Where a subscription connects to, in an order of its own. What is not understood may be a secret in any part of it.
fn connection(hexadecimal: &[u8]) -> Result<(String, Vec<u8>), ClusterError> {
    let Some(mut options) = conninfo::without_secrets(&bytes_of(hexadecimal)?) else {
        return Ok((HIDDEN.to_owned(), b"yes".to_vec()));
    };
    options.sort();
    let line = |(keyword, value): &(String, Vec<u8>)| {
        [keyword.as_bytes(), b"=".as_slice(), value.as_slice(), b"\0".as_slice()].concat()
    };
    let text: Vec<u8> = options.iter().flat_map(line).collect();
    Ok(("connection".to_owned(), digest(&text)))
}

/// Facts that PostgreSQL prints or rewrites, and may write otherwise in another major version.
pub fn is_printed(fact: &str) -> bool {
    matches!(
        fact,
        "definition" | "defaults" | "bound" | "version" | "options" | "publishes" | "extension_comment" | "locale"
    )
}

/// Facts that hold options of foreign objects: truths before version 3 have these in the order in which they were given.
pub fn has_foreign_options(kind: ObjectKind, relkind_f: bool, object_type: &[u8], fact: &str) -> bool {
    match fact {
        "foreign_options" | "mapping_options" => true,
        "column_details" => relkind_f,
        "details" => kind == ObjectKind::Other && matches!(object_type, b"server" | b"foreign-data wrapper"),
        _ => false,
    }
}

/// Facts that truths of version 1 do not have.
pub fn is_of_version_2(kind: ObjectKind, fact: &str) -> bool {
    match kind {
        // Options of foreign data wrappers stood in their state then.
        ObjectKind::Other => fact != "owner" && fact != "enabled",
        _ => matches!(
            fact,
            "comment"
                | "comments"
                | "column_comments"
                | "extension_comment"
                | "column_details"
                | "column_statistics"
                | "foreign_options"
                | "replica_identity"
                | "clustered_on"
                | "owned_by"
                | "planner"
        ),
    }
}

/// That some of an object's facts could not be read.
pub const HIDDEN: &str = "options_hidden";

/// Facts that truths before version 3 do not have.
pub fn is_of_version_3(kind: ObjectKind, fact: &str) -> bool {
    match fact {
        "made_of" | "toast_options" => true,
        "template" | "icu_rules" => kind == ObjectKind::Database,
        // Of collations; expressions of extended statistics.
        "locale" | "definition" => kind == ObjectKind::Other,
        _ => false,
    }
}

/// Whether a truth of version 1 tells of objects of this type; of kind `Other`.
pub fn is_type_of_version_2(object_type: &[u8]) -> bool {
    matches!(object_type, b"user mapping" | b"system")
}

/// For the header of a truth: what hangs on the server and the database as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseState {
    pub major: Major,
    pub version_num: u32,
    pub encoding: String,
    pub size_bytes: u64,
    pub in_recovery: bool,
    /// A hash of a fixed text: servers that differ in it count other hashes for the same rows.
    pub probe: String,
}

pub fn database_state(session: &SnapshotSession) -> Result<DatabaseState, ClusterError> {
    let conn = session.connection();
    let row = conn.query_one(
        "SELECT current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS in_recovery, \
                pg_database_size(current_database()) AS size_bytes, \
                hashtextextended('pgark' COLLATE \"C\", 0)::text || ':' \
                || hashtextextended('pgark, and more than twelve bytes' COLLATE \"C\", 8117) AS probe",
        &[],
    )?;
    Ok(DatabaseState {
        major: conn.major(),
        version_num: conn.version_num(),
        encoding: row.text("encoding")?.to_owned(),
        size_bytes: row.parse("size_bytes")?,
        in_recovery: row.flag("in_recovery")?,
        probe: row.text("probe")?.to_owned(),
    })
}

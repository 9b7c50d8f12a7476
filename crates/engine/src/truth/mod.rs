//! The truth about a database at one moment: what it consists of, how many rows each table has, and, when asked for, a hash of
//! them; all from one exported snapshot. It is taken with a backup, and a restored database is compared with it.
//!
//! Invariant: what could not be read is part of the truth, with the reason; it never looks like an empty table.

mod document;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use document::{End, Header, Object, SCHEMA, Text, TruthReader, TruthWriter};

use crate::cluster::{
    Answer, ClusterError, ConnectOptions, ContentReader, DatabaseState, Deadline, ObjectFacts, ObjectKind, Reading,
    SnapshotId, SnapshotSession, Subject, Task, database_state, each_object, tasks,
};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Sessions beside each other: more do not make one server faster.
const JOBS_MAX: usize = 64;

#[derive(Debug, Clone)]
pub struct TruthOptions {
    /// Hash the contents of tables and large objects.
    pub hashes: bool,
    /// Sessions that read at the same time.
    pub jobs: usize,
    /// How long all of it may take.
    pub within: Duration,
}

/// Figures for the person who waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub objects: u64,
    /// Tables and materialised views whose rows were counted.
    pub tables: u64,
    pub rows: u64,
    /// Of the rows' texts; 0 without hashes.
    pub text_bytes: u64,
    /// Objects that could not be read, at most `EXAMPLES_MAX` by name.
    pub unread: u64,
    pub examples: Vec<String>,
    pub took: Duration,
}

pub const EXAMPLES_MAX: usize = 20;
/// Of the server's complaint about one object.
const REASON_CHARS_MAX: usize = 1000;

/// Takes the truth of one database. `each` gets the objects in the order of a truth; the header comes before them.
///
/// With a snapshot id, another session must hold it to the end; without one, a snapshot is exported and held here. Positions of
/// sequences are not part of a snapshot. They are read first, so a dump of the same snapshot that begins with this or later finds them
/// where they are or further on.
pub fn observe(
    connect: &ConnectOptions,
    database: &str,
    snapshot: Option<&SnapshotId>,
    options: &TruthOptions,
    ctx: &Ctx,
    sink: &mut dyn Sink,
) -> Result<Summary> {
    let began = Instant::now();
    let deadline = Deadline::after(options.within);
    let leader = SnapshotSession::open(connect, database, snapshot, CONNECT_TIMEOUT)?;
    leader.connection().interrupt_by(ctx.cancel_flag());
    let state = database_state(&leader)?;
    let header = header(database, &state, options, ctx);
    let tasks = tasks(&leader, Reading { hashes: options.hashes }, deadline)?;
    let answers = answer_all(connect, database, leader.id(), tasks, options, deadline, ctx)?;
    let mut summary = Summary::default();
    sink.begin(&header)?;
    let told = each_object(&leader, deadline, |facts| -> Result<()> {
        ctx.check_cancelled()?;
        let object = complete(facts, &answers, &mut summary);
        summary.objects += 1;
        sink.object(object)
    });
    wanted(ctx, told)?;
    summary.took = began.elapsed();
    Ok(summary)
}

/// Who wants to know.
pub trait Sink {
    fn begin(&mut self, header: &Header) -> Result<()>;
    fn object(&mut self, object: Object) -> Result<()>;
}

/// Takes the truth of one database into a document.
pub fn take<W: std::io::Write>(
    connect: &ConnectOptions,
    database: &str,
    snapshot: Option<&SnapshotId>,
    options: &TruthOptions,
    ctx: &Ctx,
    to: W,
) -> Result<(Summary, W)> {
    struct ToDocument<W: std::io::Write> {
        to: Option<W>,
        writer: Option<TruthWriter<W>>,
    }
    impl<W: std::io::Write> Sink for ToDocument<W> {
        fn begin(&mut self, header: &Header) -> Result<()> {
            if let Some(to) = self.to.take() {
                self.writer = Some(TruthWriter::begin(to, header)?);
            }
            Ok(())
        }

        fn object(&mut self, object: Object) -> Result<()> {
            self.writer.as_mut().map_or(Ok(()), |writer| writer.object(&object))
        }
    }
    let mut sink = ToDocument { to: Some(to), writer: None };
    let summary = observe(connect, database, snapshot, options, ctx, &mut sink)?;
    let end = End {
        objects: summary.objects,
        tables: summary.tables,
        rows: summary.rows,
        text_bytes: summary.text_bytes,
        duration_ms: u64::try_from(summary.took.as_millis()).unwrap_or(u64::MAX),
        blake3: String::new(),
    };
    let writer = sink.writer.ok_or_else(|| EngineError::failed("E-TRUTH-WRITE", "the truth was never begun", ""))?;
    Ok((summary, writer.finish(end)?))
}

fn header(database: &str, state: &DatabaseState, options: &TruthOptions, ctx: &Ctx) -> Header {
    Header {
        pgark_truth: SCHEMA,
        database: database.into(),
        taken: ctx.now(),
        server_version_num: state.version_num,
        encoding: state.encoding.clone(),
        size_bytes: state.size_bytes,
        in_recovery: state.in_recovery,
        hashed: options.hashes,
        probe: state.probe.clone(),
    }
}

type Answers = HashMap<(u8, u64), Answer>;

fn place_of(subject: Subject) -> (u8, u64) {
    match subject {
        Subject::Sequence { key } | Subject::Table { key } => (0, key),
        Subject::SequenceUse { key } => (1, key),
        Subject::LargeObjects => (2, 0),
    }
}

/// Several sessions take one task after the other; the first that fails ends them all.
fn answer_all(
    connect: &ConnectOptions,
    database: &str,
    snapshot: &SnapshotId,
    tasks: Vec<Task>,
    options: &TruthOptions,
    deadline: Deadline,
    ctx: &Ctx,
) -> Result<Answers> {
    ctx.progress.begin("read", Some(tasks.iter().map(|t| t.size_bytes).sum()));
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(Answers::with_capacity(tasks.len()));
    let failed: Mutex<Option<EngineError>> = Mutex::default();
    let work = || -> Result<()> {
        let reader = ContentReader::open(connect, database, snapshot, CONNECT_TIMEOUT)?;
        reader.session().connection().interrupt_by(ctx.cancel_flag());
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            ctx.check_cancelled()?;
            if failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                break;
            }
            let (answer, _) = reader.answer(task, deadline)?;
            answers.lock().unwrap_or_else(PoisonError::into_inner).insert(place_of(task.what), answer);
            ctx.progress.advance(task.size_bytes);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, JOBS_MAX).min(tasks.len().max(1)) {
            scope.spawn(|| {
                if let Err(e) = work() {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                }
            });
        }
    });
    ctx.progress.end();
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => wanted(ctx, Err(e)),
        None => Ok(answers.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// A statement that was interrupted fails as if it had been too slow; the wish to stop says it better.
fn wanted<T>(ctx: &Ctx, outcome: Result<T>) -> Result<T> {
    match outcome {
        Err(EngineError::Cluster(ClusterError::Timeout { .. })) => {
            ctx.check_cancelled()?;
            outcome
        }
        _ => outcome,
    }
}

/// Facts from the catalog together with what was read.
fn complete(from: ObjectFacts, answers: &Answers, summary: &mut Summary) -> Object {
    let mut facts: BTreeMap<String, Text> = from.facts.into_iter().map(|(name, value)| (name, Text(value))).collect();
    let name: Vec<Text> = from.name.into_iter().map(Text).collect();
    let answer = match from.kind {
        ObjectKind::Relation => from.key.and_then(|key| answers.get(&(0, key))),
        ObjectKind::SequenceUse => from.key.and_then(|key| answers.get(&(1, key))),
        ObjectKind::LargeObjects => answers.get(&(2, 0)),
        _ => None,
    };
    let mut put = |fact: &str, value: String| drop(facts.insert(fact.to_owned(), value.into()));
    match answer {
        None => {}
        Some(Answer::Sequence { last_value, is_called }) => {
            put("last_value", last_value.clone());
            put("is_called", if *is_called { "yes" } else { "no" }.to_owned());
        }
        Some(Answer::Behind { behind, furthest }) => {
            put("behind", if *behind { "yes" } else { "no" }.to_owned());
            furthest.iter().for_each(|furthest| put("furthest", furthest.clone()));
        }
        Some(Answer::Rows { rows, hash }) => {
            if from.kind == ObjectKind::Relation {
                put("rows", rows.to_string());
                summary.tables += 1;
                summary.rows = summary.rows.saturating_add(*rows);
            }
            if let Some(hash) = hash {
                put("hash", format!("{}:{}:{}", hash.a, hash.b, hash.text_bytes));
                summary.text_bytes = summary.text_bytes.saturating_add(hash.text_bytes);
            }
        }
        Some(Answer::Unread { reason, refused }) => {
            let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
            put("unread", reason.clone());
            put("unread_because", if *refused { "refused" } else { "failed" }.to_owned());
            summary.unread += 1;
            if summary.examples.len() < EXAMPLES_MAX {
                let shown: Vec<_> = name.iter().map(|part| part.lossy().into_owned()).collect();
                summary.examples.push(format!("{}: {reason}", shown.join(".")));
            }
        }
    }
    Object { kind: from.kind, name, facts }
}

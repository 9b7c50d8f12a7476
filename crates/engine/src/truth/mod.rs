//! The truth about a database at one moment: what it consists of, how many rows each table has, and, when asked for, a hash of
//! them; all from one exported snapshot. It is taken with a backup, and a restored database is compared with it.
//!
//! Invariant: what could not be read is part of the truth, with the reason; it never looks like an empty table.

mod document;
mod scope;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use document::{End, Header, Object, SCHEMA, Text, TruthReader, TruthWriter};
pub use scope::{Place, Scope};

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
/// Why something was not read: by choice, since that would run functions of its owner.
pub const LEFT: &str = "left";
/// Of the server's complaint about one object.
const REASON_CHARS_MAX: usize = 1000;

/// The truth of one database in the making: in two steps, so that a dump can run beside the second.
///
/// Positions of sequences are not part of a snapshot. The first step reads them, so a dump that begins after it finds them where
/// they are or further on.
pub struct Observation<'a> {
    connect: &'a ConnectOptions,
    database: &'a str,
    options: &'a TruthOptions,
    ctx: &'a Ctx,
    began: Instant,
    deadline: Deadline,
    state: DatabaseState,
    tasks: Vec<Task>,
    answers: Answers,
}

impl<'a> Observation<'a> {
    /// What the session sees is what is told; it stays open to the end.
    pub fn begin(
        session: &SnapshotSession,
        connect: &'a ConnectOptions,
        database: &'a str,
        options: &'a TruthOptions,
        ctx: &'a Ctx,
    ) -> Result<Self> {
        let began = Instant::now();
        let deadline = Deadline::after(options.within);
        session.connection().interrupt_by(ctx.cancel_flag());
        let state = database_state(session)?;
        let all = tasks(session, Reading { hashes: options.hashes }, deadline)?;
        let (sequences, tasks) = all.into_iter().partition(|t: &Task| matches!(t.what, Subject::Sequence { .. }));
        let mut new =
            Observation { connect, database, options, ctx, began, deadline, state, tasks, answers: Answers::new() };
        new.answer_all(session.id(), sequences)?;
        Ok(new)
    }

    /// Reads the rest. `sink` gets the objects in the order of a truth; the header comes before them. With a scope, nothing
    /// else is read and told.
    pub fn finish(mut self, session: &SnapshotSession, scope: Option<&Scope>, sink: &mut dyn Sink) -> Result<Summary> {
        let mut tasks = std::mem::take(&mut self.tasks);
        if let Some(scope) = scope {
            tasks.retain(|task| task.table.as_ref().is_some_and(|(schema, name)| scope.has_relation(schema, name)));
        }
        self.answer_all(session.id(), tasks)?;
        let mut summary = Summary::default();
        sink.begin(&self.header(scope.is_some()))?;
        let told = each_object(session, self.deadline, |facts| -> Result<()> {
            self.ctx.check_cancelled()?;
            let object = complete(facts, &self.answers);
            if scope.is_none_or(|scope| scope.place(&object) == Place::Inside) {
                summary.count(&object);
                sink.object(object)?;
            }
            Ok(())
        });
        wanted(self.ctx, told)?;
        summary.took = self.began.elapsed();
        Ok(summary)
    }

    fn header(&self, partial: bool) -> Header {
        let state = &self.state;
        Header {
            pgark_truth: SCHEMA,
            database: self.database.into(),
            taken: self.ctx.now(),
            server_version_num: state.version_num,
            encoding: state.encoding.clone(),
            size_bytes: state.size_bytes,
            in_recovery: state.in_recovery,
            hashed: self.options.hashes,
            partial,
            probe: state.probe.clone(),
        }
    }

    /// Several sessions take one task after the other; the first that fails ends them all.
    fn answer_all(&mut self, snapshot: &SnapshotId, tasks: Vec<Task>) -> Result<()> {
        let ctx = self.ctx;
        if tasks.is_empty() {
            return Ok(());
        }
        ctx.progress.begin("read", Some(tasks.iter().map(|t| t.size_bytes).sum()));
        let next = AtomicUsize::new(0);
        let answers = Mutex::new(std::mem::take(&mut self.answers));
        let failed: Mutex<Option<EngineError>> = Mutex::default();
        let work = || -> Result<()> {
            let reader = ContentReader::open(self.connect, self.database, snapshot, CONNECT_TIMEOUT)?;
            reader.session().connection().interrupt_by(ctx.cancel_flag());
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                ctx.check_cancelled()?;
                if failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                    break;
                }
                let (answer, _) = reader.answer(task, self.deadline)?;
                answers.lock().unwrap_or_else(PoisonError::into_inner).insert(place_of(task.what), answer);
                ctx.progress.advance(task.size_bytes);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..self.options.jobs.clamp(1, JOBS_MAX).min(tasks.len()) {
                scope.spawn(|| {
                    if let Err(e) = work() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    }
                });
            }
        });
        ctx.progress.end();
        self.answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => wanted(ctx, Err(e)),
            None => Ok(()),
        }
    }
}

/// Takes the truth of one database in a snapshot of its own.
pub fn observe(
    connect: &ConnectOptions,
    database: &str,
    options: &TruthOptions,
    ctx: &Ctx,
    sink: &mut dyn Sink,
) -> Result<Summary> {
    let (session, _) = SnapshotSession::export(connect, database, CONNECT_TIMEOUT)?;
    Observation::begin(&session, connect, database, options, ctx)?.finish(&session, None, sink)
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
    options: &TruthOptions,
    ctx: &Ctx,
    to: W,
) -> Result<(Summary, W)> {
    let mut sink = DocumentSink::new(to);
    let summary = observe(connect, database, options, ctx, &mut sink)?;
    let to = sink.finish(&summary)?;
    Ok((summary, to))
}

/// Writes a document.
pub struct DocumentSink<W: std::io::Write> {
    to: Option<W>,
    writer: Option<TruthWriter<W>>,
}

impl<W: std::io::Write> DocumentSink<W> {
    pub fn new(to: W) -> Self {
        DocumentSink { to: Some(to), writer: None }
    }

    pub fn finish(self, summary: &Summary) -> Result<W> {
        let end = End {
            objects: summary.objects,
            tables: summary.tables,
            rows: summary.rows,
            text_bytes: summary.text_bytes,
            duration_ms: u64::try_from(summary.took.as_millis()).unwrap_or(u64::MAX),
            blake3: String::new(),
        };
        let none = || EngineError::failed("E-TRUTH-WRITE", "the truth was never begun", "");
        self.writer.ok_or_else(none)?.finish(end)
    }
}

impl<W: std::io::Write> Sink for DocumentSink<W> {
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

type Answers = HashMap<(u8, u64), Answer>;

fn place_of(subject: Subject) -> (u8, u64) {
    match subject {
        Subject::Sequence { key } | Subject::Table { key } => (0, key),
        Subject::SequenceUse { key } => (1, key),
        Subject::LargeObjects => (2, 0),
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
fn complete(from: ObjectFacts, answers: &Answers) -> Object {
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
        Some(Answer::Rows { rows, hash, given }) => {
            if from.kind == ObjectKind::Relation {
                put("rows", rows.to_string());
            }
            for (fact, hash) in [("hash", hash), ("hash_given", given)] {
                hash.iter().for_each(|hash| put(fact, format!("{}:{}:{}", hash.a, hash.b, hash.text_bytes)));
            }
        }
        Some(Answer::Left { reason }) => {
            put("unread", (*reason).to_owned());
            put("unread_because", LEFT.to_owned());
        }
        Some(Answer::Unread { reason, refused }) => {
            put("unread", reason.chars().take(REASON_CHARS_MAX).collect());
            put("unread_because", if *refused { "refused" } else { "failed" }.to_owned());
        }
    }
    Object { kind: from.kind, name, facts }
}

impl Summary {
    fn count(&mut self, object: &Object) {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        self.objects += 1;
        if let Some(rows) = object.fact("rows") {
            self.tables += 1;
            self.rows = self.rows.saturating_add(number(&rows.lossy()));
        }
        if let Some(hash) = object.fact("hash") {
            let bytes = hash.lossy().rsplit(':').next().map_or(0, number);
            self.text_bytes = self.text_bytes.saturating_add(bytes);
        }
        // What is left alone by choice is told where it is compared.
        if let Some(reason) = object.fact("unread").filter(|_| !object.says("unread_because", LEFT)) {
            self.unread += 1;
            if self.examples.len() < EXAMPLES_MAX {
                let shown: Vec<_> = object.name.iter().map(|part| part.lossy().into_owned()).collect();
                self.examples.push(format!("{}: {}", shown.join("."), reason.lossy()));
            }
        }
    }
}

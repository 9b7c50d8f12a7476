//! One database: a session holds a snapshot, `pg_dump` reads it, its output goes into the repository as it comes.

use std::io::Read;
use std::process::{ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use jiff::Timestamp;
use pgark_pg::dump_toc::DumpToc;
use pgark_repo::record::{DatabaseDump, KeyOutside, TruthPart};

use super::child::{self, Running};
use super::select::keys_outside;
use super::toc::TocBeginning;
use super::truth::Truth;
use super::{Dumped, Job};
use crate::cluster::{DatabaseFacts, Handover, SnapshotSession};
use crate::error::{EngineError, Result};
use crate::parts::{Finished, PartSink, component};

/// What a dump in PostgreSQL's custom format begins with.
const MAGIC: &[u8] = b"PGDMP";
const READ_BYTES: usize = 1024 * 1024;
/// Buffers between the program and who stores what it writes.
const READ_AHEAD: usize = 4;
/// How often a wait for output looks whether it should go on.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The directory of a database's parts.
pub fn path_of(database: &DatabaseFacts) -> String {
    format!("database/{}", component(database.name.as_bytes()))
}

pub fn dump_path(path: &str) -> String {
    format!("{path}/dump")
}

/// What a dump is of, as its session says.
pub(super) struct DumpOf<'a> {
    pub database: &'a DatabaseFacts,
    pub path: String,
    pub snapshot: String,
    /// By the server's clock.
    pub taken: Timestamp,
    pub size_bytes: Option<u64>,
    pub without_public: bool,
    pub handover: Handover,
}

impl<'a> DumpOf<'a> {
    fn new(
        database: &'a DatabaseFacts,
        (session, taken): (SnapshotSession, Timestamp),
        path: &str,
    ) -> Result<(Self, SnapshotSession)> {
        let size_bytes = session.database_bytes()?;
        let without_public = !session.has_public_schema()?;
        let (snapshot, handover) = (session.id().to_string(), session.connection().handover());
        Ok((DumpOf { database, path: path.to_owned(), snapshot, taken, size_bytes, without_public, handover }, session))
    }
}

pub(super) struct DumpDone<'a> {
    pub of: DumpOf<'a>,
    pub part: Finished,
    pub said: Vec<String>,
    /// Of a dump of parts.
    pub keys_outside: Vec<KeyOutside>,
    pub truth: Option<(TruthPart, Finished)>,
}

impl Job<'_> {
    pub(super) fn dump(&self, database: &DatabaseFacts, sink: &mut PartSink<'_>, stop: &AtomicBool) -> Result<Dumped> {
        let options = self.options;
        let path = path_of(database);
        self.ctx.progress.note(&format!("dumping '{}'", database.name.escape_debug()));
        let open = || SnapshotSession::export(&options.connect, &database.name, options.connect_timeout);
        let mut warnings = vec![];
        let mut done = None;
        if options.truth != Truth::None {
            let (of, session) = DumpOf::new(database, open()?, &path)?;
            done = self.dump_with_truth(of, session, sink, stop, &mut warnings)?;
        }
        let done = match done {
            Some(done) => done,
            None => {
                let (of, session) = DumpOf::new(database, open()?, &path)?;
                let (part, said, toc) = self.run_pg_dump(&of, sink, stop)?;
                session.end()?;
                DumpDone { of, part, said, keys_outside: outside(toc.as_ref()), truth: None }
            }
        };
        let DumpDone { of, part, said, keys_outside, truth } = done;
        warnings.extend(said.iter().map(|line| format!("'{}': {line}", database.name.escape_debug())));
        let (truth, truth_part) = truth.unzip();
        let facts = DatabaseDump {
            name: database.name.clone(),
            oid: database.oid,
            snapshot: of.snapshot,
            taken: of.taken,
            owner: database.owner.clone(),
            encoding: database.encoding.clone(),
            locale_provider: database.locale_provider.clone(),
            collate: database.collate.clone(),
            ctype: database.ctype.clone(),
            locale: database.locale.clone(),
            icu_rules: database.icu_rules.clone(),
            collation_version: database.collation_version.clone(),
            tablespace: database.tablespace.clone(),
            connection_limit: database.connection_limit,
            is_template: database.is_template,
            allow_connections: database.allow_connections,
            acl: database.acl.clone(),
            comment: database.comment.clone(),
            settings: database.settings.clone().unwrap_or_default(),
            without_public: of.without_public,
            size_bytes: of.size_bytes,
            dumped_by: self.server.tools.version.to_string(),
            dump_bytes: part.size(),
            // Known when it has been read back.
            entries: 0,
            table_data: 0,
            truth,
            schemas: options.schemas.clone(),
            tables: options.tables.clone(),
            keys_outside,
            path,
        };
        Ok(Dumped { facts, parts: [Some(part), truth_part].into_iter().flatten().collect(), warnings })
    }

    /// Returns the part, what the program said although it succeeded, and, where parts of the database were selected, what is in it.
    pub(super) fn run_pg_dump(
        &self,
        of: &DumpOf<'_>,
        sink: &mut PartSink<'_>,
        stop: &AtomicBool,
    ) -> Result<(Finished, Vec<String>, Option<DumpToc>)> {
        let options = self.options;
        let database = of.database;
        let mut command = child::command(&self.server.tools.dump, &of.handover, &database.name)?;
        // Not compressed: what is the same as yesterday is found by its content, and compressed by us.
        command.args(["--format=custom", "--compress=0"]);
        command.arg(format!("--snapshot={}", of.snapshot));
        command.arg(format!("--lock-wait-timeout={}", options.lock_wait.as_millis()));
        command.args(options.schemas.iter().map(|s| format!("--schema={s}")));
        command.args(options.tables.iter().map(|t| format!("--table={t}")));
        let mut toc = None;
        if !options.schemas.is_empty() || !options.tables.is_empty() {
            command.arg("--strict-names");
            toc = Some(TocBeginning::default());
        }
        command.stdout(Stdio::piped());
        let doing = format!("to dump '{}'", database.name.escape_debug());
        thread::scope(|scope| {
            let mut running = Running::start(command)?;
            let (send, receive) = bounded(READ_AHEAD);
            let stdout = running.child().stdout.take().expect("it was asked for");
            let reader = scope.spawn(move || read_all(stdout, &send));
            let mut begins_well = None;
            let mut next = || {
                let bytes = self.next(&receive, stop)?;
                if let Some(bytes) = &bytes {
                    begins_well.get_or_insert_with(|| bytes.starts_with(MAGIC));
                    toc.iter_mut().for_each(|toc| toc.push(bytes));
                }
                Ok(bytes)
            };
            // An error here ends the program, and with it the reader.
            let part = match sink.write(&dump_path(&of.path), of.taken, &mut next) {
                Ok(part) => part,
                Err(e) => {
                    drop((running, receive));
                    return Err(e);
                }
            };
            let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let said = running.finish("E-DUMP-FAILED", &doing).map_err(|e| match e.to_string() {
                // `pg_dump` has no other way to say it.
                said if said.contains("no matching schemas were found")
                    || said.contains("no matching tables were found") =>
                {
                    EngineError::refused(
                        "E-SELECT-NONE",
                        format!("nothing in '{}' has such a name: {said}", of.database.name.escape_debug()),
                        "names are patterns of pg_dump: quote what has capital letters; nothing was backed up",
                    )
                }
                _ => e,
            })?;
            read.map_err(|e| EngineError::file("reading the output of", &self.server.tools.dump, e))?;
            if begins_well != Some(true) {
                return Err(EngineError::failed(
                    "E-DUMP-EMPTY",
                    format!("pg_dump said that it succeeded {doing}, and wrote no dump ({} bytes)", part.size()),
                    "run pg_dump by hand, and look at the server's log",
                ));
            }
            let toc = toc.map(|toc| understood(toc, &of.database.name)).transpose()?;
            Ok((part, said.lines, toc))
        })
    }

    fn next(&self, receive: &Receiver<Vec<u8>>, stop: &AtomicBool) -> Result<Option<Vec<u8>>> {
        loop {
            self.ctx.check_cancelled()?;
            if stop.load(Ordering::Relaxed) {
                return Err(EngineError::Cancelled);
            }
            match receive.recv_timeout(LOOK_EVERY) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

fn understood(toc: TocBeginning, database: &str) -> Result<DumpToc> {
    toc.finish().map_err(|problem| {
        let shown = database.escape_debug();
        let what = format!("the table of contents of the dump of '{shown}' is not understood: {problem:?}");
        EngineError::failed("E-DUMP-UNREADABLE", what, "use a newer pgark")
    })
}

pub(super) fn outside(toc: Option<&DumpToc>) -> Vec<KeyOutside> {
    toc.map(keys_outside).unwrap_or_default()
}

/// Until the program closes its output, or nobody wants more.
fn read_all(mut stdout: ChildStdout, send: &Sender<Vec<u8>>) -> std::io::Result<()> {
    loop {
        let mut buffer = Vec::new();
        stdout.by_ref().take(READ_BYTES as u64).read_to_end(&mut buffer)?;
        if buffer.is_empty() || send.send(buffer).is_err() {
            return Ok(());
        }
    }
}

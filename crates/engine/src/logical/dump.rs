//! One database: a session holds a snapshot, `pg_dump` reads it, its output goes into the repository as it comes.

use std::io::Read;
use std::process::{ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use pgark_repo::record::DatabaseDump;

use super::child::{self, Running};
use super::{Dumped, Job};
use crate::cluster::{DatabaseFacts, DumpSession};
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

impl Job<'_> {
    pub(super) fn dump(&self, database: &DatabaseFacts, sink: &mut PartSink<'_>, stop: &AtomicBool) -> Result<Dumped> {
        let options = self.options;
        let session = DumpSession::open(&options.connect, &database.name, options.connect_timeout)?;
        let size_bytes = session.database_bytes()?;
        let path = path_of(database);
        self.ctx.progress.note(&format!("dumping '{}'", database.name.escape_debug()));
        let (part, said) = self.run_pg_dump(database, &session, &dump_path(&path), sink, stop)?;
        // Row counts and content hashes of this very state belong here: more parts under `path`, read with
        // `session.snapshot` (or in `session.connection()`) while the session holds it.
        let (snapshot, taken) = (session.snapshot.clone(), session.taken);
        session.end()?;
        let warnings = said.iter().map(|line| format!("'{}': {line}", database.name.escape_debug())).collect();
        let facts = DatabaseDump {
            name: database.name.clone(),
            oid: database.oid,
            path,
            snapshot,
            taken,
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
            size_bytes,
            dumped_by: self.server.tools.version.to_string(),
            dump_bytes: part.size(),
            // Known when it has been read back.
            entries: 0,
            table_data: 0,
            schemas: options.schemas.clone(),
            tables: options.tables.clone(),
        };
        Ok(Dumped { facts, parts: vec![part], warnings })
    }

    /// Returns the part, and what the program said although it succeeded.
    fn run_pg_dump(
        &self,
        database: &DatabaseFacts,
        session: &DumpSession,
        path: &str,
        sink: &mut PartSink<'_>,
        stop: &AtomicBool,
    ) -> Result<(Finished, Vec<String>)> {
        let options = self.options;
        let handover = session.connection().handover();
        let mut command = child::command(&self.server.tools.dump, &handover, &database.name)?;
        // Not compressed: what is the same as yesterday is found by its content, and compressed by us.
        command.args(["--format=custom", "--compress=0"]);
        command.arg(format!("--snapshot={}", session.snapshot));
        command.arg(format!("--lock-wait-timeout={}", options.lock_wait.as_millis()));
        command.args(options.schemas.iter().map(|s| format!("--schema={s}")));
        command.args(options.tables.iter().map(|t| format!("--table={t}")));
        if !options.schemas.is_empty() || !options.tables.is_empty() {
            command.arg("--strict-names");
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
                }
                Ok(bytes)
            };
            // An error here ends the program, and with it the reader.
            let part = match sink.write(path, session.taken, &mut next) {
                Ok(part) => part,
                Err(e) => {
                    drop((running, receive));
                    return Err(e);
                }
            };
            let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let said = running.finish("E-DUMP-FAILED", &doing)?;
            read.map_err(|e| EngineError::file("reading the output of", &self.server.tools.dump, e))?;
            if begins_well != Some(true) {
                return Err(EngineError::failed(
                    "E-DUMP-EMPTY",
                    format!("pg_dump said that it succeeded {doing}, and wrote no dump ({} bytes)", part.size()),
                    "run pg_dump by hand, and look at the server's log",
                ));
            }
            Ok((part, said.lines))
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

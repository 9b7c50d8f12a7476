//! Programs of PostgreSQL as child processes: an argument vector, no shell, an environment without libpq's variables, stderr
//! kept. None outlives the call.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::Handover;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// What libpq reads from the environment, of all versions: none of it must change what a program connects to or does there.
const LIBPQ_VARIABLES: [&str; 50] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGAPPNAME",
    "PGSSLMODE",
    "PGREQUIRESSL",
    "PGSSLCOMPRESSION",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCERTMODE",
    "PGSSLROOTCERT",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLSNI",
    "PGSSLNEGOTIATION",
    "PGSSLKEYLOGFILE",
    "PGREQUIREPEER",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
    "PGKRBSRVNAME",
    "PGGSSENCMODE",
    "PGGSSLIB",
    "PGGSSDELEGATION",
    "PGREALM",
    "PGCONNECT_TIMEOUT",
    "PGCLIENTENCODING",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
    "PGMINPROTOCOLVERSION",
    "PGMAXPROTOCOLVERSION",
    "PGDATESTYLE",
    "PGTZ",
    "PGGEQO",
    "PGLOCALEDIR",
    "PGSYSCONFDIR",
    "PGPASSFILE",
    "PGOAUTHDEBUG",
    "PGOAUTHCAFILE",
    "PSQLRC",
    "PG_COLOR",
    "PG_COLORS",
    "LANGUAGE",
];
/// How long a program that is to end may take before it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Of what a program says on stderr, the beginning and the end are kept.
const STDERR_BYTES_MAX: usize = 64 * 1024;

/// A command that reaches the database that `handover` tells of, and nothing else. The connection string stands in an
/// argument of its own; the password in the environment.
pub fn command(program: &Path, handover: &Handover, database: &str) -> Result<Command> {
    if let Some(secret) = handover.other_secrets.first() {
        return Err(EngineError::refused(
            "E-CLIENT-SECRET",
            format!(
                "{secret} can be handed to {} only on its command line, where others could read it",
                program.display()
            ),
            "use a certificate key without a passphrase that only this user can read, or another way to authenticate",
        ));
    }
    let mut command = plain(program);
    command.arg("--no-password");
    command.arg(format!("--dbname={}", handover.connection_string(database)));
    command.envs(handover.variables.iter().map(|(name, value)| (name, value)));
    if let Some(password) = &handover.password {
        command.env("PGPASSWORD", password);
    }
    Ok(command)
}

/// A command that reaches no server.
pub fn plain(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in LIBPQ_VARIABLES {
        command.env_remove(name);
    }
    // Messages are read by people everywhere, and numbers by us.
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// A running program. Dropped before its end, it is killed.
pub struct Running {
    child: Child,
    name: String,
    stderr: Option<JoinHandle<Said>>,
}

/// Lines of stderr.
#[derive(Debug, Default)]
pub struct Said {
    pub lines: Vec<String>,
}

impl Running {
    /// stdin and stdout are as the command says; stderr is collected.
    pub fn start(mut command: Command) -> Result<Self> {
        let program = command.get_program().to_owned();
        command.stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| EngineError::file("starting", Path::new(&program), e))?;
        let stderr = child.stderr.take().map(|pipe| std::thread::spawn(move || collect(pipe)));
        let name = Path::new(&program).file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned();
        Ok(Running { child, name, stderr })
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// As `wait`, and ends it when the operation is cancelled.
    pub fn wait_for(mut self, ctx: &Ctx) -> Result<(ExitStatus, Said)> {
        while self.child.try_wait().map_err(|e| EngineError::file("waiting for", Path::new(&self.name), e))?.is_none() {
            ctx.check_cancelled()?;
            std::thread::sleep(LOOK_EVERY);
        }
        self.wait()
    }

    /// Waits for its end; what it said is handed out whether it succeeded or not.
    pub fn wait(mut self) -> Result<(ExitStatus, Said)> {
        let failed = |e| EngineError::file("waiting for", Path::new(&self.name), e);
        let status = self.child.wait().map_err(failed)?;
        Ok((status, self.said()))
    }

    /// As `wait`, and whatever is not success is an error with this code.
    pub fn finish(self, code: &'static str, doing: &str) -> Result<Said> {
        let name = self.name.clone();
        let (status, said) = self.wait()?;
        if status.success() { Ok(said) } else { Err(failure(code, &name, doing, status, &said)) }
    }

    fn said(&mut self) -> Said {
        self.stderr
            .take()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stderr.is_none() {
            return;
        }
        // Asked first: `pg_restore` then ends its workers. Both fail only when it has ended by itself.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + ENDS_WITHIN;
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        drop(self.said());
    }
}

pub fn failure(code: &'static str, name: &str, doing: &str, status: ExitStatus, said: &Said) -> EngineError {
    let why = match said.lines.as_slice() {
        [] => "it said nothing".to_owned(),
        lines => lines.join("; "),
    };
    EngineError::failed(code, format!("{name} failed {doing} ({status}): {why}"), "look at the server's log, too")
}

/// Reads to the end, so that the program never waits; keeps what fits.
fn collect(mut pipe: ChildStderr) -> Said {
    let (mut kept, mut buf, mut lost) = (Vec::new(), vec![0; 8192], 0usize);
    while let Ok(n) = pipe.read(&mut buf) {
        let Some(bytes) = buf.get(..n).filter(|b| !b.is_empty()) else { break };
        let room = STDERR_BYTES_MAX.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
        lost += n - room;
    }
    let mut lines: Vec<String> =
        String::from_utf8_lossy(&kept).lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect();
    if lost > 0 {
        lines.push(format!("({lost} more bytes)"));
    }
    Said { lines }
}

/// The standard output of a short program.
pub fn output_of(mut command: Command, within: Duration) -> std::result::Result<String, String> {
    command.stdout(Stdio::piped());
    let mut running = Running::start(command).map_err(|e| e.to_string())?;
    let mut stdout = running.child().stdout.take().ok_or("it has no output")?;
    let reader = std::thread::spawn(move || {
        let mut text = vec![];
        stdout.by_ref().take(STDERR_BYTES_MAX as u64).read_to_end(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + within;
    loop {
        match running.child().try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => break,
            Some(status) => return Err(status.to_string()),
            None if Instant::now() > deadline => return Err(format!("no answer within {} s", within.as_secs())),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    let text = reader.join().map_err(|_| "its output was not read")?.map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

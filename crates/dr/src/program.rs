//! Programs of the administrator's: an argument vector, no shell, a deadline, as much of what they say as is worth keeping.
//!
//! Invariant: when `run` returns, nothing that the program started in its process group is still running, unless it was
//! asked to leave something running and ended by itself.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use pgark_engine::ctx::Ctx;
use rustix::process::{Pid, Signal, kill_process_group};

/// Kept of each of the two streams: the beginning. What follows is read and thrown away, so that the program never waits.
const KEPT_BYTES: usize = 256 * 1024;
/// Of a line that is shown.
const SHOWN_CHARS: usize = 1000;
/// How often a program is asked whether it has ended, and we whether we are to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a program that is told to end has for it before it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// How long the end of the streams is waited for: somebody who left the process group may hold them open for ever.
const STREAMS_END_WITHIN: Duration = Duration::from_millis(500);

/// What became of a program.
#[derive(Debug)]
pub struct Ended {
    pub how: How,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    Exited(i32),
    Killed(i32),
    /// It had not ended at its deadline, and was killed.
    TooLong(Duration),
    Cancelled,
    NotStarted(String),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Exited(code) => write!(f, "exit code {code}"),
            How::Killed(signal) => write!(f, "ended by signal {signal}"),
            How::TooLong(deadline) => write!(f, "not ended after {} s, killed", deadline.as_secs_f32()),
            How::Cancelled => f.write_str("killed, because the operation was cancelled"),
            How::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

impl Ended {
    pub fn succeeded(&self) -> bool {
        self.how == How::Exited(0)
    }

    /// One line for people: how it ended, and the last thing it said.
    pub fn told(&self) -> String {
        self.told_of(&[&self.stderr, &self.stdout])
    }

    /// The same of a program whose standard output nobody is to read.
    pub fn complained(&self) -> String {
        self.told_of(&[&self.stderr])
    }

    fn told_of(&self, streams: &[&Vec<u8>]) -> String {
        let said = streams.iter().find_map(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
        });
        match said {
            Some(line) => {
                let shown: String = line.chars().take(SHOWN_CHARS).collect();
                format!("{}: {}", self.how, shown.escape_debug())
            }
            None => self.how.to_string(),
        }
    }
}

/// Runs it to its end or the deadline. `hidden` are variables of the environment that it does not get.
pub fn run(argv: &[String], hidden: &[&str], deadline: Duration, ctx: &Ctx) -> Ended {
    run_with(argv, hidden, deadline, Given::Nothing, ctx)
}

/// The same for a program that gets this on its standard input.
pub fn run_told(argv: &[String], hidden: &[&str], deadline: Duration, told: Vec<u8>, ctx: &Ctx) -> Ended {
    run_with(argv, hidden, deadline, Given::Input(told), ctx)
}

/// The same for a program whose children are to go on: when it ends by itself they are left alone. They would hold our pipes
/// and die of them later, so what all of them say goes into this file, and of that nothing is told here.
pub fn run_and_leave(argv: &[String], hidden: &[&str], deadline: Duration, log: File, ctx: &Ctx) -> Ended {
    run_with(argv, hidden, deadline, Given::Log(log), ctx)
}

enum Given {
    Nothing,
    Input(Vec<u8>),
    /// For all that it and its children say.
    Log(File),
}

fn run_with(argv: &[String], hidden: &[&str], deadline: Duration, given: Given, ctx: &Ctx) -> Ended {
    let began = Instant::now();
    let ended = |how, stdout, stderr| Ended { how, stdout, stderr, took: began.elapsed() };
    let Some((name, arguments)) = argv.split_first() else {
        return ended(How::NotStarted("there is no command".into()), vec![], vec![]);
    };
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    let (log, input) = match given {
        Given::Nothing => (None, None),
        Given::Input(text) => (None, Some(text)),
        Given::Log(log) => (Some(log), None),
    };
    let leaves = log.is_some();
    match log.map(|log| log.try_clone().map(|again| (log, again))) {
        None => drop(command.stdout(Stdio::piped()).stderr(Stdio::piped())),
        Some(Ok((log, again))) => drop(command.stdout(log).stderr(again)),
        Some(Err(e)) => return ended(How::NotStarted(format!("its log: {e}")), vec![], vec![]),
    }
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    for variable in hidden {
        command.env_remove(variable);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return ended(How::NotStarted(format!("{name}: {e}")), vec![], vec![]),
    };
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        // A program that does not read it need not; the thread ends with it.
        std::thread::spawn(move || stdin.write_all(&text));
    }
    let streams = (child.stdout.take().map(keep), child.stderr.take().map(keep));
    let how = wait(&mut child, began + deadline, deadline, ctx);
    let stopped = matches!(how, How::TooLong(_) | How::Cancelled);
    if stopped || !leaves {
        // What the program left behind in its group, too.
        end_group(&mut child, stopped);
    }
    let (stdout, stderr) = (rest(streams.0), rest(streams.1));
    ended(how, stdout, stderr)
}

fn wait(child: &mut Child, until: Instant, deadline: Duration, ctx: &Ctx) -> How {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return how(status),
            Ok(None) => {}
            Err(e) => return How::NotStarted(format!("waiting for it: {e}")),
        }
        if Instant::now() >= until {
            return How::TooLong(deadline);
        }
        if ctx.check_cancelled().is_err() {
            return How::Cancelled;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn how(status: ExitStatus) -> How {
    match (status.code(), status.signal()) {
        (Some(code), _) => How::Exited(code),
        (None, signal) => How::Killed(signal.unwrap_or_default()),
    }
}

/// Asks first when it is still there, then kills. Each call fails only when everything has ended already, which is what is
/// wanted.
fn end_group(child: &mut Child, ask: bool) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    if ask {
        let _ = kill_process_group(group, Signal::TERM);
        let until = Instant::now() + ENDS_WITHIN;
        while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(LOOK_EVERY);
        }
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
}

/// Reads a stream to its end and keeps its beginning. The thread ends with the stream.
fn keep(mut stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let mut kept = vec![];
        // Of a stream that cannot be read, what was read so far is told.
        let _ = stream.by_ref().take(KEPT_BYTES as u64).read_to_end(&mut kept);
        // Nobody waits for it any more only when the stream outlived the program.
        let _ = sender.send(kept);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    receiver
}

fn rest(stream: Option<Receiver<Vec<u8>>>) -> Vec<u8> {
    match stream.map(|s| s.recv_timeout(STREAMS_END_WITHIN)) {
        Some(Ok(kept)) => kept,
        None | Some(Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline: Duration) -> Ended {
        run(&["sh", "-c", script].map(String::from), &[], deadline, &Ctx::silent())
    }

    const SECONDS: Duration = Duration::from_secs(30);

    #[test]
    fn how_it_ended_and_what_it_said_is_told() {
        let ended = sh("echo out; echo 'it is\tover' >&2; exit 3", SECONDS);
        assert_eq!((&ended.how, ended.stdout.as_slice()), (&How::Exited(3), b"out\n".as_slice()));
        assert_eq!(ended.told(), "exit code 3: it is\\tover");
        assert_eq!(sh("kill -9 $$", SECONDS).how, How::Killed(9));
        let missing = run(&["/nowhere/program".into()], &[], SECONDS, &Ctx::silent());
        assert!(matches!(&missing.how, How::NotStarted(why) if why.contains("/nowhere/program")), "{missing:?}");
        assert!(sh("exit 0", SECONDS).succeeded());
    }

    #[test]
    fn it_reads_what_it_is_told_or_does_not() {
        let cat = run_told(&["cat".into()], &[], SECONDS, b"the report".to_vec(), &Ctx::silent());
        assert_eq!((cat.how, cat.stdout.as_slice()), (How::Exited(0), b"the report".as_slice()));
        let deaf = run_told(&["true".into()], &[], SECONDS, vec![b'x'; 1 << 20], &Ctx::silent());
        assert!(deaf.succeeded(), "{deaf:?}");
    }

    #[test]
    fn what_hangs_is_ended_with_all_that_it_started() {
        let dir = pgark_testkit::Scratch::new("program");
        let pids = dir.path().join("pids");
        let script =
            format!("sleep 600 & echo $! > {0}; sleep 601 & echo $! >> {0}; trap '' TERM; wait", pids.display());
        let deadline = Duration::from_secs(3);
        let ended = sh(&script, deadline);
        assert_eq!(ended.how, How::TooLong(deadline));
        for pid in std::fs::read_to_string(&pids).expect("pids").lines() {
            gone(pid);
        }
    }

    /// What was killed may take a moment to die.
    fn gone(pid: &str) {
        pgark_testkit::wait_until("a killed process to be gone", SECONDS, || (!runs(pid)).then_some(()));
    }

    fn runs(pid: &str) -> bool {
        // A process that nobody has asked about yet is a zombie, which runs no more.
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
    }

    #[test]
    fn a_child_left_in_the_background_does_not_outlive_the_call() {
        let ended = sh("sleep 600 & echo $!", SECONDS);
        assert!(ended.succeeded() && ended.took < SECONDS, "{ended:?}");
        let pid = String::from_utf8(ended.stdout).expect("a number");
        gone(pid.trim());
    }

    #[test]
    fn a_child_that_is_to_stay_stays_and_can_go_on_talking() {
        let dir = pgark_testkit::Scratch::new("program");
        let path = dir.path().join("log");
        let argv = ["sh", "-c", "(sleep 1; echo later; sleep 600) & echo $!"].map(String::from);
        let log = File::create(&path).expect("a log");
        let ended = run_and_leave(&argv, &[], SECONDS, log, &Ctx::silent());
        assert!(ended.succeeded() && ended.stdout.is_empty(), "{ended:?}");
        pgark_testkit::wait_until("it to go on talking", SECONDS, || {
            std::fs::read_to_string(&path).ok().filter(|t| t.ends_with("later\n"))
        });
        let text = std::fs::read_to_string(&path).expect("text");
        let pid = text.lines().next().expect("a line").trim();
        assert!(runs(pid));
        // The sleep is a child of that; both are in the group that began with the shell.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let group = stat
            .rsplit(") ")
            .next()
            .and_then(|s| s.split(' ').nth(2))
            .and_then(|g| g.parse().ok())
            .and_then(Pid::from_raw);
        kill_process_group(group.expect("a group"), Signal::KILL).expect("ended");
    }

    #[test]
    fn a_flood_is_swallowed() {
        let ended = sh("head -c 50000000 /dev/zero; head -c 50000000 /dev/zero >&2; exit 4", SECONDS);
        assert_eq!((ended.how, ended.stdout.len(), ended.stderr.len()), (How::Exited(4), KEPT_BYTES, KEPT_BYTES));
    }

    #[test]
    fn a_stream_that_somebody_holds_open_is_not_waited_for() {
        let ended = sh("setsid sleep 20 & echo here", SECONDS);
        assert_eq!(ended.how, How::Exited(0));
        assert!(ended.took < Duration::from_secs(19), "{ended:?}");
    }

    #[test]
    fn cancelling_ends_it() {
        let ctx = Ctx::silent();
        ctx.cancel_flag().store(true, std::sync::atomic::Ordering::Relaxed);
        let ended = run(&["sleep", "600"].map(String::from), &[], SECONDS, &ctx);
        assert_eq!(ended.how, How::Cancelled);
    }
}

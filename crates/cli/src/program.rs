//! Runs a program of the administrator's: no shell, secrets of our own kept out of its environment, a deadline, and as
//! much output as was agreed. What it says on stderr goes where ours goes.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::secret::SECRET_VARIABLES;

/// How often a program that has closed its output is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("is empty")]
    Empty,
    #[error("cannot be started: {0}")]
    Start(std::io::Error),
    #[error("took longer than {0} s")]
    Deadline(f32),
    #[error("gave no output: {0}")]
    Output(std::io::Error),
    #[error("gave more output than is accepted")]
    TooLong,
    #[error("ended with {0}")]
    Status(ExitStatus),
}

/// Gives it `input` on its standard input and returns what it wrote, at most `limit` bytes.
pub fn run(
    argv: &[String],
    input: &[u8],
    limit: usize,
    deadline: Duration,
) -> Result<Zeroizing<Vec<u8>>, ProgramError> {
    let (name, arguments) = argv.split_first().ok_or(ProgramError::Empty)?;
    let mut command = Command::new(name);
    // Its own process group, so that the deadline also ends what it started.
    command.args(arguments).stdout(Stdio::piped()).process_group(0);
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    for variable in SECRET_VARIABLES {
        command.env_remove(variable);
    }
    let ends = Instant::now() + deadline;
    let mut child = command.spawn().map_err(ProgramError::Start)?;
    let outcome = talk(&mut child, input, limit, ends);
    if !matches!(outcome, Ok(Some(_))) {
        end_group(&mut child);
    }
    let (bytes, status) = match outcome {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return Err(ProgramError::Deadline(deadline.as_secs_f32())),
        Err(error) => return Err(ProgramError::Output(error)),
    };
    // First, because a program that is cut off at the limit also ends badly.
    let bytes = bytes.ok_or(ProgramError::TooLong)?;
    if status.success() { Ok(bytes) } else { Err(ProgramError::Status(status)) }
}

type BoundedOutput = Option<Zeroizing<Vec<u8>>>;

/// `Ok(None)` when the deadline came first.
fn talk(
    child: &mut Child,
    input: &[u8],
    limit: usize,
    ends: Instant,
) -> std::io::Result<Option<(BoundedOutput, ExitStatus)>> {
    let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
    let (sender, receiver) = mpsc::sync_channel(1);
    // Threads, because pipes cannot be given a deadline. They end when the pipes close, at the latest when the group is
    // ended.
    if let Some(stdin) = child.stdin.take() {
        let input = Zeroizing::new(input.to_vec());
        std::thread::Builder::new().name("program-input".into()).spawn(move || feed(stdin, &input))?;
    }
    std::thread::Builder::new().name("program".into()).spawn(move || {
        // The receiver is gone only after the deadline, when nobody wants the answer any more.
        let _ = sender.send(read_bounded(stdout, limit));
    })?;
    let Ok(output) = receiver.recv_timeout(ends.saturating_duration_since(Instant::now())) else {
        return Ok(None);
    };
    let output = output?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some((output, status)));
        }
        if Instant::now() >= ends {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// A program may end without reading everything: its exit code and its output are what counts.
fn feed(mut stdin: ChildStdin, input: &[u8]) {
    match stdin.write_all(input) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => tracing::debug!(target: "pgark", %error, "a program did not take its input"),
    }
}

/// Reads at most the limit; `None` when there is more.
pub fn read_bounded(source: impl Read, limit: usize) -> std::io::Result<BoundedOutput> {
    // Allocated once: a growing vector would leave copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    let take = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    source.take(take).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

/// Both calls fail only when the processes have already ended, which is what is wanted.
fn end_group(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(String::from).to_vec()
    }

    const SECONDS: Duration = Duration::from_secs(20);

    #[test]
    fn input_goes_in_and_output_comes_back_byte_for_byte() {
        let input: Vec<u8> = (0..=255).cycle().take(200_000).collect();
        let back = run(&["cat".into()], &input, input.len(), SECONDS).expect("runs");
        assert!(*back == input);
        let over = run(&["cat".into()], &input, input.len() - 1, SECONDS);
        assert!(matches!(over, Err(ProgramError::TooLong)), "{over:?}");
    }

    #[test]
    fn a_program_that_does_not_read_its_input_is_judged_by_how_it_ends() {
        let input = vec![7; 1 << 20];
        assert_eq!(**run(&sh("exec 0<&-; echo fine"), &input, 100, SECONDS).expect("runs"), *b"fine\n");
        let status = run(&sh("exec 0<&-; echo fine; exit 3"), &input, 100, SECONDS);
        assert!(matches!(status, Err(ProgramError::Status(s)) if s.code() == Some(3)), "{status:?}");
    }

    #[test]
    fn a_program_that_hangs_with_its_input_unread_is_ended() {
        let started = Instant::now();
        let hung = run(&sh("sleep 60 & wait"), &vec![0; 1 << 20], 100, Duration::from_millis(200));
        assert!(matches!(hung, Err(ProgramError::Deadline(_))), "{hung:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

//! One ssh process and the SFTP packets that go through it. Any number of threads use it at the same time: each
//! request has an id, one thread per connection hands the answers out.
//!
//! Invariant: whoever waits for an answer gets it, or learns within the timeout that the connection is gone. A server
//! that owes answers and sends nothing for that long is taken for dead, and ssh is killed.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use super::failure::{Fail, SftpFailure};
use super::options::SftpOptions;
use super::ssh::{self, PinnedKey};
use super::wire::{self, Malformed, Packet, Request, Status, kind};

/// What is read from ssh at once.
const READ_BYTES: usize = 256 * 1024;
/// Of what ssh and the server say on standard error, the last of this is kept.
const SAID_BYTES_MAX: usize = 8 * 1024;
/// How often silence is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long ssh may take to end after its input was closed, or to tell why it ended.
const ENDING: Duration = Duration::from_secs(5);
/// Every server accepts data of this length (the draft's 34000 bytes of a packet).
const PIECE_BYTES_MIN: u64 = 32 * 1024;
/// Larger pieces gain nothing.
const PIECE_BYTES_MAX: u64 = 128 * 1024;

pub(super) type Answer = Result<Packet, Fail>;

pub(super) struct Connection {
    input: Mutex<Option<ChildStdin>>,
    shared: Arc<Shared>,
    next_id: AtomicU32,
    /// Operations that use it now.
    users: AtomicUsize,
    extensions: Vec<String>,
    /// Bytes that are read or written by one request.
    pub(super) read_piece: usize,
    pub(super) write_piece: usize,
}

struct Shared {
    state: Mutex<State>,
    timeout: Duration,
}

struct State {
    waiting: HashMap<u32, Sender<(u32, Answer)>>,
    /// When the server last sent something, or began to owe an answer.
    progress: Instant,
    /// Since when ssh takes nothing of what is being sent.
    sending: Option<Instant>,
    /// Why there is no connection any more.
    dead: Option<SftpFailure>,
    /// Since when it is to end, and why if not by our wish.
    ending: Option<(Instant, Option<SftpFailure>)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Connects, logs in, and learns what the server can do.
    pub(super) fn open(options: &SftpOptions) -> Result<Arc<Connection>, SftpFailure> {
        let ssh::Ssh { mut child, pin } = ssh::start(options)?;
        let (Some(input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(SftpFailure::lost("ssh was started without pipes"));
        };
        let (greeted, greeting) = channel();
        let state = State {
            waiting: HashMap::from([(wire::GREETING, greeted)]),
            progress: Instant::now(),
            sending: None,
            dead: None,
            ending: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), timeout: options.timeout });
        let loop_shared = Arc::clone(&shared);
        let mut reader = Reader { child, output, errors: Some(errors), said: vec![], greeted: false, pin };
        std::thread::Builder::new()
            .name("sftp".into())
            .spawn(move || reader.run(&loop_shared))
            .map_err(|e| SftpFailure::lost(format!("no thread could be started: {e}")))?;
        let mut connection = Connection {
            input: Mutex::new(Some(input)),
            shared,
            next_id: AtomicU32::new(1),
            users: AtomicUsize::new(0),
            extensions: vec![],
            read_piece: 0,
            write_piece: 0,
        };
        connection.transmit(&wire::init(), &[]);
        connection.greet(&greeting, options.timeout * 2)?;
        Ok(Arc::new(connection))
    }

    fn greet(&mut self, greeting: &Receiver<(u32, Answer)>, allowed: Duration) -> Result<(), SftpFailure> {
        let deadline = Instant::now() + allowed;
        let failure = |fail| match fail {
            Fail::Connection(failure) => failure,
            Fail::Status(status) => SftpFailure::protocol(&status.to_string()),
        };
        let packet = receive(greeting, self, deadline, allowed).map_err(failure)?.1;
        let malformed = |m: Malformed| SftpFailure::protocol(m.0);
        let mut fields = packet.fields();
        if fields.u32().map_err(malformed)? < wire::VERSION {
            return Err(SftpFailure::protocol("it speaks a version older than 3"));
        }
        self.extensions = fields.extensions().map_err(malformed)?;
        let (read, write) = match self.offers("limits@openssh.com") {
            true => self.limits(deadline, allowed).map_err(failure)?,
            false => (0, 0),
        };
        let piece = |limit: u64| match limit {
            0 => PIECE_BYTES_MIN,
            limit => limit.clamp(1024, PIECE_BYTES_MAX),
        };
        self.read_piece = usize::try_from(piece(read)).unwrap_or(1024);
        self.write_piece = usize::try_from(piece(write)).unwrap_or(1024);
        Ok(())
    }

    fn limits(&self, deadline: Instant, allowed: Duration) -> Result<(u64, u64), Fail> {
        let (answers, waiting) = channel();
        self.send(&Request::extended("limits@openssh.com"), &[], &answers)?;
        let packet = receive(&waiting, self, deadline, allowed)?.1;
        let mut fields = packet.fields();
        if packet.kind != kind::EXTENDED_REPLY {
            return Ok((0, 0));
        }
        fields.u64()?;
        Ok((fields.u64()?, fields.u64()?))
    }

    pub(super) fn offers(&self, extension: &str) -> bool {
        self.extensions.iter().any(|name| name == extension)
    }

    /// Sends a request; the answer goes to `answers` under the id that is returned, even when the connection dies.
    pub(super) fn send(
        &self,
        request: &Request,
        body: &[u8],
        answers: &Sender<(u32, Answer)>,
    ) -> Result<u32, SftpFailure> {
        let id = loop {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let mut state = self.shared.state();
            if let Some(failure) = &state.dead {
                return Err(failure.clone());
            }
            if id == wire::GREETING || state.waiting.contains_key(&id) {
                continue;
            }
            if state.waiting.is_empty() {
                state.progress = Instant::now();
            }
            state.waiting.insert(id, answers.clone());
            break id;
        };
        self.transmit(&request.head(id, body), body);
        Ok(id)
    }

    /// Sends a request whose answer does not matter.
    pub(super) fn tell(&self, request: &Request) {
        let (nobody, _) = channel();
        // A connection that is gone has forgotten what it held.
        let _ = self.send(request, &[], &nobody);
    }

    fn transmit(&self, head: &[u8], body: &[u8]) {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pipe) = input.as_mut() else { return };
        self.shared.state().sending = Some(Instant::now());
        let written = pipe.write_all(head).and_then(|()| pipe.write_all(body));
        self.shared.state().sending = None;
        if written.is_err() {
            // ssh has ended, or is being killed: the reader finds out why and tells everyone who waits.
            *input = None;
            self.give_up(None);
        }
    }

    /// Ends the connection for all who use it.
    pub(super) fn give_up(&self, why: Option<SftpFailure>) {
        let mut state = self.shared.state();
        if state.ending.is_none() {
            state.ending = Some((Instant::now(), why));
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        let state = self.shared.state();
        state.dead.is_some() || state.ending.is_some()
    }

    pub(super) fn users(&self) -> usize {
        self.users.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self) {
        self.users.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.users.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // ssh ends when its input does; the reader sees to it that it really does.
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.give_up(None);
    }
}

/// Waits for an answer until `deadline`.
pub(super) fn receive(
    answers: &Receiver<(u32, Answer)>,
    connection: &Connection,
    deadline: Instant,
    allowed: Duration,
) -> Result<(u32, Packet), Fail> {
    match answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok((id, answer)) => Ok((id, answer?)),
        Err(RecvTimeoutError::Timeout) => {
            // What is still under way there would otherwise hold handles and be mistaken for silence.
            connection.give_up(Some(SftpFailure::lost("an operation took too long")));
            Err(SftpFailure::late(allowed).into())
        }
        Err(RecvTimeoutError::Disconnected) => Err(SftpFailure::lost("the connection ended").into()),
    }
}

/// Turns a status into what it means; any other packet must be of the kind that was asked for.
pub(super) fn expect(packet: Packet, wanted: u8) -> Answer {
    if packet.kind == kind::STATUS {
        let status = packet.fields().status()?;
        return match (status.code, wanted) {
            (Status::OK, kind::STATUS) => Ok(packet),
            (Status::OK, _) => Err(Malformed("success where data was asked for").into()),
            _ => Err(Fail::Status(status)),
        };
    }
    if packet.kind == wanted { Ok(packet) } else { Err(Malformed("an answer of another kind").into()) }
}

/// Owns the process: reads its output, watches the clock, buries it.
struct Reader {
    child: Child,
    output: ChildStdout,
    errors: Option<ChildStderr>,
    said: Vec<u8>,
    greeted: bool,
    pin: Option<PinnedKey>,
}

impl Reader {
    fn run(&mut self, shared: &Shared) {
        let failure = self.serve(shared);
        self.bury();
        let mut state = shared.state();
        state.dead = Some(failure.clone());
        for (id, answers) in state.waiting.drain() {
            // Whoever no longer listens does not need to know.
            let _ = answers.send((id, Err(failure.clone().into())));
        }
    }

    /// Until the connection ends; says why.
    fn serve(&mut self, shared: &Shared) -> SftpFailure {
        let mut buffer = Vec::new();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            if let Some(failure) = overdue(&mut shared.state(), shared.timeout) {
                return failure;
            }
            let (output, errors) = match self.wait(TICK) {
                Ok(ready) => ready,
                Err(e) => return SftpFailure::lost(format!("the pipes to ssh cannot be read: {e}")),
            };
            if errors {
                self.listen();
            }
            if !output {
                continue;
            }
            match self.output.read(&mut chunk) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => return self.ended(shared),
                Ok(n) => buffer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            }
            if let Err(malformed) = self.deliver(&mut buffer, shared) {
                return SftpFailure::protocol(malformed.0);
            }
        }
    }

    fn deliver(&mut self, buffer: &mut Vec<u8>, shared: &Shared) -> Result<(), Malformed> {
        let mut state = shared.state();
        state.progress = Instant::now();
        while let Some(packet) = Packet::take(buffer)? {
            if !self.greeted && packet.id != wire::GREETING {
                return Err(Malformed("something came before its version"));
            }
            self.greeted = true;
            self.pin = None;
            let id = packet.id;
            let Some(answers) = state.waiting.remove(&id) else {
                return Err(Malformed("an answer nobody asked for"));
            };
            // Whoever no longer listens does not need to know.
            let _ = answers.send((id, Ok(packet)));
        }
        Ok(())
    }

    /// Which of output and errors can be read.
    fn wait(&self, limit: Duration) -> io::Result<(bool, bool)> {
        let errors = self.errors.as_ref().map(|errors| errors.as_fd());
        let fds: Vec<_> = std::iter::once(self.output.as_fd()).chain(errors).collect();
        let ready = readable(&fds, limit)?;
        Ok((ready.first() == Some(&true), ready.get(1) == Some(&true)))
    }

    /// The same for the errors alone, once the output has ended.
    fn errors_wait(&self, limit: Duration) -> bool {
        let Some(errors) = &self.errors else { return false };
        readable(&[errors.as_fd()], limit).is_ok_and(|ready| ready == [true])
    }

    /// Keeps the end of what is said on standard error.
    fn listen(&mut self) {
        let mut chunk = [0; 4096];
        let Some(errors) = &mut self.errors else { return };
        match errors.read(&mut chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => self.errors = None,
            Ok(n) => {
                self.said.extend_from_slice(chunk.get(..n).unwrap_or_default());
                let surplus = self.said.len().saturating_sub(SAID_BYTES_MAX);
                self.said.drain(..surplus);
            }
        }
    }

    /// ssh has closed its output: why?
    fn ended(&mut self, shared: &Shared) -> SftpFailure {
        let until = Instant::now() + ENDING;
        // Another ssh that shares the connection (ControlPersist) may keep standard error open for hours.
        while self.errors.is_some() && Instant::now() < until && !matches!(self.child.try_wait(), Ok(Some(_))) {
            if self.errors_wait(Duration::from_millis(50)) {
                self.listen();
            }
        }
        while self.errors_wait(Duration::ZERO) {
            self.listen();
        }
        let wished = shared.state().ending.take().and_then(|(_, why)| why);
        if let Some(why) = wished {
            return why;
        }
        let said = String::from_utf8_lossy(&self.said).into_owned();
        if !self.greeted {
            return SftpFailure::of_ssh(&said);
        }
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("without a word");
        SftpFailure::lost(format!("the connection was lost: {}", last.escape_debug().take(300).collect::<String>()))
    }

    fn bury(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            // With it goes whatever it has started to get through to the server.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _: io::Result<ExitStatus> = self.child.wait();
    }
}

fn readable(fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Vec<bool>> {
    let limit = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    let mut polled: Vec<_> = fds.iter().map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    match poll(&mut polled, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(e) => Err(e.into()),
    }
}

/// Why the connection has to end now, if it has to.
fn overdue(state: &mut State, timeout: Duration) -> Option<SftpFailure> {
    if !state.waiting.is_empty() && state.progress.elapsed() > timeout {
        return Some(SftpFailure::silent(timeout));
    }
    // It may answer a little now and then, and take nothing.
    if state.sending.is_some_and(|since| since.elapsed() > timeout) {
        return Some(SftpFailure::silent(timeout));
    }
    match &state.ending {
        Some((_, Some(why))) => Some(why.clone()),
        Some((since, None)) if since.elapsed() > ENDING => Some(SftpFailure::lost("the connection was lost")),
        _ => None,
    }
}

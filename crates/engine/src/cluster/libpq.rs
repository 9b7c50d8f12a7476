//! A small safe wrapper around libpq: connect, send one statement, collect its result, cancel, finish.
//!
//! Invariants: nothing here blocks past the deadline of the call (the socket is non-blocking; only the resolver of
//! host names is outside our reach); after a failed wait the connection is either drained or marked as broken, so a
//! late answer is never taken for the answer to a later question; each message is stripped of secrets where it is
//! made. This and the modules in it are the only ones of the crate with `unsafe` code. SIGPIPE cannot reach us: libpq sends with
//! MSG_NOSIGNAL, or masks the signal around TLS writes.
#![allow(unsafe_code)]

pub(super) mod conninfo;
mod result;
mod wait;

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pq_sys::{ConnStatusType, ExecStatusType, PGVerbosity, PGcancelConn, PGconn, PGresult, PostgresPollingStatusType};

use super::text::{redact, shortened, split_verbose};
use super::{ClusterError, Deadline};
use result::{OwnedResult, classify, copy_text, result_field};
use wait::{Want, wait_for};

/// How long a cancelled statement may take to end before the connection is given up.
const CANCEL_GRACE: Duration = Duration::from_secs(3);
/// One wait in poll(2): a step of the wall clock cannot stretch a deadline by more than this.
const POLL_SLICE: Duration = Duration::from_secs(1);
/// How long a wish to stop may go unnoticed.
const INTERRUPT_SLICE: Duration = Duration::from_millis(200);
/// Rows of a copy between looks at the clock and at the wish to stop.
const ROWS_BETWEEN_LOOKS: u32 = 1024;
/// Notices kept per connection; a server that talks endlessly cannot fill our memory.
const NOTICES_MAX: usize = 100;
const NOTICE_BYTES_MAX: usize = 4096;

/// A NOTICE, WARNING or the like that came with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
}

/// How PostgreSQL encodes the columns of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultFormat {
    Text,
    Binary,
}

pub(super) type Value = Option<Vec<u8>>;

#[derive(Debug)]
pub(super) struct ResultSet {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// Rows the command says it touched, when it says so.
    pub affected: Option<u64>,
}

/// One connection. It may move between threads, but not be shared: libpq allows one user at a time.
pub(super) struct Libpq {
    conn: NonNull<PGconn>,
    /// Owned; libpq holds the same pointer as the argument of `receive_notice`.
    notices: NonNull<RefCell<Vec<Notice>>>,
    secrets: Vec<String>,
    broken: Cell<bool>,
    /// Set by who wants a long statement to be given up.
    interrupt: RefCell<Option<Arc<AtomicBool>>>,
}

// SAFETY: a PGconn has no tie to the thread that made it, libpq since 17 is always thread-safe between connections,
// and the `Cell` keeps `Libpq` from being `Sync`.
unsafe impl Send for Libpq {}

/// A connection option as it is in force.
pub struct EffectiveOption {
    pub keyword: String,
    pub value: String,
    /// As it is when nobody says anything.
    pub is_default: bool,
    pub is_secret: bool,
}

impl Libpq {
    /// Begins a connection from literal keyword/value pairs (nothing is expanded, not even `dbname`), which libpq
    /// completes from its environment, service and password files. `secrets` never appear in a message.
    pub fn start(keywords: &[(String, String)], secrets: Vec<String>) -> Result<Self, ClusterError> {
        let mut names = Vec::with_capacity(keywords.len());
        let mut values = Vec::with_capacity(keywords.len());
        for (name, value) in keywords {
            names.push(c_string(name.as_bytes(), "connection keyword")?);
            values.push(c_string(value.as_bytes(), "value of a connection keyword")?);
        }
        let name_pointers = null_terminated(&names);
        let value_pointers = null_terminated(&values);
        // SAFETY: both arrays end with a null pointer and outlive the call; libpq copies what it needs.
        let conn = unsafe { pq_sys::PQconnectStartParams(name_pointers.as_ptr(), value_pointers.as_ptr(), 0) };
        let conn = NonNull::new(conn)
            .ok_or_else(|| ClusterError::Unreachable { message: "libpq is out of memory".to_owned() })?;
        let notices = NonNull::from(Box::leak(Box::new(RefCell::new(Vec::new()))));
        let this = Self { conn, notices, secrets, broken: Cell::new(false), interrupt: RefCell::new(None) };
        // SAFETY: `conn` is live, and `notices` lives until after PQfinish (see Drop).
        unsafe {
            pq_sys::PQsetNoticeReceiver(this.conn(), Some(receive_notice), notices.as_ptr().cast::<c_void>());
            // The only way to learn the SQLSTATE of a refused connection is its text, in any language of the server.
            pq_sys::PQsetErrorVerbosity(this.conn(), PGVerbosity::PQERRORS_VERBOSE);
        }
        Ok(this)
    }

    /// Carries the connection through until it is usable.
    pub fn complete(&self, deadline: Deadline) -> Result<(), ClusterError> {
        let mut want = Want::Write;
        loop {
            // SAFETY: `conn` is live.
            if unsafe { pq_sys::PQstatus(self.conn()) } == ConnStatusType::CONNECTION_BAD {
                return Err(self.connect_error());
            }
            wait_for(self.socket()?, want, deadline, "connecting")?;
            // SAFETY: `conn` is live and PQconnectPoll is called as its manual says, after the wait it asked for.
            match unsafe { pq_sys::PQconnectPoll(self.conn()) } {
                PostgresPollingStatusType::PGRES_POLLING_OK => break,
                PostgresPollingStatusType::PGRES_POLLING_FAILED => return Err(self.connect_error()),
                PostgresPollingStatusType::PGRES_POLLING_READING => want = Want::Read,
                PostgresPollingStatusType::PGRES_POLLING_WRITING | PostgresPollingStatusType::PGRES_POLLING_ACTIVE => {
                    want = Want::Write;
                }
            }
        }
        // SAFETY: `conn` is live.
        unsafe {
            pq_sys::PQsetErrorVerbosity(self.conn(), PGVerbosity::PQERRORS_DEFAULT);
            if pq_sys::PQsetnonblocking(self.conn(), 1) != 0 {
                return Err(self.lost());
            }
        }
        Ok(())
    }

    /// The value of a connection option after environment, service file and defaults were applied.
    pub fn effective_option(&self, keyword: &str) -> Option<String> {
        self.effective_options().into_iter().find(|o| o.keyword == keyword).map(|o| o.value)
    }

    /// All options that have a value, after environment, service file and defaults were applied.
    pub fn effective_options(&self) -> Vec<EffectiveOption> {
        let mut all = vec![];
        // SAFETY: `conn` is live; the array ends with a null keyword and is freed below, after the last use.
        unsafe {
            let options = pq_sys::PQconninfo(self.conn());
            let mut at = options;
            while !at.is_null() && !(*at).keyword.is_null() {
                let (keyword, value) = (copy_text((*at).keyword), copy_text((*at).val));
                if let (Some(keyword), Some(value)) = (keyword, value.filter(|v| !v.is_empty())) {
                    let is_default = copy_text((*at).compiled).as_ref() == Some(&value);
                    // libpq marks what should be hidden with '*'.
                    let is_secret = copy_text((*at).dispchar).is_some_and(|mark| mark.contains('*'));
                    all.push(EffectiveOption { keyword, value, is_default, is_secret });
                }
                at = at.add(1);
            }
            pq_sys::PQconninfoFree(options);
        }
        all
    }

    /// The host, or the directory of the socket, that the connection goes to.
    pub fn host(&self) -> Option<String> {
        // SAFETY: `conn` is live; the text belongs to it and is copied.
        unsafe { copy_text(pq_sys::PQhost(self.conn())) }.filter(|h| !h.is_empty())
    }

    /// As PostgreSQL numbers it: 150018 is 15.18.
    pub fn server_version(&self) -> i32 {
        // SAFETY: `conn` is live.
        unsafe { pq_sys::PQserverVersion(self.conn()) }
    }

    /// The process id the server announced when the session began.
    pub fn backend_pid(&self) -> i32 {
        // SAFETY: `conn` is live.
        unsafe { pq_sys::PQbackendPID(self.conn()) }
    }

    /// The notices since the last call.
    pub fn take_notices(&self) -> Vec<Notice> {
        // SAFETY: `notices` is live as long as `self`; libpq writes to it only inside our own calls.
        unsafe { self.notices.as_ref() }.take()
    }

    /// Runs several statements without parameters; the first error ends it. `sql` has to be constant text.
    pub fn exec_script(&self, sql: &'static str, deadline: Deadline) -> Result<(), ClusterError> {
        let sql = c_string(sql.as_bytes(), "statement")?;
        self.usable()?;
        // SAFETY: `conn` is live, `sql` is a C string that outlives the call.
        let sent = unsafe { pq_sys::PQsendQuery(self.conn(), sql.as_ptr()) };
        self.run(sent, deadline).map(|_| ())
    }

    /// Runs one statement with text parameters.
    pub fn exec_params(
        &self,
        sql: &[u8],
        params: &[Option<&[u8]>],
        format: ResultFormat,
        deadline: Deadline,
    ) -> Result<ResultSet, ClusterError> {
        let sql = c_string(sql, "statement")?;
        let values = params
            .iter()
            .map(|p| p.map(|bytes| c_string(bytes, "parameter")).transpose())
            .collect::<Result<Vec<Option<CString>>, _>>()?;
        let pointers: Vec<*const c_char> =
            values.iter().map(|v| v.as_ref().map_or(ptr::null(), |s| s.as_ptr())).collect();
        let count = c_int::try_from(pointers.len())
            .map_err(|_| ClusterError::Invalid { message: "too many parameters".to_owned() })?;
        self.usable()?;
        // SAFETY: `conn` is live; `sql` and the `count` values are C strings (or null for NULL) that outlive the
        // call; null types, lengths and formats mean inferred types and text.
        let sent = unsafe {
            pq_sys::PQsendQueryParams(
                self.conn(),
                sql.as_ptr(),
                count,
                ptr::null(),
                pointers.as_ptr(),
                ptr::null(),
                ptr::null(),
                c_int::from(format == ResultFormat::Binary),
            )
        };
        self.run(sent, deadline)
    }

    /// Runs one `COPY … TO STDOUT`; `each` gets one row at a time. A copy that is given up takes the session with it.
    pub fn copy_out(
        &self,
        sql: &[u8],
        deadline: Deadline,
        each: &mut dyn FnMut(&[u8]) -> Result<(), ClusterError>,
    ) -> Result<(), ClusterError> {
        let sql = c_string(sql, "statement")?;
        self.usable()?;
        // SAFETY: `conn` is live and `sql` is a C string that outlives the call; there are no parameters.
        let sent = unsafe {
            pq_sys::PQsendQueryParams(
                self.conn(),
                sql.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                0,
            )
        };
        let begun = if sent == 1 { self.flush(deadline) } else { Err(self.lost()) };
        let first = match begun.and_then(|()| self.next_result(deadline)) {
            Ok(Some(first)) => first,
            failed => {
                self.give_up();
                return Err(failed.err().unwrap_or_else(|| self.lost()));
            }
        };
        if first.status() != ExecStatusType::PGRES_COPY_OUT {
            let refused = self.interpret(&first).err();
            let drained = self.collect_rest(deadline);
            let other = || ClusterError::Unexpected { message: "the statement started no COPY".to_owned() };
            return Err(refused.or(drained.err()).unwrap_or_else(other));
        }
        drop(first);
        let copied = self.copy_rows(deadline, each);
        if copied.is_err() {
            self.give_up();
            return copied;
        }
        self.collect_rest(deadline)
    }

    fn copy_rows(
        &self,
        deadline: Deadline,
        each: &mut dyn FnMut(&[u8]) -> Result<(), ClusterError>,
    ) -> Result<(), ClusterError> {
        let mut since_look = 0_u32;
        loop {
            let mut buffer: *mut c_char = ptr::null_mut();
            // SAFETY: `conn` is live and copies out; libpq puts a buffer of its own there, which is freed below.
            let length = unsafe { pq_sys::PQgetCopyData(self.conn(), &raw mut buffer, 1) };
            match usize::try_from(length) {
                Ok(0) => {
                    self.wait_for_answer(deadline)?;
                    self.consume()?;
                }
                Ok(length) => {
                    let row = CopyRow(buffer);
                    // SAFETY: libpq gave a buffer of `length` bytes, alive until `row` is dropped.
                    each(unsafe { std::slice::from_raw_parts(row.0.cast::<u8>(), length) })?;
                    since_look += 1;
                    // Rows that never run dry are no reason to miss the deadline or the wish to stop.
                    if since_look >= ROWS_BETWEEN_LOOKS {
                        since_look = 0;
                        self.still_wanted(deadline)?;
                    }
                }
                Err(_) if length == -1 => return Ok(()),
                Err(_) => return Err(self.lost()),
            }
        }
    }

    fn still_wanted(&self, deadline: Deadline) -> Result<(), ClusterError> {
        let stop = self.interrupt.borrow().as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
        if stop || deadline.has_passed() {
            return Err(ClusterError::Timeout { doing: "reading the rows of a table" });
        }
        Ok(())
    }

    /// What comes after the rows: the server's last word on the statement.
    fn collect_rest(&self, deadline: Deadline) -> Result<(), ClusterError> {
        let mut outcome = Ok(());
        loop {
            match self.next_result(deadline) {
                Ok(None) => return outcome,
                Ok(Some(result)) => outcome = outcome.and(self.interpret(&result).map(drop)),
                Err(error) => {
                    self.give_up();
                    return Err(error);
                }
            }
            if self.broken.get() {
                return outcome.and_then(|()| Err(self.lost()));
            }
        }
    }

    /// Cancels what is under way; the session is not used again.
    fn give_up(&self) {
        self.send_cancel(Deadline::after(CANCEL_GRACE));
        self.broken.set(true);
    }

    fn run(&self, sent: c_int, deadline: Deadline) -> Result<ResultSet, ClusterError> {
        let result = if sent == 1 { self.collect(deadline) } else { Err(self.lost()) };
        match &result {
            Err(ClusterError::Timeout { .. }) => self.abandon(),
            Err(ClusterError::Lost { .. }) => self.broken.set(true),
            _ => {}
        }
        result
    }

    /// Sends what is queued and takes every result of the statement; the first error wins over later results.
    fn collect(&self, deadline: Deadline) -> Result<ResultSet, ClusterError> {
        self.flush(deadline)?;
        let mut outcome = None;
        while let Some(result) = self.next_result(deadline)? {
            let this = self.interpret(&result);
            if !matches!(outcome, Some(Err(_))) {
                outcome = Some(this);
            }
            if self.broken.get() {
                break;
            }
        }
        outcome.unwrap_or_else(|| Err(self.lost()))
    }

    fn flush(&self, deadline: Deadline) -> Result<(), ClusterError> {
        loop {
            // SAFETY: `conn` is live.
            match unsafe { pq_sys::PQflush(self.conn()) } {
                0 => return Ok(()),
                1 => wait_for(self.socket()?, Want::ReadOrWrite, deadline, "sending a statement")?,
                _ => return Err(self.lost()),
            }
            self.consume()?;
        }
    }

    fn next_result(&self, deadline: Deadline) -> Result<Option<OwnedResult>, ClusterError> {
        // SAFETY: `conn` is live; PQgetResult hands over the result, which `OwnedResult` frees.
        unsafe {
            while pq_sys::PQisBusy(self.conn()) == 1 {
                self.wait_for_answer(deadline)?;
                self.consume()?;
            }
            Ok(NonNull::new(pq_sys::PQgetResult(self.conn())).map(OwnedResult))
        }
    }

    /// As `wait_for`, with a look now and then at whether the answer is still wanted.
    fn wait_for_answer(&self, deadline: Deadline) -> Result<(), ClusterError> {
        const DOING: &str = "waiting for the result of a statement";
        let Some(interrupt) = self.interrupt.borrow().clone() else {
            return wait_for(self.socket()?, Want::Read, deadline, DOING);
        };
        loop {
            let slice = Deadline::after(deadline.remaining().min(INTERRUPT_SLICE));
            match wait_for(self.socket()?, Want::Read, slice, DOING) {
                Err(ClusterError::Timeout { .. }) if interrupt.load(Ordering::Relaxed) => {
                    return Err(ClusterError::Timeout { doing: "a statement that is not wanted any more" });
                }
                Err(ClusterError::Timeout { .. }) if !deadline.has_passed() => {}
                waited => return waited,
            }
        }
    }

    /// From here on a statement under way is cancelled once this is set.
    pub fn interrupt_by(&self, flag: Arc<AtomicBool>) {
        *self.interrupt.borrow_mut() = Some(flag);
    }

    /// What this session really uses: its keywords completed by environment, service file and defaults, without secrets.
    pub fn reached_options(&self) -> Vec<(String, String)> {
        let open = self.effective_options().into_iter().filter(|o| !o.is_secret);
        let mut found: Vec<(String, String)> = open.map(|o| (o.keyword, o.value)).collect();
        // Of several hosts, or of none given, the one that was reached.
        // SAFETY: `conn` is live; the texts belong to it and are copied at once.
        let reached = unsafe {
            [("host", pq_sys::PQhost(self.conn())), ("port", pq_sys::PQport(self.conn()))]
                .map(|(name, value)| (name, copy_text(value).filter(|v| !v.is_empty())))
        };
        for (name, value) in reached {
            if let Some(value) = value {
                found.retain(|(known, _)| known != name && known != "hostaddr");
                found.push((name.to_owned(), value));
            }
        }
        found
    }

    fn consume(&self) -> Result<(), ClusterError> {
        // SAFETY: `conn` is live.
        if unsafe { pq_sys::PQconsumeInput(self.conn()) } == 1 { Ok(()) } else { Err(self.lost()) }
    }

    fn interpret(&self, result: &OwnedResult) -> Result<ResultSet, ClusterError> {
        match result.status() {
            ExecStatusType::PGRES_COMMAND_OK | ExecStatusType::PGRES_TUPLES_OK | ExecStatusType::PGRES_EMPTY_QUERY => {
                result.to_set()
            }
            ExecStatusType::PGRES_COPY_IN | ExecStatusType::PGRES_COPY_OUT | ExecStatusType::PGRES_COPY_BOTH => {
                // Nobody will serve the copy: the session cannot be used again.
                self.broken.set(true);
                Err(ClusterError::Unexpected { message: "the statement started a COPY".to_owned() })
            }
            _ => Err(self.statement_error(result)),
        }
    }

    /// After a missed deadline: cancel, then drain. What cannot be drained soon is never used again.
    fn abandon(&self) {
        let deadline = Deadline::after(CANCEL_GRACE);
        self.send_cancel(deadline);
        let drained = loop {
            match self.next_result(deadline) {
                Ok(None) => break true,
                Ok(Some(_)) if !self.broken.get() => {}
                Ok(Some(_)) | Err(_) => break false,
            }
        };
        if !drained {
            self.broken.set(true);
        }
    }

    /// A cancel request that gets lost shows in the draining that follows, so its own outcome does not matter.
    fn send_cancel(&self, deadline: Deadline) {
        // SAFETY: `conn` is live; `Cancel` frees the request.
        let Some(cancel) = NonNull::new(unsafe { pq_sys::PQcancelCreate(self.conn()) }).map(Cancel) else { return };
        // SAFETY: the request is live.
        if unsafe { pq_sys::PQcancelStart(cancel.0.as_ptr()) } != 1 {
            return;
        }
        let mut want = Want::Write;
        loop {
            // SAFETY: the request is live.
            let socket = unsafe { pq_sys::PQcancelSocket(cancel.0.as_ptr()) };
            if socket < 0 || wait_for(socket, want, deadline, "cancelling").is_err() {
                return;
            }
            // SAFETY: as above, and the wait it asked for is over.
            match unsafe { pq_sys::PQcancelPoll(cancel.0.as_ptr()) } {
                PostgresPollingStatusType::PGRES_POLLING_READING => want = Want::Read,
                PostgresPollingStatusType::PGRES_POLLING_WRITING => want = Want::Write,
                _ => return,
            }
        }
    }

    fn usable(&self) -> Result<(), ClusterError> {
        if self.broken.get() {
            return Err(ClusterError::Lost { message: "it was given up after an earlier failure".to_owned() });
        }
        Ok(())
    }

    fn socket(&self) -> Result<c_int, ClusterError> {
        // SAFETY: `conn` is live.
        let socket = unsafe { pq_sys::PQsocket(self.conn()) };
        if socket < 0 { Err(self.lost()) } else { Ok(socket) }
    }

    fn lost(&self) -> ClusterError {
        ClusterError::Lost { message: self.message() }
    }

    fn connect_error(&self) -> ClusterError {
        let (message, sqlstate) = split_verbose(&self.message());
        // SAFETY: `conn` is live.
        if unsafe { pq_sys::PQconnectionNeedsPassword(self.conn()) } == 1 {
            return ClusterError::Denied { sqlstate, message };
        }
        match sqlstate {
            Some(state) => classify(state, message),
            None => ClusterError::Unreachable { message },
        }
    }

    fn statement_error(&self, result: &OwnedResult) -> ClusterError {
        // SAFETY: `conn` is live.
        let gone = unsafe { pq_sys::PQstatus(self.conn()) } == ConnStatusType::CONNECTION_BAD;
        match (result.field(pq_sys::PG_DIAG_SQLSTATE), gone) {
            (Some(state), false) => match classify(state, self.redact(&result.message())) {
                // There was a session until this answer came.
                ClusterError::Unreachable { message } => ClusterError::Lost { message },
                other => other,
            },
            _ => ClusterError::Lost { message: self.redact(&result.message()) },
        }
    }

    fn message(&self) -> String {
        // SAFETY: `conn` is live; the text stays valid until the next call on it and is copied at once.
        let raw = unsafe { copy_text(pq_sys::PQerrorMessage(self.conn())) };
        let message = self.redact(raw.as_deref().unwrap_or(""));
        if message.is_empty() { "no reason given".to_owned() } else { message }
    }

    fn redact(&self, message: &str) -> String {
        // SAFETY: `conn` is live. A password from the environment or a password file is known to libpq alone.
        let found = unsafe { copy_text(pq_sys::PQpass(self.conn())) };
        redact(message.trim(), self.secrets.iter().map(String::as_str).chain(found.as_deref()))
    }

    fn conn(&self) -> *mut PGconn {
        self.conn.as_ptr()
    }
}

impl Drop for Libpq {
    fn drop(&mut self) {
        // SAFETY: both pointers are ours alone; PQfinish ends libpq's use of `notices` before it is freed.
        unsafe {
            pq_sys::PQfinish(self.conn());
            drop(Box::from_raw(self.notices.as_ptr()));
        }
    }
}

/// A buffer that libpq made for a row.
struct CopyRow(*mut c_char);

impl Drop for CopyRow {
    fn drop(&mut self) {
        // SAFETY: the buffer is ours alone and freed once.
        unsafe { pq_sys::PQfreemem(self.0.cast::<c_void>()) }
    }
}

struct Cancel(NonNull<PGcancelConn>);

impl Drop for Cancel {
    fn drop(&mut self) {
        // SAFETY: the request is ours alone and freed once.
        unsafe { pq_sys::PQcancelFinish(self.0.as_ptr()) }
    }
}

/// Called by libpq for each notice, inside one of our calls on the same thread.
unsafe extern "C" fn receive_notice(arg: *mut c_void, result: *const PGresult) {
    // SAFETY: `arg` is the pointer given in `start`, alive until after PQfinish; it is shared, never exclusive.
    let notices = unsafe { &*arg.cast::<RefCell<Vec<Notice>>>() };
    // A panic may not cross into C: a list that is in use, or full, drops the notice.
    let Ok(mut notices) = notices.try_borrow_mut() else { return };
    if notices.len() >= NOTICES_MAX {
        return;
    }
    let field = |code| {
        let value = result_field(result, code).unwrap_or_default();
        shortened(&value, NOTICE_BYTES_MAX).to_owned()
    };
    notices.push(Notice {
        severity: field(pq_sys::PG_DIAG_SEVERITY_NONLOCALIZED),
        sqlstate: field(pq_sys::PG_DIAG_SQLSTATE),
        message: field(pq_sys::PG_DIAG_MESSAGE_PRIMARY),
    });
}

fn c_string(bytes: &[u8], what: &str) -> Result<CString, ClusterError> {
    CString::new(bytes).map_err(|_| ClusterError::Invalid { message: format!("a zero byte in a {what}") })
}

fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

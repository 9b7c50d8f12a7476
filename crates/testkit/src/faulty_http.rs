//! An HTTP proxy before a real server, that fails as it is told: before the server sees a request, after it has obeyed,
//! or in the middle of the answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const IO_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFault {
    /// This answer instead of the server's; the server sees nothing.
    Answer(u16, String),
    /// The connection breaks before the server sees the request.
    BreakBefore,
    /// The server obeys, and the connection breaks before its answer.
    BreakAfter,
    /// The answer ends after so many bytes of its body.
    CutBody(usize),
    /// One bit of the answer's body is another.
    FlipAnswer,
    /// One bit of the request's body is another.
    FlipRequest,
    /// No answer, and the connection stays open.
    Silence,
    /// The server does not see headers that begin so, as one that does not know them.
    WithoutHeaders(&'static str),
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    path_part: String,
    times: usize,
    fault: HttpFault,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<String>,
    one_at_a_time: bool,
}

/// Ends with the value.
#[derive(Debug)]
pub struct FaultyHttp {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyHttp {
    pub fn before(server: SocketAddr) -> FaultyHttp {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for the proxy");
        let address = listener.local_addr().expect("its address");
        let (state, ended) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (of_thread, stop) = (Arc::clone(&state), Arc::clone(&ended));
        let turn = Arc::new(Mutex::new(()));
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), state, stop) = (client, Arc::clone(&of_thread), Arc::clone(&stop)) else { continue };
                let server = Server { address: server, turn: Arc::clone(&turn) };
                // A client that goes away in the middle is what these tests are about.
                std::thread::spawn(move || drop(serve(client, &server, &state, &stop)));
            }
        });
        FaultyHttp { address, state, ended, thread: Some(thread) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next so many requests with this method (`""`: any) and this piece in their target fail so.
    pub fn fail(&self, method: &'static str, path_part: &str, times: usize, fault: HttpFault) {
        lock(&self.state).rules.push(Rule { method, path_part: path_part.to_owned(), times, fault });
    }

    /// From now on the server sees a request only when the one before it was answered.
    pub fn one_at_a_time(&self) {
        lock(&self.state).one_at_a_time = true;
    }

    /// Faults that were not used up.
    pub fn left(&self) -> usize {
        lock(&self.state).rules.iter().map(|r| r.times).sum()
    }

    pub fn forget_faults(&self) {
        lock(&self.state).rules.clear();
    }

    /// Method and target of each request so far.
    pub fn seen(&self) -> Vec<String> {
        lock(&self.state).seen.clone()
    }
}

impl Drop for FaultyHttp {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the proxy does not panic");
        }
    }
}

struct Server {
    address: SocketAddr,
    /// Held by the one whose request the server sees, when one at a time is asked for.
    turn: Arc<Mutex<()>>,
}

/// One request on a connection; the client opens another for the next.
fn serve(client: TcpStream, server: &Server, state: &Mutex<State>, ended: &AtomicBool) -> io::Result<()> {
    client.set_read_timeout(Some(IO_TIMEOUT))?;
    let mut reader = BufReader::new(client.try_clone()?);
    let Some((mut head, mut body)) = read_request(&mut reader)? else { return Ok(()) };
    let fault = fault_for(&head, state);
    match fault {
        Some(HttpFault::BreakBefore) => return client.shutdown(Shutdown::Both),
        Some(HttpFault::Silence) => {
            // Until the client gives up.
            client.set_read_timeout(Some(Duration::from_millis(200)))?;
            while !ended.load(Ordering::SeqCst) {
                match reader.fill_buf() {
                    Ok([]) => return Ok(()),
                    Ok(_) => return Ok(()),
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                    Err(e) => return Err(e),
                }
            }
            return Ok(());
        }
        Some(HttpFault::Answer(status, text)) => {
            let answer = format!(
                "HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
            return (&client).write_all(answer.as_bytes());
        }
        Some(HttpFault::FlipRequest) => flip(&mut body),
        Some(HttpFault::WithoutHeaders(prefix)) => {
            let known = |line: &&str| !line.to_ascii_lowercase().starts_with(prefix);
            head = head.split_inclusive("\r\n").filter(known).collect();
        }
        _ => {}
    }
    let one_at_a_time = lock(state).one_at_a_time;
    let turn = one_at_a_time.then(|| server.turn.lock().unwrap_or_else(PoisonError::into_inner));
    let mut answer = forward(&head, &body, server.address)?;
    drop(turn);
    let body_at = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    match fault {
        Some(HttpFault::BreakAfter) => return client.shutdown(Shutdown::Both),
        Some(HttpFault::CutBody(bytes)) => answer.truncate(body_at + bytes),
        Some(HttpFault::FlipAnswer) => flip(answer.get_mut(body_at..).unwrap_or_default()),
        _ => {}
    }
    (&client).write_all(&answer)
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 4;
    }
}

fn fault_for(head: &str, state: &Mutex<State>) -> Option<HttpFault> {
    let mut state = lock(state);
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), decoded(words.next().unwrap_or_default()));
    state.seen.push(format!("{method} {target}"));
    let fits =
        |r: &&mut Rule| r.times > 0 && (r.method.is_empty() || r.method == method) && target.contains(&r.path_part);
    let rule = state.rules.iter_mut().find(fits)?;
    rule.times -= 1;
    Some(rule.fault.clone())
}

/// Some clients write `/` and `-` as `%2F` and `%2D`.
fn decoded(target: &str) -> String {
    let mut out = String::new();
    let mut rest = target;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) => {
                out.push(char::from(byte));
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push('%');
                rest = after;
            }
        }
    }
    out + rest
}

/// Head and body; None when the client closed without a request.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head)? == 0 || head.len() > HEAD_BYTES_MAX {
            return Ok(None);
        }
        if head.get(before..) == Some("\r\n") {
            break;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Some((head, body)))
}

/// The whole answer; the server is asked to close after it, which also makes the client do so.
fn forward(head: &str, body: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(server)?;
    upstream.set_read_timeout(Some(IO_TIMEOUT))?;
    let (first, rest) = head.split_once("\r\n").unwrap_or((head, ""));
    write!(upstream, "{first}\r\nConnection: close\r\n{rest}")?;
    upstream.write_all(body)?;
    let mut answer = vec![];
    upstream.read_to_end(&mut answer)?;
    Ok(answer)
}

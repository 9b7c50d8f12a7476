//! The connections of one store: opened when the others are in use, up to a number; shared when there are no more.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::failure::SftpFailure;
use super::options::SftpOptions;
use super::session::Session;

/// After the server turned a further connection away, none is tried for so long.
const CONTENT: Duration = Duration::from_secs(60);
/// Before each new attempt to reach a server that was reached before.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(4)];

pub(super) struct Pool {
    options: SftpOptions,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    open: Vec<Arc<Connection>>,
    opening: usize,
    content_until: Option<Instant>,
}

impl Pool {
    pub(super) fn new(options: SftpOptions) -> Self {
        Pool { options, state: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn options(&self) -> &SftpOptions {
        &self.options
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.options.deadline
    }

    /// A session on the connection that is used least.
    pub(super) fn session(&self, deadline: Instant) -> Result<Session, SftpFailure> {
        let mut state = self.state();
        loop {
            state.open.retain(|connection| !connection.is_dead());
            let (open, opening) = (state.open.len(), state.opening);
            let least = state.open.iter().min_by_key(|connection| connection.users()).cloned();
            let content = state.content_until.is_some_and(|until| Instant::now() < until);
            let full = open + opening >= self.options.connections;
            match least {
                Some(connection) if connection.users() == 0 || full || content => {
                    return Ok(self.enter(connection, deadline));
                }
                None if full => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(SftpFailure::late(self.options.deadline));
                    }
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                _ => {}
            }
            state.opening += 1;
            drop(state);
            let opened = Connection::open(&self.options);
            state = self.state();
            state.opening -= 1;
            self.changed.notify_all();
            match opened {
                Ok(connection) => {
                    state.open.push(Arc::clone(&connection));
                    return Ok(self.enter(connection, deadline));
                }
                // One connection too many is no failure as long as there is another.
                Err(_) if state.open.iter().any(|c| !c.is_dead()) => {
                    state.content_until = Some(Instant::now() + CONTENT);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// A session after a connection was lost: the server may be back in a moment.
    pub(super) fn session_again(&self, deadline: Instant) -> Result<Session, SftpFailure> {
        let mut last = SftpFailure::late(self.options.deadline);
        for pause in PAUSES {
            if Instant::now() + pause >= deadline {
                break;
            }
            std::thread::sleep(pause);
            let began = Instant::now();
            match self.session(deadline) {
                // Who is silent will be silent again; who refuses may be starting.
                Err(failure) if failure.passing && began.elapsed() < self.options.timeout / 2 => last = failure,
                other => return other,
            }
        }
        Err(last)
    }

    /// A session on a connection that is there already.
    pub(super) fn existing(&self) -> Option<Session> {
        let state = self.state();
        let alive = state.open.iter().filter(|connection| !connection.is_dead());
        let least = alive.min_by_key(|connection| connection.users()).cloned();
        least.map(|connection| self.enter(connection, self.deadline()))
    }

    /// A session on this connection, alive or not.
    pub(super) fn session_on(&self, connection: &Arc<Connection>) -> Session {
        self.enter(Arc::clone(connection), self.deadline())
    }

    fn enter(&self, connection: Arc<Connection>, deadline: Instant) -> Session {
        connection.enter();
        Session::new(connection, deadline, self.options.deadline)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

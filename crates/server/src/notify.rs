//! What systemd is told of the server (sd_notify(3)): datagrams to the socket that it names.
//!
//! Invariant: without that socket nothing is sent, and whatever goes wrong with it changes nothing that the server does. What the
//! server starts does not get to know the socket (`Program::command`).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Variables that are for this process alone.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// It wants to hear from us at least so often.
    watchdog: Option<Duration>,
    heard: Option<Instant>,
}

impl Manager {
    /// As the environment of a service says.
    ///
    /// # Errors
    /// When the socket that is named cannot be one.
    pub fn from_environment() -> io::Result<Manager> {
        let [socket, every, pid] = VARIABLES.map(std::env::var_os);
        let text = |value: Option<std::ffi::OsString>| value.and_then(|v| v.into_string().ok());
        let is_ours = text(pid).is_none_or(|pid| pid == std::process::id().to_string());
        let every = text(every).filter(|_| is_ours).and_then(|every| every.parse().ok()).map(Duration::from_micros);
        match socket {
            Some(name) if !name.is_empty() => Manager::at(&name, every),
            _ => Ok(Manager::default()),
        }
    }

    fn at(name: &OsStr, watchdog: Option<Duration>) -> io::Result<Manager> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up the server.
        socket.set_nonblocking(true)?;
        Ok(Manager { socket: Some((socket, address)), watchdog: watchdog.filter(|w| !w.is_zero()), heard: None })
    }

    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", status.replace('\n', " ")));
    }

    pub fn reloading(&self) {
        self.tell("RELOADING=1");
    }

    pub fn stopping(&self, status: &str) {
        self.tell(&format!("STOPPING=1\nSTATUS={}", status.replace('\n', " ")));
    }

    /// To be called in every turn of the loop whose life it is to prove; sends when half of the time is over.
    pub fn alive(&mut self) {
        let Some(every) = self.watchdog else { return };
        if self.heard.is_none_or(|at| at.elapsed() >= every / 2) {
            self.heard = Some(Instant::now());
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::warn!(target: "pgark", %error, "the service manager cannot be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn a_manager_hears_what_becomes_of_the_server_and_no_more_than_it_asked_for() {
        let name = format!("pgark-notify-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("bound");
        socket.set_nonblocking(true).expect("set");
        let mut manager = Manager::at(OsStr::new(&format!("@{name}")), Some(Duration::from_secs(3600))).expect("one");
        manager.ready("listening\nREADY=0");
        assert_eq!(heard(&socket).as_deref(), Some("READY=1\nSTATUS=listening READY=0"));
        manager.alive();
        manager.alive();
        assert_eq!(heard(&socket).as_deref(), Some("WATCHDOG=1"));
        assert_eq!(heard(&socket), None, "half of the time is not over");
        manager.reloading();
        manager.stopping("ends");
        assert_eq!(heard(&socket).as_deref(), Some("RELOADING=1"));
        assert_eq!(heard(&socket).as_deref(), Some("STOPPING=1\nSTATUS=ends"));
        drop(socket);
        // Nobody hears it, and nothing happens.
        manager.ready("again");
        let mut nobody = Manager::default();
        nobody.ready("x");
        nobody.alive();
        assert!(Manager::at(OsStr::new(&"x".repeat(200)), None).is_err());
    }
}

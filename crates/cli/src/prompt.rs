//! Asks for a secret on the terminal, without showing what is typed.

use std::io::{BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::failure::{Exit, Failure};
use crate::secret::{SECRET_BYTES_MAX, Secret};

/// Whether there is somebody to ask.
pub fn possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks twice, so that a slip of the finger locks nobody out.
pub fn new_passphrase() -> Result<Secret, Failure> {
    new_secret("passphrase")
}

/// As `new_passphrase`, for a secret of another name.
pub fn new_secret(what: &str) -> Result<Secret, Failure> {
    let first = ask(&format!("New {what}: "))?;
    let again = ask("Once more: ")?;
    if first != again {
        return Err(Failure::usage("E-SECRET-DIFFERS", format!("the two {what}s differ")));
    }
    if first.expose().is_empty() {
        return Err(Failure::new("E-CANCELLED", Exit::Cancelled, "nothing was changed"));
    }
    Ok(first)
}

fn ask(question: &str) -> Result<Secret, Failure> {
    let failed = |e: std::io::Error| Failure::failed("E-SECRET-PROMPT", format!("the terminal cannot be read: {e}"));
    let _silence = Silence::begin().map_err(failed)?;
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).map_err(failed)?;
    let mut line = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    let limit = u64::try_from(SECRET_BYTES_MAX).unwrap_or(u64::MAX);
    std::io::stdin().lock().take(limit).read_until(b'\n', &mut line).map_err(failed)?;
    // The line end that was typed is not shown either.
    writeln!(stderr).map_err(failed)?;
    if line.pop_if(|b| *b == b'\n').is_some() {
        line.pop_if(|b| *b == b'\r');
    }
    Ok(Secret::new(std::mem::take(&mut *line)))
}

/// The terminal shows nothing as long as this lives.
struct Silence {
    before: Termios,
}

impl Silence {
    fn begin() -> std::io::Result<Silence> {
        let before = tcgetattr(std::io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Silence { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before) {
            tracing::warn!(target: "pgark", %error, "the terminal may not show what is typed; 'stty echo' helps");
        }
    }
}

//! Who holds a claim, precisely enough to tell on the same host that it is gone.

use serde::{Deserialize, Serialize};

use crate::error::{RepoError, Result};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    /// Changes with every boot, so that a process number of before it is never taken for one of now.
    pub boot: String,
    pub pid: u32,
    /// Clock ticks after boot at which the process started.
    pub started: u64,
}

impl Holder {
    pub fn this_process() -> Result<Self> {
        let pid = std::process::id();
        let started = start_ticks(pid).unwrap_or(0);
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy().into_owned();
        let boot = boot_id()?;
        Ok(Holder { host, boot, pid, started })
    }

    /// True only when we know: same host, and the process is not there or is another one.
    pub fn is_gone(&self) -> bool {
        let Ok(us) = Holder::this_process() else { return false };
        if us.host != self.host {
            return false;
        }
        us.boot != self.boot || start_ticks(self.pid) != Some(self.started)
    }
}

pub(super) fn boot_id() -> Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .map_err(|source| RepoError::System { what: "the boot id", source })
}

/// Field 22 of /proc/PID/stat; None when there is no such process, or only its remains wait for their parent.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_a_finished_one_is_gone() {
        let us = Holder::this_process().unwrap();
        assert!(us.started > 0 && !us.is_gone());
        assert!(Holder { started: us.started + 1, ..us.clone() }.is_gone());
        assert!(Holder { boot: "x".into(), ..us.clone() }.is_gone());
        assert!(!Holder { host: "elsewhere".into(), pid: 1, ..us }.is_gone());
    }
}

//! Objects that are being read: a few files stay open on the server, because a restore reads one pack many times.
//!
//! Objects do not change, so an open file stays true; it only may outlive its object for a moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::session::Handle;
use super::wire::kind;
use crate::store::ObjectName;

/// Files kept open. Servers allow some hundred.
const OPEN_MAX: usize = 32;
/// A file that nobody has read for so long is closed at the next occasion.
const IDLE: Duration = Duration::from_secs(30);

pub(super) struct OpenFile {
    pub(super) name: ObjectName,
    pub(super) connection: Arc<Connection>,
    pub(super) handle: Handle,
    pub(super) size: u64,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.connection.tell(&self.handle.request(kind::CLOSE));
    }
}

#[derive(Default)]
pub(super) struct OpenFiles(Mutex<Vec<(Instant, Arc<OpenFile>)>>);

impl OpenFiles {
    pub(super) fn find(&self, name: &ObjectName) -> Option<Arc<OpenFile>> {
        let mut files = self.files();
        files.retain(|(used, file)| used.elapsed() < IDLE && !file.connection.is_dead());
        let (used, file) = files.iter_mut().find(|(_, file)| file.name == *name)?;
        *used = Instant::now();
        Some(Arc::clone(file))
    }

    pub(super) fn keep(&self, file: &Arc<OpenFile>) {
        let mut files = self.files();
        if files.len() >= OPEN_MAX
            && let Some(oldest) = (0..files.len()).min_by_key(|&i| files.get(i).map(|(used, _)| *used))
        {
            files.swap_remove(oldest);
        }
        files.push((Instant::now(), Arc::clone(file)));
    }

    pub(super) fn forget(&self, name: &ObjectName) {
        self.files().retain(|(_, file)| file.name != *name);
    }

    fn files(&self) -> MutexGuard<'_, Vec<(Instant, Arc<OpenFile>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

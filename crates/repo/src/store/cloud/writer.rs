//! An object written in pieces: one request when it fits into a part, an upload in parts otherwise.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{MultipartId, PutMultipartOptions, PutPayload};
use tokio::task::JoinHandle;

use super::attempt::{Failed, run};
use super::{Inner, PART_BYTES};
use crate::store::{ObjectName, ObjectWriter, StoreError};

/// Parts under way at a time.
const PARTS_WAITING: usize = 2;
/// As many bytes as tell one object from another: an object's header holds fresh random ones.
const HEAD_BYTES: usize = 64;

pub(super) struct CloudWriter {
    store: Arc<Inner>,
    name: ObjectName,
    buffer: Vec<u8>,
    written: u64,
    head: Vec<u8>,
    upload: Option<Upload>,
    failed: bool,
}

struct Upload {
    path: Path,
    id: MultipartId,
    parts: Vec<PartId>,
    waiting: VecDeque<JoinHandle<Result<PartId, Failed>>>,
}

impl CloudWriter {
    pub fn new(store: Arc<Inner>, name: ObjectName) -> Self {
        CloudWriter { store, name, buffer: vec![], written: 0, head: vec![], upload: None, failed: false }
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        let path = self.store.path(self.name.as_str())?;
        let create = || {
            let (attributes, extensions) = (self.store.attributes(), self.store.extensions(&self.name));
            let options = PutMultipartOptions { attributes, extensions, ..Default::default() };
            self.store.client.create_multipart_opts(&path, options)
        };
        let id = self.store.attempts.run(0, create).map_err(|e| e.about("create", &self.name))?;
        self.upload = Some(Upload { path, id, parts: vec![], waiting: VecDeque::new() });
        Ok(())
    }

    fn send_part(&mut self, part: Vec<u8>) -> Result<(), StoreError> {
        if self.upload.is_none() {
            self.begin()?;
        }
        let upload = self.upload.as_mut().expect("begun above");
        while upload.waiting.len() >= PARTS_WAITING {
            upload.wait_one(&self.store).map_err(|e| e.about("write", &self.name))?;
        }
        let (client, path, id) = (Arc::clone(&self.store.client), upload.path.clone(), upload.id.clone());
        let number = upload.parts.len() + upload.waiting.len();
        let (part, limit) = (Bytes::from(part), self.store.attempts.limit_for(PART_BYTES));
        let task = async move {
            run(limit, || client.put_part(&path, &id, number, PutPayload::from_bytes(part.clone()))).await
        };
        upload.waiting.push_back(self.store.attempts.runtime().spawn(task));
        Ok(())
    }

    fn complete(&mut self) -> Result<(), StoreError> {
        let rest = std::mem::take(&mut self.buffer);
        if !rest.is_empty() {
            self.send_part(rest)?;
        }
        let (store, name) = (&self.store, &self.name);
        let upload = self.upload.as_mut().expect("called for an upload");
        while !upload.waiting.is_empty() {
            upload.wait_one(store).map_err(|e| e.about("write", name))?;
        }
        if store.exists(name)? {
            return Err(StoreError::already_exists(name));
        }
        let complete = || store.client.complete_multipart(&upload.path, &upload.id, upload.parts.clone());
        let mut version = None;
        match store.attempts.run(0, complete) {
            Ok(done) => version = done.version,
            // Completed by a try whose answer was lost: the upload is gone, and the object is ours.
            Err(e) if e.tries > 1 && self.is_ours()? => {
                tracing::debug!(%name, why = %e.why, "the upload was completed, and the answer lost");
            }
            Err(e) => return Err(e.about("create", name)),
        }
        self.upload = None;
        self.store.ensure_locked(&self.name, version.as_deref())
    }

    fn is_ours(&self) -> Result<bool, StoreError> {
        match self.store.stat(&self.name) {
            Ok(stat) if stat.size == self.written => {
                let mut head = vec![0; self.head.len()];
                self.store.read_at(&self.name, 0, &mut head)?;
                Ok(head == self.head)
            }
            Ok(_) => Ok(false),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Upload {
    /// Waits for the part that was sent first.
    fn wait_one(&mut self, store: &Inner) -> Result<(), Failed> {
        let Some(task) = self.waiting.pop_front() else { return Ok(()) };
        let part = store.attempts.runtime().block_on(task).expect("an upload neither panics nor is cancelled")?;
        self.parts.push(part);
        Ok(())
    }
}

impl ObjectWriter for CloudWriter {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        assert!(!self.failed, "an object that failed is not written on");
        let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(bytes.get(..missing).unwrap_or(bytes));
        while !bytes.is_empty() {
            // A whole part leaves when more follows: what fits into one part goes in one conditional request.
            if self.buffer.len() == PART_BYTES {
                let part = std::mem::replace(&mut self.buffer, Vec::with_capacity(PART_BYTES));
                self.send_part(part).inspect_err(|_| self.failed = true)?;
            }
            let room = (PART_BYTES - self.buffer.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.buffer.extend_from_slice(now);
            self.written += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.written
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        assert!(!self.failed, "an object that failed is not finished");
        if self.upload.is_some() {
            return self.complete();
        }
        let bytes = std::mem::take(&mut self.buffer);
        self.store.put_new(&self.name, bytes.into())
    }
}

impl Drop for CloudWriter {
    /// Invisible parts cost money until somebody removes them; not being able to is no failure of what is under way.
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else { return };
        upload.waiting.iter().for_each(JoinHandle::abort);
        // Once: whoever drops a writer has a failure to tell, and should not wait for a store that is away.
        let attempts = &self.store.attempts;
        let abort = async {
            let aborted = self.store.client.abort_multipart(&upload.path, &upload.id);
            tokio::time::timeout(attempts.limit_for(0), aborted).await
        };
        if !matches!(attempts.runtime().block_on(abort), Ok(Ok(()))) {
            tracing::warn!(name = %self.name, "an unfinished upload could not be removed; a lifecycle rule of the bucket should");
        }
    }
}

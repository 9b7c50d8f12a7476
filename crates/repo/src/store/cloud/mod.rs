//! Object stores: S3 and what speaks its protocol, Azure Blob Storage, Google Cloud Storage; by `object_store`, whose
//! own retries are off. What is tried again, and how long, is decided in `attempt.rs`, because only who knows that an
//! earlier try may have succeeded can tell "ours" from "taken".
//!
//! Invariant: a missing bucket or a failed request is never reported as a missing object or an empty list. Objects of
//! up to one part are created by one conditional request. Larger ones are looked for before they are completed: their
//! names belong to one holder of a claim.

mod attempt;
mod control;
mod error;
mod locks;
mod open;
mod past;
mod writer;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, Extensions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode,
};
use object_store::{PutOptions, PutPayload};

use super::lock::{ObjectLock, Retention};
use super::name::check_prefix;
use super::{Capability, ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};
use attempt::{Attempts, Failed};
use control::{Control, Retain};
use locks::{Locking, PROBE_DIR};
use writer::CloudWriter;

pub use open::{CloudKind, CloudOptions};
pub use past::PastStore;

/// Bytes of a part of an upload: two of them and one being filled are in memory for each writer.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Entries of a listing that are held at a time.
const LIST_BATCH: usize = 1000;

type Listing = BoxStream<'static, object_store::Result<ObjectMeta>>;

/// What both the object and the multipart interface of a client offer.
pub(crate) trait Client: ObjectStore + MultipartStore {}
impl<T: ObjectStore + MultipartStore> Client for T {}

#[derive(Clone)]
pub struct CloudStore {
    inner: Arc<Inner>,
}

struct Inner {
    kind: CloudKind,
    client: Arc<dyn Client>,
    /// For the S3 protocol.
    control: Option<Control>,
    lock: Option<Locking>,
    attempts: Attempts,
    /// Path of the repository in the bucket; empty for the whole bucket.
    root: String,
    url: String,
    storage_class: Option<String>,
    conditional: Conditional,
    order: ListOrder,
}

/// Whether the store lists names in the order of their bytes. Azure does not with hierarchical namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListOrder {
    ByName,
    None,
}

/// Whether the store can create a name only when it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    Yes,
    /// Looked for before and compared after: safe with one writer only.
    SingleWriter,
}

impl fmt::Debug for CloudStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudStore").field("url", &self.inner.url).finish_non_exhaustive()
    }
}

impl CloudStore {
    /// Prepares the client; nothing is asked of the store yet.
    ///
    /// # Errors
    /// What the options cannot mean.
    pub fn open(options: CloudOptions) -> Result<Self, StoreError> {
        Ok(CloudStore { inner: Arc::new(open::open(options)?) })
    }
}

impl Inner {
    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let full = match (self.root.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (false, true) => self.root.clone(),
            (false, false) => format!("{}/{name}", self.root),
        };
        Path::parse(&full).map_err(|e| StoreError::io("name", name, std::io::Error::other(e)))
    }

    /// None: everything.
    fn prefix(&self, prefix: &str) -> Result<Option<Path>, StoreError> {
        let path = self.path(prefix)?;
        Ok((!path.as_ref().is_empty()).then_some(path))
    }

    /// The name below our root; None for what is not ours to see.
    fn relative(&self, location: &Path) -> Result<Option<ObjectName>, StoreError> {
        let full = location.as_ref();
        let rest = if self.root.is_empty() {
            Some(full)
        } else {
            full.strip_prefix(&self.root).and_then(|r| r.strip_prefix('/'))
        };
        match rest {
            None => Err(StoreError::io("list", full, std::io::Error::other("the store listed what was not asked for"))),
            Some(rest) if rest.split('/').any(|part| part.starts_with('.')) => Ok(None),
            Some(rest) => ObjectName::parse(rest).map(Some),
        }
    }

    fn attributes(&self) -> Attributes {
        let class = |c: &String| (Attribute::StorageClass, AttributeValue::from(c.clone()));
        self.storage_class.iter().map(class).collect()
    }

    /// What new objects are locked by; probes are not.
    fn extensions(&self, name: &ObjectName) -> Extensions {
        let mut extensions = Extensions::new();
        if let Some(Locking { policy }) = &self.lock
            && name.parent() != PROBE_DIR
        {
            let until = policy.until(jiff::Timestamp::now());
            extensions.insert(Retain(Retention { mode: policy.mode(), until }));
        }
        extensions
    }

    fn put_mode(&self) -> PutMode {
        match self.conditional {
            Conditional::Yes => PutMode::Create,
            Conditional::SingleWriter => PutMode::Overwrite,
        }
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        let path = self.path(name.as_str())?;
        let meta = self.attempts.run(0, || self.client.head(&path)).map_err(|e| e.about("stat", name))?;
        Ok(ObjectStat { name: name.clone(), size: meta.size, modified: Some(meta.last_modified.into()) })
    }

    fn exists(&self, name: &ObjectName) -> Result<bool, StoreError> {
        match self.stat(name) {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        if self.conditional == Conditional::SingleWriter && self.exists(name)? {
            return Err(StoreError::already_exists(name));
        }
        let path = self.path(name.as_str())?;
        let put = || {
            let (mode, attributes, extensions) = (self.put_mode(), self.attributes(), self.extensions(name));
            let options = PutOptions { mode, attributes, extensions, ..Default::default() };
            self.client.put_opts(&path, PutPayload::from_bytes(bytes.clone()), options)
        };
        match self.attempts.run(bytes.len(), put) {
            Ok(_) if self.conditional == Conditional::SingleWriter => match self.holds(name, &bytes)? {
                true => Ok(()),
                false => Err(StoreError::already_exists(name)),
            },
            Ok(_) => Ok(()),
            // An answer to an earlier try was lost: it may have been "created".
            Err(Failed { taken: true, tries, .. }) if tries > 1 && self.holds(name, &bytes)? => Ok(()),
            Err(e) => Err(e.about("create", name)),
        }
    }

    /// Whether the object has exactly these bytes.
    fn holds(&self, name: &ObjectName, bytes: &[u8]) -> Result<bool, StoreError> {
        match self.read(name, bytes.len() as u64) {
            Ok(found) => Ok(found == bytes),
            Err(StoreError::TooLarge { .. } | StoreError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.read_version(name, max, None)
    }

    fn read_version(&self, name: &ObjectName, max: u64, version: Option<&str>) -> Result<Vec<u8>, StoreError> {
        let path = self.path(name.as_str())?;
        let expected = usize::try_from(max).unwrap_or(usize::MAX).min(PART_BYTES);
        let get = || async {
            let options = GetOptions { version: version.map(str::to_owned), ..Default::default() };
            let result = self.client.get_opts(&path, options).await?;
            let size = result.meta.size;
            if size > max {
                return Ok(Err(size));
            }
            let bytes = result.bytes().await?;
            if bytes.len() as u64 == size { Ok(Ok(bytes)) } else { Err(error::short_body(size, bytes.len())) }
        };
        match self.attempts.run(expected, get).map_err(|e| e.about("read", name))? {
            Ok(bytes) => Ok(bytes.into()),
            Err(size) => Err(StoreError::TooLarge { object: name.to_string(), size, max }),
        }
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read_version_at(name, offset, buf, None)
    }

    fn read_version_at(
        &self,
        name: &ObjectName,
        offset: u64,
        buf: &mut [u8],
        version: Option<&str>,
    ) -> Result<(), StoreError> {
        let wanted = offset.saturating_add(buf.len() as u64);
        let truncated = |size| StoreError::Truncated { object: name.to_string(), size, wanted };
        if buf.is_empty() || offset.checked_add(buf.len() as u64).is_none() {
            let size = self.stat(name)?.size;
            return if size >= wanted && wanted < u64::MAX { Ok(()) } else { Err(truncated(size)) };
        }
        let path = self.path(name.as_str())?;
        let get = || async {
            let range = Some(GetRange::Bounded(offset..wanted));
            let options = GetOptions { range, version: version.map(str::to_owned), ..Default::default() };
            self.client.get_opts(&path, options).await?.bytes().await
        };
        let found = self.attempts.run(buf.len(), get);
        match found {
            Ok(bytes) if bytes.len() == buf.len() => buf.copy_from_slice(&bytes),
            Ok(_) => return self.say_short(name, wanted),
            Err(e) if e.is_range() => return self.say_short(name, wanted),
            Err(e) => return Err(e.about("read", name)),
        }
        Ok(())
    }

    /// Fewer bytes came than were asked for.
    fn say_short(&self, name: &ObjectName, wanted: u64) -> Result<(), StoreError> {
        let size = self.stat(name)?.size;
        if size < wanted {
            return Err(StoreError::Truncated { object: name.to_string(), size, wanted });
        }
        Err(StoreError::io("read", name, std::io::Error::other("the store answered with less than was asked for")))
    }

    fn place<'a>(&'a self, prefix: &'a str) -> &'a str {
        if prefix.is_empty() { &self.url } else { prefix }
    }

    /// Page by page, as the store lists by itself in the order of the names.
    fn list_stream(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let path = self.prefix(prefix)?;
        let mut last: Option<Path> = None;
        let stream: RefCell<Option<Listing>> = RefCell::new(None);
        loop {
            // A listing that failed is not put back; what came before is not asked for again.
            let next = || {
                let kept = stream.borrow_mut().take();
                let mut listing = kept.unwrap_or_else(|| match &last {
                    None => self.client.list(path.as_ref()),
                    Some(after) => self.client.list_with_offset(path.as_ref(), after),
                });
                let stream = &stream;
                async move {
                    let batch: Vec<_> = listing.by_ref().take(LIST_BATCH).collect().await;
                    let batch = batch.into_iter().collect::<object_store::Result<Vec<_>>>()?;
                    stream.replace(Some(listing));
                    Ok(batch)
                }
            };
            let batch = self.attempts.run(0, next).map_err(|e| e.about_list(self.place(prefix)))?;
            let end = batch.len() < LIST_BATCH;
            for meta in batch {
                if last.as_ref().is_some_and(|l| l.as_ref() >= meta.location.as_ref()) {
                    let why = "the store's list is not in the order of the names";
                    return Err(StoreError::io("list", meta.location, std::io::Error::other(why)));
                }
                last = Some(meta.location.clone());
                self.visit_one(meta, visit)?;
            }
            if end {
                return Ok(());
            }
        }
    }

    fn visit_one(&self, meta: ObjectMeta, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let Some(name) = self.relative(&meta.location)? else { return Ok(()) };
        visit(ObjectStat { name, size: meta.size, modified: Some(SystemTime::from(meta.last_modified)) })
    }

    /// Directory by directory, each sorted here, for stores that promise no order.
    fn list_sorted(&self, path: Option<&Path>, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let found = self.attempts.run(0, || self.client.list_with_delimiter(path));
        let found = found.map_err(|e| e.about_list(self.place(prefix)))?;
        let mut entries: Vec<(String, Result<ObjectMeta, Path>)> = vec![];
        entries.extend(found.objects.into_iter().map(|o| (o.location.to_string(), Ok(o))));
        // A directory sorts as its objects do: by the slash that follows.
        entries.extend(found.common_prefixes.into_iter().map(|dir| (format!("{dir}/"), Err(dir))));
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (_, entry) in entries {
            match entry {
                Ok(meta) => self.visit_one(meta, visit)?,
                Err(dir) => self.list_sorted(Some(&dir), prefix, visit)?,
            }
        }
        Ok(())
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        match self.order {
            ListOrder::ByName => self.list_stream(prefix, visit),
            ListOrder::None => self.list_sorted(self.prefix(prefix)?.as_ref(), prefix, visit),
        }
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let path = self.prefix(prefix)?;
        let found = self.attempts.run(0, || self.client.list_with_delimiter(path.as_ref()));
        let found = found.map_err(|e| e.about_list(self.place(prefix)))?;
        let mut dirs = vec![];
        for dir in &found.common_prefixes {
            if let Some(name) = self.relative(dir)? {
                dirs.push(name.basename().to_owned());
            }
        }
        dirs.sort();
        dirs.dedup();
        Ok(dirs)
    }

    fn remove(&self, name: &ObjectName) -> Result<(), StoreError> {
        let path = self.path(name.as_str())?;
        self.attempts.run(0, || self.client.delete(&path)).map_err(|e| e.about("delete", name))
    }
}

impl Store for CloudStore {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.put_new(name, Bytes::copy_from_slice(bytes))
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        Ok(Box::new(CloudWriter::new(Arc::clone(&self.inner), name.clone())))
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.inner.read(name, max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(name, offset, buf)
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.inner.stat(name)
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        check_prefix(prefix)?;
        self.inner.list(prefix, visit)
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix(prefix)?;
        self.inner.list_dirs(prefix)
    }

    /// Object stores do not say whether there was anything to delete: it is looked for first.
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.stat(name)?;
        self.inner.remove(name)
    }

    fn discard(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.remove(name)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    fn has_own_clock(&self) -> bool {
        true
    }

    fn url(&self) -> String {
        self.inner.url.clone()
    }

    fn may_archive(&self) -> bool {
        true
    }

    fn probe(&self) -> Vec<Capability> {
        self.capabilities()
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.inner.lock.as_ref().map(|_| self as &dyn ObjectLock)
    }

    /// Parts of unfinished uploads are invisible and are the bucket's to remove, by its lifecycle rule.
    fn sweep_abandoned(&self, _older_than: Duration) -> Result<u64, StoreError> {
        Ok(0)
    }
}

//! A store that writes parity beside each object that deserves it.
//!
//! Invariant: an object's fate does not depend on its parity. It is committed first; parity that cannot be written is said
//! aloud, and a verification finds that it is missing.

use std::sync::{Arc, Mutex, PoisonError};

use super::Percent;
use super::check::protect;
use super::encode::ParityEncoder;
use crate::names;
use crate::store::forward::forward_to_inner;
use crate::store::{ObjectName, ObjectWriter, Store, StoreError};

/// So many failures are told one by one.
const NOTICES_MAX: usize = 20;

pub struct ParityStore {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<dyn Store>,
    percent: Percent,
    failed: Mutex<Failed>,
}

#[derive(Default)]
struct Failed {
    first: Vec<String>,
    more: usize,
}

impl ParityStore {
    pub fn new(inner: Arc<dyn Store>, percent: Percent) -> Self {
        ParityStore { shared: Arc::new(Shared { inner, percent, failed: Mutex::default() }) }
    }

    fn inner(&self) -> &dyn Store {
        &*self.shared.inner
    }
}

impl Shared {
    fn say(&self, name: &ObjectName, why: &StoreError) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.first.len() < NOTICES_MAX {
            failed.first.push(format!("{name} is stored and has no parity: {why}"));
        } else {
            failed.more += 1;
        }
    }
}

impl Store for ParityStore {
    forward_to_inner!(read read_at stat list list_dirs delete discard free_bytes url sweep_abandoned weaknesses has_own_clock space may_archive heal probe object_lock may_delete);

    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        if !names::deserves_parity(name) {
            return self.inner().put_new(name, bytes);
        }
        let mut writer = self.create(name)?;
        writer.write(bytes)?;
        writer.finish()
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let object = self.inner().create(name)?;
        if !names::deserves_parity(name) {
            return Ok(object);
        }
        let encoder = Some(ParityEncoder::new(name, self.shared.percent));
        Ok(Box::new(ParityWriter { shared: self.shared.clone(), name: name.clone(), object, encoder, parity: None }))
    }

    fn notices(&self) -> Vec<String> {
        let failed = std::mem::take(&mut *self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner));
        let more = (failed.more > 0).then(|| format!("{} more objects are stored and have no parity", failed.more));
        failed.first.into_iter().chain(more).chain(self.inner().notices()).collect()
    }

    fn parity(&self) -> Option<Percent> {
        Some(self.shared.percent)
    }
}

struct ParityWriter {
    shared: Arc<Shared>,
    name: ObjectName,
    object: Box<dyn ObjectWriter>,
    /// None once parity has failed: the object goes on alone.
    encoder: Option<ParityEncoder>,
    /// From the first section on; dropped with the object, it leaves nothing.
    parity: Option<Box<dyn ObjectWriter>>,
}

impl ParityWriter {
    fn encode(
        &mut self,
        step: impl FnOnce(ParityEncoder, &mut Parity<'_>) -> Result<Option<ParityEncoder>, StoreError>,
    ) {
        let Some(encoder) = self.encoder.take() else { return };
        let mut to = Parity { shared: &self.shared, name: &self.name, writer: &mut self.parity };
        match step(encoder, &mut to) {
            Ok(encoder) => self.encoder = encoder,
            Err(e) => {
                self.shared.say(&self.name, &e);
                self.parity = None;
            }
        }
    }
}

struct Parity<'a> {
    shared: &'a Shared,
    name: &'a ObjectName,
    writer: &'a mut Option<Box<dyn ObjectWriter>>,
}

impl Parity<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.writer.is_none() {
            *self.writer = Some(self.shared.inner.create(&names::parity(self.name)?)?);
        }
        self.writer.as_mut().map_or(Ok(()), |w| w.write(bytes))
    }
}

impl ObjectWriter for ParityWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.object.write(bytes)?;
        self.encode(|mut encoder, to| encoder.write(bytes, &mut |b| to.write(b)).map(|()| Some(encoder)));
        Ok(())
    }

    fn written(&self) -> u64 {
        self.object.written()
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.object.settle()
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.encode(|encoder, to| encoder.finish(&mut |b| to.write(b)).map(|()| None));
        self.object.finish()?;
        let written = match self.parity.take().map_or(Ok(()), ObjectWriter::finish) {
            // Left behind by an object of this name that is gone; or it was repaired, and its parity was sound.
            Err(StoreError::AlreadyExists { .. }) => protect(&*self.shared.inner, &self.name, self.shared.percent),
            other => other,
        };
        if let Err(e) = written {
            self.shared.say(&self.name, &e);
        }
        Ok(())
    }
}

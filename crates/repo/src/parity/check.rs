//! Whether an object's parity is what its bytes give, and making it where it is missing. Both read the whole object and
//! take its bytes for right: whoever calls has verified them.

use super::Percent;
use super::encode::ParityEncoder;
use super::heal::{Raw, percent_of};
use super::index::print_of_name;
use crate::names;
use crate::store::{ObjectName, ObjectWriter, Store, StoreError};

/// Of the object, read at once.
const PIECE: usize = 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParityState {
    Whole,
    Missing,
    Damaged,
}

/// Computes the parity anew and compares every byte.
pub fn check(store: &dyn Store, name: &ObjectName) -> Result<ParityState, StoreError> {
    let parity_name = names::parity(name)?;
    let parity = Raw::open(store, &parity_name)?;
    if !parity.exists {
        return Ok(ParityState::Missing);
    }
    let Some(percent) = percent_of(&parity, &print_of_name(name))?.and_then(Percent::new) else {
        return Ok(ParityState::Damaged);
    };
    let (mut at, mut same) = (0, true);
    let mut stored = vec![];
    encode(store, name, percent, &mut |bytes| {
        stored.resize(bytes.len(), 0);
        if same {
            parity.read(at, &mut stored)?;
        }
        same &= stored == bytes;
        at += bytes.len() as u64;
        Ok(())
    })?;
    Ok(if same && at == parity.size { ParityState::Whole } else { ParityState::Damaged })
}

/// Writes the parity of an object. What lies in its place is kept when it is whole, and replaced otherwise: nothing relies on
/// parity, so nobody misses it meanwhile.
pub fn protect(store: &dyn Store, name: &ObjectName, percent: Percent) -> Result<(), StoreError> {
    let parity_name = names::parity(name)?;
    match check(store, name)? {
        ParityState::Whole => return Ok(()),
        ParityState::Missing => {}
        ParityState::Damaged => store.delete(&parity_name)?,
    }
    let mut writer: Option<Box<dyn ObjectWriter>> = None;
    encode(store, name, percent, &mut |bytes| {
        if writer.is_none() {
            writer = Some(store.create(&parity_name)?);
        }
        writer.as_mut().map_or(Ok(()), |w| w.write(bytes))
    })?;
    match writer.map_or(Ok(()), ObjectWriter::finish) {
        // Somebody else was as quick; the same bytes give the same parity.
        Err(StoreError::AlreadyExists { .. }) => Ok(()),
        other => other,
    }
}

fn encode(
    store: &dyn Store,
    name: &ObjectName,
    percent: Percent,
    out: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let size = store.stat(name)?.size;
    let mut encoder = ParityEncoder::new(name, percent);
    let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
        store.read_at(name, at, &mut piece[..len])?;
        encoder.write(&piece[..len], out)?;
        at += len as u64;
    }
    encoder.finish(out)
}

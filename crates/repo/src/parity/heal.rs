//! Finding the damaged shards of an object by their checksums, and making them again.
//!
//! Nothing is written here. The result is as trustworthy as the store: the caller authenticates it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::code::{Shape, Shards, restore};
use super::index::{MAGIC, PAGE_BYTES, Page, Print, Section, parse_page, print_of, print_of_name};
use crate::limits::HEALED_BYTES_MAX;
use crate::names;
use crate::store::{ObjectName, Store, StoreError};

/// Read at once; several shards of any size.
const WINDOW_BYTES: usize = 1024 * 1024;
/// What a disk fails to read as a whole.
const SECTOR_BYTES: usize = 4096;

/// What differs from the stored object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healed {
    /// Of the whole object.
    pub size: u64,
    /// The stretches that were made again, by where they begin; none overlaps another.
    pub shards: BTreeMap<u64, Vec<u8>>,
}

impl Healed {
    pub fn bytes(&self) -> usize {
        self.shards.values().map(Vec::len).sum()
    }
}

/// Why an object could not be healed.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    #[error("it has no parity")]
    NoParity,
    #[error("its parity is damaged beyond use")]
    ParityDamaged,
    /// It is not the medium that damaged it, or its parity is of other bytes.
    #[error("by the checksums of its parity it is as it was written")]
    NothingWrong,
    #[error("{damaged} of {shards} sectors are damaged, parity for {parity} is left")]
    TooMuch { damaged: usize, shards: usize, parity: usize },
    #[error("more is damaged than is held in memory at once")]
    TooLarge,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is wrong with an object by its parity, made again; the whole object or nothing.
pub fn heal(store: &dyn Store, name: &ObjectName) -> Result<Healed, HealError> {
    let parity = names::parity(name).map_err(|_| HealError::NoParity)?;
    let parity = Raw::open(store, &parity)?;
    if parity.size == 0 {
        return Err(if parity.exists { HealError::ParityDamaged } else { HealError::NoParity });
    }
    let object = Raw::open(store, name)?;
    let print = print_of_name(name);
    let mut healed = Healed::default();
    let mut section_at = 0;
    loop {
        let found = IndexedSection::find(&parity, &print, healed.size, section_at)?;
        let indexed = found.ok_or(HealError::ParityDamaged)?;
        indexed.heal(&object, &parity, &mut healed)?;
        healed.size += indexed.section.data_len;
        section_at = indexed.section.section_at + indexed.section.section_bytes();
        if indexed.section.last {
            break;
        }
    }
    let same_length = object.exists && object.size == healed.size;
    if healed.shards.is_empty() && same_length { Err(HealError::NothingWrong) } else { Ok(healed) }
}

/// The percentage that an object's parity was made with; None when no page of its index can be read.
pub(super) fn percent_of(parity: &Raw<'_>, print: &[u8; 16]) -> Result<Option<u8>, StoreError> {
    Ok(IndexedSection::find(parity, print, 0, 0)?.map(|indexed| indexed.section.percent))
}

/// An object on a medium that may fail: what cannot be read, is not there or lies behind the end reads as zeros, and a
/// checksum will not agree. Trouble that is not the medium's is an error.
pub(super) struct Raw<'a> {
    store: &'a dyn Store,
    name: ObjectName,
    pub exists: bool,
    pub size: u64,
}

impl<'a> Raw<'a> {
    pub fn open(store: &'a dyn Store, name: &ObjectName) -> Result<Self, StoreError> {
        let (exists, size) = match store.stat(name) {
            Ok(stat) => (true, stat.size),
            Err(e) if e.is_not_found() => (false, 0),
            Err(e) => return Err(e),
        };
        Ok(Raw { store, name: name.clone(), exists, size })
    }

    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        buf.fill(0);
        let there = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..there];
        if buf.is_empty() || self.read_some(at, buf)? {
            return Ok(());
        }
        let sector = SECTOR_BYTES as u64;
        let mut begin = 0;
        while begin < buf.len() {
            let to_boundary = usize::try_from(sector - (at + begin as u64) % sector).unwrap_or(SECTOR_BYTES);
            let end = buf.len().min(begin + to_boundary);
            if !self.read_some(at + begin as u64, &mut buf[begin..end])? {
                buf[begin..end].fill(0);
            }
            begin = end;
        }
        Ok(())
    }

    /// False when the medium does not give it.
    fn read_some(&self, at: u64, buf: &mut [u8]) -> Result<bool, StoreError> {
        match self.store.read_at(&self.name, at, buf) {
            Ok(()) => Ok(true),
            Err(e) if e.is_unreadable() || e.is_not_found() || matches!(e, StoreError::Truncated { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// A section and the checksums that could be read.
struct IndexedSection {
    section: Section,
    prints: Vec<Option<Print>>,
}

impl IndexedSection {
    /// The section that protects the object from `data_at` on; it should begin at `section_at`.
    fn find(parity: &Raw<'_>, name: &[u8; 16], data_at: u64, section_at: u64) -> Result<Option<Self>, StoreError> {
        let mut page = vec![0; PAGE_BYTES];
        parity.read(section_at, &mut page)?;
        let here = parse_page(&page, name).map(|p| p.section);
        let here = here.filter(|s| s.data_at == data_at && s.section_at == section_at);
        let section = match here {
            Some(section) => section,
            None => match search(parity, name, data_at)? {
                Some(section) => section,
                None => return Ok(None),
            },
        };
        let mut prints = vec![None; section.shards()];
        for number in 0..section.pages() {
            for at in section.page_at(number) {
                let page = &mut page[..section.page_bytes(number)];
                parity.read(at, page)?;
                if let Some(Page { prints: sound, .. }) =
                    parse_page(page, name).filter(|p| p.section == section && p.number == number)
                {
                    let first = Section::first_print(number);
                    prints[first..first + sound.len()].iter_mut().zip(sound).for_each(|(p, s)| *p = Some(s));
                    break;
                }
            }
        }
        Ok(Some(IndexedSection { section, prints }))
    }

    /// Adds what is wrong with this section of the object to `healed`.
    fn heal(&self, object: &Raw<'_>, parity: &Raw<'_>, healed: &mut Healed) -> Result<(), HealError> {
        let s = &self.section;
        let (data, all) = (s.data_shards(), s.shards());
        // Before anything is read by what the index says: what lies behind the object's end is lost.
        let end = s.data_at + s.data_len;
        let cut_off = end.saturating_sub(object.size.max(s.data_at)).div_ceil(u64::from(s.shard_bytes));
        if cut_off > s.parity_shards() as u64 {
            let damaged = usize::try_from(cut_off).unwrap_or(data);
            return Err(HealError::TooMuch { damaged, shards: data, parity: s.parity_shards() });
        }
        let mut wrong = vec![false; all];
        let mut unknown = vec![];
        self.check(object, s.data_at, s.data_len, 0..data, &mut wrong, &mut unknown)?;
        if cut_off > 0 {
            // A shard that ends in zeros reads the same without them.
            let first = object.size.saturating_sub(s.data_at) / u64::from(s.shard_bytes);
            wrong[usize::try_from(first).unwrap_or(data).min(data)..data].fill(true);
        }
        unknown.retain(|number| !wrong[*number]);
        let mut parity_unknown = vec![];
        let parity_len = s.parity_shards() as u64 * u64::from(s.shard_bytes);
        self.check(parity, s.parity_at(), parity_len, data..all, &mut wrong, &mut parity_unknown)?;
        // Nobody can say of these whether they are right: parity is not trusted then, data only for want of parity.
        parity_unknown.iter().for_each(|number| wrong[*number] = true);
        let sound_parity: Vec<usize> = (0..s.parity_shards()).filter(|number| !wrong[data + number]).collect();
        let known_damage = wrong[..data].iter().filter(|wrong| **wrong).count();
        if known_damage + unknown.len() <= sound_parity.len() {
            unknown.iter().for_each(|number| wrong[*number] = true);
        }
        let missing: Vec<usize> = (0..data).filter(|number| wrong[*number]).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if missing.len() > sound_parity.len() {
            let (damaged, parity) = (missing.len(), sound_parity.len());
            return Err(HealError::TooMuch { damaged, shards: data, parity });
        }
        if healed.bytes() + missing.len() * s.shard() > HEALED_BYTES_MAX {
            return Err(HealError::TooLarge);
        }
        let restored = self.decode(object, parity, &wrong, &missing, &sound_parity)?;
        for (number, mut shard) in missing.into_iter().zip(restored) {
            if self.prints[number].is_some_and(|print| print != print_of(&shard)) {
                return Err(HealError::ParityDamaged);
            }
            let from = number as u64 * u64::from(s.shard_bytes);
            shard.truncate(usize::try_from(s.data_len - from).unwrap_or(usize::MAX));
            healed.shards.insert(s.data_at + from, shard);
        }
        Ok(())
    }

    /// Compares `numbers`, which lie from `at` on, with their checksums.
    fn check(
        &self,
        raw: &Raw<'_>,
        at: u64,
        len: u64,
        numbers: Range<usize>,
        wrong: &mut [bool],
        unknown: &mut Vec<usize>,
    ) -> Result<(), StoreError> {
        let first = numbers.start;
        each_shard(raw, at, len, self.section.shard(), &mut |number, shard| {
            let number = first + number;
            match self.prints[number] {
                Some(print) => wrong[number] = print != print_of(shard),
                None => unknown.push(number),
            }
        })
    }

    fn decode(
        &self,
        object: &Raw<'_>,
        parity: &Raw<'_>,
        wrong: &[bool],
        missing: &[usize],
        sound_parity: &[usize],
    ) -> Result<Vec<Vec<u8>>, HealError> {
        let s = &self.section;
        let shape = Shape { width: s.width(), data_shards: s.data_shards(), shard_bytes: s.shard() };
        let mut used = vec![];
        for number in &sound_parity[..missing.len()] {
            let mut shard = vec![0; s.shard()];
            parity.read(s.parity_at() + *number as u64 * u64::from(s.shard_bytes), &mut shard)?;
            used.push((*number, shard));
        }
        let mut sound = SoundShards { object, section: s, wrong };
        restore(shape, missing, &used, &mut sound)?.ok_or(HealError::ParityDamaged)
    }
}

struct SoundShards<'a> {
    object: &'a Raw<'a>,
    section: &'a Section,
    wrong: &'a [bool],
}

impl Shards for SoundShards<'_> {
    type Error = StoreError;

    fn each(&mut self, show: &mut dyn FnMut(usize, &[u8])) -> Result<(), StoreError> {
        let s = self.section;
        each_shard(self.object, s.data_at, s.data_len, s.shard(), &mut |number, shard| {
            if !self.wrong[number] {
                show(number, shard);
            }
        })
    }
}

/// Reads `len` bytes from `at` on and shows them in shards, the last one filled up with zeros.
fn each_shard(
    raw: &Raw<'_>,
    at: u64,
    len: u64,
    shard: usize,
    show: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), StoreError> {
    let window = WINDOW_BYTES / shard * shard;
    let mut buffer = vec![];
    let (mut done, mut number) = (0, 0);
    while done < len {
        let now = usize::try_from(len - done).unwrap_or(window).min(window);
        buffer.clear();
        buffer.resize(now.next_multiple_of(shard), 0);
        raw.read(at + done, &mut buffer[..now])?;
        for shard in buffer.chunks_exact(shard) {
            show(number, shard);
            number += 1;
        }
        done += now as u64;
    }
    Ok(())
}

/// Looks through the whole parity object for a page of the section that begins at `data_at`: any one will do.
fn search(parity: &Raw<'_>, name: &[u8; 16], data_at: u64) -> Result<Option<Section>, StoreError> {
    let mut window = vec![0; WINDOW_BYTES + PAGE_BYTES];
    let mut at = 0;
    while at < parity.size {
        parity.read(at, &mut window)?;
        let starts = window.windows(MAGIC.len()).take(WINDOW_BYTES).enumerate().filter(|(_, w)| w == MAGIC);
        for (start, _) in starts {
            let found = parse_page(&window[start..window.len().min(start + PAGE_BYTES)], name);
            let in_place = |p: &Page| p.section.page_at(p.number).contains(&(at + start as u64));
            if let Some(page) = found.filter(|p| p.section.data_at == data_at && in_place(p)) {
                return Ok(Some(page.section));
            }
        }
        at += WINDOW_BYTES as u64;
    }
    Ok(None)
}

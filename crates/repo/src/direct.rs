//! Writing large files past the page cache. Copying through it costs more processor time than compressing does,
//! and pushes out of memory what the database keeps there.
//!
//! Only a speed-up: where the file system does not offer it, writes go the ordinary way.

use std::os::fd::AsFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Offsets, lengths and addresses of direct writes are multiples of it.
pub const ALIGNMENT: usize = 4096;

/// Memory that begins at a multiple of `ALIGNMENT`.
pub struct AlignedBuffer {
    raw: Vec<u8>,
    start: usize,
    capacity: usize,
}

impl AlignedBuffer {
    pub fn new(capacity: usize) -> Self {
        let raw = vec![0u8; capacity + ALIGNMENT];
        let start = raw.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT, "byte addresses can be aligned");
        AlignedBuffer { raw, start, capacity }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn bytes(&self) -> &[u8] {
        &self.raw[self.start..self.start + self.capacity]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..self.start + self.capacity]
    }
}

/// Switches direct writing on or off for an open file. False: the file system does not offer it.
pub fn set_direct(file: impl AsFd, on: bool) -> Result<bool, Errno> {
    let flags = rustix::fs::fcntl_getfl(&file)?;
    let wanted = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    match rustix::fs::fcntl_setfl(&file, wanted) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) if on => Ok(false),
        Err(e) => Err(e),
    }
}

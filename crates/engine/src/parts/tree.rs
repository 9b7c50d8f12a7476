//! Writing many files one after another: small ones share frames, so a file is known to the manifest only when the frame that
//! it ends in is stored. Until then it waits in a queue, in order; memory depends neither on the number of files nor on their
//! size.

use std::collections::VecDeque;

use pgark_pg::page::is_all_zero;
use pgark_repo::limits::FRAME_BYTES;
use pgark_repo::manifest::{Attributes, Chunk, FileStart, Item};

use super::before::KnownTree;
use super::chunker::CHUNK_BYTES_MAX;
use super::spool::Spool;
use super::write::{ManifestOf, PartSink, Waiting};
use crate::error::Result;

/// Files and other items that wait for a frame to be full.
const QUEUE_MAX: usize = 16 * 1024;
const WAITING_CHUNKS_MAX: usize = 16 * 1024;

/// Takes a tree in the order of the manifest.
pub(crate) struct TreeSink<'w, 'l> {
    sink: PartSink<'w>,
    list: &'l mut ManifestOf<'w>,
    known: Option<KnownTree>,
    queue: VecDeque<Queued>,
    /// The file whose content is coming in.
    open: Option<Content>,
    /// Of it, not cut yet.
    buffer: Vec<u8>,
    /// Content that was stored now; the rest was there.
    pub new_bytes: u64,
}

enum Queued {
    Item(Item),
    File(FileStart, Attributes, Content),
}

struct Content {
    waiting: Vec<Waiting>,
    chunks: Spool,
    new_bytes: u64,
}

impl<'w, 'l> TreeSink<'w, 'l> {
    /// For what lies below `top`.
    pub fn new(sink: PartSink<'w>, list: &'l mut ManifestOf<'w>, top: &[u8]) -> Result<Self> {
        let known = sink.shared().known_tree(top)?;
        Ok(TreeSink { sink, list, known, queue: VecDeque::new(), open: None, buffer: vec![], new_bytes: 0 })
    }

    /// A directory or a link, or the attributes of what came before.
    pub fn item(&mut self, item: Item) -> Result<()> {
        assert!(self.open.is_none(), "a file ends before the next item");
        self.queue.push_back(Queued::Item(item));
        self.settle()
    }

    /// The content of this file follows. What was begun and not ended is forgotten.
    pub fn begin(&mut self, path: &[u8]) -> Result<()> {
        self.buffer.clear();
        let chunks = Spool::new(self.sink.shared().scratch());
        self.open = Some(Content { waiting: vec![], chunks, new_bytes: 0 });
        self.known.as_mut().map_or(Ok(()), |known| known.enter(path))
    }

    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.cut(CHUNK_BYTES_MAX)
    }

    /// So many zeros, which nobody needs to have read.
    pub fn hole(&mut self, len: u64) -> Result<()> {
        self.cut(0)?;
        self.open().waiting.push(Waiting::Placed(Chunk::Zero(len)));
        Ok(())
    }

    /// Nothing of the file that was begun is kept.
    pub fn abandon(&mut self) {
        self.buffer.clear();
        self.open = None;
    }

    /// Returns how long the file is.
    pub fn end(&mut self, start: FileStart, attributes: Attributes) -> Result<u64> {
        self.cut(0)?;
        let content = self.open.take().expect("it was begun");
        self.new_bytes += content.new_bytes;
        let size = content.chunks.size + content.waiting.iter().map(Waiting::len).sum::<u64>();
        self.queue.push_back(Queued::File(start, attributes, content));
        self.settle()?;
        Ok(size)
    }

    /// All of it is with the packs and in the manifest.
    pub fn finish(mut self) -> Result<u64> {
        self.end_frame()?;
        let TreeSink { sink, new_bytes, .. } = self;
        sink.finish()?;
        Ok(new_bytes)
    }

    fn open(&mut self) -> &mut Content {
        self.open.as_mut().expect("a file was begun")
    }

    fn cut(&mut self, reserve: usize) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = buffer.as_slice();
        while rest.len() >= reserve && !rest.is_empty() {
            let len = self.sink.shared().chunk_length(rest);
            let (chunk, after) = rest.split_at(len);
            self.chunk(chunk)?;
            rest = after;
        }
        let from = buffer.len() - rest.len();
        self.buffer = buffer;
        self.buffer.drain(..from);
        Ok(())
    }

    fn chunk(&mut self, plain: &[u8]) -> Result<()> {
        let waiting = if is_all_zero(plain) {
            Waiting::Placed(Chunk::Zero(plain.len() as u64))
        } else {
            let shared = self.sink.shared();
            let id = shared.content_id(plain);
            let same = match &mut self.known {
                Some(known) => known.find(&id, plain.len(), shared.others())?,
                None => None,
            };
            match same {
                Some(chunk) => Waiting::Placed(chunk),
                None => {
                    if self.sink.frame_len() + plain.len() > FRAME_BYTES {
                        self.end_frame()?;
                    }
                    self.open().new_bytes += plain.len() as u64;
                    Waiting::InFrame { id, skip: self.sink.add_to_frame(plain), len: plain.len() }
                }
            }
        };
        let open = self.open();
        open.waiting.push(waiting);
        if open.waiting.len() >= WAITING_CHUNKS_MAX { self.end_frame() } else { Ok(()) }
    }

    /// What waits for nothing goes on.
    fn settle(&mut self) -> Result<()> {
        if self.sink.frame_len() == 0 || self.queue.len() >= QUEUE_MAX { self.end_frame() } else { Ok(()) }
    }

    fn end_frame(&mut self) -> Result<()> {
        let stored = self.sink.end_shared_frame()?;
        let place = |content: &mut Content| -> Result<()> {
            let Content { waiting, chunks, .. } = content;
            waiting.drain(..).try_for_each(|w| chunks.push(w.placed(stored)))
        };
        for queued in self.queue.drain(..) {
            match queued {
                Queued::Item(Item::Directory(directory)) => self.list.directory(directory)?,
                Queued::Item(item) => self.list.item(&item)?,
                Queued::File(start, attributes, mut content) => {
                    place(&mut content)?;
                    self.list.file(start, content.chunks)?;
                    self.list.item(&Item::Attributes(attributes))?;
                }
            }
        }
        self.open.as_mut().map_or(Ok(()), place)
    }
}

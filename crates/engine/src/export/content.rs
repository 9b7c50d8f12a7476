//! The content of a backup's files, in order, out of the repository.
//!
//! Invariant: nothing is handed out that was not compared with the content id in the manifest.

use std::collections::{HashMap, VecDeque};

use pgark_repo::codec::Decoder;
use pgark_repo::crypto::ContentId;
use pgark_repo::manifest::{Chunk, PackId, Part};
use pgark_repo::names::{self, ClusterName};
use pgark_repo::pack::PackReader;
use pgark_repo::{RepoError, Repository};

use crate::backup::scan::show;
use crate::error::Result;

/// Stored bytes fetched by one read.
const FETCH_BYTES: usize = 8 * 1024 * 1024;
/// Decoded frames that are kept: small files share frames, and changed pages lie together.
const FRAMES_KEPT: usize = 8;
/// Packs kept open; each has a key of its own.
const PACKS_KEPT: usize = 1024;

struct Frame {
    pack: u32,
    offset: u64,
    id: ContentId,
    plain: Vec<u8>,
}

pub struct ContentReader<'a> {
    repo: &'a Repository,
    cluster: &'a ClusterName,
    declared: HashMap<u32, PackId>,
    packs: HashMap<u32, PackReader>,
    decoder: Decoder,
    /// Pack, offset and bytes of what was fetched together.
    window: Option<(u32, u64, Vec<u8>)>,
    frames: VecDeque<Frame>,
    scratch: Vec<u8>,
}

impl<'a> ContentReader<'a> {
    pub fn new(repo: &'a Repository, cluster: &'a ClusterName) -> Result<Self> {
        Ok(ContentReader {
            repo,
            cluster,
            declared: HashMap::new(),
            packs: HashMap::new(),
            decoder: Decoder::new()?,
            window: None,
            frames: VecDeque::new(),
            scratch: vec![],
        })
    }

    pub fn declare(&mut self, index: u32, id: PackId) {
        self.declared.insert(index, id);
    }

    /// The bytes of the first of these chunks, which must not be one of zeros; the others tell what to fetch along with it.
    pub fn read(&mut self, path: &[u8], chunks: &[Chunk]) -> Result<Vec<u8>> {
        let Some(chunk) = chunks.first() else { return Ok(vec![]) };
        let differs = || {
            let what = "its content is not what the manifest lists";
            RepoError::corrupt(format!("pack data of {}", show(path)), what)
        };
        let mut out = Vec::with_capacity(usize::try_from(chunk.len()).unwrap_or(0));
        match chunk {
            Chunk::Zero(_) => {}
            Chunk::Patched { parts, frames } => {
                for (part, id) in parts.iter().zip(frames) {
                    if self.append(part, chunks, &mut out)? != *id {
                        return Err(differs().into());
                    }
                }
            }
            Chunk::Data { id, parts } => {
                for part in parts {
                    self.append(part, chunks, &mut out)?;
                }
                if self.repo.keys().content_id(&out) != *id {
                    return Err(differs().into());
                }
            }
        }
        Ok(out)
    }

    /// Appends a part of a frame; the content id of the whole frame.
    fn append(&mut self, part: &Part, upcoming: &[Chunk], out: &mut Vec<u8>) -> Result<ContentId> {
        let at = part.frame;
        let kept = self.frames.iter().position(|f| (f.pack, f.offset) == (part.pack, at.offset));
        let frame = match kept.and_then(|i| self.frames.remove(i)) {
            // The same place with other lengths is not the same frame.
            Some(frame) if frame.plain.len() == at.plain_len as usize => frame,
            _ => self.decode(part, upcoming)?,
        };
        let (from, len) = (part.skip as usize, part.len as usize);
        let bytes = frame.plain.get(from..from + len);
        out.extend_from_slice(bytes.ok_or_else(|| RepoError::corrupt("manifest", "a part beyond its frame"))?);
        let id = frame.id;
        self.frames.push_back(frame);
        Ok(id)
    }

    fn decode(&mut self, part: &Part, upcoming: &[Chunk]) -> Result<Frame> {
        let at = part.frame;
        self.open(part.pack)?;
        let missing = || RepoError::corrupt("manifest", "an undeclared pack");
        let pack = self.packs.get(&part.pack).ok_or_else(missing)?;
        let end = at.offset + u64::from(at.stored_len);
        let holds = self.window.as_ref().is_some_and(|(p, start, bytes)| {
            *p == part.pack && at.offset >= *start && end <= start + bytes.len() as u64
        });
        if !holds {
            let mut bytes = self.window.take().map(|(_, _, b)| b).unwrap_or_default();
            pack.fetch(at.offset, contiguous(part, upcoming), &mut bytes)?;
            self.window = Some((part.pack, at.offset, bytes));
        }
        let outside = || RepoError::corrupt(pack.name(), "a frame outside of what was fetched");
        let (_, start, bytes) = self.window.as_ref().ok_or_else(outside)?;
        let from = usize::try_from(at.offset - start).map_err(|_| outside())?;
        self.scratch.clear();
        self.scratch.extend_from_slice(bytes.get(from..from + at.stored_len as usize).ok_or_else(outside)?);
        let mut plain = match self.frames.len() {
            FRAMES_KEPT.. => self.frames.pop_front().map(|f| f.plain).unwrap_or_default(),
            _ => vec![],
        };
        pack.decode(&at, &mut self.scratch, &mut self.decoder, &mut plain)?;
        let id = self.repo.keys().content_id(&plain);
        Ok(Frame { pack: part.pack, offset: at.offset, id, plain })
    }

    fn open(&mut self, index: u32) -> Result<()> {
        if self.packs.contains_key(&index) {
            return Ok(());
        }
        let missing = || RepoError::corrupt("manifest", "an undeclared pack");
        let id = self.declared.get(&index).ok_or_else(missing)?;
        let name = names::pack(self.cluster, &id.backup, id.number);
        let reader = PackReader::open(self.repo.store().clone(), self.repo.keys(), &name)?;
        if self.packs.len() >= PACKS_KEPT {
            self.packs.clear();
        }
        self.packs.insert(index, reader);
        Ok(())
    }
}

/// Stored bytes from this part on that belong to the coming chunks and lie side by side.
fn contiguous(part: &Part, upcoming: &[Chunk]) -> usize {
    let mut end = part.frame.offset + u64::from(part.frame.stored_len);
    let mut len = part.frame.stored_len as usize;
    for p in upcoming.iter().flat_map(Chunk::parts) {
        if len + p.frame.stored_len as usize > FETCH_BYTES {
            break;
        }
        if p.pack == part.pack && p.frame.offset == end {
            end += u64::from(p.frame.stored_len);
            len += p.frame.stored_len as usize;
        }
    }
    len
}

//! Reading a part back: in order, each chunk compared with its content id before anybody sees it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use pgark_repo::codec::Decoder;
use pgark_repo::manifest::{Chunk, Item, ManifestReader, PackId, PackUse, Part, packs_of};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack::PackReader;
use pgark_repo::record::{PartsRecord, manifest_reader};
use pgark_repo::{RepoError, Repository};

use crate::backup::base::check_presence;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Decoded frames that are kept, 16 MB as we write them: neighbouring chunks often lie in a few frames.
const FRAMES_KEPT: usize = 64;
const PACKS_KEPT: usize = 64;
/// Zeros handed out at once.
const ZEROS: usize = 64 * 1024;

/// A backup to read from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub repo: &'a Repository,
    pub cluster: &'a ClusterName,
    pub record: &'a PartsRecord,
}

impl Source<'_> {
    /// Whether the manifest is the backup's own and every pack has the size that it wrote. No pack is read.
    pub fn check(&self) -> Result<Vec<PackUse>> {
        let id = &self.record.id;
        let (uses, print) = packs_of(manifest_reader(self.repo, self.cluster, id)?)?;
        if print != self.record.manifest {
            return Err(RepoError::corrupt(names::manifest(self.cluster, id), "not the manifest of this backup").into());
        }
        check_presence(self.repo, self.cluster, &uses)?;
        Ok(uses)
    }
}

pub struct PartReader<'a> {
    repo: &'a Repository,
    cluster: &'a ClusterName,
    id: &'a BackupId,
    decoder: Decoder,
    packs: VecDeque<(PackId, Arc<PackReader>)>,
    frames: VecDeque<(PackId, u64, Vec<u8>)>,
    stored: Vec<u8>,
}

impl<'a> PartReader<'a> {
    pub fn new(source: &Source<'a>) -> Result<Self> {
        Ok(PartReader {
            repo: source.repo,
            cluster: source.cluster,
            id: &source.record.id,
            decoder: Decoder::new()?,
            packs: VecDeque::new(),
            frames: VecDeque::new(),
            stored: vec![],
        })
    }

    /// Hands out the content of a part, until it ends or `take` has enough. Returns how much was handed out.
    ///
    /// # Errors
    /// Damage, by the name of what is damaged; also when there is no such part.
    pub fn read(
        &mut self,
        path: &str,
        ctx: &Ctx,
        take: &mut dyn FnMut(&[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<u64> {
        let mut manifest = manifest_reader(self.repo, self.cluster, self.id)?;
        let object = names::manifest(self.cluster, self.id);
        let mut found = false;
        let mut given = 0;
        let mut content = vec![];
        while let Some(item) = manifest.next_item()? {
            match item {
                Item::FileStart(start) => found = start.path == path.as_bytes(),
                Item::FileEnd(_) if found => return Ok(given),
                Item::Chunks(chunks) if found => {
                    for chunk in &chunks {
                        ctx.check_cancelled()?;
                        if self.chunk(&manifest, chunk, &mut content, take, &mut given)?.is_break() {
                            return Ok(given);
                        }
                    }
                }
                _ => {}
            }
        }
        Err(RepoError::corrupt(object, format!("it has no part {path}")).into())
    }

    /// Hands out what a chunk that this manifest lists says; of zeros in pieces.
    pub(crate) fn chunk(
        &mut self,
        manifest: &ManifestReader,
        chunk: &Chunk,
        content: &mut Vec<u8>,
        take: &mut dyn FnMut(&[u8]) -> Result<ControlFlow<()>>,
        given: &mut u64,
    ) -> Result<ControlFlow<()>> {
        match chunk {
            Chunk::Zero(len) => {
                let mut left = *len;
                while left > 0 {
                    let n = usize::try_from(left).unwrap_or(ZEROS).min(ZEROS);
                    content.clear();
                    content.resize(n, 0);
                    *given += n as u64;
                    left -= n as u64;
                    if take(content)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            }
            Chunk::Data { id, parts } => {
                content.clear();
                for part in parts {
                    self.part(manifest, part, content)?;
                }
                if self.repo.keys().content_id(content) != *id {
                    let pack = parts.first().and_then(|p| manifest.pack(p.pack));
                    let name = pack.map(|p| names::pack(self.cluster, &p.backup, p.number).to_string());
                    let what = "its content is not what the manifest lists";
                    return Err(RepoError::corrupt(name.unwrap_or_else(|| self.id.to_string()), what).into());
                }
                *given += content.len() as u64;
                take(content)
            }
            Chunk::Patched { .. } => {
                Err(RepoError::corrupt(names::manifest(self.cluster, self.id), "a patched chunk outside of data files")
                    .into())
            }
        }
    }

    fn part(&mut self, manifest: &ManifestReader, part: &Part, content: &mut Vec<u8>) -> Result<()> {
        let pack = manifest.pack(part.pack).expect("the reader checks that packs are declared").clone();
        let at = self.frames.iter().rposition(|(id, offset, _)| *id == pack && *offset == part.frame.offset);
        let at = match at {
            Some(at) => at,
            None => {
                let reader = self.pack(&pack)?;
                reader.fetch(part.frame.offset, part.frame.stored_len as usize, &mut self.stored)?;
                let mut plain = match self.frames.len() >= FRAMES_KEPT {
                    true => self.frames.pop_front().map(|f| f.2).unwrap_or_default(),
                    false => vec![],
                };
                reader.decode(&part.frame, &mut self.stored, &mut self.decoder, &mut plain)?;
                self.frames.push_back((pack.clone(), part.frame.offset, plain));
                self.frames.len() - 1
            }
        };
        let (from, len) = (part.skip as usize, part.len as usize);
        let bytes = self.frames.get(at).and_then(|(_, _, plain)| plain.get(from..from.checked_add(len)?));
        let bytes = bytes.ok_or_else(|| {
            let name = names::pack(self.cluster, &pack.backup, pack.number);
            EngineError::from(RepoError::corrupt(name, "a chunk reaches beyond its frame"))
        })?;
        content.extend_from_slice(bytes);
        Ok(())
    }

    fn pack(&mut self, id: &PackId) -> Result<Arc<PackReader>> {
        if let Some((_, reader)) = self.packs.iter().find(|(known, _)| known == id) {
            return Ok(reader.clone());
        }
        let name = names::pack(self.cluster, &id.backup, id.number);
        let reader = Arc::new(PackReader::open(self.repo.store().clone(), self.repo.keys(), &name)?);
        if self.packs.len() >= PACKS_KEPT {
            self.packs.pop_front();
        }
        self.packs.push_back((id.clone(), reader.clone()));
        Ok(reader)
    }
}

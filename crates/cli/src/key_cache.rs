//! Spares calls that PostgreSQL makes for every WAL segment the slow key derivation: the master key, wrapped under
//! the passphrase, in a private file of the same user. Losing it costs a quarter of a second.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::keyring::{Unlock, open_from_cache, seal_for_cache};
use pgark_repo::store::Store;
use zeroize::Zeroizing;

/// The largest cached key, in bytes.
const WRAPPED_BYTES_MAX: usize = 1024;

pub struct KeyCache {
    dir: PathBuf,
    passphrase: Zeroizing<Vec<u8>>,
}

impl KeyCache {
    /// None when there is no private directory to keep it in.
    pub fn find(dir: Option<&Path>, passphrase: &[u8]) -> Option<Self> {
        let dir = private_dir(dir?, "keys")?;
        Some(KeyCache { dir, passphrase: Zeroizing::new(passphrase.to_vec()) })
    }

    fn file(&self, ring: &[u8]) -> PathBuf {
        self.dir.join(format!("{}.key", pgark_repo::keyring::ring_name(ring)))
    }

    fn read(&self, ring: &[u8]) -> Option<Vec<u8>> {
        read_private(&self.file(ring), WRAPPED_BYTES_MAX)
    }

    fn write(&self, ring: &[u8], wrapped: &[u8]) -> std::io::Result<()> {
        write_private(&self.file(ring), wrapped)
    }
}

/// A directory below the cache directory that is ours and that nobody else can reach; made when it is missing.
pub fn private_dir(cache_dir: &Path, name: &str) -> Option<PathBuf> {
    let dir = cache_dir.join(name);
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
        tracing::debug!(target: "pgark", %error, dir = %dir.display(), "nothing is kept between runs");
        return None;
    }
    let meta = fs::symlink_metadata(&dir).ok()?;
    (meta.is_dir() && is_private(&meta)).then_some(dir)
}

fn is_private(meta: &fs::Metadata) -> bool {
    meta.mode() & 0o077 == 0 && meta.uid() == rustix::process::geteuid().as_raw()
}

/// None when it is not there, not ours alone, or larger than what we write.
pub fn read_private(path: &Path, limit: usize) -> Option<Vec<u8>> {
    let meta = fs::symlink_metadata(path).ok()?;
    let fits = meta.is_file() && is_private(&meta) && usize::try_from(meta.len()).is_ok_and(|len| len <= limit);
    if fits { fs::read(path).ok() } else { None }
}

/// Written beside and moved into place, so that nobody reads half of it.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temp = path.with_extension(format!("tmp-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(bytes)?;
    fs::rename(temp, path)
}

/// Opens a repository, through the cache where there is one.
pub fn open(store: Arc<dyn Store>, unlock: &Unlock, cache: Option<&KeyCache>) -> pgark_repo::Result<Repository> {
    let Some(cache) = cache else { return Repository::open(store, unlock) };
    let ring = Repository::ring_bytes(&store)?;
    if let Some(master) = cache.read(&ring).and_then(|c| open_from_cache(&cache.passphrase, &ring, &c))
        && let Ok(repo) = Repository::open_with_master(store.clone(), &ring, master, unlock)
    {
        return Ok(repo);
    }
    let repo = Repository::open(store, unlock)?;
    remember(&repo, cache);
    Ok(repo)
}

/// Keeps the key of an opened repository for the next call. Not being able to costs time, nothing else.
pub fn remember(repo: &Repository, cache: &KeyCache) {
    let (Some(master), Ok(ring)) = (repo.cacheable(), Repository::ring_bytes(repo.store())) else { return };
    let written = seal_for_cache(&cache.passphrase, &ring, &master).map(|wrapped| cache.write(&ring, &wrapped));
    if let Err(error) = written.map_err(std::io::Error::other).flatten() {
        tracing::debug!(target: "pgark", %error, "the key cache was not written");
    }
}

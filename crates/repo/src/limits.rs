//! Every bound of the repository in one place: nothing read from storage can make us allocate more.

/// Plaintext of one frame as we write it: 32 pages at an aligned offset of one file.
pub const FRAME_BYTES: usize = 256 * 1024;
/// Largest plaintext of a frame that a reader accepts.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Plaintext of one block of a sealed stream (manifests, catalogs, WAL objects) as we write it.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// Largest plaintext of a stream block that a reader accepts.
pub const BLOCK_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A pack is closed when it has grown to this many bytes.
pub const PACK_BYTES: u64 = 64 * 1024 * 1024;
/// Largest sealed table of contents of a pack.
pub const PACK_TOC_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest key ring object.
pub const KEYRING_BYTES_MAX: u64 = 1024 * 1024;
/// Largest register object (catalog, WAL head), stored.
pub const REGISTER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Largest register value, decoded.
pub const REGISTER_VALUE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Versions of a register that a version names as those it was built on.
pub const REGISTER_MARKS_MAX: usize = 64;
/// Slots in a key ring: each one tried may cost a slow key derivation.
pub const KEYRING_SLOTS_MAX: usize = 32;
/// Master keys that a key ring may carry, with the newest one.
pub const KEYRING_GENERATIONS_MAX: usize = 1000;
/// Marks of master keys that were given up, in a key ring and in each writer's slot of it.
pub const KEYRING_GIVEN_UP_MAX: usize = 32;
/// What a key command may make of a master key, bytes.
pub const WRAPPED_KEY_BYTES_MAX: usize = 8 * 1024;
/// The keys of one writer, wrapped, bytes.
pub const WRITER_KEYS_BYTES_MAX: usize = 512 * 1024;
/// Longest name of a key command, bytes.
pub const KEY_COMMAND_NAME_MAX: usize = 63;
/// Longest label of a slot, characters.
pub const KEY_LABEL_CHARS_MAX: usize = 64;
/// Largest record of the audit trail, decoded.
pub const AUDIT_BYTES_MAX: usize = 64 * 1024;
/// How often somebody else may have been faster when a record of the audit trail is appended.
pub const AUDIT_RETRIES: u32 = 200;
/// Largest report of a restore or a validation, decoded.
pub const REPORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest backup record, decoded.
pub const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest path in a manifest, bytes (PATH_MAX of Linux).
pub const PATH_BYTES_MAX: usize = 4096;
/// Chunks carried by one manifest item; a larger file continues in the next item.
pub const CHUNKS_PER_ITEM: usize = 4096;
/// Parts a chunk may be put together from.
pub const CHUNK_PARTS_MAX: usize = 64;
/// Extended attributes of one file, the name of one and its value (limits of Linux, `linux/limits.h`, but for their number).
pub const XATTRS_MAX: usize = 128;
pub const XATTR_NAME_BYTES_MAX: usize = 255;
pub const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Longest name of a user or group.
pub const OWNER_NAME_BYTES_MAX: usize = 255;
/// Paths that a record of a backup of files names as left out, and as changed while they were read; beyond, they are counted.
pub const LEFT_OUT_MAX: usize = 10_000;
pub const LEFT_OUT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest history, backup-history or label file.
pub const SIDE_FILE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How often a segment may be pushed again because it was unfinished the time before.
pub const SEGMENT_COPIES_MAX: u32 = 200;

/// How often a lost race on a register is tried again.
pub const REGISTER_RETRIES: u32 = 200;

/// Bytes of a shard of parity as we write it: a sector of a disk.
pub const PARITY_SHARD_BYTES: usize = 4096;
/// Shards of an object that share their parity: 80 MiB, so that a pack is one section.
pub const PARITY_SECTION_SHARDS: usize = 20480;
/// Largest shard that a reader accepts, bytes.
pub const PARITY_SHARD_BYTES_MAX: u64 = 64 * 1024;
/// Most parity of one section that a reader accepts, bytes.
pub const PARITY_SECTION_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Healed shards of one object that are held in memory.
pub const HEALED_BYTES_MAX: usize = 128 * 1024 * 1024;

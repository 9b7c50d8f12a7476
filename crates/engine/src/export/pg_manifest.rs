//! PostgreSQL's `backup_manifest` (backup_manifest.c), which `pg_verifybackup` compares a directory with. Kept in a
//! file while it grows: it has a line for each file of the backup.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use pgark_pg::Major;
use pgark_pg::value::{Lsn, SystemId, TimelineId};
use pgark_repo::crypto::hex;

pub struct PgManifestWriter {
    out: BufWriter<File>,
    hash: Context,
    files: u64,
    size: u64,
}

/// WAL of one timeline.
pub struct WalRange {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub end: Lsn,
}

impl PgManifestWriter {
    /// `spool` is empty and belongs to nobody else.
    pub fn new(spool: File, major: Major, system_id: SystemId) -> io::Result<Self> {
        let mut w = PgManifestWriter { out: BufWriter::new(spool), hash: Context::new(&SHA256), files: 0, size: 0 };
        // With the system identifier from 17 on, where pg_combinebackup wants to see it.
        if major >= Major::V17 {
            w.put(&format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_id},\n\"Files\": ["
            ))?;
        } else {
            w.put("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")?;
        }
        Ok(w)
    }

    pub fn add(&mut self, path: &[u8], size: u64, modified: i64, sha256: &[u8]) -> io::Result<()> {
        let separator = if self.files == 0 { "\n" } else { ",\n" };
        self.files += 1;
        let name = match std::str::from_utf8(path) {
            Ok(text) => format!("\"Path\": {}", serde_json::to_string(text)?),
            Err(_) => format!("\"Encoded-Path\": \"{}\"", hex(path)),
        };
        let time = Timestamp::from_second(modified.max(0)).unwrap_or(Timestamp::UNIX_EPOCH);
        self.put(&format!(
            "{separator}{{ {name}, \"Size\": {size}, \"Last-Modified\": \"{}\", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{}\" }}",
            time.strftime("%Y-%m-%d %H:%M:%S GMT"),
            hex(sha256)
        ))
    }

    /// The whole, from its beginning, and its length.
    pub fn finish(mut self, wal: &[WalRange]) -> io::Result<(File, u64)> {
        let ranges: Vec<String> = wal
            .iter()
            .map(|r| {
                format!(
                    "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                    r.timeline.get(),
                    r.start,
                    r.end
                )
            })
            .collect();
        self.put(&format!("\n],\n\"WAL-Ranges\": [\n{}\n],\n", ranges.join(",\n")))?;
        let sum = hex(self.hash.clone().finish().as_ref());
        self.put(&format!("\"Manifest-Checksum\": \"{sum}\"}}\n"))?;
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok((file, self.size))
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.hash.update(text.as_bytes());
        self.size += text.len() as u64;
        self.out.write_all(text.as_bytes())
    }
}

/// Hands out a file in pieces.
pub fn each_piece<E: From<io::Error>>(file: &mut File, take: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut piece = vec![0; 256 * 1024];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            n => take(piece.get(..n).unwrap_or_default())?,
        }
    }
}

//! The bytes of the SFTP protocol, version 3 (draft-ietf-secsh-filexfer-02), and of the extensions of OpenSSH that we
//! use (PROTOCOL in its source). Nothing here does I/O; nothing in it trusts a length that the server sent.

use std::fmt;

pub(super) const VERSION: u32 = 3;
/// Stands for the id that a greeting does not have; no request gets it.
pub(super) const GREETING: u32 = u32::MAX;

/// Longest packet that is accepted. OpenSSH sends at most 256 KiB.
pub(super) const PACKET_BYTES_MAX: usize = 512 * 1024;
/// Longest handle (the draft's limit).
const HANDLE_BYTES_MAX: usize = 256;
/// Extensions of a server that are looked at.
const EXTENSIONS_MAX: usize = 256;
/// Of what a server says in words, this much is kept.
const MESSAGE_CHARS_MAX: usize = 200;

pub(super) const READ: u32 = 0x01;
pub(super) const WRITE: u32 = 0x02;
pub(super) const CREATE: u32 = 0x08;
pub(super) const EXCLUSIVE: u32 = 0x20;

const ATTR_SIZE: u32 = 0x01;
const ATTR_UIDGID: u32 = 0x02;
const ATTR_PERMISSIONS: u32 = 0x04;
const ATTR_TIMES: u32 = 0x08;
const ATTR_EXTENDED: u32 = 0x8000_0000;

pub(super) mod kind {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const LSTAT: u8 = 7;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const SETSTAT: u8 = 9;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const OPENDIR: u8 = 11;
    pub(crate) const READDIR: u8 = 12;
    pub(crate) const REMOVE: u8 = 13;
    pub(crate) const MKDIR: u8 = 14;
    pub(crate) const RMDIR: u8 = 15;
    pub(crate) const REALPATH: u8 = 16;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const NAME: u8 = 104;
    pub(crate) const ATTRS: u8 = 105;
    pub(crate) const EXTENDED: u8 = 200;
    pub(crate) const EXTENDED_REPLY: u8 = 201;
}

/// The server broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// A request without its id, which the connection gives it.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: u8,
    pub(super) payload: Vec<u8>,
}

impl Request {
    pub(super) fn new(kind: u8) -> Self {
        Request { kind, payload: Vec::new() }
    }

    pub(super) fn extended(name: &str) -> Self {
        Request::new(kind::EXTENDED).text(name)
    }

    pub(super) fn of(kind: u8, path: &str) -> Self {
        Request::new(kind).text(path)
    }

    pub(super) fn open(path: &str, flags: u32, mode: Option<u32>) -> Self {
        Request::of(kind::OPEN, path).u32(flags).mode(mode)
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut request = self.u32(length(bytes));
        request.payload.extend_from_slice(bytes);
        request
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.payload.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.payload.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Attributes that hold permissions or nothing.
    pub(super) fn mode(self, mode: Option<u32>) -> Self {
        match mode {
            Some(mode) => self.u32(ATTR_PERMISSIONS).u32(mode),
            None => self.u32(0),
        }
    }

    /// Attributes that hold the times.
    pub(super) fn times(self, accessed: u32, modified: u32) -> Self {
        self.u32(ATTR_TIMES).u32(accessed).u32(modified)
    }

    /// The packet up to `body`, which is sent behind it.
    pub(super) fn head(&self, id: u32, body: &[u8]) -> Vec<u8> {
        let body_length = if self.kind == kind::WRITE { 4 + body.len() } else { 0 };
        let total = u32::try_from(1 + 4 + self.payload.len() + body_length).expect("packets are small");
        let mut head = Vec::with_capacity(4 + 1 + 4 + self.payload.len() + 4);
        head.extend_from_slice(&total.to_be_bytes());
        head.push(self.kind);
        head.extend_from_slice(&id.to_be_bytes());
        head.extend_from_slice(&self.payload);
        if self.kind == kind::WRITE {
            head.extend_from_slice(&length(body).to_be_bytes());
        }
        head
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("names and pieces are short")
}

/// The first packet; it has a version in the place of an id.
pub(super) fn init() -> Vec<u8> {
    let mut packet = 5u32.to_be_bytes().to_vec();
    packet.push(kind::INIT);
    packet.extend_from_slice(&VERSION.to_be_bytes());
    packet
}

/// One packet as it came.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) kind: u8,
    /// Of the request it answers; a greeting has none.
    pub(super) id: u32,
    pub(super) body: Vec<u8>,
}

impl Packet {
    /// Takes the first whole packet off `buffer`.
    pub(super) fn take(buffer: &mut Vec<u8>) -> Result<Option<Packet>, Malformed> {
        let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > PACKET_BYTES_MAX {
            return Err(Malformed("a packet of an impossible length"));
        }
        let Some((&kind, body)) = rest.get(..length).and_then(<[u8]>::split_first) else { return Ok(None) };
        let (id, body) = match (kind, body.split_first_chunk::<4>()) {
            (kind::VERSION, _) => (GREETING, body),
            (_, Some((id, body))) => (u32::from_be_bytes(*id), body),
            (_, None) => return Err(Malformed("a packet without an id")),
        };
        let packet = Packet { kind, id, body: body.to_vec() };
        buffer.drain(..4 + length);
        Ok(Some(packet))
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields(&self.body)
    }
}

/// Reads a packet from its beginning.
pub(super) struct Fields<'a>(&'a [u8]);

const SHORT: Malformed = Malformed("a packet that ends too early");

impl<'a> Fields<'a> {
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        let (value, rest) = self.0.split_first_chunk::<4>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*value))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        let (value, rest) = self.0.split_first_chunk::<8>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*value))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        let (value, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn handle(&mut self) -> Result<Vec<u8>, Malformed> {
        let handle = self.bytes()?;
        if handle.len() > HANDLE_BYTES_MAX {
            return Err(Malformed("a handle that is too long"));
        }
        Ok(handle.to_vec())
    }

    pub(super) fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.u32()?;
        let mut found = Attributes::default();
        if flags & ATTR_SIZE != 0 {
            found.size = Some(self.u64()?);
        }
        if flags & ATTR_UIDGID != 0 {
            self.u64()?;
        }
        if flags & ATTR_PERMISSIONS != 0 {
            found.mode = Some(self.u32()?);
        }
        if flags & ATTR_TIMES != 0 {
            found.times = Some((self.u32()?, self.u32()?));
        }
        if flags & ATTR_EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(found)
    }

    pub(super) fn status(&mut self) -> Result<Status, Malformed> {
        let code = self.u32()?;
        // Old servers leave the words out.
        let message = self.bytes().unwrap_or_default();
        let message = String::from_utf8_lossy(message).escape_debug().take(MESSAGE_CHARS_MAX).collect();
        Ok(Status { code, message })
    }

    /// What the server can do, from its `VERSION` packet.
    pub(super) fn extensions(&mut self) -> Result<Vec<String>, Malformed> {
        let mut names = vec![];
        while !self.is_empty() && names.len() < EXTENSIONS_MAX {
            names.push(String::from_utf8_lossy(self.bytes()?).into_owned());
            self.bytes()?;
        }
        Ok(names)
    }

    /// One batch of a directory, what `READDIR` gives.
    pub(super) fn entries(&mut self) -> Result<Vec<Entry>, Malformed> {
        let mut entries = vec![];
        for _ in 0..self.u32()? {
            let name = String::from_utf8_lossy(self.bytes()?).into_owned();
            self.bytes()?; // the same for human eyes
            entries.push(Entry { name, attributes: self.attributes()? });
        }
        Ok(entries)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    pub(super) mode: Option<u32>,
    /// Read and written, seconds since 1970.
    pub(super) times: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Directory,
    Regular,
    Link,
    Other,
    Unknown,
}

impl Attributes {
    pub(super) fn kind(&self) -> FileKind {
        match self.mode.map(|mode| mode & 0o170_000) {
            Some(0o040_000) => FileKind::Directory,
            Some(0o100_000) => FileKind::Regular,
            Some(0o120_000) => FileKind::Link,
            None | Some(0) => FileKind::Unknown,
            Some(_) => FileKind::Other,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) attributes: Attributes,
}

/// How the server says yes or no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Status {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    pub(super) const FAILURE: u32 = 4;
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.code)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, " ({})", self.message) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_length_kind_id_fields() {
        let open = Request::open("/a", WRITE | CREATE | EXCLUSIVE, Some(0o600));
        let expected = b"\0\0\0\x17\x03\0\0\0\x07\0\0\0\x02/a\0\0\0\x2a\0\0\0\x04\0\0\x01\x80";
        assert_eq!(open.head(7, b""), expected);
        let write = Request::new(kind::WRITE).bytes(b"h").u64(1);
        assert_eq!(write.head(1, b"xyz"), b"\0\0\0\x19\x06\0\0\0\x01\0\0\0\x01h\0\0\0\0\0\0\0\x01\0\0\0\x03");
        assert_eq!(init(), b"\0\0\0\x05\x01\0\0\0\x03");
    }

    #[test]
    fn packets_come_in_pieces() {
        let whole = b"\0\0\0\x0d\x65\0\0\0\x09\0\0\0\x02\0\0\0\0\0\0\0\x05\x66";
        let mut buffer = vec![];
        for &byte in &whole[..16] {
            buffer.push(byte);
            assert!(Packet::take(&mut buffer).unwrap().is_none());
        }
        buffer.extend_from_slice(&whole[16..]);
        let packet = Packet::take(&mut buffer).unwrap().unwrap();
        assert_eq!((packet.id, packet.kind), (9, kind::STATUS));
        assert_eq!(packet.fields().status().unwrap(), Status { code: 2, message: String::new() });
        assert_eq!(buffer, b"\0\0\0\x05\x66");
        for length in [0u32, u32::MAX] {
            assert!(Packet::take(&mut length.to_be_bytes().to_vec()).is_err());
        }
    }

    #[test]
    fn attributes_are_what_their_flags_say() {
        let bytes = [
            &0x8000_000fu32.to_be_bytes()[..],
            &9u64.to_be_bytes(),
            &[0; 8],
            &0o100_600u32.to_be_bytes(),
            &[0, 0, 0, 1, 0, 0, 0, 2],
            b"\0\0\0\x01\0\0\0\x01x\0\0\0\0",
        ]
        .concat();
        let mut fields = Fields(&bytes);
        let found = fields.attributes().unwrap();
        assert_eq!(found, Attributes { size: Some(9), mode: Some(0o100_600), times: Some((1, 2)) });
        assert!(fields.is_empty());
        assert_eq!(found.kind(), FileKind::Regular);
        assert_eq!(Attributes::default().kind(), FileKind::Unknown);
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_refused_or_read_without_a_panic(mut bytes: Vec<u8>, small in 0u8..40) {
            let body = bytes.clone();
            let packet = Packet { kind: small, id: 0, body };
            let _ = packet.fields().attributes();
            let _ = packet.fields().status();
            let _ = packet.fields().extensions();
            let _ = packet.fields().entries();
            let _ = packet.fields().handle();
            bytes.splice(0..0, [0, 0, 0, small]);
            let _ = Packet::take(&mut bytes);
        }
    }
}

//! One object on its way to an SFTP server: a temporary file beside its place, synced, then given its name by a hard
//! link, which cannot replace anything, then the directories synced.
//!
//! When the connection is lost while bytes are being written, the file is read back on a new one, compared with what
//! was sent, and continued. When the answer to the link is lost, what lies under the name is looked at: it counts as
//! ours only if it is the very file that we wrote, not one that is merely the same. A lost answer to the sync of the
//! file is a failure: whether the disk took everything can be learned only once.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::connection::expect;
use super::failure::{Fail, SftpFailure};
use super::session::{Handle, Session};
use super::tree::{failed, is_passing, strange};
use super::wire::{self, Attributes, FileKind, Malformed, Request, Status, kind};
use super::{Inner, TEMP_PREFIX};
use crate::store::{ObjectName, ObjectWriter, StoreError};

/// Pieces that are under way at the same time, and kept until the server has acknowledged them.
const PIECES_AHEAD: usize = 16;
/// How often one object survives the loss of its connection.
const RESUMES_MAX: u32 = 3;

pub(super) struct SftpWriter {
    inner: Arc<Inner>,
    name: ObjectName,
    /// Absolute.
    temp: String,
    session: Session,
    /// None once it is closed.
    handle: Option<Handle>,
    /// The request that sets the mode, whose answer does not matter: a server may insist on its own.
    mode: Option<u32>,
    buffer: Vec<u8>,
    pieces: VecDeque<Piece>,
    /// Of all bytes before the first piece: what the file must hold.
    hash: blake3::Hasher,
    hashed: u64,
    written: u64,
    resumes: u32,
    state: State,
}

struct Piece {
    offset: u64,
    bytes: Vec<u8>,
    request: Option<u32>,
    acknowledged: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A write failed: what the file holds is unknown.
    Spoiled,
    /// The object has its name, and the temporary one is gone or does not matter.
    Named,
}

impl SftpWriter {
    pub(super) fn create(inner: &Arc<Inner>, name: &ObjectName) -> Result<Self, StoreError> {
        let temp = temp_name(name)?;
        inner.lives(&temp);
        let created = inner.retrying("create", name, |session| match inner.tree.create_file(session, name, &temp) {
            // The answer to an earlier attempt was lost; nobody else knows the name.
            Err(e) if inner.remove_temp(session, name, &temp) => {
                tracing::debug!(target: "pgark", "{temp} was made again after: {e}");
                inner.tree.create_file(session, name, &temp)
            }
            other => other,
        });
        let (session, (path, handle)) = created.inspect_err(|_| {
            inner.died(&temp);
            // A full disk may have had room for the directories and not for the file.
            if let Some(session) = inner.pool.existing() {
                inner.tree.prune(&session, name.parent());
            }
        })?;
        let mode = session.send(&handle.request(kind::FSETSTAT).mode(Some(inner.tree.file_mode())), &[]);
        Ok(SftpWriter {
            inner: Arc::clone(inner),
            name: name.clone(),
            temp: path,
            session,
            handle: Some(handle),
            mode: mode.ok(),
            buffer: vec![],
            pieces: VecDeque::new(),
            hash: blake3::Hasher::new(),
            hashed: 0,
            written: 0,
            resumes: 0,
            state: State::Open,
        })
    }

    fn failed(&self, operation: &'static str, fail: Fail) -> StoreError {
        self.inner.tree.write_failed(&self.session, operation, &self.name, fail)
    }

    fn piece_bytes(&self) -> usize {
        self.session.connection().write_piece
    }

    fn put_buffer(&mut self) {
        let bytes = std::mem::take(&mut self.buffer);
        if !bytes.is_empty() {
            let offset = self.written - bytes.len() as u64;
            self.pieces.push_back(Piece { offset, bytes, request: None, acknowledged: false });
        }
    }

    /// Sends what has not been sent, until at most `ahead` pieces are unacknowledged; on another connection if need be.
    fn pump(&mut self, ahead: usize) -> Result<(), StoreError> {
        loop {
            let mut trouble = match self.try_pump(ahead) {
                Ok(()) => return Ok(()),
                Err(fail) => self.failed("write", fail),
            };
            loop {
                if !is_passing(&trouble) || self.resumes >= RESUMES_MAX {
                    return Err(trouble);
                }
                self.resumes += 1;
                match self.resume() {
                    Ok(()) => break,
                    Err(e) => trouble = e,
                }
            }
        }
    }

    fn try_pump(&mut self, ahead: usize) -> Result<(), Fail> {
        let handle = self.handle.as_ref().ok_or(CLOSED)?;
        for piece in self.pieces.iter_mut().filter(|piece| piece.request.is_none()) {
            let request = handle.request(kind::WRITE).u64(piece.offset);
            piece.request = Some(self.session.send(&request, &piece.bytes)?);
        }
        while self.pieces.len() > ahead {
            self.acknowledge_one()?;
        }
        Ok(())
    }

    fn acknowledge_one(&mut self) -> Result<(), Fail> {
        let (id, packet) = self.session.receive()?;
        if self.mode == Some(id) {
            self.mode = None;
            return Ok(());
        }
        expect(packet, kind::STATUS)?;
        let piece = self.pieces.iter_mut().find(|piece| piece.request == Some(id));
        piece.ok_or(Malformed("an answer nobody asked for"))?.acknowledged = true;
        while self.pieces.front().is_some_and(|piece| piece.acknowledged)
            && let Some(piece) = self.pieces.pop_front()
        {
            self.hash.update(&piece.bytes);
            self.hashed += piece.bytes.len() as u64;
        }
        Ok(())
    }

    /// Goes on in the same file on another connection, if the file holds what was acknowledged: the server may have
    /// been restarted, and have lost what it had not been asked to sync.
    fn resume(&mut self) -> Result<(), StoreError> {
        let gone = |e: SftpFailure| failed("write", &self.name, e.into());
        let session = self.inner.pool.session_again(self.session.deadline()).map_err(gone)?;
        let refused = |fail| failed("write", &self.name, fail);
        let handle = session.open(&self.temp, wire::READ | wire::WRITE, None).map_err(refused)?;
        let (mut hash, mut at) = (blake3::Hasher::new(), 0);
        let mut buf = vec![0; session.connection().read_piece * PIECES_AHEAD];
        while at < self.hashed {
            let wanted = buf.len().min(usize::try_from(self.hashed - at).unwrap_or(usize::MAX));
            let part = buf.get_mut(..wanted).unwrap_or_default();
            let n = session.read_at(&handle, at, part).map_err(refused)?;
            if n < wanted {
                break;
            }
            hash.update(part);
            at += n as u64;
        }
        if at != self.hashed || hash.finalize() != self.hash.finalize() {
            session.close(handle);
            let why = "the connection was lost, and the server has lost some of what it had acknowledged";
            return Err(StoreError::io("write", &self.name, io::Error::other(why)));
        }
        tracing::debug!(target: "pgark", object = %self.name, bytes = at, "continued on another connection");
        (self.session, self.handle, self.mode) = (session, Some(handle), None);
        for piece in &mut self.pieces {
            (piece.request, piece.acknowledged) = (None, false);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        if self.state != State::Open {
            return Err(StoreError::io("finish", &self.name, io::Error::other("an earlier write failed")));
        }
        // Until it is named: a second attempt must not find half of a first one.
        self.state = State::Spoiled;
        self.put_buffer();
        self.pump(0)?;
        while self.mode.is_some() {
            self.acknowledge_one().map_err(|fail| self.failed("write", fail))?;
        }
        let synced = self.handle.as_ref().ok_or(CLOSED.into()).and_then(|handle| self.session.fsync(handle));
        synced.map_err(|fail| self.failed("fsync", fail))?;
        self.close();
        let ours = self.give_name()?;
        if ours {
            self.state = State::Named;
            self.remove_temp();
            return Ok(());
        }
        Err(self.taken())
    }

    /// Gives the file its name and makes that durable, on another connection if need be. True when the name is ours;
    /// false when it was taken, which is made durable as well: whoever finds it taken may rely on what lies there.
    fn give_name(&mut self) -> Result<bool, StoreError> {
        let mut unsure = false;
        loop {
            let named = self.try_link(unsure).and_then(|ours| {
                self.inner.tree.sync(&self.session, &self.name, self.name.parent())?;
                Ok(ours)
            });
            match named {
                Err(e) if is_passing(&e) => {
                    // What was sent may have been done, may still be, or may have been lost with the server's power:
                    // so from the link on, all of it once more.
                    unsure = true;
                    let unknown =
                        |why: String| StoreError::io("link", &self.name, io::Error::other(SftpFailure::unknown(&why)));
                    if self.resumes >= RESUMES_MAX {
                        return Err(unknown(e.to_string()));
                    }
                    self.resumes += 1;
                    let again = self.inner.pool.session_again(self.session.deadline());
                    self.session = again.map_err(|e| unknown(e.to_string()))?;
                }
                other => return other,
            }
        }
    }

    fn try_link(&self, unsure: bool) -> Result<bool, StoreError> {
        let path = self.inner.tree.path(self.name.as_str());
        let link = Request::extended("hardlink@openssh.com").text(&self.temp).text(&path);
        let fail = match self.session.done(&link) {
            Ok(()) => return Ok(true),
            Err(fail @ Fail::Connection(_)) => return Err(failed("link", &self.name, fail)),
            Err(fail) => fail,
        };
        // The server does not say that the name is taken; it only says no.
        match self.session.lstat(&path) {
            Ok(there) => self.is_ours(&path, &there, unsure),
            Err(e) if e.is_status(Status::NO_SUCH_FILE) => Err(self.failed("link", fail)),
            Err(e) => Err(failed("link", &self.name, e)),
        }
    }

    /// Whether the file under the object's name is the one we wrote. Hard links share their times, so one is set on
    /// our name for it, to a number nobody else would choose, and looked for under the other.
    fn is_ours(&self, path: &str, there: &Attributes, unsure: bool) -> Result<bool, StoreError> {
        let failed = |fail| failed("link", &self.name, fail);
        let ours = match self.session.lstat(&self.temp) {
            Ok(ours) => ours,
            Err(fail) if fail.is_status(Status::NO_SUCH_FILE) && unsure => {
                let why = SftpFailure::unknown("its temporary file was removed meanwhile");
                return Err(StoreError::io("link", &self.name, io::Error::other(why)));
            }
            Err(fail) => return Err(failed(fail)),
        };
        if (ours.size, ours.times.map(|t| t.1)) != (there.size, there.times.map(|t| t.1)) {
            return Ok(false);
        }
        // A server for append-only accounts sets no times. One whose only answer was no has not made the link.
        if self.inner.tree.append_only && !unsure {
            return Ok(false);
        }
        let Some((accessed, modified)) = ours.times else { return Ok(false) };
        let mark = modified.wrapping_add((random_u32(&self.name)? >> 2).max(1));
        let set = |modified| {
            self.session.done(&Request::of(kind::SETSTAT, &self.temp).times(accessed, modified)).map_err(failed)
        };
        set(mark)?;
        let marked = self.session.lstat(path);
        set(modified)?;
        match marked {
            Ok(there) => Ok(there.times.is_some_and(|(_, modified)| modified == mark)),
            Err(fail) if fail.is_status(Status::NO_SUCH_FILE) => Ok(false),
            Err(fail) => Err(failed(fail)),
        }
    }

    fn taken(&self) -> StoreError {
        let io = |why| StoreError::io("link", &self.name, io::Error::other(why));
        match self.session.lstat(&self.inner.tree.path(self.name.as_str())).map(|there| there.kind()) {
            Ok(FileKind::Regular) => StoreError::already_exists(&self.name),
            Ok(FileKind::Directory) => io("a directory is in its place"),
            Ok(kind) => io(strange(kind)),
            // Taken a moment ago and deleted since.
            Err(fail) if fail.is_status(Status::NO_SUCH_FILE) => StoreError::already_exists(&self.name),
            Err(fail) => failed("link", &self.name, fail),
        }
    }

    fn close(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.session.close(handle);
        }
    }

    fn remove_temp(&self) {
        // What cannot be removed now, the sweeper will.
        let _ = self.session.done(&Request::of(kind::REMOVE, &self.temp));
    }
}

impl ObjectWriter for SftpWriter {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        if self.state != State::Open {
            return Err(StoreError::io("write", &self.name, io::Error::other("an earlier write failed")));
        }
        self.session.renew();
        // Until it has succeeded: whatever fails, bytes are missing.
        self.state = State::Spoiled;
        while !bytes.is_empty() {
            let room = self.piece_bytes().saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            self.written += now.len() as u64;
            bytes = later;
            if self.buffer.len() >= self.piece_bytes() {
                self.put_buffer();
                self.pump(PIECES_AHEAD)?;
            }
        }
        self.state = State::Open;
        Ok(())
    }

    fn written(&self) -> u64 {
        self.written
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.session.renew();
        self.commit()
    }
}

impl Drop for SftpWriter {
    fn drop(&mut self) {
        self.inner.died(self.temp.rsplit_once('/').map_or("", |(_, temp)| temp));
        if self.state == State::Named {
            return;
        }
        // The object has failed or was given up already; what cannot be removed now, the sweeper will.
        if self.session.connection().is_dead() {
            match self.inner.pool.existing() {
                Some(session) => self.session = session,
                None => return,
            }
        } else {
            self.close();
        }
        self.session.renew();
        self.remove_temp();
        self.inner.tree.prune(&self.session, self.name.parent());
    }
}

const CLOSED: Malformed = Malformed("a file that was closed");

fn random_u32(name: &ObjectName) -> Result<u32, StoreError> {
    let mut random = [0u8; 4];
    getrandom::fill(&mut random).map_err(|e| StoreError::io("create", name, io::Error::other(e)))?;
    Ok(u32::from_le_bytes(random))
}

pub(super) fn temp_name(name: &ObjectName) -> Result<String, StoreError> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|e| StoreError::io("create", name, io::Error::other(e)))?;
    Ok(format!("{TEMP_PREFIX}{:032x}", u128::from_le_bytes(random)))
}

//! The requests of one operation on one connection, each waited for until the operation's deadline.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::connection::{Answer, Connection, expect, receive};
use super::failure::{Fail, SftpFailure};
use super::wire::{self, Attributes, Entry, Malformed, Packet, Request, Status, kind};

/// Requests for one directory or file that are under way at the same time.
const READS_AHEAD: usize = 16;
const BATCHES_AHEAD: usize = 4;
/// Entries of one directory that are accepted.
const ENTRIES_MAX: usize = 4_000_000;

/// A file that is open on the server. It cannot be copied, because servers give the handle of a file that was closed to
/// the next one: closing it twice, or writing to it afterwards, would hit somebody else's.
#[derive(Debug)]
pub(super) struct Handle(Vec<u8>);

impl Handle {
    pub(super) fn request(&self, kind: u8) -> Request {
        Request::new(kind).bytes(&self.0)
    }
}

pub(super) struct Session {
    connection: Arc<Connection>,
    sender: Sender<(u32, Answer)>,
    receiver: Receiver<(u32, Answer)>,
    deadline: Instant,
    allowed: Duration,
}

/// What the file system below a path has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) free_bytes: u64,
    /// What is used by anybody, and what is free.
    pub(super) total_bytes: u64,
    pub(super) free_files: u64,
    pub(super) files: u64,
    pub(super) read_only: bool,
}

impl Session {
    /// The connection's user count is the caller's to raise.
    pub(super) fn new(connection: Arc<Connection>, deadline: Instant, allowed: Duration) -> Self {
        let (sender, receiver) = channel();
        Session { connection, sender, receiver, deadline, allowed }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The next operation begins now.
    pub(super) fn renew(&mut self) {
        self.deadline = Instant::now() + self.allowed;
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// For a stream of requests that outlives a call; their answers come from `receive`.
    pub(super) fn send(&self, request: &Request, body: &[u8]) -> Result<u32, Fail> {
        Ok(self.connection.send(request, body, &self.sender)?)
    }

    pub(super) fn receive(&self) -> Result<(u32, Packet), Fail> {
        receive(&self.receiver, &self.connection, self.deadline, self.allowed)
    }

    /// Sends all requests, which must not depend on each other, and gives the answers in the same order.
    pub(super) fn all(&self, requests: &[Request]) -> Result<Vec<Packet>, Fail> {
        let exchange = Exchange::new(self);
        let mut order = HashMap::new();
        for (index, request) in requests.iter().enumerate() {
            order.insert(exchange.send(request)?, index);
        }
        let mut answers: Vec<Option<Packet>> = vec![None; requests.len()];
        for _ in requests {
            let (id, packet) = exchange.receive()?;
            let place = order.get(&id).and_then(|&index| answers.get_mut(index)).ok_or(UNASKED)?;
            *place = Some(packet);
        }
        answers.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| UNASKED.into())
    }

    fn call(&self, request: &Request, wanted: u8) -> Answer {
        let packet = self.all(std::slice::from_ref(request))?.pop().ok_or(UNASKED)?;
        expect(packet, wanted)
    }

    /// A request that is answered by yes or no.
    pub(super) fn done(&self, request: &Request) -> Result<(), Fail> {
        self.call(request, kind::STATUS).map(drop)
    }

    pub(super) fn lstat(&self, path: &str) -> Result<Attributes, Fail> {
        attributes(self.call(&Request::of(kind::LSTAT, path), kind::ATTRS)?)
    }

    /// Of each path what it is, without following a link at its end, or why that cannot be told.
    pub(super) fn lstat_all(&self, paths: &[String]) -> Result<Vec<Result<Attributes, Fail>>, Fail> {
        let requests: Vec<_> = paths.iter().map(|path| Request::of(kind::LSTAT, path)).collect();
        let answers = self.all(&requests)?;
        Ok(answers.into_iter().map(|packet| attributes(expect(packet, kind::ATTRS)?)).collect())
    }

    pub(super) fn fstat(&self, handle: &Handle) -> Result<Attributes, Fail> {
        attributes(self.call(&handle.request(kind::FSTAT), kind::ATTRS)?)
    }

    pub(super) fn open(&self, path: &str, flags: u32, mode: Option<u32>) -> Result<Handle, Fail> {
        opened(self.call(&Request::open(path, flags, mode), kind::HANDLE)?)
    }

    /// Nothing depends on the answer: what must be safe has been synced before.
    pub(super) fn close(&self, handle: Handle) {
        self.connection.tell(&handle.request(kind::CLOSE));
    }

    pub(super) fn fsync(&self, handle: &Handle) -> Result<(), Fail> {
        self.done(&fsync(handle))
    }

    /// Forces the directories to the disk. A directory can be opened like a file for that on OpenSSH's server.
    pub(super) fn sync_dirs(&self, paths: &[String]) -> Result<(), Fail> {
        let opens: Vec<_> = paths.iter().map(|path| Request::open(path, wire::READ, None)).collect();
        let mut handles = vec![];
        let mut failed = None;
        for packet in self.all(&opens)? {
            match expect(packet, kind::HANDLE).and_then(opened) {
                Ok(handle) => handles.push(handle),
                Err(fail) => failed = Some(fail),
            }
        }
        let synced = match failed {
            Some(fail) => Err(fail),
            None => self.all(&handles.iter().map(fsync).collect::<Vec<_>>()),
        };
        handles.into_iter().for_each(|handle| self.close(handle));
        synced?.into_iter().try_for_each(|packet| expect(packet, kind::STATUS).map(drop))
    }

    pub(super) fn realpath(&self, path: &str) -> Result<String, Fail> {
        let packet = self.call(&Request::of(kind::REALPATH, path), kind::NAME)?;
        let found = packet.fields().entries()?;
        match found.into_iter().next() {
            Some(entry) if entry.name.starts_with('/') && !entry.name.contains('\u{fffd}') => Ok(entry.name),
            _ => Err(Malformed("a path that is not absolute, or not UTF-8").into()),
        }
    }

    /// Everything a directory holds, in any order, `.` and `..` perhaps included.
    pub(super) fn entries(&self, path: &str) -> Result<Vec<Entry>, Fail> {
        let handle = opened(self.call(&Request::of(kind::OPENDIR, path), kind::HANDLE)?)?;
        let entries = self.read_entries(&handle);
        self.close(handle);
        entries
    }

    fn read_entries(&self, handle: &Handle) -> Result<Vec<Entry>, Fail> {
        let next = handle.request(kind::READDIR);
        let (mut entries, mut failed) = (vec![], None);
        let (mut ended, mut under_way) = (false, 0);
        let exchange = Exchange::new(self);
        loop {
            while !ended && under_way < BATCHES_AHEAD {
                exchange.send(&next)?;
                under_way += 1;
            }
            if under_way == 0 {
                break;
            }
            let packet = exchange.receive()?.1;
            under_way -= 1;
            match expect(packet, kind::NAME) {
                Ok(packet) => entries.extend(packet.fields().entries()?),
                Err(fail) if fail.is_status(Status::EOF) => ended = true,
                Err(fail) => (ended, failed) = (true, Some(fail)),
            }
            if entries.len() > ENTRIES_MAX {
                return Err(SftpFailure::protocol("a directory without end").into());
            }
        }
        failed.map_or(Ok(entries), Err)
    }

    /// Fills `buf` from `offset`; gives how much there was when the file ends before.
    pub(super) fn read_at(&self, handle: &Handle, offset: u64, buf: &mut [u8]) -> Result<usize, Fail> {
        let piece = self.connection.read_piece;
        let exchange = Exchange::new(self);
        let length = buf.len();
        // Where each request begins in `buf`, and how long it is.
        let mut asked: HashMap<u32, (usize, usize)> = HashMap::new();
        let mut again: Vec<(usize, usize)> = vec![];
        let (mut next, mut end, mut failed) = (0, length, None);
        loop {
            while asked.len() < READS_AHEAD && failed.is_none() {
                let (from, len) = match again.pop() {
                    Some(rest) => rest,
                    None if next < end => (next, piece.min(end - next)),
                    None => break,
                };
                next = next.max(from + len);
                let request = handle
                    .request(kind::READ)
                    .u64(offset.saturating_add(from as u64))
                    .u32(u32::try_from(len).unwrap_or(u32::MAX));
                asked.insert(exchange.send(&request)?, (from, len));
            }
            if asked.is_empty() {
                break;
            }
            let (id, packet) = exchange.receive()?;
            let (from, len) = asked.remove(&id).ok_or(UNASKED)?;
            match expect(packet, kind::DATA) {
                Ok(packet) => {
                    let data = packet.fields().bytes()?;
                    let place = buf.get_mut(from..from + len).and_then(|place| place.get_mut(..data.len()));
                    place.ok_or(Malformed("more data than was asked for"))?.copy_from_slice(data);
                    if data.is_empty() {
                        return Err(Malformed("no data and no end").into());
                    }
                    if data.len() < len {
                        again.push((from + data.len(), len - data.len()));
                    }
                }
                Err(fail) if fail.is_status(Status::EOF) => end = end.min(from),
                Err(fail) => failed = Some(fail),
            }
            again.retain(|(from, _)| *from < end);
        }
        failed.map_or(Ok(end), Err)
    }

    /// None when the server does not tell.
    pub(super) fn space(&self, path: &str) -> Result<Option<Space>, Fail> {
        if !self.connection.offers("statvfs@openssh.com") {
            return Ok(None);
        }
        let packet = self.call(&Request::extended("statvfs@openssh.com").text(path), kind::EXTENDED_REPLY)?;
        let mut fields = packet.fields();
        let mut number = || fields.u64();
        let (_block, fragment, blocks, free) = (number()?, number()?, number()?, number()?);
        let available = number()?;
        let (files, _free_files, free_files) = (number()?, number()?, number()?);
        let (_id, flags) = (number()?, number()?);
        let free_bytes = available.saturating_mul(fragment);
        let total_bytes = blocks.saturating_sub(free).saturating_add(available).saturating_mul(fragment);
        Ok(Some(Space { free_bytes, total_bytes, free_files, files, read_only: flags & 1 != 0 }))
    }
}

/// Some requests and their answers, apart from all others.
struct Exchange<'s> {
    session: &'s Session,
    sender: Sender<(u32, Answer)>,
    receiver: Receiver<(u32, Answer)>,
}

impl<'s> Exchange<'s> {
    fn new(session: &'s Session) -> Self {
        let (sender, receiver) = channel();
        Exchange { session, sender, receiver }
    }

    fn send(&self, request: &Request) -> Result<u32, Fail> {
        Ok(self.session.connection.send(request, &[], &self.sender)?)
    }

    fn receive(&self) -> Result<(u32, Packet), Fail> {
        receive(&self.receiver, &self.session.connection, self.session.deadline, self.session.allowed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.leave();
    }
}

const UNASKED: Malformed = Malformed("an answer nobody asked for");

fn fsync(handle: &Handle) -> Request {
    Request::extended("fsync@openssh.com").bytes(&handle.0)
}

fn attributes(packet: Packet) -> Result<Attributes, Fail> {
    Ok(packet.fields().attributes()?)
}

fn opened(packet: Packet) -> Result<Handle, Fail> {
    Ok(Handle(packet.fields().handle()?))
}

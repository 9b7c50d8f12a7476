//! Acknowledged commits, written down outside the database, and what each recovery target must bring back.
//!
//! One session inserts numbered rows, each in a transaction of its own, and asks the server for the commit's xid, time
//! and surrounding LSNs. What a target must restore then follows without asking the product:
//!
//! - *time T inclusive*: the rows committed at or before T; *exclusive*: before T. With other sessions writing, ask for
//!   a time taken between two rows ([`Row::after`]): a commit time is stamped before its record is written, so only such
//!   a time separates the rows whatever the others do.
//! - *LSN L*: the rows whose commit record ended at or before L. A row needs an insert record before its commit record,
//!   so one record more or less at L (inclusive or not) cannot add the next row.
//! - *xid*: the rows up to that transaction, with or without it. *name*: the rows before the restore point.
//! - *immediate*: the rows committed before the backup's stop; a row in flight at the stop may be there or not.
//! - *latest*: all rows up to the last archived LSN.
//!
//! Rows that were sent but never acknowledged may be there or not, as for any client.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::TestCluster;
use crate::os::{as_postgres, must, wait_until};
use crate::psql::{psql_command, quote_literal, try_psql};
use crate::recovered::Recovered;

/// A position in the WAL, comparable.
pub(crate) fn parse_lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap_or_else(|| panic!("not an LSN: {text}"));
    let half = |word: &str| u64::from_str_radix(word, 16).unwrap_or_else(|_| panic!("not an LSN: {text}"));
    half(high) << 32 | half(low)
}

/// One acknowledged commit. Times are UTC in RFC 3339 with microseconds, so that text order is time order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: u64,
    pub xid: u64,
    pub timeline: u32,
    /// Insert position before the transaction began.
    pub lsn_before: String,
    /// Insert position after the commit was acknowledged.
    pub lsn_after: String,
    /// The time in the commit record.
    pub committed: String,
    /// The server's clock after the commit was acknowledged and before the next row began.
    pub after: String,
}

/// Where a recovery is asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Time {
        at: String,
        inclusive: bool,
    },
    Lsn(String),
    Xid {
        xid: u64,
        inclusive: bool,
    },
    Name(String),
    /// The consistency point of a backup, given by its stop LSN.
    Immediate {
        lsn_stop: String,
    },
    /// The end of the archive, given by the LSN up to which WAL is archived.
    Latest {
        archived: String,
    },
}

impl Target {
    /// The flags of `pgark restore`.
    pub fn flags(&self) -> Vec<String> {
        let words: Vec<&str> = match self {
            Target::Time { at, inclusive: true } => vec!["--target-time", at],
            Target::Time { at, inclusive: false } => vec!["--target-time", at, "--target-exclusive"],
            Target::Lsn(lsn) => vec!["--target-lsn", lsn],
            Target::Xid { xid, inclusive } => {
                let mut words = vec!["--target-xid".to_owned(), xid.to_string()];
                words.extend((!inclusive).then(|| "--target-exclusive".to_owned()));
                return words;
            }
            Target::Name(name) => vec!["--target-name", name],
            Target::Immediate { .. } => vec!["--target-immediate"],
            Target::Latest { .. } => vec![],
        };
        words.into_iter().map(str::to_owned).collect()
    }
}

/// The ids that a restore must bring back, and those that it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub must: BTreeSet<u64>,
    pub may: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Book {
    rows: Vec<Row>,
    /// Sent and never answered.
    in_doubt: BTreeSet<u64>,
    /// Restore points with the timeline and insert position right after them.
    names: Vec<(String, u32, u64)>,
    /// Child timeline, its parent, and where it left the parent.
    branches: Vec<(u32, u32, u64)>,
    next_id: u64,
}

/// The book of one lineage of clusters.
#[derive(Debug, Clone)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
}

impl Ledger {
    /// Creates the table in database `postgres` of `cluster`.
    pub fn create(cluster: &TestCluster) -> Ledger {
        cluster.psql("create table ledger (id bigint primary key, filler text not null)");
        Ledger { book: Arc::new(Mutex::new(Book { next_id: 1, ..Book::default() })) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts a background session that writes one row after the other.
    pub fn write_to(&self, cluster: &TestCluster) -> Writer {
        Writer::start(self.clone(), cluster)
    }

    /// Writes `count` rows and returns when all are acknowledged.
    pub fn write_rows(&self, cluster: &TestCluster, count: usize) {
        let mut session = Session::open(cluster);
        for _ in 0..count {
            session.insert(self).expect("the server answers");
        }
    }

    /// Tells the book that `timeline` left `parent` at this LSN (from a promotion or a recovery).
    pub fn branch(&self, timeline: u32, parent: u32, at: &str) {
        self.book().branches.push((timeline, parent, parse_lsn(at)));
    }

    pub fn rows(&self) -> Vec<Row> {
        self.book().rows.clone()
    }

    /// The last acknowledged row.
    pub fn last(&self) -> Row {
        self.book().rows.last().expect("the ledger has rows").clone()
    }

    /// The acknowledged row in the middle of those with ids from `from` on.
    pub fn middle_from(&self, from: u64) -> Row {
        let book = self.book();
        let rows: Vec<&Row> = book.rows.iter().filter(|row| row.id >= from).collect();
        rows.get(rows.len() / 2).map(|row| (*row).clone()).expect("rows were written since")
    }

    /// What a restore to `target` on `timeline` must bring back.
    pub fn expected(&self, target: &Target, timeline: u32) -> Expected {
        let book = self.book();
        let path = book.path_to(timeline);
        let on_path =
            |row: &&Row| path.iter().any(|(id, end)| *id == row.timeline && parse_lsn(&row.lsn_after) <= *end);
        let rows: Vec<&Row> = book.rows.iter().filter(on_path).collect();
        let ids = |keep: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| keep(row)).map(|row| row.id).collect();
        let mut may = BTreeSet::new();
        let must = match target {
            Target::Time { at, inclusive: true } => ids(&|row| row.committed <= *at),
            Target::Time { at, inclusive: false } => ids(&|row| row.committed < *at),
            Target::Lsn(lsn) => ids(&|row| parse_lsn(&row.lsn_after) <= parse_lsn(lsn)),
            Target::Xid { xid, inclusive: true } => ids(&|row| row.xid <= *xid),
            Target::Xid { xid, inclusive: false } => ids(&|row| row.xid < *xid),
            Target::Name(name) => {
                let (_, _, at) = book.names.iter().find(|(known, ..)| known == name).expect("a restore point of ours");
                ids(&|row| parse_lsn(&row.lsn_after) <= *at)
            }
            Target::Immediate { lsn_stop } => {
                let stop = parse_lsn(lsn_stop);
                may = ids(&|row| parse_lsn(&row.lsn_before) < stop && parse_lsn(&row.lsn_after) > stop);
                ids(&|row| parse_lsn(&row.lsn_after) <= stop)
            }
            Target::Latest { archived } => {
                may = book.in_doubt.clone();
                ids(&|row| parse_lsn(&row.lsn_after) <= parse_lsn(archived))
            }
        };
        Expected { must, may }
    }

    /// Panics unless `recovered` holds exactly the rows that `target` on `timeline` calls for, with their content.
    pub fn assert_exact(&self, recovered: &Recovered, target: &Target, timeline: u32) {
        let expected = self.expected(target, timeline);
        let found = rows_in(recovered);
        let short: Vec<&u64> = expected.must.difference(&found).collect();
        let extra: Vec<&u64> =
            found.iter().filter(|id| !expected.must.contains(id) && !expected.may.contains(id)).collect();
        assert!(
            short.is_empty() && extra.is_empty(),
            "{target:?} on timeline {timeline}: {} rows expected, {} found; missing {:?}, too many {:?}\nserver log:\n{}",
            expected.must.len(),
            found.len(),
            short.iter().take(20).collect::<Vec<_>>(),
            extra.iter().take(20).collect::<Vec<_>>(),
            recovered.log()
        );
    }
}

impl Book {
    /// The timelines from `timeline` back to the first, each with the LSN where the path leaves it.
    fn path_to(&self, timeline: u32) -> Vec<(u32, u64)> {
        let mut path = vec![(timeline, u64::MAX)];
        let mut at = timeline;
        while let Some((_, parent, left_at)) = self.branches.iter().find(|(child, ..)| *child == at) {
            path.push((*parent, *left_at));
            at = *parent;
        }
        // A timeline left early also bounds what its ancestors give.
        let mut bound = u64::MAX;
        for (_, end) in &mut path {
            bound = bound.min(*end);
            *end = bound;
        }
        path
    }
}

/// The ids in a restored ledger, read through the table and through its index, after checking every row's content.
fn rows_in(recovered: &Recovered) -> BTreeSet<u64> {
    let ask = |settings: &str| -> BTreeSet<u64> {
        let sql = format!("{settings}select id from ledger where id >= 0 and filler = md5(id::text) order by id");
        let text = try_psql(recovered.address(), "postgres", &sql)
            .unwrap_or_else(|error| panic!("reading the restored ledger: {error}\n{}", recovered.log()));
        text.lines().map(|line| line.parse().expect("a row id")).collect()
    };
    let by_heap = ask("set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off;\n");
    let by_index = ask("set enable_seqscan = off;\n");
    assert_eq!(by_heap, by_index, "the table and its index disagree");
    let all = recovered.psql("select count(*) from ledger");
    assert_eq!(all, by_heap.len().to_string(), "rows with a content that was never written");
    by_heap
}

/// One psql session that inserts rows.
struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// Why a session ended: the server went away.
#[derive(Debug)]
struct Gone;

impl Session {
    fn open(cluster: &TestCluster) -> Session {
        let mut command = psql_command(&cluster.address(), "postgres");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.expect("start psql");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        Session { child, stdin, stdout }
    }

    fn ask(&mut self, script: &str) -> Result<String, Gone> {
        self.stdin.write_all(script.as_bytes()).and_then(|()| self.stdin.flush()).map_err(|_| Gone)?;
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(length) if length > 0 => Ok(line.trim_end().to_owned()),
            _ => Err(Gone),
        }
    }

    fn insert(&mut self, ledger: &Ledger) -> Result<(), Gone> {
        let id = {
            let mut book = ledger.book();
            let id = book.next_id;
            book.next_id += 1;
            book.in_doubt.insert(id);
            id
        };
        let utc = |what: &str| format!("to_char({what} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        let script = format!(
            "select pg_current_wal_insert_lsn() as l \\gset\n\
             insert into ledger values ({id}, md5({id}::text)) returning pg_current_xact_id()::text as x \\gset\n\
             select :'x', ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, :'l', \
             pg_current_wal_insert_lsn(), {}, {};\n",
            utc("pg_xact_commit_timestamp(:'x'::xid)"),
            utc("clock_timestamp()"),
        );
        let line = self.ask(&script)?;
        let mut fields = line.split('|').map(str::to_owned);
        let mut field = || fields.next().unwrap_or_else(|| panic!("the server answered {line:?}"));
        let row = Row {
            id,
            xid: field().parse().expect("a transaction id"),
            timeline: field().parse().expect("a timeline"),
            lsn_before: field(),
            lsn_after: field(),
            committed: field(),
            after: field(),
        };
        let mut book = ledger.book();
        book.in_doubt.remove(&id);
        book.rows.push(row);
        Ok(())
    }

    fn restore_point(&mut self, ledger: &Ledger, name: &str) -> Result<(), Gone> {
        let script = format!(
            "select ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, \
             pg_create_restore_point({});\n",
            quote_literal(name)
        );
        let line = self.ask(&script)?;
        let (timeline, lsn) = line.split_once('|').unwrap_or_else(|| panic!("the server answered {line:?}"));
        ledger.book().names.push((name.to_owned(), timeline.parse().expect("a timeline"), parse_lsn(lsn)));
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A session that already ended cannot be killed again; either way it is reaped.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

enum Order {
    RestorePoint(String, Sender<()>),
    Stop,
}

/// Writes rows in the background until it is stopped or the server goes away.
#[derive(Debug)]
pub struct Writer {
    ledger: Ledger,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(ledger: Ledger, cluster: &TestCluster) -> Writer {
        let (orders, inbox) = channel();
        let session = Session::open(cluster);
        let book = ledger.clone();
        let thread = std::thread::spawn(move || write_until_told(session, &book, &inbox));
        Writer { ledger, orders, thread: Some(thread) }
    }

    /// Waits until `count` more rows are acknowledged.
    pub fn wait_for_more(&self, count: usize) {
        let have = self.ledger.book().rows.len();
        wait_until("the ledger grows", Duration::from_secs(120), || {
            (self.ledger.book().rows.len() >= have + count).then_some(())
        });
    }

    /// Creates a named restore point between two rows.
    pub fn restore_point(&self, name: &str) {
        let (done, wait) = channel();
        self.orders.send(Order::RestorePoint(name.to_owned(), done)).expect("the writer runs");
        wait.recv_timeout(Duration::from_secs(60)).expect("the restore point is made");
    }

    /// Ends the session after the row under way.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // A writer whose server went away has left already.
        self.orders.send(Order::Stop).ok();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the ledger's writer panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

fn write_until_told(mut session: Session, ledger: &Ledger, orders: &Receiver<Order>) {
    loop {
        let order = orders.recv_timeout(Duration::from_millis(4));
        let went = match order {
            Ok(Order::Stop) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
            Ok(Order::RestorePoint(name, done)) => {
                let made = session.restore_point(ledger, &name);
                if made.is_ok() {
                    // Nobody waits any more when the test is already failing.
                    done.send(()).ok();
                }
                made
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => session.insert(ledger),
        };
        if went.is_err() {
            return;
        }
    }
}

/// pgbench beside the ledger, for concurrency; stopped when dropped.
#[derive(Debug)]
pub struct Pgbench {
    child: Child,
}

const PGBENCH: &str = "/usr/lib/postgresql/15/bin/pgbench";

impl Pgbench {
    /// Loads the tables at this scale.
    pub fn load(cluster: &TestCluster, scale: u32) {
        let mut command = as_postgres(PGBENCH);
        command.args(["-i", "-q", "-I", "dtgvp", "-s", &scale.to_string()]).arg(cluster.connection_string("postgres"));
        must("pgbench -i", command);
    }

    /// Two clients that write at up to `per_second` transactions a second.
    pub fn run(cluster: &TestCluster, per_second: u32) -> Pgbench {
        let mut command: Command = as_postgres(PGBENCH);
        command.args(["-n", "-c", "2", "-T", "3600", "-R", &per_second.to_string()]);
        command.arg(cluster.connection_string("postgres"));
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Pgbench { child: spawned.expect("start pgbench") }
    }

    /// True while it still writes; a test checks this at its end, or it proved nothing.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(rows: &[(u64, u32, &str, &str)]) -> Ledger {
        let rows = rows.iter().map(|(id, timeline, before, after)| Row {
            id: *id,
            xid: 700 + id,
            timeline: *timeline,
            lsn_before: (*before).to_owned(),
            lsn_after: (*after).to_owned(),
            committed: format!("2026-01-01T00:00:0{id}.000000Z"),
            after: format!("2026-01-01T00:00:0{id}.000500Z"),
        });
        Ledger { book: Arc::new(Mutex::new(Book { rows: rows.collect(), next_id: 9, ..Book::default() })) }
    }

    fn must_have(ledger: &Ledger, target: Target, timeline: u32) -> Vec<u64> {
        ledger.expected(&target, timeline).must.into_iter().collect()
    }

    #[test]
    fn an_exclusive_target_leaves_its_own_row_out() {
        let ledger = ledger(&[(1, 1, "0/10", "0/20"), (2, 1, "0/20", "0/30"), (3, 1, "0/30", "0/40")]);
        let at = "2026-01-01T00:00:02.000000Z".to_owned();
        assert_eq!(must_have(&ledger, Target::Time { at: at.clone(), inclusive: true }, 1), [1, 2]);
        assert_eq!(must_have(&ledger, Target::Time { at, inclusive: false }, 1), [1]);
        assert_eq!(must_have(&ledger, Target::Xid { xid: 702, inclusive: false }, 1), [1]);
        assert_eq!(must_have(&ledger, Target::Lsn("0/30".into()), 1), [1, 2]);
    }

    #[test]
    fn rows_after_the_switch_on_the_old_timeline_do_not_belong_to_the_new_one() {
        let ledger = ledger(&[(1, 1, "0/10", "0/20"), (2, 1, "0/20", "0/30"), (3, 2, "0/20", "0/40")]);
        ledger.branch(2, 1, "0/20");
        let latest = Target::Latest { archived: "0/FF".into() };
        assert_eq!(must_have(&ledger, latest.clone(), 2), [1, 3]);
        assert_eq!(must_have(&ledger, latest, 1), [1, 2]);
    }

    #[test]
    fn a_row_in_flight_at_the_stop_of_the_backup_may_be_there_or_not() {
        let ledger = ledger(&[(1, 1, "0/10", "0/20"), (2, 1, "0/20", "0/30"), (3, 1, "0/30", "0/40")]);
        let expected = ledger.expected(&Target::Immediate { lsn_stop: "0/28".into() }, 1);
        assert_eq!(expected.must, BTreeSet::from([1]));
        assert_eq!(expected.may, BTreeSet::from([2]));
    }
}

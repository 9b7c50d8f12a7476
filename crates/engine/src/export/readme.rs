//! What an export says about itself to whoever finds it.

use super::ExportPlan;

pub fn text(plan: &ExportPlan) -> String {
    let record = &plan.restore.record;
    let (major, size) = (record.version_num / 10_000, record.segment_size);
    let top = &plan.top;
    let mut out = format!(
        "A physical backup of a PostgreSQL {major} cluster, exported by pgark. Nothing but PostgreSQL {major} is needed to use it.

backup              {id} of cluster {cluster}
system identifier   {system}
PostgreSQL          {version}
taken               {started} to {finished}
consistent at       {stop} on timeline {timeline}
WAL that goes along {first} to {last}

data/               the data directory
data/backup_manifest   SHA-256 of every file but WAL, in PostgreSQL's own format
tablespaces/OID/    tablespaces; data/pg_tblspc/OID is a relative link to each

To use it, as the user who is to run the server (not root), where there is room for it:

    tar -xf FILE
    pg_verifybackup {top}/data
    pg_ctl -D {top}/data -w start

The server replays the WAL that goes along and opens for writing. It must be PostgreSQL {major} for the same kind of processor and operating
system. Never remove data/backup_label: without it the server does not start.

- Archiving is off (last lines of data/postgresql.auto.conf): the copy is on the same timeline as the original and must not archive into the
  same place.
- data/postgresql.conf is the original's: look at listen_addresses, port, unix_socket_directories, shared_preload_libraries,
  and at pg_hba.conf before the first start.
- This is the state of the end of the backup. For a later moment, the repository and its WAL are needed.
",
        id = record.id,
        cluster = record.cluster,
        system = record.system_id,
        version = record.version_num,
        started = record.started,
        finished = record.finished,
        stop = record.lsn_stop,
        timeline = record.timeline,
        first = plan.wal.first().map(|n| n.format(size)).unwrap_or_default(),
        last = plan.wal.last().map(|n| n.format(size)).unwrap_or_default(),
    );
    let spaces: Vec<_> = record.tablespaces.iter().filter(|t| !t.in_place).collect();
    if !spaces.is_empty() {
        out += "\nTablespaces, and where they were:\n\n";
        for t in spaces {
            out += &format!("    {}   {}\n", t.oid, String::from_utf8_lossy(&t.location).escape_debug());
        }
        out += "\nTo put one elsewhere, move its directory while the server is stopped and point the link to it, with the full path (pg_basebackup\n\
                wants full paths): ln -sfn /new/place data/pg_tblspc/OID\n";
    }
    if record.bad_blocks > 0 {
        out += &format!("\n{} pages were damaged in the source and are so here.\n", record.bad_blocks);
    }
    out
}

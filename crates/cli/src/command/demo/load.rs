//! The data set: tables that nobody writes to once they are loaded, and a fingerprint of each.

use pgark_engine::Ctx;
use pgark_engine::cluster::Connection;

use super::server::pg;
use crate::command::context::engine_failure;
use crate::failure::Failure;

/// Rows per statement, so that an interrupt does not wait for long.
const BATCH: u64 = 50_000;

struct Table {
    name: &'static str,
    columns: &'static str,
    /// One row for the number `i`.
    row: &'static str,
    /// At scale 1.
    rows: u64,
}

const TABLES: [Table; 3] = [
    Table {
        name: "customers",
        columns: "id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text NOT NULL, credit numeric(12,2)",
        row: "i, 'Customer ' || i, md5(i::text) || '@example.com', \
              (ARRAY['Vienna','Oslo','Lyon','Porto','Turin'])[1 + i % 5], (i * 7919 % 100000) / 100.0",
        rows: 50_000,
    },
    Table {
        name: "orders",
        columns: "id bigint PRIMARY KEY, customer_id bigint NOT NULL, placed timestamptz NOT NULL, total numeric(12,2), note text",
        row: "i, 1 + i * 31 % 50000, timestamptz '2026-01-01 00:00:00+00' + i * interval '13 seconds', \
              (i * 104729 % 1000000) / 100.0, 'deliver to the back door, reference ' || md5('order' || i)",
        rows: 300_000,
    },
    Table {
        name: "order_lines",
        columns: "id bigint PRIMARY KEY, order_id bigint NOT NULL, article text NOT NULL, quantity int, price numeric(12,2)",
        row: "i, 1 + i / 2, 'article ' || md5('line' || i), 1 + i % 9, (i * 1299709 % 100000) / 100.0",
        rows: 600_000,
    },
];

/// What a table holds: the same on two servers only when every row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    pub table: &'static str,
    pub rows: u64,
    pub hash: String,
}

pub fn load(conn: &Connection, scale: u32, ctx: &Ctx) -> Result<Vec<Fingerprint>, Failure> {
    for table in &TABLES {
        conn.execute(&format!("CREATE TABLE public.{} ({})", table.name, table.columns), &[]).map_err(pg)?;
        let rows = table.rows * u64::from(scale);
        let insert = format!(
            "INSERT INTO public.{} SELECT {} FROM generate_series($1::bigint, $2::bigint) AS i",
            table.name, table.row
        );
        let mut first = 1;
        while first <= rows {
            ctx.check_cancelled().map_err(engine_failure)?;
            let last = rows.min(first + BATCH - 1);
            conn.execute(&insert, &[&first.to_string(), &last.to_string()]).map_err(pg)?;
            first = last + 1;
        }
    }
    let payments = "CREATE TABLE public.payments (id bigint PRIMARY KEY, content text NOT NULL)";
    conn.execute(payments, &[]).map_err(pg)?;
    fingerprints(conn, ctx)
}

pub fn fingerprints(conn: &Connection, ctx: &Ctx) -> Result<Vec<Fingerprint>, Failure> {
    TABLES.iter().map(|table| fingerprint(conn, table.name, ctx)).collect()
}

/// Hashes of hashes of stretches, so that no value grows with the table.
fn fingerprint(conn: &Connection, table: &'static str, ctx: &Ctx) -> Result<Fingerprint, Failure> {
    ctx.check_cancelled().map_err(engine_failure)?;
    let sql = format!(
        "SELECT coalesce(sum(n), 0)::bigint AS rows, \
                encode(sha256(convert_to(coalesce(string_agg(hash, '' ORDER BY stretch), ''), 'UTF8')), 'hex') AS hash \
         FROM (SELECT id / 10000 AS stretch, count(*) AS n, md5(string_agg(md5(t::text), '' ORDER BY id)) AS hash \
               FROM public.{table} AS t GROUP BY 1) AS stretches"
    );
    let row = conn.query_one(&sql, &[]).map_err(pg)?;
    Ok(Fingerprint { table, rows: row.parse("rows").map_err(pg)?, hash: row.text("hash").map_err(pg)?.to_owned() })
}

pub fn database_bytes(conn: &Connection) -> Result<u64, Failure> {
    let row = conn.query_one("SELECT pg_database_size(current_database()) AS bytes", &[]).map_err(pg)?;
    row.parse("bytes").map_err(pg)
}

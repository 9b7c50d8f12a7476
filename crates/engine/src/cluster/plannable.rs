//! Which tables a statement may be planned over.
//!
//! The planner evaluates immutable functions in index expressions, index predicates, expressions of extended statistics and
//! partition keys, with the rights of whoever asks. Their owner may put them there at any time, also after our snapshot; and whoever owns
//! a schema may put a view in the place of a table. A role to switch to is no protection: the function can switch back.
//!
//! Invariant: a statement is planned only over relations that nobody can change but superusers and the role of the session itself, and
//! that have no such expression. Of all others rows are read with `COPY relation TO STDOUT`, which is not planned, and refuses views.

use pgark_pg::Major;

/// Why something is not read.
pub const UNSAFE: &str = "reading it would run functions of its owner with the rights of this session";

/// Nobody but PostgreSQL changes a TOAST table. A condition on `pg_class AS c` and `pg_namespace AS n`, or on what these are called here.
pub(super) fn plannable(major: Major, class: &str, namespace: &str) -> String {
    let statistics = match major {
        Major::V13 => "true".to_owned(),
        _ => format!(
            "NOT EXISTS (SELECT FROM pg_statistic_ext AS px WHERE px.stxrelid = {class}.oid AND px.stxexprs IS NOT NULL)"
        ),
    };
    format!(
        "({class}.relkind = 't' OR {class}.relkind IN ('r', 'm', 'S') AND NOT {class}.relispartition AND {} AND {} AND {statistics} \
          AND NOT EXISTS (SELECT FROM pg_inherits AS ph WHERE {class}.oid IN (ph.inhrelid, ph.inhparent)) \
          AND NOT EXISTS (SELECT FROM pg_index AS pi WHERE pi.indrelid = {class}.oid \
                            AND (pi.indexprs IS NOT NULL OR pi.indpred IS NOT NULL)))",
        trusted(&format!("{class}.relowner")),
        trusted(&format!("{namespace}.nspowner"))
    )
}

/// Superusers, who need no trap, and the role of this session, which would walk into its own.
fn trusted(owner: &str) -> String {
    let itself = "(pr.rolsuper OR pr.rolname = session_user AND session_user = current_user)";
    format!(
        "EXISTS (SELECT FROM pg_roles AS pr WHERE {itself} AND (pr.oid = {owner} \
           OR pr.oid = (SELECT datdba FROM pg_database WHERE datname = current_database()) \
              AND {owner} = (SELECT po.oid FROM pg_roles AS po WHERE po.rolname = 'pg_database_owner')))"
    )
}

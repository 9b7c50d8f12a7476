//! Settings of databases and roles, in the words in which they were stored.
//!
//! `SET name TO 'text'` stores the text as it is (`flatten_set_variable_args` and `GUCArrayAdd` in `guc.c`); what is set in a session
//! and taken from there is stored as PostgreSQL shows it, which may mean something else: `DateStyle` of 'ISO' also takes over the
//! order of days and months of whoever restores. So `pg_dump` does it, too (`makeAlterConfigCommand` in `dumputils.c`).

use pgark_repo::record::DatabaseSetting;

use super::run_made;
use crate::cluster::{ClusterError, Connection};

/// `GUC_LIST_QUOTE`: each element is stored as a quoted identifier, so each is given by itself. Extensions cannot have such ones.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

pub(super) fn for_database(conn: &Connection, database: &str, setting: &DatabaseSetting) -> Result<(), ClusterError> {
    match &setting.role {
        None => set(conn, "ALTER DATABASE %I", &[database], setting),
        Some(role) => set(conn, "ALTER ROLE %I IN DATABASE %I", &[role, database], setting),
    }
}

pub(super) fn for_role(conn: &Connection, role: &str, setting: &DatabaseSetting) -> Result<(), ClusterError> {
    set(conn, "ALTER ROLE %I", &[role], setting)
}

/// `whose`: the beginning of the statement, with a place for each of these names.
fn set(conn: &Connection, whose: &str, names: &[&str], setting: &DatabaseSetting) -> Result<(), ClusterError> {
    let mut params = names.to_vec();
    params.push(&setting.name);
    let is_list = LISTS.iter().any(|list| list.eq_ignore_ascii_case(&setting.name));
    let elements = if is_list { elements(&setting.value) } else { Some(vec![setting.value.clone()]) };
    match elements {
        Some(elements) if !elements.is_empty() => {
            params.extend(elements.iter().map(String::as_str));
            let values = vec!["%L"; elements.len()].join(", ");
            run_made(conn, &format!("{whose} SET %I TO {values}"), &params)
        }
        // No list of elements says "none".
        _ => from_session(conn, setting, &|| run_made(conn, &format!("{whose} SET %I FROM CURRENT"), &params)),
    }
}

/// Sets it in this session, and takes it from there.
fn from_session(
    conn: &Connection,
    setting: &DatabaseSetting,
    run: &dyn Fn() -> Result<(), ClusterError>,
) -> Result<(), ClusterError> {
    // In a transaction, so that the session is as it was afterwards.
    conn.query("BEGIN", &[])?;
    let outcome =
        conn.query("SELECT set_config($1::text, $2::text, true)", &[&setting.name, &setting.value]).and_then(|_| run());
    let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
    conn.query(end, &[])?;
    outcome
}

/// The elements of such a list as it is stored (`SplitGUCList` in `dumputils.c`); None: it is none.
fn elements(value: &str) -> Option<Vec<String>> {
    let mut elements = vec![];
    let mut rest = value.trim_ascii();
    if rest.is_empty() {
        return Some(elements);
    }
    loop {
        let element = match rest.strip_prefix('"') {
            Some(mut quoted) => {
                let mut element = String::new();
                loop {
                    let (part, after) = quoted.split_once('"')?;
                    element.push_str(part);
                    match after.strip_prefix('"') {
                        Some(more) => {
                            element.push('"');
                            quoted = more;
                        }
                        None => {
                            rest = after;
                            break element;
                        }
                    }
                }
            }
            None => {
                let end = rest.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(rest.len());
                let (element, after) = rest.split_at(end);
                if element.is_empty() {
                    return None;
                }
                rest = after;
                element.to_owned()
            }
        };
        elements.push(element);
        rest = rest.trim_ascii_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_ascii_start(),
            None if rest.is_empty() => return Some(elements),
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::elements;

    #[test]
    fn lists_come_apart_as_they_were_put_together() {
        for (value, parts) in [
            ("\"$user\", public", vec!["$user", "public"]),
            ("\"\"", vec![""]),
            ("\"a, \"\"b\"\"\",c ,  \"D\"", vec!["a, \"b\"", "c", "D"]),
            ("", vec![]),
        ] {
            assert_eq!(elements(value).expect("a list"), parts, "{value}");
        }
        for value in ["\"open", "a b", "a,", ",a", "\"a\"b"] {
            assert_eq!(elements(value), None, "{value}");
        }
    }
}

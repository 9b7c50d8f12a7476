//! How to reach a server: for libpq, and for programs that are to reach the same one.
//!
//! Invariant: no `Debug` output carries a secret.

use std::fmt;
use std::time::Duration;

use super::text::{looks_like_conninfo, redact};

/// Keywords whose values may be shown; everything else is taken for a secret.
const SHOWN_KEYWORDS: [&str; 13] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "service",
    "passfile",
    "connect_timeout",
    "application_name",
    "target_session_attrs",
];
/// Keywords whose values must not appear in a message.
pub(super) const SECRET_KEYWORDS: [&str; 5] =
    ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"];

/// `options` of a superuser's session, whatever the database or the role sets: pages with a wrong checksum or header are errors, and
/// are not read as they are or as empty.
pub const MEET_DAMAGE: &str = "-c ignore_checksum_failure=off -c zero_damaged_pages=off";

/// How to reach a server. What is left out, libpq takes from `PG*` variables, service and password files.
#[derive(Clone)]
pub struct ConnectOptions {
    /// libpq keywords with literal values; a later one wins over an earlier one of the same name.
    pub keywords: Vec<(String, String)>,
    /// How long one statement may take before it is cancelled, unless the call has a deadline of its own.
    pub statement_timeout: Duration,
}

impl ConnectOptions {
    /// Enough for every question this program asks of a healthy server.
    pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

    pub fn new(keywords: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { keywords: keywords.into_iter().collect(), statement_timeout: Self::STATEMENT_TIMEOUT }
    }

    /// The same server, another database. The name is taken literally.
    pub fn to_database(&self, database: &str) -> Self {
        self.with("dbname", database)
    }

    pub fn with(&self, keyword: &str, value: &str) -> Self {
        let others = self.keywords.iter().filter(|(name, _)| name != keyword).cloned();
        let keywords = others.chain([(keyword.to_owned(), value.to_owned())]).collect();
        Self { keywords, statement_timeout: self.statement_timeout }
    }

    /// To the same server as another role, which may not be one to say `MEET_DAMAGE`.
    pub(super) fn as_role(&self, role: &str) -> Self {
        let as_role = self.with("user", role).without("password");
        let is_ours = self.keywords.iter().any(|(name, value)| name == "options" && value == MEET_DAMAGE);
        if is_ours { as_role.without("options") } else { as_role }
    }

    pub fn without(&self, keyword: &str) -> Self {
        let keywords = self.keywords.iter().filter(|(name, _)| name != keyword).cloned().collect();
        Self { keywords, statement_timeout: self.statement_timeout }
    }

    pub(crate) fn has(&self, keyword: &str) -> bool {
        self.keywords.iter().any(|(name, _)| name == keyword)
    }

    /// The caller's keywords over our defaults: a name for the session, and keepalives so that neither a firewall
    /// nor a dead peer goes unnoticed during the hours of a backup.
    pub(super) fn completed(&self) -> Vec<(String, String)> {
        let ours = [
            ("application_name", "pgark"),
            ("keepalives", "1"),
            ("keepalives_idle", "60"),
            ("keepalives_interval", "10"),
            ("keepalives_count", "6"),
        ];
        let missing = ours.into_iter().filter(|(name, _)| !self.has(name));
        missing.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(self.keywords.iter().cloned()).collect()
    }

    pub(super) fn secrets(&self) -> Vec<String> {
        let is_secret = |name: &str, value: &str| {
            SECRET_KEYWORDS.contains(&name) || (name == "dbname" && looks_like_conninfo(value))
        };
        self.keywords.iter().filter(|(name, value)| is_secret(name, value)).map(|(_, value)| value.clone()).collect()
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.secrets();
        let shown = |name: &str, value: &str| {
            // A value may be shown and yet repeat a secret: a user called like their password.
            let open = SHOWN_KEYWORDS.contains(&name) && !looks_like_conninfo(value);
            if open { redact(value, secrets.iter().map(String::as_str)) } else { "***".to_owned() }
        };
        let keywords = self.keywords.iter().map(|(name, value)| (name.as_str(), shown(name, value)));
        f.debug_struct("ConnectOptions")
            .field("keywords", &keywords.collect::<Vec<_>>())
            .field("statement_timeout", &self.statement_timeout)
            .finish()
    }
}

/// How another program reaches the server that a session is with. libpq's password file counts there, too.
#[derive(Clone)]
pub struct Handover {
    /// Keywords that may stand in an argument.
    pub keywords: Vec<(String, String)>,
    /// Options that older versions do not know, as variables.
    pub variables: Vec<(&'static str, String)>,
    /// For `PGPASSWORD`.
    pub password: Option<String>,
    /// Secrets for which libpq has no way but the connection string.
    pub other_secrets: Vec<String>,
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").field("keywords", &self.keywords).finish_non_exhaustive()
    }
}

impl Handover {
    /// A connection string to this database. Every value is quoted, so that none is taken for more than a value.
    pub fn connection_string(&self, database: &str) -> String {
        let ours = [("dbname", database), ("application_name", "pgark")];
        let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
        let all = self.keywords.iter().cloned().chain(ours);
        all.map(|(name, value)| format!("{name}='{}'", quoted(&value))).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(keywords: &[(&str, &str)]) -> ConnectOptions {
        ConnectOptions::new(keywords.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn debug_shows_where_but_no_secret() {
        let shown = format!(
            "{:?}",
            options(&[
                ("host", "db1"),
                ("password", "hunter2"),
                ("options", "-c x=hunter3"),
                ("sslpassword", "hunter4")
            ])
        );
        assert!(shown.contains("db1"), "{shown}");
        assert!(!shown.contains("hunter"), "{shown}");
        let uri = format!("{:?}", options(&[("dbname", "postgresql://u:hunter2@h/d")]));
        assert!(!uri.contains("hunter"), "{uri}");
    }

    #[test]
    fn callers_keywords_win_over_ours() {
        let completed = options(&[("application_name", "mine")]).completed();
        let names: Vec<_> = completed.iter().filter(|(k, _)| k == "application_name").collect();
        assert_eq!(names, [&("application_name".to_owned(), "mine".to_owned())]);
    }

    #[test]
    fn a_connection_string_holds_whatever_a_name_is_made_of() {
        let keywords = vec![("host".to_owned(), "/tmp/it's".to_owned())];
        let handover =
            Handover { keywords, variables: vec![], password: Some("hunter2".into()), other_secrets: vec![] };
        let text = handover.connection_string("port=1 dbname='x\\");
        assert_eq!(text, r"host='/tmp/it\'s' dbname='port=1 dbname=\'x\\' application_name='pgark'");
        assert!(!text.contains("hunter") && !format!("{handover:?}").contains("hunter"));
    }
}

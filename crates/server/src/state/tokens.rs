//! Tokens.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};

use super::{Result, State, StateError, by_the_way, new_id, optional_time, text, time};
use crate::access::{Caller, Role, Token, TokenRecord, token_hash};

/// Between names of clusters, of which none has it. A program that knows of one alone takes all of them for one that is not there.
const SEPARATOR: &str = ",";
const COLUMNS: &str = "id, name, role, cluster, created, expires, revoked, last_used";
/// When a token was used last is kept no finer.
const USED_EVERY_S: i64 = 60;

type Columns = (String, String, String, Option<String>, String, Option<String>, Option<String>, Option<String>);

impl State {
    /// For one cluster, or for every one. The token, which nobody can be told again.
    pub fn create_token(
        &self,
        name: &str,
        role: Role,
        cluster: Option<&str>,
        expires: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(Token, TokenRecord)> {
        let cluster = cluster.map(|name| vec![name.to_owned()]);
        self.create_token_for(name, role, cluster.as_deref(), expires, now)
    }

    /// The same for several clusters; None: for every one.
    pub fn create_token_for(
        &self,
        name: &str,
        role: Role,
        clusters: Option<&[String]>,
        expires: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(Token, TokenRecord)> {
        let clusters = clusters.map(|all| all.join(SEPARATOR));
        let token = Token::random()?;
        let id = new_id(now)?;
        self.connection().execute(
            "insert into tokens (id, hash, name, role, cluster, created, expires) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![id, token_hash(token.expose()), name, role.word(), clusters, text(now), expires.map(text)],
        )?;
        Ok((token, self.token(&id)?))
    }

    pub fn tokens(&self) -> Result<Vec<TokenRecord>> {
        let connection = self.connection();
        let mut query = connection.prepare(&format!("select {COLUMNS} from tokens order by rowid"))?;
        let rows = query.query_map([], columns)?.collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(record).collect()
    }

    /// Revoking twice keeps the first time.
    pub fn revoke_token(&self, id: &str, now: Timestamp) -> Result<TokenRecord> {
        let change = "update tokens set revoked = ?2 where id = ?1 and revoked is null";
        self.connection().execute(change, params![id, text(now)])?;
        self.token(id)
    }

    /// Who has this token, if it is valid.
    pub fn caller(&self, token: &str, now: Timestamp) -> Result<Option<Caller>> {
        let connection = self.connection();
        let query = format!("select {COLUMNS} from tokens where hash = ?1");
        let found = connection.query_row(&query, [token_hash(token)], columns).optional()?;
        let Some(found) = found.map(record).transpose()?.filter(|t| t.is_valid(now)) else { return Ok(None) };
        if found.last_used.is_none_or(|at| now.duration_since(at).as_secs() >= USED_EVERY_S) {
            let change = "update tokens set last_used = ?2 where id = ?1";
            by_the_way(connection.execute(change, params![found.id, text(now)]))?;
        }
        Ok(Some(found.caller()))
    }

    /// Whose token this is, as long as it is valid: for a session that was begun with it.
    pub fn caller_of(&self, token_id: &str, now: Timestamp) -> Result<Option<Caller>> {
        let found = match self.token(token_id) {
            Err(StateError::NotFound { .. }) => return Ok(None),
            found => found?,
        };
        Ok(found.is_valid(now).then(|| found.caller()))
    }

    fn token(&self, id: &str) -> Result<TokenRecord> {
        let connection = self.connection();
        let query = format!("select {COLUMNS} from tokens where id = ?1");
        let found = connection.query_row(&query, [id], columns).optional()?;
        found.map(record).transpose()?.ok_or_else(|| StateError::NotFound { what: "token", id: id.to_owned() })
    }
}

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?))
}

fn record((id, name, role, clusters, created, expires, revoked, used): Columns) -> Result<TokenRecord> {
    Ok(TokenRecord {
        id,
        name,
        role: role.parse().map_err(StateError::Content)?,
        clusters: clusters.map(|all| all.split(SEPARATOR).map(str::to_owned).collect()),
        created: time(&created)?,
        expires: optional_time(expires)?,
        revoked: optional_time(revoked)?,
        last_used: optional_time(used)?,
    })
}

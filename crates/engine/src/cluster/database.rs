//! Databases and what belongs to the cluster as a whole, as the catalogs describe them.

use pgark_pg::Major;
use pgark_pg::value::SystemId;
use pgark_repo::record::{DatabaseSetting, Grant};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ClusterError, Connection};

/// `pg_database`, and what `alter database` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    pub oid: u32,
    pub name: String,
    pub owner: String,
    pub encoding: String,
    pub locale_provider: String,
    pub collate: String,
    pub ctype: String,
    pub locale: Option<String>,
    pub icu_rules: Option<String>,
    pub collation_version: Option<String>,
    pub tablespace: String,
    pub connection_limit: i32,
    pub is_template: bool,
    pub allow_connections: bool,
    pub acl: Option<Vec<Grant>>,
    pub comment: Option<String>,
    pub settings: Option<Vec<DatabaseSetting>>,
}

/// Roles, tablespaces and settings, in a form of our own: nothing of it is ever run as it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Globals {
    pub schema: u32,
    pub version_num: u32,
    /// Whether `password` of roles could be read.
    pub passwords: bool,
    pub roles: Vec<Role>,
    pub memberships: Vec<Membership>,
    pub tablespaces: Vec<TablespaceFacts>,
    /// Rights on parameters, from 15 on; None where an earlier version of pgark took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Vec<ParameterFacts>>,
    /// As they were, of databases that are not dumped as well.
    pub databases: Vec<DatabaseFacts>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub name: String,
    pub superuser: bool,
    pub inherit: bool,
    pub createrole: bool,
    pub createdb: bool,
    pub login: bool,
    pub replication: bool,
    pub bypassrls: bool,
    pub connection_limit: i32,
    /// The verifier as `pg_authid.rolpassword` holds it.
    pub password: Option<String>,
    pub valid_until: Option<String>,
    pub comment: Option<String>,
    /// `alter role … set`, for all databases.
    pub settings: Option<Vec<DatabaseSetting>>,
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Role").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub role: String,
    pub member: String,
    pub admin: bool,
    /// 16 and later.
    pub inherit: Option<bool>,
    pub set: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceFacts {
    pub name: String,
    pub owner: String,
    pub location: String,
    pub options: Option<Vec<String>>,
    pub acl: Option<Vec<Grant>>,
    pub comment: Option<String>,
}

/// `pg_parameter_acl`, without what the first superuser has anyway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterFacts {
    pub name: String,
    pub acl: Vec<Grant>,
}

/// One row per value, each a JSON document made by the server.
fn documents<T: DeserializeOwned>(conn: &Connection, sql: &str) -> Result<Vec<T>, ClusterError> {
    let rows = conn.query(sql, &[])?;
    let parse = |row: &super::Row| {
        let text = row.text("document")?;
        serde_json::from_str(text).map_err(|e| ClusterError::Unexpected { message: format!("a catalog row: {e}") })
    };
    rows.iter().map(parse).collect()
}

/// An access list as documents; NULL stays NULL, which is the default and not the same as an empty list.
fn acl_of(column: &str) -> String {
    format!(
        "CASE WHEN {column} IS NOT NULL THEN (SELECT coalesce(json_agg(json_build_object('grantee', g.rolname, \
             'privilege', a.privilege_type, 'grantable', a.is_grantable) ORDER BY g.rolname NULLS FIRST, \
             a.privilege_type), '[]') FROM aclexplode({column}) a LEFT JOIN pg_roles g ON g.oid = a.grantee) END"
    )
}

/// Whichever database the session is in.
pub fn databases(conn: &Connection) -> Result<Vec<DatabaseFacts>, ClusterError> {
    let major = conn.major();
    let since = |first: Major, yes: &'static str, no: &'static str| if major >= first { yes } else { no };
    let provider = since(Major::V15, "d.datlocprovider::text", "'c'");
    let locale = match major {
        m if m >= Major::V17 => "d.datlocale",
        m if m >= Major::V15 => "d.daticulocale",
        _ => "NULL",
    };
    let rules = since(Major::V16, "d.daticurules", "NULL");
    let version = since(Major::V15, "d.datcollversion", "NULL");
    let acl = acl_of("d.datacl");
    let sql = format!(
        "SELECT row_to_json(x)::text AS document FROM (SELECT d.oid::bigint AS oid, d.datname::text AS name, \
             pg_get_userbyid(d.datdba)::text AS owner, pg_encoding_to_char(d.encoding)::text AS encoding, \
             {provider} AS locale_provider, d.datcollate::text AS collate, d.datctype::text AS ctype, \
             {locale}::text AS locale, {rules}::text AS icu_rules, {version}::text AS collation_version, \
             (SELECT spcname::text FROM pg_tablespace t WHERE t.oid = d.dattablespace) AS tablespace, \
             d.datconnlimit AS connection_limit, d.datistemplate AS is_template, d.datallowconn AS allow_connections, \
             {acl} AS acl, shobj_description(d.oid, 'pg_database') AS comment, \
             (SELECT json_agg(json_build_object('role', r.rolname, 'name', split_part(c, '=', 1), \
                     'value', substr(c, strpos(c, '=') + 1)) ORDER BY r.rolname NULLS FIRST, n) \
              FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole, \
                   unnest(s.setconfig) WITH ORDINALITY AS u(c, n) WHERE s.setdatabase = d.oid) AS settings \
         FROM pg_database d ORDER BY d.datname) x"
    );
    documents(conn, &sql)
}

/// Of the server that the session is with.
pub fn system_id(conn: &Connection) -> Result<SystemId, ClusterError> {
    let row = conn.query_one("SELECT system_identifier::text AS system_id FROM pg_control_system()", &[])?;
    // PostgreSQL shows its unsigned number as a signed one.
    Ok(SystemId(row.parse::<i64>("system_id")?.cast_unsigned()))
}

/// What `pg_dumpall --globals-only` would tell. Without the rights of a superuser there are no passwords in it.
pub fn globals(conn: &Connection) -> Result<Globals, ClusterError> {
    let superuser =
        conn.query_one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])?.flag("rolsuper")?;
    // The view has the same columns, with asterisks for the password.
    let (from, password) = if superuser { ("pg_authid", "r.rolpassword") } else { ("pg_roles", "NULL::text") };
    let roles = format!(
        "SELECT row_to_json(x)::text AS document FROM (SELECT r.rolname::text AS name, r.rolsuper AS superuser, \
             r.rolinherit AS inherit, r.rolcreaterole AS createrole, r.rolcreatedb AS createdb, r.rolcanlogin AS login, \
             r.rolreplication AS replication, r.rolbypassrls AS bypassrls, r.rolconnlimit AS connection_limit, \
             {password} AS password, r.rolvaliduntil::text AS valid_until, \
             shobj_description(r.oid, 'pg_authid') AS comment, \
             (SELECT json_agg(json_build_object('name', split_part(c, '=', 1), 'value', substr(c, strpos(c, '=') + 1)) \
                     ORDER BY n) \
              FROM pg_db_role_setting s, unnest(s.setconfig) WITH ORDINALITY AS u(c, n) \
              WHERE s.setrole = r.oid AND s.setdatabase = 0) AS settings \
         FROM {from} r WHERE r.rolname !~ '^pg_' ORDER BY r.rolname) x"
    );
    let since_16 = if conn.major() >= Major::V16 {
        "m.inherit_option AS inherit, m.set_option AS \"set\""
    } else {
        "NULL::boolean AS inherit, NULL::boolean AS \"set\""
    };
    let memberships = format!(
        "SELECT row_to_json(x)::text AS document FROM (SELECT r.rolname::text AS role, u.rolname::text AS member, \
             m.admin_option AS admin, {since_16} \
         FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid JOIN pg_roles u ON u.oid = m.member \
         WHERE u.rolname !~ '^pg_' ORDER BY 1, 2, 3) x"
    );
    let tablespaces = format!(
        "SELECT row_to_json(x)::text AS document FROM (SELECT spcname::text AS name, \
             pg_get_userbyid(spcowner)::text AS owner, pg_tablespace_location(oid) AS location, spcoptions AS options, \
             {} AS acl, shobj_description(oid, 'pg_tablespace') AS comment \
         FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1) x",
        acl_of("spcacl")
    );
    let parameters = format!(
        "SELECT row_to_json(x)::text AS document FROM (SELECT p.parname AS name, (SELECT json_agg(a.grant_of) \
             FROM json_array_elements({}) AS a(grant_of) WHERE a.grant_of->>'grantee' IS DISTINCT FROM pg_get_userbyid(10)) AS acl \
         FROM pg_parameter_acl AS p ORDER BY 1) x WHERE x.acl IS NOT NULL",
        acl_of("p.paracl")
    );
    Ok(Globals {
        schema: 1,
        version_num: conn.version_num(),
        passwords: superuser,
        roles: documents(conn, &roles)?,
        memberships: documents(conn, &memberships)?,
        tablespaces: documents(conn, &tablespaces)?,
        parameters: if conn.major() >= Major::V15 { Some(documents(conn, &parameters)?) } else { Some(vec![]) },
        databases: databases(conn)?,
    })
}

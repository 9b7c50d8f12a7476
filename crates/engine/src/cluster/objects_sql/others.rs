//! Objects that are told by a name that PostgreSQL makes, by owner, privileges and state, and by a digest of what else they say. Options
//! may hold secrets, so of them there is never more than that.

use pgark_pg::Major;

use super::super::objects::{CONNINFO, Sight};
use super::{acl, acl_beside, digest, made_of, of_scalars, printed, sorted};

/// One catalog, and what of its rows is told. Expressions over its columns; NULL where there is nothing.
struct Catalog<'a> {
    name: &'a str,
    owner: &'a str,
    acl: String,
    state: &'a str,
    details: String,
    made_of: String,
    locale: String,
}

impl<'a> Catalog<'a> {
    fn new(name: &'a str, owner: &'a str) -> Self {
        Catalog {
            name,
            owner,
            acl: "NULL".into(),
            state: "NULL",
            details: "NULL".into(),
            made_of: "NULL".into(),
            locale: "NULL".into(),
        }
    }

    fn state(self, state: &'a str) -> Self {
        Catalog { state, ..self }
    }

    fn details(self, details: &str) -> Self {
        Catalog { details: details.to_owned(), ..self }
    }

    fn made_of(self, made_of: impl Into<String>) -> Self {
        Catalog { made_of: made_of.into(), ..self }
    }

    fn locale(self, locale: String) -> Self {
        Catalog { locale, ..self }
    }

    fn acl(self, column: &str, object_type: &str) -> Self {
        Catalog { acl: acl(column, object_type, self.owner), ..self }
    }

    fn acl_beside(self, column: &str, default: &str) -> Self {
        Catalog { acl: acl_beside(column, default), ..self }
    }

    fn sql(&self) -> String {
        let Catalog { name, owner, acl, state, details, made_of, locale } = self;
        format!(
            "SELECT '{name}'::regclass AS classid, oid, {owner}::oid AS owner, ({acl})::text AS acl, {state}::text AS state, \
             ({details})::text AS details, ({made_of})::text AS made_of, ({locale})::text AS locale FROM {name}"
        )
    }
}

/// Majors print transforms in two ways, "for integer on language x" and "for integer language x": told in the first one.
const IDENTITY: &str = "CASE WHEN i.type = 'transform' AND i.identity NOT LIKE '% on language %' \
     THEN regexp_replace(i.identity, '^(.*) language (.*)$', '\\1 on language \\2') ELSE i.identity END";

pub(super) fn others(major: Major, sight: Sight) -> String {
    let all: Vec<String> = catalogs(major).iter().map(Catalog::sql).collect();
    let options = digest(&format!("concat_ws(' ', {})", sorted("u.umoptions")));
    let may_see = "(SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user)";
    let of_statistics = "o.classid = 'pg_statistic_ext'::regclass";
    // No expressions in statistics before 14, no conditions of publications before 15.
    let (expressions, stored) = match major {
        Major::V13 => ("NULL::text", "NULL".to_owned()),
        _ => (
            "array_to_string(pg_get_statisticsobjdef_expressions(o.oid), chr(31))",
            format!("SELECT s.stxexprs FROM pg_statistic_ext AS s WHERE s.oid = o.oid AND {of_statistics}"),
        ),
    };
    let conditions = match major {
        Major::V13 | Major::V14 => "NULL",
        _ => {
            "SELECT string_agg(r.prqual::text, ' ') FROM pg_publication_rel AS r WHERE r.prpubid = o.oid \
             AND o.classid = 'pg_publication'::regclass"
        }
    };
    let trees = [stored.as_str(), conditions];
    // From 14 on, the cast of a range to its multirange comes and goes with the range.
    format!(
        "SELECT i.type AS id1, {identity} AS id2, ''::text AS id3, pg_get_userbyid(o.owner)::text AS owner, o.state AS enabled, \
                o.acl, {details} AS details, {made_of} AS made_of, o.locale, {publishes}, {expressions}, {scalars}, {comment} AS comment, \
                NULL::text AS mapping_options, NULL::text AS options_hidden, NULL::text AS {CONNINFO} \
         FROM ({all}) AS o CROSS JOIN LATERAL pg_identify_object(o.classid, o.oid, 0) AS i \
         WHERE o.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend AS e WHERE e.classid = o.classid AND e.objid = o.oid \
               AND (e.deptype = 'e' OR e.deptype = 'i' AND e.classid = 'pg_cast'::regclass)) \
         UNION ALL \
         SELECT 'user mapping', i.identity, '', {nothing}, \
                CASE WHEN {may_see} THEN {options} END, CASE WHEN NOT {may_see} THEN 'yes' END, NULL \
         FROM pg_user_mappings AS u CROSS JOIN LATERAL pg_identify_object('pg_user_mapping'::regclass, u.umid, 0) AS i \
         UNION ALL {subscriptions} UNION ALL \
         SELECT 'system', 'objects of PostgreSQL and of extensions', '', NULL, NULL, ({system}), {rest}",
        identity = IDENTITY,
        details = digest("o.details"),
        made_of = digest("o.made_of"),
        // From `owner` to `comment`, and from `details` to the end.
        nothing = nulls(12),
        rest = nulls(12),
        subscriptions = subscriptions(major, sight),
        expressions = printed("definition", expressions, of_statistics),
        scalars = of_scalars(&trees),
        publishes = printed("publishes", publishes(major), "o.classid = 'pg_publication'::regclass"),
        comment = digest("obj_description(o.oid, (SELECT k.relname FROM pg_class AS k WHERE k.oid = o.classid))"),
        all = all.join(" UNION ALL "),
        system = system_privileges(),
    )
}

/// What `ALTER DEFAULT PRIVILEGES` begins with: in a schema, nothing. `acldefault` calls sequences otherwise than `pg_default_acl`.
const DEFAULT_ACL: &str = "CASE WHEN defaclnamespace = 0 \
     THEN acldefault(CASE defaclobjtype WHEN 'S' THEN 's'::\"char\" ELSE defaclobjtype END, defaclrole) END";

/// Those of this database. Their connection strings, and on 13 even their OIDs, are for superusers alone.
fn subscriptions(major: Major, sight: Sight) -> String {
    let told = match sight {
        Sight::All => format!(
            "NULL, {}, NULL, {}, {}, NULL, NULL, encode(convert_to(s.subconninfo, getdatabaseencoding()), 'hex')",
            digest(&made_of::subscription(major)),
            nulls(5),
            digest("obj_description(s.oid, 'pg_subscription')"),
        ),
        Sight::NoSecrets => format!("{}, 'yes', NULL", nulls(10)),
    };
    format!(
        "SELECT 'subscription', quote_ident(s.subname::text), '', pg_get_userbyid(s.subowner)::text, \
                CASE WHEN s.subenabled THEN 'yes' ELSE 'no' END, NULL, {told} \
         FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid WHERE d.datname = current_database()"
    )
}

fn nulls(count: usize) -> String {
    vec!["NULL"; count].join(", ")
}

fn catalogs(major: Major) -> Vec<Catalog<'static>> {
    let function = |oid: &str| {
        format!(
            "(SELECT quote_literal(n.nspname::text) || '.' || quote_literal(p.proname::text) FROM pg_proc AS p \
             JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE p.oid = {oid})"
        )
    };
    let wrapper =
        format!("concat_ws(' ', {}, {}, {})", function("fdwhandler"), function("fdwvalidator"), sorted("fdwoptions"));
    let server = format!(
        "concat_ws(' ', (SELECT quote_literal(w.fdwname::text) FROM pg_foreign_data_wrapper AS w WHERE w.oid = srvfdw), \
         quote_literal(srvtype), quote_literal(srvversion), {})",
        sorted("srvoptions")
    );
    let event = format!("concat_ws(' ', evtevent, {}, evttags::text)", function("evtfoid"));
    vec![
        Catalog::new("pg_cast", "NULL").made_of(made_of::cast()),
        Catalog::new("pg_operator", "oprowner").made_of(made_of::operator()),
        Catalog::new("pg_opclass", "opcowner").made_of(made_of::operator_class()),
        Catalog::new("pg_opfamily", "opfowner").made_of(made_of::operator_family()),
        Catalog::new("pg_collation", "collowner")
            .made_of(made_of::collation(major))
            .locale(made_of::collation_locale(major)),
        Catalog::new("pg_conversion", "conowner").made_of(made_of::conversion()),
        Catalog::new("pg_ts_config", "cfgowner").details(
            "concat_ws(' ', (SELECT quote_literal(p.prsname::text) FROM pg_ts_parser AS p WHERE p.oid = cfgparser), \
             (SELECT string_agg(concat_ws(' ', m.maptokentype, quote_literal(n.nspname::text), quote_literal(d.dictname::text)), ',' \
                                ORDER BY m.maptokentype, m.mapseqno) \
              FROM pg_ts_config_map AS m JOIN pg_ts_dict AS d ON d.oid = m.mapdict JOIN pg_namespace AS n ON n.oid = d.dictnamespace \
              WHERE m.mapcfg = pg_ts_config.oid))",
        ),
        Catalog::new("pg_ts_dict", "dictowner").details(
            "concat_ws(' ', (SELECT quote_literal(t.tmplname::text) FROM pg_ts_template AS t WHERE t.oid = dicttemplate), dictinitoption)",
        ),
        Catalog::new("pg_ts_parser", "NULL").made_of(made_of::text_search_parser()),
        Catalog::new("pg_ts_template", "NULL").made_of(made_of::text_search_template()),
        Catalog::new("pg_statistic_ext", "stxowner").details("nullif(stxstattarget, -1)").made_of(made_of::statistics()),
        Catalog::new("pg_foreign_data_wrapper", "fdwowner").acl("fdwacl", "F").details(&wrapper),
        Catalog::new("pg_foreign_server", "srvowner").acl("srvacl", "S").details(&server),
        Catalog::new("pg_language", "lanowner").acl("lanacl", "l").made_of(made_of::language()),
        Catalog::new("pg_event_trigger", "evtowner").state("evtenabled").details(&event),
        Catalog::new("pg_publication", "pubowner")
            .state("concat_ws(' ', puballtables, pubinsert, pubupdate, pubdelete)")
            .details("concat_ws(' ', pubtruncate, pubviaroot)")
            .made_of(made_of::publication(major)),
        Catalog::new("pg_transform", "NULL").made_of(made_of::transform()),
        Catalog::new("pg_am", "NULL").made_of(made_of::method()),
        Catalog::new("pg_default_acl", "defaclrole").acl_beside("defaclacl", DEFAULT_ACL),
    ]
}

/// Tables of a publication, from 15 on with their columns and conditions, and schemas.
fn publishes(major: Major) -> &'static str {
    match major {
        Major::V13 | Major::V14 => {
            "(SELECT string_agg(quote_literal(n.nspname::text) || '.' || quote_literal(c.relname::text), ' ' \
                                ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\") \
              FROM pg_publication_rel AS r JOIN pg_class AS c ON c.oid = r.prrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
              WHERE r.prpubid = o.oid)"
        }
        _ => {
            "concat_ws(' ', (SELECT string_agg(concat_ws(' ', quote_literal(n.nspname::text) || '.' || quote_literal(c.relname::text), \
                    (SELECT '(' || string_agg(quote_literal(a.attname::text), ',' ORDER BY a.attname COLLATE \"C\") || ')' FROM pg_attribute AS a \
                     WHERE a.attrelid = c.oid AND a.attnum = ANY (r.prattrs)), pg_get_expr(r.prqual, r.prrelid)), ',' \
                    ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\") \
              FROM pg_publication_rel AS r JOIN pg_class AS c ON c.oid = r.prrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
              WHERE r.prpubid = o.oid), \
             (SELECT string_agg('schema ' || quote_literal(n.nspname::text), ',' ORDER BY n.nspname COLLATE \"C\") \
              FROM pg_publication_namespace AS s JOIN pg_namespace AS n ON n.oid = s.pnnspid WHERE s.pnpubid = o.oid))"
        }
    }
}

/// What was granted or revoked on what comes with PostgreSQL or with an extension, since that was made: a dump brings it, but for
/// `information_schema` and for the languages that are built in.
fn system_privileges() -> String {
    let outside = |schema: &str| {
        format!("{schema} NOT IN (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'information_schema')")
    };
    let relation = "CASE o.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\"";
    let catalogs = [
        ("pg_class", "relacl", relation, "relowner", outside("o.relnamespace")),
        ("pg_proc", "proacl", "'f'", "proowner", outside("o.pronamespace")),
        ("pg_type", "typacl", "'T'", "typowner", outside("o.typnamespace")),
        ("pg_language", "lanacl", "'l'", "lanowner", "o.lanispl".to_owned()),
        ("pg_foreign_data_wrapper", "fdwacl", "'F'", "fdwowner", "true".to_owned()),
    ];
    let one = |(catalog, acl, of, owner, dumped): (&str, &str, &str, &str, String)| {
        format!(
            "SELECT '{catalog}'::regclass AS classid, o.oid, coalesce(o.{acl}, acldefault({of}, o.{owner})) AS acl, \
             coalesce(i.initprivs, acldefault({of}, o.{owner})) AS initprivs FROM {catalog} AS o \
             LEFT JOIN pg_init_privs AS i ON i.classoid = '{catalog}'::regclass AND i.objoid = o.oid AND i.objsubid = 0 \
             WHERE o.{acl} IS DISTINCT FROM i.initprivs AND {dumped} AND (o.oid < 16384 OR EXISTS (SELECT FROM pg_depend AS e \
                   WHERE e.classid = '{catalog}'::regclass AND e.objid = o.oid AND e.objsubid = 0 AND e.deptype = 'e'))"
        )
    };
    let all: Vec<String> = catalogs.into_iter().map(one).collect();
    let line = |sign: &str, these: &str, those: &str| {
        format!(
            "SELECT '{sign}' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_literal(pg_get_userbyid(a.grantee)::text) END \
             || '=' || a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END AS line \
             FROM (SELECT * FROM aclexplode({these}) EXCEPT SELECT * FROM aclexplode({those})) AS a"
        )
    };
    format!(
        "SELECT string_agg(i.identity || ' ' || d.line, ', ' ORDER BY i.identity COLLATE \"C\", d.line COLLATE \"C\") \
         FROM ({}) AS o CROSS JOIN LATERAL pg_identify_object(o.classid, o.oid, 0) AS i \
         CROSS JOIN LATERAL ({} UNION ALL {}) AS d",
        all.join(" UNION ALL "),
        line("+", "o.acl", "o.initprivs"),
        line("-", "o.initprivs", "o.acl")
    )
}

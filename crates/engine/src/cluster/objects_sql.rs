//! The questions behind `objects`: one statement for each kind. All of it is constant text; each gives `id1` to `id3`, by whose
//! bytes it is sorted, perhaps a `key`, and facts.

mod made_of;
mod others;

use pgark_pg::Major;

use super::objects::{ObjectKind, PRINTED, SCALARS, Sight};

/// Schemas of users; no user's schema can be called `pg_…`.
const USER_SCHEMA: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
const SORTED: &str = " ORDER BY id1 COLLATE \"C\", id2 COLLATE \"C\", id3 COLLATE \"C\"";

pub(super) fn of(kind: ObjectKind, major: Major, sight: Sight) -> String {
    let sql = match kind {
        ObjectKind::Database => database(major),
        ObjectKind::Schema => schemas(),
        ObjectKind::Extension => {
            "SELECT e.extname::text AS id1, ''::text AS id2, ''::text AS id3, e.extversion AS version, \
             n.nspname::text AS schema, left(encode(sha256(convert_to(obj_description(e.oid, 'pg_extension'), getdatabaseencoding())), 'hex'), 32) \
             AS extension_comment FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace"
                .to_owned()
        }
        ObjectKind::Type => types(major),
        ObjectKind::Function => functions(major),
        ObjectKind::Relation => relations(major),
        ObjectKind::Index => indexes(),
        ObjectKind::Constraint => constraints(),
        ObjectKind::Trigger => triggers(),
        ObjectKind::Rule => rules(),
        ObjectKind::Policy => policies(),
        ObjectKind::SequenceUse => sequence_uses(),
        ObjectKind::LargeObjects => large_objects(),
        ObjectKind::Other => others::others(major, sight),
    };
    format!("SELECT * FROM ({sql}) AS object {SORTED}")
}

/// A short text that stands for a long one.
fn digest(text: &str) -> String {
    format!("left(encode(sha256(convert_to({text}, getdatabaseencoding())), 'hex'), 32)")
}

/// Options of foreign objects in an order of their own: pg_dump writes them by name, the catalogue keeps them as they were given.
fn sorted(options: &str) -> String {
    format!("(SELECT array_agg(x ORDER BY x COLLATE \"C\") FROM unnest({options}) AS x)::text")
}

/// What PostgreSQL prints, as a digest, and the text itself for its normal form: in hexadecimal, since it may hold what has no
/// equivalent in the encoding of this session.
fn printed(fact: &str, text: &str, when: &str) -> String {
    let whole = format!("encode(convert_to({text}, getdatabaseencoding()), 'hex')");
    format!(
        "CASE WHEN {when} THEN {} END AS {fact}, CASE WHEN {when} THEN {whole} END AS {PRINTED}{fact}",
        digest(text)
    )
}

/// Whether PostgreSQL knows of each array constructor in these parsed expressions that its elements are no arrays: `multidims` of
/// `ArrayExpr`, which is true as soon as one of them is (`transformArrayExpr` in `parse_expr.c`). In what `outfuncs.c` writes, blanks in
/// names are escaped and constants are numbers, so nothing else looks like it.
fn of_scalars(trees: &[&str]) -> String {
    let all: Vec<String> = trees.iter().map(|tree| format!("({tree})::text")).collect();
    format!(
        "CASE WHEN position(':multidims true' IN concat_ws(' ', {})) = 0 THEN 'yes' END AS {SCALARS}",
        all.join(", ")
    )
}

/// Privileges as what they differ in from those that PostgreSQL gives by default: that is the same whether the defaults are written
/// out or not, and does not change when a major version adds a privilege of owners.
fn acl(acl: &str, object_type: &str, owner: &str) -> String {
    acl_beside(acl, &format!("acldefault('{object_type}', {owner})"))
}

/// As what they differ in from these; NULL: from none.
fn acl_beside(acl: &str, default: &str) -> String {
    let line = |sign: &str, these: &str, those: &str| {
        format!(
            "SELECT '{sign}' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_literal(pg_get_userbyid(a.grantee)::text) END \
             || '=' || a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END || '/' \
             || quote_literal(pg_get_userbyid(a.grantor)::text) AS line \
             FROM (SELECT * FROM aclexplode({these}) EXCEPT SELECT * FROM aclexplode({those})) AS a"
        )
    };
    let (more, less) = (line("+", acl, default), line("-", default, acl));
    format!(
        "CASE WHEN {acl} IS NOT NULL THEN (SELECT string_agg(d.line, ' ' ORDER BY d.line COLLATE \"C\") \
         FROM ({more} UNION ALL {less}) AS d) END"
    )
}

/// Of a text that somebody wrote, no more than whether it is the same.
fn comment(oid: &str, catalog: &str) -> String {
    format!("{} AS comment", digest(&format!("obj_description({oid}, '{catalog}')")))
}

/// Comments of the columns of a relation.
fn column_comments(relation: &str) -> String {
    let all = format!(
        "(SELECT string_agg(quote_literal(a.attname::text) || ' ' || quote_literal(col_description({relation}, a.attnum)), ' ' \
         ORDER BY a.attnum) FROM pg_attribute AS a WHERE a.attrelid = {relation} AND a.attnum > 0 AND NOT a.attisdropped)"
    );
    format!("{} AS column_comments", digest(&all))
}

fn not_of_extension(catalog: &str, oid: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_depend AS e WHERE e.classid = '{catalog}'::regclass AND e.objid = {oid} \
         AND e.objsubid = 0 AND e.deptype = 'e')"
    )
}

fn owner(oid: &str) -> String {
    format!("pg_get_userbyid({oid})::text AS owner")
}

fn database(major: Major) -> String {
    let provider = match major {
        Major::V13 | Major::V14 => "'c'",
        Major::V15 | Major::V16 => "concat_ws(' ', d.datlocprovider::text, d.daticulocale)",
        Major::V17 | Major::V18 => "concat_ws(' ', d.datlocprovider::text, d.datlocale)",
    };
    let rules = if major >= Major::V16 { "d.daticurules" } else { "NULL" };
    let acl = acl("d.datacl", "d", "d.datdba");
    format!(
        "SELECT ''::text AS id1, ''::text AS id2, ''::text AS id3, {}, {acl} AS acl, \
         pg_encoding_to_char(d.encoding)::text AS encoding, d.datcollate::text AS collate, d.datctype::text AS ctype, \
         {provider} AS provider, nullif(d.datconnlimit, -1)::text AS connection_limit, {} AS comment, \
         CASE WHEN d.datistemplate THEN 'yes' END AS template, {rules}::text AS icu_rules, \
         (SELECT string_agg(coalesce(quote_literal(r.rolname::text), '') || s.setconfig::text, ' ' \
                            ORDER BY r.rolname NULLS FIRST) \
          FROM pg_db_role_setting AS s LEFT JOIN pg_roles AS r ON r.oid = s.setrole WHERE s.setdatabase = d.oid) AS settings \
         FROM pg_database AS d WHERE d.datname = current_database()",
        owner("d.datdba"),
        digest("shobj_description(d.oid, 'pg_database')")
    )
}

fn schemas() -> String {
    format!(
        "SELECT n.nspname::text AS id1, ''::text AS id2, ''::text AS id3, {}, {} AS acl, {} FROM pg_namespace AS n \
         WHERE {USER_SCHEMA} AND {}",
        owner("n.nspowner"),
        acl("n.nspacl", "n", "n.nspowner"),
        comment("n.oid", "pg_namespace"),
        not_of_extension("pg_namespace", "n.oid")
    )
}

/// Enumerations, domains, composite types, ranges, base types. Those of tables and arrays come with what they belong to.
fn types(major: Major) -> String {
    let domain = "concat_ws(' ', format_type(t.typbasetype, t.typtypmod), CASE WHEN t.typnotnull THEN 'not null' END, t.typdefault, \
         (SELECT string_agg(pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname) FROM pg_constraint AS k \
          WHERE k.contypid = t.oid AND k.contype = 'c'))";
    let columns = "(SELECT string_agg(concat_ws(' ', quote_literal(a.attname::text), format_type(a.atttypid, a.atttypmod)), ',' \
         ORDER BY a.attnum) FROM pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)";
    let range = "(SELECT format_type(r.rngsubtype, NULL) FROM pg_range AS r WHERE r.rngtypid = t.oid)";
    format!(
        "SELECT n.nspname::text AS id1, t.typname::text AS id2, ''::text AS id3, {owner}, {acl} AS acl, t.typtype::text AS typtype, \
         CASE t.typtype WHEN 'e' THEN (SELECT {labels} FROM pg_enum AS e WHERE e.enumtypid = t.oid) \
                        WHEN 'c' THEN {columns} WHEN 'r' THEN {range} END AS shape, \
         {made_of} AS made_of, {domain}, {scalars}, {comment}, {column_comments} \
         FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace \
         WHERE {USER_SCHEMA} AND {mine} AND (t.typtype IN ('e', 'd', 'r') OR t.typtype = 'c' AND EXISTS \
               (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind = 'c') \
               OR t.typtype = 'b' AND NOT EXISTS (SELECT FROM pg_type AS e WHERE e.oid = t.typelem AND e.typarray = t.oid))",
        owner = owner("t.typowner"),
        acl = acl("t.typacl", "T", "t.typowner"),
        labels = digest("string_agg(quote_literal(e.enumlabel::text), ',' ORDER BY e.enumsortorder)"),
        columns = digest(&format!("coalesce({columns}, '')")),
        made_of = digest(&format!(
            "CASE t.typtype WHEN 'b' THEN {} ELSE {} END",
            made_of::base_type(major),
            made_of::range("t.oid")
        )),
        domain = printed("definition", domain, "t.typtype = 'd'"),
        scalars = of_scalars(&[
            "t.typdefaultbin",
            "SELECT string_agg(k.conbin::text, ' ') FROM pg_constraint AS k WHERE k.contypid = t.oid"
        ]),
        mine = not_of_extension("pg_type", "t.oid"),
        comment = comment("t.oid", "pg_type"),
        column_comments = column_comments("t.typrelid"),
    )
}

fn functions(major: Major) -> String {
    let (body, scalars) = match major {
        Major::V13 => ("NULL::text AS definition".to_owned(), of_scalars(&["p.proargdefaults"])),
        _ => (
            printed("definition", "pg_get_function_sqlbody(p.oid)", "true"),
            of_scalars(&["p.proargdefaults", "p.prosqlbody"]),
        ),
    };
    let source = |arguments: &str| {
        format!(
            "concat_ws(chr(31), l.lanname, p.prokind, p.provolatile, p.proparallel, p.prosecdef, p.proleakproof, p.proisstrict, \
             pg_get_function_result(p.oid), {arguments}, p.proconfig::text, p.prosrc, p.probin, \
             (SELECT concat_ws(' ', a.aggtransfn, a.aggfinalfn, a.agginitval) FROM pg_aggregate AS a WHERE a.aggfnoid = p.oid))"
        )
    };
    // Of the source, only the defaults of arguments are printed from what was parsed.
    let arguments = "pg_get_function_arguments(p.oid)";
    let rest = format!("concat_ws(' ', {}, {arguments})", digest(&source("''")));
    format!(
        "SELECT n.nspname::text AS id1, p.proname::text AS id2, pg_get_function_identity_arguments(p.oid) AS id3, {}, {} AS acl, \
         {} AS source, encode(convert_to({rest}, getdatabaseencoding()), 'hex') AS {PRINTED}source, {body}, {scalars}, \
         {}, concat_ws(' ', p.procost, p.prorows, (SELECT quote_literal(s.proname::text) FROM pg_proc AS s WHERE s.oid = p.prosupport)) AS planner, {} AS made_of \
         FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_language AS l ON l.oid = p.prolang \
         WHERE {USER_SCHEMA} AND {} AND NOT EXISTS (SELECT FROM pg_depend AS i WHERE i.classid = 'pg_proc'::regclass \
               AND i.objid = p.oid AND i.deptype = 'i')",
        owner("p.proowner"),
        acl("p.proacl", "f", "p.proowner"),
        digest(&source(arguments)),
        comment("p.oid", "pg_proc"),
        digest(&made_of::aggregate("p.oid")),
        not_of_extension("pg_proc", "p.oid")
    )
}

fn relations(major: Major) -> String {
    let columns = "(SELECT string_agg(concat_ws(' ', quote_literal(a.attname::text), format_type(a.atttypid, a.atttypmod), \
         a.attnotnull, nullif(a.attidentity, ''), nullif(a.attgenerated, ''), \
         CASE WHEN a.attcollation <> t.typcollation THEN quote_literal(o.collname::text) END), ',' ORDER BY a.attnum) \
         FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid LEFT JOIN pg_collation AS o ON o.oid = a.attcollation \
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)";
    let defaults = "(SELECT string_agg(concat_ws(' ', quote_literal(a.attname::text), pg_get_expr(f.adbin, f.adrelid)), ',' \
         ORDER BY a.attnum) FROM pg_attrdef AS f JOIN pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
         WHERE f.adrelid = c.oid)";
    let column_acl = "(SELECT string_agg(quote_literal(a.attname::text) || ' ' || (SELECT string_agg(concat_ws(' ', \
         CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_literal(pg_get_userbyid(x.grantee)::text) END, x.privilege_type, x.is_grantable), \
         ',' ORDER BY x.grantee = 0, pg_get_userbyid(x.grantee), x.privilege_type) FROM aclexplode(a.attacl) AS x), ' ' \
         ORDER BY a.attnum) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped)";
    let sequence = "(SELECT concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, \
         s.seqcycle) FROM pg_sequence AS s WHERE s.seqrelid = c.oid)";
    let compression = if major >= Major::V14 { "nullif(a.attcompression, '')" } else { "NULL" };
    let column_options = sorted("a.attfdwoptions");
    let column_details = format!(
        "(SELECT string_agg(d.line, ',' ORDER BY d.attnum) FROM (SELECT a.attnum, concat_ws(' ', quote_literal(a.attname::text), \
             'statistics ' || nullif(a.attstattarget, -1)::text, \
             'storage ' || CASE WHEN a.attstorage <> t.typstorage THEN a.attstorage::text END, 'compression ' || {compression}::text, \
             'options ' || a.attoptions::text, 'foreign ' || {column_options}) AS line, quote_literal(a.attname::text) AS name \
         FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid \
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS d WHERE d.line <> d.name)"
    );
    let index_name = |which: &str| {
        format!(
            "(SELECT quote_literal(x.relname::text) FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid \
             WHERE i.indrelid = c.oid AND i.indisvalid AND {which})"
        )
    };
    let owned_by = "(SELECT format('%L.%L.%L', m.nspname, o.relname, a.attname) FROM pg_depend AS d \
         JOIN pg_class AS o ON o.oid = d.refobjid JOIN pg_namespace AS m ON m.oid = o.relnamespace \
         JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum = d.refobjsubid \
         WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.refclassid = 'pg_class'::regclass \
           AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i'))";
    let foreign = format!(
        "(SELECT concat_ws(' ', quote_literal(s.srvname::text), {}) FROM pg_foreign_table AS f \
         JOIN pg_foreign_server AS s ON s.oid = f.ftserver WHERE f.ftrelid = c.oid)",
        sorted("f.ftoptions")
    );
    format!(
        "SELECT n.nspname::text AS id1, c.relname::text AS id2, ''::text AS id3, c.oid::bigint AS key, c.relkind::text AS relkind, \
         c.relpersistence::text AS persistence, {owner}, \
         CASE WHEN c.relkind = 'S' THEN {acl_s} ELSE {acl_r} END AS acl, {column_acl} AS column_acl, \
         CASE WHEN c.relkind <> 'S' THEN {columns} END AS columns, {defaults}, {view}, {scalars}, \
         (SELECT string_agg(format('%L.%L', m.nspname, h.relname), ' ' ORDER BY i.inhseqno) FROM pg_inherits AS i \
          JOIN pg_class AS h ON h.oid = i.inhparent JOIN pg_namespace AS m ON m.oid = h.relnamespace WHERE i.inhrelid = c.oid) \
         AS parents, pg_get_expr(c.relpartbound, c.oid) AS bound, \
         CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS partition_key, \
         CASE WHEN c.relkind = 'p' THEN encode(convert_to(pg_get_partkeydef(c.oid), getdatabaseencoding()), 'hex') END \
         AS {PRINTED}partition_key, \
         concat(CASE WHEN c.relrowsecurity THEN 'on' END, CASE WHEN c.relforcerowsecurity THEN ' forced' END) AS row_security, \
         c.reloptions::text AS options, \
         (SELECT coalesce({toast_options}, 'none') FROM pg_class AS t WHERE t.oid = c.reltoastrelid) AS toast_options, CASE WHEN c.relkind = 'm' AND NOT c.relispopulated THEN 'no' END AS populated, \
         (SELECT nullif(count(*), 0)::text FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND t.tgisinternal AND t.tgenabled = 'D') \
         AS internal_triggers_off, {comment}, {column_comments}, {column_details} AS column_details, {foreign} AS foreign_options, \
         CASE c.relreplident WHEN 'n' THEN 'nothing' WHEN 'f' THEN 'full' WHEN 'i' THEN {replica_index} END AS replica_identity, \
         {clustered_on} AS clustered_on, CASE WHEN c.relkind = 'S' THEN {owned_by} END AS owned_by, CASE WHEN c.relkind = 'S' THEN {sequence} END AS sequence, \
         (SELECT quote_literal(x.extname::text) FROM pg_depend AS e JOIN pg_extension AS x ON x.oid = e.refobjid \
          WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e') AS member_of \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE {USER_SCHEMA} AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'",
        owner = owner("c.relowner"),
        toast_options = sorted("t.reloptions"),
        acl_s = acl("c.relacl", "s", "c.relowner"),
        acl_r = acl("c.relacl", "r", "c.relowner"),
        comment = comment("c.oid", "pg_class"),
        column_comments = column_comments("c.oid"),
        column_details = digest(&column_details),
        foreign = digest(&foreign),
        replica_index = index_name("i.indisreplident"),
        clustered_on = index_name("i.indisclustered"),
        columns = digest(&format!("coalesce({columns}, '')")),
        defaults = printed("defaults", defaults, "true"),
        view = printed("definition", "pg_get_viewdef(c.oid)", "c.relkind IN ('v', 'm')"),
        scalars = of_scalars(&[
            "SELECT string_agg(f.adbin::text, ' ') FROM pg_attrdef AS f WHERE f.adrelid = c.oid",
            "SELECT r.ev_action FROM pg_rewrite AS r WHERE r.ev_class = c.oid AND r.rulename = '_RETURN'",
            "SELECT p.partexprs FROM pg_partitioned_table AS p WHERE p.partrelid = c.oid",
        ]),
    )
}

fn indexes() -> String {
    let columns = "(SELECT string_agg(coalesce(quote_literal(a.attname::text), '()'), ',' ORDER BY k.place) \
         FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
         LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum <> 0)";
    format!(
        "SELECT n.nspname::text AS id1, c.relname::text AS id2, ''::text AS id3, \
         format('%L.%L', m.nspname, t.relname) AS on_table, \
         concat_ws(' ', am.amname, CASE WHEN i.indisunique THEN 'unique' END, CASE WHEN i.indisprimary THEN 'primary' END, \
                   CASE WHEN i.indisexclusion THEN 'exclusion' END, {columns}) AS shape, \
         {definition}, {scalars}, {comment}, \
         (SELECT string_agg(concat_ws(' ', s.attnum, s.attstattarget), ',' ORDER BY s.attnum) FROM pg_attribute AS s \
          WHERE s.attrelid = c.oid AND s.attstattarget <> -1) AS column_statistics, \
         CASE WHEN i.indisvalid AND i.indisready AND i.indislive THEN 'yes' ELSE 'no' END AS valid \
         FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         JOIN pg_class AS t ON t.oid = i.indrelid JOIN pg_namespace AS m ON m.oid = t.relnamespace \
         JOIN pg_am AS am ON am.oid = c.relam \
         WHERE {USER_SCHEMA} AND c.relpersistence <> 't' AND {mine}",
        definition = printed("definition", "pg_get_indexdef(c.oid)", "true"),
        scalars = of_scalars(&["i.indexprs", "i.indpred"]),
        comment = comment("c.oid", "pg_class"),
        mine = not_of_extension("pg_class", "t.oid"),
    )
}

/// NOT NULL is a property of columns here, as it was before 18. Foreign keys that partitions take over get new names at a restore.
fn constraints() -> String {
    format!(
        "SELECT n.nspname::text AS id1, coalesce(c.relname, t.typname)::text AS id2, k.conname::text AS id3, k.contype::text AS contype, \
         {}, {}, {}, CASE WHEN k.convalidated THEN 'yes' ELSE 'no' END AS validated \
         FROM pg_constraint AS k LEFT JOIN pg_class AS c ON c.oid = k.conrelid LEFT JOIN pg_type AS t ON t.oid = k.contypid \
         JOIN pg_namespace AS n ON n.oid = coalesce(c.relnamespace, t.typnamespace) \
         WHERE {USER_SCHEMA} AND k.contype IN ('c', 'f', 'p', 'u', 'x') AND NOT (k.contype = 'f' AND k.conparentid <> 0) \
         AND {} AND {}",
        printed("definition", "pg_get_constraintdef(k.oid)", "true"),
        of_scalars(&[
            "k.conbin",
            "SELECT concat_ws(' ', i.indexprs, i.indpred) FROM pg_index AS i WHERE i.indexrelid = k.conindid",
        ]),
        // A dump does not bring those of checks that a table only inherits.
        comment("CASE WHEN k.conislocal OR k.contype <> 'c' THEN k.oid END", "pg_constraint"),
        not_of_extension("pg_class", "k.conrelid"),
        not_of_extension("pg_type", "k.contypid")
    )
}

fn triggers() -> String {
    format!(
        "SELECT n.nspname::text AS id1, c.relname::text AS id2, t.tgname::text AS id3, t.tgenabled::text AS enabled, {}, {}, {} \
         FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE {USER_SCHEMA} AND NOT t.tgisinternal AND {}",
        printed("definition", "pg_get_triggerdef(t.oid)", "true"),
        of_scalars(&["t.tgqual"]),
        comment("CASE WHEN t.tgparentid = 0 THEN t.oid END", "pg_trigger"),
        not_of_extension("pg_class", "c.oid")
    )
}

fn rules() -> String {
    format!(
        "SELECT n.nspname::text AS id1, c.relname::text AS id2, r.rulename::text AS id3, r.ev_enabled::text AS enabled, \
         {}, {}, {} FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class \
         JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {USER_SCHEMA} AND r.rulename <> '_RETURN' AND {}",
        printed("definition", "pg_get_ruledef(r.oid)", "true"),
        of_scalars(&["r.ev_qual", "r.ev_action"]),
        comment("r.oid", "pg_rewrite"),
        not_of_extension("pg_class", "c.oid")
    )
}

fn policies() -> String {
    let conditions = "concat_ws(chr(31), coalesce(pg_get_expr(p.polqual, p.polrelid), ''), coalesce(pg_get_expr(p.polwithcheck, p.polrelid), ''))";
    format!(
        "SELECT n.nspname::text AS id1, c.relname::text AS id2, p.polname::text AS id3, \
         concat_ws(' ', p.polcmd, p.polpermissive, (SELECT string_agg(CASE r.oid WHEN 0 THEN 'PUBLIC' \
             ELSE quote_literal(pg_get_userbyid(r.oid)::text) END, ',' ORDER BY pg_get_userbyid(r.oid)) \
             FROM unnest(p.polroles) AS r(oid))) AS shape, {}, {}, {} \
         FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE {USER_SCHEMA} AND {}",
        printed("definition", conditions, "true"),
        of_scalars(&["p.polqual", "p.polwithcheck"]),
        comment("p.oid", "pg_policy"),
        not_of_extension("pg_class", "c.oid")
    )
}

/// Columns that own a sequence (serial, identity) or take their default from one. The key is a number within one
/// snapshot.
pub(super) const SEQUENCE_USES: &str = "SELECT sn.nspname AS sequence_schema, s.relname AS sequence, n.nspname AS table_schema, \
     c.relname AS table_name, a.attname AS column_name, s.oid AS sequence_oid, c.oid AS table_oid, q.seqincrement AS increment, q.seqcycle AS cycles, \
     t.typname IN ('int2', 'int4', 'int8') AND t.typnamespace = 'pg_catalog'::regnamespace AS whole_numbers, \
     row_number() OVER (ORDER BY s.oid, c.oid, a.attnum) AS use_key \
     FROM (SELECT d.objid AS sequence_oid, d.refobjid AS table_oid, d.refobjsubid AS attnum FROM pg_depend AS d \
           WHERE d.classid = 'pg_class'::regclass AND d.objsubid = 0 AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 \
             AND d.deptype IN ('a', 'i') \
           UNION SELECT d.refobjid, f.adrelid, f.adnum FROM pg_depend AS d JOIN pg_attrdef AS f ON f.oid = d.objid \
           WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'n') AS u \
     JOIN pg_class AS s ON s.oid = u.sequence_oid AND s.relkind = 'S' JOIN pg_namespace AS sn ON sn.oid = s.relnamespace \
     JOIN pg_sequence AS q ON q.seqrelid = s.oid \
     JOIN pg_class AS c ON c.oid = u.table_oid AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
     JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
     JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = u.attnum AND NOT a.attisdropped \
     JOIN pg_type AS t ON t.oid = a.atttypid";

fn sequence_uses() -> String {
    format!(
        "SELECT format('%L.%L', u.sequence_schema, u.sequence) AS id1, format('%L.%L', u.table_schema, u.table_name) AS id2, \
         u.column_name::text AS id3, u.use_key AS key, CASE WHEN u.cycles THEN 'yes' END AS cycles, \
         CASE WHEN NOT u.whole_numbers THEN 'yes' END AS other_type FROM ({SEQUENCE_USES}) AS u"
    )
}

fn large_objects() -> String {
    let one = format!("concat_ws(' ', m.oid, pg_get_userbyid(m.lomowner), {})", acl("m.lomacl", "L", "m.lomowner"));
    format!(
        "SELECT ''::text AS id1, ''::text AS id2, ''::text AS id3, count(*)::text AS count, \
         sum(hashtextextended(m.line COLLATE \"C\", 0))::text AS owners, \
         sum(hashtextextended(m.comment COLLATE \"C\", 0))::text AS comments \
         FROM (SELECT {one} AS line, m.oid || ' ' || obj_description(m.oid, 'pg_largeobject') AS comment FROM pg_largeobject_metadata AS m OFFSET 0) AS m"
    )
}

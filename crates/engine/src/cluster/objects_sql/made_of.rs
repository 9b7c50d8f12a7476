//! What an object is made of, as one text: functions, operators and types by their full names, members in an order of their own.
//! Nothing of it depends on OIDs, on the order in which things were made, or on the major version. Expressions over the columns of the
//! catalog; NULL where there is nothing.

use pgark_pg::Major;

/// The full name of an object of a catalog.
fn identity(catalog: &str, oid: &str) -> String {
    format!(
        "CASE WHEN {oid}::oid <> 0 THEN (SELECT i.identity FROM pg_identify_object('{catalog}'::regclass, {oid}::oid, 0) AS i) END"
    )
}

fn function(oid: &str) -> String {
    identity("pg_proc", oid)
}

/// One behind the other, with a word before each, so that none can stand for another.
fn words(parts: &[(&str, String)]) -> String {
    let all: Vec<String> = parts.iter().map(|(word, text)| format!("'{word} ' || ({text})::text")).collect();
    format!("concat_ws(' ', {})", all.join(", "))
}

fn type_name(oid: &str) -> String {
    format!("format_type(nullif({oid}, 0), NULL)")
}

pub(super) fn cast() -> String {
    words(&[("context", "castcontext".into()), ("method", "castmethod".into()), ("function", function("castfunc"))])
}

pub(super) fn operator() -> String {
    words(&[
        ("function", function("oprcode")),
        ("result", type_name("oprresult")),
        ("restrict", function("oprrest")),
        ("join", function("oprjoin")),
        ("commutator", identity("pg_operator", "oprcom")),
        ("negator", identity("pg_operator", "oprnegate")),
        ("merges", "oprcanmerge".into()),
        ("hashes", "oprcanhash".into()),
    ])
}

/// Operators and functions of a family. Which of them hang on a class and which on the family alone is for PostgreSQL to say, and is
/// not the same in all majors and after a dump.
fn members(operators: &str, functions: &str) -> String {
    let operator = words(&[
        ("operator", "m.amopstrategy".into()),
        ("of", identity("pg_operator", "m.amopopr")),
        ("for", "m.amoppurpose".into()),
        ("by", identity("pg_opfamily", "m.amopsortfamily")),
    ]);
    let function = words(&[
        ("function", "m.amprocnum".into()),
        ("left", type_name("m.amproclefttype")),
        ("right", type_name("m.amprocrighttype")),
        ("of", function("m.amproc")),
    ]);
    format!(
        "SELECT string_agg(x.line, ',' ORDER BY x.line COLLATE \"C\") FROM \
         (SELECT {operator} AS line FROM pg_amop AS m WHERE {operators} \
          UNION ALL SELECT {function} FROM pg_amproc AS m WHERE {functions}) AS x"
    )
}

fn access_method(oid: &str) -> String {
    format!("SELECT quote_literal(a.amname::text) FROM pg_am AS a WHERE a.oid = {oid}")
}

pub(super) fn operator_class() -> String {
    // The family may be one of PostgreSQL's own, of which a dump holds nothing but this.
    let own = |prefix: &str| {
        format!(
            "m.{prefix}family = pg_opclass.opcfamily AND m.{prefix}lefttype = pg_opclass.opcintype \
             AND m.{prefix}righttype = pg_opclass.opcintype"
        )
    };
    words(&[
        ("method", access_method("pg_opclass.opcmethod")),
        ("family", identity("pg_opfamily", "opcfamily")),
        ("type", type_name("opcintype")),
        ("default", "opcdefault".into()),
        ("storage", type_name("opckeytype")),
        ("members", members(&own("amop"), &own("amproc"))),
    ])
}

pub(super) fn operator_family() -> String {
    words(&[
        ("method", access_method("pg_opfamily.opfmethod")),
        ("members", members("m.amopfamily = pg_opfamily.oid", "m.amprocfamily = pg_opfamily.oid")),
    ])
}

/// Without the encoding, which is that of the database, and the version, which is of the machine. The locale stands apart.
pub(super) fn collation(major: Major) -> String {
    let rules = if major >= Major::V16 { "collicurules" } else { "NULL" };
    words(&[
        ("provider", "collprovider".into()),
        ("deterministic", "collisdeterministic".into()),
        ("rules", rules.to_owned()),
    ])
}

/// From 16 on, PostgreSQL writes ICU's locales in their standard form when a collation is made, and so when it is restored:
/// `icu_language_tag` in `pg_locale.c`. What is done here is the plain part of that.
pub(super) fn collation_locale(major: Major) -> String {
    let locale = match major {
        Major::V13 | Major::V14 => "collcollate::text",
        Major::V15 | Major::V16 => "colliculocale",
        Major::V17 | Major::V18 => "colllocale",
    };
    let plain = format!("replace(replace(lower({locale} COLLATE \"C\"), '_', '-'), '-true', '')");
    let libc = "concat_ws(' ', quote_literal(collcollate::text), quote_literal(collctype::text))";
    format!(
        "CASE collprovider WHEN 'c' THEN {libc} \
         WHEN 'i' THEN CASE WHEN {plain} IN ('', 'root') THEN 'und' ELSE {plain} END ELSE {locale} END"
    )
}

pub(super) fn conversion() -> String {
    words(&[
        ("from", "pg_encoding_to_char(conforencoding)".into()),
        ("to", "pg_encoding_to_char(contoencoding)".into()),
        // Their arguments are not the same before 14.
        (
            "function",
            "SELECT format('%L.%L', n.nspname, p.proname) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace \
             WHERE p.oid = conproc"
                .into(),
        ),
        ("default", "condefault".into()),
    ])
}

pub(super) fn text_search_parser() -> String {
    words(&[
        ("start", function("prsstart")),
        ("token", function("prstoken")),
        ("end", function("prsend")),
        ("headline", function("prsheadline")),
        ("types", function("prslextype")),
    ])
}

pub(super) fn text_search_template() -> String {
    words(&[("init", function("tmplinit")), ("lexize", function("tmpllexize"))])
}

/// Expressions are printed, and stand apart.
pub(super) fn statistics() -> String {
    words(&[
        (
            "table",
            "SELECT format('%L.%L', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE c.oid = stxrelid"
                .into(),
        ),
        ("kinds", "SELECT string_agg(k::text, '' ORDER BY k) FROM unnest(stxkind) AS k".into()),
        (
            "columns",
            "SELECT string_agg(quote_literal(a.attname::text), ',' ORDER BY a.attnum) FROM pg_attribute AS a \
             WHERE a.attrelid = stxrelid AND a.attnum = ANY (stxkeys::int2[])"
                .into(),
        ),
    ])
}

pub(super) fn language() -> String {
    words(&[
        ("handler", function("lanplcallfoid")),
        ("inline", function("laninline")),
        ("validator", function("lanvalidator")),
        ("trusted", "lanpltrusted".into()),
    ])
}

pub(super) fn publication(major: Major) -> &'static str {
    if major >= Major::V18 { "nullif(pubgencols, 'n')" } else { "NULL" }
}

pub(super) fn transform() -> String {
    words(&[("from", function("trffromsql")), ("to", function("trftosql"))])
}

pub(super) fn method() -> String {
    words(&[("type", "amtype".into()), ("handler", function("amhandler"))])
}

/// Of a range type, beside what it ranges over.
pub(super) fn range(of: &str) -> String {
    let parts = words(&[
        ("class", identity("pg_opclass", "r.rngsubopc")),
        ("collation", identity("pg_collation", "r.rngcollation")),
        ("canonical", function("r.rngcanonical")),
        ("difference", function("r.rngsubdiff")),
    ]);
    format!("(SELECT {parts} FROM pg_range AS r WHERE r.rngtypid = {of})")
}

/// Of an aggregate, beside its transition and final functions.
pub(super) fn aggregate(of: &str) -> String {
    let parts = words(&[
        ("kind", "a.aggkind".into()),
        ("state", type_name("a.aggtranstype")),
        ("space", "a.aggtransspace".into()),
        ("final modes", "concat(a.aggfinalextra, a.aggfinalmodify)".into()),
        ("combine", function("a.aggcombinefn")),
        ("serialize", function("a.aggserialfn")),
        ("deserialize", function("a.aggdeserialfn")),
        ("sort", identity("pg_operator", "a.aggsortop")),
        ("moving state", type_name("a.aggmtranstype")),
        ("moving space", "a.aggmtransspace".into()),
        ("moving", function("a.aggmtransfn")),
        ("inverse", function("a.aggminvtransfn")),
        ("moving final", function("a.aggmfinalfn")),
        ("moving final modes", "concat(a.aggmfinalextra, a.aggmfinalmodify)".into()),
        ("moving initial", "quote_literal(a.aggminitval)".into()),
    ]);
    format!("(SELECT {parts} FROM pg_aggregate AS a WHERE a.aggfnoid = {of})")
}

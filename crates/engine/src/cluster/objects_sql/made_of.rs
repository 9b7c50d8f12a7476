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

/// Without its connection, its owner and whether it is switched on. What says no more than PostgreSQL does by itself is left out, so
/// that a version which cannot be asked says the same. Before 16 a subscription always did its work as its owner.
pub(super) fn subscription(major: Major) -> String {
    let since = |first: Major, text: &str| if major >= first { text.to_owned() } else { "NULL".to_owned() };
    let mut parts = vec![
        (
            "publications",
            "SELECT string_agg(quote_literal(p), ',' ORDER BY p COLLATE \"C\") FROM unnest(s.subpublications) AS p"
                .to_owned(),
        ),
        ("slot", "quote_literal(s.subslotname::text)".to_owned()),
        ("commit", "s.subsynccommit".to_owned()),
        ("binary", since(Major::V14, "nullif(s.subbinary, false)")),
        ("streaming", since(Major::V14, "nullif(left(s.substream::text, 1), 'f')")),
        ("two phases", since(Major::V15, "nullif(s.subtwophasestate <> 'd', false)")),
        ("off after errors", since(Major::V15, "nullif(s.subdisableonerr, false)")),
        ("origin", since(Major::V16, "nullif(s.suborigin, 'any')")),
        ("password", since(Major::V16, "nullif(s.subpasswordrequired, true)")),
        ("failover", since(Major::V17, "nullif(s.subfailover, false)")),
    ];
    parts.push(("as owner", if major >= Major::V16 { "s.subrunasowner" } else { "true" }.to_owned()));
    words(&parts)
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

/// Of a base type. `LIKE` is no more than a way to write some of it. PostgreSQL gives some types a subscript function of its own from 14
/// on; those of users count.
pub(super) fn base_type(major: Major) -> String {
    let subscript = match major {
        Major::V13 => "NULL".to_owned(),
        _ => format!("CASE WHEN t.typsubscript::oid >= 16384 THEN {} END", function("t.typsubscript")),
    };
    words(&[
        ("input", function("t.typinput")),
        ("output", function("t.typoutput")),
        ("receive", function("t.typreceive")),
        ("send", function("t.typsend")),
        ("modifier in", function("t.typmodin")),
        ("modifier out", function("t.typmodout")),
        ("analyze", function("t.typanalyze")),
        ("subscript", subscript),
        ("length", "t.typlen".into()),
        ("by value", "t.typbyval".into()),
        ("alignment", "t.typalign".into()),
        ("storage", "t.typstorage".into()),
        ("category", "t.typcategory".into()),
        ("preferred", "t.typispreferred".into()),
        ("delimiter", "quote_literal(t.typdelim::text)".into()),
        ("element", type_name("t.typelem")),
        ("collatable", "t.typcollation <> 0".into()),
        ("default", "quote_literal(t.typdefault)".into()),
    ])
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

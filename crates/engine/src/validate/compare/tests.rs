use super::super::report::Outcome;
use super::*;
use crate::truth::{End, TruthWriter};

fn header(version: u32) -> Header {
    Header {
        pgark_truth: crate::truth::SCHEMA,
        database: "src".into(),
        taken: "2026-08-22T03:15:00Z".parse().expect("a time"),
        server_version_num: version,
        encoding: "UTF8".into(),
        size_bytes: 1,
        in_recovery: false,
        hashed: true,
        partial: false,
        probe: "1:2".into(),
    }
}

fn object(kind: ObjectKind, name: &[&str], facts: &[(&str, &str)]) -> Object {
    Object {
        kind,
        name: name.iter().map(|n| Text::from(*n)).collect(),
        facts: facts.iter().map(|(name, value)| ((*name).to_owned(), Text::from(*value))).collect(),
    }
}

fn table(name: &str, more: &[(&str, &str)]) -> Object {
    object(ObjectKind::Relation, &["app", name], &[&[("relkind", "r"), ("persistence", "p")], more].concat())
}

const NOTHING_SPECIAL: Expectations =
    Expectations { physical: false, contents: Contents::Compared, scope: None, settings_left: false };

fn compare(recorded: (Header, &[Object]), live: (Header, &[Object]), expect: Expectations) -> BTreeMap<String, Check> {
    let mut writer = TruthWriter::begin(vec![], &recorded.0).expect("begun");
    recorded.1.iter().for_each(|object| writer.object(object).expect("written"));
    let objects = recorded.1.len() as u64;
    let end = End { objects, tables: 0, rows: 0, text_bytes: 0, duration_ms: 0, blake3: String::new() };
    let bytes = writer.finish(end).expect("finished");
    let mut comparison = Comparison::new(Some(TruthReader::open(&bytes[..]).expect("opens")), expect);
    comparison.begin(&live.0).expect("begun");
    live.1.iter().for_each(|object| comparison.object(object.clone()).expect("compared"));
    let (_, _, checks) = comparison.finish().expect("finished");
    checks.into_iter().map(|check| (check.name.clone(), check)).collect()
}

fn outcome(checks: &BTreeMap<String, Check>, name: &str) -> Outcome {
    checks.get(name).unwrap_or_else(|| panic!("no {name} in {checks:?}")).outcome
}

#[test]
fn objects_of_one_side_alone_are_failures_wherever_they_stand() {
    let all: Vec<Object> = ["a", "b", "c", "d"].iter().map(|n| table(n, &[("rows", "1"), ("hash", "1:2:3")])).collect();
    for gone in 0..all.len() {
        let mut less = all.clone();
        less.remove(gone);
        for (recorded, live, word) in [(&all, &less, "is missing"), (&less, &all, "is not in the truth")] {
            let checks = compare((header(150_018), recorded), (header(150_018), live), NOTHING_SPECIAL);
            let tables = &checks["tables"];
            assert_eq!((tables.outcome, tables.failed), (Outcome::Failed, 1), "{checks:?}");
            assert!(tables.details[0].contains(word));
            assert_eq!(outcome(&checks, "rows"), Outcome::Ok);
        }
    }
    let none = compare((header(150_018), &all), (header(150_018), &[]), NOTHING_SPECIAL);
    assert_eq!(none["tables"].failed, 4);
}

#[test]
fn what_cannot_be_compared_is_not_checked() {
    let a = [table("t", &[("rows", "1"), ("hash", "1:2:3"), ("columns", "x"), ("definition", "p")])];
    let b = [table("t", &[("rows", "1"), ("hash", "9:9:9"), ("columns", "x"), ("definition", "q")])];
    // Another byte order, or another encoding, gives other hashes.
    for other in
        [Header { probe: "3:4".into(), ..header(150_018) }, Header { encoding: "LATIN1".into(), ..header(150_018) }]
    {
        let checks = compare((header(150_018), &a), (other, &b), NOTHING_SPECIAL);
        assert_eq!(outcome(&checks, "contents"), Outcome::NotChecked);
    }
    // Another major version prints definitions otherwise.
    let checks = compare((header(150_018), &a), (header(180_004), &b), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "definitions"), Outcome::NotChecked);
    assert_eq!(outcome(&checks, "contents"), Outcome::Failed);
    let checks = compare((header(150_018), &a), (header(150_018), &b), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "definitions"), Outcome::Failed);
    // A truth without hashes proves no contents, and leaving them out is a choice.
    let counted = Header { hashed: false, ..header(150_018) };
    let checks = compare((counted, &a), (header(150_018), &a), NOTHING_SPECIAL);
    assert_eq!((outcome(&checks, "contents"), checks["contents"].expected), (Outcome::NotChecked, false));
    let chosen = Expectations { contents: Contents::LeftOut, ..NOTHING_SPECIAL };
    let checks = compare((header(150_018), &a), (Header { hashed: false, ..header(150_018) }, &a), chosen);
    assert_eq!((outcome(&checks, "contents"), checks["contents"].expected), (Outcome::NotChecked, true));
}

#[test]
fn a_table_that_cannot_be_read_is_a_defect_and_one_that_may_not_be_is_not_checked() {
    let recorded = [table("t", &[("rows", "5"), ("hash", "1:2:3")])];
    for (because, expected) in [("failed", Outcome::Failed), ("refused", Outcome::NotChecked)] {
        let live = [table("t", &[("unread", "some reason"), ("unread_because", because)])];
        let checks = compare((header(150_018), &recorded), (header(150_018), &live), NOTHING_SPECIAL);
        assert_eq!(outcome(&checks, "rows"), expected, "{because}");
    }
    // An empty answer never passes for an empty table.
    let checks = compare(
        (header(150_018), &[table("t", &[("rows", "0")])]),
        (header(150_018), &[table("t", &[])]),
        NOTHING_SPECIAL,
    );
    assert_ne!(outcome(&checks, "rows"), Outcome::Ok, "{checks:?}");
}

#[test]
fn unlogged_tables_may_be_empty_after_a_physical_restore_alone() {
    let recorded =
        [object(ObjectKind::Relation, &["app", "u"], &[("relkind", "r"), ("persistence", "u"), ("rows", "5")])];
    let live = [object(ObjectKind::Relation, &["app", "u"], &[("relkind", "r"), ("persistence", "u"), ("rows", "0")])];
    let physical = Expectations { physical: true, ..NOTHING_SPECIAL };
    let checks = compare((header(150_018), &recorded), (header(150_018), &live), physical);
    assert_eq!(outcome(&checks, "rows of unlogged tables"), Outcome::NotChecked);
    let checks = compare((header(150_018), &recorded), (header(150_018), &live), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "rows"), Outcome::Failed);
}

#[test]
fn a_sequence_may_be_further_on_and_never_behind() {
    let at = |increment: &str, last: &str, called: &str| {
        let parameters = format!("bigint 1 {increment} -1000 1000 1 f");
        let facts = [("relkind", "S"), ("sequence", &parameters), ("last_value", last), ("is_called", called)];
        [object(ObjectKind::Relation, &["app", "s"], &facts)]
    };
    for (increment, before, now, expected) in [
        ("1", ("10", "yes"), ("10", "yes"), Outcome::Ok),
        ("1", ("10", "yes"), ("11", "yes"), Outcome::Ok),
        ("1", ("10", "yes"), ("11", "no"), Outcome::Ok),
        ("1", ("10", "yes"), ("10", "no"), Outcome::Failed),
        ("1", ("10", "yes"), ("9", "yes"), Outcome::Failed),
        ("-2", ("10", "yes"), ("8", "yes"), Outcome::Ok),
        ("-2", ("10", "yes"), ("12", "yes"), Outcome::Failed),
    ] {
        let (before, now) = (at(increment, before.0, before.1), at(increment, now.0, now.1));
        let checks = compare((header(150_018), &before), (header(150_018), &now), NOTHING_SPECIAL);
        assert_eq!(outcome(&checks, "positions of sequences"), expected, "{increment}: {before:?} {now:?}");
    }
}

#[test]
fn a_backup_without_hashes_is_compared_by_rows_and_says_so() {
    let all = [table("a", &[("rows", "1")])];
    let unhashed = Header { hashed: false, ..header(150_018) };
    let of = |contents| {
        let checks =
            compare((unhashed.clone(), &all), (unhashed.clone(), &all), Expectations { contents, ..NOTHING_SPECIAL });
        (checks["contents"].outcome, checks["contents"].expected, checks["rows"].outcome)
    };
    assert_eq!(of(Contents::Compared), (Outcome::NotChecked, false, Outcome::Ok));
    assert_eq!(of(Contents::IfHashed), (Outcome::NotChecked, true, Outcome::Ok));
}

#[test]
fn what_was_not_to_be_restored_is_no_part_of_a_check_and_what_was_is() {
    use pgark_pg::dump_toc::{DumpToc, TocEntry};
    let entry = |id, name: &str| TocEntry {
        id,
        kind: b"TABLE".to_vec(),
        name: name.as_bytes().to_vec(),
        schema: b"app".to_vec(),
        owner: vec![],
        has_data: false,
        definition: vec![],
        depends_on: vec![],
    };
    let toc = DumpToc { version: (1, 14), database: vec![], entries: vec![entry(1, "a"), entry(2, "b")], length: 0 };
    let expect = || Expectations { scope: Some(Scope::of(&toc, Some(&[1]), "UTF8")), ..NOTHING_SPECIAL };
    let [a, b] = ["a", "b"].map(|n| table(n, &[("rows", "1"), ("hash", "1:2:3")]));
    let both = [a.clone(), b.clone()];
    let checks = compare((header(150_018), &both), (header(150_018), std::slice::from_ref(&a)), expect());
    assert_eq!((outcome(&checks, "tables"), outcome(&checks, "rows")), (Outcome::Ok, Outcome::Ok), "{checks:?}");
    assert_eq!(checks["objects that were left out"].not_checked, 1);
    // The wanted one is missing; another is there that was not wanted and is not compared.
    let checks = compare((header(150_018), &both), (header(150_018), &[b]), expect());
    assert_eq!(checks["tables"].details, ["table app.a is missing"]);
    // What nobody dumped is an extra table, unless the truth is of a part.
    let c = table("c", &[("rows", "1"), ("hash", "1:2:3")]);
    let checks = compare((header(150_018), &both), (header(150_018), &[a.clone(), c.clone()]), expect());
    assert_eq!(outcome(&checks, "tables"), Outcome::Failed);
    let partial = Header { partial: true, ..header(150_018) };
    let both = [a.clone(), c];
    let checks = compare((partial, &[a]), (header(150_018), &both), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "tables"), Outcome::Ok, "{checks:?}");
}

#[test]
fn what_a_load_prints_otherwise_is_the_same_by_its_normal_form() {
    let definition = |text: &str, normal: Option<&str>| {
        let mut facts = vec![("contype", "c"), ("validated", "yes"), ("definition", text)];
        facts.extend(normal.map(|n| ("normal_definition", n)));
        [object(ObjectKind::Constraint, &["app", "t", "c"], &facts)]
    };
    for (before, now, expected) in [
        (("a", Some("n")), ("b", Some("n")), Outcome::Ok),
        (("a", Some("n")), ("b", Some("m")), Outcome::Failed),
        // Another version of the program may have another normal form: the same text is the same all the same.
        (("a", Some("n")), ("a", Some("m")), Outcome::Ok),
        // A truth of an earlier version.
        (("a", None), ("a", Some("n")), Outcome::Ok),
        (("a", None), ("b", Some("n")), Outcome::Failed),
        (("a", None), ("b", None), Outcome::Failed),
    ] {
        let (recorded, live) = (definition(before.0, before.1), definition(now.0, now.1));
        let checks = compare((header(150_018), &recorded), (header(150_018), &live), NOTHING_SPECIAL);
        assert_eq!(outcome(&checks, "definitions"), expected, "{before:?} {now:?}");
        assert!(checks["definitions"].failed <= 1, "the normal form is no fact of its own");
    }
}

#[test]
fn what_a_dump_cannot_bring_back_is_named_and_not_called_ok_and_a_physical_backup_brings_it() {
    let physical = || Expectations { physical: true, ..NOTHING_SPECIAL };
    let view = |rows: &str, hash: &str| {
        [object(ObjectKind::Relation, &["app", "m"], &[("relkind", "m"), ("rows", rows), ("hash", hash)])]
    };
    let one = |recorded: &[Object], live: &[Object], expect| {
        compare((header(150_018), recorded), (header(150_018), live), expect)
    };
    for live in [view("2", "1:2:3"), view("1", "9:9:9")] {
        let checks = one(&view("1", "1:2:3"), &live, NOTHING_SPECIAL);
        let views = &checks["contents of materialized views"];
        assert_eq!((views.outcome, views.expected, views.checked), (Outcome::NotChecked, true, 0), "{checks:?}");
        assert!(!checks.contains_key("rows") && !checks.contains_key("contents"), "{checks:?}");
        let checks = one(&view("1", "1:2:3"), &live, physical());
        assert_eq!(checks.values().filter(|c| c.outcome == Outcome::Failed).count(), live.len(), "{checks:?}");
    }
    assert_eq!(outcome(&one(&view("1", "1:2:3"), &view("1", "1:2:3"), NOTHING_SPECIAL), "contents"), Outcome::Ok);

    let index = |valid| [object(ObjectKind::Index, &["app", "i"], &[("valid", valid)])];
    let checks = one(&index("no"), &[], NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "indexes that were not valid"), Outcome::NotChecked);
    assert_eq!(outcome(&one(&index("no"), &[], physical()), "indexes"), Outcome::Failed);
    assert_eq!(outcome(&one(&index("yes"), &[], NOTHING_SPECIAL), "indexes"), Outcome::Failed);

    let generated = |hash, given| [table("g", &[("rows", "1"), ("hash", hash), ("hash_given", given)])];
    let checks = one(&generated("1:2:3", "4:5:6"), &generated("7:8:9", "4:5:6"), NOTHING_SPECIAL);
    let columns = &checks["generated columns"];
    assert_eq!((columns.outcome, columns.expected), (Outcome::NotChecked, false), "{checks:?}");
    assert!(!checks.contains_key("contents"), "{checks:?}");
    let checks = one(&generated("1:2:3", "4:5:6"), &generated("7:8:9", "4:4:4"), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "contents"), Outcome::Failed);
    let checks = one(&generated("1:2:3", "4:5:6"), &generated("7:8:9", "4:5:6"), physical());
    assert_eq!(outcome(&checks, "contents"), Outcome::Failed);
}

#[test]
fn what_an_older_truth_does_not_tell_is_not_compared_and_never_ok() {
    let old = Header { pgark_truth: 1, ..header(150_018) };
    let recorded = [table("t", &[("columns", "x")]), object(ObjectKind::Other, &["server", "s"], &[("owner", "o")])];
    let live = [
        table("t", &[("columns", "x"), ("comment", "c"), ("replica_identity", "full")]),
        object(ObjectKind::Other, &["server", "s"], &[("owner", "o"), ("acl", "+x"), ("details", "d")]),
        object(ObjectKind::Other, &["user mapping", "x on server s"], &[("mapping_options", "d")]),
    ];
    let checks = compare((old, &recorded), (header(150_018), &live), NOTHING_SPECIAL);
    assert!(checks.values().all(|check| check.failed == 0), "{checks:?}");
    for name in ["comments", "definitions", "privileges", "other objects"] {
        assert_eq!((outcome(&checks, name), checks[name].expected), (Outcome::NotChecked, true), "{name}");
        assert!(checks[name].reasons[0].contains("earlier version"), "{checks:?}");
    }
    let checks = compare((header(150_018), &recorded), (header(150_018), &live), NOTHING_SPECIAL);
    for name in ["comments", "definitions", "privileges", "other objects"] {
        assert_eq!(outcome(&checks, name), Outcome::Failed, "{name}");
    }
    // Before version 3, options stood in the order in which they were given.
    let given = [object(ObjectKind::Other, &["server", "s"], &[("details", "d"), ("owner", "o")])];
    let sorted = [object(ObjectKind::Other, &["server", "s"], &[("details", "e"), ("owner", "o")])];
    let of = |version| Header { pgark_truth: version, ..header(150_018) };
    let checks = compare((of(2), &given), (header(150_018), &sorted), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "other objects"), Outcome::NotChecked);
    let checks = compare((of(3), &given), (header(150_018), &sorted), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "other objects"), Outcome::Failed);
    // Nor was it told what collations and the like are made of, nor of TOAST options and templates.
    let told = |toast: &str, made_of: &str, template: &str| {
        let mut database = object(ObjectKind::Database, &[], &[("owner", "o"), ("template", template)]);
        database.facts.retain(|_, value| !value.0.is_empty());
        let collation = object(ObjectKind::Other, &["collation", "c"], &[("made_of", made_of), ("locale", "de")]);
        [database, table("t", &[("toast_options", toast)]), collation]
    };
    let mut untold = told("", "", "");
    untold.iter_mut().for_each(|object| object.facts.retain(|fact, _| matches!(fact.as_str(), "owner" | "relkind")));
    let live = told("{a=1}", "d", "yes");
    untold[1] = table("t", &[]);
    let checks = compare((of(2), &untold), (header(150_018), &live), NOTHING_SPECIAL);
    assert!(checks.values().all(|check| check.failed == 0), "{checks:?}");
    for name in ["database settings", "definitions", "other objects"] {
        assert_eq!((outcome(&checks, name), checks[name].expected), (Outcome::NotChecked, true), "{name}");
    }
    let others = told("none", "e", "");
    let checks = compare((of(3), &others), (header(150_018), &live), NOTHING_SPECIAL);
    for name in ["database settings", "definitions", "other objects"] {
        assert_eq!((outcome(&checks, name), checks[name].failed), (Outcome::Failed, 1), "{name}");
    }
    // Who may not see options cannot tell whether they are the same.
    let hidden = [object(ObjectKind::Other, &["user mapping", "x on server s"], &[("options_hidden", "yes")])];
    let seen = [object(ObjectKind::Other, &["user mapping", "x on server s"], &[("mapping_options", "d")])];
    for (recorded, live) in [(&hidden, &seen), (&seen, &hidden), (&hidden, &hidden)] {
        let checks = compare((header(150_018), recorded), (header(150_018), live), NOTHING_SPECIAL);
        assert_eq!((outcome(&checks, "other objects"), checks["other objects"].expected), (Outcome::NotChecked, false));
    }
}

#[test]
fn what_a_load_makes_of_toast_options_and_locales_is_no_defect() {
    let now = || header(150_018);
    // The last column that needed a TOAST table was dropped, and a dump does not bring the table.
    let (with, without) = ([table("t", &[("toast_options", "{a=1}")])], [table("t", &[])]);
    let checks = compare((now(), &with), (now(), &without), NOTHING_SPECIAL);
    assert_eq!(outcome(&checks, "definitions"), Outcome::Ok, "{checks:?}");
    let collation = |locale: &str, made_of: &str| {
        [object(ObjectKind::Other, &["collation", "c"], &[("made_of", made_of), ("locale", locale)])]
    };
    let of = |was: (&str, &str), is: (&str, &str), live: u32| {
        let checks =
            compare((now(), &collation(was.0, was.1)), (header(live), &collation(is.0, is.1)), NOTHING_SPECIAL);
        outcome(&checks, "other objects")
    };
    assert_eq!(of(("de@collation=phonebook", "i"), ("de-u-co-phonebk", "i"), 150_018), Outcome::NotChecked);
    assert_eq!(of(("en-u-kn", "i"), ("en-us-u-kn", "i"), 180_004), Outcome::NotChecked);
    assert_eq!(of(("de", "i"), ("sv-se", "i"), 150_018), Outcome::Failed);
    assert_eq!(of(("'de_DE@euro' 'C'", "c"), ("'C' 'C'", "c"), 150_018), Outcome::Failed);
    assert_eq!(of(("de", "i"), ("de", "j"), 180_004), Outcome::Failed);
}

#[test]
fn a_truth_before_version_4_says_nothing_of_subscriptions_base_types_and_default_privileges() {
    let default_acl =
        |fact, value| object(ObjectKind::Other, &["default acl", "for role r on tables"], &[(fact, value)]);
    let base = object(ObjectKind::Type, &["app", "label"], &[("typtype", "b"), ("made_of", "d")]);
    let subscription = object(ObjectKind::Other, &["subscription", "s"], &[("enabled", "no"), ("made_of", "d")]);
    let recorded = [default_acl("enabled", "{b=r/a,c=r/a}")];
    let live = [base.clone(), default_acl("acl", "+'b'=SELECT/'a' +'c'=SELECT/'a'"), subscription.clone()];
    let old = Header { pgark_truth: 3, ..header(150_018) };
    let checks = compare((old, &recorded), (header(150_018), &live), NOTHING_SPECIAL);
    assert!(checks.values().all(|check| check.failed == 0), "{checks:?}");
    for name in ["types", "privileges", "other objects"] {
        assert_eq!((outcome(&checks, name), checks[name].expected), (Outcome::NotChecked, true), "{name}");
        assert!(checks[name].reasons[0].contains("earlier version"), "{checks:?}");
    }
    // Of those that an earlier one tells of, all count.
    let old = Header { pgark_truth: 3, ..header(150_018) };
    let mood = object(ObjectKind::Type, &["app", "mood"], &[("typtype", "e")]);
    let checks = compare((old, &[]), (header(150_018), &[mood, subscription.clone()]), NOTHING_SPECIAL);
    assert_eq!(checks["types"].details, ["type app.mood is not in the truth"]);
    let checks = compare((header(150_018), &[]), (header(150_018), &[base, subscription]), NOTHING_SPECIAL);
    for name in ["types", "other objects"] {
        assert_eq!((outcome(&checks, name), checks[name].failed), (Outcome::Failed, 1), "{name}");
    }
}

#[test]
fn a_subscription_may_be_switched_off_by_a_dump_and_by_nothing_else() {
    let of = |enabled: &str, connection: &str| {
        let facts = [("enabled", enabled), ("connection", connection), ("made_of", "d"), ("owner", "o")];
        [object(ObjectKind::Other, &["subscription", "s"], &facts)]
    };
    let hidden = || {
        [object(
            ObjectKind::Other,
            &["subscription", "s"],
            &[("enabled", "yes"), ("options_hidden", "yes"), ("owner", "o")],
        )]
    };
    let one = |recorded: &[Object], live: &[Object], physical| {
        let expect = Expectations { physical, ..NOTHING_SPECIAL };
        compare((header(150_018), recorded), (header(150_018), live), expect)
    };
    let state = "subscriptions are switched on";
    for (was, is, physical, expected) in [
        ("yes", "yes", false, Outcome::Ok),
        ("no", "no", true, Outcome::Ok),
        ("yes", "no", false, Outcome::NotChecked),
        ("yes", "no", true, Outcome::Failed),
        ("no", "yes", false, Outcome::Failed),
    ] {
        let checks = one(&of(was, "c"), &of(is, "c"), physical);
        assert_eq!(outcome(&checks, state), expected, "{was} {is} {physical}");
        assert_eq!(outcome(&checks, "other objects"), Outcome::Ok);
    }
    let checks = one(&of("yes", "c"), &of("yes", "d"), true);
    assert_eq!(checks["other objects"].details, ["subscription s: where it connects to differs"]);
    // Somebody who is no superuser does not see where it connects to, and dumps none.
    for (recorded, live) in [(of("yes", "c"), hidden()), (hidden(), of("yes", "c"))] {
        let checks = one(&recorded, &live, true);
        assert_eq!((outcome(&checks, state), outcome(&checks, "owners")), (Outcome::Ok, Outcome::Ok));
        assert_eq!((outcome(&checks, "other objects"), checks["other objects"].expected), (Outcome::NotChecked, false));
    }
    let checks = one(&hidden(), &[], false);
    assert_eq!((outcome(&checks, state), checks[state].expected), (Outcome::NotChecked, true), "{checks:?}");
    for checks in [one(&hidden(), &[], true), one(&of("no", "c"), &[], false)] {
        assert_eq!(checks["other objects"].details, ["subscription s is missing"]);
    }
}

//! Two repositories over time: whatever one of them was before, or missed, is settled, or said until it is.

use std::fs;

use pgark_testkit::Pgark;

use crate::several::Two;
use crate::site::BINARY;

fn said(checked: &serde_json::Value, name: &str, repository: &str) -> Vec<(String, String)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let all = checked["checks"].as_array().expect("checks").iter();
    let of = all.filter(|f| f["name"] == name && f["repository"] == repository);
    of.map(|f| (text(&f["verdict"]), text(&f["message"]))).collect()
}

#[test]
fn what_lay_in_the_place_of_a_copy_is_forgotten_and_what_the_first_one_missed_is_not() {
    let Some(mut two) = Two::new("trusted", false) else { return };
    let cache = two.site.scratch.dir("seen");
    let with_cache = |pgark: &Pgark| pgark.clone().env("PGARK_CACHE_DIR", &cache);
    (two.site.pgark, two.site.elsewhere) = (with_cache(&two.site.pgark), with_cache(&two.site.elsewhere));
    let (a_parked, b_parked) = (two.a.with_extension("parked"), two.b.with_extension("parked"));

    // The second one was a repository of its own once, and this host has seen it.
    fs::remove_dir_all(&two.b).expect("remove");
    two.site.pgark.clone().env("PGARK_REPO", "b").run(["init"]).expect_code(0);
    two.only("b").run(["info"]).expect_code(0);
    fs::remove_dir_all(&two.b).expect("remove");
    let again = two.site.pgark.run(["init"]).expect_code(0);
    // The trail of the copy that is gone is gone, too: told once by each command, until somebody has looked.
    assert_eq!(again.stderr.matches("E-AUDIT-CUT").count(), 1, "{again}");
    two.site.elsewhere.run(["audit", "verify", "--accept", "--yes"]).expect_code(0);
    let backup = two.backup().expect_code(0);
    assert!(!backup.stderr.contains("E-AUDIT"), "{backup}");
    crate::site::assert_only_beside(&two.site.pgark.run(["check", "--json"]));

    // The first is away: the copy is enough, and gets a backup and WAL alone.
    fs::rename(&two.a, &a_parked).expect("park");
    assert!(two.site.elsewhere.run(["info"]).succeeded());
    two.only("b").run(["verify"]).expect_code(0);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    let alone = two.backup().expect_code(3).json()["id"].as_str().expect("an id").to_owned();
    two.site.archive_all();

    // Another repository in its place, as somebody else made it: each reason is told, and nobody is sent to 'init'.
    fs::rename(&two.b, &b_parked).expect("park");
    let theirs = Pgark::new(BINARY, &two.site.scratch, &two.b).env("PGARK_CACHE_DIR", two.site.scratch.dir("theirs"));
    theirs.on(&two.site.cluster).run(["init"]).expect_code(0);
    for words in [&["info"][..], &["check"], &["restore", "--to", "/nonexistent/r", "--dry-run"]] {
        let refused = two.site.elsewhere.run(words).expect_code(10);
        let (reasons, hint) = refused.stderr.split_once("HINT: ").expect("a hint");
        assert!(reasons.contains("repository a: ") && reasons.contains("E-KEY-REPLACED"), "{refused}");
        assert!(hint.contains("/seen/") && !hint.contains("init"), "{refused}");
    }
    fs::remove_dir_all(&two.b).expect("remove");
    fs::rename(&b_parked, &two.b).expect("back");

    // It comes back, and is told to lack something until it does not, however many backups come later.
    fs::rename(&a_parked, &two.a).expect("back");
    fs::remove_dir_all(two.a.join("rescue")).expect("remove");
    two.site.ledger.write_rows(&two.site.cluster, 3);
    two.site.archive_all();
    for _ in 0..2 {
        let backup = two.backup().expect_code(3);
        assert!(backup.stderr.contains(&alone) && backup.stderr.contains("replicate --from b --to a"), "{backup}");
    }
    let checked = two.site.pgark.run(["check", "--json"]).expect_code(3).json();
    let (verdict, message) = said(&checked, "completeness", "a").remove(0);
    assert!(verdict == "warning" && message.contains(&alone) && message.contains("WAL segments"), "{checked}");
    assert!(message.contains("'pgark replicate --from b --to a'"), "{checked}");
    assert_eq!(said(&checked, "completeness", "b"), [("ok".to_owned(), "has what the others have".to_owned())]);
    assert_eq!(said(&checked, "rescue", "a").remove(0).0, "warning", "{checked}");
    let verified = two.only("a").run(["verify", "--repair"]).expect_code(20);
    assert!(verified.stdout.contains("never got into this repository"), "{verified}");
    assert!(verified.stderr.contains("replicate --from b --to a"), "{verified}");
    assert!(verified.stdout.contains("the extractor"), "{verified}");

    // Quiet is quiet.
    let brought = two.site.elsewhere.run(["-q", "replicate", "--from", "b", "--to", "a"]).expect_code(0);
    assert!(brought.stdout.is_empty() && brought.stderr.is_empty(), "{brought}");
    let checked = two.site.pgark.run(["check", "--json"]).json();
    for name in ["a", "b"] {
        assert!(said(&checked, "completeness", name).iter().all(|(verdict, _)| verdict == "ok"), "{checked}");
        assert!(said(&checked, "rescue", name).iter().all(|(verdict, _)| verdict == "ok"), "{checked}");
    }
    two.backup().expect_code(0);
    two.only("a").run(["verify"]).expect_code(0);

    // What is asked of a repair wrongly is refused before it reads.
    let from = |from: &str| two.only("a").run(["verify", "--repair", "--from", from]).code;
    assert_eq!((from("a"), from("/nonexistent/repo")), (Some(2), Some(10)));
}

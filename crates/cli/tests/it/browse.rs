//! Looking into a repository, and writing notes on backups.

use serde_json::Value;

use crate::site::Site;

#[test]
fn objects_are_listed_and_what_they_hold_is_printed() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "browse");
    let id = site.pgark.backup("full");
    site.archive_all();
    let listed = site.elsewhere.json(["repo-ls"]);
    let names: Vec<&str> =
        listed["objects"].as_array().expect("objects").iter().filter_map(|o| o["object"].as_str()).collect();
    assert_eq!(names.len(), pgark_testkit::objects_under(site.elsewhere.repo()).len(), "{listed}");
    let lines = site.elsewhere.run(["repo-ls", &format!("clusters/main/backups/{id}")]).expect_code(0);
    assert!(lines.stdout.contains("/packs/000001") && !lines.stdout.contains("/wal/"), "{lines}");

    let record = site.elsewhere.run(["repo-get", &format!("clusters/main/backups/{id}/record")]).expect_code(0);
    let record: Value = serde_json::from_str(&record.stdout).expect("a record is JSON");
    assert_eq!(record["id"], Value::from(id.as_str()));
    let catalog = names.iter().rev().find(|n| n.starts_with("clusters/main/catalog/")).expect("a catalog");
    let catalog = site.elsewhere.run(["repo-get", catalog]).expect_code(0);
    let catalog: Value = serde_json::from_str(&catalog.stdout).expect("a catalog is JSON");
    assert_eq!(catalog["backups"][0]["id"], Value::from(id.as_str()));

    // A segment comes back as PostgreSQL wrote it; stored bytes are other ones.
    let is_segment =
        |n: &&&str| n.starts_with("clusters/main/wal/") && n.rsplit('/').next().is_some_and(|f| f.len() == 24);
    let segment = names.iter().find(is_segment).expect("a segment");
    let to = site.scratch.join("segment");
    site.pgark
        .run(["archive-get", segment.rsplit('/').next().expect("a name"), &to.display().to_string()])
        .expect_code(0);
    let mut command = site.elsewhere.command(["repo-get", segment]);
    let printed = command.output().expect("pgark runs");
    assert!(printed.stdout == std::fs::read(&to).expect("the segment"), "{} bytes", printed.stdout.len());
    let raw = site.elsewhere.command(["repo-get", "--raw", segment]).output().expect("pgark runs");
    assert!(raw.stdout == std::fs::read(site.elsewhere.repo().join(segment)).expect("the object"));

    let none = site.elsewhere.run(["repo-get", "clusters/main/none"]).expect_code(4);
    assert!(none.stderr.contains("E-REPO-MISSING") && none.stderr.contains("repo-ls"), "{none}");
    let nothing = site.elsewhere.run(["repo-ls", "nix"]).expect_code(0);
    assert!(nothing.stderr.contains("nothing lies under 'nix'") && nothing.stdout.is_empty(), "{nothing}");
    assert_eq!(site.elsewhere.run(["repo-ls", "../.."]).code, Some(2));
    // What is given wrongly is a mistake of who gives it, and says what to do.
    let words: &[(&[&str], i32, &str)] = &[
        (&["import", "/tmp"], 4, "E-IMPORT-FORM"),
        (&["import", "/nonexistent/dir"], 4, "E-IMPORT-FORM"),
        (&["key", "add", "--key-command", "nope"], 2, "E-KEY-COMMAND"),
        (&["key", "add", "--age-recipient", "age1foo"], 2, "E-KEY-RECIPIENT"),
        (&["key", "renew", "/tmp"], 4, "E-RESTORE-FILE"),
        (&["expire", "--gc-grace", "-1"], 2, "negative"),
        (&["key", "retire", "--grace", "-5"], 2, "negative"),
        (&["expire", "--gc-grace", "999999999999d"], 2, "longer than"),
        (&["expire", "--repo-target-time", "2026-01-01T00:00:00Z"], 2, "E-REPO-PAST"),
        (&["annotate", &id, "nonsense"], 2, "E-ANNOTATION"),
        (&["info", "--passphrase-file", "/nonexistent/p"], 2, "E-SECRET-FILE"),
        (&["export", &id, "--to", "/nonexistent/d/e.tar"], 1, "E-FILE"),
        (&["info", "--repo", "nix://x"], 2, "E-REPO-URL"),
    ];
    for (words, code, part) in words {
        let refused = site.elsewhere.run(*words).expect_code(*code);
        assert!(refused.stderr.contains(part) && refused.stderr.contains("HINT: "), "{refused}");
    }
    assert_eq!(site.elsewhere.run(["repo-get", "../../etc/passwd"]).code, Some(2));
}

#[test]
fn notes_are_set_changed_and_taken_away() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "notes");
    let id = site.pgark.backup("full");
    let notes = |words: &[&str]| site.pgark.json([&["annotate", &id], words].concat())["annotations"].clone();
    assert_eq!(notes(&["ticket=42", "who=ops"]), serde_json::json!({"ticket": "42", "who": "ops"}));
    assert_eq!(notes(&["ticket=43", "--dry-run"]), serde_json::json!({"ticket": "43", "who": "ops"}));
    assert_eq!(site.pgark.backup_info(&id)["annotations"]["ticket"], "42");
    assert_eq!(notes(&["ticket=", "why=a=b"]), serde_json::json!({"who": "ops", "why": "a=b"}));
    assert_eq!(site.pgark.backup_info(&id)["annotations"], serde_json::json!({"who": "ops", "why": "a=b"}));
    assert_eq!(site.pgark.run(["annotate", &id, "nonsense"]).code, Some(2));
    let long = format!("k={}", "x".repeat(2000));
    assert_eq!(site.pgark.run(["annotate", &id, &long]).code, Some(4));
    assert_eq!(site.pgark.run(["annotate", "20200101-000000F", "a=b"]).code, Some(4));
}

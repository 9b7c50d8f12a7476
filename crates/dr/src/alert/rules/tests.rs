use super::*;

const MIB: u64 = 1 << 20;
const LIMITS: Limits = Limits {
    no_backup_for: Duration::from_secs(48 * 3600),
    size_jump_percent: 50,
    rpo: Some(Duration::from_secs(3600)),
};

fn at(hour: i64) -> Timestamp {
    Timestamp::from_second(1_787_000_000 + hour * 3600).expect("a time")
}

/// Made so many hours after the beginning.
fn backup(hour: i64, size: u64, read: u64, stored: u64) -> BackupEntry {
    let time = at(hour).to_string();
    let id = pgark_repo::names::BackupId::new(at(hour), 'L').to_string();
    serde_json::from_value(serde_json::json!({"id": id, "kind": "logical", "type": "full", "system_id": "7", "version_num": 150000,
        "started": time, "finished": time, "size_bytes": size * MIB, "read_bytes": read * MIB, "stored_bytes": stored * MIB,
        "kept": false, "kept_until": null, "evidence": "stored", "annotations": {}, "needs": [],
        "record": {"size": 1, "blake3": "0".repeat(64)}}))
    .expect("an entry")
}

fn rules(
    backups: &[BackupEntry],
    hour: i64,
    gaps: usize,
    point: Option<Timestamp>,
) -> (Vec<(String, Severity)>, usize) {
    let facts = Facts { now: at(hour), cluster: "main", repository: None, backups, gaps, recovery_point: point };
    let found = evaluate(&facts, &LIMITS);
    (found.findings.iter().map(|f| (f.rule.clone(), f.severity)).collect(), found.fine.len())
}

fn one(rule: &str, severity: Severity) -> Vec<(String, Severity)> {
    vec![(rule.to_owned(), severity)]
}

#[test]
fn age_gaps_and_damage_are_told_with_what_is_fine() {
    let fresh = [backup(100, 100, 100, 10)];
    assert_eq!(rules(&fresh, 100, 0, None), (vec![], 4));
    assert_eq!(rules(&fresh, 148, 0, Some(at(148))), (vec![], 4), "48 h are allowed");
    assert_eq!(rules(&fresh, 149, 0, Some(at(149))).0, one("no-backup", Severity::Critical));
    // Nothing can be lost where nothing is.
    assert_eq!(rules(&[], 100, 0, None), (one("no-backup", Severity::Critical), 2));
    assert_eq!(rules(&fresh, 102, 0, None).0, one("rpo", Severity::Critical));
    assert_eq!(rules(&fresh, 104, 0, Some(at(102))).0, one("rpo", Severity::Warning), "an idle server looks the same");
    let base = BackupEntry { kind: BackupKind::Physical, ..backup(98, 100, 100, 10) };
    let both = [base, backup(104, 100, 100, 10)];
    assert_eq!(rules(&both, 104, 0, Some(at(102))).0, one("rpo", Severity::Warning), "a dump is no WAL");
    assert_eq!(rules(&fresh, 100, 2, None).0, one("wal-gap", Severity::Critical));
    let damaged = [BackupEntry { damaged: Some(at(101)), ..backup(100, 100, 100, 10) }];
    assert_eq!(rules(&damaged, 100, 0, None).0, one("damaged", Severity::Critical));
    let said = [(30, "30 s"), (150, "2 min"), (7200, "2 h"), (172_800, "2 days")];
    assert!(said.iter().all(|(seconds, words)| span(Duration::from_secs(*seconds)) == *words));
}

#[test]
fn a_backup_of_another_kind_is_no_substitute() {
    let files = |hour| BackupEntry { kind: BackupKind::Files, ..backup(hour, 100, 100, 10) };
    let found = |backups: &[BackupEntry], hour| rules(backups, hour, 0, Some(at(hour)));
    let dumps = [backup(90, 100, 100, 10), backup(100, 100, 100, 10)];
    let both = [dumps[0].clone(), dumps[1].clone(), files(130)];
    assert_eq!(found(&both, 148).0, vec![]);
    assert_eq!(found(&both, 149).0, one("no-backup-logical", Severity::Critical));
    assert_eq!(found(&both, 190).0, one("no-backup", Severity::Critical));
    // Neither is one that was made once.
    assert_eq!(found(&both[1..], 149).0, vec![]);
    let physical = BackupEntry { kind: BackupKind::Physical, ..backup(100, 100, 100, 10) };
    assert_eq!(found(&[physical, files(130)], 149).0, one("no-backup-physical", Severity::Critical));
    // One that a restore took is no habit either.
    let mut safety = backup(100, 100, 100, 10);
    safety.annotations.insert(SAFETY.into(), "before".into());
    assert_eq!(found(&[safety, files(148)], 149).0, vec![]);
}

#[test]
fn what_is_unlike_what_came_before_is_told() {
    let usual: Vec<BackupEntry> = (0..4).map(|n| backup(n, 1000 + n as u64, 1000, 50)).collect();
    let with = |last: BackupEntry| {
        let all: Vec<BackupEntry> = usual.iter().cloned().chain([last]).collect();
        rules(&all, 4, 0, None).0
    };
    assert_eq!(with(backup(4, 1400, 1400, 60)), vec![]);
    assert_eq!(with(backup(4, 1600, 1600, 60)), one("size-jump", Severity::Warning));
    assert_eq!(with(backup(4, 300, 300, 20)), one("size-jump", Severity::Critical));
    // New all over, as after an encryption; and as much of it as before.
    assert_eq!(with(backup(4, 1000, 1000, 700)), one("content-jump", Severity::Critical));
    assert_eq!(with(backup(4, 1000, 1000, 150)), vec![], "a busy day");
    // An incremental backup that reads little and finds it dense.
    assert_eq!(with(backup(4, 1000, 100, 95)), one("content-jump", Severity::Critical));
    // Small ones say nothing, nor do few.
    let small: Vec<BackupEntry> = (0..4).map(|n| backup(n, 2, 2, 1)).chain([backup(4, 9, 9, 9)]).collect();
    assert_eq!(rules(&small, 4, 0, None).0, vec![]);
    let few = [backup(0, 1000, 1000, 50), backup(1, 1000, 1000, 50), backup(2, 3000, 3000, 2000)];
    assert_eq!(rules(&few, 2, 0, None).0, vec![]);
    // Another series is another thing.
    let other = BackupEntry { series: Some("x".into()), ..backup(4, 9000, 9000, 9000) };
    assert_eq!(with(other), vec![]);
}

#[test]
fn the_end_of_a_command_begins_and_ends_an_alert() {
    let end = |command, exit_code, rto_missed| {
        from_command(&CommandEnd {
            command,
            kind: None,
            cluster: "main",
            exit_code,
            failure: Some(("E-X", "why")),
            rto_missed,
        })
    };
    for quiet in [("backup", 2), ("backup", 5), ("restore", 4)] {
        assert_eq!(end(quiet.0, quiet.1, false), Evaluated::default(), "{quiet:?}");
    }
    for (command, code, rule, severity) in [
        ("backup", 1, "backup-failed", Severity::Critical),
        ("backup", 12, "backup-failed", Severity::Critical),
        ("drill", 21, "drill-failed", Severity::Critical),
        ("drill", 3, "drill-failed", Severity::Warning),
        ("recover", 21, "recovery-failed", Severity::Critical),
        ("recover", 4, "recovery-failed", Severity::Critical),
        ("expire", 1, "expire-failed", Severity::Warning),
    ] {
        let found = end(command, code, false);
        assert_eq!((found.findings[0].rule.as_str(), found.findings[0].severity), (rule, severity), "{command} {code}");
        assert!(found.findings[0].summary.contains("E-X why"));
    }
    assert_eq!(end("backup", 3, false).fine, ["main/command-backup"]);
    let of = |kind, exit_code| {
        let (command, failure) = ("backup", None);
        from_command(&CommandEnd { command, kind: Some(kind), cluster: "main", exit_code, failure, rto_missed: false })
    };
    assert_eq!(of(BackupKind::Physical, 0).fine, ["main/command-backup"]);
    assert_eq!(of(BackupKind::Logical, 0).fine, ["main/command-backup-logical"]);
    let failed = of(BackupKind::Files, 1).findings;
    assert_eq!((failed[0].key.as_str(), failed[0].rule.as_str()), ("main/command-backup-files", "backup-failed"));
    assert!(failed[0].summary.starts_with("backup --kind files failed"), "{failed:?}");
    assert_eq!(end("recover", 0, false).fine, ["main/command-recover", "main/rto"]);
    let missed = end("recover", 0, true);
    assert_eq!((missed.findings[0].rule.as_str(), missed.fine.len()), ("rto-missed", 1));
}

#[test]
fn what_check_could_not_ask_neither_begins_nor_ends_anything() {
    let finding = |name, verdict, repository: Option<&str>| check::Finding {
        name,
        repository: repository.map(str::to_owned),
        verdict,
        message: "m".into(),
    };
    let found = from_checks(
        "main",
        &[
            finding("space", check::Verdict::Warning, Some("a")),
            finding("space", check::Verdict::Ok, Some("b")),
            finding("newest backup", check::Verdict::NotChecked, None),
            finding("settings", check::Verdict::Ok, None),
            finding("settings", check::Verdict::Failed, None),
            finding("settings", check::Verdict::Warning, None),
        ],
    );
    let told: Vec<_> = found.findings.iter().map(|f| (f.key.as_str(), f.severity)).collect();
    let expected = [("main/check-space/a", Severity::Warning), ("main/check-settings", Severity::Critical)];
    assert_eq!((told, found.fine), (expected.to_vec(), vec!["main/check-space/b".to_owned()]));
}

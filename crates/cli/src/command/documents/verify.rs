//! What `verify` says.

use pgark_engine::verify::{Depth, ProblemKind, VerifyReport};
use serde::Serialize;

use super::WindowDocument;
use crate::failure::SCHEMA;

#[derive(Serialize)]
pub struct VerifyDocument {
    schema: u32,
    ok: bool,
    depth: &'static str,
    backups: Vec<String>,
    objects_checked: u64,
    bytes_checked: u64,
    problems: Vec<ProblemDocument>,
    /// Present, and archived by the store: their content was not checked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unchecked: Vec<UncheckedDocument>,
    /// Objects that were made right again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repaired: Vec<String>,
    /// What a repair would make right, where only that was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repairable: Vec<serde_json::Value>,
    parity: ParityDocument,
    notes: Vec<String>,
}

/// Objects by their parity: `present` was compared unless the depth is quick, `missing` is counted where parity is to be
/// written.
#[derive(Serialize)]
struct ParityDocument {
    present: u64,
    missing: u64,
}

#[derive(Serialize)]
struct UncheckedDocument {
    object: String,
    why: String,
    backups: Vec<String>,
}

#[derive(Serialize)]
struct ProblemDocument {
    object: String,
    kind: &'static str,
    what: String,
    backups: Vec<String>,
    windows: Vec<WindowDocument>,
}

pub fn problem_kind(k: ProblemKind) -> &'static str {
    match k {
        ProblemKind::Missing => "missing",
        ProblemKind::Damaged => "damaged",
        ProblemKind::Unexpected => "unexpected",
        ProblemKind::Gap => "gap",
        ProblemKind::Broken => "broken",
        ProblemKind::Conflict => "conflict",
    }
}

impl VerifyDocument {
    pub fn new(r: &VerifyReport, depth: Depth, repaired: Vec<String>, repairable: &[(String, String)]) -> Self {
        let problem = |p: &pgark_engine::verify::Problem| ProblemDocument {
            object: p.object.clone(),
            kind: problem_kind(p.kind),
            what: p.what.clone(),
            backups: p.backups.iter().map(ToString::to_string).collect(),
            windows: p.windows.iter().map(WindowDocument::from).collect(),
        };
        let unchecked = |u: &pgark_engine::verify::Unchecked| UncheckedDocument {
            object: u.object.clone(),
            why: u.why.clone(),
            backups: u.backups.iter().map(ToString::to_string).collect(),
        };
        VerifyDocument {
            schema: SCHEMA,
            ok: r.problems.is_empty() && r.unchecked.is_empty(),
            depth: match depth {
                Depth::Full => "full",
                Depth::Quick if r.by_books => "books",
                Depth::Quick => "quick",
            },
            backups: r.backups_checked.iter().map(ToString::to_string).collect(),
            objects_checked: r.objects_checked,
            bytes_checked: r.bytes_checked,
            problems: r.problems.iter().map(problem).collect(),
            unchecked: r.unchecked.iter().map(unchecked).collect(),
            repaired,
            repairable: repairable.iter().map(|(o, from)| serde_json::json!({"object": o, "from": from})).collect(),
            parity: ParityDocument { present: r.parity_present, missing: r.parity_missing.len() as u64 },
            notes: r.remarks(),
        }
    }
}

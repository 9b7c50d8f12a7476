//! What `backup`, `expire` and `replicate` say of the locks of what they leave behind.

use pgark_engine::lock::{self, LockReport};
use pgark_engine::several::Member;
use pgark_engine::{Ctx, EngineError};
use pgark_repo::names::ClusterName;
use serde_json::{Value, json};

use crate::output::{self, timestamp};

/// Of one repository whose objects are locked.
pub struct Locked {
    /// When there are several.
    repository: Option<String>,
    outcome: Result<LockReport, EngineError>,
}

/// Extends locks in each repository that has them, and warns of what is not locked.
pub fn extend_all(members: &[Member], cluster: &ClusterName, ctx: &Ctx) -> Vec<Locked> {
    let mut all = vec![];
    for member in members {
        let outcome = match lock::extend(&member.repo, cluster, ctx) {
            Ok(None) => continue,
            Ok(Some(report)) => Ok(report),
            Err(e) => Err(e),
        };
        let repository = (members.len() > 1).then(|| member.name.clone());
        let locked = Locked { repository, outcome };
        locked.warnings().iter().for_each(|w| output::warning(w));
        all.push(locked);
    }
    all
}

impl Locked {
    pub fn is_fine(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|r| r.problems_in_all == 0)
    }

    fn of(&self) -> String {
        self.repository.as_ref().map(|name| format!("repository {name}: ")).unwrap_or_default()
    }

    pub fn warnings(&self) -> Vec<String> {
        let of = self.of();
        match &self.outcome {
            Err(e) => vec![format!("{of}the locks could not be looked at: {}: {e}", e.code())],
            Ok(r) => {
                let mut all: Vec<String> = r.problems.iter().map(|p| format!("{of}E-LOCK {p}")).collect();
                let more = r.problems_in_all - r.problems.len() as u64;
                all.extend((more > 0).then(|| format!("{of}E-LOCK and {more} more")));
                all
            }
        }
    }

    pub fn text(&self) -> String {
        match &self.outcome {
            Ok(LockReport { versions, extended, until: Some(until), .. }) => format!(
                "  {}{versions} objects are locked until {} or longer, {extended} of them for longer than before\n",
                self.of(),
                timestamp(*until)
            ),
            _ => String::new(),
        }
    }

    pub fn document(&self) -> Value {
        let mut document = match &self.outcome {
            Ok(r) => json!({
                "ok": r.problems_in_all == 0, "versions": r.versions, "extended": r.extended,
                "until": r.until.map(|t| t.to_string()), "problems": r.problems_in_all,
            }),
            Err(e) => json!({"ok": false, "error": e.code()}),
        };
        if let Some(name) = &self.repository {
            document["repository"] = name.as_str().into();
        }
        document
    }
}

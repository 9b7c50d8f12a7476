//! What `info` says of rehearsals: the last one, and how long a recovery would take.

use std::time::Duration;

use pgark_engine::Ctx;
use pgark_engine::drill::forecast::{self, Forecast, Held, History};
use pgark_engine::info::ClusterInfo;
use pgark_repo::Repository;

use crate::failure::escape;
use crate::output::{human_duration, timestamp};
use crate::settings::Settings;

/// Reports that are opened; `check` opens more.
const REPORTS_MAX: usize = 30;

pub struct Rehearsed {
    /// Why it is not known, otherwise.
    history: Result<History, String>,
    is_for_us: bool,
    forecasts: Vec<Forecast>,
    rto: Option<Duration>,
}

impl Rehearsed {
    pub fn of(cluster: &ClusterInfo, repo: &Repository, settings: &Settings, ctx: &Ctx) -> Self {
        let history = match repo.keys().writes_only() {
            Some(_) => Err("a writer's secret does not open reports".to_owned()),
            None => forecast::history(repo, &cluster.name, REPORTS_MAX, ctx).map_err(|e| e.to_string()),
        };
        let forecasts = history.as_ref().map(|h| h.forecasts(cluster)).unwrap_or_default();
        let rto = settings.clusters.get(cluster.name.as_str()).and_then(|c| c.rto);
        Rehearsed { history, forecasts, is_for_us: repo.keys().writes_only().is_none(), rto }
    }

    /// Whether something of it could not be read by who may read it.
    pub fn is_unknown(&self) -> bool {
        self.is_for_us && self.history.as_ref().map_or(true, |history| history.unread > 0)
    }

    pub fn document(&self) -> serde_json::Value {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let one = |f: &Forecast| {
            serde_json::json!({"kind": f.kind.as_str(), "expected_ms": ms(f.expected), "least_ms": ms(f.least),
                "most_ms": ms(f.most), "measurements": f.measurements, "confidence": f.confidence.as_str(),
                "rto_ms": self.rto.map(ms), "meets_rto": self.rto.map(|rto| f.expected <= rto)})
        };
        let held = |h: &Held| {
            serde_json::json!({"report": h.id.to_string(), "time": h.at, "kind": h.kind.as_str(), "verdict": h.verdict,
                "backup": h.backup, "summary": h.summary})
        };
        match &self.history {
            Err(why) => serde_json::json!({"problem": why}),
            Ok(history) => serde_json::json!({"last": history.last().map(held),
                "last_green": history.last_green().map(|h| h.at), "unread": history.unread,
                "forecasts": self.forecasts.iter().map(one).collect::<Vec<_>>()}),
        }
    }

    pub fn text(&self) -> String {
        let history = match &self.history {
            Ok(history) => history,
            // A writer has nothing to do with it.
            Err(_) if self.rto.is_none() => return String::new(),
            Err(why) => return format!("  drills are not known: {}\n", escape(why)),
        };
        let mut out = String::new();
        if let Some(last) = history.last() {
            out += &format!(
                "  last drill: {} at {}: {}\n",
                last.verdict.as_str(),
                timestamp(last.at),
                escape(&last.summary)
            );
        }
        if history.unread > 0 {
            out += &format!("  PROBLEM: {} reports cannot be read\n", history.unread);
        }
        let against = |expected: Duration| match self.rto {
            None => String::new(),
            Some(rto) => format!("; rto {}: {}", human_duration(rto), if expected <= rto { "kept" } else { "MISSED" }),
        };
        for f in &self.forecasts {
            out += &format!(
                "  a recovery from {} backups takes about {} ({} to {}, from {} drills and restores, confidence {}){}\n",
                f.kind,
                human_duration(f.expected),
                human_duration(f.least),
                human_duration(f.most),
                f.measurements,
                f.confidence.as_str(),
                against(f.expected)
            );
        }
        if self.forecasts.is_empty()
            && let Some(rto) = self.rto
        {
            out += &format!(
                "  how long a recovery takes is not known: no drill and no restore with --start measured it; rto {}\n",
                human_duration(rto)
            );
        }
        out
    }
}

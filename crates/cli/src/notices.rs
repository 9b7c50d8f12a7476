//! Tells people how a command ended, where alerts are configured.
//!
//! Invariant: whatever happens here, the command's result is what it was.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use pgark_dr::alert::rules::{self, CommandEnd, Evaluated};
use pgark_dr::alert::{AlertError, Book, Delivered, Raised, Which};
use pgark_repo::catalog::BackupKind;

use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;
use crate::settings::alerts::AlertSettings;

/// How long the end of a command waits for receivers; what they do not take then goes out with the next command, or with
/// `alert run`.
pub const BUDGET: Duration = Duration::from_secs(20);

/// A command of which people want to know how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToldOf {
    pub command: &'static str,
    /// Of a backup.
    pub kind: Option<BackupKind>,
}

/// Known as soon as the settings are.
#[derive(Debug, Clone, Default)]
pub struct Notices {
    configured: Arc<Mutex<Option<Configured>>>,
}

#[derive(Debug, Clone)]
struct Configured {
    alerts: AlertSettings,
    state_dir: std::path::PathBuf,
    cluster: String,
}

impl Notices {
    pub fn configure(&self, settings: &Settings) {
        let Some(state_dir) = settings.state_dir.clone().filter(|_| !settings.alerts.routing.sinks.is_empty()) else {
            return;
        };
        let (alerts, cluster) = (settings.alerts.clone(), settings.selected_cluster.value.clone());
        let mut configured = self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        configured.get_or_insert(Configured { alerts, state_dir, cluster });
    }

    /// How a command ended of which people want to know.
    pub fn ended(&self, command: ToldOf, exit_code: u8, failure: Option<&Failure>, rto_missed: bool) {
        let configured = self.configured.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(Configured { alerts, state_dir, cluster }) = configured else { return };
        let failure = failure.map(|f| (&*f.code, f.message.as_str()));
        let ToldOf { command, kind } = command;
        let end = CommandEnd { command, kind, cluster: &cluster, exit_code, failure, rto_missed };
        let book = Book::at(&state_dir);
        let told = record(&book, &alerts, rules::from_command(&end), Timestamp::now())
            .and_then(|anything| if anything { deliver(&book, &alerts, BUDGET) } else { Ok(Delivered::default()) });
        match told {
            Ok(delivered) => tell_failed(&delivered),
            Err(e) => output::warning(&format!("{} the alert is not written down: {e}", e.code())),
        }
    }
}

/// Writes findings down. True when there is something to tell.
pub fn record(book: &Book, alerts: &AlertSettings, found: Evaluated, now: Timestamp) -> Result<bool, AlertError> {
    let mut anything = false;
    for finding in found.findings.iter().filter(|f| !alerts.disabled.contains(&f.rule)) {
        let raised = book.raise(finding, &alerts.routing, now)?;
        anything |= !matches!(raised, Raised::Known(_, false));
    }
    for key in &found.fine {
        anything |= book.resolve(key, now)?;
    }
    Ok(anything)
}

/// Somebody else who is telling people at this moment tells ours as well, or leaves it to the next.
pub fn deliver(book: &Book, alerts: &AlertSettings, budget: Duration) -> Result<Delivered, AlertError> {
    match book.deliver(&alerts.routing, Which::Due, budget) {
        Err(AlertError::Busy) => Ok(Delivered::default()),
        other => other,
    }
}

pub fn tell_failed(delivered: &Delivered) {
    for (sink, why) in &delivered.failed {
        output::warning(&format!("E-ALERT-SEND sink {sink} did not take an alert, which is tried again: {why}"));
    }
}

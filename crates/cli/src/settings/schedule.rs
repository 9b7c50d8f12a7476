//! `[[schedules]]`: which job runs when.

use std::time::Duration;

use pgark_dr::schedule::{CatchUp, DEADLINE, Every, Schedule as Plan, Spec, When, Wrong};
use serde::{Deserialize, Serialize};

use super::schema::{BackupType, Kind};
use super::units::Span;

const AT: &str = "02:00";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    Backup,
    Verify,
    Expire,
    Check,
    Replicate,
    Drill,
    /// Looks at everything, tells people what it found and what waits.
    Alerts,
}

impl Job {
    pub fn word(self) -> &'static str {
        match self {
            Job::Backup => "backup",
            Job::Verify => "verify",
            Job::Expire => "expire",
            Job::Check => "check",
            Job::Replicate => "replicate",
            Job::Drill => "drill",
            Job::Alerts => "alerts",
        }
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// What is run
    pub job: Job,
    /// Of which cluster
    pub cluster: String,
    /// By which it is known; made of job, cluster, kind and type when left out.
    pub name: Option<String>,
    /// Of a backup
    #[serde(rename = "type")]
    pub backup_type: Option<BackupType>,
    /// Of a backup or drill
    pub kind: Option<Kind>,
    /// The repository it works on; those of the cluster when left out.
    pub repo: Option<String>,
    /// Of `replicate`: names of repositories.
    pub from: Option<String>,
    /// and to which
    pub to: Option<String>,
    /// Either this,
    pub cron: Option<String>,
    /// or this, at a time of the day.
    pub every: Option<EverySetting>,
    /// The time of day, with `every`
    pub at: Option<String>,
    /// Of cron and at; UTC when left out
    pub time_zone: Option<String>,
    /// It starts up to so much later, always by the same span.
    pub jitter: Option<Span>,
    /// How long a run may take.
    pub deadline: Option<Span>,
    /// Whether one run makes up for those that were missed; yes when left out.
    pub catch_up: Option<bool>,
    /// How often it is tried again when it fails; 0 when left out.
    pub retries: Option<u8>,
    /// Windows such as "mon-fri 08:00-18:00", in which it does not start.
    #[serde(default)]
    pub blackout: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EverySetting {
    Daily,
    Weekly,
    Monthly,
    Quarterly,
    #[serde(alias = "half-yearly")]
    SemiAnnual,
    Yearly,
}

impl Schedule {
    pub fn name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let word = |w: Option<String>| w.map(|w| format!("-{w}")).unwrap_or_default();
        let kind = word(self.kind.and_then(|k| Some(serde_json::to_value(k).ok()?.as_str()?.to_owned())));
        let type_ = word(self.backup_type.and_then(|t| Some(serde_json::to_value(t).ok()?.as_str()?.to_owned())));
        format!("{}-{}{kind}{type_}", self.job.word(), self.cluster)
    }

    /// # Errors
    /// `Wrong`, with the key that is.
    pub fn plan(&self) -> Result<Plan, Wrong> {
        let wrong = |key: &'static str, message: &str| Wrong { key, message: message.to_owned() };
        let when = match (&self.cron, self.every) {
            (Some(_), Some(_)) => return Err(wrong("every", "either cron or every says when")),
            (None, None) => return Err(wrong("cron", "neither cron nor every says when")),
            (Some(_), None) if self.at.is_some() => return Err(wrong("at", "cron says the time itself")),
            (Some(cron), None) => When::Cron(cron.clone()),
            (None, Some(every)) => {
                let at = pgark_dr::schedule::parse_time(self.at.as_deref().unwrap_or(AT))
                    .ok_or_else(|| wrong("at", "it is a time such as \"04:30\""))?;
                When::Every(every.into(), at)
            }
        };
        Plan::new(&Spec {
            name: self.name(),
            when,
            time_zone: self.time_zone.clone(),
            jitter: self.jitter.map_or(Duration::ZERO, |s| s.0),
            catch_up: if self.catch_up == Some(false) { CatchUp::Skip } else { CatchUp::Once },
            deadline: self.deadline.map_or(DEADLINE, |s| s.0),
            blackout: self.blackout.clone(),
        })
    }
}

impl From<EverySetting> for Every {
    fn from(setting: EverySetting) -> Every {
        match setting {
            EverySetting::Daily => Every::Day,
            EverySetting::Weekly => Every::Week,
            EverySetting::Monthly => Every::Month,
            EverySetting::Quarterly => Every::Quarter,
            EverySetting::SemiAnnual => Every::HalfYear,
            EverySetting::Yearly => Every::Year,
        }
    }
}

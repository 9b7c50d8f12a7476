//! How full each repository was, over time: the one thing that nobody else remembers for long.

use jiff::Timestamp;
use rusqlite::params;
use serde::Serialize;

use super::{Result, State, text, time};

/// A table that came later, and that programs without it pass over.
pub const SCHEMA: &str = "
create table if not exists samples (
    repo text not null, at text not null, used_bytes integer not null, free_bytes integer, month real, currency text,
    primary key (repo, at)
) strict;
";
/// Closer ones say the same.
const EVERY_S: i64 = 6 * 3600;
/// Two years.
const KEPT: i64 = 2 * 366 * 4;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    pub at: Timestamp,
    pub used_bytes: u64,
    /// Of a store that has an end.
    pub free_bytes: Option<u64>,
    /// What its storage costs in a month, and in what.
    pub month: Option<f64>,
    pub currency: Option<String>,
}

impl State {
    /// Unless there is one of the last hours.
    pub fn add_sample(&self, repo: &str, sample: &Sample) -> Result<()> {
        let since = sample.at.saturating_sub(jiff::SignedDuration::from_secs(EVERY_S)).unwrap_or(Timestamp::MIN);
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let connection = self.connection();
        connection.execute(
            "insert into samples (repo, at, used_bytes, free_bytes, month, currency) select ?1, ?2, ?3, ?4, ?5, ?6
             where not exists (select 1 from samples where repo = ?1 and at > ?7)",
            params![
                repo,
                text(sample.at),
                number(sample.used_bytes),
                sample.free_bytes.map(number),
                sample.month,
                sample.currency,
                text(since)
            ],
        )?;
        connection.execute(
            "delete from samples where repo = ?1 and at not in (select at from samples where repo = ?1 order by at desc limit ?2)",
            params![repo, KEPT],
        )?;
        Ok(())
    }

    /// The oldest first.
    pub fn samples(&self, repo: &str) -> Result<Vec<Sample>> {
        let connection = self.connection();
        let mut query = connection
            .prepare("select at, used_bytes, free_bytes, month, currency from samples where repo = ?1 order by at")?;
        let mut rows = query.query([repo])?;
        let mut found = vec![];
        let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
        while let Some(row) = rows.next()? {
            found.push(Sample {
                at: time(&row.get::<_, String>(0)?)?,
                used_bytes: bytes(row.get(1)?),
                free_bytes: row.get::<_, Option<i64>>(2)?.map(bytes),
                month: row.get(3)?,
                currency: row.get(4)?,
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn one_sample_in_six_hours_is_kept() {
        let scratch = pgark_testkit::Scratch::new("samples");
        let state = State::open(&scratch.join("state")).expect("opened");
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let sample = |hours: i64| Sample {
            at: begin + SignedDuration::from_hours(hours),
            used_bytes: 5,
            free_bytes: None,
            month: Some(0.5),
            currency: Some("EUR".into()),
        };
        for hours in [0, 1, 5, 6, 7, 12] {
            state.add_sample("main", &sample(hours)).expect("kept");
        }
        state.add_sample("other", &sample(1)).expect("kept");
        assert_eq!(state.samples("main").expect("listed"), [sample(0), sample(6), sample(12)]);
    }
}

//! A repository's room as commands ask for it: counted now, and remembered for the next time.
//!
//! What was counted before lies in this user's cache directory, once per half a day. Losing it costs the trend some days.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use pgark_engine::capacity::growth::Sample;
use pgark_engine::capacity::{Measured, measure};
use pgark_repo::Repository;

use crate::command::context::{Context, engine_failure};
use crate::failure::Failure;
use crate::key_cache::{private_dir, read_private, write_private};
use crate::settings::RepoSettings;

/// Samples that are closer say the same.
const SAMPLE_SECONDS: i64 = 12 * 3600;
const SAMPLES_MAX: usize = 180;
/// A line is two numbers.
const FILE_BYTES_MAX: usize = SAMPLES_MAX * 48;

pub fn look(
    context: &Context,
    settings: &RepoSettings,
    repo: &Repository,
    count_for: Duration,
) -> Result<Measured, Failure> {
    let memory = context.cache_dir().and_then(|dir| Memory::find(dir, &repo.store().url()));
    let history = memory.as_ref().map(Memory::read).unwrap_or_default();
    let found = measure(repo, &settings.space.rules, &history, count_for, &context.ctx).map_err(engine_failure)?;
    if let (Some(memory), Some(bytes)) = (memory, found.usage.total()) {
        memory.add(history, Sample { at: found.at, bytes });
    }
    Ok(found)
}

struct Memory {
    path: PathBuf,
}

impl Memory {
    /// None when there is no private directory to remember in.
    fn find(cache_dir: &std::path::Path, url: &str) -> Option<Self> {
        let name = blake3::hash(url.as_bytes()).to_hex();
        Some(Memory { path: private_dir(cache_dir, "used")?.join(name.get(..32)?) })
    }

    /// Oldest first; what is no sample is passed over.
    fn read(&self) -> Vec<Sample> {
        let bytes = read_private(&self.path, FILE_BYTES_MAX).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let sample = |line: &str| {
            let (at, bytes) = line.split_once(' ')?;
            Some(Sample { at: Timestamp::from_second(at.parse().ok()?).ok()?, bytes: bytes.parse().ok()? })
        };
        let mut samples: Vec<Sample> = text.lines().filter_map(sample).collect();
        samples.sort_by_key(|s| s.at);
        samples
    }

    fn add(&self, mut samples: Vec<Sample>, new: Sample) {
        // What a clock that was wrong has left would keep out what is right.
        samples.retain(|s| s.at <= new.at);
        if samples.last().is_some_and(|last| new.at.as_second() - last.at.as_second() < SAMPLE_SECONDS) {
            return;
        }
        samples.push(new);
        let from = samples.len().saturating_sub(SAMPLES_MAX);
        let lines = samples.iter().skip(from).map(|s| format!("{} {}\n", s.at.as_second(), s.bytes));
        if let Err(error) = write_private(&self.path, lines.collect::<String>().as_bytes()) {
            tracing::debug!(target: "pgark", %error, "what was counted is not remembered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing::TempDir;

    fn sample(hours: i64, bytes: u64) -> Sample {
        Sample { at: Timestamp::from_second(1_780_000_000 + hours * 3600).expect("in range"), bytes }
    }

    #[test]
    fn one_sample_in_half_a_day_is_kept_and_not_for_ever() {
        let dir = TempDir::new();
        let memory = Memory::find(dir.path(), "file:///r").expect("a private directory");
        assert_eq!(memory.read(), []);
        for hour in 0..25 {
            memory.add(memory.read(), sample(hour, 100));
        }
        assert_eq!(memory.read(), [sample(0, 100), sample(12, 100), sample(24, 100)]);
        let other = Memory::find(dir.path(), "file:///other").expect("a private directory");
        assert_eq!(other.read(), []);
        let many: Vec<Sample> = (0..2 * SAMPLES_MAX).map(|n| sample(n as i64 * 12, u64::MAX)).collect();
        memory.add(many, sample(1_000_000, u64::MAX));
        assert_eq!(memory.read().len(), SAMPLES_MAX, "the file holds as many as are written");
    }

    #[test]
    fn what_a_wrong_clock_left_does_not_stay() {
        let dir = TempDir::new();
        let memory = Memory::find(dir.path(), "file:///r").expect("a private directory");
        memory.add(vec![], sample(1_000_000, 1));
        memory.add(memory.read(), sample(0, 2));
        assert_eq!(memory.read(), [sample(0, 2)]);
    }

    #[test]
    fn lines_that_are_no_samples_are_passed_over() {
        let dir = TempDir::new();
        let memory = Memory::find(dir.path(), "file:///r").expect("a private directory");
        write_private(&memory.path, b"\xff x\n1 2 3\n99999999999999999999 1\n1780000000 5\n").expect("written");
        assert_eq!(memory.read(), [sample(0, 5)]);
    }
}

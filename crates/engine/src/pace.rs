//! A limit on how many bytes per second an operation reads or writes on the database's disks, shared by its threads.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// What may be moved at once after a pause.
const BURST: Duration = Duration::from_millis(250);
/// How long one sleep lasts at most, so that a wish to stop is seen.
const SLEEP_MAX: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Pace {
    bytes_per_second: NonZeroU64,
    /// When everything that was taken so far will have been paid for.
    paid_until: Mutex<Instant>,
}

impl Pace {
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Pace { bytes_per_second, paid_until: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may be moved; `stopped` ends the wait early.
    pub fn take(&self, bytes: u64, stopped: &dyn Fn() -> bool) {
        let due = self.charge(bytes, Instant::now());
        while !stopped() {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(SLEEP_MAX));
        }
    }

    /// Books the bytes; returns when they may be moved.
    fn charge(&self, bytes: u64, now: Instant) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        let mut until = self.paid_until.lock().expect("no thread panics with the lock");
        let due = (*until).max(now.checked_sub(BURST).unwrap_or(now));
        *until = due + cost;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spread_over_time() {
        let pace = Pace::new(NonZeroU64::new(1000).expect("not 0"));
        let now = Instant::now() + Duration::from_secs(100);
        assert_eq!(pace.charge(2000, now), now - BURST);
        assert_eq!(pace.charge(500, now), now - BURST + Duration::from_secs(2));
        assert_eq!(pace.charge(0, now), now - BURST + Duration::from_millis(2500));
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.charge(1, later), later - BURST, "a pause is not saved up");
    }

    #[test]
    fn a_wait_ends_when_it_is_stopped() {
        let pace = Pace::new(NonZeroU64::MIN);
        pace.take(1_000_000, &|| false);
        pace.take(1, &|| true);
    }
}

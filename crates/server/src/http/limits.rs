//! How often somebody may ask: buckets that fill slowly, one per address, per caller, and per name that is signed in with.
//!
//! Invariant: the number of buckets is bounded. When there is no room for another one, those who are new share one, so that many
//! addresses neither exhaust the memory nor get past the limits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const BUCKETS_MAX: usize = 10_000;
/// What may come at once, in seconds of what may come for ever.
const BURST_S: f64 = 5.0;
/// Wrong tokens and passwords of one address: so many at once, then one in so long.
const FAILURES: (f64, Duration) = (20.0, Duration::from_secs(10));
/// Passwords for one name from one address. Together with the address, so that nobody locks others out.
const SIGN_INS: (f64, Duration) = (5.0, Duration::from_secs(60));
/// Sign-ins by the provider that one address begins.
const BEGUN: (f64, Duration) = (20.0, Duration::from_secs(3));

struct Bucket {
    left: f64,
    at: Instant,
}

/// Buckets of one size.
struct Buckets {
    size: f64,
    per_second: f64,
    all: HashMap<String, Bucket>,
}

impl Buckets {
    fn new(size: f64, per_second: f64) -> Buckets {
        Buckets { size, per_second, all: HashMap::new() }
    }

    /// # Errors
    /// After how long there is something in it again.
    fn take(&mut self, key: &str, now: Instant) -> Result<(), Duration> {
        let (size, per_second) = (self.size, self.per_second);
        let bucket = self.bucket(key, now);
        bucket.left = (bucket.left + now.duration_since(bucket.at).as_secs_f64() * per_second).min(size);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.left) / per_second))
    }

    fn give_back(&mut self, key: &str, now: Instant) {
        let size = self.size;
        let bucket = self.bucket(key, now);
        bucket.left = (bucket.left + 1.0).min(size);
    }

    fn bucket(&mut self, key: &str, now: Instant) -> &mut Bucket {
        let (size, per_second) = (self.size, self.per_second);
        if self.all.len() >= BUCKETS_MAX && !self.all.contains_key(key) {
            self.all.retain(|_, b| b.left + now.duration_since(b.at).as_secs_f64() * per_second < size);
        }
        let is_full = self.all.len() >= BUCKETS_MAX && !self.all.contains_key(key);
        let key = if is_full { "" } else { key };
        self.all.entry(key.to_owned()).or_insert(Bucket { left: size, at: now })
    }
}

pub struct Limits {
    addresses: Mutex<Buckets>,
    callers: Mutex<Buckets>,
    failures: Mutex<Buckets>,
    sign_ins: Mutex<Buckets>,
    begun: Mutex<Buckets>,
}

impl Limits {
    pub fn new(per_second: u32) -> Limits {
        let rate = f64::from(per_second.max(1));
        let requests = || Mutex::new(Buckets::new(rate * BURST_S, rate));
        let rare = |(size, every): (f64, Duration)| Mutex::new(Buckets::new(size, 1.0 / every.as_secs_f64()));
        let (failures, sign_ins, begun) = (rare(FAILURES), rare(SIGN_INS), rare(BEGUN));
        Limits { addresses: requests(), callers: requests(), failures, sign_ins, begun }
    }

    /// A request of somebody unknown.
    ///
    /// # Errors
    /// All of these give after how long it is worth trying again.
    pub fn request(&self, address: IpAddr) -> Result<(), Duration> {
        locked(&self.addresses).take(&address.to_string(), Instant::now())
    }

    pub fn of_caller(&self, identity: &str) -> Result<(), Duration> {
        locked(&self.callers).take(identity, Instant::now())
    }

    /// For a token that was wrong; or before a password is compared, and given back when it was right, so that guessing at the
    /// same time helps nobody.
    pub fn may_fail(&self, address: IpAddr) -> Result<(), Duration> {
        locked(&self.failures).take(&address.to_string(), Instant::now())
    }

    pub fn was_right(&self, address: IpAddr) {
        locked(&self.failures).give_back(&address.to_string(), Instant::now());
    }

    /// As `may_fail`, of a password.
    pub fn may_sign_in(&self, name: &str, address: IpAddr) -> Result<(), Duration> {
        locked(&self.sign_ins).take(&format!("{address} {name}"), Instant::now())
    }

    /// Each asks the provider, and is remembered for a while.
    pub fn may_begin(&self, address: IpAddr) -> Result<(), Duration> {
        locked(&self.begun).take(&address.to_string(), Instant::now())
    }

    pub fn signed_in(&self, name: &str, address: IpAddr) {
        locked(&self.sign_ins).give_back(&format!("{address} {name}"), Instant::now());
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let begun = Instant::now();
        let mut buckets = Buckets::new(3.0, 0.5);
        for _ in 0..3 {
            buckets.take("a", begun).expect("there is room");
        }
        assert_eq!(buckets.take("a", begun), Err(Duration::from_secs(2)));
        buckets.take("b", begun).expect("another one's is full");
        buckets.take("a", begun + Duration::from_secs(2)).expect("one came back");
        buckets.take("a", begun + Duration::from_secs(2)).expect_err("and no more");
        buckets.give_back("a", begun + Duration::from_secs(2));
        buckets.take("a", begun + Duration::from_secs(2)).expect("it was given back");
        // However long nobody asks, it holds no more than it holds.
        let later = begun + Duration::from_secs(3600);
        assert_eq!((0..9).filter(|_| buckets.take("a", later).is_ok()).count(), 3);
    }

    #[test]
    fn many_addresses_share_what_is_left_and_take_no_more_memory() {
        let begun = Instant::now();
        let mut buckets = Buckets::new(2.0, 0.001);
        for n in 0..BUCKETS_MAX {
            buckets.take(&n.to_string(), begun).expect("the first of each");
        }
        let more = (0..100).filter(|n| buckets.take(&format!("more {n}"), begun).is_ok()).count();
        assert_eq!(more, 2, "those who are new have one bucket between them");
        assert!(buckets.all.len() <= BUCKETS_MAX + 1, "{}", buckets.all.len());
        buckets.take("7", begun).expect("who was there keeps its own");
        // When the others are full again, they are forgotten.
        buckets.take("late", begun + Duration::from_secs(100_000)).expect("there is room");
        assert!(buckets.all.len() < 10, "{}", buckets.all.len());
    }
}

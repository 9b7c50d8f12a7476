//! Tells people what waits to be told: in order for each of them, again and again with growing pauses until it is taken.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::book::{Book, Result};
use super::sink::{Sink, Text, Told};
use super::{Alert, Delivery, Routing, Severity};
use crate::alert::http;

/// Before it is tried a second time; each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// How long it is tried: somebody who comes back from a week's outage is told what was critical.
const CRITICAL_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
const OTHERS_FOR: Duration = Duration::from_secs(3 * 24 * 3600);
const ERROR_CHARS_MAX: usize = 300;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    pub delivered: usize,
    /// Not taken this time, and why; it is tried again.
    pub failed: Vec<(String, String)>,
    pub given_up: usize,
    /// What waits now.
    pub waiting: usize,
}

/// Whether everything is told, or only what is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Due,
    /// Also what is to wait until its next try.
    All,
}

impl Book {
    /// Tells what waits, for about so long.
    ///
    /// # Errors
    /// `Busy` when somebody else does it at this moment: theirs is enough.
    pub fn deliver(&self, routing: &Routing, which: Which, budget: Duration) -> Result<Delivered> {
        let _telling = self.telling()?;
        let began = Instant::now();
        let mut done = Delivered::default();
        'alerts: for alert in self.all()? {
            for delivery in next_of_each(&alert) {
                if began.elapsed() >= budget {
                    break 'alerts;
                }
                if which == Which::All || delivery.next <= Timestamp::now() {
                    self.one(routing, &alert.id, delivery, budget.saturating_sub(began.elapsed()), &mut done)?;
                }
            }
        }
        done.waiting = self.all()?.iter().map(Alert::waiting).sum();
        Ok(done)
    }

    /// All that one sink has to be told of one alert, as far as it takes it.
    fn one(&self, routing: &Routing, id: &str, first: Delivery, left: Duration, done: &mut Delivered) -> Result<()> {
        let began = Instant::now();
        let mut next = Some(first);
        while let Some(delivery) = next.take() {
            // As it is now: it may have been resolved, or told by somebody else, since it was listed.
            let Some(alert) = self.all()?.into_iter().find(|a| a.id == id) else { return Ok(()) };
            if !alert.deliveries.iter().any(|d| d.id == delivery.id && d.is_open()) {
                return Ok(());
            }
            let outcome = match routing.sink(&delivery.sink) {
                Some(sink) => send(sink, &alert, &delivery, left.saturating_sub(began.elapsed())),
                None => Err("there is no such sink in the settings any more".to_owned()),
            };
            let now = Timestamp::now();
            let changed = self.change(id, |alert| mark(alert, &delivery.id, &outcome, now))?;
            match outcome {
                Ok(()) => done.delivered += 1,
                Err(why) => {
                    let tried = changed.iter().flat_map(|a| &a.deliveries).find(|d| d.id == delivery.id);
                    done.given_up += usize::from(tried.is_some_and(|d| d.given_up));
                    done.failed.push((delivery.sink.clone(), why));
                    return Ok(());
                }
            }
            if began.elapsed() < left {
                let follows = changed.and_then(|a| next_of_each(&a).into_iter().find(|d| d.sink == delivery.sink));
                next = follows;
            }
        }
        Ok(())
    }
}

/// For each sink what comes first: nobody hears that it is over before hearing of it.
fn next_of_each(alert: &Alert) -> Vec<Delivery> {
    let mut all: Vec<Delivery> = vec![];
    for delivery in alert.deliveries.iter().filter(|d| d.is_open()) {
        if !all.iter().any(|d| d.sink == delivery.sink) {
            all.push(delivery.clone());
        }
    }
    all
}

fn send(sink: &Sink, alert: &Alert, delivery: &Delivery, left: Duration) -> Result<(), String> {
    let told = Told { alert, said: delivery.said, delivery: &delivery.id, at: Timestamp::now() };
    sink.tell(&told, sink.timeout.min(left.max(Duration::from_millis(1))))
}

fn mark(alert: &mut Alert, id: &str, outcome: &Result<(), String>, now: Timestamp) {
    let patience = if alert.finding.severity == Severity::Critical { CRITICAL_FOR } else { OTHERS_FOR };
    let Some(delivery) = alert.deliveries.iter_mut().find(|d| d.id == id) else { return };
    delivery.attempts = delivery.attempts.saturating_add(1);
    match outcome {
        Ok(()) => {
            delivery.delivered = Some(now);
            delivery.error = None;
        }
        Err(why) => {
            delivery.error = Some(why.chars().take(ERROR_CHARS_MAX).collect());
            delivery.next = now.checked_add(pause(delivery.attempts)).unwrap_or(now);
            let since = Duration::try_from(now.duration_since(delivery.created)).unwrap_or_default();
            delivery.given_up = since >= patience;
        }
    }
}

/// With chance in it, so that a thousand hosts do not come back at the same moment.
fn pause(attempts: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(PAUSE_MAX);
    let mut random = [0; 1];
    // Without chance it is as good for a single host.
    let chance = pgark_repo::crypto::fill_random(&mut random).map_or(128, |()| random[0]);
    whole.mul_f64(0.75 + f64::from(chance) / 510.0)
}

/// The call that somebody misses when it does not come.
pub fn ping(url: &Text, timeout: Duration) -> Result<(), String> {
    http::get(&url()?, timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_an_hour_and_are_not_all_the_same() {
        for (attempts, least, most) in
            [(1, 11, 19), (2, 22, 38), (5, 180, 301), (20, 2700, 4501), (u32::MAX, 2700, 4501)]
        {
            let seconds = pause(attempts).as_secs();
            assert!((least..=most).contains(&seconds), "{attempts}: {seconds}");
        }
        let all: std::collections::BTreeSet<_> = (0..64).map(|_| pause(9)).collect();
        assert!(all.len() > 1);
    }
}

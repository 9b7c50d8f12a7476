//! Sign-ins that have begun: from the button to the return from the provider.
//!
//! Invariant: each is used once, by the browser that began it, and soon. There are so many and no more; the oldest go.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::PkceCodeVerifier;

use super::OidcError;

/// People look for a second factor meanwhile.
pub const FLOW_LASTS: Duration = Duration::from_secs(10 * 60);
const FLOWS_MAX: usize = 1000;
const SECRET_BYTES: usize = 32;

/// One that has begun.
pub struct Flow {
    /// The hash of what the browser keeps.
    pub browser: blake3::Hash,
    pub nonce: String,
    pub verifier: PkceCodeVerifier,
    pub next: String,
    /// By whom somebody was to be signed in.
    pub issuer: String,
    pub client_id: String,
}

struct Kept {
    state: blake3::Hash,
    begun: Instant,
    flow: Flow,
}

/// In the order in which they began.
#[derive(Default)]
pub struct Flows(Mutex<VecDeque<Kept>>);

impl Flows {
    pub fn add(&self, state: &str, flow: Flow, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while all.len() >= FLOWS_MAX || all.front().is_some_and(|kept| is_over(kept, now)) {
            all.pop_front();
        }
        all.push_back(Kept { state: hash(state), begun: now, flow });
    }

    /// It is gone then, whatever becomes of it.
    pub fn take(&self, state: &str, now: Instant) -> Option<Flow> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = hash(state);
        let at = all.iter().position(|kept| kept.state == state)?;
        all.remove(at).filter(|kept| !is_over(kept, now)).map(|kept| kept.flow)
    }
}

fn is_over(kept: &Kept, now: Instant) -> bool {
    now.duration_since(kept.begun) >= FLOW_LASTS
}

/// Compared without telling by the time it takes.
pub fn hash(secret: &str) -> blake3::Hash {
    blake3::hash(secret.as_bytes())
}

/// # Errors
/// When the system has no random bytes.
pub fn secret() -> Result<String, OidcError> {
    let mut bytes = [0_u8; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|e| OidcError::Provider(format!("no random bytes: {e}")))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(next: &str) -> Flow {
        Flow {
            browser: hash("browser"),
            nonce: "n".into(),
            verifier: PkceCodeVerifier::new("v".into()),
            next: next.into(),
            issuer: "i".into(),
            client_id: "c".into(),
        }
    }

    #[test]
    fn what_has_begun_is_used_once_soon_and_not_without_number() {
        let (flows, begun) = (Flows::default(), Instant::now());
        let next = |state: &str, at: Instant| flows.take(state, at).map(|flow| flow.next);
        flows.add("one", flow("/one"), begun);
        flows.add("two", flow("/two"), begun);
        assert_eq!(next("other", begun), None);
        assert_eq!(next("one", begun).as_deref(), Some("/one"));
        assert_eq!(next("one", begun), None, "once");
        assert_eq!(next("two", begun + FLOW_LASTS), None, "soon");
        for n in 0..=FLOWS_MAX {
            flows.add(&n.to_string(), flow("/"), begun);
        }
        assert_eq!(next("0", begun), None, "the oldest went");
        assert_eq!(next("1", begun).as_deref(), Some("/"));
        flows.add("late", flow("/late"), begun + FLOW_LASTS);
        assert_eq!(flows.0.lock().expect("unlocked").len(), 1, "those that are over are forgotten");
    }
}

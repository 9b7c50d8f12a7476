//! What all who see every cluster see alike: made once, for as long as neither what is known nor the settings change, and no
//! longer than a second, since it says how long ago things were.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use maud::Markup;

use super::{Api, Problem};
use crate::serve::Config;

/// To be cloned freely.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Option<One>>>);

struct One {
    second: i64,
    version: u64,
    config: Arc<Config>,
    markup: Markup,
}

impl Kept {
    pub fn or_made(
        &self,
        api: &Api,
        now: Timestamp,
        make: impl FnOnce() -> Result<Markup, Problem>,
    ) -> Result<Markup, Problem> {
        // Held while it is made: who comes meanwhile would make the same.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it is made: what comes in meanwhile makes it old.
        let (second, version, config) = (now.as_second(), api.state.version(), api.config.get());
        let same = |one: &&One| one.second == second && one.version == version && Arc::ptr_eq(&one.config, &config);
        if let Some(one) = kept.as_ref().filter(same) {
            return Ok(one.markup.clone());
        }
        let markup = make()?;
        *kept = Some(One { second, version, config, markup: markup.clone() });
        Ok(markup)
    }
}

//! Parity: beside an object that has no second copy, a small object from which damaged sectors of it can be made again.
//! For stores without redundancy of their own.
//!
//! Invariant: parity knows bytes and no meaning. What is made from it is as untrusted as what lies in the store: it counts
//! only when the object's own seals and fingerprints agree. That an object has no parity is never an error.

pub mod check;
mod code;
mod encode;
pub mod heal;
pub mod healing;
mod index;
pub mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use check::{ParityState, check, protect};
pub use encode::ParityEncoder;
pub use heal::{HealError, Healed, heal};
pub use healing::HealingStore;
pub use store::ParityStore;

/// How many bytes of parity there are for a hundred of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    pub const MAX: u8 = 20;

    /// None outside 1 to 20: more is better kept as a second repository.
    pub fn new(percent: u8) -> Option<Self> {
        (1..=Self::MAX).contains(&percent).then_some(Percent(percent))
    }

    pub fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().strip_suffix('%').and_then(|n| n.trim_end().parse().ok());
        number
            .and_then(Percent::new)
            .ok_or_else(|| format!("'{text}' is not a share such as \"5%\", from 1% to {}%", Self::MAX))
    }
}

impl serde::Serialize for Percent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Percent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

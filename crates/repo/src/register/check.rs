//! Whether every copy of a register can be read, and how one that cannot is made whole out of the other.

use std::time::Duration;

use super::Register;
use crate::error::{RepoError, Result};
use crate::store::StoreError;

/// Something a check found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterProblem {
    pub object: String,
    pub what: String,
    pub missing: bool,
    /// Another copy says what this one should.
    pub has_other: bool,
}

/// A check that finds something looks again before it says so.
const CHECK_RETRIES: u32 = 50;
const CHECK_PAUSE: Duration = Duration::from_millis(100);

impl Register {
    /// Every copy of the newest version and of the one before, opened. Empty when all is well.
    pub fn check(&self) -> Result<Vec<RegisterProblem>> {
        self.check_with(&mut |_| Ok(()))
    }

    /// As `check`, and each value must satisfy `open` too.
    pub fn check_with(&self, open: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Vec<RegisterProblem>> {
        let mut before = None;
        for attempt in 0..CHECK_RETRIES {
            if attempt > 0 {
                std::thread::sleep(CHECK_PAUSE);
            }
            let found = self.look_through(open)?;
            // What a writer was just changing looks different the next time.
            if found.1.is_empty() || before.as_ref() == Some(&found) {
                return Ok(found.1);
            }
            before = Some(found);
        }
        Err(self.too_busy())
    }

    /// Makes every copy of the newest version and of the one before what the other copy says. Returns the objects that
    /// were missing or damaged and are not any more. Where the one before is damaged in every copy that is left, the newest
    /// is written once more and becomes the one before itself. What else no copy says is left as it is: where every copy is gone,
    /// somebody may have put an older state back.
    pub fn mend(&self, open: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Vec<String>> {
        let mut mended = vec![];
        let Some(newest) = self.newest_number()? else { return Ok(mended) };
        let mut is_before_hurt = false;
        for number in newest.saturating_sub(1).max(1)..=newest {
            let version = match self.read_number(number, open) {
                Ok((version, ())) => version,
                Err(_) => {
                    is_before_hurt = number < newest && self.is_there(number)?;
                    continue;
                }
            };
            for dir in self.dirs() {
                let name = Self::name(&dir, number)?;
                match self.read_copy(&name, number).and_then(|v| open(&v.value)) {
                    Ok(()) => continue,
                    Err(e) if e.is_not_found() => {}
                    Err(e) if e.is_damage() || matches!(e, RepoError::WrongKey { .. }) => {
                        match self.store.delete(&name) {
                            Ok(()) | Err(StoreError::NotFound { .. }) => {}
                            Err(e) => return Err(e.into()),
                        }
                    }
                    Err(e) => return Err(e),
                }
                self.put_copy(&dir, &version)?;
                if self.read_copy(&name, number)? != version {
                    return Err(RepoError::corrupt(&name, "it reads differently from what was written"));
                }
                mended.push(name.to_string());
            }
        }
        if is_before_hurt && self.read_number(newest, open).is_ok() {
            self.update_with(open, |current, _| Ok(current.map(|v| v.value.clone())))?;
        }
        // What a change has passed meanwhile must not stay because we put it back.
        if !mended.is_empty() && self.newest_number()? != Some(newest) {
            self.prune()?;
        }
        Ok(mended)
    }

    fn is_there(&self, number: u64) -> Result<bool> {
        let there = |dir: &String| Ok(self.numbers(dir)?.contains(&number));
        self.dirs().iter().map(there).try_fold(false, |any, one: Result<bool>| Ok(any | one?))
    }

    /// The newest number, and what is wrong with it and the one before.
    fn look_through(&self, open: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<(u64, Vec<RegisterProblem>)> {
        let mut problems = vec![];
        let Some(newest) = self.newest_number()? else { return Ok((0, problems)) };
        let unfinished = self.is_unfinished(newest)?;
        for (copy, dir) in self.dirs().iter().enumerate() {
            for number in newest.saturating_sub(1).max(1)..=newest {
                let name = Self::name(dir, number)?;
                match self.read_copy(&name, number).and_then(|v| open(&v.value)) {
                    Ok(()) => {}
                    Err(e) if e.is_not_found() && copy > 0 && number == newest && unfinished => {}
                    Err(e) if e.is_damage() || matches!(e, RepoError::WrongKey { .. }) => {
                        let has_other = self.read_number(number, open).is_ok();
                        let what = match has_other {
                            true => format!("{e}; its other copy is whole, and 'pgark verify --repair' writes it anew"),
                            false => e.to_string(),
                        };
                        let missing = e.is_not_found();
                        problems.push(RegisterProblem { object: name.to_string(), what, missing, has_other })
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok((newest, problems))
    }

    /// Whether whoever created the newest version has not come to the end: then the version before the one it
    /// replaced is still there. The next change puts the missing copy in place.
    fn is_unfinished(&self, newest: u64) -> Result<bool> {
        let Some(old) = newest.checked_sub(2).filter(|n| *n > 0) else { return Ok(false) };
        Ok(self.numbers(&self.dir)?.contains(&old))
    }
}

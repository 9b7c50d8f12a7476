//! The administrators' own checks.

use super::ValidateOptions;
use super::report::{Check, CheckKind, Tally};
use crate::cluster::{ConnectOptions, Question, Questioner, Reply};
use crate::ctx::Ctx;
use crate::error::Result;
use crate::truth::Header;

/// What is shown of an answer that was not the expected one.
const SHOWN_CHARS_MAX: usize = 200;

/// A question with the answer it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCheck {
    pub name: String,
    /// None: any database.
    pub database: Option<String>,
    pub sql: String,
    pub expect: String,
    /// Schemas to look for names in, after `pg_catalog`.
    pub schemas: Vec<String>,
}

/// Checks of the database by its name now, or by that of the one it was made from.
pub(crate) fn ask_all(
    connect: &ConnectOptions,
    options: &ValidateOptions,
    against: Option<&Header>,
    ctx: &Ctx,
) -> Result<Vec<Check>> {
    let is_it = |name: &str| {
        name == options.database
            || options.made_from.as_deref() == Some(name)
            || against.is_some_and(|header| header.database.0 == name.as_bytes())
    };
    let meant: Vec<&UserCheck> = options.checks.iter().filter(|c| c.database.as_deref().is_none_or(is_it)).collect();
    if meant.is_empty() {
        return Ok(vec![]);
    }
    if options.expect.scope.is_some() {
        let unasked = |check: &&UserCheck| {
            let mut tally = Tally::new(&check.name, CheckKind::User);
            tally.left_out("only a part of the database was restored");
            tally.finish()
        };
        return Ok(meant.iter().map(unasked).collect());
    }
    let questioner = match Questioner::find(connect, &options.database, &options.ask_as)? {
        Ok(questioner) => questioner,
        Err(reason) => {
            let unasked = |check: &&UserCheck| {
                let mut tally = Tally::new(&check.name, CheckKind::User);
                tally.not_checked(&reason);
                tally.finish()
            };
            return Ok(meant.iter().map(unasked).collect());
        }
    };
    let mut checks = vec![];
    for check in meant {
        ctx.check_cancelled()?;
        let question =
            Question { sql: check.sql.clone(), schemas: check.schemas.clone(), within: options.check_within };
        checks.push(judge(check, questioner.ask(&question)?));
    }
    questioner.finish()?;
    Ok(checks)
}

fn judge(check: &UserCheck, reply: Reply) -> Check {
    let mut tally = Tally::new(&check.name, CheckKind::User);
    match reply {
        Reply::Value(Some(value)) if value == check.expect => tally.ok(),
        Reply::Value(Some(value)) => {
            tally.failed(format!("the answer is '{}', expected is '{}'", cut(&value), cut(&check.expect)));
        }
        Reply::Value(None) => tally.failed(format!("the answer is NULL, expected is '{}'", cut(&check.expect))),
        Reply::Shape(shape) => tally.failed(format!("the answer is {shape}, expected is one value")),
        Reply::Error(error) => tally.failed(error),
    }
    tally.finish()
}

fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

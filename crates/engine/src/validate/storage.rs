//! What amcheck and pg_visibility find, as checks.

use std::collections::BTreeMap;

use super::ValidateOptions;
use super::report::{Check, CheckKind, Tally};
use crate::cluster::{ConnectOptions, Deadline, Examined, Examiners, Finding, examine as examine_all};
use crate::ctx::Ctx;
use crate::error::Result;

fn words(examined: Examined) -> &'static str {
    match examined {
        Examined::Indexes => "B-tree indexes agree with their tables (amcheck)",
        Examined::Heaps => "tables are whole (amcheck)",
        Examined::VisibilityMaps => "visibility maps are right (pg_visibility)",
        Examined::Rows => "indexes lead to as many rows as tables have",
    }
}

pub(super) fn examine(connect: &ConnectOptions, options: &ValidateOptions, ctx: &Ctx) -> Result<Vec<Check>> {
    let mut tallies: BTreeMap<Examined, Tally> =
        Examined::ALL.into_iter().map(|e| (e, Tally::new(words(e), CheckKind::Storage))).collect();
    if options.examiners == Examiners::Off {
        tallies.values_mut().for_each(|tally| tally.left_out(options.unexamined));
    } else {
        ctx.progress.note("reading tables and indexes with amcheck and pg_visibility");
    }
    let deadline = Deadline::after(options.within);
    let told =
        examine_all(connect, &options.database, options.examiners, ctx.cancel_flag(), deadline, |examined, finding| {
            let Some(tally) = tallies.get_mut(&examined) else { return };
            match finding {
                Finding::Sound => tally.ok(),
                Finding::Damaged { relation, problem } => tally.failed(format!("{relation}: {problem}")),
                Finding::Unread { relation, reason } => tally.not_checked(&format!("{relation}: {reason}")),
                Finding::Left { relation, reason } => tally.left_out(&format!("{relation}: {reason}")),
                Finding::Unavailable { reason } | Finding::Lenient { reason } => tally.not_checked(&reason),
            }
        });
    if told.is_err() {
        ctx.check_cancelled()?;
    }
    told?;
    Ok(tallies.into_values().map(Tally::finish).collect())
}

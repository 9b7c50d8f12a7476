//! Reports that the copy lacks.

use std::collections::BTreeSet;

use pgark_repo::report::{self, ReportId, StoredReport};
use pgark_repo::{Repository, names};

use super::{ReplicateOptions, ReplicateReport, is_about_one, objects};
use crate::ctx::Ctx;
use crate::error::Result;

pub fn missing(from: &Repository, to: Option<&Repository>, options: &ReplicateOptions) -> Result<Vec<ReportId>> {
    let there: BTreeSet<ReportId> = match to {
        Some(to) => report::list(to, &options.cluster)?.into_iter().collect(),
        None => BTreeSet::new(),
    };
    Ok(report::list(from, &options.cluster)?.into_iter().filter(|id| !there.contains(id)).collect())
}

pub fn copy(
    from: &Repository,
    to: &Repository,
    options: &ReplicateOptions,
    wanted: &[ReportId],
    ctx: &Ctx,
    report: &mut ReplicateReport,
) -> Result<()> {
    for id in wanted {
        ctx.check_cancelled()?;
        let name = names::report(&options.cluster, id);
        let copied = StoredReport::load(from, &options.cluster, id)
            .map_err(Into::into)
            .and_then(|_| objects::print_of(from, &name))
            .and_then(|print| objects::copy(from, to, &name, &print, ctx));
        match copied {
            Ok(bytes) => {
                report.objects += u64::from(bytes > 0);
                report.bytes += bytes;
                report.reports += u64::from(bytes > 0);
            }
            Err(e) if is_about_one(&e) => report.failed.push((name.to_string(), e.to_string())),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

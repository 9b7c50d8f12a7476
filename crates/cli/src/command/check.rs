//! `check`, also as a Nagios plug-in.

use clap::Args;
use pgark_engine::check::{CheckOptions, Finding, Verdict, check};

use super::Outcome;
use super::context::{CONNECT_TIMEOUT, Context, engine_failure};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// One line and the exit codes of a Nagios plug-in: 0 ok, 1 warning, 2 critical, 3 unknown
    #[arg(long)]
    nagios: bool,
    /// How long WAL may take to arrive
    #[arg(long, value_name = "TIME", default_value = "60s")]
    archive_timeout: Span,
    /// Do not switch WAL to see it arrive
    #[arg(long)]
    no_switch: bool,
}

pub fn run(args: CheckArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let repo = context.open_repository(&context.repo_settings()?)?;
    pgark_repo::catalog::CatalogStore::new(&repo, &context.cluster()?).read().map_err(|e| engine_failure(e.into()))?;
    super::archive::drain_spool(&context, &repo)?;
    let options = CheckOptions {
        spool: super::archive::spool_of(&context)?,
        cluster: context.cluster()?,
        pgdata: context.cluster_settings()?.pgdata.clone(),
        connect: context.connect_options()?,
        connect_timeout: CONNECT_TIMEOUT,
        archive_timeout: args.archive_timeout.0,
        switch: !args.no_switch,
    };
    let findings = check(&options, &repo, &context.ctx);
    let worst = findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::NotChecked);
    if args.nagios {
        output::text(&nagios(&findings, worst))?;
        return Ok(match worst {
            Verdict::Ok => Exit::Done,
            Verdict::Warning => Exit::Failed,
            Verdict::Failed => Exit::Usage,
            Verdict::NotChecked => Exit::Warnings,
        });
    }
    let document = serde_json::json!({
        "schema": SCHEMA,
        "ok": worst == Verdict::Ok,
        "checks": findings.iter().map(|f| serde_json::json!({"name": f.name, "verdict": word(f.verdict), "message": f.message})).collect::<Vec<_>>(),
    });
    output::result(global.form(), &document, || text(&findings))?;
    Ok(match worst {
        Verdict::Ok => Exit::Done,
        Verdict::Warning | Verdict::NotChecked => Exit::Warnings,
        Verdict::Failed => Exit::Failed,
    })
}

fn word(v: Verdict) -> &'static str {
    match v {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::NotChecked => "not checked",
        Verdict::Failed => "FAILED",
    }
}

fn text(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("{:<12} {:<20} {}\n", word(f.verdict), f.name, f.message)).collect()
}

fn nagios(findings: &[Finding], worst: Verdict) -> String {
    let state = match worst {
        Verdict::Ok => "OK",
        Verdict::Warning => "WARNING",
        Verdict::Failed => "CRITICAL",
        Verdict::NotChecked => "UNKNOWN",
    };
    let bad: Vec<String> =
        findings.iter().filter(|f| f.verdict != Verdict::Ok).map(|f| format!("{}: {}", f.name, f.message)).collect();
    let what = if bad.is_empty() { format!("{} checks passed", findings.len()) } else { bad.join("; ") };
    format!("PGARK {state} - {what}\n")
}

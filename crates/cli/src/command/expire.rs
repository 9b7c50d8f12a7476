//! `expire`: what retention gives up, why the rest stays, and the removal.

use std::time::Duration;

use clap::Args;
use jiff::tz::TimeZone;
use pgark_engine::expire::policy::Policy;
use pgark_engine::expire::{self, ExpireOptions, ExpirePlan, ExpireReport, GRACE, Gap};
use pgark_engine::several::Member;
use serde_json::{Value, json};

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use super::expire_text::{self, document};
use super::locks::{self, Locked};
use crate::args::{ConfirmArgs, DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;
use crate::settings::RepoSettings;
use crate::settings::schema::{Kind, RetentionRules};
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// Keep the last N backups
    #[arg(long, value_name = "N", visible_alias = "keep-full", allow_hyphen_values = true)]
    keep_last: Option<Count>,
    /// Keep every backup of the last N days
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    keep_days: Option<Count>,
    /// Keep the last backup of each of the last N days that have one
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    keep_daily: Option<Count>,
    /// Keep the last backup of each of the last N weeks that have one
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    keep_weekly: Option<Count>,
    /// Keep the last (with --keep-weekly: the last weekly) backup of each of the last N months that have one
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    keep_monthly: Option<Count>,
    /// Keep the last (with --keep-monthly: the last monthly) backup of each of the last N years that have one
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    keep_yearly: Option<Count>,
    /// Keep what recovery to every moment of this long needs, and every backup in it, such as 7d
    #[arg(long, value_name = "TIME")]
    window: Option<Span>,
    /// Keep the WAL, and the backup, that recovery to every moment of this long needs, such as 7d
    #[arg(long, value_name = "TIME")]
    wal: Option<Span>,
    /// Never more backups than this, oldest go first, but for what is protected
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_backups: Option<Count>,
    /// Never fewer good backups than this
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    min_backups: Option<Count>,
    /// Whose days, weeks, months and years count, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// How long what has expired stays on the disk for recoveries under way [default: 1d]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    gc_grace: Option<Span>,
    /// The clock of this machine is right and the time has really passed, although other clocks contradict it or nothing
    /// confirms it. Put on record; never for a schedule
    #[arg(long)]
    accept_gap: bool,
    /// Backups of this kind alone, and of physical ones their WAL. Without it every kind, by its own rules; then the rules
    /// given here are for physical backups
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Say of each backup why it stays, when it goes, and what is lost then; change nothing
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    dry_run: DryRunArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// Of several repositories each by itself, in turn: what one refuses holds up no other.
pub fn run(args: ExpireArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let options = options(&args, &context)?;
    let all = context.settings.selected_repos()?;
    let expiry = Expiry { args: &args, global, context: &context, options: &options, several: all.len() > 1 };
    let (mut documents, mut warned, mut failed): (Vec<Value>, bool, Option<Failure>) = (vec![], false, None);
    for settings in &all {
        match expiry.run(settings) {
            Ok((exit, document)) => {
                warned |= exit != Exit::Done;
                documents.push(document);
            }
            Err(failure) if !expiry.several || matches!(failure.exit, Exit::Cancelled | Exit::Usage) => {
                return Err(failure);
            }
            Err(failure) => {
                output::warning(&format!("repository {}: {}: {}", settings.name, failure.code, failure.message));
                documents.push(json!({"error": {"code": failure.code, "message": failure.message}}));
                failed.get_or_insert(failure);
            }
        }
    }
    if global.json {
        let named = all.iter().zip(&mut documents).map(|(settings, document)| {
            document["name"] = json!(settings.name);
            document.take()
        });
        let document = match expiry.several {
            true => {
                json!({"schema": SCHEMA, "cluster": options.cluster.to_string(), "repositories": named.collect::<Vec<_>>()})
            }
            false => documents.remove(0),
        };
        output::result(global.form(), &document, String::new)?;
        return Ok(failed.map_or(if warned { Exit::Warnings } else { Exit::Done }, |failure| failure.exit));
    }
    match failed {
        Some(failure) => Err(failure),
        None if warned => Ok(Exit::Warnings),
        None => Ok(Exit::Done),
    }
}

fn options(args: &ExpireArgs, context: &Context) -> Result<ExpireOptions, Failure> {
    // The flags are for one kind.
    let named = args.kind.unwrap_or(Kind::Physical);
    let configured = |kind: Kind| Ok(context.cluster_settings()?.retention.rules(kind));
    let rules = args.rules(configured(named)?)?;
    let rules_of = |kind: Kind| if kind == named { Ok(rules.clone()) } else { configured(kind) };
    let others = [Kind::Logical, Kind::Files, Kind::System].into_iter();
    let others = others.map(|kind| Ok((kind.into(), policy(&rules_of(kind)?)?)));
    Ok(ExpireOptions {
        cluster: context.cluster()?,
        policy: policy(&rules_of(Kind::Physical)?)?,
        others: others.collect::<Result<_, Failure>>()?,
        only: args.kind.map(Into::into),
        grace: rules.gc_grace.map_or(GRACE, |s| s.0),
        hurry: args.gc_grace.map(|s| s.0),
        gap: if args.accept_gap { Gap::Accept } else { Gap::Refuse },
    })
}

struct Expiry<'a> {
    args: &'a ExpireArgs,
    global: &'a GlobalArgs,
    context: &'a Context,
    options: &'a ExpireOptions,
    several: bool,
}

impl Expiry<'_> {
    /// In one repository. Text is printed, the document is for the end.
    fn run(&self, settings: &RepoSettings) -> Result<(Exit, Value), Failure> {
        let Expiry { args, global, context, options, .. } = self;
        let repo = context.open_repository(settings)?;
        let mut plan = expire::plan(options, &repo, &context.ctx).map_err(engine_failure)?;
        let only_shown = args.dry_run.dry_run || args.explain;
        if only_shown {
            let asked = expire::ask_the_store(&mut plan, &options.cluster, options.gap, &repo, &context.ctx);
            asked.map_err(engine_failure)?;
            return self.show(settings, &plan, None, &[]);
        }
        let member = Member { name: settings.name.clone(), repo: repo.clone(), required: false };
        let extend = || locks::extend_all(std::slice::from_ref(&member), &options.cluster, &context.ctx);
        if !plan.changes() {
            return self.show(settings, &plan, None, &extend());
        }
        if !args.confirm.yes && !global.json {
            // What is asked about is shown first.
            eprint!(
                "{}{}",
                self.heading(settings),
                expire_text::text(options.cluster.as_str(), &plan, None, &[], false)
            );
        }
        let question = question(&plan);
        let question = if self.several { format!("in repository {}, {question}", settings.name) } else { question };
        confirm(&args.confirm, &question)?;
        let report = expire::run(options, &plan, &repo, &context.ctx).map_err(engine_failure)?;
        self.show(settings, &plan, Some(&report), &extend())
    }

    fn show(
        &self,
        settings: &RepoSettings,
        plan: &ExpirePlan,
        report: Option<&ExpireReport>,
        locked: &[Locked],
    ) -> Result<(Exit, Value), Failure> {
        let cluster = self.options.cluster.as_str();
        let only_shown = self.args.dry_run.dry_run || self.args.explain;
        if self.global.says_nothing() && !only_shown {
            warn(plan, locked);
        } else if !self.global.json {
            let text = expire_text::text(cluster, plan, report, locked, self.args.explain);
            output::text(&(self.heading(settings) + &text))?;
        }
        Ok((exit(plan, locked), document(cluster, plan, report, locked)))
    }

    fn heading(&self, settings: &RepoSettings) -> String {
        if self.several { format!("repository {}:\n", settings.name) } else { String::new() }
    }
}

fn question(plan: &ExpirePlan) -> String {
    let accepts = plan.accepts.as_ref().map_or_else(String::new, |d| {
        format!("take the clock of this machine for right ({}), ", pgark_engine::clock::describe(d))
    });
    let also = if plan.earlier.is_due() { ", and remove what expired earlier" } else { "" };
    format!("{accepts}expire {} backups and {} WAL segments{also}", plan.going().count(), plan.segments_going())
}

fn warn(plan: &ExpirePlan, locked: &[Locked]) {
    plan.notes.iter().for_each(|note| output::warning(note));
    locked.iter().flat_map(Locked::warnings).for_each(|warning| output::warning(&warning));
}

fn exit(plan: &ExpirePlan, locked: &[Locked]) -> Exit {
    if plan.notes.is_empty() && locked.iter().all(Locked::is_fine) { Exit::Done } else { Exit::Warnings }
}

impl ExpireArgs {
    /// Each flag over the setting of the same name.
    fn rules(&self, configured: RetentionRules) -> Result<RetentionRules, Failure> {
        Ok(RetentionRules {
            keep_last: number("--keep-last", self.keep_last.as_ref())?.or(configured.keep_last),
            keep_days: number("--keep-days", self.keep_days.as_ref())?.or(configured.keep_days),
            keep_daily: number("--keep-daily", self.keep_daily.as_ref())?.or(configured.keep_daily),
            keep_weekly: number("--keep-weekly", self.keep_weekly.as_ref())?.or(configured.keep_weekly),
            keep_monthly: number("--keep-monthly", self.keep_monthly.as_ref())?.or(configured.keep_monthly),
            keep_yearly: number("--keep-yearly", self.keep_yearly.as_ref())?.or(configured.keep_yearly),
            window: self.window.or(configured.window),
            wal: self.wal.or(configured.wal),
            max_backups: number("--max-backups", self.max_backups.as_ref())?.or(configured.max_backups),
            min_backups: number("--min-backups", self.min_backups.as_ref())?.or(configured.min_backups),
            gc_grace: self.gc_grace.or(configured.gc_grace),
            time_zone: self.time_zone.clone().or(configured.time_zone),
        })
    }
}

/// A number as it was given, so that what is wrong with it can be said.
type Count = String;

fn number(flag: &str, given: Option<&Count>) -> Result<Option<u32>, Failure> {
    let wrong = |text: &Count| {
        Failure::usage("E-EXPIRE-NUMBER", format!("{flag} {}: not a number of 0 or more", text.escape_debug()))
            .hint(format!("such as {flag} 7; 0 is no rule. At most {}", u32::MAX))
    };
    given.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

fn policy(rules: &RetentionRules) -> Result<Policy, Failure> {
    if rules.max_backups == Some(0) {
        return Err(Failure::usage("E-EXPIRE-MAX", "a maximum of 0 backups would keep none")
            .hint("leave it out for no maximum"));
    }
    let zone = rules.time_zone.as_deref().unwrap_or("UTC");
    let time_zone = TimeZone::get(zone).map_err(|_| {
        Failure::usage("E-TIME-ZONE", format!("'{}' is no time zone", zone.escape_debug()))
            .hint("names are those of the IANA database, Europe/Berlin")
    })?;
    // A span of nothing is no rule, as a number of 0 is none.
    let span = |s: Option<Span>| s.map(|s| s.0).filter(|d| *d > Duration::ZERO);
    Ok(Policy {
        keep_last: rules.keep_last.unwrap_or(0),
        keep_days: rules.keep_days.unwrap_or(0),
        keep_daily: rules.keep_daily.unwrap_or(0),
        keep_weekly: rules.keep_weekly.unwrap_or(0),
        keep_monthly: rules.keep_monthly.unwrap_or(0),
        keep_yearly: rules.keep_yearly.unwrap_or(0),
        window: span(rules.window),
        wal: span(rules.wal),
        min_backups: rules.min_backups.unwrap_or(0),
        max_backups: rules.max_backups,
        time_zone,
    })
}

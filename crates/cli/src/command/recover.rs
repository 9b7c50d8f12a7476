//! `recover`: settings to steps, the journal, what is said.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use pgark_dr::recover::book::{self, Found};
use pgark_dr::recover::forecast;
use pgark_dr::recover::logical::{self, VALIDATION};
use pgark_dr::recover::report::Report;
use pgark_dr::recover::{Aim, Ended, Machine, Notify, Opening, Planned, Recovery, State, Step, Wish, physical, steps};
use pgark_engine::error::EngineError;
use pgark_engine::logical::restore as dumps;
use pgark_engine::restore::ReadFrom;
use pgark_engine::sources::Sources;
use pgark_repo::Repository;
use serde::Serialize;

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use super::delete::parse_id;
use super::readers::Readers;
use super::recover_opening::{Asked, opening, who};
use super::recover_text::{PlanDocument, plan_text, text};
use super::target::parse_moment;
use super::{recover_logical, recover_physical};
use crate::args::{ConfirmArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, Form};
use crate::secret::SECRET_VARIABLES;
use crate::settings::recover::{Asking, Recover};
use crate::settings::schema::Kind;

pub const RESTORE_WITHIN: Duration = Duration::from_secs(24 * 3600);
const NOTIFY_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// A backup's id; 'latest' or nothing for the newest one that can be used
    id: Option<String>,
    /// Print the steps, with the time that each is likely to take, and change nothing
    #[arg(long, alias = "dry-run")]
    plan: bool,
    /// Go on with a recovery that was cut off
    #[arg(long, conflicts_with_all = ["id", "plan", "abandon"])]
    resume: bool,
    /// Give up a recovery that was cut off: what can be is taken back, nothing is started
    #[arg(long, conflicts_with_all = ["id", "plan"])]
    abandon: bool,
    /// When the incident was declared: the recovery time is measured from here [default: now]
    #[arg(long, value_name = "TIME", alias = "declared-at", conflicts_with_all = ["resume", "abandon"])]
    declared: Option<String>,
    /// Why, for the report
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["resume", "abandon"])]
    reason: Option<String>,
    /// Do not back up what is replaced; it is kept all the same [setting: recover.safety_backup]
    #[arg(long, conflicts_with_all = ["resume", "abandon"])]
    no_safety_backup: bool,
    /// Of a cluster: recover to this moment, such as '2026-08-22 10:15:00+02'
    #[arg(long, value_name = "TIME", group = "target", conflicts_with_all = ["resume", "abandon"])]
    target_time: Option<String>,
    /// Recover to this position, such as 2/F3000028
    #[arg(long, value_name = "LSN", group = "target", conflicts_with_all = ["resume", "abandon"])]
    target_lsn: Option<String>,
    /// Recover to the end of this transaction
    #[arg(long, value_name = "XID", group = "target", conflicts_with_all = ["resume", "abandon"])]
    target_xid: Option<String>,
    /// Recover to this restore point
    #[arg(long, value_name = "NAME", group = "target", conflicts_with_all = ["resume", "abandon"])]
    target_name: Option<String>,
    /// Stop as soon as the backup is consistent
    #[arg(long, group = "target", conflicts_with_all = ["resume", "abandon"])]
    target_immediate: bool,
    /// latest, current (the backup's own) or a number [default: latest]
    #[arg(long, value_name = "TIMELINE", conflicts_with_all = ["resume", "abandon"])]
    target_timeline: Option<String>,
    /// Stop just before the target instead of just after it
    #[arg(long, conflicts_with_all = ["resume", "abandon"])]
    target_exclusive: bool,
    /// Compare a database of the recovered cluster with this file, which 'pgark truth' wrote at the target; repeatable
    #[arg(long, value_name = "FILE", conflicts_with_all = ["resume", "abandon"])]
    truth: Vec<PathBuf>,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

#[derive(Serialize)]
struct RecoverDocument<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<serde_json::Value>,
    #[serde(flatten)]
    report: &'a Report,
    /// Three files of this name, with .json, .md and .html.
    report_file: Option<String>,
    /// Under which the repository has it.
    stored: Option<String>,
}

/// What steps are made of.
pub struct Ground<'a> {
    pub context: &'a Context,
    pub settings: &'a Recover,
    pub repo: Repository,
    /// Of whole clusters: all repositories, and what a recovering server needs to read them.
    pub readers: Option<(Rc<Sources>, Vec<ReadFrom>)>,
}

impl<'a> Ground<'a> {
    pub fn open(context: &'a Context, settings: &'a Recover) -> Result<Self, Failure> {
        let repo = context.open_first_with_books()?.healing();
        let readers = match settings.kind {
            Kind::Physical => {
                let readers = Readers::opened(context)?;
                let places = readers.places(context)?;
                Some((Rc::new(readers.sources), places))
            }
            _ => None,
        };
        Ok(Ground { context, settings, repo, readers })
    }
}

pub fn run(args: &RecoverArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let settings = settings(&context)?;
    context.stop_on_signals()?;
    let (cluster, dir) = (context.cluster()?, report_dir(&settings)?);
    if args.resume || args.abandon {
        return go_on(args, global, &context, &settings);
    }
    let opening = opening(&args.asked(settings.kind)?, &context, &settings)?;
    let under_way = book::look(&dir, cluster.as_str()).map_err(engine_failure)?;
    let ground = Ground::open(&context, &settings)?;
    let (recovery, opening) = recovery(&ground, opening)?;
    if args.plan {
        return plan(global, &ground, &recovery, &under_way);
    }
    // Before anybody is asked; it is looked at again when the new one begins.
    if let Found::Unfinished(other) = &under_way {
        return Err(engine_failure(book::unfinished(other)));
    }
    let what = match (&opening.database, &opening.place) {
        (Some(database), _) => format!("replace database '{}' of '{cluster}'", database.escape_debug()),
        (None, Some(place)) if settings.in_place => format!("replace the cluster '{cluster}' in {}", place.display()),
        (None, place) => {
            let place = place.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
            format!("recover '{cluster}' into {place} and point the application to it")
        }
    };
    confirm(&args.confirm, &what)?;
    let mut journal = book::begin(&dir, &opening, (context.ctx.clock)()).map_err(engine_failure)?;
    drive(global, &ground, &recovery, &mut journal, Wish::GoOn)
}

fn go_on(args: &RecoverArgs, global: &GlobalArgs, context: &Context, settings: &Recover) -> Result<Outcome, Failure> {
    let (cluster, dir) = (context.cluster()?, report_dir(settings)?);
    let (wish, question) = match args.abandon {
        true => (Wish::Abandon, "give up the recovery that was cut off"),
        false => (Wish::GoOn, "go on with the recovery that was cut off"),
    };
    if let Found::Unfinished(opening) = book::look(&dir, cluster.as_str()).map_err(engine_failure)? {
        confirm(&args.confirm, &format!("{question} ({})", opening.id))?;
    }
    let ground = Ground::open(context, settings)?;
    let (mut journal, opening) =
        book::go_on(&dir, cluster.as_str(), &who(), (context.ctx.clock)()).map_err(engine_failure)?;
    let (recovery, now) = recovery(&ground, opening.clone())?;
    steps::allow(&settings.operators, &who(), cluster.as_str()).map_err(engine_failure)?;
    let names = |all: &[Planned]| all.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let same_place =
        settings.kind != Kind::Physical || opening.place.as_ref() == Some(&recover_physical::place(context, settings)?);
    if names(&now.steps) != names(&opening.steps) || !same_place {
        let was = names(&opening.steps).join(", ");
        return Err(Failure::refused(
            "E-RECOVER-CHANGED",
            format!(
                "[clusters.{cluster}.recover] says other steps, or another place, than when the recovery began: {was}"
            ),
        )
        .hint("make the settings what they were, and go on; nothing was changed"));
    }
    drive(global, &ground, &recovery, &mut journal, wish)
}

/// Runs the steps to their end, and says how it ended.
fn drive(
    global: &GlobalArgs,
    ground: &Ground<'_>,
    recovery: &Rc<Recovery>,
    journal: &mut pgark_dr::journal::Journal,
    wish: Wish,
) -> Result<Outcome, Failure> {
    let context = ground.context;
    let last = steps::at_the_end(recovery);
    let mut machine = Machine { log: journal, ctx: &context.ctx, steps: all(ground, recovery)?, last };
    let ended = machine.run(wish).map_err(|e| interrupted(&e))?;
    let report =
        Report::made(&recovery.opening, journal.lines(), ended.failure.as_ref(), ended.state, (context.ctx.clock)());
    book::put_away(journal, &recovery.dir, &recovery.opening).map_err(engine_failure)?;
    recovery.repo.store().notices().iter().for_each(|notice| output::warning(notice));
    ground.readers.iter().flat_map(|(sources, _)| sources.notices()).for_each(|notice| output::warning(&notice));
    report.warnings.iter().for_each(|w| output::warning(w));
    let stored = journal.lines().iter().rev().find_map(|l| match &l.event {
        pgark_dr::journal::Event::Done { step, facts } if step == steps::REPORT => Some(facts.clone()),
        _ => None,
    });
    let of = |name: &str| stored.as_ref()?.get(name)?.as_str().map(str::to_owned);
    context.trail().about("recovery", &recovery.opening.id);
    if report.rto.as_ref().is_some_and(|goal| goal.missed()) {
        context.trail().about("rto", "missed");
    }
    of("stored").iter().for_each(|id| context.trail().about("report", id));
    let failed = report.failure.as_ref().map(|f| {
        let failure = Failure::new(f.code.clone(), exit(&ended, &report), f.why.clone());
        match &f.hint {
            Some(hint) => failure.hint(hint.clone()),
            None => failure,
        }
    });
    // Where every other command that fails has it, too.
    let error = failed.as_ref().and_then(|f| f.to_json().get("error").cloned());
    let document = RecoverDocument { error, report: &report, report_file: of("file"), stored: of("stored") };
    if !(global.says_nothing() && report.restored) {
        if let (Form::Text, Some(failed)) = (global.form(), &failed) {
            output::failure(Form::Text, failed);
        }
        output::result(global.form(), &document, || text(&report, document.report_file.as_deref(), &document.stored))?;
    }
    Ok(exit(&ended, &report))
}

/// The recovery can be gone on with.
fn interrupted(e: &EngineError) -> Failure {
    let exit = if matches!(e, EngineError::Cancelled) { Exit::Cancelled } else { Exit::Failed };
    let (code, why) = (e.code(), e.to_string());
    Failure::new(code, exit, format!("the recovery stopped in the middle: {why}"))
        .hint("'pgark recover --resume' goes on with it, 'pgark recover --abandon' takes back what can be")
}

fn exit(ended: &Ended, report: &Report) -> Outcome {
    // What is told of reports and notifications changes no result.
    let told = |w: &String| !w.starts_with("notify: ");
    match (&ended.failure, ended.state) {
        (None, _) if report.warnings.iter().any(told) => Exit::Warnings,
        (None, _) => Exit::Done,
        (Some(_), State::Abandoned) => Exit::Cancelled,
        (Some(f), _) if f.code == VALIDATION => Exit::ValidationFailed,
        (Some(_), State::Refused) => ended.error.as_ref().map_or(Exit::Refused, exit_of),
        (Some(_), _) => Exit::Failed,
    }
}

fn exit_of(e: &EngineError) -> Exit {
    use pgark_engine::FailureClass;
    match e.class() {
        FailureClass::Refused => Exit::Refused,
        FailureClass::NoRepository => Exit::NoRepository,
        FailureClass::Locked => Exit::Locked,
        FailureClass::WrongKey => Exit::WrongKey,
        FailureClass::Damaged => Exit::Damage,
        FailureClass::Failed | FailureClass::Cancelled => Exit::Failed,
    }
}

/// What would be restored.
struct Foreseen {
    backup: String,
    point: Option<Timestamp>,
    bytes: Option<u64>,
}

fn foreseen(ground: &Ground<'_>, recovery: &Rc<Recovery>) -> Result<Result<Foreseen, EngineError>, Failure> {
    if ground.readers.is_some() {
        let found = recover_physical::physical(ground, recovery)?.foreseen();
        return Ok(found.map(|(plan, point)| Foreseen {
            backup: plan.backup.id.to_string(),
            point: Some(point),
            bytes: Some(plan.record.totals.size_bytes),
        }));
    }
    let options = recover_logical::restore_options(ground.context, ground.settings, &recovery.opening)?;
    Ok(dumps::plan(&options, &recovery.repo, &[]).map(|plan| {
        let dump = plan.database.as_ref().map(|d| &d.dump);
        let (point, bytes) = (dump.map(|d| d.taken), dump.map(|d| d.dump_bytes));
        Foreseen { backup: plan.record.id.to_string(), point, bytes }
    }))
}

fn plan(
    global: &GlobalArgs,
    ground: &Ground<'_>,
    recovery: &Rc<Recovery>,
    under_way: &Found,
) -> Result<Outcome, Failure> {
    let (context, opening) = (ground.context, &recovery.opening);
    let found = foreseen(ground, recovery)?;
    let bytes = found.as_ref().ok().and_then(|f| f.bytes);
    let history = forecast::history(&recovery.repo, &recovery.cluster, &opening.kind, &context.ctx);
    let expected = history.map_err(engine_failure)?.expect(&opening.steps, bytes);
    let (total, unknown) = forecast::total(&expected);
    let hint = |e: &EngineError| e.hint().map(|h| format!("; {h}")).unwrap_or_default();
    let problem = found.as_ref().err().map(|e| format!("{} {e}{}", e.code(), hint(e)));
    let unfinished = match under_way {
        Found::Unfinished(other) => Some(other.id.as_str()),
        Found::None | Found::Ended(_) => None,
    };
    let document = PlanDocument {
        schema: SCHEMA,
        cluster: &opening.cluster,
        kind: &opening.kind,
        database: opening.database.as_deref(),
        place: opening.place.as_ref().map(|p| p.display().to_string()),
        backup: found.as_ref().ok().map(|f| f.backup.clone()),
        recovery_point: found.as_ref().ok().and_then(|f| f.point),
        problem,
        unfinished,
        rto_ms: opening.rto_ms,
        expected_ms: u64::try_from(total.as_millis()).unwrap_or(u64::MAX),
        complete: !unknown,
        steps: &expected,
    };
    if let Some(problem) = &document.problem {
        output::warning(&format!("it could not begin now: {problem}"));
    }
    if let Some(id) = unfinished {
        output::warning(&format!("recovery {id} has not ended: --resume goes on with it, --abandon gives it up"));
    }
    output::result(global.form(), &document, || plan_text(&document, total, unknown))?;
    Ok(if document.problem.is_some() || unfinished.is_some() { Exit::Warnings } else { Exit::Done })
}

pub fn settings(context: &Context) -> Result<Recover, Failure> {
    let cluster = context.cluster_settings()?;
    let Some(recover) = cluster.recover.clone() else {
        return Err(Failure::usage("E-RECOVER-NONE", format!("nothing says how '{}' is recovered", cluster.name))
            .hint(format!("write [clusters.{}.recover]: kind, database, report_dir and service", cluster.name)));
    };
    if !matches!(recover.kind, Kind::Logical | Kind::Physical) {
        return Err(Failure::refused("E-KIND", "guided recovery is for kind = \"logical\" and kind = \"physical\"")
            .hint("'pgark restore' restores every kind, without what is around it; nothing was changed"));
    }
    Ok(recover)
}

pub fn report_dir(settings: &Recover) -> Result<PathBuf, Failure> {
    settings.report_dir.clone().ok_or_else(|| {
        Failure::usage("E-RECOVER-DIR", "nothing says where the journal of a recovery and its report go")
            .hint("set report_dir in [clusters.NAME.recover], such as /var/log/pgark")
    })
}

impl RecoverArgs {
    fn asked(&self, kind: Kind) -> Result<Asked<'_>, Failure> {
        let aim = self.aim()?;
        if kind == Kind::Logical && (!aim.is_latest() || !self.truth.is_empty()) {
            return Err(Failure::usage(
                "E-KIND",
                "targets and --truth are for clusters: a dump is of one moment, and has its truth",
            )
            .hint("choose the dump by its id"));
        }
        if kind == Kind::Physical && self.no_safety_backup {
            return Err(Failure::usage("E-KIND", "--no-safety-backup is for databases from dumps")
                .hint("a cluster that is replaced is kept as it is"));
        }

        let backup = self.id.as_deref().filter(|id| *id != "latest");
        backup.map(parse_id).transpose()?;
        let declared = self.declared.as_deref().map(parse_moment).transpose()?;
        let reason = self.reason.as_deref();
        let absolute =
            |path: &PathBuf| std::path::absolute(path).map_err(|e| Failure::usage("E-TARGET-PATH", e.to_string()));
        let truths = self.truth.iter().map(absolute).collect::<Result<_, _>>()?;
        Ok(Asked { backup, declared, reason, no_safety_backup: self.no_safety_backup, aim, truths })
    }

    fn aim(&self) -> Result<Aim, Failure> {
        let time = self.target_time.as_deref().map(parse_moment).transpose()?;
        let aim = Aim {
            time: time.map(|t| t.to_string()),
            lsn: self.target_lsn.clone(),
            xid: self.target_xid.clone(),
            name: self.target_name.clone(),
            immediate: self.target_immediate,
            exclusive: self.target_exclusive,
            timeline: self.target_timeline.clone(),
        };
        recover_physical::target(&aim)?;
        Ok(aim)
    }
}

/// As it would be if it began now.
pub fn as_configured(ground: &Ground<'_>) -> Result<Rc<Recovery>, Failure> {
    let opening = opening(&Asked::default(), ground.context, ground.settings)?;
    Ok(recovery(ground, opening)?.0)
}

/// The recovery, and its opening with the names of its steps.
fn recovery(ground: &Ground<'_>, opening: Opening) -> Result<(Rc<Recovery>, Opening), Failure> {
    let (context, settings, repo) = (ground.context, ground.settings, ground.repo.clone());
    let (dir, cluster) = (report_dir(settings)?, context.cluster()?);
    let wrong =
        |key: &str, why: String| Failure::usage("E-CONFIG-VALUE", format!("clusters.{cluster}.recover.{key}: {why}"));
    let service = settings.service.as_ref().map(|s| s.service(&dir, cluster.as_str()));
    let asks = |key: &str, probes: &[crate::settings::recover::ProbeSection], asking| {
        probes.iter().map(|p| p.ask(asking)).collect::<Result<Vec<_>, _>>().map_err(|why| wrong(key, why))
    };
    let mut recovery = Recovery {
        service: service.transpose().map_err(|why| wrong("service", why))?,
        ready: asks("ready", &settings.ready, Asking::UntilReady)?,
        smoke: asks("smoke", &settings.smoke, Asking::Once)?,
        operators: settings.operators.clone(),
        notify: settings.notify.clone().map(|command| Notify {
            command: command.0,
            within: settings.notify_timeout.map_or(NOTIFY_WITHIN, |s| s.0),
            hidden: SECRET_VARIABLES.to_vec(),
        }),
        cluster: cluster.clone(),
        repo,
        dir,
        opening,
    };
    // The steps take what they are from the recovery, and it takes from them what they are called.
    let first = Rc::new(recovery);
    let names = |all: &[Box<dyn Step>]| {
        all.iter().map(|s| Planned { name: s.name().into(), what: s.what() }).collect::<Vec<_>>()
    };
    let steps = [names(&all(ground, &first)?), names(&steps::at_the_end(&first))].concat();
    recovery = Rc::try_unwrap(first).map_err(|_| Failure::failed("E-INTERNAL", "the steps hold on to the recovery"))?;
    recovery.opening.steps = steps;
    let opening = recovery.opening.clone();
    Ok((Rc::new(recovery), opening))
}

fn all(ground: &Ground<'_>, recovery: &Rc<Recovery>) -> Result<Vec<Box<dyn Step>>, Failure> {
    Ok(match &ground.readers {
        Some(_) => physical::all(recover_physical::physical(ground, recovery)?),
        None => logical::all(recover_logical::logical(ground.context, ground.settings, recovery)?),
    })
}

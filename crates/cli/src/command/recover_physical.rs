//! What settings make of the recovery of a whole cluster.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pgark_dr::recover::application::Until;
use pgark_dr::recover::physical::{Examination, Physical, Place};
use pgark_dr::recover::{Aim, Opening, Recovery};
use pgark_dr::service::{Kind as ServiceKind, PgCtl, Service};
use pgark_engine::cluster::{AskAs, ConnectOptions, Examiners};
use pgark_engine::restore::{self, ArchiveMode, RestoreOptions, TablespaceMap, Target, TargetAction, TimelineChoice};
use pgark_engine::scratch::server::programs_of;

use super::archive::spool_of;
use super::context::Context;
use super::delete::parse_id;
use super::recover::{Ground, RESTORE_WITHIN, report_dir};
use super::restore_table::own_program;
use super::target::{TargetText, target_of, timeline};
use super::validate::{CHECK_WITHIN, configured_checks};
use crate::failure::Failure;
use crate::secret::SECRET_VARIABLES;
use crate::settings::recover::{AmcheckSetting, Recover, ServiceControl};
use crate::settings::repoint::{Address, turns};

/// A server reads its WAL first, and writes all it has before it ends.
const SERVER_WITHIN: Duration = Duration::from_secs(300);
const SERVER_STEADY_FOR: Duration = Duration::from_secs(5);
const ARCHIVES_WITHIN: Duration = Duration::from_secs(60);
const PORT: u16 = 5432;

pub fn target(aim: &Aim) -> Result<Target, Failure> {
    target_of(&TargetText {
        time: aim.time.as_deref(),
        lsn: aim.lsn.as_deref(),
        xid: aim.xid.as_deref(),
        name: aim.name.as_deref(),
        immediate: aim.immediate,
        exclusive: aim.exclusive,
    })
}

/// The directory that it is restored into, whether it is there or not.
pub fn place(context: &Context, settings: &Recover) -> Result<PathBuf, Failure> {
    match (&settings.to, settings.in_place) {
        (Some(to), _) => Ok(followed(to)),
        (None, true) => Ok(followed(&context.pgdata()?)),
        (None, false) => Err(Failure::usage("E-RECOVER-PLACE", "nothing says where the cluster is restored to")
            .hint("set to = DIR for a new instance, or in_place = true, in [clusters.NAME.recover]")),
    }
}

/// What lies behind a link is put aside, and the link stays.
fn followed(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().collect();
    let Ok(target) = fs::read_link(&path) else { return path };
    let above = path.parent().unwrap_or(Path::new("/"));
    above.join(target).components().collect()
}

pub fn physical(ground: &Ground<'_>, recovery: &Rc<Recovery>) -> Result<Physical, Failure> {
    let (context, settings, opening) = (ground.context, ground.settings, &recovery.opening);
    let (sources, _) = ground.readers.as_ref().ok_or_else(|| Failure::failed("E-INTERNAL", "no repository is open"))?;
    let options = restore_options(ground, opening)?;
    let place = if settings.to.is_some() { Place::New } else { Place::Own };
    let old = context.connect_options()?;
    let address = address(context, settings, place)?;
    let old_data = match place {
        Place::Own => Some(options.to.clone()),
        Place::New => context.pgdata().ok().filter(|data| data.join("pg_wal").is_dir()),
    };
    let server = server(ground, &options, opening)?;
    let fence = match place {
        Place::Own => Some(server.clone()),
        Place::New => {
            let (dir, name) = (report_dir(settings)?, format!("{}-fence", opening.cluster));
            let fence = settings.fence.as_ref().map(|f| f.service(&dir, &name)).transpose();
            fence.map_err(|why| wrong(opening, "fence", &why))?
        }
    };
    let keeps = settings.service.as_ref().is_some_and(|s| s.keep_running);
    Ok(Physical {
        recovery: recovery.clone(),
        sources: sources.clone(),
        place,
        port: (place == Place::New).then_some(address.port),
        socket_dir: settings.socket_dir.clone(),
        bin: settings.pg_bin.clone(),
        restore_within: settings.restore_timeout.map_or(RESTORE_WITHIN, |s| s.0),
        replay_within: settings.recovery_timeout.map_or(RESTORE_WITHIN, |s| s.0),
        server,
        fence,
        fence_required: settings.fence_required,
        restart_old: settings.restart_old.unwrap_or(true),
        new: new_options(&old, &address, place),
        old,
        old_data,
        spool: spool_of(context)?,
        examination: examination(context, settings, opening)?,
        turns: turns(&settings.repoint, &address).map_err(|why| wrong(opening, "repoint", &why))?,
        until: if keeps { Until::Repointed } else { Until::Stopped },
        archive_within: settings.archive_timeout.map_or(ARCHIVES_WITHIN, |s| s.0),
        options,
    })
}

fn wrong(opening: &Opening, key: &str, why: &str) -> Failure {
    Failure::usage("E-CONFIG-VALUE", format!("clusters.{}.recover.{key}: {why}", opening.cluster))
}

fn restore_options(ground: &Ground<'_>, opening: &Opening) -> Result<RestoreOptions, Failure> {
    let map = |(old, new): (&String, &PathBuf)| TablespaceMap {
        given: format!("{old}={}", new.display()),
        readings: vec![(old.trim_end_matches('/').to_owned(), new.clone())],
    };
    Ok(RestoreOptions {
        cluster: ground.context.cluster()?,
        backup: opening.backup.as_ref().map(|id| parse_id(id)).transpose()?,
        to: opening.place.clone().unwrap_or_default(),
        target: target(&opening.aim)?,
        timeline: opening.aim.timeline.as_deref().map_or(Ok(TimelineChoice::Latest), timeline)?,
        // Whoever starts it before we have compared its end finds it closed.
        action: TargetAction::Pause,
        tablespace_map: ground.settings.tablespaces.iter().map(map).collect(),
        archive_mode: ArchiveMode::Held,
        delta: false,
        jobs: ground.context.jobs(),
        program: own_program()?,
        places: ground.readers.iter().flat_map(|(_, places)| places.clone()).collect(),
    })
}

/// Where the recovered cluster is reached, by the application and by us.
fn address(context: &Context, settings: &Recover, place: Place) -> Result<Address, Failure> {
    let configured = &context.cluster_settings()?.libpq;
    let of = |name: &str| configured.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let port = settings.port.or_else(|| of("port")?.parse().ok()).unwrap_or(PORT);
    let own =
        settings.address.clone().or_else(|| settings.socket_dir.as_ref().map(|d| d.to_string_lossy().into_owned()));
    let host = match place {
        Place::New => own,
        Place::Own => own.or_else(|| of("host")),
    };
    match (host, place) {
        (Some(host), _) => Ok(Address { host, port }),
        (None, Place::Own) => Ok(Address { host: "localhost".into(), port }),
        (None, Place::New) => {
            Err(Failure::usage("E-RECOVER-ADDRESS", "nothing says where the new instance is reached")
                .hint("set address or socket_dir, and port, in [clusters.NAME.recover]"))
        }
    }
}

fn new_options(old: &ConnectOptions, address: &Address, place: Place) -> ConnectOptions {
    match place {
        Place::Own => old.clone(),
        Place::New => old.without("hostaddr").with("host", &address.host).with("port", &address.port.to_string()),
    }
}

/// The service that is configured for the server, or its own program.
fn server(ground: &Ground<'_>, options: &RestoreOptions, opening: &Opening) -> Result<Service, Failure> {
    let (settings, dir) = (ground.settings, report_dir(ground.settings)?);
    let name = format!("{}-server", opening.cluster);
    let control = settings.server.clone().unwrap_or_default();
    if control.names_something() {
        let control = ServiceControl {
            stop_timeout: control.stop_timeout.or(Some(crate::settings::units::Span(SERVER_WITHIN))),
            start_timeout: control.start_timeout.or(Some(crate::settings::units::Span(SERVER_WITHIN))),
            ..control
        };
        return control.service(&dir, &name).map_err(|why| wrong(opening, "server", &why));
    }
    let start_within = control.start_timeout.map_or(SERVER_WITHIN, |s| s.0);
    let server = PgCtl {
        bin: bin(ground, options).to_string_lossy().into_owned(),
        data: options.to.to_string_lossy().into_owned(),
        log: dir.join(format!("server-{}.log", opening.cluster)).to_string_lossy().into_owned(),
        start_within,
        owner: owner(ground.context, &options.to),
    };
    Ok(Service {
        kind: ServiceKind::PgCtl(server),
        stop_within: control.stop_timeout.map_or(SERVER_WITHIN, |s| s.0),
        start_within,
        steady_for: control.steady_for.map_or(SERVER_STEADY_FOR, |s| s.0),
        force: control.force,
        ports: vec![],
        hidden: SECRET_VARIABLES.to_vec(),
        start_log: dir.join(format!("application-{name}.log")),
    })
}

/// Of the version that the backups are of. That there are none is told when it is looked whether everything is there.
fn bin(ground: &Ground<'_>, options: &RestoreOptions) -> PathBuf {
    let newest = RestoreOptions { backup: None, target: Target::Immediate, ..options.clone() };
    let version = ground.readers.as_ref().and_then(|(sources, _)| restore::plan(&newest, sources, &[]).ok());
    let found =
        version.and_then(|plan| programs_of(ground.settings.pg_bin.as_deref(), plan.record.version_num / 10_000).ok());
    found.or_else(|| ground.settings.pg_bin.clone()).unwrap_or_else(|| "/usr/bin".into())
}

/// As whom the server runs when we are root: the owner of what is there.
fn owner(context: &Context, to: &Path) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let own = context.pgdata().ok();
    let places = [Some(to), own.as_deref(), to.parent()];
    let found = places.into_iter().flatten().find_map(|p| fs::metadata(p).ok().filter(|m| m.uid() != 0));
    found.map(|m| (m.uid(), m.gid()))
}

fn examination(context: &Context, settings: &Recover, opening: &Opening) -> Result<Examination, Failure> {
    let role = context.cluster_settings()?.check_user.clone();
    Ok(Examination {
        checks: configured_checks(context)?,
        // The server is ours alone, and lets everybody in.
        ask_as: role.map_or(AskAs::Made, AskAs::Role),
        check_within: settings.check_timeout.map_or(CHECK_WITHIN, |s| s.0),
        within: settings.validate_timeout.map_or(RESTORE_WITHIN, |s| s.0),
        examiners: match settings.amcheck {
            Some(AmcheckSetting::Off) => Examiners::Off,
            Some(AmcheckSetting::Installed) => Examiners::Installed,
            Some(AmcheckSetting::Borrowed) | None => Examiners::Borrowed,
        },
        truths: opening.truths.clone(),
        jobs: context.jobs(),
    })
}

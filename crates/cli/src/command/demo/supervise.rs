//! The outer process: directory, child, signals, cleaning up.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Signal, geteuid, kill_process};

use super::place::{empty, failed};
use super::{DemoArgs, newest_server, server};
use crate::args::GlobalArgs;
use crate::command::Outcome;
use crate::failure::{Exit, Failure};

const POLL: Duration = Duration::from_millis(50);
/// The user that server packages create.
const SERVER_USER: &str = "postgres";
/// A socket's name must fit into `sun_path` (108 bytes) together with `/.s.PGSQL.65535.lock`.
const DIR_BYTES_MAX: usize = 85;

pub fn run(args: &DemoArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let bin = newest_server(args)?;
    let user = if geteuid().is_root() { Some(server_user()?) } else { None };
    let stop = stop_flag()?;
    let prepared = Prepared::make(args.dir.as_deref(), user)?;
    if !global.quiet {
        eprintln!("everything happens in {}", prepared.dir.display());
    }
    let ended = start(args, global, &prepared, &bin, user).and_then(|child| wait(child, &stop));
    let cleaned = if args.keep { Ok(()) } else { prepared.remove() };
    let outcome = outcome(ended?)?;
    cleaned.map(|()| outcome)
}

fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, flag.clone())
            .map_err(|e| Failure::failed("E-SYSTEM", format!("signals cannot be handled: {e}")))?;
    }
    Ok(flag)
}

#[derive(Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// Asked of `id`, which also knows users that are in no file.
fn server_user() -> Result<User, Failure> {
    let ask = |what: &str| -> Option<u32> {
        let answer = Command::new("id").args([what, SERVER_USER]).stdin(Stdio::null()).output().ok()?;
        String::from_utf8(answer.stdout).ok()?.trim().parse().ok()
    };
    match (ask("-u"), ask("-g")) {
        (Some(uid), Some(gid)) => Ok(User { uid, gid }),
        _ => Err(Failure::refused(
            "E-ROOT",
            format!(
                "PostgreSQL does not run as root, and there is no operating system user '{SERVER_USER}' to run it as"
            ),
        )
        .hint("run the demo as an ordinary user, or create the user with 'useradd --system postgres'")),
    }
}

/// The directory everything happens in.
struct Prepared {
    dir: PathBuf,
    /// Made by us, so removed by us; otherwise it is only emptied and given back.
    made: bool,
    before: Option<(u32, u32, u32)>,
}

impl Prepared {
    fn make(wanted: Option<&Path>, user: Option<User>) -> Result<Self, Failure> {
        let dir = match wanted {
            Some(dir) => dir.to_owned(),
            None => fresh_name()?,
        };
        let dir = std::path::absolute(&dir).map_err(|e| failed("naming", &dir, &e))?;
        check_length(&dir)?;
        let made = match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && wanted.is_some() => false,
            Err(e) => return Err(failed("creating", &dir, &e)),
        };
        let mut prepared = Prepared { dir, made, before: None };
        if let Err(failure) = prepared.hand_over(user) {
            // The first failure is the one to report; nothing but an empty directory of ours could be left.
            if prepared.made {
                let _ = fs::remove_dir(&prepared.dir);
            }
            return Err(failure);
        }
        Ok(prepared)
    }

    fn hand_over(&mut self, user: Option<User>) -> Result<(), Failure> {
        let dir = &self.dir;
        let meta = fs::symlink_metadata(dir).map_err(|e| failed("looking at", dir, &e))?;
        let empty = meta.is_dir() && fs::read_dir(dir).map_err(|e| failed("listing", dir, &e))?.next().is_none();
        if !empty {
            return Err(Failure::refused("E-DEMO-DIR", format!("{} is not an empty directory", dir.display()))
                .hint("give a directory that is absent or empty; nothing was changed"));
        }
        if !self.made {
            self.before = Some((meta.uid(), meta.gid(), meta.mode() & 0o7777));
        }
        if let Some(user) = user {
            chown(dir, Some(user.uid), Some(user.gid)).map_err(|e| failed("changing the owner of", dir, &e))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(|e| failed("changing the mode of", dir, &e))
    }

    /// The inner process has stopped its servers and emptied the directory; when it died it has not.
    fn remove(&self) -> Result<(), Failure> {
        server::stop_left_behind(&self.dir)?;
        empty(&self.dir)?;
        if self.made {
            return fs::remove_dir(&self.dir).map_err(|e| failed("removing", &self.dir, &e));
        }
        if let Some((uid, gid, mode)) = self.before {
            chown(&self.dir, Some(uid), Some(gid)).map_err(|e| failed("changing the owner of", &self.dir, &e))?;
            fs::set_permissions(&self.dir, fs::Permissions::from_mode(mode))
                .map_err(|e| failed("changing the mode of", &self.dir, &e))?;
        }
        Ok(())
    }
}

fn fresh_name() -> Result<PathBuf, Failure> {
    let name = super::place::random_hex::<8>()?;
    Ok(std::env::temp_dir().join(format!("pgark-demo-{}", name.as_str())))
}

fn check_length(dir: &Path) -> Result<(), Failure> {
    if dir.as_os_str().len() <= DIR_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::refused("E-DEMO-DIR", format!("the name of {} is too long for a unix socket in it", dir.display()))
        .hint("choose a shorter one with --dir; nothing was changed"))
}

fn start(
    args: &DemoArgs,
    global: &GlobalArgs,
    at: &Prepared,
    bin: &Path,
    user: Option<User>,
) -> Result<Child, Failure> {
    let program =
        std::env::current_exe().map_err(|e| Failure::failed("E-SYSTEM", format!("this program's path: {e}")))?;
    let mut command = Command::new(&program);
    command
        .args(inner_arguments(args, global, &at.dir, bin))
        .current_dir(&at.dir)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("HOME", &at.dir)
        .env("PGARK_CACHE_DIR", at.dir.join("cache"))
        .stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command.spawn().map_err(|e| {
        let failure = failed("starting", &program, &e);
        match user {
            Some(_) => failure.hint(format!(
                "the OS user '{SERVER_USER}' must be able to run this program and to enter {}: copy it to /usr/local/bin, for example",
                at.dir.display()
            )),
            None => failure,
        }
    })
}

fn inner_arguments(args: &DemoArgs, global: &GlobalArgs, dir: &Path, bin: &Path) -> Vec<OsString> {
    fn name(value: &impl ValueEnum) -> OsString {
        value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default().into()
    }
    let mut all: Vec<OsString> = vec!["demo".into(), "--inside".into(), dir.into(), "--pg-bin".into(), absolute(bin)];
    all.extend(["--scale".into(), args.scale.to_string().into()]);
    all.extend(["--log-format".into(), name(&global.log_format), "--color".into(), name(&global.color)]);
    all.extend(global.jobs.iter().flat_map(|n| ["--jobs".into(), n.to_string().into()]));
    let flags = [(args.keep, "--keep"), (global.json, "--json"), (global.quiet, "--quiet")];
    all.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag.into()));
    all.extend((0..global.verbose).map(|_| "-v".into()));
    all
}

/// The inner process works in another directory.
fn absolute(path: &Path) -> OsString {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into()
}

/// Asks the child to stop when we are asked to, and waits until it has.
fn wait(mut child: Child, stop: &AtomicBool) -> Result<ExitStatus, Failure> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait().map_err(|e| Failure::failed("E-SYSTEM", format!("waiting: {e}")))? {
            return Ok(status);
        }
        if stop.load(Ordering::Relaxed) && !told {
            told = true;
            let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
            // It cannot be gone: it has not been waited for.
            pid.map_or(Ok(()), |pid| kill_process(pid, Signal::TERM))
                .map_err(|e| Failure::failed("E-SYSTEM", format!("passing the signal on: {e}")))?;
        }
        std::thread::sleep(POLL);
    }
}

/// The child has reported its own failure; its exit code is ours.
fn outcome(status: ExitStatus) -> Result<Outcome, Failure> {
    const PASSED_ON: [Exit; 11] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Warnings,
        Exit::Refused,
        Exit::Cancelled,
        Exit::NoRepository,
        Exit::Locked,
        Exit::WrongKey,
        Exit::Damage,
        Exit::ValidationFailed,
    ];
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let known = PASSED_ON.into_iter().find(|exit| Some(exit.code()) == code);
    known.ok_or_else(|| {
        let how = status.signal().map_or(status.to_string(), |signal| format!("signal {signal}"));
        Failure::new("E-DEMO-DIED", Exit::Failed, format!("the demo ended unexpectedly ({how})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_passed_on_and_a_death_is_a_failure() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(outcome(exited(0)), Ok(Exit::Done));
        assert_eq!(outcome(exited(21)), Ok(Exit::ValidationFailed));
        let killed = outcome(ExitStatus::from_raw(9)).expect_err("killed");
        assert_eq!((&*killed.code, killed.exit), ("E-DEMO-DIED", Exit::Failed));
        assert!(killed.message.contains("signal 9"), "{}", killed.message);
        assert!(outcome(exited(101)).is_err(), "a panic is no verdict");
    }

    #[test]
    fn the_inner_process_is_asked_for_the_same() {
        use crate::command::{Cli, Command as Asked};
        use clap::Parser;
        let parse = |line: Vec<OsString>| {
            let cli = Cli::try_parse_from(std::iter::once("pgark".into()).chain(line)).expect("parses");
            let Asked::Demo(args) = cli.command else { panic!("another command") };
            (args, cli.global)
        };
        for (line, quiet, verbose) in
            [("--keep --json -q --scale 7 -j 3 --log-format json", true, 0), ("-vv", false, 2)]
        {
            let (args, global) = parse(std::iter::once("demo").chain(line.split(' ')).map(OsString::from).collect());
            let inner = inner_arguments(&args, &global, Path::new("/tmp/x y"), Path::new("/bin"));
            let (inner_args, inner_global) = parse(inner);
            assert_eq!(inner_args.inside.as_deref(), Some(Path::new("/tmp/x y")));
            assert_eq!((inner_args.keep, inner_args.scale), (args.keep, args.scale));
            assert_eq!((inner_global.quiet, inner_global.verbose), (quiet, verbose));
            assert_eq!((inner_global.json, inner_global.jobs), (global.json, global.jobs));
            assert_eq!((inner_global.log_format, inner_global.color), (global.log_format, global.color));
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused_and_left_alone() {
        let dir = fresh_name().expect("random bytes");
        fs::create_dir(&dir).expect("created");
        fs::write(dir.join("mine"), b"x").expect("written");
        let refused = Prepared::make(Some(&dir), None).err().expect("refused");
        assert_eq!((&*refused.code, refused.exit), ("E-DEMO-DIR", Exit::Refused));
        assert_eq!(fs::read(dir.join("mine")).expect("still there"), b"x");
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn a_directory_that_was_there_is_emptied_and_given_back_with_its_mode() {
        let dir = fresh_name().expect("random bytes");
        fs::create_dir(&dir).expect("created");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).expect("changed");
        let prepared = Prepared::make(Some(&dir), None).expect("empty");
        assert_eq!(fs::metadata(&dir).expect("there").mode() & 0o777, 0o700);
        fs::create_dir(dir.join("left")).expect("created");
        fs::write(dir.join("left/behind"), b"x").expect("written");
        prepared.remove().expect("emptied");
        assert_eq!(fs::metadata(&dir).expect("there").mode() & 0o777, 0o750);
        fs::remove_dir(&dir).expect("empty");
        let made = Prepared::make(Some(&dir), None).expect("absent");
        made.remove().expect("removed");
        assert!(!dir.exists());
    }
}

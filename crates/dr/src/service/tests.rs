use std::net::TcpListener;
use std::path::Path;

use pgark_testkit::Scratch;

use super::*;
use crate::program::How;

fn answer(text: &str) -> Ended {
    Ended { how: How::Exited(0), stdout: text.as_bytes().to_vec(), stderr: vec![], took: Duration::ZERO }
}

fn state(kind: &Kind, text: &str) -> State {
    kind.judge(&answer(text)).state
}

#[test]
fn answers_of_systemd() {
    let unit = Kind::Systemd("app.service".into());
    let show = |active: &str, sub: &str, pid: u32| {
        format!("MainPID={pid}\nNRestarts=0\nLoadState=loaded\nActiveState={active}\nSubState={sub}\nInvocationID=1f\n")
    };
    assert_eq!(state(&unit, &show("active", "running", 17)), State::Running);
    assert_eq!(state(&unit, &show("inactive", "dead", 0)), State::Stopped);
    assert_eq!(state(&unit, &show("failed", "failed", 0)), State::Stopped);
    assert_eq!(state(&unit, &show("failed", "failed", 17)), State::Running, "its process is there");
    assert_eq!(state(&unit, &show("activating", "auto-restart", 0)), State::Changing);
    assert_eq!(state(&unit, "MainPID=0\nLoadState=not-found\nActiveState=inactive\nSubState=dead\n"), State::Unknown);
    assert_eq!(state(&unit, "Failed to connect to bus\n"), State::Unknown);
    let (one, two) = (show("active", "running", 17), show("active", "running", 18));
    assert_ne!(unit.judge(&answer(&one)).identity, unit.judge(&answer(&two)).identity);
}

#[test]
fn answers_of_windows() {
    let app = Kind::Windows("App".into());
    let query = |number: u8, word: &str, pid: u32| {
        format!(
            "\r\nSERVICE_NAME: App\r\n        TYPE               : 10  WIN32_OWN_PROCESS\r\n        STATE              : {number}  {word}\r\n\
             \x20       WIN32_EXIT_CODE    : 0  (0x0)\r\n        PID                : {pid}\r\n        FLAGS              :\r\n"
        )
    };
    assert_eq!(state(&app, &query(1, "STOPPED", 0)), State::Stopped);
    assert_eq!(state(&app, &query(3, "STOP_PENDING", 812)), State::Changing);
    assert_eq!(state(&app, &query(9, "?", 0)), State::Unknown);
    let running = app.judge(&answer(&query(4, "RUNNING", 812)));
    assert_eq!((running.state, running.identity.as_deref()), (State::Running, Some("812")));
    assert_eq!(app.kill(&running).expect("a command"), ["taskkill.exe", "/F", "/T", "/PID", "812"]);
    assert_eq!(app.kill(&Seen::unknown("")), None);
}

#[test]
fn answers_of_containers() {
    let container = Kind::Docker("app".into());
    let told = |more: &str| format!("{{\"Status\":\"x\",\"StartedAt\":\"2026-01-01T00:00:00Z\",{more}}}");
    assert_eq!(state(&container, &told("\"Running\":true")), State::Running);
    assert_eq!(state(&container, &told("\"Running\":true,\"Paused\":true")), State::Changing);
    assert_eq!(state(&container, &told("\"Running\":true,\"Health\":{\"Status\":\"unhealthy\"}")), State::Changing);
    assert_eq!(state(&container, &told("\"Running\":true,\"Health\":{\"Status\":\"healthy\"}")), State::Running);
    assert_eq!(state(&container, &told("\"Running\":false,\"Restarting\":true")), State::Changing);
    assert_eq!(state(&container, &told("\"Running\":false")), State::Stopped);
    assert_eq!(state(&container, "null"), State::Unknown);
    assert_eq!(state(&container, "not json"), State::Unknown);

    let service = Kind::Compose { file: "/srv/app/compose.yml".into(), service: "web".into() };
    assert_eq!(state(&service, "{\"ID\":\"1\",\"State\":\"running\",\"Health\":\"\"}\n"), State::Running);
    let one_of_two = "{\"ID\":\"1\",\"State\":\"running\",\"Health\":\"\"}\n{\"ID\":\"2\",\"State\":\"exited\"}\n";
    assert_eq!(state(&service, one_of_two), State::Changing);
    assert_eq!(state(&service, "[{\"ID\":\"1\",\"State\":\"exited\"}]"), State::Stopped);
    assert_eq!(state(&service, ""), State::Stopped);
    assert_eq!(state(&service, "{"), State::Unknown);
    // After its time the daemon kills: that time comes only where that is allowed.
    for kind in [&container, &service] {
        let seconds = |force| {
            let argv = kind.stop(Duration::from_secs(30), force);
            let at = argv.iter().position(|w| w == "-t").expect("a time");
            argv[at + 1].parse::<u64>().expect("seconds")
        };
        assert!(seconds(true) == 30 && seconds(false) > 300 * 24 * 3600);
    }
}

#[test]
fn answers_of_pg_ctl() {
    let server = PgCtl {
        bin: "/usr/lib/postgresql/15/bin".into(),
        data: "/data".into(),
        log: "/log".into(),
        start_within: Duration::from_secs(60),
        owner: Some((26, 27)),
    };
    let kind = Kind::PgCtl(server);
    let running = kind.judge(&answer("pg_ctl: server is running (PID: 4711)\n/usr/lib/postgresql/15/bin/postgres\n"));
    assert_eq!((running.state, running.identity.as_deref()), (State::Running, Some("4711")));
    for (code, expected) in [(3, State::Stopped), (4, State::Stopped), (1, State::Unknown)] {
        assert_eq!(kind.judge(&Ended { how: How::Exited(code), ..answer("") }).state, expected);
    }
    assert_eq!(
        kind.start(None).join(" "),
        "setpriv --reuid=26 --regid=27 --clear-groups -- /usr/lib/postgresql/15/bin/pg_ctl start --log=/log --pgdata=/data \
         --wait --timeout=60"
    );
}

#[test]
fn answers_of_kubernetes() {
    let object = Kind::Kubernetes { object: "deploy/app".into(), namespace: Some("shop".into()) };
    let told = |wanted: u32, there: u32, ready: u32, observed: u32| {
        format!(
            "{{\"metadata\":{{\"generation\":7}},\"spec\":{{\"replicas\":{wanted}}},\"status\":{{\"observedGeneration\":{observed},\
             \"replicas\":{there},\"readyReplicas\":{ready}}}}}"
        )
    };
    assert_eq!(state(&object, &told(3, 3, 3, 7)), State::Running);
    assert_eq!(state(&object, &told(3, 3, 2, 7)), State::Changing);
    assert_eq!(state(&object, &told(3, 4, 4, 7)), State::Changing, "an old pod is still there");
    assert_eq!(state(&object, &told(0, 0, 0, 6)), State::Changing, "nobody has seen the change yet");
    assert_eq!(state(&object, &told(0, 2, 0, 7)), State::Changing);
    assert_eq!(state(&object, &told(0, 0, 0, 7)), State::Stopped);
    let before = object.judge(&answer(&told(3, 3, 3, 7)));
    assert_eq!(
        object.start(Some(&before)),
        ["kubectl", "--namespace=shop", "scale", "--replicas=3", "--", "deploy/app"]
    );
    assert_eq!(object.stop(Duration::from_secs(30), false)[2..4], ["scale", "--replicas=0"]);
}

#[test]
fn pods_that_end_are_not_gone() {
    let object = "{\"spec\":{\"replicas\":0,\"selector\":{\"matchLabels\":{\"app\":\"shop\"},\"matchExpressions\":[\
                  {\"key\":\"tier\",\"operator\":\"In\",\"values\":[\"a\",\"b\"]},{\"key\":\"old\",\"operator\":\"DoesNotExist\"}]}},\
                  \"status\":{}}";
    let kind = Kind::Kubernetes { object: "deploy/app".into(), namespace: Some("shop".into()) };
    let argv = kind.pods(&answer(object)).expect("a selector");
    assert_eq!(
        argv[1..],
        ["--namespace=shop", "get", "pods", "--output=json", "--selector=app=shop,tier in (a,b),!old"]
    );
    assert_eq!(kind.pods(&answer("{\"spec\":{\"selector\":{}}}")), None, "that would be all pods");
    // One works on until its grace is over.
    let ending = "{\"items\":[{\"metadata\":{\"deletionTimestamp\":\"x\"},\"status\":{\"phase\":\"Running\"}},\
                  {\"status\":{\"phase\":\"Succeeded\"}}]}";
    for (list, there) in [(ending, Some(1)), ("{\"items\":[]}", Some(0)), ("{}", None), ("", None)] {
        assert_eq!(kind::pods_there(&answer(list)), there, "{list}");
    }
}

#[test]
fn a_manager_that_fails_to_answer_says_nothing() {
    let failed = Ended { how: How::Exited(1), ..answer("ActiveState=inactive\nMainPID=0\n") };
    assert_eq!(Kind::Systemd("app".into()).judge(&failed).state, State::Unknown);
    let hung = Ended { how: How::TooLong(Duration::from_secs(1)), ..answer("") };
    let commands = Kind::Commands { stop: vec![], start: vec![], status: vec![], kill: None };
    assert_eq!(commands.judge(&hung).state, State::Unknown);
    assert_eq!(commands.judge(&Ended { how: How::Exited(3), ..answer("") }).state, State::Stopped);
    assert_eq!(commands.judge(&Ended { how: How::Exited(4), ..answer("") }).state, State::Unknown);
}

/// A service of scripts: it runs while the file `up` is there.
fn scripted(dir: &Path, stop: &str, start: &str, kill: Option<&str>) -> Service {
    let sh = |script: &str| ["sh", "-c", &format!("cd '{}'; {script}", dir.display())].map(String::from).to_vec();
    Service {
        kind: Kind::Commands {
            stop: sh(stop),
            start: sh(start),
            status: sh("test -e up || exit 3"),
            kill: kill.map(sh),
        },
        stop_within: Duration::from_millis(1500),
        start_within: Duration::from_millis(3000),
        steady_for: Duration::from_millis(1500),
        force: kill.is_some(),
        ports: vec![],
        hidden: vec![],
        start_log: dir.join("start.log"),
    }
}

fn up(dir: &Scratch) -> &Path {
    std::fs::write(dir.path().join("up"), "").expect("written");
    dir.path()
}

#[test]
fn what_says_that_it_stopped_and_lives_is_not_stopped() {
    let (dir, ctx) = (Scratch::new("service"), Ctx::silent());
    let error = scripted(up(&dir), "exit 0", "", None).stop(&ctx).expect_err("it lives");
    assert_eq!(error.code(), "E-SERVICE-STOP");
    // The other way round: what complains and is gone, is stopped.
    let proof = scripted(up(&dir), "rm up; exit 1", "", None).stop(&ctx).expect("it is gone");
    assert_eq!((proof.seen.state, proof.forced), (State::Stopped, false));
    // What takes a moment is waited for; what hangs in "stop" is looked at all the same.
    let patient =
        Service { stop_within: Duration::from_secs(60), ..scripted(up(&dir), "(sleep 0.7; rm up) & wait", "", None) };
    patient.stop(&ctx).expect("it is gone");
    let hangs = Service { stop_within: Duration::from_secs(4), ..scripted(up(&dir), "rm up; sleep 600", "", None) };
    hangs.stop(&ctx).expect("it is gone");
}

#[test]
fn force_only_where_it_is_allowed_and_helps() {
    let (dir, ctx) = (Scratch::new("service"), Ctx::silent());
    let proof = scripted(up(&dir), "exit 0", "", Some("rm up")).stop(&ctx).expect("killed");
    assert!(proof.forced && proof.commands.len() == 2, "{proof:?}");
    let gentle = Service { force: false, ..scripted(up(&dir), "exit 0", "", Some("rm up")) };
    assert_eq!(gentle.stop(&ctx).expect_err("it lives").code(), "E-SERVICE-STOP");
    assert!(dir.path().join("up").exists());
}

#[test]
fn a_port_that_somebody_listens_on_is_no_stopped_service() {
    let (dir, ctx) = (Scratch::new("service"), Ctx::silent());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let ports = vec![listener.local_addr().expect("its address")];
    let service = Service { ports, ..scripted(up(&dir), "rm -f up", "touch up", None) };
    let error = service.stop(&ctx).expect_err("somebody listens").to_string();
    assert!(error.contains("somebody listens on 127.0.0.1:"), "{error}");
    drop(listener);
    service.stop(&ctx).expect("nobody listens");
    let error = service.start(None, &ctx).expect_err("nobody listens").to_string();
    assert!(error.contains("nobody listens on 127.0.0.1:"), "{error}");
}

#[test]
fn what_dies_after_a_moment_did_not_start() {
    let (dir, ctx) = (Scratch::new("service"), Ctx::silent());
    // It runs when it is looked at for the first two times.
    let looked =
        format!("cd '{}'; test -e up || exit 3; echo >> looks; test $(wc -l < looks) -lt 3", dir.path().display());
    let dies = Service {
        kind: Kind::Commands {
            stop: vec![],
            start: vec!["touch".into(), dir.path().join("up").display().to_string()],
            status: ["sh", "-c", &looked].map(String::from).to_vec(),
            kill: None,
        },
        steady_for: Duration::from_secs(60),
        ..scripted(dir.path(), "", "", None)
    };
    let error = dies.start(None, &ctx).expect_err("it died");
    assert!(error.code() == "E-SERVICE-START" && error.to_string().contains("did not stay up"), "{error}");
    let proof = scripted(dir.path(), "", "touch up", None).start(None, &ctx).expect("it stays");
    assert_eq!(proof.seen.state, State::Running);
    let never = scripted(dir.path(), "", "rm up", None).start(None, &ctx).expect_err("it never came");
    assert!(never.to_string().contains("does not run"), "{never}");
}

#[test]
fn what_is_seen_to_be_wrong_while_it_is_watched_did_not_start() {
    let (dir, ctx) = (Scratch::new("service"), Ctx::silent());
    let service = Service { steady_for: Duration::from_secs(60), ..scripted(dir.path(), "", "touch up", None) };
    let mut looks = 0;
    let mut see = || match looks {
        0 | 1 => {
            looks += 1;
            Ok(())
        }
        _ => Err(EngineError::failed("E-RECOVER-SERVER", "another cluster answers", "")),
    };
    let error = service.start_seeing(None, &mut see, &ctx).expect_err("not for the whole while");
    assert_eq!((error.code(), looks), ("E-RECOVER-SERVER", 2), "{error}");
    // It runs since, and is watched like that also when it is gone on with.
    let brief = Service { steady_for: Duration::ZERO, ..service };
    let mut seen = 0;
    brief
        .stays_seeing(
            &mut || {
                seen += 1;
                Ok(())
            },
            &ctx,
        )
        .expect("it stays");
    assert_eq!(seen, 1);
}

#[test]
fn a_command_that_is_not_there_is_told_as_such() {
    let service = Service {
        kind: Kind::Commands { stop: vec!["/nowhere/app".into()], start: vec![], status: vec![], kill: None },
        ..scripted(Path::new("/"), "", "", None)
    };
    assert_eq!(service.stop(&Ctx::silent()).expect_err("no program").code(), "E-SERVICE-COMMAND");
}

//! Facts about the effective settings.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::files::Environment;
use super::testing::TempDir;
use super::{Origin, Overrides, Settings};
use crate::failure::Failure;
use crate::secret::SecretSource;

const EXAMPLE: &str = r#"
[repos.main]
url = "/var/lib/pgark"            # or s3://…, az://…, gs://…, sftp://…
passphrase_file = "/etc/pgark/passphrase"

[clusters.main]
pgdata = "/var/lib/postgresql/16/main"
host = "/var/run/postgresql"      # any libpq keyword: host, port, user, dbname, service, sslmode, …
repos = ["main"]
rpo = "1h"
rto = "4h"

[clusters.main.logical]
databases = ["app"]
globals = true

[clusters.main.system]
prefix = "radiology_backup"
database = "radiology_db"
config_files = ["/srv/app/docker-compose.yml"]
directories = ["/srv/app/uploads"]

[clusters.main.retention]         # per kind where it differs: [clusters.main.retention.logical]
keep_daily = 7
keep_weekly = 4
keep_monthly = 12
wal = "7d"

[clusters.main.recover]
kind = "physical"                 # or "logical", "system"
database = "app"
report_dir = "/var/log/pgark"
[clusters.main.recover.service]   # or systemd = "app.service", docker = "app", kubernetes = "deploy/app", windows = "App"
stop = ["/usr/local/bin/app", "stop"]
start = ["/usr/local/bin/app", "start"]
status = ["/usr/local/bin/app", "status"]
stop_timeout = "30s"
start_timeout = "30s"

[[clusters.main.checks]]          # run after restores and in drills, read-only
name = "orders"
database = "app"
sql = "select count(*) > 0 from orders"
expect = "t"

[clusters.main.drill]
dir = "/var/lib/pgark/drill"

[[schedules]]
job = "backup"
cluster = "main"
type = "incr"
cron = "0 2 * * *"
time_zone = "UTC"

[server]
listen = "127.0.0.1:7432"
state_dir = "/var/lib/pgark-server"
"#;

fn load(text: &str, overrides: &Overrides, variables: &[(&str, &str)]) -> Result<Settings, Failure> {
    let dir = TempDir::new();
    dir.write("etc/pgark/pgark.toml", text);
    Settings::load(overrides, &Environment::for_test(dir.path(), variables))
}

fn plain(text: &str) -> Settings {
    load(text, &Overrides::default(), &[]).unwrap_or_else(|failure| panic!("{}", failure.to_text()))
}

fn failure(text: &str) -> Failure {
    load(text, &Overrides::default(), &[]).expect_err(text)
}

fn explained(settings: &Settings, key: &str) -> String {
    let text = settings.explain(Some(key)).expect(key).to_text();
    // The directory of the test is of no interest.
    match text.find("[/") {
        Some(start) => format!("{}[{}", &text[..start], text.rsplit('/').next().expect("a part")),
        None => text,
    }
}

#[test]
fn the_published_example_is_accepted_as_it_is() {
    let settings = plain(EXAMPLE);
    let cluster = settings.cluster().expect("main");
    assert_eq!(cluster.libpq, [("host".to_owned(), "/var/run/postgresql".to_owned())]);
    assert_eq!(cluster.rpo.map(|d| d.as_secs()), Some(3600));
    assert_eq!(cluster.retention.rules(super::schema::Kind::Physical).keep_daily, Some(7));
    assert_eq!((cluster.checks.len(), settings.schedules.len()), (1, 1));
    let repos = settings.selected_repos().expect("one");
    assert_eq!(repos.iter().map(|r| r.url.to_string()).collect::<Vec<_>>(), ["/var/lib/pgark"]);
    assert_eq!(repos.first().map(|r| &r.passphrase), Some(&SecretSource::File("/etc/pgark/passphrase".into())));
    assert!(settings.warnings.is_empty());
}

#[test]
fn flags_overrule_variables_and_variables_overrule_the_file() {
    let text =
        "[clusters.main]\npgdata = '/file'\njobs = 2\n[clusters.other]\n[repos.a]\nurl = '/a'\n[repos.b]\nurl = '/b'";
    let flags = Overrides {
        repos: vec!["b".into()],
        passphrase_file: Some("/flag".into()),
        pgdata: Some("/flag".into()),
        jobs: NonZeroU32::new(4),
        ..Overrides::default()
    };
    let variables =
        [("PGARK_REPO", "a"), ("PGARK_PASSPHRASE_FILE", "/variable"), ("PGDATA", "/variable"), ("PGARK_JOBS", "3")];
    let seen = |settings: Settings| {
        let repo = settings.chosen_repos.as_ref().and_then(|c| c.value.first().cloned());
        (
            settings.cluster().expect("main").pgdata.clone(),
            settings.jobs.value.get(),
            settings.jobs.origin.to_string().rsplit('/').next().map(str::to_owned),
            repo.map(|r| (r.name, r.passphrase)),
        )
    };
    let with = |flags: &Overrides, variables: &[(&str, &str)]| seen(load(text, flags, variables).expect("loads"));
    let path = |p: &str| Some(PathBuf::from(p));
    let file = |p: &str| SecretSource::File(p.into());
    let none = Overrides::default();
    assert_eq!(with(&none, &[]), (path("/file"), 2, Some("pgark.toml:3:8".into()), None));
    let (from_variable, from_flag) = (Some("variable PGARK_JOBS".into()), Some("flag --jobs".into()));
    assert_eq!(with(&none, &variables), (path("/variable"), 3, from_variable, Some(("a".into(), file("/variable")))));
    assert_eq!(with(&flags, &variables), (path("/flag"), 4, from_flag, Some(("b".into(), file("/flag")))));
}

#[test]
fn a_variable_that_overrules_pgdata_is_a_warning() {
    let settings = load("[clusters.main]\npgdata = '/file'", &Overrides::default(), &[("PGDATA", "/other")]);
    let warnings = settings.expect("loads").warnings;
    assert!(warnings.iter().any(|w| w.contains("PGDATA") && w.contains("/file")), "{warnings:?}");
}

#[test]
fn another_name_of_the_same_directory_overrules_nothing() {
    let dir = std::env::temp_dir().join(format!("pgark-pgdata-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("data")).expect("a directory");
    let text = format!("[clusters.main]\npgdata = '{}'", dir.join("data").display());
    let other = dir.join("data/../data/.");
    let settings = load(&text, &Overrides::default(), &[("PGDATA", other.to_str().expect("text"))]);
    let warnings = settings.expect("loads").warnings;
    std::fs::remove_dir_all(&dir).expect("remove");
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// As a server started with `-D db` hands it to the commands that it runs in there.
#[test]
fn a_relative_pgdata_that_leads_nowhere_from_inside_the_directory_overrules_nothing() {
    let here = std::env::current_dir().expect("a directory");
    let text = format!("[clusters.main]\npgdata = '{}'", here.display());
    let settings = load(&text, &Overrides::default(), &[("PGDATA", "no-such-directory/db")]).expect("loads");
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    assert_eq!(settings.clusters["main"].pgdata.as_deref(), Some(&*here));
}

#[test]
fn an_unknown_key_is_an_error_with_its_place_and_the_nearest_key() {
    let cases = [
        ("[repos.main]\nurl = '/r'\npassphrase_fil = '/p'", ":3:1: unknown key 'passphrase_fil'", "'passphrase_file'"),
        ("[clusters.main]\nprot = 1", ":2:1: unknown key 'prot'", "'port'"),
        ("[clusters.main.retnetion]\nx = 1", ":1:16: unknown key 'retnetion'", "'retention'"),
        ("[clusters.main.retention]\nkeep_dayly = 1", ":2:1: unknown key 'keep_dayly'", "'keep_daily'"),
        ("[defaults]\nrpoo = '1h'", ":2:1: unknown key 'rpoo'", "'rpo'"),
        ("[[schedules]]\njob='backup'\ncorn='x'", ":3:1: unknown key 'corn'", "'cron'"),
        ("[sever]\nlisten='x'", ":1:2: unknown key 'sever'", "'server'"),
        ("[server]\nfrobnicate = 1", ":2:1: unknown key 'frobnicate'", "listen, state_dir"),
        ("[clusters.main.libpq]\nhost = 'x'", ":1:16: unknown key 'libpq'", "directly"),
    ];
    for (text, message, hint) in cases {
        let failure = failure(text);
        assert_eq!((&*failure.code, failure.exit.code()), ("E-CONFIG-KEY", 2), "{text}: {failure}");
        assert!(failure.message.ends_with(message), "{text}: {failure}");
        assert!(failure.hint.as_deref().is_some_and(|h| h.contains(hint)), "{text}: {failure:?}");
    }
}

#[test]
fn a_wrong_type_or_value_is_an_error_with_its_place_and_key() {
    let cases = [
        ("[clusters.main]\nrpo = 5", ":2:7: key 'rpo': expected a string, found an integer"),
        ("[clusters.main]\nrpo = '1 fortnight'", ":2:7: key 'rpo': '1 fortnight' is not a duration"),
        ("[clusters.main]\nrepos = ['a', 5]", ":2:15: expected a string, found an integer"),
        ("[clusters.main.retention]\nkeep_daily = -1", ":2:14: key 'keep_daily': expected u32, found an integer"),
        (
            "[clusters.main.retention]\ntime_zone = 'Mars'",
            ":2:13: clusters.main.retention.time_zone: no such time zone",
        ),
        (
            "[clusters.main.retention.physical]\nmax_backups = 0",
            ":2:15: clusters.main.retention.physical.max_backups: a",
        ),
        ("[clusters.main]\nport = [1]", ":2:8: key 'port': expected a string or an integer"),
        ("[clusters]\nmain = 1", ":2:8: key 'main': expected"),
        ("[clusters.main]\njobs = 0", ":2:8: key 'jobs': expected a nonzero u32"),
        ("[clusters.main.recover]\nkind = 'phsical'", ":2:8: key 'kind': 'phsical' is not known here"),
        ("[repos.main]\npassphrase_file = '/p'", "missing field `url`"),
        ("[repos.main]\nurl = 's3://k:hunter2@b'", ":2:7: key 'url': a password does not belong"),
        ("[repos.main]\nurl = '/r'\npassphrase_command = 'pass | head'", ":3:22: key 'passphrase_command': '|' needs"),
        ("[server]\nlisten = '1.2.3.4'", ":2:10: key 'listen':"),
        ("[server]\nnames = ['a b']", ":2:10: server.names.0: this is no name"),
        ("[server]\nrequests_per_second = 0", ":2:23: server.requests_per_second: it is between"),
        ("[server]\nsession = '1s'", ":2:11: server.session: it is between"),
        ("[server.tls]\ncertificate = '/c'\nkey = 'k'", ":3:7: server.tls.key: the path must be absolute"),
        (
            "[server.tls]\ncertificate = '/c'\nkey = '/k'\nrequire_client_certificate = true",
            ":4:30: server.tls.require_client_certificate: nothing says who signs them",
        ),
        (
            "[server.tls]\ncertificate = '/c'\nkey = '/k'\n[[server.tls.clients]]\nsubject = 'CN=a'\nrole = 'root'",
            "'root' is not known here",
        ),
        (
            "[server.tls]\ncertificate = '/c'\nkey = '/k'\nclient_ca = '/a'\n[[server.tls.clients]]\nsubject = 'CN=a'\nrole = 'viewer'\ncluster = 'x'",
            "server.tls.clients.0.cluster: no such cluster",
        ),
        ("[server.oidc]\nissuer = 'https://i'\nclient_id = 'c'", "missing field `url`"),
        (
            "[server.oidc]\nurl = 'http://localhost'\nclient_id = 'c'\nissuer = 'http://i.example.org'",
            ":4:10: server.oidc.issuer: it begins",
        ),
        (
            "[server.oidc]\nissuer = 'https://i'\nclient_id = 'c'\nurl = 'https://b.example.org'",
            ":4:7: server.oidc.url: the server does not answer",
        ),
        (
            "[server.oidc]\nissuer = 'https://i'\nclient_id = 'c'\nurl = 'https://localhost'\nroles = []",
            ":5:9: server.oidc.roles: nobody could",
        ),
        (
            "[server.oidc]\nissuer = 'https://i'\nclient_id = 'c'\nurl = 'https://localhost'\nclient_secret_file = 's'",
            ":5:22: server.oidc.client_secret_file: the path must be absolute",
        ),
        (
            "[server.oidc]\nissuer = 'https://i'\nclient_id = 'c'\nurl = 'https://localhost'\nsession = '1s'",
            ":5:11: server.oidc.session: it is between",
        ),
        (
            "[server.oidc]\nissuer = 'https://i'\nclient_id = 'c'\nurl = 'https://localhost'\n[[server.oidc.roles]]\ngroup = 'g'\nrole = 'root'",
            "'root' is not known here",
        ),
        (
            "[server.oidc]\nissuer = 'https://i'\nclient_id = 'c'\nurl = 'https://localhost'\n[[server.oidc.roles]]\ngroup = 'g'\nrole = 'viewer'\nclusters = ['x']",
            "server.oidc.roles.0.clusters.0: no such cluster",
        ),
        ("[[schedules]]\njob='backup'\ncluster='main'\ncron='61 * * * *'\n[clusters.main]", "the minute is between"),
        ("[[schedules]]\njob='backup'\ncluster='mian'\ncron='1 * * * *'\n[clusters.main]", "no such cluster"),
        ("[[schedules]]\njob='expire'\ntype='full'\ncluster='main'\ncron='@daily'", "only a backup has a type"),
        (
            "[[schedules]]\njob='drill'\ncluster='main'\ncron='@daily'\ntime_zone='Mars/X'",
            ":5:11: schedules.0.time_zone",
        ),
        ("[[schedules]]\njob='drill'\ncluster='main'", "schedules.0.cron: neither cron nor every"),
        (
            "[[schedules]]\njob='drill'\ncluster='main'\nevery='monthly'\nat='4:00'",
            ":5:4: schedules.0.at: it is a time",
        ),
        ("[[schedules]]\njob='drill'\ncluster='main'\nevery='monthly'\ncron='@daily'", "either cron or every"),
        ("[[schedules]]\njob='drill'\ncluster='main'\ncron='0 0 30 2 *'", "such a day never comes"),
        ("[[schedules]]\njob='drill'\ncluster='main'\ncron='@daily'\nblackout=['00:00-24:00']", "leave no time"),
        ("[[schedules]]\njob='replicate'\ncluster='main'\ncron='@daily'", "from one repository to another"),
        ("[[schedules]]\njob='check'\nkind='files'\ncluster='main'\ncron='@daily'", "only a backup and a drill have a"),
        (
            "[[schedules]]\njob='check'\ncluster='main'\ncron='@daily'\n[[schedules]]\njob='check'\ncluster='main'\ncron='@hourly'",
            "several schedules are called 'check-main'",
        ),
        ("[clusters.main]\nrepos = ['x']", ":2:10: clusters.main.repos.0: no such repository"),
        ("[repos.x]\nurl='/r'\n[clusters.main]\nrepos = ['x', 'x']", ":4:15: clusters.main.repos.1: it is named twice"),
        ("[clusters.main]\npgdata = 'data'", ":2:10: clusters.main.pgdata: the path must be absolute"),
        ("[clusters.'../x']\n", "cannot be the name of a cluster"),
        ("[clusters.main]\ndbname = 'postgres://u:hunter2@h/d'", "not a connection string"),
        ("[repos.a]\nurl='/r'\npassphrase='x'\npassphrase_file='/p'", "one source is enough"),
        ("[repos.a]\nurl='/r'\nlock='compliance'\nlock_days=3", "s3:// repositories alone"),
        ("[repos.a]\nurl='s3://b'\nlock='compliance'", "for how long"),
        ("[repos.a]\nurl='s3://b'\nlock_days=3", "without lock"),
        ("[repos.a]\nurl='s3://b'\nlock='governance'\nlock_days=0", "between 1 and 3650"),
        ("[repos.a]\nurl='s3://b'\nlock='governance'\nlock_days=36500", "between 1 and 3650"),
        ("[repos.a]\nurl='s3://b'\nlock='forever'\nlock_days=3", "is not known here"),
        ("[clusters.main.recover]\nkind='system'\nservice={systemd='a',docker='b'}", "more than one way"),
        ("[clusters.main.recover]\nkind='physical'\nto='/a'\nin_place=true", "not to both"),
        ("[clusters.main.recover]\nkind='logical'\nto='/a'", "are for kind = "),
        ("[clusters.main.recover]\nkind='physical'\nto='a'", "clusters.main.recover.to: the path must be absolute"),
        ("[clusters.main.recover]\nkind='physical'\nrepoint=[{file='/a/b.toml'}]", "which value of the file"),
        ("[clusters.main.recover]\nkind='physical'\nrepoint=[{file='/a/b',key=['c']}]", "the format of 'b'"),
        ("[clusters.main.recover]\nkind='physical'\nrepoint=[{kubernetes='deploy/a',entry='b'}]", "neither configmap"),
        ("[clusters.main.recover]\nkind='physical'\nservice={systemd='a',keep_running=true}", "it needs repoint"),
    ];
    for (text, message) in cases {
        let failure = failure(text);
        assert!(failure.code.starts_with("E-CONFIG-") && failure.exit.code() == 2, "{text}: {failure}");
        assert!(failure.message.contains(message), "{text}:\n{failure}\n{message}");
        assert!(failure.message.contains("pgark.toml:"), "{text}: {failure}");
        assert!(!failure.to_text().contains("hunter2"), "{failure}");
    }
}

#[test]
fn a_secret_of_the_wrong_type_is_not_repeated() {
    for text in ["[repos.m]\nurl='/r'\npassphrase = 31337", "[clusters.main]\npassword = ['hunter2']"] {
        let text = failure(text).to_text();
        assert!(!text.contains("31337") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn defaults_hold_for_every_cluster_that_does_not_say_otherwise() {
    let text = "[defaults]\nrpo = '1h'\nuser = 'backup'\npassword_file = '/p'\n[defaults.retention]\nkeep_daily = 7\nwal = '7d'\n\
                [clusters.main]\nrpo = '2h'\nhost = 'a'\npassword_command = 'pass x'\n[clusters.main.retention]\nkeep_daily = 3\n[clusters.b]";
    let settings = plain(text);
    let main = settings.cluster().expect("main");
    let b = settings.clusters.get("b").expect("b");
    assert_eq!((main.rpo.map(|d| d.as_secs()), b.rpo.map(|d| d.as_secs())), (Some(7200), Some(3600)));
    assert_eq!((main.retention.keep_daily, b.retention.keep_daily), (Some(3), Some(7)));
    assert!(main.retention.wal.is_some(), "an override of one key keeps the others");
    let keywords = [("host", "a"), ("user", "backup")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(main.libpq, keywords);
    let command = SecretSource::Command(vec!["pass".into(), "x".into()]);
    assert_eq!(main.libpq_secrets, [("password".to_owned(), command)]);
}

#[test]
fn without_a_file_flags_and_variables_are_enough() {
    let dir = TempDir::new();
    let variables = [("PGARK_REPO", "/r1, s3://b/p"), ("PGARK_PASSPHRASE", "hunter2"), ("PGDATA", "/data")];
    let environment = Environment::for_test(dir.path(), &variables);
    let settings = Settings::load(&Overrides::default(), &environment).expect("loads");
    assert_eq!(settings.cluster().expect("implied").pgdata.as_deref(), Some(Path::new("/data")));
    let repos = settings.selected_repos().expect("two");
    assert_eq!(repos.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["/r1", "s3://b/p"]);
    for repo in &repos {
        let secret = repo.passphrase.read().expect("readable").expect("given");
        assert_eq!(secret.expose(), b"hunter2");
    }
    let shown = format!("{settings:?} {environment:?} {}", settings.explain(None).expect("all").to_text());
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_url_that_is_configured_brings_its_configuration_along() {
    let flags = Overrides { repos: vec!["file:///r/".into()], ..Overrides::default() };
    let settings = load("[repos.m]\nurl = '/r'\npassphrase_file = '/p'", &flags, &[]).expect("loads");
    let repos = settings.selected_repos().expect("one");
    assert_eq!(repos.first().map(|r| (r.name.as_str(), &r.passphrase)), Some(("m", &SecretSource::File("/p".into()))));
}

#[test]
fn the_choice_of_repositories_is_never_a_guess() {
    let two = "[repos.a]\nurl = '/a'\n[repos.b]\nurl = '/b'\n";
    assert_eq!(plain(two).selected_repos().expect_err("several").code, "E-REPO-CHOICE");
    assert_eq!(plain("").selected_repos().expect_err("none").code, "E-REPO-NONE");
    let ordered = plain(&format!("{two}[clusters.main]\nrepos = ['b', 'a']")).selected_repos().expect("both");
    assert_eq!(ordered.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    for (repos, code) in
        [(vec!["mian"], "E-REPO-UNKNOWN"), (vec!["/a", "a"], "E-REPO-CHOICE"), (vec!["ftp://x"], "E-REPO-URL")]
    {
        let flags = Overrides { repos: repos.into_iter().map(String::from).collect(), ..Overrides::default() };
        assert_eq!(load(two, &flags, &[]).expect_err(code).code, code);
    }
}

#[test]
fn a_cluster_that_is_not_configured_is_not_invented() {
    let flags = Overrides { cluster: Some("prdo".into()), ..Overrides::default() };
    let settings = load("[clusters.prod]", &flags, &[]).expect("loads");
    let failure = settings.cluster().expect_err("unknown");
    assert_eq!(failure.code, "E-CLUSTER-UNKNOWN");
    assert!(failure.hint.is_some_and(|h| h.contains("-c prod")));
    let evil = Overrides { cluster: Some("../x".into()), ..Overrides::default() };
    assert_eq!(load("", &evil, &[]).expect_err("no name").code, "E-CONFIG-VALUE");
}

#[test]
fn two_passphrase_variables_and_a_misspelt_one_are_noticed() {
    let both = [("PGARK_PASSPHRASE", "a"), ("PGARK_PASSPHRASE_FILE", "/b")];
    assert_eq!(load("", &Overrides::default(), &both).expect_err("both").code, "E-SECRET-CHOICE");
    let misspelt = load("", &Overrides::default(), &[("PGARK_PASPHRASE", "hunter2"), ("PGARK_SERVICE_HOST", "x")]);
    let warnings = misspelt.expect("loads").warnings;
    assert!(warnings.len() == 1 && warnings.iter().all(|w| w.contains("PGARK_PASSPHRASE?") && !w.contains("hunter2")));
}

#[test]
fn explain_shows_value_and_origin() {
    let settings =
        plain(&format!("{EXAMPLE}\n[repos.second]\nurl='/s'\npassphrase='hunter2'\n[defaults]\nport = 5433"));
    let cases = [
        ("clusters.main.rpo", "clusters.main.rpo = 1h  [pgark.toml:10:7]\n"),
        ("rpo", "clusters.main.rpo = 1h  [pgark.toml:10:7]\n"),
        ("host", "clusters.main.host = /var/run/postgresql  [pgark.toml:8:8]\n"),
        ("clusters.main.port", "clusters.main.port = 5433  [pgark.toml:64:8]\n"),
        ("schedules[0].cron", "schedules[0].cron = 0 2 * * *  [pgark.toml:53:8]\n"),
        ("repos.main.encryption", "repos.main.encryption = aes-256-gcm  [default]\n"),
        ("repos.second.passphrase", "repos.second.passphrase = (not shown)  [pgark.toml:62:12]\n"),
        ("cluster", "cluster = main  [default]\n"),
        ("clusters.main.bandwidth_limit", "clusters.main.bandwidth_limit = (not set)  [default]\n"),
    ];
    for (key, text) in cases {
        assert_eq!(explained(&settings, key), text);
    }
    let section = settings.explain(Some("clusters.main.drill")).expect("a section");
    let keys: Vec<&str> = section.settings.iter().map(|s| s.key.as_str()).collect();
    assert!(keys.contains(&"clusters.main.drill.dir"), "{keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("clusters.main.drill.")), "{keys:?}");
    let failure = settings.explain(Some("clusters.main.rpoo")).expect_err("unknown");
    assert!(failure.hint.is_some_and(|h| h.contains("'clusters.main.rpo'")));
    assert!(!settings.explain(None).expect("all").to_text().contains("hunter2"));
}

#[test]
fn explain_shows_the_flag_that_won() {
    let flags = Overrides { pgdata: Some("/flag".into()), ..Overrides::default() };
    let settings = load("[clusters.main]\npgdata = '/file'", &flags, &[]).expect("loads");
    assert_eq!(explained(&settings, "pgdata"), "clusters.main.pgdata = /flag  [flag --pgdata]\n");
    assert_eq!(settings.selected_cluster.origin, Origin::Default);
}

#[test]
fn explain_shows_the_passphrase_source_that_won() {
    let flags = Overrides { passphrase_file: Some("/flag".into()), ..Overrides::default() };
    let settings = load("[repos.m]\nurl = '/r'\npassphrase_file = '/file'", &flags, &[]).expect("loads");
    let text = "repos.m.passphrase = file /flag  [flag --passphrase-file]\n";
    assert_eq!(settings.explain(Some("repos.m.passphrase")).expect("there").to_text(), text);
    assert!(!settings.explain(None).expect("all").to_text().contains("/file"));
}

#[test]
fn check_reports_what_was_read() {
    let settings = plain(EXAMPLE);
    let json = serde_json::to_value(settings.check_report()).expect("serializes");
    assert_eq!(json.get("ok"), Some(&serde_json::Value::Bool(true)));
    assert_eq!(json.get("schema"), Some(&serde_json::json!(1)));
    let text = settings.check_report().to_text();
    assert!(text.contains("repo       main: /var/lib/pgark, passphrase from file /etc/pgark/passphrase\n"), "{text}");
    assert!(text.ends_with("the configuration is correct\n"), "{text}");
}

#[test]
fn classes_are_those_of_the_store_and_those_that_must_be_thawed_are_asked_for_twice() {
    let repo = |url: &str, rest: &str| format!("[repos.a]\nurl = '{url}'\n{rest}");
    let s3 = |rest: &str| repo("s3://b/p", rest);
    let cases = [
        (repo("/r", "class_after = { '30d' = 'STANDARD_IA' }"), "only object stores have classes"),
        (s3("class_after = { '30d' = 'STANDRD_IA' }"), "did you mean 'STANDARD_IA'?"),
        (s3("class_after = { '30d' = 'Cool' }"), "is no class of this store"),
        (s3("class_after = { '12h' = 'STANDARD_IA' }"), "not a whole number of days"),
        (s3("class_after = { '180d' = 'GLACIER' }"), "allow_archive_classes = true"),
        (repo("az://b/p", "class_after = { '180d' = 'Archive' }"), "allow_archive_classes = true"),
        (repo("s3://b/p?storage_class=GLACIER", ""), "cannot be read at once"),
        (s3("class_after = { '30d' = 'GLACIER_IR', '90d' = 'STANDARD_IA' }"), "only get colder"),
        (repo("s3://b/p?storage_class=GLACIER_IR", "class_after = { '30d' = 'STANDARD_IA' }"), "only get colder"),
        (repo("gs://b/p", "class_after = { '30d' = 'COLDLINE', '90d' = 'NEARLINE' }"), "only get colder"),
        (s3("class_after = { '7d' = 'STANDARD_IA' }"), "30 days at the earliest"),
        (s3("capacity = '2 XB'"), "unlimited"),
        (s3("warn_free = '110%'"), "10%"),
        (s3("prices = 'aws'\n[prices.asw]\ncurrency = 'EUR'\nstorage.STANDARD = 1"), "did you mean 'asw'?"),
        ("[prices.a]\ncurrency = 'EUR'\nstorage.STANDARD = -1.0".into(), "a price is a number from 0 on"),
        ("[prices.a]\ncurrency = ''\nstorage.STANDARD = 1".into(), "a currency has 1 to 8 characters"),
        ("[prices.a]\ncurrency = 'EUR'\nstorage = {}".into(), "there is no price of any class"),
        ("[prices.a]\ncurrency = 'EUR'\nstorage.STANDARD = 1\negres = 1".into(), "did you mean 'egress'?"),
    ];
    for (text, expected) in cases {
        let failure = failure(&text).to_text();
        assert!(failure.contains(expected), "{text}\n{failure}");
    }
    let settings = plain(&s3(
        "class_after = { '180d' = 'GLACIER', '30d' = 'STANDARD_IA' }\nallow_archive_classes = true\nprices = 'a'\n\
         capacity = 'unlimited'\nwarn_free = '20%'\nwarn_days = 7\nwal_reserve = '1GB'\n\
         [prices.a]\ncurrency = 'EUR'\nstorage = { STANDARD = 1, GLACIER = 0.5 }",
    ));
    let space = &settings.repos["a"].space;
    assert_eq!(space.class_after, [(30, "STANDARD_IA".to_owned()), (180, "GLACIER".to_owned())]);
    let rules = space.rules;
    use pgark_engine::capacity::{Capacity, FreeLow};
    assert_eq!((rules.capacity, rules.warn_free), (Capacity::Unlimited, FreeLow::Percent(20)));
    assert_eq!((rules.warn_days, rules.wal_reserve), (7, Some(1_000_000_000)));
    assert_eq!(settings.prices["a"].storage["GLACIER"], 0.5);
}

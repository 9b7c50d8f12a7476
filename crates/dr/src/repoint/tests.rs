use std::os::unix::fs::PermissionsExt;

use pgark_testkit::Scratch;

use super::*;

fn path(dotted: &str) -> Vec<String> {
    dotted.split('.').map(str::to_owned).collect()
}

fn changed(format: Format, text: &str, at: &str, new: &str) -> String {
    set(format, text, &path(at), new).unwrap_or_else(|e| panic!("{at} in {text:?}: {e}")).text
}

fn refused(format: Format, text: &str, at: &str, new: &str) -> String {
    let error = set(format, text, &path(at), new).expect_err(at);
    assert!(error.code().starts_with("E-REPOINT-"), "{error}");
    error.to_string()
}

const APPSETTINGS: &str = "\u{feff}{\r\n  // where it is\r\n  \"ConnectionStrings\": {\r\n    \"Default\": \"Host=old;Password=a\\\"b\", /* main */\r\n  },\r\n\
                           \x20 \"Port\": 5432,\r\n  \"List\": [\"a\", { \"Deep\": null }],\r\n}\r\n";

#[test]
fn only_the_value_changes() {
    let json = changed(Format::Json, APPSETTINGS, "ConnectionStrings.Default", "Host=new;Password=a\"b");
    assert_eq!(json, APPSETTINGS.replace("Host=old", "Host=new"));
    assert_eq!(changed(Format::Json, APPSETTINGS, "Port", "5433"), APPSETTINGS.replace("5432", "5433"));
    assert_eq!(changed(Format::Json, APPSETTINGS, "List.1.Deep", "x"), APPSETTINGS.replace("null", "\"x\""));

    let toml = "# top\n[db] # here\nurl = 'old' # one\nport = 5432\n\n[[more]]\nhost = \"é\"\n";
    assert_eq!(changed(Format::Toml, toml, "db.url", "it's"), toml.replace("'old'", "\"it's\""));
    assert_eq!(changed(Format::Toml, toml, "db.port", "1"), toml.replace("5432", "1"));
    assert_eq!(changed(Format::Toml, toml, "more.0.host", "h"), toml.replace("\"é\"", "\"h\""));

    let yaml = "# é\ndb:\n  url: old   # one\n  port: 5432\n  quoted: 'o''ld'\n  list:\n  - a\n  - {host: \"old\", b: c}\nlast: x\n";
    assert_eq!(changed(Format::Yaml, yaml, "db.url", "new: #x"), yaml.replace("url: old", "url: \"new: #x\""));
    assert_eq!(changed(Format::Yaml, yaml, "db.port", "99"), yaml.replace("5432", "99"));
    assert_eq!(changed(Format::Yaml, yaml, "db.quoted", "n'ew"), yaml.replace("'o''ld'", "'n''ew'"));
    assert_eq!(changed(Format::Yaml, yaml, "db.list.1.host", "h"), yaml.replace("\"old\"", "\"h\""));

    let env = "# db\nexport DB_HOST=old\nURL=\"postgres://a\"\nEMPTY=\nCS=Host=a;Port=1\r\n";
    assert_eq!(changed(Format::Env, env, "DB_HOST", "10.0.0.7"), env.replace("=old", "=10.0.0.7"));
    assert_eq!(changed(Format::Env, env, "URL", "postgres://b c"), env.replace("postgres://a", "postgres://b c"));
    assert_eq!(changed(Format::Env, env, "EMPTY", "x"), env.replace("EMPTY=", "EMPTY=x"));
    assert_eq!(changed(Format::Env, env, "CS", "Host=b;Port=2"), env.replace("Host=a;Port=1", "Host=b;Port=2"));

    let ini = "; c\nroot = 1\n[db]\nhost = old\nport: 5432\n[other]\nhost=old\n";
    assert_eq!(changed(Format::Ini, ini, "db.host", "new host"), ini.replacen("old", "new host", 1));
    assert_eq!(changed(Format::Ini, ini, "db.port", "1"), ini.replace("5432", "1"));
    assert_eq!(changed(Format::Ini, ini, "root", "2"), ini.replace("root = 1", "root = 2"));
}

#[test]
fn what_is_not_certain_is_refused() {
    assert!(refused(Format::Json, APPSETTINGS, "ConnectionStrings.Other", "x").contains("not there"));
    assert!(refused(Format::Json, APPSETTINGS, "ConnectionStrings", "x").contains("no single value"));
    assert!(refused(Format::Json, "{\"a\": 1, \"a\": 2}", "a", "3").contains("more than once"));
    assert!(refused(Format::Json, "{\"a\": 1", "a", "3").contains("not JSON"));
    assert!(refused(Format::Env, "A=1\nA=2\n", "A", "3").contains("more than once"));
    assert!(refused(Format::Env, "A=b\n", "A", "x; touch /tmp/pgark-was-here").contains("quotes"));
    assert!(refused(Format::Env, "A=\"b\"\n", "A", "$(id)").contains("quotes"));
    assert!(refused(Format::Env, "A=b # c\n", "A", "x").contains("not edited"));
    assert!(refused(Format::Env, "A='b'\\''c'\n", "A", "x").contains("not edited"));
    assert!(refused(Format::Env, "A=b\n", "A", "x\nB=y").contains("one line"));
    assert!(refused(Format::Env, "A=b # c\n", "A", "x").contains("a comment behind it"));
    assert!(refused(Format::Yaml, "a: &x old\nb: *x\n", "a", "new").contains("not edited"));
    assert!(refused(Format::Yaml, "a: &x old\nb: *x\n", "b", "new").contains("not edited"));
    assert!(refused(Format::Yaml, "a: |\n  old\n", "a", "new").contains("not edited"));
    assert!(refused(Format::Yaml, "a: 1\n---\na: 2\n", "a", "3").contains("several documents"));
    assert!(refused(Format::Yaml, "a: [1\n", "a.0", "3").contains("not YAML"));
    assert!(refused(Format::Toml, "a = \"\"\"\nx\"\"\"\n", "a", "y").contains("not edited"));
    assert!(refused(Format::Ini, "[a]\nb = c ; d\n", "a.b", "e").contains("not edited"));
    assert!(refused(Format::Ini, "[a]\nb = c\n  d\n", "a.b", "e").contains("indented"));
}

#[test]
fn comments_stay_behind_what_is_quoted_in_yaml() {
    let with = |value: &str, new: &str, path: &str| {
        let text = format!("a: {value}   # the 'host'\nb: [\"x\", 'y'] # two\nc:\n  - \"h\" # seq\n");
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        (set(Format::Yaml, &text, &path, new).expect("set").text, text)
    };
    for (old, new) in
        [("\"127.0.0.1\"", "\"db-2\""), ("'5''4'", "'db-2'"), ("\"a\\\"b\"", "\"db-2\""), ("''", "'db-2'")]
    {
        let (text, before) = with(old, "db-2", "a");
        assert_eq!(text, before.replacen(old, new, 1));
    }
    let (text, before) = with("\"x\"", "z", "b.1");
    assert_eq!(text, before.replacen("'y'", "'z'", 1));
    let (text, before) = with("\"x\"", "z", "c.0");
    assert_eq!(text, before.replacen("\"h\"", "\"z\"", 1));
}

/// Why goes into logs and reports.
#[test]
fn what_cannot_be_read_is_not_quoted() {
    for (format, text) in [
        (Format::Env, "A=1\nhunter2\n"),
        (Format::Env, "hunter2 hunter2=1\n"),
        (Format::Ini, "[a]\nhunter2\n"),
        (Format::Toml, "a = hunter2\n"),
        (Format::Toml, "a = \"hunter2\n"),
        (Format::Yaml, "a: \"hunter2\nb: 1\n"),
        (Format::Yaml, "a: [hunter2\n"),
        (Format::Yaml, "a: *hunter2\n"),
        (Format::Json, "{\"a\": hunter2}"),
        (Format::Json, "{\"a\": \"hunter2"),
        (Format::Json, "{\"a\": \"hunter2\" \"b\"}"),
    ] {
        let why = refused(format, text, "a", "x");
        assert!(!why.contains("hunter2"), "{text:?}: {why}");
    }
}

#[test]
fn formats_go_by_names() {
    for (name, format) in [
        ("appsettings.json", Some(Format::Json)),
        (".env", Some(Format::Env)),
        (".env.production", Some(Format::Env)),
        ("app.env", Some(Format::Env)),
        ("values.yml", Some(Format::Yaml)),
        ("app.conf", Some(Format::Ini)),
        ("app", None),
    ] {
        assert_eq!(Format::of(name), format, "{name}");
    }
}

#[test]
fn connection_strings_keep_what_is_not_meant() {
    let to = Target { host: Some("new.example".into()), port: Some(6432), database: None };
    let both = |old: &str| redirected(old, &to).unwrap_or_else(|e| panic!("{old}: {e}"));
    assert_eq!(
        both("Server=old;Port=5432;Database=app;User Id=u;Password=\"a;b\";SSL Mode=Require"),
        "Server=new.example;Port=6432;Database=app;User Id=u;Password=\"a;b\";SSL Mode=Require"
    );
    assert_eq!(both("Host=old;Database=app;"), "Host=new.example;Database=app;Port=6432;");
    assert_eq!(both("host=old dbname=app password='a b'"), "host=new.example dbname=app password='a b' port=6432");
    assert_eq!(
        both("postgresql://u:p%40@old:5432/app?sslmode=require"),
        "postgresql://u:p%40@new.example:6432/app?sslmode=require"
    );
    assert_eq!(both("jdbc:postgresql://[::1]/app"), "jdbc:postgresql://new.example:6432/app");
    assert_eq!(both("jdbc:postgresql:app?user=u"), "jdbc:postgresql://new.example:6432/app?user=u");
    assert_eq!(both("jdbc:postgresql:/"), "jdbc:postgresql://new.example:6432/");
    assert_eq!(both("postgres://u@old/app#x"), "postgres://u@new.example:6432/app#x");

    let database = Target { database: Some("app_restored".into()), ..Target::default() };
    assert_eq!(redirected("postgres://old/app?x=1", &database).expect("a string"), "postgres://old/app_restored?x=1");
    assert_eq!(
        redirected("Host=h;Initial Catalog=app;", &database).expect("a string"),
        "Host=h;Initial Catalog=app_restored;"
    );
    let v6 = Target { host: Some("fe80::1".into()), ..Target::default() };
    assert_eq!(redirected("postgres://old:1/app", &v6).expect("a string"), "postgres://[fe80::1]:1/app");

    for bad in [
        "mysql://old/app",
        "mysql:app",
        "app",
        "postgres://a,b/app",
        "postgres:///app?host=/tmp",
        "host=a,b",
        "Host=a;Server=b;",
        "Host='a;",
        "host=a\\ b",
    ] {
        let error = redirected(bad, &to).expect_err(bad);
        assert_eq!(error.code(), "E-REPOINT-CONNECTION", "{bad}");
        assert!(!error.to_string().contains(bad), "the string may hold a password");
    }
    let odd = Target { host: Some("a;Password=x".into()), ..Target::default() };
    redirected("Host=old;Port=1", &odd).expect_err("another setting would be smuggled in");
    redirected("postgres://old/app", &odd).expect_err("another setting would be smuggled in");
}

#[test]
fn files_are_replaced_as_a_whole_and_put_back() {
    let dir = Scratch::new("repoint");
    let real = dir.file("app.env", b"DB_HOST=old\nPASSWORD=x\n", 0o640);
    let link = dir.path().join("link.env");
    std::os::unix::fs::symlink(&real, &link).expect("a link");
    let text = || std::fs::read_to_string(&real).expect("text");
    let edits = [Edit { path: path("DB_HOST"), new: New::Value("new".into()) }];
    let done = repoint(&link, Format::Env, &edits, "20260101").expect("repointed");
    assert_eq!(text(), "DB_HOST=new\nPASSWORD=x\n");
    assert!(link.is_symlink());
    for file in [&real, &done.kept] {
        assert_eq!(std::fs::metadata(file).expect("there").permissions().mode() & 0o777, 0o640);
    }
    assert!(!serde_json::to_string(&done).expect("json").contains("old\""));
    take_back(&done).expect("taken back");
    take_back(&done).expect("and once more");
    assert_eq!(text(), "DB_HOST=old\nPASSWORD=x\n");
    // After a crash in the middle it is done again.
    assert_eq!(repoint(&link, Format::Env, &edits, "20260101").expect("again"), done);
    std::fs::write(&real, "DB_HOST=by-hand\n").expect("written");
    assert_eq!(take_back(&done).expect_err("changed").code(), "E-REPOINT-CHANGED");
    assert_eq!(text(), "DB_HOST=by-hand\n");
}

#[test]
fn commands_are_told_where_and_say_where_they_stand() {
    use pgark_engine::ctx::Ctx;
    let (dir, ctx) = (Scratch::new("turn"), Ctx::silent());
    let sh =
        |script: &str| ["sh", "-c", &format!("cd '{}'; {script}", dir.path().display())].map(String::from).to_vec();
    let command = |status: Option<&str>| {
        Turn::Command(Command {
            turn: sh("cat > now"),
            back: Some(sh("rm now")),
            status: status.map(sh),
            told: serde_json::json!({"host": "new.example", "port": 5433}),
            within: std::time::Duration::from_secs(30),
            hidden: vec![],
        })
    };
    let known = command(Some("test -e now"));
    let kept = dir.path().join("kept");
    let planned = known.plan("id", &kept, &ctx).expect("planned");
    let stands = |turn: &Turn, acted| turn.stands(&planned, acted, &ctx).expect("known");
    assert_eq!(stands(&known, false), Stands::Old);
    known.turn(&planned, "id", &ctx).expect("turned");
    assert_eq!(
        std::fs::read_to_string(dir.path().join("now")).expect("told"),
        "{\"host\":\"new.example\",\"port\":5433}"
    );
    assert_eq!(stands(&known, false), Stands::New);
    known.take_back(&planned, &ctx).expect("taken back");
    assert_eq!(stands(&known, true), Stands::Old, "what it says counts, not that it ended well");
    known.take_back(&planned, &ctx).expect("there is nothing to take back, and nothing is run");
    let lies = command(Some("true"));
    std::fs::write(dir.path().join("now"), "").expect("written");
    assert_eq!(lies.take_back(&planned, &ctx).expect_err("it still points there").code(), "E-REPOINT-BACK");
    let silent = command(Some("exit 7"));
    assert_eq!(silent.plan("id", &kept, &ctx).expect_err("nobody can tell").code(), "E-REPOINT-COMMAND");
    // Without a status it is known only by whoever has seen it end.
    let unknown = command(None);
    assert!(matches!(stands(&unknown, false), Stands::Other(_)));
    assert_eq!(stands(&unknown, true), Stands::New);
    assert!(!kept.exists());
}

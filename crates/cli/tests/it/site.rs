//! One cluster that archives into one repository, with its ledger; and what most tests do with it.

use std::path::{Path, PathBuf};

use pgark_testkit::{ClusterBuilder, Ending, Ledger, Outcome, Pgark, Recovered, Scratch, Server, Target, TestCluster};
use serde_json::Value;

/// Fields are dropped in this order: servers before the directory they live in.
pub struct Site {
    pub cluster: TestCluster,
    pub ledger: Ledger,
    /// Knows the cluster's connection and data directory.
    pub pgark: Pgark,
    /// Knows the repository and its passphrase alone, like a new machine after a disaster.
    pub elsewhere: Pgark,
    pub server: Server,
    pub scratch: Scratch,
}

pub const BINARY: &str = env!("CARGO_BIN_EXE_pgark");

/// An example's settings with a file in the place of each receiver of alerts: none of them is called by a test.
pub fn alerts_into(file: &Path, text: &str) -> String {
    let (mut kept, mut of_a_sink, mut sinks) = (String::new(), false, 0);
    for line in text.lines() {
        if line.starts_with('[') {
            of_a_sink = line.starts_with("[alerts.sinks.");
        } else if of_a_sink {
            continue;
        }
        kept += &format!("{line}\n");
        if of_a_sink {
            kept += &format!("kind = \"command\"\ncommand = [\"/usr/bin/tee\", \"-a\", \"{}\"]\n\n", file.display());
            sinks += 1;
        }
    }
    assert!(sinks > 0, "an example tells nobody of trouble:\n{text}");
    kept
}

impl Site {
    /// A cluster shaped by `shape`, an initialised repository beside it, and an empty ledger.
    pub fn new(server: &Server, label: &str, shape: impl FnOnce(ClusterBuilder) -> ClusterBuilder) -> Site {
        let scratch = Scratch::new(label);
        let repo = scratch.dir("repo");
        Site::with_repo(server, scratch, &repo, shape)
    }

    pub fn with_repo(
        server: &Server,
        scratch: Scratch,
        repo: &Path,
        shape: impl FnOnce(ClusterBuilder) -> ClusterBuilder,
    ) -> Site {
        let elsewhere = Pgark::new(BINARY, &scratch, repo);
        Site::with_pgark(server, scratch, elsewhere, shape)
    }

    /// With a program that knows its repository, wherever that lies.
    pub fn with_pgark(
        server: &Server,
        scratch: Scratch,
        elsewhere: Pgark,
        shape: impl FnOnce(ClusterBuilder) -> ClusterBuilder,
    ) -> Site {
        let builder = TestCluster::builder(server).archive_command(elsewhere.archive_command());
        let cluster = shape(builder).start(&scratch, "c");
        let pgark = elsewhere.on(&cluster);
        pgark.run(["init"]).expect_code(0);
        let ledger = Ledger::create(&cluster);
        Site { cluster, ledger, pgark, elsewhere, server: server.clone(), scratch }
    }

    /// A small cluster with segments of 1 MB, which keeps repositories and sweeps small.
    pub fn small(server: &Server, label: &str) -> Site {
        Site::new(server, label, |builder| builder.wal_segsize_mb(1).conf("autovacuum = off"))
    }

    pub fn restore_arguments(&self, to: &Path, target: &Target, more: &[&str]) -> Vec<String> {
        let mut words = vec!["restore".to_owned()];
        words.extend(["--to".to_owned(), to.display().to_string()]);
        words.extend(target.flags());
        words.extend(["--target-action".to_owned(), "promote".to_owned()]);
        words.extend(more.iter().map(|&word| word.to_owned()));
        words
    }

    /// Tries a restore into a new directory of this name.
    pub fn try_restore(&self, name: &str, target: &Target, more: &[&str]) -> (PathBuf, Outcome) {
        let to = self.scratch.join(name);
        let outcome = self.elsewhere.run(self.restore_arguments(&to, target, more));
        (to, outcome)
    }

    /// Restores, starts the result by hand and waits for the end of its recovery.
    pub fn restore(&self, name: &str, target: &Target, more: &[&str]) -> Recovered {
        let (to, outcome) = self.try_restore(name, target, &[more, &["--json"]].concat());
        let document = outcome.expect_code(0).json();
        assert_eq!(document["schema"], 1, "{document}");
        assert!(document["backup"].is_string(), "{document}");
        assert!(document["resolved"]["lsn"].is_string(), "{document}");
        Recovered::start(&self.server, &self.scratch, &to).expect(Ending::Promoted)
    }

    /// Restores and compares with the ledger; the restored directory is removed afterwards.
    pub fn assert_restores(&self, name: &str, target: &Target, timeline: u32, more: &[&str]) {
        assert!(
            !self.ledger.expected(target, timeline).must.is_empty(),
            "{target:?} expects no row and proves nothing"
        );
        let recovered = self.restore(name, target, more);
        self.ledger.assert_exact(&recovered, target, timeline);
        let directory = recovered.data_dir().to_owned();
        drop(recovered);
        std::fs::remove_dir_all(directory).expect("remove the restored directory");
    }

    /// The end of the archive after everything written so far has been archived.
    pub fn archive_all(&self) -> Target {
        let archived = self.cluster.psql("select pg_current_wal_insert_lsn()");
        self.cluster.switch_and_archive();
        Target::Latest { archived }
    }
}

/// The installed server, or a visible skip of the calling test.
macro_rules! installed_or_skip {
    () => {
        match pgark_testkit::Server::installed() {
            Ok(server) => server,
            Err(why) => pgark_testkit::skip!("{why}"),
        }
    };
}

/// The servers of the majors asked for, or a visible skip of the calling test.
macro_rules! majors_or_skip {
    () => {{
        let found: Result<Vec<_>, String> =
            pgark_testkit::majors_asked_for().into_iter().map(pgark_testkit::Server::of_major).collect();
        match found {
            Ok(servers) => servers,
            Err(why) => pgark_testkit::skip!("{why}"),
        }
    }};
}

/// True when every point of a sweep is to be visited.
pub fn full_sweep() -> bool {
    std::env::var_os("PGARK_SWEEP").is_some_and(|value| value == "full")
}

/// More writes than any journal has.
const WRITES_MAX: u32 = 200;

/// Numbers of writes at which a program is killed: each, until it ends before that one, in a full sweep; else these.
pub fn writes(few: &[u32]) -> Vec<u32> {
    if full_sweep() { (1..WRITES_MAX).collect() } else { few.to_vec() }
}

/// All items in a full sweep, else `count` of them spread evenly, with the first and the last.
pub fn sample<T: Clone>(items: &[T], count: usize) -> Vec<T> {
    if full_sweep() || items.len() <= count {
        return items.to_vec();
    }
    let last = items.len() - 1;
    (0..count).filter_map(|step| items.get(step * last / (count - 1).max(1))).cloned().collect()
}

/// Everything is as it should be, but that tests have everything on one file system.
pub fn assert_only_beside(checked: &pgark_testkit::Outcome) {
    let document = checked.json();
    let checks = document["checks"].as_array().into_iter().flatten().filter(|c| c["verdict"] != "ok");
    let names: Vec<&Value> = checks.map(|c| &c["name"]).collect();
    assert_eq!((names, checked.code), (vec![&Value::from("place")], Some(3)), "{checked}");
}

/// The words of an array of strings in a JSON document.
pub fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

//! What is to be done for corruption, accidental deletion, the loss of everything, and ransomware.

use super::{Block, Document, Doing, Facts, RecoverFacts, Section};
use crate::recover::State;
use crate::recover::report::span;

pub fn document(facts: &Facts) -> Document {
    let sections = [
        Some(first(facts)),
        Some(corruption(facts)),
        Some(deletion(facts)),
        Some(loss(facts)),
        Some(ransomware(facts)),
        facts.recover.as_ref().map(|r| states(facts, r)),
        Some(afterwards(facts)),
    ];
    Document {
        title: format!("Recovery of {}", facts.cluster),
        about: vec![
            format!(
                "Made {} by {} from {}. Make it anew whenever the configuration changes: {}",
                facts.made,
                facts.program,
                facts.config.join(", "),
                facts.pgark("runbook render")
            ),
            "Words in capitals stand for what is found out on the way.".into(),
        ],
        sections: sections.into_iter().flatten().collect(),
    }
}

impl Facts {
    /// A command, as it is typed on a machine with this configuration.
    fn pgark(&self, words: &str) -> String {
        let config = self.config.first().map(|c| format!(" --config {}", word(c))).unwrap_or_default();
        format!("pgark {words} -c {}{config}", word(&self.cluster))
    }

    fn dumped(&self) -> &[String] {
        self.dumps.as_deref().unwrap_or_default()
    }
}

/// One word for a shell, quoted where it has to be.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn text(text: impl Into<String>) -> Block {
    Block::Text { text: text.into() }
}

fn doing(text: impl Into<String>, commands: Vec<String>) -> Doing {
    Doing { text: text.into(), commands }
}

fn section(title: &str, blocks: Vec<Block>) -> Section {
    Section { title: title.into(), blocks }
}

fn first(facts: &Facts) -> Section {
    let unset = || "no objective is set".to_owned();
    let mut blocks = vec![Block::List {
        items: vec![
            format!("Data that may be lost (RPO): {}", facts.rpo.clone().unwrap_or_else(unset)),
            format!("Time until the service is back (RTO): {}", facts.rto.clone().unwrap_or_else(unset)),
            match facts.operators.as_slice() {
                [] => "May recover: whoever can run pgark here".into(),
                some => format!("May recover (users of the operating system): {}", some.join(", ")),
            },
        ],
    }];
    if facts.contacts.is_empty() {
        blocks.push(text("No contacts are configured: [[clusters.NAME.recover.contacts]]."));
    } else {
        blocks.push(text("Call, in this order:"));
        let cell = |c: &Option<String>| c.clone().unwrap_or_default();
        let rows = facts.contacts.iter().map(|c| vec![c.name.clone(), cell(&c.role), cell(&c.phone), cell(&c.email)]);
        let head = ["who", "role", "telephone", "email"].map(String::from).to_vec();
        blocks.push(Block::Table { head, rows: rows.collect() });
    }
    blocks.push(text("Where the backups are:"));
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let rows = facts
        .repos
        .iter()
        .map(|r| vec![r.name.clone(), r.url.clone(), r.opened_with.clone(), yes(r.locked), yes(r.append_only)]);
    let head = ["repository", "place", "opened with", "objects locked", "this host only appends"].map(String::from);
    blocks.push(Block::Table { head: head.to_vec(), rows: rows.collect() });
    blocks.push(text("Whatever happened:"));
    blocks.push(Block::Steps {
        steps: vec![
            doing(
                "Write down the time: it is when the incident was declared, and from it the RTO is measured.",
                vec![],
            ),
            doing("Call the contacts. Say what was seen, and who recovers.", vec![]),
            doing(
                "See what there is to recover from. This changes nothing.",
                vec![facts.pgark("info"), facts.pgark("check")],
            ),
        ],
    });
    section("First", blocks)
}

/// The recovery of the whole, by whatever is configured.
fn recovery(facts: &Facts, reason: &str) -> Vec<Doing> {
    if let Some(recover) = &facts.recover {
        let mut steps = vec![
            doing("Look at the plan. This changes nothing.", vec![facts.pgark("recover --plan")]),
            doing(
                format!("Recover. TIME is when the incident was declared, with its zone.{}", service(recover)),
                vec![facts.pgark(&format!("recover --declared 'TIME' --reason '{reason}'"))],
            ),
        ];
        steps.push(doing(
            "When it was cut off (the machine went down, the connection was lost): go on with it, or give it up.",
            vec![facts.pgark("recover --resume"), facts.pgark("recover --abandon")],
        ));
        steps.push(doing(
            format!("Read the report in {}: what was lost, how long it took, what is where now.", recover.report_dir),
            vec![facts.pgark("report show latest")],
        ));
        return steps;
    }
    let mut steps = vec![doing("Stop the application, and see that it is stopped.", vec![])];
    for database in facts.dumped() {
        steps.push(doing(
            format!("Put the newest dump of {database} in its place. What is there is backed up first, and replaced only by what was found right."),
            vec![facts.pgark(&format!("restore --kind logical --database {} --in-place --keep-old", word(database)))],
        ));
    }
    if facts.system {
        steps.push(doing(
            "Put database, configuration and files back as one.",
            vec![facts.pgark("restore latest --kind system --in-place")],
        ));
    }
    if facts.dumped().is_empty() && !facts.system {
        let pgdata = facts.pgdata.clone().unwrap_or_else(|| "PGDATA".into());
        steps.push(doing(
            format!("Stop PostgreSQL, and put its directory aside: mv {0} {0}.before", word(&pgdata)),
            vec![],
        ));
        steps.push(doing(
            "Restore it, and see it recover to its end. Add --target-time 'TIME' for a moment before the end.",
            vec![facts.pgark(&format!("restore --to {} --start", word(&pgdata)))],
        ));
    }
    steps.push(doing("Start the application, and see that it works.", vec![]));
    steps
}

fn service(recover: &RecoverFacts) -> String {
    let service = match &recover.service {
        Some(service) => format!(" It stops {service}, and starts it when the data was found right."),
        None => " No service is configured: stop the application before, and start it afterwards.".into(),
    };
    let place = match (&recover.place, recover.in_place) {
        (Some(place), true) => format!(" The cluster in {place} is stopped, kept under another name, and restored."),
        (Some(place), false) => format!(" The cluster is restored into {place}, a new instance."),
        (None, _) => String::new(),
    };
    let repoints =
        if recover.repoints { " The application is pointed to it, and back when it does not answer well." } else { "" };
    let fenced = match (&recover.place, recover.fenced) {
        (Some(_), false) => {
            " Nothing proves the old server stopped: see to that yourself, and switch archiving on afterwards."
        }
        _ => "",
    };
    format!("{service}{place}{repoints}{fenced}")
}

fn corruption(facts: &Facts) -> Section {
    let mut steps: Vec<Doing> = vec![];
    let databases = facts.recover.iter().flat_map(|r| &r.database).chain(facts.dumped());
    let mut seen: Vec<&String> = vec![];
    for database in databases {
        if !seen.contains(&database) {
            seen.push(database);
        }
    }
    let validate = |d: &&String| facts.pgark(&format!("validate --database {}", word(d)));
    let validate: Vec<String> = seen.iter().map(validate).collect();
    let validate = if validate.is_empty() { vec![facts.pgark("validate --database NAME")] } else { validate };
    steps.push(doing("Find out how far it goes: tables and indexes are read, and the checks are asked.", validate));
    steps.push(doing("See that the backups are whole.", vec![facts.pgark("verify")]));
    steps.extend(recovery(facts, "corruption"));
    steps.push(doing("Find out why: disks, memory, controller. What was replaced is kept for that.", vec![]));
    let mut blocks = vec![
        text("The database reports damaged pages, wrong answers, or does not start; or its contents are not right."),
        Block::Steps { steps },
    ];
    if let Some(recover) = facts.recover.as_ref().filter(|r| !r.steps.is_empty()) {
        blocks.push(text("What the recovery does, and how long it is likely to take by what was measured before:"));
        let expected = |ms: Option<u64>| ms.map_or("unknown".to_owned(), span);
        let rows = recover.steps.iter().map(|s| vec![s.step.clone(), s.what.clone(), expected(s.expected_ms)]);
        let head = ["step", "what", "expected"].map(String::from).to_vec();
        blocks.push(Block::Table { head, rows: rows.collect() });
    }
    section("Corruption", blocks)
}

fn deletion(facts: &Facts) -> Section {
    let mut steps = vec![];
    if facts.pgdata.is_some() {
        steps.push(doing(
            "Find the moment: what was dropped, truncated or deleted, with time and position.",
            vec![facts.pgark("wal history")],
        ));
        steps.push(doing(
            "One table: bring it back beside the live one, as it was just before, and copy from it what is missing.",
            vec![facts.pgark("restore-table TABLE --database NAME --target-time 'TIME'")],
        ));
    }
    for database in facts.dumped() {
        steps.push(doing(
            format!("One table of {database} as it was in the newest dump, beside the live one:"),
            vec![facts.pgark(&format!("restore-table TABLE --database {} --kind logical", word(database)))],
        ));
    }
    if facts.system {
        steps.push(doing(
            "Single files, beside what is there:",
            vec![facts.pgark("restore latest --kind system --files --path PATTERN --to DIR")],
        ));
    }
    steps.push(doing(
        "Everything, when single tables are not enough: choose a backup, or the MOMENT, from just before the deletion.",
        vec![facts.pgark("info")],
    ));
    let mut whole = recovery(facts, "accidental deletion");
    if let Some(recover) = &facts.recover {
        // A dump is of one moment; WAL reaches every moment.
        let from = if recover.database.is_some() { "recover ID" } else { "recover --target-time 'MOMENT'" };
        for command in whole.iter_mut().flat_map(|step| &mut step.commands) {
            *command = command
                .replace("recover --plan", &format!("{from} --plan"))
                .replace("recover --declared", &format!("{from} --declared"));
        }
    }
    for command in whole.iter_mut().flat_map(|step| &mut step.commands) {
        *command = command.replace("restore --kind", "restore ID --kind");
    }
    steps.extend(whole);
    section(
        "Accidental deletion",
        vec![
            text("Somebody deleted or changed what should be there. The database itself is sound."),
            Block::Steps { steps },
        ],
    )
}

fn loss(facts: &Facts) -> Section {
    let opened: Vec<String> = facts.repos.iter().map(|r| format!("{} ({})", r.opened_with, r.name)).collect();
    let mut steps = vec![
        doing(
            "Get a new machine. Install PostgreSQL of the same major version, and pgark. No server of pgark is needed.",
            vec![],
        ),
        doing(
            format!(
                "Bring from where they are kept safe: this configuration ({}), and what opens the repositories: {}.",
                facts.config.join(", "),
                opened.join(", ")
            ),
            vec![],
        ),
        doing("See what the repository holds.", vec![facts.pgark("info")]),
    ];
    if facts.recover.as_ref().is_some_and(|r| r.database.is_none()) {
        steps.push(doing(
            "Make no cluster: the recovery restores one. Put into the configuration what is different here: directories, addresses, ports; where it says in_place = true, write to = DIR and an address.",
            vec![],
        ));
    } else if facts.dumped().is_empty() && !facts.system {
        let pgdata = facts.pgdata.clone().unwrap_or_else(|| "PGDATA".into());
        steps.push(doing(
            "Restore the cluster, and see it recover to the end of what was archived. It then archives as it is configured: the old one must be gone for good.",
            vec![facts.pgark(&format!("restore --to {} --start", word(&pgdata)))],
        ));
    } else {
        steps.push(doing(
            "Make an empty cluster and start it, with the address that the configuration names.",
            vec!["initdb".into()],
        ));
        if !facts.dumped().is_empty() {
            steps.push(doing(
                "Make the roles and tablespaces, where the backups have them.",
                vec![facts.pgark("restore --kind logical --globals")],
            ));
        }
        if facts.system {
            steps.push(doing(
                "Put database, configuration and files back.",
                vec![facts.pgark("restore latest --kind system --in-place")],
            ));
        }
    }
    if facts.recover.is_some() {
        steps.push(doing("Install the application; it need not run.", vec![]));
        steps.extend(recovery(facts, "loss of everything"));
    } else if !facts.dumped().is_empty() {
        for database in facts.dumped() {
            steps.push(doing(
                format!("Restore {database}."),
                vec![facts.pgark(&format!("restore --kind logical --database {0} --to-database {0}", word(database)))],
            ));
        }
    }
    section("Loss of everything", vec![text("The machine, or the whole site, is gone."), Block::Steps { steps }])
}

fn ransomware(facts: &Facts) -> Section {
    let safe: Vec<&str> = facts.repos.iter().filter(|r| r.locked).map(|r| r.name.as_str()).collect();
    let safe = match safe.as_slice() {
        [] => "No repository locks its objects: what the attacker could reach may be gone. See whether the store keeps versions, or whether there is a copy that this host cannot write to.".to_owned(),
        some => format!("Objects are locked in {}: for as long as the lock lasts nobody can remove or change them.", some.join(", ")),
    };
    let mut steps = vec![
        doing(
            "Isolate: take the machines off the network. Do not switch them off before somebody has looked at them.",
            vec![],
        ),
        doing("Stop everything that removes backups: schedules of expire, rules of buckets.", vec![]),
        doing(
            "Work from a clean machine, with this configuration and secrets from where they are kept safe. Nothing of the attacked machines is used.",
            vec![],
        ),
        doing(
            "See what there is. In a bucket that keeps versions, look at it as it was before: --repo-target-time TIME.",
            vec![facts.pgark("info"), facts.pgark("info --repo-target-time TIME")],
        ),
        doing(
            "Choose a backup from before the attack. When that was is what the forensics say, not when it was noticed. Read all of it.",
            vec![facts.pgark("verify ID")],
        ),
    ];
    if let Some(recover) = &facts.recover {
        steps.push(doing(
            "Restore it on clean machines, with a clean installation of the application.",
            vec![facts.pgark("recover ID --plan"), facts.pgark("recover ID --declared 'TIME' --reason 'ransomware'")],
        ));
        let validate =
            recover.database.iter().map(|d| facts.pgark(&format!("validate --database {} --against ID", word(d))));
        steps.push(doing(
            "Verify that nothing of the attacker came along: roles, functions, triggers, extensions that nobody knows.",
            validate.collect(),
        ));
    } else {
        let mut whole = recovery(facts, "ransomware");
        for step in &mut whole {
            for command in &mut step.commands {
                *command = command.replace("restore latest", "restore ID").replace("restore --", "restore ID --");
            }
        }
        steps.extend(whole);
        steps.push(doing(
            "Verify that nothing of the attacker came along: roles, functions, triggers, extensions that nobody knows.",
            vec![],
        ));
    }
    steps.push(doing(
        "Change every password and every key that the attacked machines held; then give the repository a new key.",
        vec![facts.pgark("key rotate")],
    ));
    section(
        "Ransomware",
        vec![
            text("Data is encrypted or changed by somebody who demands something."),
            text(safe),
            Block::Steps { steps },
        ],
    )
}

/// What each end of a guided recovery asks of people.
fn states(facts: &Facts, recover: &RecoverFacts) -> Section {
    let database = recover.database.as_deref().unwrap_or("The cluster");
    let mut all = vec![
        (State::Restored, "The service is back.".to_owned(), "Read the warnings. When it is certain that nothing of it is needed, drop the database that was replaced: its name is in the report.".to_owned()),
        (State::Refused, "Nothing was changed; the application runs as before.".into(), "Do what the message says, and begin again.".into()),
        (State::NotStopped, "The application could not be stopped. No data was touched.".into(), "Stop it by hand, and begin again.".into()),
        (State::Halted, format!("The application is stopped. {database} is as it was, unless the report says otherwise."), "Read why. What was restored and was not right is there under a name of its own. Choose another backup, or repair, and begin again; or start the application as it is.".into()),
        (State::NotStarted, format!("{database} is restored and was found right. The application is not up, or does not answer as it should."), "Look at the application's own log; start it by hand.".into()),
        (State::Abandoned, "It was given up; what could be was taken back. The application is stopped.".into(), "Begin again, or start the application.".into()),
    ];
    if recover.repoints {
        all.push((State::RolledBack, "The application did not come up, or answered wrongly, on the new instance. It points again to where it pointed before; the report tells whether it runs on that.".into(), "Look at the application's own log. What was restored is there, stopped.".into()));
    }
    let rows = all.into_iter().map(|(state, is, what)| vec![state.as_str().to_owned(), is, what]).collect();
    let head = ["state", "what is so", "what to do"].map(String::from).to_vec();
    section(
        "How a recovery ends",
        vec![
            text(format!(
                "It ends in one of these states, which the report in {} names. Nobody else can begin one before it has ended.",
                recover.report_dir
            )),
            Block::Table { head, rows },
            text(format!("To see where it is: {}", facts.pgark("recover --plan"))),
        ],
    )
}

fn afterwards(facts: &Facts) -> Section {
    let mut steps = vec![];
    if facts.checks.is_empty() {
        steps.push(doing(
            "No checks are configured ([[clusters.NAME.checks]]): ask the application whether its data is right.",
            vec![],
        ));
    } else {
        steps.push(doing(format!("The checks that were asked: {}.", facts.checks.join(", ")), vec![]));
    }
    let kind = if facts.system {
        "backup --kind system"
    } else if facts.dumped().is_empty() {
        "backup --type full"
    } else {
        "backup --kind logical"
    };
    steps.push(doing("Take a backup of what is there now.", vec![facts.pgark(kind)]));
    steps.push(doing("See that everything works again.", vec![facts.pgark("check")]));
    steps.push(doing(
        "Write down what happened. When the RTO was missed, the report has a section for it.",
        vec![facts.pgark("report list")],
    ));
    section("Afterwards", vec![Block::Steps { steps }])
}

#[cfg(test)]
mod tests {
    use super::super::{RepoFacts, to_html, to_markdown};
    use super::*;

    #[test]
    fn commands_are_quoted_and_hostile_names_stay_text() {
        let facts = Facts {
            cluster: "main".into(),
            config: vec!["/etc/it's here/pgark.toml".into()],
            dumps: Some(vec!["a b;`id`<script>".into()]),
            repos: vec![RepoFacts { name: "<b>".into(), ..RepoFacts::default() }],
            ..Facts::default()
        };
        let made = document(&facts);
        let titles: Vec<&str> = made.sections.iter().map(|s| s.title.as_str()).collect();
        assert_eq!(
            titles,
            ["First", "Corruption", "Accidental deletion", "Loss of everything", "Ransomware", "Afterwards"]
        );
        let (page, text) = (to_html(&made), to_markdown(&made));
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
        let command = r"pgark restore --kind logical --database 'a b;`id`<script>' --in-place --keep-old -c main --config '/etc/it'\''s here/pgark.toml'";
        assert!(text.contains(&format!("        {command}\n")), "{text}");
    }
}

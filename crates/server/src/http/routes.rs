//! Every route: what it does, and what it takes to be allowed to.

use axum::http::Method;

use super::{Handler, acknowledge, api, approve, compat, knowledge, metrics, page, signin};
use crate::access::Right;

pub struct Route {
    method: Verb,
    pub path: &'static str,
    pub right: Right,
    /// The cluster is not in the path: the handler finds it, and compares it with the caller's.
    pub finds_cluster: bool,
    /// For the OpenAPI document.
    pub summary: &'static str,
    /// Of the answer, and of what is sent: names of schemas.
    pub answer: &'static str,
    pub body: Option<&'static str>,
    pub query: &'static [&'static str],
    /// What is answered is a job that was written down just now.
    pub starts_a_job: bool,
    /// For people: in no document, shown as HTML, and a session will do.
    pub page: bool,
    pub handler: Handler,
}

#[derive(Clone, Copy)]
enum Verb {
    Get,
    Post,
    Delete,
}

impl Route {
    pub fn method(&self) -> Method {
        match self.method {
            Verb::Get => Method::GET,
            Verb::Post => Method::POST,
            Verb::Delete => Method::DELETE,
        }
    }

    const fn at(method: Verb, path: &'static str, right: Right, answer: &'static str, handler: Handler) -> Route {
        Route {
            method,
            path,
            right,
            finds_cluster: false,
            summary: "",
            answer,
            body: None,
            query: &[],
            starts_a_job: false,
            page: false,
            handler,
        }
    }

    const fn get(path: &'static str, right: Right, answer: &'static str, handler: Handler) -> Route {
        Route::at(Verb::Get, path, right, answer, handler)
    }

    const fn post(path: &'static str, right: Right, answer: &'static str, handler: Handler) -> Route {
        Route::at(Verb::Post, path, right, answer, handler)
    }

    const fn delete(path: &'static str, right: Right, answer: &'static str, handler: Handler) -> Route {
        Route::at(Verb::Delete, path, right, answer, handler)
    }

    const fn page(path: &'static str, right: Right, handler: Handler) -> Route {
        Route { page: true, ..Route::get(path, right, "", handler) }
    }

    /// What a form of a page sends.
    const fn form(path: &'static str, right: Right, handler: Handler) -> Route {
        Route { page: true, ..Route::post(path, right, "", handler) }
    }

    const fn says(self, summary: &'static str) -> Route {
        Route { summary, ..self }
    }

    const fn takes(self, body: &'static str) -> Route {
        Route { body: Some(body), ..self }
    }

    const fn asks(self, query: &'static [&'static str]) -> Route {
        Route { query, ..self }
    }

    const fn starts_a_job(self) -> Route {
        Route { starts_a_job: true, ..self }
    }

    const fn finds_cluster(self) -> Route {
        Route { finds_cluster: true, ..self }
    }
}

use Right::{Administer, Anyone, Approve, Operate, View};

pub const ROUTES: &[Route] = &[
    Route::get("/health/live", Anyone, "Health", api::live).says("The server answers"),
    Route::get("/health/ready", Anyone, "Health", api::ready).says("It takes jobs, and its database can be used"),
    Route::get("/metrics", View, "Metrics", metrics::metrics).says("OpenMetrics, of the clusters that the token sees"),
    Route::get("/api/v1/openapi.json", View, "Document", api::openapi).says("This document"),
    Route::get("/api/v1/me", View, "Me", api::me).says("Whose token this is, and what it may do").finds_cluster(),
    Route::get("/api/v1/clusters", View, "Clusters", api::clusters)
        .says("Of each cluster: can it be recovered, to when, how long would it take, proven when"),
    Route::get("/api/v1/clusters/{cluster}", View, "Cluster", api::cluster).says("One cluster"),
    Route::get("/api/v1/clusters/{cluster}/windows", View, "Windows", api::windows)
        .says("Moments that it can be recovered to, and gaps between"),
    Route::get("/api/v1/clusters/{cluster}/backups", View, "Backups", api::backups)
        .says("Its backups, the newest first")
        .asks(&["kind", "limit", "before"]),
    Route::get("/api/v1/clusters/{cluster}/backups/{backup}", View, "Backup", api::backup).says("One backup"),
    Route::get("/api/v1/clusters/{cluster}/wal", View, "Wal", api::wal).says("The WAL archive: ranges and gaps"),
    Route::get("/api/v1/clusters/{cluster}/reports", View, "Reports", api::reports)
        .says("What restores, validations, recoveries and drills found"),
    Route::get("/api/v1/clusters/{cluster}/drills", View, "Drills", api::drills)
        .says("Its rehearsals, the newest first"),
    Route::get("/api/v1/clusters/{cluster}/reports/{report}", View, "Report", knowledge::report)
        .says("One report, as the operation wrote it; 202 while it is being read from the repository"),
    Route::get("/api/v1/clusters/{cluster}/history", View, "History", knowledge::history)
        .says("What happened in the WAL of the last 7 days: restore points, drops, truncates, many deleted rows"),
    Route::get("/api/v1/clusters/{cluster}/audit", View, "Audit", knowledge::audit)
        .says("Who tried what, and what came of it: the newest events of the audit trail"),
    Route::get("/api/v1/clusters/{cluster}/capacity", View, "Capacity", knowledge::capacity)
        .says("Used and free room of its first repository, growth, forecast, cost; and how it was over time"),
    Route::get("/api/v1/clusters/{cluster}/series", View, "Series", knowledge::series)
        .says("Size, duration and throughput of each backup, and how many failed on each day"),
    Route::get("/api/v1/clusters/{cluster}/restore-plan", View, "RestorePlan", knowledge::restore_plan)
        .says("How a restore to a moment would be done; nothing is changed. 202 while it is being worked out")
        .asks(&["target_time", "target_lsn", "target_name", "backup", "to"]),
    Route::get("/api/v1/clusters/{cluster}/recover-plan", View, "RecoverPlan", knowledge::recover_plan)
        .says("The steps of a guided recovery, with the time that each is likely to take; nothing is changed. 202 while it is being worked out")
        .asks(&["target_time", "target_lsn", "target_name", "backup"]),
    Route::post("/api/v1/clusters/{cluster}/jobs", Operate, "Job", api::create_job)
        .says("Start a job; what restores or removes needs the cluster's name in 'confirm'")
        .takes("NewJob")
        .starts_a_job(),
    Route::get("/api/v1/jobs", View, "Jobs", api::jobs)
        .says("Jobs, the newest first")
        .asks(&["cluster", "state", "limit", "before"])
        .finds_cluster(),
    Route::get("/api/v1/jobs/{job}", View, "Job", api::job)
        .says("One job, what it said and how it ended")
        .finds_cluster(),
    Route::post("/api/v1/jobs/{job}/cancel", Operate, "Job", api::cancel_job).says("End a job").finds_cluster(),
    Route::post("/api/v1/jobs/{job}/approve", Approve, "Job", approve::approve_job)
        .says("Say yes to a job that somebody else asked for")
        .finds_cluster(),
    Route::get("/api/v1/schedules", View, "Schedules", api::schedules)
        .says("Schedules, and when they run next")
        .finds_cluster(),
    Route::post("/api/v1/session", Anyone, "Session", signin::sign_in)
        .says("Sign in; the session is a cookie")
        .takes("SignIn"),
    Route::delete("/api/v1/session", View, "SignedOut", signin::sign_out)
        .says("Sign out; 'end_session' is where a browser goes to be signed out by the provider, too"),
    Route::get("/api/v1/users", Administer, "Users", signin::users).says("All users, without their passwords"),
    Route::get("/api/v1/alerts", View, "Alerts", knowledge::alerts)
        .says("What people were told of, and have still to be told")
        .finds_cluster(),
    Route::post("/api/v1/alerts/{alert}/acknowledge", Operate, "Job", acknowledge::acknowledge)
        .says("Look after an alert: nobody else is told of it, and nobody is reminded")
        .finds_cluster()
        .starts_a_job(),
    Route::get("/api/v1/incidents", View, "Incidents", knowledge::incidents)
        .says("Declared disasters, as this host knows them")
        .finds_cluster(),
    Route::get("/api/v1/settings", View, "Settings", knowledge::settings)
        .says("Settings in force, by which the server and its jobs go, with where each comes from; secrets are not shown")
        .finds_cluster(),
    Route::get("/api/v1/events", View, "Events", knowledge::events)
        .says("Server-sent events: 'job' when a job is not as it was, 'known' when more is known of a cluster, 'reset' when events were missed")
        .finds_cluster(),
    Route::get("/api/v1/tokens", Administer, "Tokens", api::tokens).says("All tokens, without themselves"),
    Route::post("/api/v1/tokens", Administer, "NewToken", api::create_token)
        .says("Make a token, which is told once")
        .takes("TokenRequest"),
    Route::delete("/api/v1/tokens/{token}", Administer, "Token", api::revoke_token).says("Take a token back"),
    Route::post("/api/backups/create", Administer, "Message", compat::create)
        .says("Back up the system")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::post("/api/backups/create-sync", Administer, "Message", compat::create_sync)
        .says("Back up the system, and answer when it is done")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::get("/api/backups/list", Administer, "SystemBackups", compat::list)
        .says("Backups of the system")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::get("/api/backups/status/health", Administer, "SystemHealth", compat::health)
        .says("Whether backups are made")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::get("/api/backups/{backup_name}", Administer, "SystemBackup", compat::one)
        .says("One backup")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::delete("/api/backups/{backup_name}", Administer, "Message", compat::delete)
        .says("Remove a backup")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::post("/api/backups/verify/{backup_name}", Administer, "Message", compat::verify)
        .says("Read and authenticate all of a backup")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::post("/api/backups/restore", Administer, "Message", compat::restore)
        .says("Restore the system, or parts of it, in place; needs 'confirm': true")
        .takes("SystemRestore")
        .asks(&["cluster"])
        .finds_cluster(),
    Route::page("/", View, page::clusters::all).finds_cluster(),
    Route::page("/sign-in", Anyone, page::sign::form),
    Route::form("/sign-in", Anyone, page::sign::sign_in),
    Route::page("/sign-in/oidc", Anyone, page::oidc::begin),
    Route::page("/sign-in/oidc/callback", Anyone, page::oidc::returned),
    Route::form("/sign-out", View, page::sign::sign_out).finds_cluster(),
    Route::page("/clusters/{cluster}", View, page::clusters::one),
    Route::page("/clusters/{cluster}/plan", View, page::plan::plan),
    Route::page("/clusters/{cluster}/recover", View, page::recover::plan),
    Route::page("/clusters/{cluster}/backups", View, page::backups::all),
    Route::page("/clusters/{cluster}/backups/{backup}", View, page::backups::one),
    Route::page("/clusters/{cluster}/charts", View, page::charts::charts),
    Route::page("/clusters/{cluster}/reports", View, page::reports::all),
    Route::page("/clusters/{cluster}/reports/{report}", View, page::reports::one),
    Route::page("/clusters/{cluster}/audit", View, page::watch::audit),
    Route::form("/clusters/{cluster}/jobs", Operate, page::jobs::create),
    Route::page("/jobs", View, page::jobs::all).finds_cluster(),
    Route::page("/jobs/{job}", View, page::jobs::one).finds_cluster(),
    Route::form("/jobs/{job}/cancel", Operate, page::jobs::cancel).finds_cluster(),
    Route::form("/jobs/{job}/approve", Approve, page::jobs::approve).finds_cluster(),
    Route::page("/alerts", View, page::alerts::alerts).finds_cluster(),
    Route::form("/alerts/{alert}/acknowledge", Operate, page::alerts::acknowledge).finds_cluster(),
    Route::page("/schedules", View, page::watch::schedules).finds_cluster(),
    Route::page("/settings", View, page::watch::settings).finds_cluster(),
    Route::page("/tokens", Administer, page::tokens::all),
    Route::form("/tokens", Administer, page::tokens::create),
    Route::form("/tokens/{token}/revoke", Administer, page::tokens::revoke),
    Route::page("/assets/app.css", Anyone, page::assets::style),
    Route::page("/assets/app.js", Anyone, page::assets::script),
    Route::page("/assets/icon.svg", Anyone, page::assets::icon),
];

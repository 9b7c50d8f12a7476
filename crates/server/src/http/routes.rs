//! Every route: what it does, and what it takes to be allowed to.

use axum::http::Method;

use super::{Handler, api, approve, compat, metrics, signin};
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
        Route { method, path, right, finds_cluster: false, summary: "", answer, body: None, query: &[], handler }
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

    const fn says(self, summary: &'static str) -> Route {
        Route { summary, ..self }
    }

    const fn takes(self, body: &'static str) -> Route {
        Route { body: Some(body), ..self }
    }

    const fn asks(self, query: &'static [&'static str]) -> Route {
        Route { query, ..self }
    }

    const fn finds_cluster(self) -> Route {
        Route { finds_cluster: true, ..self }
    }
}

use Right::{Administer, Anyone, Operate, Recover, View};

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
    Route::post("/api/v1/clusters/{cluster}/jobs", Operate, "Job", api::create_job)
        .says("Start a job; what restores or removes needs the cluster's name in 'confirm'")
        .takes("NewJob"),
    Route::get("/api/v1/jobs", View, "Jobs", api::jobs)
        .says("Jobs, the newest first")
        .asks(&["cluster", "state", "limit", "before"])
        .finds_cluster(),
    Route::get("/api/v1/jobs/{job}", View, "Job", api::job)
        .says("One job, what it said and how it ended")
        .finds_cluster(),
    Route::post("/api/v1/jobs/{job}/cancel", Operate, "Job", api::cancel_job).says("End a job").finds_cluster(),
    Route::post("/api/v1/jobs/{job}/approve", Recover, "Job", approve::approve_job)
        .says("Say yes to a job that somebody else asked for")
        .finds_cluster(),
    Route::get("/api/v1/schedules", View, "Schedules", api::schedules)
        .says("Schedules, and when they run next")
        .finds_cluster(),
    Route::post("/api/v1/session", Anyone, "Session", signin::sign_in)
        .says("Sign in; the session is a cookie")
        .takes("SignIn"),
    Route::delete("/api/v1/session", View, "Health", signin::sign_out).says("Sign out"),
    Route::get("/api/v1/users", Administer, "Users", signin::users).says("All users, without their passwords"),
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
];

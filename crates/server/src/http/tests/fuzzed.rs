//! schemathesis reads the OpenAPI document and sends what fits it, and what nearly does: nothing of it is an internal error.

use std::process::Command;

use super::*;

/// Of each operation and phase; with a seed, so that each run sends the same.
const EXAMPLES: &str = "6";
const SEED: &str = "20261122";

#[test]
fn no_request_that_the_document_allows_or_nearly_allows_is_an_internal_error() {
    let program = match pgark_testkit::schemathesis() {
        Ok(program) => program,
        Err(why) => pgark_testkit::skip!("{why}"),
    };
    let bench = bench("fuzzed");
    let mut config = (*bench.api.config.get()).clone();
    config.web.requests_per_second = 100_000;
    bench.api.config.set(config);
    bench.job("a");
    let listen = "127.0.0.1:0".parse().expect("an address");
    let serving = Serving::start(listen, bench.api.state.clone(), bench.api.config.clone(), bench.api.lookups.clone());
    let serving = serving.expect("it listens");
    let document = bench.scratch.file("openapi.json", openapi().to_string().as_bytes(), 0o644);
    let mut command = Command::new(program);
    command.arg("run").arg(&document).args(["--url", &format!("http://{}", serving.address())]);
    command.args(["--header", &format!("Authorization: Bearer {}", bench.token(Role::Admin, None))]);
    command.args(["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--no-color"]);
    command.args(["--max-examples", EXAMPLES, "--seed", SEED, "--workers", "1", "--generation-database", "none"]);
    // Answered when its job is over, which nobody does here; what goes on for minutes; and what would end the token that asks.
    command.args(["--exclude-path", "/api/backups/create-sync", "--exclude-path", "/api/v1/tokens/{token}"]);
    command.args(["--exclude-path", "/api/v1/events"]);
    let output = command.current_dir(bench.scratch.join("state")).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("passed"), "it asked for nothing: {said}");
}

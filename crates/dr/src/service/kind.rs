//! The service managers: what is run to stop, start and kill, and what their answers mean. Pure.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::{Seen, State, no_answer};
use crate::program::{Ended, How};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A unit.
    Systemd(String),
    /// A service of Windows' service control manager.
    Windows(String),
    /// A container, by name or id.
    Docker(String),
    /// A service of a Compose project.
    Compose {
        file: String,
        service: String,
    },
    /// `deployment/NAME`, `statefulset/NAME`, `deploy/NAME`.
    Kubernetes {
        object: String,
        namespace: Option<String>,
    },
    Commands {
        stop: Vec<String>,
        start: Vec<String>,
        status: Vec<String>,
        kill: Option<Vec<String>>,
    },
    /// A PostgreSQL server, by its own program.
    PgCtl(PgCtl),
}

/// As long as this, what does not end is left alone.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgCtl {
    /// The directory of the server's programs.
    pub bin: String,
    pub data: String,
    /// Where the server writes until it has a log of its own.
    pub log: String,
    pub start_within: Duration,
    /// User and group that the server runs as, where that is not us.
    pub owner: Option<(u32, u32)>,
}

impl PgCtl {
    fn argv(&self, words: &[&str], within: Duration) -> Vec<String> {
        let mut all = self.as_owner(words);
        all.extend(["--wait".to_owned(), format!("--timeout={}", within.as_secs().max(1))]);
        all
    }

    fn start(&self) -> Vec<String> {
        self.argv(&["start", &format!("--log={}", self.log)], self.start_within)
    }

    fn as_owner(&self, words: &[&str]) -> Vec<String> {
        let mut all = match self.owner {
            Some((uid, gid)) => {
                argv(&["setpriv", &format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups", "--"])
            }
            None => vec![],
        };
        all.push(format!("{}/pg_ctl", self.bin));
        all.extend(argv(words));
        all.push(format!("--pgdata={}", self.data));
        all
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Systemd(unit) => write!(f, "the unit {unit}"),
            Kind::Windows(name) => write!(f, "the service {name}"),
            Kind::Docker(name) => write!(f, "the container {name}"),
            Kind::Compose { service, .. } => write!(f, "the Compose service {service}"),
            Kind::Kubernetes { object, namespace: Some(n) } => write!(f, "{object} in namespace {n}"),
            Kind::Kubernetes { object, namespace: None } => f.write_str(object),
            Kind::Commands { stop, .. } => write!(f, "the service of {}", stop.first().map_or("?", String::as_str)),
            Kind::PgCtl(server) => write!(f, "the server in {}", server.data),
        }
    }
}

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

impl Kind {
    /// `within` is how long it may take to end by itself, where the manager is told that: after it, it kills, which is said
    /// only where that is allowed.
    pub fn stop(&self, within: Duration, force: bool) -> Vec<String> {
        let seconds = if force { within } else { NEVER }.as_secs().max(1).to_string();
        match self {
            Kind::Systemd(unit) => argv(&["systemctl", "--no-ask-password", "stop", "--", unit]),
            Kind::Windows(name) => argv(&["sc.exe", "stop", name]),
            Kind::Docker(name) => argv(&["docker", "stop", "-t", &seconds, "--", name]),
            Kind::Compose { file, service } => compose(file, &["stop", "-t", &seconds, "--", service]),
            Kind::Kubernetes { .. } => self.kubectl(&["scale", "--replicas=0"]),
            Kind::Commands { stop, .. } => stop.clone(),
            Kind::PgCtl(server) => server.argv(&["stop", "--mode=fast"], within),
        }
    }

    /// Stops and starts it as one, for what goes on running until then. None: it is stopped, and started.
    pub fn restart(&self) -> Option<Vec<String>> {
        match self {
            Kind::Systemd(unit) => Some(argv(&["systemctl", "--no-ask-password", "restart", "--", unit])),
            Kind::Kubernetes { .. } => Some(self.kubectl(&["rollout", "restart"])),
            _ => None,
        }
    }

    pub fn start(&self, before: Option<&Seen>) -> Vec<String> {
        match self {
            Kind::Systemd(unit) => argv(&["systemctl", "--no-ask-password", "start", "--", unit]),
            Kind::Windows(name) => argv(&["sc.exe", "start", name]),
            Kind::Docker(name) => argv(&["docker", "start", "--", name]),
            Kind::Compose { file, service } => compose(file, &["start", "--", service]),
            Kind::Kubernetes { .. } => {
                // One that was scaled down already is started once.
                let replicas = before.and_then(|b| b.replicas).filter(|n| *n > 0).unwrap_or(1);
                self.kubectl(&["scale", &format!("--replicas={replicas}")])
            }
            Kind::Commands { start, .. } => start.clone(),
            Kind::PgCtl(server) => server.start(),
        }
    }

    /// None when there is no way to force it.
    pub fn kill(&self, seen: &Seen) -> Option<Vec<String>> {
        match self {
            Kind::Systemd(unit) => Some(argv(&["systemctl", "--no-ask-password", "kill", "--signal=KILL", "--", unit])),
            Kind::Windows(_) => {
                let pid = seen.identity.as_deref()?;
                Some(argv(&["taskkill.exe", "/F", "/T", "/PID", pid]))
            }
            Kind::Docker(name) => Some(argv(&["docker", "kill", "--", name])),
            Kind::Compose { file, service } => Some(compose(file, &["kill", "--", service])),
            // Scaled down, its pods are killed by their own grace period.
            Kind::Kubernetes { .. } => None,
            Kind::Commands { kill, .. } => kill.clone(),
            Kind::PgCtl(server) => Some(server.argv(&["stop", "--mode=immediate"], Duration::from_secs(10))),
        }
    }

    pub fn status(&self) -> Vec<String> {
        match self {
            Kind::Systemd(unit) => argv(&[
                "systemctl",
                "show",
                "--property=LoadState,ActiveState,SubState,MainPID,NRestarts,InvocationID",
                "--",
                unit,
            ]),
            Kind::Windows(name) => argv(&["sc.exe", "queryex", name]),
            Kind::Docker(name) => argv(&["docker", "container", "inspect", "--format", "{{json .State}}", "--", name]),
            Kind::Compose { file, service } => compose(file, &["ps", "--all", "--format", "json", "--", service]),
            Kind::Kubernetes { .. } => self.kubectl(&["get", "--output=json"]),
            Kind::Commands { status, .. } => status.clone(),
            Kind::PgCtl(server) => server.as_owner(&["status"]),
        }
    }

    /// What lists the pods of an object that wants none: those that end are not counted in it any more, and still work.
    /// None: the answer does not say which they are.
    pub fn pods(&self, answer: &Ended) -> Option<Vec<String>> {
        let Kind::Kubernetes { namespace, .. } = self else { return None };
        let object: Value = serde_json::from_slice(&answer.stdout).ok()?;
        let mut all = argv(&["kubectl"]);
        all.extend(namespace.iter().map(|n| format!("--namespace={n}")));
        all.extend(argv(&["get", "pods", "--output=json"]));
        all.push(format!("--selector={}", selector(object.pointer("/spec/selector")?)?));
        Some(all)
    }

    fn kubectl(&self, words: &[&str]) -> Vec<String> {
        let Kind::Kubernetes { object, namespace } = self else { return vec![] };
        let mut all = argv(&["kubectl"]);
        if let Some(namespace) = namespace {
            all.push(format!("--namespace={namespace}"));
        }
        all.extend(argv(words));
        all.extend(["--".to_owned(), object.clone()]);
        all
    }

    /// What the answer to `status` says.
    pub fn judge(&self, ended: &Ended) -> Seen {
        match self {
            Kind::Commands { .. } => command_status(ended),
            Kind::PgCtl(_) => pg_ctl(ended),
            // A container that is not there does not run; but then it cannot be started, either.
            _ if !ended.succeeded() => no_answer(ended),
            Kind::Systemd(_) => systemd(&text(ended)),
            Kind::Windows(_) => windows(&text(ended)),
            Kind::Docker(_) => json(ended, docker),
            Kind::Compose { .. } => compose_state(&text(ended)),
            Kind::Kubernetes { .. } => json(ended, kubernetes),
        }
    }
}

fn compose(file: &str, words: &[&str]) -> Vec<String> {
    let mut all = argv(&["docker", "compose", "--file", file]);
    all.extend(argv(words));
    all
}

fn text(ended: &Ended) -> String {
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

fn json(ended: &Ended, judge: fn(&Value) -> Option<Seen>) -> Seen {
    let value = serde_json::from_slice(&ended.stdout).ok();
    value.as_ref().and_then(judge).unwrap_or_else(|| Seen::unknown("an answer that is not understood"))
}

fn seen(state: State, identity: Option<String>, detail: String) -> Seen {
    Seen { state, identity, replicas: None, detail }
}

/// Exit codes of init scripts, as the Linux Standard Base has them: 0 runs, 1 to 3 does not, others are no answer.
fn command_status(ended: &Ended) -> Seen {
    let detail = ended.told();
    match ended.how {
        How::Exited(0) => seen(State::Running, None, detail),
        How::Exited(1..=3) => seen(State::Stopped, None, detail),
        _ => Seen::unknown(detail),
    }
}

/// It ends with 0 and the process id, with 3 when no server runs, with 4 when there is no directory that could have one.
fn pg_ctl(ended: &Ended) -> Seen {
    let said = text(ended);
    let pid = said.split("PID: ").nth(1).and_then(|rest| rest.split(')').next()).map(str::to_owned);
    let detail = ended.told();
    match ended.how {
        How::Exited(0) => seen(State::Running, pid, detail),
        How::Exited(3 | 4) => seen(State::Stopped, None, detail),
        _ => Seen::unknown(detail),
    }
}

fn systemd(answer: &str) -> Seen {
    let of =
        |key: &str| answer.lines().find_map(|l| l.split_once('=').filter(|(k, _)| *k == key)).map(|(_, v)| v.trim());
    let (Some(active), Some(pid)) = (of("ActiveState"), of("MainPID")) else {
        return Seen::unknown("an answer without ActiveState and MainPID");
    };
    if of("LoadState") == Some("not-found") {
        return Seen::unknown("there is no such unit");
    }
    let detail = format!("{active} ({}), main pid {pid}", of("SubState").unwrap_or("?"));
    let identity = of("InvocationID").filter(|i| !i.is_empty()).map(|i| format!("{i} pid {pid}"));
    let state = match active {
        "active" => State::Running,
        "inactive" | "failed" if pid == "0" => State::Stopped,
        // A process that is left of a unit that failed to stop.
        "inactive" | "failed" => State::Running,
        // Also one that is to be restarted.
        "activating" | "deactivating" | "reloading" | "maintenance" | "refreshing" => State::Changing,
        _ => State::Unknown,
    };
    seen(state, identity, detail)
}

/// `STATE : 4 RUNNING`; the number is the same in every language of Windows.
fn windows(answer: &str) -> Seen {
    let of = |key: &str| {
        let line = answer.lines().find(|l| l.trim_start().to_ascii_uppercase().starts_with(key))?;
        line.split_once(':').map(|(_, v)| v.trim())
    };
    let pid = of("PID").filter(|p| *p != "0").map(str::to_owned);
    let number = of("STATE").or_else(|| of("STATUS")).and_then(|s| s.split_whitespace().next());
    let (state, word) = match number {
        Some("1") => (State::Stopped, "stopped"),
        Some("4") => (State::Running, "running"),
        Some("2" | "3" | "5" | "6" | "7") => (State::Changing, "pending or paused"),
        _ => return Seen::unknown("an answer without a state"),
    };
    let detail = format!("{word}{}", pid.as_ref().map(|p| format!(", pid {p}")).unwrap_or_default());
    seen(state, pid, detail)
}

fn docker(state: &Value) -> Option<Seen> {
    let flag = |name: &str| state.get(name).and_then(Value::as_bool);
    let (running, restarting) = (flag("Running")?, flag("Restarting").unwrap_or(false));
    let status = state.get("Status").and_then(Value::as_str).unwrap_or("?");
    let started = state.get("StartedAt").and_then(Value::as_str).unwrap_or("?");
    let health = state.get("Health").and_then(|h| h.get("Status")).and_then(Value::as_str);
    let detail = match health {
        Some(health) => format!("{status}, {health}"),
        None => status.to_owned(),
    };
    let kind = match (running, restarting, health) {
        (_, true, _) | (true, _, Some("starting" | "unhealthy")) => State::Changing,
        (true, ..) if flag("Paused") == Some(true) => State::Changing,
        (true, ..) => State::Running,
        (false, ..) => State::Stopped,
    };
    Some(seen(kind, Some(started.to_owned()), detail))
}

/// One JSON object per line and container; an array in older versions.
fn compose_state(answer: &str) -> Seen {
    let parsed: Option<Vec<Value>> = match serde_json::from_str(answer) {
        Ok(Value::Array(all)) => Some(all),
        _ => answer.lines().filter(|l| !l.trim().is_empty()).map(|l| serde_json::from_str(l).ok()).collect(),
    };
    let Some(all) = parsed else { return Seen::unknown("an answer that is not understood") };
    let of = |c: &Value, key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let states: Vec<(String, String)> = all.iter().map(|c| (of(c, "State"), of(c, "Health"))).collect();
    let detail = match states.as_slice() {
        [] => "it has no container".to_owned(),
        all => all.iter().map(|(s, h)| format!("{s} {h}").trim_end().to_owned()).collect::<Vec<_>>().join(", "),
    };
    let off = |s: &str| matches!(s, "exited" | "created" | "dead");
    let up = |(s, h): &(String, String)| s == "running" && !matches!(h.as_str(), "starting" | "unhealthy");
    let state = match states.as_slice() {
        all if all.iter().all(|(s, _)| off(s)) => State::Stopped,
        all if all.iter().all(up) => State::Running,
        _ => State::Changing,
    };
    let ids: Vec<String> = all.iter().map(|c| of(c, "ID")).collect();
    seen(state, Some(ids.join(" ")), detail)
}

/// A deployment or a stateful set. Stopped when no pod is wanted and none is counted; running when all that are wanted are
/// ready, and of the wanted generation.
fn kubernetes(object: &Value) -> Option<Seen> {
    let wanted = u32::try_from(object.pointer("/spec/replicas").map_or(Some(1), Value::as_u64)?).ok()?;
    let status = object.get("status")?;
    let count = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or(0);
    let generation = object.pointer("/metadata/generation").and_then(Value::as_u64);
    let observed = generation.is_none() || status.get("observedGeneration").and_then(Value::as_u64) >= generation;
    let (there, ready) = (count("replicas"), count("readyReplicas"));
    // Of a stateful set that is being renewed, this is left out when none is; of an older server, always.
    let renewed = status.get("updatedReplicas").and_then(Value::as_u64).unwrap_or(there);
    let detail = format!("{wanted} wanted, {there} there, {renewed} of the newest kind, {ready} ready");
    let state = match (wanted, there) {
        _ if !observed => State::Changing,
        (0, 0) => State::Stopped,
        (0, _) => State::Changing,
        (n, _) if ready == u64::from(n) && there == ready && renewed == ready => State::Running,
        _ => State::Changing,
    };
    Some(Seen { state, identity: None, replicas: Some(wanted), detail })
}

/// A label selector as `kubectl` takes it.
fn selector(selector: &Value) -> Option<String> {
    let labels = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut all: Vec<String> = labels.map(|(k, v)| Some(format!("{k}={}", v.as_str()?))).collect::<Option<_>>()?;
    for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = expression.get("key")?.as_str()?;
        let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
        let values: Vec<&str> = values.map(Value::as_str).collect::<Option<_>>()?;
        all.push(match expression.get("operator")?.as_str()? {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        });
    }
    (!all.is_empty()).then(|| all.join(","))
}

/// Pods that are not over, whatever was asked of them.
pub(super) fn pods_there(ended: &Ended) -> Option<usize> {
    let list: Value = serde_json::from_slice(&ended.stdout).ok()?;
    let is_over =
        |pod: &&Value| matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
    let pods = list.get("items")?.as_array()?;
    Some(pods.iter().filter(|pod| !is_over(pod)).count())
}

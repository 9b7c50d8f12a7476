//! What metrics say of a document of `info`: numbers, taken out of it once. Pure.

use jiff::Timestamp;
use serde_json::Value;

use crate::known::{list, time};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    pub gap_segments: f64,
    /// Complete backups, and those of them that are known not to be restorable.
    pub complete: usize,
    pub damaged: usize,
    pub drilled: Option<Timestamp>,
    pub drill_green: Option<bool>,
    /// The newest backup of each kind and type.
    pub newest: Vec<Newest>,
    pub room: Room,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Newest {
    pub kind: String,
    pub r#type: String,
    pub finished: Timestamp,
    pub size_bytes: f64,
    pub stored_bytes: f64,
    /// None where nothing says when it began.
    pub took_s: Option<f64>,
}

/// Of the repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    /// What was counted, be it everything or not.
    pub used_bytes: Option<f64>,
    /// All of it was counted.
    pub is_counted: bool,
    pub free_bytes: Option<f64>,
    pub total_bytes: Option<f64>,
    pub full_at: Option<Timestamp>,
}

impl Figures {
    /// `document` as `info` printed it, and what it says of the cluster.
    pub fn of(document: &Value, found: &Value) -> Figures {
        let complete = list(found, "backups").iter().filter(|b| b.get("complete") == Some(&Value::Bool(true)));
        let drill = found.get("drill").unwrap_or(&Value::Null);
        let mut figures = Figures {
            // The sum of no numbers is -0.
            gap_segments: list(found, "gaps")
                .iter()
                .filter_map(|g| g.get("segments")?.as_f64())
                .fold(0.0, |sum, n| sum + n),
            drilled: time(drill, "last_green"),
            drill_green: drill.pointer("/last/verdict").and_then(Value::as_str).map(|v| v == "green"),
            room: Room::of(document.get("repository").unwrap_or(&Value::Null)),
            ..Figures::default()
        };
        figures.damaged += list(found, "unrestorable").len();
        for backup in complete {
            figures.complete += 1;
            figures.damaged += usize::from(backup.get("damaged").is_some_and(|d| !d.is_null()));
            figures.see(backup);
        }
        figures
    }

    fn see(&mut self, backup: &Value) {
        let Some(finished) = time(backup, "finished") else { return };
        let word = |key: &str| backup.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, of_type) = (word("kind"), word("type"));
        let known = self.newest.iter().position(|n| n.kind == kind && n.r#type == of_type);
        if known.and_then(|at| self.newest.get(at)).is_some_and(|newest| newest.finished > finished) {
            return;
        }
        let number = |key: &str| backup.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        let newest = Newest {
            kind: kind.to_owned(),
            r#type: of_type.to_owned(),
            finished,
            size_bytes: number("size_bytes"),
            stored_bytes: number("stored_bytes"),
            took_s: time(backup, "started").map(|at| finished.duration_since(at).as_secs_f64()),
        };
        match known.and_then(|at| self.newest.get_mut(at)) {
            Some(older) => *older = newest,
            None => self.newest.push(newest),
        }
    }
}

impl Room {
    fn of(repository: &Value) -> Room {
        let number = |path: &str| repository.pointer(path).and_then(Value::as_f64);
        Room {
            used_bytes: number("/used/bytes"),
            is_counted: repository.pointer("/used/complete") == Some(&Value::Bool(true)),
            free_bytes: number("/free/bytes"),
            total_bytes: number("/free/total_bytes"),
            full_at: repository.get("forecast").and_then(|f| time(f, "full_at")),
        }
    }

    /// What was not counted to its end is not taken for all there is: `counted` is what was, the last time that somebody counted.
    pub fn with_counted(&self, counted: &Room) -> Room {
        match self.is_counted {
            true => self.clone(),
            false => Room { used_bytes: counted.used_bytes, full_at: counted.full_at, ..self.clone() },
        }
    }
}

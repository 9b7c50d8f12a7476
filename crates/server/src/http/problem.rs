//! Why there is no answer, as it is told: a status, a code that stays, what is wrong, and what to do.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::printing::NotPrinted;
use crate::state::StateError;

#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub code: Cow<'static, str>,
    pub message: String,
    pub hint: Option<String>,
    /// In seconds.
    pub retry_after: Option<u64>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Problem {
        Problem { status, code: code.into(), message: message.into(), hint: None, retry_after: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    pub fn wrong(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "E-REQUEST", message)
    }

    /// What a command said, when it could not do what was asked.
    pub fn said(why: NotPrinted) -> Problem {
        let NotPrinted { code, message, hint } = why;
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Problem { status, code: code.into(), message, hint, retry_after: None }
    }

    /// What `source` is of was not read since the state directory was made, or never could be.
    pub fn unread(what: &str, source: &Value) -> Problem {
        let why = source.get("error").and_then(Value::as_str).unwrap_or("it was not read yet");
        let message = format!("{what} is not known: {why}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "E-SERVER-LOOK", message)
            .hint("ask again in a minute; 'source' of the list has why it could not be read")
    }

    /// Also what the caller may not know of.
    pub fn not_found() -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "E-NOT-FOUND", "there is nothing here")
            .hint("/api/v1/openapi.json has the routes; what a token is not for, is not there for it")
    }

    pub fn not_allowed() -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "E-NOT-ALLOWED", "the role does not allow that")
            .hint("GET /api/v1/me says what is allowed")
    }

    pub fn too_many(after: Duration) -> Problem {
        let seconds = after.as_secs() + 1;
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "E-REQUEST-RATE", "too many requests");
        Problem { retry_after: Some(seconds), ..problem }.hint(format!("try again in {seconds} s"))
    }

    pub fn unwritable() -> Problem {
        let message = "nothing can be written down: the disk of the state directory is full, or takes nothing";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "E-SERVER-STATE", message)
            .hint("make room there: jobs and schedules go on by themselves; what is known is still answered")
    }

    pub fn document(&self) -> Value {
        json!({"schema": 1, "error": {"code": self.code, "message": self.message, "hint": self.hint}})
    }

    /// The whole answer, for connections on which no request was understood.
    pub fn on_the_wire(&self) -> Vec<u8> {
        let body = self.document().to_string();
        let length = body.len();
        format!(
            "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}",
            self.status
        )
        .into_bytes()
    }
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Problem {
        match error {
            StateError::NotFound { .. } => Problem::not_found(),
            // What is wrong with our files is for the log, not for who asks.
            other => {
                tracing::error!(target: "pgark", error = %other, "a request cannot be answered");
                if other.is_unwritable() {
                    return Problem::unwritable();
                }
                Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "E-SERVER-STATE",
                    "the state of the server cannot be used",
                )
                .hint("the server's log says why")
            }
        }
    }
}

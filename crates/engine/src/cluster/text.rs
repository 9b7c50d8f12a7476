//! What may be said of a message: without secrets, not too long, its SQLSTATE apart.

/// Shorter secrets are not replaced in messages: that would garble every word and give them away.
const SECRET_BYTES_MIN: usize = 4;
/// PostgreSQL truncates names to this before it repeats them in a message (NAMEDATALEN - 1).
const NAME_BYTES_MAX: usize = 63;

/// A connection URI or string given as a database name: it is used literally, but may hold a password.
pub(super) fn looks_like_conninfo(value: &str) -> bool {
    value.contains("://") || value.contains("password=")
}

/// `message` without any of the `secrets`.
pub(super) fn redact<'a>(message: &str, secrets: impl Iterator<Item = &'a str>) -> String {
    let mut secrets: Vec<&str> = secrets
        .flat_map(|secret| [secret, shortened(secret, NAME_BYTES_MAX)])
        .filter(|secret| secret.len() >= SECRET_BYTES_MIN)
        .collect();
    // The longest first, else the rest of a longer secret that contains a shorter one would stay.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.iter().fold(message.to_owned(), |message, secret| message.replace(secret, "***"))
}

/// The first `bytes_max` bytes of a text, or a little less where that would split a character.
pub(super) fn shortened(text: &str, bytes_max: usize) -> &str {
    (0..=bytes_max.min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Takes the SQLSTATE out of libpq's verbose form, `FATAL:  28P01: text` with a `LOCATION:` line after it.
/// The severity and the text may be in any language; the shape is fixed (libpq: pqBuildErrorMessage3).
pub(super) fn split_verbose(message: &str) -> (String, Option<String>) {
    let is_state = |code: &str| code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    let mut state = None;
    let mut lines = Vec::new();
    for line in message.lines() {
        let found = line.match_indices(":  ").find_map(|(at, mark)| {
            let start = at + mark.len();
            let code = line.get(start..start + 5).filter(|code| is_state(code))?;
            let rest = line.get(start + 5..)?.strip_prefix(": ")?;
            Some((line.get(..start)?, code, rest))
        });
        match found {
            Some((before, code, rest)) => {
                state = Some(code.to_owned());
                lines.push(format!("{before}{rest}"));
            }
            // The source location follows as the last line of its message: `LOCATION:  function, file.c:123`.
            None if state.is_some() && is_location(line) => {}
            None => lines.push(line.to_owned()),
        }
    }
    (lines.join("; "), state)
}

fn is_location(line: &str) -> bool {
    line.rsplit_once(".c:").is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_cut_out_longest_first_and_also_truncated() {
        assert_eq!(redact("a hunter22 b hunter2", ["hunter2", "hunter22"].into_iter()), "a *** b ***");
        let long = "x".repeat(80);
        assert_eq!(redact(&format!("db \"{}\"", &long[..63]), [long.as_str()].into_iter()), "db \"***\"");
        assert_eq!(redact("abc", ["", "a"].into_iter()), "abc");
    }

    #[test]
    fn sqlstate_is_found_in_any_language_and_the_location_dropped() {
        let message = "connection to server at \"h\", port 5432 failed: FATAL:  28P01: Passwort-Authentifizierung \
                       für Benutzer »a« fehlgeschlagen\nORT:  auth_failed, auth.c:323";
        let (text, state) = split_verbose(message);
        assert_eq!(state.as_deref(), Some("28P01"));
        assert!(text.ends_with("fehlgeschlagen") && text.contains("FATAL:  Passwort"), "{text}");
        assert_eq!(
            split_verbose("could not translate host name: x"),
            ("could not translate host name: x".into(), None)
        );
    }
}

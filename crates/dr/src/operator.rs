//! What a user of the operating system is called, also one whom only a directory service knows.

use std::time::Duration;

use pgark_engine::ctx::Ctx;

use crate::program;

/// A directory service that is away must not keep a recovery waiting.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);

/// None: nobody knows.
pub fn name_of(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&passwd, uid).or_else(|| asked("getent", uid))
}

/// As `/etc/passwd` has it.
fn name_in(lines: &str, uid: u32) -> Option<String> {
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    lines.lines().find_map(of)
}

/// Of all that the system's name services know (`nsswitch.conf`).
fn asked(program: &str, uid: u32) -> Option<String> {
    let argv = [program.to_owned(), "passwd".into(), uid.to_string()];
    let ended = program::run(&argv, &[], ANSWERS_WITHIN, &Ctx::silent());
    ended.succeeded().then(|| name_in(&String::from_utf8_lossy(&ended.stdout), uid)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_directory_service_have_a_name() {
        let dir = pgark_testkit::Scratch::new("operator");
        let script = "#!/bin/sh\n[ \"$1\" = passwd ] || exit 1\n[ \"$2\" = 700123 ] || exit 2\n\
                      echo 'ada.lovelace:*:700123:700100:Ada:/home/ada:/bin/bash'\n";
        let getent = dir.file("getent", script.as_bytes(), 0o755).display().to_string();
        assert_eq!(asked(&getent, 700_123).as_deref(), Some("ada.lovelace"));
        assert_eq!(asked(&getent, 700_124), None);
        assert_eq!(asked("/nowhere/getent", 700_123), None);
        assert_eq!(name_of(0).as_deref(), Some("root"));
        assert_eq!(name_in("broken\nx::\n:*:5:", 5), None);
    }
}

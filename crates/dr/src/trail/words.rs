//! Arguments as they may be written down: without what looks like a secret, and not without end.

/// Ids that one end of a command tells.
pub(super) const ABOUT_MAX: usize = 64;
const ARGUMENTS_MAX: usize = 64;
const ARGUMENT_CHARS_MAX: usize = 512;

/// What stands before a secret: in connection strings, queries of URLs, notes.
const NAMES: &[&str] =
    &["password", "passphrase", "secret", "token", "signature", "credential", "access_key", "api_key", "apikey"];
const HIDDEN: &str = "***";

/// No argument of ours takes a secret; one that was put where it does not belong is not kept for six years.
pub fn without_secrets(arguments: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = arguments.iter().take(ARGUMENTS_MAX).map(|a| shortened(&redacted(a))).collect();
    if arguments.len() > ARGUMENTS_MAX {
        kept.push(format!("… and {} more", arguments.len() - ARGUMENTS_MAX));
    }
    kept
}

fn shortened(argument: &str) -> String {
    match argument.char_indices().nth(ARGUMENT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", argument.get(..end).unwrap_or_default()),
        None => argument.to_owned(),
    }
}

fn redacted(argument: &str) -> String {
    let mut text = without_user_info(argument);
    for name in NAMES {
        text = without_value(&text, name);
    }
    text
}

/// `scheme://user:secret@host` without the secret.
fn without_user_info(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            let hidden = if authority.contains(':') && user.len() < authority.len() - host.len() - 1 {
                format!("{user}:{HIDDEN}")
            } else {
                user.to_owned()
            };
            format!("{scheme}://{hidden}@{host}{after}")
        }
        None => text.to_owned(),
    }
}

/// After every `name…=`, up to what ends a value. `--passphrase-file=F` names a file, and not a secret.
fn without_value(text: &str, name: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let (mut out, mut from) = (String::new(), 0);
    while let Some(at) = lower.get(from..).and_then(|rest| rest.find(name)).map(|n| n + from) {
        let after = at + name.len();
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || b"_-".contains(b);
        let word = lower.as_bytes().get(after..).unwrap_or_default().iter().take_while(|b| is_word(b)).count();
        let stem = lower.get(after..after + word).unwrap_or_default();
        let rest = text.get(after + word..).unwrap_or_default();
        out.push_str(text.get(from..after + word).unwrap_or_default());
        from = after + word;
        let names_a_place = ["file", "command"].iter().any(|s| stem.ends_with(s));
        if let Some(value) = rest.strip_prefix('=').filter(|_| !names_a_place) {
            let quote = value.chars().next().filter(|c| "'\"".contains(*c));
            let end = match quote {
                Some(q) => value.get(1..).and_then(|v| v.find(q)).map_or(value.len(), |n| n + 2),
                None => value.find([' ', '&', ';', ',']).unwrap_or(value.len()),
            };
            out.push('=');
            out.push_str(HIDDEN);
            from += 1 + end;
        }
    }
    out.push_str(text.get(from..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_not_kept() {
        for (given, kept) in [
            ("--type", "--type"),
            ("--passphrase-file=/etc/x", "--passphrase-file=/etc/x"),
            ("s3://key:geheim@bucket/p?region=eu", "s3://key:***@bucket/p?region=eu"),
            ("s3://b/p?secret_access_key=geheim&region=eu", "s3://b/p?secret_access_key=***&region=eu"),
            ("host=h password='ge heim' dbname=x", "host=h password=*** dbname=x"),
            ("PASSWORD=geheim", "PASSWORD=***"),
            ("note=the password was changed", "note=the password was changed"),
            ("sftp://backup@host/p", "sftp://backup@host/p"),
            ("https://hook/x?token=geheim", "https://hook/x?token=***"),
        ] {
            assert_eq!(without_secrets(&[given.to_owned()]), [kept], "{given}");
        }
        let many = vec!["ä".repeat(600); 70];
        let kept = without_secrets(&many);
        assert_eq!((kept.len(), kept[0].chars().count()), (65, 513));
    }
}

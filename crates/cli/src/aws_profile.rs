//! Keys from the shared files of the AWS tools, where the environment has none: `~/.aws/credentials` and `~/.aws/config`
//! (https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

type Section = BTreeMap<String, String>;

/// Settings of a profile, and the variable that says the same.
const KNOWN: [(&str, &str); 4] = [
    ("aws_access_key_id", "AWS_ACCESS_KEY_ID"),
    ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"),
    ("aws_session_token", "AWS_SESSION_TOKEN"),
    ("region", "AWS_REGION"),
];

/// Ways to credentials that need the AWS tools themselves.
const NOT_OURS: [&str; 4] = ["role_arn", "sso_session", "sso_start_url", "credential_process"];

/// Adds what the profile says. One that was named in the URL goes before keys in the environment; the usual one only
/// fills a gap.
pub fn complete(
    variables: &mut Vec<(String, String)>,
    named: Option<&str>,
    home: Option<&Path>,
) -> Result<(), Failure> {
    let get = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let has_others = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"]
        .iter()
        .chain(&["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"])
        .any(|name| get(name).is_some());
    let asked = named.map(str::to_owned).or_else(|| get("AWS_PROFILE"));
    if named.is_none() && has_others {
        return Ok(());
    }
    let file = |variable: &str, name: &str| {
        get(variable).map(PathBuf::from).or_else(|| home.map(|h| h.join(".aws").join(name)))
    };
    let profile = asked.clone().unwrap_or_else(|| "default".into());
    let mut found = Section::new();
    let heading = if profile == "default" { profile.clone() } else { format!("profile {profile}") };
    let mut seen = false;
    let places = [
        (file("AWS_CONFIG_FILE", "config"), heading),
        (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), profile.clone()),
    ];
    for (path, heading) in places {
        let Some(path) = path else { continue };
        if let Some(section) = read(&path)?.remove(&heading) {
            seen = true;
            found.extend(section);
        }
    }
    if !seen {
        return match asked {
            None => Ok(()),
            Some(_) => Err(Failure::usage("E-AWS-PROFILE", format!("there is no AWS profile '{profile}'"))
                .hint("'aws configure list-profiles' names those of this user")),
        };
    }
    if !found.contains_key("aws_access_key_id") {
        if let Some(way) = NOT_OURS.iter().find(|way| found.contains_key(**way)) {
            return Err(Failure::usage(
                "E-AWS-PROFILE",
                format!("AWS profile '{profile}' uses {way}, which pgark does not follow"),
            )
            .hint("'aws configure export-credentials --format env' gives variables that pgark takes"));
        }
        if asked.is_none() {
            return Ok(());
        }
    }
    for (setting, variable) in KNOWN {
        let Some(value) = found.remove(setting) else { continue };
        let is_key = variable != "AWS_REGION";
        if named.is_some() && is_key {
            variables.retain(|(n, _)| n != variable);
        }
        let regions = ["AWS_REGION", "AWS_DEFAULT_REGION"];
        if is_key || !variables.iter().any(|(n, _)| regions.contains(&n.as_str())) {
            variables.push((variable.to_owned(), value));
        }
    }
    Ok(())
}

/// The sections of a file; none when there is no such file.
fn read(path: &Path) -> Result<BTreeMap<String, Section>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(Failure::failed("E-AWS-PROFILE", format!("{}: {e}", path.display()))),
    };
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut heading = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            heading = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(heading.clone()).or_default();
        } else if let Some((name, value)) = trimmed.split_once('=')
            // Nested settings are indented and none of ours.
            && !line.starts_with([' ', '\t'])
        {
            let section = sections.entry(heading.clone()).or_default();
            section.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    Ok(sections)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    fn completed(pairs: &[(&str, &str)], named: Option<&str>, home: &Path) -> Result<Vec<(String, String)>, Failure> {
        let mut all = variables(pairs);
        complete(&mut all, named, Some(home)).map(|()| all)
    }

    fn home(credentials: &str, config: &str) -> tempdir::Dir {
        let dir = tempdir::Dir::new();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::write(dir.path().join(".aws/credentials"), credentials).unwrap();
        std::fs::write(dir.path().join(".aws/config"), config).unwrap();
        dir
    }

    mod tempdir {
        use std::path::{Path, PathBuf};
        use std::sync::atomic::{AtomicU32, Ordering};

        pub struct Dir(PathBuf);

        impl Dir {
            pub fn new() -> Self {
                static NEXT: AtomicU32 = AtomicU32::new(0);
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                let path = std::env::temp_dir().join(format!("pgark-aws-{}-{n}", std::process::id()));
                std::fs::create_dir(&path).unwrap();
                Dir(path)
            }

            pub fn path(&self) -> &Path {
                &self.0
            }
        }

        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    const CREDENTIALS: &str = "[default]\naws_access_key_id = D\naws_secret_access_key=DS\n\n# a comment\n[backup]\n\
                               aws_access_key_id=B\naws_secret_access_key = BS\naws_session_token = BT\n";
    const CONFIG: &str = "[default]\nregion = eu-central-1\n[profile backup]\nregion=eu-west-1\ns3 =\n  region = nested\n\
                          [profile role]\nrole_arn = arn:aws:iam::1:role/x\n";

    #[test]
    fn a_profile_fills_what_the_environment_leaves_open() {
        let dir = home(CREDENTIALS, CONFIG);
        let expect =
            variables(&[("AWS_ACCESS_KEY_ID", "D"), ("AWS_SECRET_ACCESS_KEY", "DS"), ("AWS_REGION", "eu-central-1")]);
        assert_eq!(completed(&[], None, dir.path()).unwrap(), expect);
        let own = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "ES")];
        assert_eq!(completed(&own, None, dir.path()).unwrap(), variables(&own));
        let found = completed(&[("AWS_PROFILE", "backup"), ("AWS_REGION", "us-east-1")], None, dir.path()).unwrap();
        assert!(found.contains(&("AWS_ACCESS_KEY_ID".into(), "B".into())));
        assert!(found.contains(&("AWS_SESSION_TOKEN".into(), "BT".into())));
        assert_eq!(found.iter().filter(|(n, _)| n == "AWS_REGION").count(), 1);
    }

    #[test]
    fn a_profile_named_in_the_url_goes_before_the_environment() {
        let dir = home(CREDENTIALS, CONFIG);
        let found = completed(&[("AWS_ACCESS_KEY_ID", "E")], Some("backup"), dir.path()).unwrap();
        let keys: Vec<_> = found.iter().filter(|(n, _)| n == "AWS_ACCESS_KEY_ID").collect();
        assert_eq!(keys, [&("AWS_ACCESS_KEY_ID".to_owned(), "B".to_owned())]);
        assert!(found.contains(&("AWS_REGION".into(), "eu-west-1".into())));
    }

    #[test]
    fn profiles_that_cannot_be_followed_are_named() {
        let dir = home(CREDENTIALS, CONFIG);
        let none = completed(&[], Some("none"), dir.path()).unwrap_err();
        assert!(none.message.contains("'none'"), "{}", none.message);
        let role = completed(&[], Some("role"), dir.path()).unwrap_err();
        assert!(role.message.contains("role_arn"), "{}", role.message);
        let empty = tempdir::Dir::new();
        assert_eq!(completed(&[], None, empty.path()).unwrap(), variables(&[]));
    }
}

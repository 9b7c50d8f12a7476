//! What an ID token says of a person, once it is verified.
//!
//! A claim is found by its name, and when there is none by a path: `realm_access.roles` is `roles` in `realm_access`.

use serde_json::Value;

use super::{OidcConfig, Person};

/// Core 1.0, 2: `sub` has at most 255 ASCII characters.
const SUBJECT_BYTES_MAX: usize = 255;
const NAME_CHARS_MAX: usize = 128;
const GROUPS_MAX: usize = 1000;
const GROUP_BYTES_MAX: usize = 256;
/// Of what others have written, in a message.
const SHOWN_CHARS_MAX: usize = 300;
/// As far as a person has any of them.
const NAMES: [&str; 3] = ["preferred_username", "email", "sub"];

/// # Errors
/// What is missing, or cannot be.
pub fn person(config: &OidcConfig, claims: &Value) -> Result<Person, String> {
    let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    let is_subject =
        (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && subject.bytes().all(|b| (b' '..=b'~').contains(&b));
    if !is_subject {
        return Err("the ID token has a 'sub' that cannot be: 1 to 255 characters of ASCII".into());
    }
    let name = name(claims, config.name_claim.as_deref())?;
    let groups = groups(claims, &config.groups_claim)?;
    Ok(Person { issuer: config.issuer.clone(), subject: subject.to_owned(), name, groups })
}

fn at<'a>(claims: &'a Value, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| name.split('.').try_fold(claims, |found, key| found.get(key)))
}

fn name(claims: &Value, wanted: Option<&str>) -> Result<String, String> {
    let wanted = wanted.as_ref().map_or(&NAMES[..], std::slice::from_ref);
    let mut given = wanted.iter().filter_map(|name| at(claims, name)?.as_str()).map(str::trim);
    let name = given.find(|name| !name.is_empty());
    let name =
        name.ok_or_else(|| format!("the ID token has no claim '{}' to call somebody by", wanted.join("', '")))?;
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(format!("a name has at most {NAME_CHARS_MAX} characters, and none that cannot be seen"));
    }
    Ok(name.to_owned())
}

/// None at all is no mistake: providers leave the claim out then.
fn groups(claims: &Value, wanted: &str) -> Result<Vec<String>, String> {
    let all = match at(claims, wanted) {
        // Entra ID gives an address instead of more than 200.
        None if claims.pointer("/_claim_names").is_some_and(|names| names.get(wanted).is_some()) => {
            return Err(format!(
                "the claim '{wanted}' has too many groups for an ID token: assign those that matter alone"
            ));
        }
        None | Some(Value::Null) => vec![],
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => {
            let texts: Option<Vec<String>> = all.iter().map(|one| one.as_str().map(str::to_owned)).collect();
            texts.ok_or_else(|| format!("the claim '{wanted}' is no list of names"))?
        }
        Some(_) => return Err(format!("the claim '{wanted}' is no list of names")),
    };
    if all.len() > GROUPS_MAX || all.iter().any(|group| group.len() > GROUP_BYTES_MAX) {
        return Err(format!(
            "the claim '{wanted}' has more than {GROUPS_MAX} groups, or one of more than {GROUP_BYTES_MAX} bytes"
        ));
    }
    Ok(all)
}

/// What others have written, for a log and a page: short, and on one line.
pub fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(clean).take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_groups_are_found_where_providers_put_them() {
        let claims = json!({"sub": "4711", "email": "ada@example.org", "preferred_username": " ", "groups": ["dba", "staff"],
            "realm_access": {"roles": ["r"]}, "https://example.org/groups": "one", "odd": [1]});
        assert_eq!(name(&claims, None).as_deref(), Ok("ada@example.org"));
        assert_eq!(name(&claims, Some("sub")).as_deref(), Ok("4711"));
        assert_eq!(name(&json!({"sub": "4711"}), None).as_deref(), Ok("4711"));
        assert!(name(&claims, Some("nickname")).is_err_and(|why| why.contains("'nickname'")));
        assert!(name(&json!({"sub": "a\nb"}), None).is_err() && name(&json!({"sub": "x".repeat(129)}), None).is_err());
        assert_eq!(groups(&claims, "groups"), Ok(vec!["dba".into(), "staff".into()]));
        assert_eq!(groups(&claims, "realm_access.roles"), Ok(vec!["r".into()]));
        assert_eq!(groups(&claims, "https://example.org/groups"), Ok(vec!["one".into()]));
        assert_eq!(groups(&claims, "nowhere"), Ok(vec![]));
        assert!(groups(&claims, "odd").is_err() && groups(&claims, "realm_access").is_err());
        let elsewhere = json!({"_claim_names": {"groups": "src1"}});
        assert!(groups(&elsewhere, "groups").is_err_and(|why| why.contains("too many")));
        assert!(groups(&json!({"groups": vec!["g"; GROUPS_MAX + 1]}), "groups").is_err());
    }
}

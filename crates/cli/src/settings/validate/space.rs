//! Classes and prices.

use super::complaint;
use crate::failure::Failure;
use crate::settings::nearest::nearest;
use crate::settings::repo_url::Scheme;
use crate::settings::schema::{Document, RepoSection};
use crate::settings::space::{
    LATER_CLASS, PriceSection, archive_classes, default_class, immediate_classes, refused_class,
};
use crate::settings::tree::Node;

const DAY_SECONDS: u64 = 86_400;
/// Rules of a bucket that one repository may take up.
const RULES_MAX: usize = 10;

pub fn repo(document: &Document, tree: &Node, name: &str, repo: &RepoSection) -> Result<(), Failure> {
    let wrong = |key: &str, message: &str| complaint(tree, &["repos", name, key], "E-CONFIG-VALUE", message);
    let scheme = repo.url.scheme;
    if let Some(prices) = repo.prices.as_deref().filter(|p| !document.prices.contains_key(*p)) {
        let near = nearest(prices, document.prices.keys().map(String::as_str));
        let failure = wrong("prices", "no such price table");
        return Err(failure.hint(near.map_or_else(
            || format!("add [prices.{prices}], or take the name out"),
            |near| format!("did you mean '{near}'?"),
        )));
    }
    if let Some(why) = repo.url.option("storage_class").and_then(|class| refused_class(scheme, class)) {
        return Err(wrong("url", &why).hint(LATER_CLASS));
    }
    if repo.class_after.is_empty() {
        return Ok(());
    }
    if matches!(scheme, Scheme::File | Scheme::Sftp) {
        return Err(wrong("class_after", "only object stores have classes"));
    }
    if repo.class_after.len() > RULES_MAX {
        return Err(wrong("class_after", &format!("at most {RULES_MAX} classes")));
    }
    for (age, class) in &repo.class_after {
        let of_age = |message: String| wrong("class_after", &message);
        if age.0.as_secs() < DAY_SECONDS || age.0.as_secs() % DAY_SECONDS != 0 || age.0.subsec_nanos() != 0 {
            return Err(of_age(format!("the age {age} is not a whole number of days")));
        }
        if immediate_classes(scheme).contains(&class.as_str()) {
            continue;
        }
        if !archive_classes(scheme).contains(&class.as_str()) {
            let known = immediate_classes(scheme).iter().copied();
            let near = nearest(class, known.clone().chain(archive_classes(scheme).iter().copied()));
            let hint = near.map_or_else(
                || format!("known are {}", known.collect::<Vec<_>>().join(", ")),
                |n| format!("did you mean '{n}'?"),
            );
            return Err(of_age(format!("'{}' is no class of this store", class.escape_debug())).hint(hint));
        }
        if !repo.allow_archive_classes {
            return Err(of_age(format!(
                "objects of class {class} must be thawed, for hours, before a restore can read them"
            ))
            .hint("take a class that is read at once, or say allow_archive_classes = true"));
        }
    }
    in_order(repo).map_err(|message| wrong("class_after", &message))
}

/// No store moves an object to a warmer class, and S3 moves none to its infrequent ones before this age.
const INFREQUENT_FROM_DAYS: u64 = 30;

fn in_order(repo: &RepoSection) -> Result<(), String> {
    let scheme = repo.url.scheme;
    let rank = |class: &str| warm_to_cold(scheme).position(|c| c == class);
    let mut rules: Vec<(u64, &str)> =
        repo.class_after.iter().map(|(age, class)| (age.0.as_secs() / DAY_SECONDS, class.as_str())).collect();
    rules.extend(repo.url.option("storage_class").map(|written| (0, written)));
    rules.sort_unstable();
    for pair in rules.windows(2) {
        let &[(_, first), (days, next)] = pair else { continue };
        if rank(next) <= rank(first) {
            return Err(format!("after {first}, objects cannot go to {next} at {days} days: classes only get colder"));
        }
    }
    let infrequent = |(days, class): &&(u64, &str)| {
        let has_an_age = *days > 0 && *days < INFREQUENT_FROM_DAYS;
        has_an_age && scheme == Scheme::S3 && matches!(*class, "STANDARD_IA" | "ONEZONE_IA")
    };
    match rules.iter().find(infrequent) {
        Some((days, class)) => {
            Err(format!("objects go to {class} at {INFREQUENT_FROM_DAYS} days at the earliest, not at {days}"))
        }
        None => Ok(()),
    }
}

fn warm_to_cold(scheme: Scheme) -> impl Iterator<Item = &'static str> {
    // S3 moves from its tiering class into the one zone and not back.
    let s3: &[&str] = &["STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR"];
    let immediate = if scheme == Scheme::S3 { s3 } else { immediate_classes(scheme) };
    immediate.iter().chain(archive_classes(scheme)).copied()
}

pub fn prices(tree: &Node, name: &str, prices: &PriceSection) -> Result<(), Failure> {
    let all =
        [("write_requests", prices.write_requests), ("read_requests", prices.read_requests), ("egress", prices.egress)];
    let by_class = prices.storage.values().map(|p| ("storage", *p));
    let retrieval = prices.retrieval.values().map(|p| ("retrieval", *p));
    for (key, price) in all.into_iter().chain(by_class).chain(retrieval) {
        if !price.is_finite() || price < 0.0 {
            return Err(complaint(tree, &["prices", name, key], "E-CONFIG-VALUE", "a price is a number from 0 on"));
        }
    }
    if prices.currency.is_empty()
        || prices.currency.chars().count() > 8
        || prices.currency.chars().any(char::is_control)
    {
        let message = "a currency has 1 to 8 characters, such as \"EUR\"";
        return Err(complaint(tree, &["prices", name, "currency"], "E-CONFIG-VALUE", message));
    }
    if prices.storage.is_empty() {
        let message = format!("there is no price of any class, such as {} = 0.02", default_class(Scheme::S3));
        return Err(complaint(tree, &["prices", name, "storage"], "E-CONFIG-VALUE", &message));
    }
    Ok(())
}

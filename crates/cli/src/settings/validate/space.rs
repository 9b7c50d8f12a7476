//! Classes and prices.

use super::complaint;
use crate::failure::Failure;
use crate::settings::nearest::nearest;
use crate::settings::repo_url::Scheme;
use crate::settings::schema::{Document, RepoSection};
use crate::settings::space::{PriceSection, archive_classes, default_class, immediate_classes};
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
    if let Some(class) = repo.url.option("storage_class") {
        // New objects include the catalog and the key ring.
        if archive_classes(scheme).contains(&class) {
            return Err(wrong(
                "url",
                &format!("objects of class {class} cannot be read at once: no repository can work there"),
            )
            .hint("class_after moves packs later; docs/capacity.md tells which classes there are"));
        }
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
    Ok(())
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

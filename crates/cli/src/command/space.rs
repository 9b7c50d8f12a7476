//! How a repository's room is shown: the JSON document and the text of `info` and `check`.

use pgark_engine::capacity::cost::{self, Cost};
use pgark_engine::capacity::growth::{Forecast, Trend};
use pgark_engine::capacity::usage::{Amount, ClusterUsage, Usage};
use pgark_engine::capacity::{LimitedBy, Measured, Room};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::human_bytes;
use crate::settings::{RepoSettings, Settings};

/// `name`: how the repository is called in the configuration; its URL where it is not configured.
pub fn document(name: &str, url: &str, found: &Measured) -> Value {
    json!({
        "name": name, "url": url, "used": used(&found.usage), "free": room(&found.room), "growth": growth(found),
        "forecast": forecast(&found.forecast),
    })
}

fn amount(a: Amount) -> Value {
    json!({"objects": a.objects, "bytes": a.bytes})
}

fn used(usage: &Usage) -> Value {
    let cluster = |(name, of): (&String, &ClusterUsage)| {
        json!({"name": name, "bytes": of.bytes(), "packs": amount(of.packs), "manifests": amount(of.manifests),
            "wal": amount(of.wal), "catalog": amount(of.catalog)})
    };
    json!({
        "bytes": usage.counted(), "complete": !usage.incomplete,
        "clusters": usage.clusters.iter().map(cluster).collect::<Vec<_>>(),
        "keys": amount(usage.keys), "other": amount(usage.other),
    })
}

fn room(room: &Room) -> Value {
    match room {
        Room::Known { free_bytes, total_bytes, free_files, by } => json!({
            "known": true, "bytes": free_bytes, "total_bytes": total_bytes, "files": free_files,
            "limited_by": match by { LimitedBy::Store => "store", LimitedBy::Setting => "setting" },
        }),
        Room::Unlimited => json!({"known": true, "unlimited": true, "bytes": null}),
        Room::Unknown(why) => json!({"known": false, "why": why, "bytes": null}),
    }
}

fn growth(found: &Measured) -> Value {
    let rates = &found.rates;
    let added = (rates.clusters > 0 && rates.lacking.is_empty()).then(|| {
        json!({"bytes_per_day": rates.bytes_per_day() as i64, "backups_bytes_per_day": rates.backups_bytes as i64,
            "wal_bytes_per_day": rates.wal_bytes as i64, "backups": rates.backups, "days": rates.span_days})
    });
    let (method, days, samples, why) = match &found.trend {
        Trend::Counted { samples, span_days, .. } => ("counted", Some(*span_days), Some(*samples), None),
        Trend::Added { span_days, .. } => ("added", Some(*span_days), None, None),
        Trend::NotEnough(why) => ("not enough history", None, None, Some(why)),
    };
    json!({"method": method, "bytes_per_day": found.trend.bytes_per_day().map(|b| b as i64), "days": days,
        "samples": samples, "why": why, "added": added})
}

fn forecast(forecast: &Forecast) -> Value {
    match forecast {
        Forecast::Full { at, days, earliest } => json!({"full_at": at, "full_in_days": days, "earliest": earliest}),
        Forecast::Far | Forecast::Unlimited => {
            json!({"full_at": null, "full_in_days": null, "why": forecast.to_string()})
        }
        Forecast::Unknown(why) => json!({"full_at": null, "full_in_days": null, "unknown": true, "why": why}),
    }
}

pub fn text(found: &Measured) -> String {
    let usage = &found.usage;
    let mut out = String::new();
    for (name, of) in &usage.clusters {
        out += &format!(
            "  {name}: {} (packs {}, manifests {}, WAL {}, catalog {})\n",
            human_bytes(of.bytes()),
            human_bytes(of.packs.bytes),
            human_bytes(of.manifests.bytes),
            human_bytes(of.wal.bytes),
            human_bytes(of.catalog.bytes)
        );
    }
    let total = human_bytes(usage.counted());
    out += &match usage.incomplete {
        true => format!("  used: at least {total}; counting was stopped (--count-for 10m counts for longer)\n"),
        false => format!("  used: {total}\n"),
    };
    out += &format!("  free space: {}\n  growth: {}\n  forecast: {}\n", found.room, found.trend, found.forecast);
    out
}

/// What the repository costs, by the price table that it names.
///
/// # Errors
/// `E-PRICES` when there is none, or one without a class that is in use.
pub fn cost_of(settings: &Settings, repo: &RepoSettings, found: &Measured) -> Result<Cost, Failure> {
    let none = || {
        Failure::usage("E-PRICES", format!("repository {} names no price table", repo.name))
            .hint("add prices = \"NAME\" to it, and [prices.NAME] to pgark.toml; docs/capacity.md has an example")
    };
    let table = repo.space.prices.as_ref().and_then(|name| settings.prices.get(name)).ok_or_else(none)?;
    let classes = repo.space.classes(repo.url.scheme, repo.url.option("storage_class"));
    cost::cost(&found.usage, &found.rates, &found.trend, &classes, &table.into())
        .map_err(|why| Failure::usage("E-PRICES", why).hint("add it to [prices.NAME.storage] in pgark.toml"))
}

pub fn cost_document(cost: &Cost) -> Value {
    let cents = |v: f64| (v * 100.0).round() / 100.0;
    json!({
        "currency": cost.currency, "estimate": true,
        "storage": cost.storage.iter().map(|s| json!({"class": s.class, "bytes": s.bytes, "month": cents(s.month)}))
            .collect::<Vec<_>>(),
        "storage_month": cents(cost.storage_month), "requests_month": cost.requests_month.map(cents),
        "forecast": cost.forecast.iter().map(|(days, month)| json!({"days": days, "storage_month": month.map(cents)}))
            .collect::<Vec<_>>(),
        "restores": cost.restores.iter().map(|r| json!({"cluster": r.cluster, "bytes": r.bytes,
            "requests": cents(r.requests), "retrieval": cents(r.retrieval), "egress": cents(r.egress),
            "total": cents(r.total)})).collect::<Vec<_>>(),
    })
}

pub fn cost_text(cost: &Cost) -> String {
    let money = |v: f64| format!("{v:.2} {}", cost.currency);
    let mut out = format!("  cost of a month, estimated: {} for storage", money(cost.storage_month));
    let classes: Vec<String> =
        cost.storage.iter().map(|s| format!("{} {} {}", s.class, human_bytes(s.bytes), money(s.month))).collect();
    out += &format!(" ({})", classes.join(", "));
    out += &match cost.requests_month {
        Some(requests) => format!(", {} for requests\n", money(requests)),
        None => ", requests not known: not enough history\n".to_owned(),
    };
    for (days, month) in &cost.forecast {
        let month = month.map_or_else(|| "not known: not enough history".to_owned(), money);
        out += &format!("    storage of a month in {days} days: {month}\n");
    }
    for r in &cost.restores {
        out += &format!(
            "    one restore of the newest backup of {}: {} ({} read; WAL not counted)\n",
            r.cluster,
            money(r.total),
            human_bytes(r.bytes)
        );
    }
    out
}

//! What is sent to whom. Pure: the shapes that the receivers document.

use aws_lc_rs::hmac;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::sink::Told;
use super::{Said, Severity};

/// Longest message that OpsGenie shows, and summary that PagerDuty takes, characters.
const OPSGENIE_MESSAGE_CHARS: usize = 130;
const PAGERDUTY_SUMMARY_CHARS: usize = 1024;
const SUBJECT_CHARS: usize = 200;
/// For how long Alertmanager keeps an alert that is not sent again.
const FIRES_FOR: SignedDuration = SignedDuration::from_hours(8 * 24);

fn cut(text: &str, chars: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars).collect()
}

fn word(told: &Told<'_>) -> String {
    match told.said {
        Said::Firing => told.alert.finding.severity.as_str().to_uppercase(),
        Said::Acknowledged => "ACKNOWLEDGED".into(),
        Said::Resolved => "RESOLVED".into(),
        Said::Test => "TEST".into(),
    }
}

pub(super) fn subject(told: &Told<'_>) -> String {
    let finding = &told.alert.finding;
    cut(&format!("[pgark] {} {}: {}", word(told), finding.cluster, finding.summary), SUBJECT_CHARS)
}

pub(super) fn text(told: &Told<'_>) -> String {
    let (alert, finding) = (told.alert, &told.alert.finding);
    let mut lines = vec![
        format!("{}: {}", word(told), cut(&finding.summary, usize::MAX)),
        String::new(),
        format!("cluster  {}", finding.cluster),
        format!("host     {}", alert.host),
        format!("rule     {}", finding.rule),
        format!("since    {}", alert.opened),
        format!("seen     {} times, last at {}", alert.count, alert.seen),
    ];
    lines.extend(alert.resolved.map(|at| format!("resolved {at}")));
    lines.extend(alert.acknowledged.as_ref().map(|a| format!("acknowledged by {} at {}", a.by, a.at)));
    lines.extend(finding.details.iter().map(|(name, value)| format!("{name}: {}", cut(value, 1000))));
    if alert.resolved.is_none() {
        lines.push(String::new());
        lines.push(format!("'pgark alert ack {}' on {} says that you look after it", alert.id, alert.host));
    }
    lines.join("\n") + "\n"
}

/// For webhooks and commands: all of it, in our own words.
pub fn document(told: &Told<'_>) -> Value {
    let (alert, finding) = (told.alert, &told.alert.finding);
    json!({"schema": super::SCHEMA, "delivery": told.delivery, "event": told.said.as_str(), "alert": alert.id,
        "key": finding.key, "rule": finding.rule, "severity": finding.severity, "cluster": finding.cluster,
        "host": alert.host, "summary": finding.summary, "details": finding.details, "opened": alert.opened,
        "seen": alert.seen, "count": alert.count, "resolved": alert.resolved,
        "acknowledged_by": alert.acknowledged.as_ref().map(|a| &a.by), "level": alert.level})
}

/// Over the time and the body, so that neither can be exchanged.
pub fn signature(secret: &[u8], time: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut context = hmac::Context::with_key(&key);
    context.update(time.as_bytes());
    context.update(b".");
    context.update(body);
    format!("sha256={}", pgark_repo::crypto::hex(context.sign().as_ref()))
}

fn color(told: &Told<'_>) -> &'static str {
    match (told.said, told.alert.finding.severity) {
        (Said::Resolved, _) => "#2eb886",
        (_, Severity::Critical) => "#d50200",
        (_, Severity::Warning) => "#daa038",
        (_, Severity::Info) => "#439fe0",
    }
}

/// `&`, `<` and `>` have a meaning there.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// An incoming webhook.
pub fn slack(told: &Told<'_>) -> Value {
    let finding = &told.alert.finding;
    let field = |title: &str, value: &str| json!({"title": title, "value": escaped(value), "short": true});
    let mut fields =
        vec![field("cluster", &finding.cluster), field("host", &told.alert.host), field("rule", &finding.rule)];
    fields.extend(finding.details.iter().take(10).map(|(name, value)| field(name, &cut(value, 300))));
    json!({"text": escaped(&subject(told)), "attachments": [{"color": color(told),
        "fallback": escaped(&subject(told)), "text": escaped(&cut(&finding.summary, 2000)), "fields": fields,
        "footer": "pgark", "ts": told.at.as_second()}]})
}

/// A workflow that takes adaptive cards.
pub fn teams(told: &Told<'_>) -> Value {
    let finding = &told.alert.finding;
    let fact = |title: &str, value: &str| json!({"title": title, "value": value});
    let mut facts =
        vec![fact("cluster", &finding.cluster), fact("host", &told.alert.host), fact("rule", &finding.rule)];
    facts.extend(finding.details.iter().take(10).map(|(name, value)| fact(name, &cut(value, 300))));
    let style = match (told.said, finding.severity) {
        (Said::Resolved, _) => "good",
        (_, Severity::Critical) => "attention",
        (_, Severity::Warning) => "warning",
        (_, Severity::Info) => "accent",
    };
    json!({"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": null, "content": {"$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard", "version": "1.4", "body": [
                {"type": "TextBlock", "text": subject(told), "weight": "bolder", "wrap": true, "color": style},
                {"type": "TextBlock", "text": cut(&finding.summary, 2000), "wrap": true},
                {"type": "FactSet", "facts": facts}]}}]})
}

/// Events API v2.
pub fn pagerduty(told: &Told<'_>, routing_key: &str) -> Value {
    let finding = &told.alert.finding;
    let action = match told.said {
        Said::Firing | Said::Test => "trigger",
        Said::Acknowledged => "acknowledge",
        Said::Resolved => "resolve",
    };
    let mut event = json!({"routing_key": routing_key.trim(), "event_action": action, "dedup_key": told.alert.id});
    if action == "trigger" {
        event["client"] = "pgark".into();
        event["payload"] = json!({"summary": cut(&format!("{}: {}", finding.cluster, finding.summary), PAGERDUTY_SUMMARY_CHARS),
            "source": told.alert.host, "severity": finding.severity.as_str(), "timestamp": told.alert.opened,
            "component": finding.cluster, "group": "pgark", "class": finding.rule, "custom_details": finding.details});
    }
    event
}

/// Alert API: the path below the address, and what is posted there.
pub fn opsgenie(told: &Told<'_>) -> (String, Value) {
    let (alert, finding) = (told.alert, &told.alert.finding);
    let about = |verb: &str| format!("/v2/alerts/{}/{verb}?identifierType=alias", alert.id);
    let note = json!({"source": alert.host, "user": "pgark", "note": subject(told)});
    match told.said {
        Said::Resolved => (about("close"), note),
        Said::Acknowledged => (about("acknowledge"), note),
        Said::Firing | Said::Test => {
            let priority = match (told.said, finding.severity) {
                (Said::Test, _) | (_, Severity::Info) => "P5",
                (_, Severity::Warning) => "P3",
                (_, Severity::Critical) => "P1",
            };
            let message = cut(&format!("{}: {}", finding.cluster, finding.summary), OPSGENIE_MESSAGE_CHARS);
            let body = json!({"message": message, "alias": alert.id, "description": text(told), "source": alert.host,
                "entity": finding.cluster, "priority": priority, "tags": ["pgark", finding.rule],
                "details": finding.details});
            ("/v2/alerts".into(), body)
        }
    }
}

/// API v2. An alert that nobody sends again ends by itself there; ours are sent again as long as they last.
pub fn alertmanager(told: &Told<'_>) -> Value {
    let (alert, finding) = (told.alert, &told.alert.finding);
    let ends = match told.said {
        Said::Resolved | Said::Test => Some(alert.resolved.unwrap_or(told.at)),
        Said::Firing | Said::Acknowledged => told.at.checked_add(FIRES_FOR).ok(),
    };
    let mut labels = json!({"alertname": "pgark", "rule": finding.rule, "cluster": finding.cluster,
        "severity": finding.severity.as_str(), "host": alert.host, "key": finding.key});
    if told.said == Said::Test {
        labels["alertname"] = "pgark-test".into();
    }
    let mut annotations = json!({"summary": finding.summary, "alert": alert.id});
    for (name, value) in &finding.details {
        annotations[name.as_str()] = value.as_str().into();
    }
    let entry = |labels: &Value, ends| json!({"labels": labels, "annotations": annotations, "startsAt": alert.opened, "endsAt": ends});
    let mut all = vec![entry(&labels, ends)];
    // The severity is part of what an alert is there: one that has become worse was another one before.
    let lower = [Severity::Info, Severity::Warning].into_iter().filter(|s| alert.count > 1 && *s < finding.severity);
    for severity in lower {
        labels["severity"] = severity.as_str().into();
        all.push(entry(&labels, Some(told.at)));
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_that_openssl_makes() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
        let expected = "sha256=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03";
        let ours = signature(b"key", "1700000000", b"{\"a\":1}");
        assert_eq!(ours, expected);
        assert_ne!(ours, signature(b"key", "1700000001", b"{\"a\":1}"));
        assert_ne!(ours, signature(b"kez", "1700000000", b"{\"a\":1}"));
    }
}

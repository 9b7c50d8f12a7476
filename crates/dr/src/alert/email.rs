//! Alerts by mail.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls as SmtpTls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport};

use super::payload;
use super::sink::{Email, Tls, Told};
use crate::alert::http::certificates;

/// Names that never leave this machine.
pub(super) fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn send(email: &Email, told: &Told<'_>, ca_file: Option<&Path>, within: Duration) -> Result<(), String> {
    let message = message(email, told)?;
    transport(email, ca_file, within)?.send(&message).map(drop).map_err(|e| {
        let status = e.status().map(|code| format!(" ({code})")).unwrap_or_default();
        let cause = std::error::Error::source(&e).map(|c| format!(": {c}")).unwrap_or_default();
        format!("mail server {}: {e}{cause}{status}", email.host)
    })
}

/// Whether mail can go there.
pub fn check_mailbox(address: &str) -> Result<(), String> {
    mailbox(address).map(drop)
}

fn mailbox(address: &str) -> Result<Mailbox, String> {
    address.parse().map_err(|e| format!("'{}' is no mail address: {e}", address.escape_debug()))
}

fn message(email: &Email, told: &Told<'_>) -> Result<Message, String> {
    let from = mailbox(&email.from)?;
    let domain = from.email.domain().to_owned();
    let thread = format!("<{}@{domain}>", told.alert.id);
    let mut builder = Message::builder().from(from).subject(payload::subject(told));
    for to in &email.to {
        builder = builder.to(mailbox(to)?);
    }
    // The same each time it is tried, so that what comes twice is shown once.
    builder = builder.message_id(Some(format!("<{}@{domain}>", told.delivery)));
    builder = builder.references(thread.clone()).in_reply_to(thread);
    builder.header(ContentType::TEXT_PLAIN).body(payload::text(told)).map_err(|e| e.to_string())
}

fn transport(email: &Email, ca_file: Option<&Path>, within: Duration) -> Result<SmtpTransport, String> {
    let wrong = |e: lettre::transport::smtp::Error| e.to_string();
    let parameters = || -> Result<TlsParameters, String> {
        let mut builder = TlsParameters::builder(email.host.clone());
        if let Some(path) = ca_file {
            builder = builder.add_root_certificate(Certificate::from_pem(&certificates(path)?).map_err(wrong)?);
        }
        builder.build().map_err(wrong)
    };
    let (tls, port) = match email.tls {
        Tls::Wrapped => (SmtpTls::Wrapper(parameters()?), 465),
        Tls::StartTls => (SmtpTls::Required(parameters()?), 587),
        Tls::None if is_this_machine(&email.host) => (SmtpTls::None, 25),
        Tls::None => return Err("mail leaves this machine with TLS alone".into()),
    };
    let mut builder =
        SmtpTransport::builder_dangerous(&email.host).port(email.port.unwrap_or(port)).tls(tls).timeout(Some(within));
    if let Some((user, password)) = &email.login {
        builder = builder.credentials(Credentials::new(user.clone(), password()?.to_string()));
    }
    Ok(builder.build())
}

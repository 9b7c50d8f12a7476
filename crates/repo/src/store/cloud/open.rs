//! From options to a client. The environment is not read here: whoever opens the store hands over what it allows.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpConnector;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, Certificate, ClientOptions, HeaderValue, RetryConfig};

use super::attempt::{Attempts, Watching};
use super::control::Control;
use super::{Client, Conditional, Inner, ListOrder, Locking};
use crate::store::lock::LockPolicy;
use crate::store::{ObjectName, StoreError};

/// As the library has it.
const DEFAULT_REGION: &str = "us-east-1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one try of a request that carries nothing, unless the option `timeout` says otherwise.
const REQUEST_TIMEOUT_SECONDS: u64 = 30;
/// The account and key that every Azure emulator knows; they are published and protect nothing.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const EMULATOR_ENDPOINT: &str = "http://127.0.0.1:10000/devstoreaccount1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloudKind {
    S3,
    Azure,
    Gcs,
}

#[derive(Clone)]
pub struct CloudOptions {
    pub kind: CloudKind,
    /// Bucket or container.
    pub bucket: String,
    /// Path in it, without slashes at its ends; may be empty.
    pub prefix: String,
    /// As people write it; holds no secret.
    pub url: String,
    /// What the URL says, by name.
    pub options: BTreeMap<String, String>,
    /// New objects are locked. S3 alone.
    pub lock: Option<LockPolicy>,
    /// Variables of the cloud's own credential chain and of the proxy, by their usual names. May hold secrets.
    pub environment: Vec<(String, String)>,
}

pub(super) fn open(o: CloudOptions) -> Result<Inner, StoreError> {
    if !o.prefix.is_empty() {
        ObjectName::parse(&o.prefix)?;
    }
    let limit = match o.options.get("timeout") {
        None => REQUEST_TIMEOUT_SECONDS,
        Some(text) => text
            .parse()
            .ok()
            .filter(|s| (1..=3600).contains(s))
            .ok_or_else(|| wrong(&o, "timeout is a number of seconds from 1 to 3600"))?,
    };
    if o.lock.is_some() && o.kind != CloudKind::S3 {
        return Err(wrong(&o, "objects are locked in S3 buckets alone"));
    }
    if o.lock.is_some() && o.options.get("checksum").is_some_and(|c| c == "none") {
        return Err(wrong(&o, "locked objects are stored with a checksum: leave checksum=none out"));
    }
    let (client, control): (Arc<dyn Client>, _) = match o.kind {
        CloudKind::S3 => {
            let (client, control) = s3(&o)?;
            (Arc::new(client), Some(control))
        }
        CloudKind::Azure => (Arc::new(azure(&o)?), None),
        CloudKind::Gcs => (Arc::new(gcs(&o)?), None),
    };
    let conditional = match o.flag("conditional_writes")? {
        Some(false) => Conditional::SingleWriter,
        _ => Conditional::Yes,
    };
    Ok(Inner {
        kind: o.kind,
        client,
        control,
        lock: o.lock.map(|policy| Locking { policy }),
        attempts: Attempts::new(Duration::from_secs(limit))?,
        storage_class: o.options.get("storage_class").cloned(),
        root: o.prefix,
        url: o.url,
        conditional,
        order: if o.kind == CloudKind::Azure { ListOrder::None } else { ListOrder::ByName },
    })
}

fn wrong(o: &CloudOptions, why: impl ToString) -> StoreError {
    StoreError::io("open", &o.url, io::Error::new(io::ErrorKind::InvalidInput, why.to_string()))
}

impl CloudOptions {
    fn flag(&self, name: &str) -> Result<Option<bool>, StoreError> {
        match self.options.get(name).map(String::as_str) {
            None => Ok(None),
            Some("true" | "on" | "1") => Ok(Some(true)),
            Some("false" | "off" | "0") => Ok(Some(false)),
            Some(_) => Err(wrong(self, format!("{name} is true or false"))),
        }
    }

    fn variable(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| {
            let found = self.environment.iter().find(|(n, v)| n == name && !v.is_empty());
            found.map(|(_, value)| value.as_str())
        })
    }

    /// Where requests go, when it is not the cloud's own address. Unencrypted addresses must be allowed, but for those
    /// of this machine.
    fn endpoint(&self, variables: &[&str]) -> Result<Option<(String, bool)>, StoreError> {
        let given = self.options.get("endpoint").map(String::as_str).or_else(|| self.variable(variables));
        let Some(endpoint) = given else { return Ok(None) };
        let plain = endpoint.strip_prefix("http://");
        let host = plain.map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
        let local = host.is_some_and(|h| {
            let name = h.rsplit_once(':').map_or(h, |(name, _)| name);
            matches!(name, "localhost" | "127.0.0.1" | "[::1]")
        });
        if plain.is_some() && !local && self.flag("allow_http")? != Some(true) {
            return Err(wrong(self, "the endpoint is not encrypted: use https, or say allow_http=true"));
        }
        if plain.is_none() && !endpoint.starts_with("https://") {
            return Err(wrong(self, "an endpoint begins with https:// or http://"));
        }
        Ok(Some((endpoint.trim_end_matches('/').to_owned(), plain.is_some())))
    }

    fn client_options(&self, allow_http: bool) -> Result<ClientOptions, StoreError> {
        let agent = HeaderValue::from_static(concat!("pgark/", env!("CARGO_PKG_VERSION")));
        let mut client = ClientOptions::new()
            .with_user_agent(agent)
            .with_allow_http(allow_http)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout_disabled();
        // The second is what Amazon's own tools read.
        let bundle = self.variable(&["AWS_CA_BUNDLE"]).filter(|_| self.kind == CloudKind::S3);
        if let Some(file) = self.options.get("ca_file").map(String::as_str).or(bundle) {
            for certificate in certificates(Path::new(file)).map_err(|e| wrong(self, format!("{file}: {e}")))? {
                client = client.with_root_certificate(certificate);
            }
        }
        let proxies: &[&str] = match allow_http {
            true => &["http_proxy", "all_proxy", "ALL_PROXY"],
            false => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        };
        if let Some(proxy) = self.options.get("proxy").map(String::as_str).or_else(|| self.variable(proxies)) {
            client = client.with_proxy_url(proxy);
            if let Some(except) = self.variable(&["no_proxy", "NO_PROXY"]) {
                client = client.with_proxy_excludes(except);
            }
        }
        Ok(client)
    }
}

fn certificates(file: &Path) -> io::Result<Vec<Certificate>> {
    let pem = std::fs::read(file)?;
    let found = Certificate::from_pem_bundle(&pem).map_err(io::Error::other)?;
    if found.is_empty() { Err(io::Error::other("there is no PEM certificate in it")) } else { Ok(found) }
}

fn is_ip_address(endpoint: &str) -> bool {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    authority.parse::<std::net::IpAddr>().is_ok()
        || authority.parse::<std::net::SocketAddr>().is_ok()
        || authority.starts_with('[')
}

/// One try: `attempt.rs` decides about others.
fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_secs(1) }
}

fn built<T>(o: &CloudOptions, client: object_store::Result<T>) -> Result<T, StoreError> {
    client.map_err(|e| wrong(o, super::error::message(&e, None)))
}

fn s3(o: &CloudOptions) -> Result<(AmazonS3, Control), StoreError> {
    let watching = Watching::default();
    let mut b = AmazonS3Builder::new();
    for (name, value) in &o.environment {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
            && name.starts_with("AWS_")
        {
            b = b.with_config(key, value);
        }
    }
    let endpoint = o.endpoint(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])?;
    let allow_http = endpoint.as_ref().is_some_and(|(_, plain)| *plain);
    let path_style = o.flag("path_style")?.unwrap_or(endpoint.is_some());
    if !path_style && endpoint.as_ref().is_some_and(|(address, _)| is_ip_address(address)) {
        return Err(wrong(
            o,
            "an endpoint that is an IP address cannot have the bucket in its name: leave path_style=false out",
        ));
    }
    b = b
        .with_bucket_name(&o.bucket)
        .with_virtual_hosted_style_request(!path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(no_retries())
        .with_client_options(o.client_options(allow_http)?)
        .with_http_connector(watching.clone());
    // In the other style the library expects the bucket in the endpoint.
    let with_bucket = |endpoint: &str| match endpoint.split_once("://") {
        Some((scheme, host)) if !path_style => format!("{scheme}://{}.{host}", o.bucket),
        _ => endpoint.to_owned(),
    };
    if let Some((endpoint, _)) = &endpoint {
        b = b.with_endpoint(with_bucket(endpoint));
    }
    if let Some(region) = o.options.get("region") {
        b = b.with_region(region);
    }
    b = match o.options.get("checksum").map(String::as_str) {
        None | Some("sha256") => b.with_checksum_algorithm(Checksum::SHA256),
        Some("none") => b,
        Some(_) => return Err(wrong(o, "checksum is sha256 or none")),
    };
    let kms_key = o.options.get("sse_kms_key_id").cloned().unwrap_or_default();
    b = match o.options.get("sse").map(String::as_str) {
        None => b,
        Some("AES256") => b.with_config(built(o, "aws_server_side_encryption".parse())?, "AES256"),
        Some("aws:kms") => b.with_sse_kms_encryption(kms_key),
        Some("aws:kms:dsse") => b.with_dsse_kms_encryption(kms_key),
        Some(_) => return Err(wrong(o, "sse is AES256, aws:kms or aws:kms:dsse")),
    };
    let region = b.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let s3 = built(o, b.build())?;
    watching.sign_with(s3.credentials());
    let address = with_bucket(&endpoint.map_or_else(|| format!("https://s3.{region}.amazonaws.com"), |(e, _)| e));
    let bucket = if path_style { format!("{address}/{}", o.bucket) } else { address };
    let http = built(o, watching.connect(&o.client_options(allow_http)?))?;
    let control = Control::new(http, &s3, region, bucket);
    Ok((s3, control))
}

fn azure(o: &CloudOptions) -> Result<object_store::azure::MicrosoftAzure, StoreError> {
    let mut b = MicrosoftAzureBuilder::new();
    let emulator = o.flag("emulator")? == Some(true);
    if emulator {
        b = b.with_account(EMULATOR_ACCOUNT).with_access_key(EMULATOR_KEY);
    }
    for (name, value) in &o.environment {
        let name = match name.as_str() {
            "AZURE_STORAGE_ACCOUNT" => "azure_storage_account_name".to_owned(),
            "AZURE_STORAGE_KEY" => "azure_storage_account_key".to_owned(),
            other => other.to_ascii_lowercase(),
        };
        if let Ok(key) = name.parse::<AzureConfigKey>()
            && name.starts_with("azure_")
        {
            b = b.with_config(key, value);
        }
    }
    if let Some(account) = o.options.get("account") {
        b = b.with_account(account);
    }
    let endpoint = o.endpoint(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"])?;
    let endpoint = endpoint.or_else(|| emulator.then(|| (EMULATOR_ENDPOINT.to_owned(), true)));
    let allow_http = endpoint.as_ref().is_some_and(|(_, plain)| *plain);
    b = b
        .with_container_name(&o.bucket)
        .with_retry(no_retries())
        .with_client_options(o.client_options(allow_http)?)
        .with_http_connector(Watching::default());
    if let Some((endpoint, _)) = endpoint {
        b = b.with_endpoint(endpoint);
    }
    b.build().map_err(|e| {
        let why = super::error::message(&e, None);
        // The library does not say of what it could not make sense.
        let is_about_key = ["InvalidByte", "InvalidLength", "InvalidPadding", "InvalidLastSymbol", "Decode"]
            .iter()
            .any(|what| format!("{e:?}").contains(what));
        match o.variable(&["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"]) {
            Some(_) if is_about_key => {
                wrong(o, format!("AZURE_STORAGE_KEY is no access key of an account, which is base64: {why}"))
            }
            _ => wrong(o, why),
        }
    })
}

fn gcs(o: &CloudOptions) -> Result<object_store::gcp::GoogleCloudStorage, StoreError> {
    let mut b = GoogleCloudStorageBuilder::new();
    for (name, value) in &o.environment {
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>()
            && name.starts_with("GOOGLE_")
        {
            b = b.with_config(key, value);
        }
    }
    let endpoint = o.endpoint(&["STORAGE_EMULATOR_HOST"])?;
    let allow_http = endpoint.as_ref().is_some_and(|(_, plain)| *plain);
    b = b
        .with_bucket_name(&o.bucket)
        .with_retry(no_retries())
        .with_client_options(o.client_options(allow_http)?)
        .with_http_connector(Watching::default());
    if let Some((endpoint, _)) = endpoint {
        b = b.with_base_url(&endpoint);
    }
    built(o, b.build())
}

//! Requests of the S3 protocol that `object_store` does not have: versions, object lock, settings of the bucket. They
//! are signed by its authorizer with its credentials, and go through a client of the same kind.
//!
//! Invariant: an answer is not believed beyond what was asked for, nor read beyond a limit.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use jiff::Timestamp;
use object_store::aws::{AmazonS3, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponseBody};
use object_store::{Error, HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::store::lock::{LockMode, Retention};

const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const VERSIONS_PER_PAGE: &str = "1000";
const MODE: &str = "x-amz-object-lock-mode";
const UNTIL: &str = "x-amz-object-lock-retain-until-date";

pub(super) struct Control {
    http: HttpClient,
    credentials: AwsCredentialProvider,
    region: String,
    /// Address of the bucket, without a slash at its end.
    bucket: String,
}

type Result<T> = object_store::Result<T>;

/// Rides on a request of the library to say that the new object is locked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retain(pub Retention);

/// One entry of a list of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub key: String,
    pub id: String,
    pub modified: Timestamp,
    /// None for a delete marker.
    pub size: Option<u64>,
    pub is_latest: bool,
}

#[derive(Debug, Default)]
pub(super) struct Page {
    /// Ordered by key; those of a key newest first.
    pub entries: Vec<Listed>,
    /// With their slash.
    pub directories: Vec<String>,
    pub next: Option<Marker>,
}

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    key: String,
    version: Option<String>,
}

impl Control {
    pub fn new(http: HttpClient, s3: &AmazonS3, region: String, bucket: String) -> Self {
        Control { http, credentials: s3.credentials().clone(), region, bucket }
    }

    /// The next page of versions after a marker, of keys that begin with `prefix`.
    pub async fn versions(&self, prefix: &str, directories: bool, after: Option<&Marker>) -> Result<Page> {
        let mut query = vec![("versions", ""), ("prefix", prefix), ("max-keys", VERSIONS_PER_PAGE)];
        if directories {
            query.push(("delimiter", "/"));
        }
        if let Some(marker) = after {
            query.push(("key-marker", &marker.key));
            query.extend(marker.version.iter().map(|v| ("version-id-marker", v.as_str())));
        }
        let (_, body) = self.send("GET", "", &query, Bytes::new()).await?;
        page(&body)
    }

    /// None when it is not locked, or no more.
    pub async fn retention(&self, key: &str, version: Option<&str>) -> Result<Option<Retention>> {
        let query: Vec<(&str, &str)> = version.iter().map(|v| ("versionId", *v)).collect();
        let (headers, _) = self.send("HEAD", key, &query, Bytes::new()).await?;
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        match (header(MODE), header(UNTIL)) {
            (None, None) => Ok(None),
            (Some(mode), Some(until)) => {
                let parsed = LockMode::parse(mode).zip(until.parse().ok());
                let (mode, until) = parsed.ok_or_else(|| strange(format!("a lock {mode} until {until}")))?;
                Ok(Some(Retention { mode, until }))
            }
            _ => Err(strange("half a lock")),
        }
    }

    /// Of the current version when none is named.
    pub async fn retain(&self, key: &str, version: Option<&str>, retention: Retention) -> Result<()> {
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{}</Mode><RetainUntilDate>{}</RetainUntilDate></Retention>",
            retention.mode.name(),
            date(retention.until)
        );
        let mut query = vec![("retention", "")];
        query.extend(version.iter().map(|v| ("versionId", *v)));
        self.send("PUT", key, &query, body.into()).await.map(drop)
    }

    pub async fn delete_version(&self, key: &str, version: &str) -> Result<()> {
        self.send("DELETE", key, &[("versionId", version)], Bytes::new()).await.map(drop)
    }

    /// Whether the bucket keeps versions now.
    pub async fn has_versions(&self) -> Result<bool> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default)]
            status: String,
        }
        let (_, body) = self.send("GET", "", &[("versioning", "")], Bytes::new()).await?;
        Ok(parse::<Answer>(&body)?.status == "Enabled")
    }

    /// Whether objects of the bucket can be locked.
    pub async fn has_object_lock(&self) -> Result<bool> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default)]
            object_lock_enabled: String,
        }
        match self.send("GET", "", &[("object-lock", "")], Bytes::new()).await {
            Ok((_, body)) => Ok(parse::<Answer>(&body)?.object_lock_enabled == "Enabled"),
            Err(e @ Error::NotFound { .. }) if text(&e).contains("ObjectLockConfigurationNotFound") => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn send(&self, method: &str, key: &str, query: &[(&str, &str)], body: Bytes) -> Result<(HeaderMap, Bytes)> {
        let query: Vec<String> = query.iter().map(|(n, v)| format!("{n}={}", encoded(v, ""))).collect();
        let address = format!("{}/{}?{}", self.bucket, encoded(key, "/"), query.join("&"));
        let mut request = HttpRequest::new(HttpRequestBody::from(body.clone()));
        *request.method_mut() = method.parse().map_err(strange)?;
        *request.uri_mut() = address.parse().map_err(strange)?;
        if !body.is_empty() {
            add_checksum(&mut request, &body)?;
        }
        let credential = self.credentials.get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let response = self.http.execute(request).await.map_err(strange)?;
        let (parts, body) = response.into_parts();
        let body = limited(body).await?;
        match parts.status.as_u16() {
            200..=299 => Ok((parts.headers, body)),
            status => Err(refused(status, key, &body)),
        }
    }
}

/// What changes a lock must carry a checksum.
fn add_checksum(request: &mut HttpRequest, body: &[u8]) -> Result<()> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    let value = HeaderValue::from_str(&STANDARD.encode(digest)).map_err(strange)?;
    request.headers_mut().insert("x-amz-checksum-sha256", value);
    request.headers_mut().insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
    Ok(())
}

impl Retain {
    /// Adds the lock to a request that the library has signed, and signs it anew: S3 refuses headers of its own that
    /// the signature does not cover.
    pub fn apply(
        &self,
        request: &mut HttpRequest,
        credential: &object_store::aws::AwsCredential,
    ) -> std::result::Result<(), HttpError> {
        let wrong = |e: Error| HttpError::new(HttpErrorKind::Request, e);
        let headers = request.headers_mut();
        headers.insert(MODE, HeaderValue::from_static(self.0.mode.name()));
        headers.insert(UNTIL, HeaderValue::from_str(&date(self.0.until)).map_err(|e| wrong(strange(e)))?);
        if headers.contains_key("x-amz-checksum-sha256") {
            headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
        }
        let Some(signed) = headers.remove("authorization") else { return Ok(()) };
        let region = signed.to_str().ok().and_then(region_of).map(str::to_owned);
        let region = region.ok_or_else(|| wrong(strange("a signature without a region")))?;
        let digest = headers.remove("x-amz-content-sha256");
        let digest = digest.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default();
        let known = unhex(digest);
        AwsAuthorizer::new(credential, "s3", &region)
            .with_sign_payload(digest != "UNSIGNED-PAYLOAD")
            .try_authorize(request, known.as_deref())
            .map_err(wrong)
    }
}

/// `AWS4-HMAC-SHA256 Credential=KEY/20260101/REGION/s3/aws4_request, …`
fn region_of(signed: &str) -> Option<&str> {
    let (_, scope) = signed.split_once("Credential=")?;
    let (scope, _) = scope.split_once(',')?;
    // The key's id may hold slashes: counted from the end.
    scope.rsplit('/').nth(2)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [a, b] => Some(char::from(*a).to_digit(16)? * 16 + char::from(*b).to_digit(16)?),
        _ => None,
    });
    let bytes: Option<Vec<u8>> = pairs.map(|p| p.and_then(|n| u8::try_from(n).ok())).collect();
    bytes.filter(|b| b.len() == 32)
}

fn date(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn encoded(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || keep.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

async fn limited(body: HttpResponseBody) -> Result<Bytes> {
    let mut stream = body.bytes_stream();
    let mut out = BytesMut::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(strange)?;
        if out.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(strange("an answer that is too long"));
        }
        out.extend_from_slice(&piece);
    }
    Ok(out.freeze())
}

fn strange(what: impl ToString) -> Error {
    Error::Generic { store: "S3", source: what.to_string().into() }
}

fn text(error: &Error) -> String {
    use std::error::Error as _;
    format!("{error} {}", error.source().map(ToString::to_string).unwrap_or_default())
}

fn refused(status: u16, key: &str, body: &[u8]) -> Error {
    let said: String = String::from_utf8_lossy(body).chars().take(4096).collect();
    let (path, source) = (key.to_owned(), format!("status {status} {said}").into());
    match status {
        404 => Error::NotFound { path, source },
        401 => Error::Unauthenticated { path, source },
        403 => Error::PermissionDenied { path, source },
        _ => Error::Generic { store: "S3", source },
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    let text = std::str::from_utf8(body).map_err(strange)?;
    quick_xml::de::from_str(text).map_err(strange)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VersionList {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_version_id_marker: Option<String>,
    #[serde(default)]
    version: Vec<Entry>,
    #[serde(default)]
    delete_marker: Vec<Entry>,
    #[serde(default)]
    common_prefixes: Vec<Directory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    version_id: String,
    #[serde(default)]
    is_latest: bool,
    last_modified: String,
    size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Directory {
    prefix: String,
}

fn page(body: &[u8]) -> Result<Page> {
    let list: VersionList = parse(body)?;
    let mut entries = vec![];
    for entry in list.version {
        if entry.size.is_none() {
            return Err(strange("a version without a size"));
        }
        entries.push(listed(entry)?);
    }
    for entry in list.delete_marker {
        entries.push(listed(Entry { size: None, ..entry })?);
    }
    // Times have seconds: of what happened within one, the object counts as newer than the mark, but for what the store
    // calls the latest. What a version holds is authenticated, so to see one too many does no harm.
    let newest = |e: &Listed| std::cmp::Reverse((e.is_latest, e.modified));
    entries.sort_by(|a, b| a.key.cmp(&b.key).then_with(|| newest(a).cmp(&newest(b))));
    let next = match (list.is_truncated, list.next_key_marker) {
        (true, Some(key)) => Some(Marker { key, version: list.next_version_id_marker.filter(|v| !v.is_empty()) }),
        (true, None) => return Err(strange("a list that goes on nowhere")),
        (false, _) => None,
    };
    let directories = list.common_prefixes.into_iter().map(|d| d.prefix).collect();
    Ok(Page { entries, directories, next })
}

fn listed(e: Entry) -> Result<Listed> {
    let modified = e.last_modified.parse().map_err(|_| strange(format!("a time {}", e.last_modified)))?;
    Ok(Listed { key: e.key, id: e.version_id, modified, size: e.size, is_latest: e.is_latest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_marks_come_newest_first() {
        let xml = r#"<?xml version="1.0"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Name>b</Name><Prefix>p/</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>
            <NextKeyMarker>p/b</NextKeyMarker><NextVersionIdMarker>v4</NextVersionIdMarker>
            <Version><Key>p/a</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>3</Size><Owner><ID>1</ID></Owner></Version>
            <DeleteMarker><Key>p/a</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest><LastModified>2026-01-01T00:00:00.000Z</LastModified></DeleteMarker>
            <Version><Key>p/b</Key><VersionId>v3</VersionId><IsLatest>true</IsLatest><LastModified>2026-01-02T00:00:00.000Z</LastModified><Size>5</Size></Version>
            <DeleteMarker><Key>p/b</Key><VersionId>v4</VersionId><IsLatest>false</IsLatest><LastModified>2026-01-01T00:00:00.000Z</LastModified></DeleteMarker>
            <Version><Key>p/b</Key><VersionId>v0</VersionId><IsLatest>false</IsLatest><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>5</Size></Version>
            <CommonPrefixes><Prefix>p/c/</Prefix></CommonPrefixes></ListVersionsResult>"#;
        let page = page(xml.as_bytes()).unwrap();
        let ids: Vec<&str> = page.entries.iter().map(|e| e.id.as_str()).collect();
        assert_eq!(ids, ["v2", "v1", "v3", "v0", "v4"]);
        assert_eq!(page.entries[0].size, None);
        assert_eq!(page.entries[2].size, Some(5));
        assert_eq!(page.directories, ["p/c/"]);
        assert_eq!(page.next, Some(Marker { key: "p/b".into(), version: Some("v4".into()) }));
    }

    #[test]
    fn what_is_no_list_of_versions_is_an_error() {
        for wrong in [
            "",
            "no answer",
            "<ListVersionsResult>",
            "\u{fffd}",
            "<ListVersionsResult><IsTruncated>true</IsTruncated></ListVersionsResult>",
            "<ListVersionsResult><Version><Key>a</Key></Version></ListVersionsResult>",
            "<ListVersionsResult><Version><Key>a</Key><VersionId>v</VersionId><LastModified>now</LastModified><Size>1</Size></Version></ListVersionsResult>",
            "<ListVersionsResult><Version><Key>a</Key><VersionId>v</VersionId><LastModified>2026-01-01T00:00:00Z</LastModified></Version></ListVersionsResult>",
        ] {
            assert!(page(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_region_is_found_behind_ids_with_slashes() {
        let signed = "AWS4-HMAC-SHA256 Credential=a/b/20260101/eu-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        assert_eq!(region_of(signed), Some("eu-1"));
        assert_eq!(region_of("Bearer x"), None);
    }

    #[test]
    fn small_encodings_are_right() {
        assert_eq!(encoded("a/b=c+d@e", "/"), "a/b%3Dc%2Bd%40e");
        assert_eq!(unhex(&"0f".repeat(32)), Some(vec![15; 32]));
        assert_eq!(unhex("UNSIGNED-PAYLOAD"), None);
    }
}

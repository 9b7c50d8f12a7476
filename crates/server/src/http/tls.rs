//! TLS: the server's certificate, and who a client's certificate says that it is.
//!
//! What is in force is exchanged as a whole, and only by what was found right; connections that are there keep what they have.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_cert::der::Decode;

/// A chain of certificates is short.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Where certificates and keys are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's, then those that signed it.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs certificates of clients.
    pub client_ca: Option<PathBuf>,
    /// No connection without one.
    pub client_required: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{0} holds no {1} in PEM")]
    Content(PathBuf, &'static str),
    #[error("others than its owner can read the key {0}")]
    Mode(PathBuf),
    #[error("the certificate and the key do not go together, or cannot be used: {0}")]
    Unusable(String),
}

/// What new connections get.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new(files: &TlsFiles) -> Result<Tls, TlsError> {
        Ok(Tls(Arc::new(RwLock::new(load(files)?))))
    }

    pub fn get(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Errors
    /// As `new`; then what is in force stays.
    pub fn reload(&self, files: &TlsFiles) -> Result<(), TlsError> {
        let loaded = load(files)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }
}

/// Reads and compares everything.
///
/// # Errors
/// What cannot be read or used.
pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable = |e: &dyn std::fmt::Display| TlsError::Unusable(e.to_string());
    let chain = certificates(&files.certificate)?;
    warn_of_age(&files.certificate, &chain);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(&e))?;
    let config = match &files.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| unusable(&e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if files.client_required { verifier } else { verifier.allow_unauthenticated() };
            config.with_client_cert_verifier(verifier.build().map_err(|e| unusable(&e))?)
        }
    };
    let mut config = config.with_single_cert(chain, key(&files.key)?).map_err(|e| unusable(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > PEM_BYTES_MAX {
        return Err(failed(std::io::Error::other("it is too large")));
    }
    std::fs::read(path).map_err(failed)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    found.ok().filter(|all| !all.is_empty()).ok_or_else(|| TlsError::Content(path.to_owned(), "certificate"))
}

/// Its owner's alone; of root's, a group may read it, as PostgreSQL takes it.
fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let found = std::fs::metadata(path).map_err(failed)?;
    let others = if found.uid() == 0 { 0o037 } else { 0o077 };
    if found.permissions().mode() & others != 0 {
        return Err(TlsError::Mode(path.to_owned()));
    }
    let text = zeroize::Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError::Content(path.to_owned(), "key"))
}

/// Clients refuse it; a server that does not start would help nobody.
fn warn_of_age(path: &Path, chain: &[CertificateDer<'_>]) {
    let ends = chain.first().and_then(|first| x509_cert::Certificate::from_der(first).ok());
    let ends = ends.map(|c| c.tbs_certificate.validity.not_after.to_unix_duration().as_secs());
    let ends = ends.and_then(|s| Timestamp::from_second(i64::try_from(s).ok()?).ok());
    if let Some(at) = ends.filter(|at| *at <= Timestamp::now()) {
        tracing::warn!(target: "pgark", file = %path.display(), %at, "the certificate has expired, and clients refuse it");
    }
}

/// Of a certificate that was verified: RFC 4514, as `openssl x509 -noout -subject -nameopt RFC2253` prints it.
pub fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    x509_cert::Certificate::from_der(certificate).ok().map(|c| c.tbs_certificate.subject.to_string())
}

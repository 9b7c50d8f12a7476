//! From a repository's URL to its store, with the cloud's own credential chain.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use pgark_repo::RepoError;
use pgark_repo::parity::ParityStore;
use pgark_repo::store::{
    AppendOnlyStore, CloudKind, CloudOptions, CloudStore, LocalStore, PastStore, SftpOptions, SftpPlace, SftpStore,
    Store, StoreError, StoreErrorKind,
};

use crate::aws_profile;
use crate::command::context::engine_failure;
use crate::failure::Failure;
use crate::settings::files::Environment;
use crate::settings::repo_url::{AS_OF, RepoUrl, Scheme};
use crate::settings::space::{LATER_CLASS, refused_class};
use crate::settings::{Protection, RepoSettings};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Refuse,
    Create,
}

/// Variables that give access to clouds, or lead to them. Their values may be secrets.
#[derive(Clone, Default)]
pub struct Access {
    variables: Vec<(String, String)>,
    home: Option<std::path::PathBuf>,
}

impl Access {
    pub fn from_environment(environment: &Environment) -> Self {
        Access { variables: environment.cloud_variables(), home: environment.get_os("HOME").map(Into::into) }
    }

    /// As it was kept for a restored server.
    pub fn kept(variables: Vec<(String, String)>) -> Self {
        Access { variables, home: None }
    }

    /// What a program without this environment needs to open the same repository.
    pub fn for_url(&self, url: &RepoUrl) -> Result<Vec<(String, String)>, Failure> {
        let prefix = match url.scheme {
            Scheme::File | Scheme::Sftp => return Ok(vec![]),
            Scheme::S3 => "AWS_",
            Scheme::Azure => "AZURE_",
            Scheme::Gcs => "GOOGLE_",
        };
        let mut variables = self.variables.clone();
        variables.retain(|(name, _)| name.starts_with(prefix) || name.to_ascii_lowercase().ends_with("_proxy"));
        if url.scheme == Scheme::S3 {
            aws_profile::complete(&mut variables, url.option("profile"), self.home.as_deref())?;
        }
        Ok(variables)
    }
}

/// The store of a repository, as its settings have it.
pub fn open_as(settings: &RepoSettings, access: &Access, missing: Missing) -> Result<Arc<dyn Store>, Failure> {
    let store = open(&settings.url, settings.protection, access, missing)?;
    Ok(match settings.parity {
        Some(percent) => Arc::new(ParityStore::new(store, percent)),
        None => store,
    })
}

pub fn open(
    url: &RepoUrl,
    protection: Protection,
    access: &Access,
    missing: Missing,
) -> Result<Arc<dyn Store>, Failure> {
    let store = open_plain(url, protection, access, missing)?;
    Ok(if protection.append_only { Arc::new(AppendOnlyStore::new(store)) } else { store })
}

fn open_plain(
    url: &RepoUrl,
    protection: Protection,
    access: &Access,
    missing: Missing,
) -> Result<Arc<dyn Store>, Failure> {
    let kind = match url.scheme {
        Scheme::File => return local(Path::new(&url.path), missing),
        Scheme::S3 => CloudKind::S3,
        Scheme::Azure => CloudKind::Azure,
        Scheme::Gcs => CloudKind::Gcs,
        Scheme::Sftp => return sftp(url, protection, missing),
    };
    // The configuration file was looked at; a flag or a variable may name any URL.
    if let Some(why) = url.option("storage_class").and_then(|class| refused_class(url.scheme, class)) {
        return Err(Failure::usage("E-REPO-OPTIONS", format!("{url}: {why}")).hint(LATER_CLASS));
    }
    let options = CloudOptions {
        kind,
        bucket: url.host.clone().unwrap_or_default(),
        prefix: url.path.clone(),
        url: url.to_string(),
        options: url.options.clone(),
        environment: access.for_url(url)?,
        lock: protection.lock,
    };
    let opened: Result<Arc<dyn Store>, StoreError> = match as_of(url)? {
        None => CloudStore::open(options).map(|store| Arc::new(store) as Arc<dyn Store>),
        Some(at) => PastStore::open(options, at).map(|store| Arc::new(store) as Arc<dyn Store>),
    };
    match opened {
        Ok(store) => Ok(store),
        Err(StoreError::Io { source, .. }) => Err(Failure::usage("E-REPO-OPTIONS", format!("{url}: {source}"))
            .hint("docs/storage.md lists the options of each kind of store and the variables that give access")),
        Err(StoreError::InvalidName { name, why }) => {
            Err(Failure::usage("E-REPO-NAME", format!("{url}: the prefix '{name}': {why}"))
                .hint("what stands behind the bucket consists of names with '/' between them"))
        }
        Err(e) => Err(engine_failure(RepoError::from(e).into())),
    }
}

/// The moment as of which the repository is read.
fn as_of(url: &RepoUrl) -> Result<Option<Timestamp>, Failure> {
    let Some(text) = url.option(AS_OF) else { return Ok(None) };
    let wrong = |why: &str| Failure::usage("E-REPO-OPTIONS", format!("{AS_OF}={text}: {why}"));
    let at: Timestamp = text
        .parse()
        .map_err(|_| wrong("this is no moment").hint("a date, a time and a zone, such as 2026-08-22T03:15:00Z"))?;
    if at > Timestamp::now() {
        return Err(wrong("this moment has not come yet"));
    }
    Ok(Some(at))
}

/// A store by the URL that a repository gave itself (`Store::url`).
pub fn by_url(url: &str, access: &Access) -> Result<Arc<dyn Store>, Failure> {
    let parsed: RepoUrl =
        url.parse().map_err(|e| Failure::failed("E-RESTORE-FILE", format!("the repository's URL: {e}")))?;
    open(&parsed, Protection::default(), access, Missing::Refuse)
}

fn sftp(url: &RepoUrl, protection: Protection, missing: Missing) -> Result<Arc<dyn Store>, Failure> {
    let text = url.to_string();
    let host = url.host.as_deref().unwrap_or_default();
    let place = SftpPlace { url: &text, user: url.user.as_deref(), host, port: url.port, path: &url.path };
    let options = SftpOptions::new(place, &url.options).map_err(|why| {
        Failure::usage("E-REPO-URL", why).hint("docs/storage-sftp.md lists the options of such a URL")
    })?;
    // ssh goes on without it, and what it says in the end is that the server refuses.
    if let Some(file) = url.option("identity_file")
        && let Err(e) = std::fs::metadata(file)
    {
        return Err(Failure::usage("E-REPO-OPTIONS", format!("{url}: identity_file {}: {e}", file.escape_debug()))
            .hint("the file of the private key, which the user who runs this can read"));
    }
    let options = options.append_only(protection.append_only);
    let opened = match missing {
        Missing::Create => SftpStore::create(options),
        Missing::Refuse => SftpStore::open(options),
    };
    match opened {
        Ok(s) => Ok(Arc::new(s)),
        Err(e) if e.kind() == StoreErrorKind::NotFound => {
            Err(engine_failure(RepoError::NoRepository { url: text }.into()))
        }
        Err(e) => Err(engine_failure(RepoError::from(e).into())),
    }
}

fn local(path: &Path, missing: Missing) -> Result<Arc<dyn Store>, Failure> {
    let opened = match missing {
        Missing::Create => LocalStore::create(path),
        Missing::Refuse => LocalStore::open(path),
    };
    match opened {
        Ok(s) => Ok(Arc::new(s)),
        Err(e) if e.kind() == StoreErrorKind::NotFound => {
            Err(engine_failure(RepoError::NoRepository { url: path.display().to_string() }.into()))
        }
        Err(e) => Err(engine_failure(RepoError::from(e).into())),
    }
}

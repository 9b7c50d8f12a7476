//! Finds, checks and reads the configuration files.
//!
//! Invariant: what a file says can name commands to run, so nobody but its owner may be able to write it, and a file
//! that was found rather than named must belong to this user or to root.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::deployment;
use super::in_force::{FileText, Texts};
use super::schema::SECRET_KEYS;
use super::tree::{self, Node, TableArrays, Value};
use crate::failure::Failure;

/// The largest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The part of the process environment the settings look at, so that a test can bring its own.
#[derive(Clone)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
    /// Where `./pgark.toml` is looked for.
    pub directory: PathBuf,
    /// Where the machine's configuration lies.
    pub system_directory: PathBuf,
}

impl Environment {
    pub fn from_process() -> Environment {
        let ours = |name: &str| {
            let known = matches!(name, "PGDATA" | "HOME") || deployment::VARIABLES.contains(&name);
            known || name.starts_with("PGARK_") || is_of_a_cloud(name)
        };
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Environment {
            variables: variables.filter(|(name, _)| ours(name)).collect(),
            directory: ".".into(),
            system_directory: "/etc/pgark".into(),
        }
    }

    /// An environment of these variables alone, with both directories inside `root`.
    #[cfg(test)]
    pub fn for_test(root: &Path, variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        Environment { variables, directory: root.join("cwd"), system_directory: root.join("etc/pgark") }
    }

    /// The variable's value; one that is set to nothing counts as not set.
    pub fn get_os(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// What gives access to object stores, or leads to them; variables that are not UTF-8 are none of theirs.
    pub fn cloud_variables(&self) -> Vec<(String, String)> {
        let own = self.variables.iter().filter(|(name, value)| is_of_a_cloud(name) && !value.is_empty());
        own.filter_map(|(name, value)| Some((name.clone(), value.to_str()?.to_owned()))).collect()
    }

    /// # Errors
    /// When the value is not UTF-8.
    pub fn get(&self, name: &str) -> Result<Option<&str>, Failure> {
        let Some(value) = self.get_os(name) else { return Ok(None) };
        let text = value.to_str();
        text.map(Some).ok_or_else(|| Failure::usage("E-CONFIG-TYPE", format!("variable {name} is not UTF-8")))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }
}

fn is_of_a_cloud(name: &str) -> bool {
    ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|prefix| name.starts_with(prefix))
        || matches!(name.to_ascii_lowercase().as_str(), "http_proxy" | "https_proxy" | "all_proxy" | "no_proxy")
}

impl std::fmt::Debug for Environment {
    /// Names only: a value may be a passphrase.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.variables.keys()).finish()
    }
}

/// All configuration files, laid over each other.
#[derive(Debug)]
pub struct Loaded {
    pub tree: Node,
    pub texts: Texts,
    pub warnings: Vec<String>,
}

/// Reads the file that was named, or else the first of the usual places that has one; with its `conf.d`.
pub fn load(named: Option<&Path>, environment: &Environment) -> Result<Loaded, Failure> {
    let mut loaded = Loaded::nothing();
    let named = named.or_else(|| environment.get_os("PGARK_CONFIG").map(Path::new));
    if let Some(main) = named {
        // Who names a file vouches for its owner.
        let owner = loaded.add(main, None)?;
        loaded.add_fragments(main, &[owner, effective_user(), 0])?;
        return Ok(loaded);
    }
    let owners = [effective_user(), 0];
    for place in usual_places(environment) {
        let main = exists(&place.file, place.may_be_closed)?;
        if main {
            loaded.add(&place.file, Some(&owners))?;
        }
        if main || place.fragments_alone {
            loaded.add_fragments(&place.file, &owners)?;
        }
        if !loaded.texts.files.is_empty() {
            break;
        }
    }
    Ok(loaded)
}

struct Place {
    file: PathBuf,
    /// `sudo -u postgres` from a directory postgres cannot enter is everyday; that directory is then passed over.
    may_be_closed: bool,
    fragments_alone: bool,
}

fn usual_places(environment: &Environment) -> Vec<Place> {
    let place = |directory: &Path, here: bool| Place {
        file: directory.join("pgark.toml"),
        may_be_closed: here,
        fragments_alone: !here,
    };
    let mut places = vec![place(&environment.directory, true)];
    if let Some(home) = environment.get_os("HOME") {
        places.push(place(&Path::new(home).join(".config/pgark"), false));
    }
    places.push(place(&environment.system_directory, false));
    places
}

fn exists(file: &Path, may_be_closed: bool) -> Result<bool, Failure> {
    match std::fs::metadata(file) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) if may_be_closed && error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(unreadable(file, &error)),
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::usage("E-CONFIG-READ", format!("configuration file {} cannot be read: {error}", file.display()))
}

fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl Loaded {
    fn nothing() -> Loaded {
        Loaded { tree: Node::table(), texts: Texts::default(), warnings: Vec::new() }
    }

    /// Of what was read, and checked, by another process.
    pub fn of(texts: &Texts) -> Result<Loaded, Failure> {
        let mut loaded = Loaded::nothing();
        texts.files.iter().try_for_each(|file| loaded.lay(file.clone()))?;
        loaded.texts.fragments = texts.fragments.clone();
        Ok(loaded)
    }

    /// Reads one file and lays it over what is there; returns its owner.
    fn add(&mut self, file: &Path, owners: Option<&[u32]>) -> Result<u32, Failure> {
        let (text, metadata) = read(file)?;
        check_writers(file, &metadata, owners)?;
        let everybody_reads = metadata.permissions().mode() & 0o004 != 0;
        self.lay(FileText { path: file.to_owned(), text, everybody_reads })?;
        Ok(metadata.uid())
    }

    fn lay(&mut self, file: FileText) -> Result<(), Failure> {
        let tree = tree::parse(&file.path, &file.text)?;
        if file.everybody_reads && has_clear_text_secret(&tree) {
            let name = file.path.display();
            self.warnings
                .push(format!("{name} holds a secret in clear text and everybody can read it: chmod 0600 '{name}'"));
        }
        tree::merge(&mut self.tree, tree, TableArrays::Append);
        self.texts.files.push(file);
        Ok(())
    }

    /// The `conf.d/*.toml` beside the main file, in the order of their names.
    fn add_fragments(&mut self, main: &Path, owners: &[u32]) -> Result<(), Failure> {
        let directory = main.with_file_name("conf.d");
        for file in fragments(&directory)? {
            self.add(&file, Some(owners))?;
        }
        self.texts.fragments = Some(directory);
        Ok(())
    }
}

/// The files of `conf.d`; none where there is no such directory.
pub(super) fn fragments(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(vec![]),
        Err(error) => return Err(unreadable(directory, &error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| unreadable(directory, &error))?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

pub(super) fn read(file: &Path) -> Result<(String, Metadata), Failure> {
    let failed = |error: std::io::Error| unreadable(file, &error);
    let opened = File::open(file).map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    let mut text = String::new();
    opened.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if u64::try_from(text.len()).map_or(true, |bytes| bytes > CONFIG_BYTES_MAX) {
        let message = format!("configuration file {} is larger than {CONFIG_BYTES_MAX} bytes", file.display());
        return Err(Failure::usage("E-CONFIG-READ", message));
    }
    Ok((text, metadata))
}

fn check_writers(file: &Path, metadata: &Metadata, owners: Option<&[u32]>) -> Result<(), Failure> {
    let name = file.display();
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        let message = format!("configuration file {name} has mode {mode:04o}: others can change what is run");
        return Err(Failure::refused("E-CONFIG-MODE", message).hint(format!("chmod go-w '{name}'")));
    }
    if owners.is_some_and(|owners| !owners.contains(&metadata.uid())) {
        let message = format!("configuration file {name} belongs to user {}, not to this user or root", metadata.uid());
        let hint = "name it with --config if it is meant, or change its owner";
        return Err(Failure::refused("E-CONFIG-OWNER", message).hint(hint));
    }
    Ok(())
}

fn has_clear_text_secret(node: &Node) -> bool {
    match &node.value {
        Value::Table(table) => table.iter().any(|(key, entry)| {
            let text = matches!(entry.node.value, Value::String(_));
            (text && SECRET_KEYS.contains(&key.as_str())) || has_clear_text_secret(&entry.node)
        }),
        Value::Array(items) => items.iter().any(has_clear_text_secret),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::*;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode set");
    }

    fn rpo(loaded: &Loaded) -> &Value {
        &loaded.tree.find(&["defaults", "rpo"]).expect("there").value
    }

    #[test]
    fn fragments_are_laid_over_the_main_file_in_the_order_of_their_names() {
        let dir = TempDir::new();
        dir.write("etc/pgark/pgark.toml", "[defaults]\nrpo = 'main'");
        dir.write("etc/pgark/conf.d/20-b.toml", "[defaults]\nrpo = '20'");
        dir.write("etc/pgark/conf.d/10-a.toml", "[defaults]\nrpo = '10'\nrto = '10'");
        dir.write("etc/pgark/conf.d/.30.toml", "not toml");
        dir.write("etc/pgark/conf.d/30.toml.bak", "not toml");
        let loaded = load(None, &Environment::for_test(dir.path(), &[])).expect("loads");
        assert_eq!(rpo(&loaded), &Value::String("20".into()));
        assert_eq!(loaded.tree.find(&["defaults", "rto"]).map(|n| &n.value), Some(&Value::String("10".into())));
        let names: Vec<_> = loaded.texts.paths().filter_map(|f| f.file_name()).collect();
        assert_eq!(names, ["pgark.toml", "10-a.toml", "20-b.toml"]);
    }

    #[test]
    fn the_first_of_the_usual_places_is_taken() {
        let dir = TempDir::new();
        let home = dir.path().join("home");
        let home = home.to_str().expect("UTF-8");
        let other = dir.write("named.toml", "[defaults]\nrpo = 'named'");
        let variable = dir.write("variable.toml", "[defaults]\nrpo = 'variable'");
        let plain = Environment::for_test(dir.path(), &[("HOME", home)]);
        assert!(load(None, &plain).expect("no file is fine").texts.files.is_empty());
        for (file, value) in
            [("etc/pgark/pgark.toml", "etc"), ("home/.config/pgark/pgark.toml", "home"), ("cwd/pgark.toml", "cwd")]
        {
            dir.write(file, &format!("[defaults]\nrpo = '{value}'"));
            assert_eq!(rpo(&load(None, &plain).expect("loads")), &Value::String(value.into()), "{value}");
        }
        let variable = variable.to_str().expect("UTF-8");
        let with_variable = Environment::for_test(dir.path(), &[("HOME", home), ("PGARK_CONFIG", variable)]);
        assert_eq!(rpo(&load(None, &with_variable).expect("loads")), &Value::String("variable".into()));
        assert_eq!(rpo(&load(Some(&other), &with_variable).expect("loads")), &Value::String("named".into()));
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        let dir = TempDir::new();
        let environment = Environment::for_test(dir.path(), &[]);
        let failure = load(Some(&dir.path().join("absent.toml")), &environment).expect_err("absent");
        assert_eq!(failure.code, "E-CONFIG-READ");
    }

    #[test]
    fn a_file_others_can_write_is_refused() {
        let dir = TempDir::new();
        let file = dir.write("cwd/pgark.toml", "");
        for mode in [0o620, 0o602, 0o664, 0o666] {
            chmod(&file, mode);
            let failure = load(None, &Environment::for_test(dir.path(), &[])).expect_err("refused");
            assert_eq!((&*failure.code, failure.exit.code()), ("E-CONFIG-MODE", 4), "{mode:o}");
        }
        chmod(&file, 0o644);
        assert!(load(None, &Environment::for_test(dir.path(), &[])).is_ok());
    }

    #[test]
    fn a_found_file_of_another_user_is_refused() {
        let dir = TempDir::new();
        let file = dir.write("pgark.toml", "");
        let metadata = std::fs::metadata(&file).expect("there");
        let stranger = metadata.uid().wrapping_add(1);
        let failure = check_writers(&file, &metadata, Some(&[stranger])).expect_err("refused");
        assert_eq!(failure.code, "E-CONFIG-OWNER");
        assert!(check_writers(&file, &metadata, None).is_ok());
    }

    #[test]
    fn a_clear_text_secret_everybody_can_read_is_a_warning() {
        let dir = TempDir::new();
        let file = dir.write("cwd/pgark.toml", "[repos.main]\nurl = '/r'\npassphrase = 'hunter2'");
        let environment = Environment::for_test(dir.path(), &[]);
        assert!(load(None, &environment).expect("loads").warnings.is_empty());
        chmod(&file, 0o644);
        let warnings = load(None, &environment).expect("loads").warnings;
        assert!(warnings.len() == 1 && warnings.iter().all(|w| w.contains("clear text") && !w.contains("hunter2")));
        std::fs::write(&file, "[repos.main]\nurl = '/r'\npassphrase_file = '/p'").expect("written");
        assert!(load(None, &environment).expect("loads").warnings.is_empty());
    }
}

//! The programs that wrap the repository's key for a KMS or a vault. What is run comes from the configuration alone; the
//! repository knows a name and what the program made of the key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pgark_repo::RepoError;
use pgark_repo::keyring::KeyCommands;
use pgark_repo::limits::WRAPPED_KEY_BYTES_MAX;
use zeroize::Zeroizing;

use crate::program;
use crate::settings::schema::KeyCommand;

/// Unless the setting says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct ConfiguredCommands(BTreeMap<String, KeyCommand>);

impl ConfiguredCommands {
    /// None when there are none, so that a client without any is not taken for one that has a key.
    pub fn of(configured: &BTreeMap<String, KeyCommand>) -> Option<Arc<dyn KeyCommands>> {
        let some = !configured.is_empty();
        some.then(|| -> Arc<dyn KeyCommands> { Arc::new(ConfiguredCommands(configured.clone())) })
    }

    fn run(
        &self,
        name: &str,
        verb: &str,
        argv: impl Fn(&KeyCommand) -> &[String],
        input: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, RepoError> {
        let failed = |why: String| RepoError::KeyCommand { name: name.to_owned(), why };
        let command = self.0.get(name).ok_or_else(|| failed("it is not configured".into()))?;
        let deadline = command.timeout.map_or(DEADLINE, |t| t.0);
        let argv = argv(command);
        program::run(argv, input, WRAPPED_KEY_BYTES_MAX, deadline)
            .map_err(|e| failed(format!("{verb} '{}' {e}", argv.first().map_or("", String::as_str))))
    }
}

impl KeyCommands for ConfiguredCommands {
    fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn wrap(&self, name: &str, plain: &[u8]) -> pgark_repo::Result<Vec<u8>> {
        Ok(self.run(name, "wrap_command", |c| &c.wrap_command.0, plain)?.to_vec())
    }

    fn unwrap(&self, name: &str, wrapped: &[u8]) -> pgark_repo::Result<Zeroizing<Vec<u8>>> {
        self.run(name, "unwrap_command", |c| &c.unwrap_command.0, wrapped)
    }
}

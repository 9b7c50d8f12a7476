//! `[[clusters.NAME.recover.repoint]]`: places in which it stands where the application's database is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_dr::repoint::{self, Edit, Entry, Format, New, Object, Target, Turn};
use serde::{Deserialize, Serialize};

use super::schema::CommandLine;
use super::units::Span;
use crate::secret::SECRET_VARIABLES;

const WITHIN: Duration = Duration::from_secs(60);

/// A file, an object of Kubernetes, or a command.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepointSection {
    /// The file in which it stands
    pub file: Option<PathBuf>,
    /// By the file's name when left out.
    pub format: Option<FormatSetting>,
    /// The keys down to the value.
    pub key: Vec<String>,
    /// configmap/NAME, secret/NAME
    pub kubernetes: Option<String>,
    /// Of the ConfigMap or Secret
    pub namespace: Option<String>,
    /// Of its data.
    pub entry: Option<String>,
    /// What of the new place is written there.
    pub set: Option<SetSetting>,
    /// Written instead, as it is.
    pub value: Option<String>,
    /// Gets where the database is as JSON on its standard input.
    pub command: Option<CommandLine>,
    /// Points back
    pub back: Option<CommandLine>,
    /// Ends with 0 when it points to the new database, with 1 when to the old one.
    pub status: Option<CommandLine>,
    /// How long it may take
    pub timeout: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatSetting {
    Env,
    Ini,
    Toml,
    Yaml,
    Json,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SetSetting {
    /// Host and port in the connection string that is there
    #[default]
    Connection,
    Host,
    Port,
}

/// Where the new instance is reached.
#[derive(Debug, Clone)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl From<FormatSetting> for Format {
    fn from(setting: FormatSetting) -> Format {
        match setting {
            FormatSetting::Env => Format::Env,
            FormatSetting::Ini => Format::Ini,
            FormatSetting::Toml => Format::Toml,
            FormatSetting::Yaml => Format::Yaml,
            FormatSetting::Json => Format::Json,
        }
    }
}

impl RepointSection {
    /// # Errors
    /// What is wrong with it, in words.
    pub fn check(&self) -> Result<(), String> {
        match (&self.file, &self.kubernetes, &self.command) {
            (Some(file), None, None) => {
                if self.key.is_empty() {
                    return Err("key says which value of the file it is".into());
                }
                self.format_of(file).map(drop)
            }
            (None, Some(object), None) => {
                if !["configmap/", "secret/"].iter().any(|kind| object.starts_with(kind)) {
                    return Err(format!("'{object}' is neither configmap/NAME nor secret/NAME"));
                }
                if self.entry.is_none() {
                    return Err("entry says which entry of its data it is".into());
                }
                if self.key.is_empty() {
                    Ok(())
                } else {
                    self.format_in(self.entry.as_deref().unwrap_or_default()).map(drop)
                }
            }
            (None, None, Some(_)) => Ok(()),
            _ => Err("it names one of file, kubernetes and command".into()),
        }
    }

    fn format_of(&self, file: &Path) -> Result<Format, String> {
        self.format_in(&file.file_name().unwrap_or_default().to_string_lossy())
    }

    fn format_in(&self, name: &str) -> Result<Format, String> {
        let known = self.format.map(Format::from).or_else(|| Format::of(name));
        known.ok_or_else(|| {
            format!("the format of '{name}' is not known by its name: format is env, ini, toml, yaml or json")
        })
    }

    fn edit(&self, address: &Address) -> Edit {
        let new = match (&self.value, self.set.unwrap_or_default()) {
            (Some(value), _) => New::Value(value.clone()),
            (None, SetSetting::Host) => New::Value(address.host.clone()),
            (None, SetSetting::Port) => New::Value(address.port.to_string()),
            (None, SetSetting::Connection) => {
                New::Connection(Target { host: Some(address.host.clone()), port: Some(address.port), database: None })
            }
        };
        Edit { path: self.key.clone(), new }
    }
}

/// What they come to: values of one file, or of one object, change together.
pub fn turns(sections: &[RepointSection], address: &Address) -> Result<Vec<Turn>, String> {
    let mut all: Vec<Turn> = vec![];
    for section in sections {
        section.check()?;
        let within = section.timeout.map_or(WITHIN, |s| s.0);
        if let Some(command) = &section.command {
            all.push(Turn::Command(repoint::Command {
                turn: command.0.clone(),
                back: section.back.clone().map(|c| c.0),
                status: section.status.clone().map(|c| c.0),
                told: serde_json::json!({"host": address.host, "port": address.port}),
                within,
                hidden: SECRET_VARIABLES.to_vec(),
            }));
        } else if let Some(path) = &section.file {
            let format = section.format_of(path)?;
            let same = all.iter_mut().find_map(|turn| match turn {
                Turn::File { file, edits, .. } if file == path => Some(edits),
                _ => None,
            });
            match same {
                Some(edits) => edits.push(section.edit(address)),
                None => all.push(Turn::File { file: path.clone(), format, edits: vec![section.edit(address)] }),
            }
        } else {
            add_object(&mut all, section, address, within)?;
        }
    }
    Ok(all)
}

fn add_object(
    all: &mut Vec<Turn>,
    section: &RepointSection,
    address: &Address,
    within: Duration,
) -> Result<(), String> {
    let (name, entry) = (section.kubernetes.clone().unwrap_or_default(), section.entry.clone().unwrap_or_default());
    let format = if section.key.is_empty() { None } else { Some(section.format_in(&entry)?) };
    let same = all.iter_mut().find_map(|turn| match turn {
        Turn::Kubernetes(object) if object.name == name && object.namespace == section.namespace => Some(object),
        _ => None,
    });
    let own = Entry { name: entry.clone(), format, edits: vec![section.edit(address)] };
    let Some(object) = same else {
        all.push(Turn::Kubernetes(Object {
            name,
            namespace: section.namespace.clone(),
            entries: vec![own],
            within,
            hidden: SECRET_VARIABLES.to_vec(),
        }));
        return Ok(());
    };
    match object.entries.iter_mut().find(|e| e.name == entry) {
        Some(there) if there.format == format && format.is_some() => there.edits.push(section.edit(address)),
        Some(_) => return Err(format!("entry '{entry}' of {} is named twice", object.name)),
        None => object.entries.push(own),
    }
    Ok(())
}

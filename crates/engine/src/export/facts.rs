//! What an export says of itself to programs: what PostgreSQL's own files do not hold. Whoever reads it back must not
//! believe more of it than times and places.

use jiff::Timestamp;
use pgark_pg::value::{Lsn, SystemId, TimelineId};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::{Owner, TablespaceLink};
use serde::{Deserialize, Serialize};

use super::ExportPlan;

pub const FILE: &str = "pgark-export.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    pub schema: u32,
    pub backup: BackupId,
    pub cluster: ClusterName,
    pub system_id: SystemId,
    pub version_num: u32,
    pub timeline: TimelineId,
    pub lsn_start: Lsn,
    pub lsn_stop: Lsn,
    pub started: Timestamp,
    pub finished: Timestamp,
    /// By the clock of the server.
    pub stopped: Timestamp,
    pub tablespaces: Vec<TablespaceLink>,
    pub owner: Owner,
}

impl Facts {
    pub fn new(plan: &ExportPlan) -> Self {
        let (record, entry) = (&plan.restore.record, &plan.restore.backup);
        Facts {
            schema: 1,
            backup: record.id.clone(),
            cluster: record.cluster.clone(),
            system_id: record.system_id,
            version_num: record.version_num,
            timeline: record.timeline,
            lsn_start: record.lsn_start,
            lsn_stop: record.lsn_stop,
            started: record.started,
            finished: record.finished,
            stopped: entry.stopped,
            tablespaces: record.tablespaces.clone(),
            owner: record.owner.clone(),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data");
        text.push(b'\n');
        text
    }
}

//! How much of the machine a command may take.

use std::num::NonZeroU64;

use clap::Args;
use pgark_engine::ctx::Ctx;
use pgark_engine::pace::Pace;

use crate::failure::Failure;
use crate::settings::units::ByteSize;

/// For commands that move much data beside a server.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct RateArgs {
    /// Read or write at most so much of the data directory per second, such as 50MB [setting: bandwidth_limit]
    #[arg(long, value_name = "SIZE")]
    limit_rate: Option<ByteSize>,
}

impl RateArgs {
    /// The flag, or else the cluster's setting.
    pub fn apply(&self, configured: Option<u64>, ctx: &mut Ctx) -> Result<(), Failure> {
        if let Some(bytes) = self.limit_rate.map(|size| size.0).or(configured) {
            let rate = NonZeroU64::new(bytes)
                .ok_or_else(|| Failure::usage("E-LIMIT", "a limit of 0 bytes per second moves nothing"))?;
            ctx.limit(Some(Pace::new(rate)));
        }
        Ok(())
    }
}

/// Not for what starts a server, which would inherit it.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct PriorityArgs {
    /// Give way to other processes on the processor: 1 to 19, as nice(1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=19))]
    nice: Option<u8>,
    /// Give way on the disks: idle, or 0 to 7 of the best-effort class, as ionice(1), which must be installed
    #[arg(long, value_name = "CLASS")]
    ionice: Option<IoClass>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IoClass {
    Idle,
    BestEffort(u8),
}

impl std::str::FromStr for IoClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("idle", _) => Ok(IoClass::Idle),
            (_, Ok(level @ 0..=7)) => Ok(IoClass::BestEffort(level)),
            _ => Err("it is 'idle' or a level from 0 to 7".into()),
        }
    }
}

impl PriorityArgs {
    /// To be called before any thread is started: threads inherit what this one has.
    ///
    /// # Errors
    /// When the system refuses; a limit that was asked for and does not hold would do harm.
    pub fn apply(&self) -> Result<(), Failure> {
        if let Some(level) = self.nice {
            rustix::process::nice(i32::from(level))
                .map_err(|e| Failure::failed("E-LIMIT", format!("the priority cannot be lowered: {e}")))?;
        }
        if let Some(class) = self.ionice {
            let mut command = std::process::Command::new("ionice");
            match class {
                IoClass::Idle => command.args(["-c", "3"]),
                IoClass::BestEffort(level) => command.args(["-c", "2", "-n", &level.to_string()]),
            };
            let failed = |why: String| {
                Failure::failed("E-LIMIT", format!("the disk priority cannot be lowered: {why}"))
                    .hint("ionice is part of util-linux")
            };
            let done = command.arg("-p").arg(std::process::id().to_string()).output();
            let done = done.map_err(|e| failed(format!("ionice: {e}")))?;
            if !done.status.success() {
                return Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
            }
        }
        Ok(())
    }
}

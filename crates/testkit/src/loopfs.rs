//! A small file system of its own on a loop device: one that can be full, and one that can lose power.
//!
//! The power cut is ext4's shutdown ioctl with the journal not flushed: what was not fsynced is gone after the next
//! mount, and every write fails from then on. Needs root, `mkfs.ext4`, `losetup` and `python3` (for the ioctl).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::os::{Scratch, give_to_postgres, is_root};

const CUT: &str = "import fcntl, os, struct, sys\n\
                   d = os.open(sys.argv[1], os.O_RDONLY)\n\
                   fcntl.ioctl(d, 0x8004587d, struct.pack('I', 2))\n";

/// A mounted ext4 on a loop device; unmounted and detached when dropped. Declare it before what
/// uses it, so that it is dropped last.
#[derive(Debug)]
pub struct LoopFs {
    device: String,
    mount: PathBuf,
    mounted: bool,
    /// Its own, so that no other clean-up meets a mounted file system.
    _scratch: Scratch,
}

impl LoopFs {
    /// A mounted file system of `size_mb`, or why this machine cannot.
    pub fn new(size_mb: u64) -> Result<LoopFs, String> {
        if !is_root() {
            return Err("loop file systems need root".into());
        }
        let scratch = Scratch::new("loop");
        let image = scratch.join("image");
        let file = fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(size_mb << 20).map_err(|error| error.to_string())?;
        // No reserved blocks and no lazy initialisation: the size is what it says, and nothing writes in the background.
        tool(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(["-E", "lazy_itable_init=0"]).arg(&image))?;
        let mount = scratch.dir("mnt");
        let device = tool(Command::new("losetup").args(["--find", "--show"]).arg(&image))?.trim().to_owned();
        let mut filesystem = LoopFs { device, mount, mounted: false, _scratch: scratch };
        filesystem.mount()?;
        Ok(filesystem)
    }

    fn mount(&mut self) -> Result<(), String> {
        tool(Command::new("mount").args(["-t", "ext4", &self.device]).arg(&self.mount))?;
        self.mounted = true;
        fs::set_permissions(&self.mount, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
        give_to_postgres(&self.mount);
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// A directory inside that PostgreSQL may write to.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.mount.join(name);
        fs::create_dir(&path).expect("directory on the loop file system");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("mode");
        give_to_postgres(&path);
        // The set-up itself must survive the first power cut.
        rustix::fs::sync();
        path
    }

    /// Leaves about `left` bytes free by writing a file of that much less than the free space.
    pub fn fill_leaving(&self, left: u64) -> PathBuf {
        let stat = rustix::fs::statvfs(&self.mount).expect("statvfs");
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let path = self.mount.join("ballast");
        let file = fs::File::create(&path).expect("ballast");
        let length = free.saturating_sub(left);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).expect("fill the file system");
        path
    }

    /// Power goes now: nothing that was not fsynced survives.
    pub fn cut_power(&self) {
        let python =
            ["/usr/bin/python3", "python3"].into_iter().find(|name| Command::new(name).arg("-V").output().is_ok());
        let python = python.expect("python3 is installed");
        tool(Command::new(python).args(["-c", CUT]).arg(&self.mount)).expect("the shutdown ioctl");
    }

    /// Power comes back: unmount and mount again, with journal replay.
    pub fn restore_power(&mut self) {
        // A process that was just killed may hold a file for a moment.
        crate::os::wait_until("nothing uses the dead file system", Duration::from_secs(20), || {
            tool(Command::new("umount").arg(&self.mount)).ok()
        });
        self.mounted = false;
        self.mount().expect("mount after the power cut");
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        let unmounted = if self.mounted { tool(Command::new("umount").arg(&self.mount)) } else { Ok(String::new()) };
        let detached = tool(Command::new("losetup").args(["--detach", &self.device]));
        for failure in [unmounted, detached].into_iter().filter_map(Result::err) {
            eprintln!("loop file system {}: {failure}", self.mount.display());
        }
    }
}

fn tool(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

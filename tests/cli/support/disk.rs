//! A disk that is soon full.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tempfile::{TempDir, tempdir};

/// A file system of its own that is soon full; needs root and is skipped without.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// 4 MiB, or `None` where nothing may be mounted.
    pub(crate) fn mount() -> Option<Self> {
        let dir = tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("skipped: no permission to mount a small tmpfs");
            return None;
        }
        Some(Self(dir))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

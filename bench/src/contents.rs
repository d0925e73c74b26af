//! Whether two contenders wrote the same.

use std::{
    fs::{self, File},
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{interrupt::Interrupt, process::Running, scenario::Format};

/// After this long a comparison is given up.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Something that a contender wrote.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

impl Output {
    /// Whether both hold the same disk, byte by byte.
    pub(crate) fn equals(
        &self,
        other: &Self,
        scratch: &Path,
        interrupt: &Interrupt,
    ) -> Result<bool> {
        match (self.format, other.format) {
            (Format::Raw, Format::Raw) => same_bytes(&self.path, &other.path, interrupt),
            _ => same_disks(self, other, scratch, interrupt),
        }
    }

    pub(crate) fn remove(&self) -> Result<()> {
        remove(&self.path)
    }
}

/// Removes a file that may not be there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

fn same_bytes(one: &Path, two: &Path, interrupt: &Interrupt) -> Result<bool> {
    const CHUNK: u64 = 1 << 20;
    if fs::metadata(one)?.len() != fs::metadata(two)?.len() {
        return Ok(false);
    }
    let (mut one, mut two) = (
        BufReader::new(File::open(one)?),
        BufReader::new(File::open(two)?),
    );
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        interrupt.check()?;
        left.clear();
        right.clear();
        one.by_ref().take(CHUNK).read_to_end(&mut left)?;
        two.by_ref().take(CHUNK).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

fn same_disks(one: &Output, two: &Output, scratch: &Path, interrupt: &Interrupt) -> Result<bool> {
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", one.format.name(), "-F", two.format.name()]);
    compare.arg(&one.path).arg(&two.path).stdout(Stdio::null());
    let running = Running::start(&mut compare, &scratch.join("stderr"))?;
    let ended = running.wait(interrupt, TIMEOUT)?;
    // 1 is its answer, anything above is a failure.
    if ended.status.code() == Some(1) {
        return Ok(false);
    }
    ended.success()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_images_are_the_same_when_size_and_bytes_are() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let write = |name, contents: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, contents).unwrap();
            let format = Format::Raw;
            Output { path, format }
        };
        let first = write("first", b"disk");
        for (contents, same) in [(&b"disk"[..], true), (b"dish", false), (b"disk\0", false)] {
            let other = write("other", contents);
            let equals = first.equals(&other, directory.path(), &interrupt);
            assert_eq!(equals.unwrap(), same, "{contents:?}");
        }
    }
}

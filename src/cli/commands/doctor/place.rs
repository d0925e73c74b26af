//! What a directory, a file or a block device can do, tried with files that have no name.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
};

use blockferry_sys::{self as sys, ZeroMethod};

use crate::{
    block::{HumanSize, printable},
    system,
};

use super::{
    super::super::failure::Failure,
    finding::{Finding, Group, Place, State},
};

/// What was found out about `path`, or why it cannot be looked at.
pub(super) fn look(path: &Path) -> Result<Place, Failure> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => to_be_made(path).ok_or(error),
        found => found.map(|metadata| look_at(path, metadata.file_type())),
    };
    found.map_err(|error| {
        let why = system::words(&error);
        Failure::failed(format!("{}: {why}", printable(path.as_os_str())))
    })
}

/// A file that is not there yet, in a directory that is.
fn to_be_made(path: &Path) -> Option<Place> {
    path.file_name()?;
    let directory = match path.parent()? {
        parent if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    };
    fs::metadata(directory).ok().filter(fs::Metadata::is_dir)?;
    Some(Place {
        path: path.to_owned(),
        kind: "not-there",
        findings: Group(of_directory(directory)),
    })
}

fn look_at(path: &Path, kind: fs::FileType) -> Place {
    let (kind, findings) = match kind {
        kind if kind.is_dir() => ("directory", of_directory(path)),
        kind if kind.is_file() => ("file", of_file(path)),
        kind if kind.is_block_device() => ("block-device", of_block_device(path)),
        kind if kind.is_fifo() => ("pipe", access(path)),
        kind if kind.is_socket() => ("socket", access(path)),
        _ => ("other", access(path)),
    };
    Place {
        path: path.to_owned(),
        kind,
        findings: Group(findings),
    }
}

/// Whether it can be read and written.
fn access(path: &Path) -> Vec<Finding> {
    let (read, write) = match sys::permissions(path) {
        Ok(permissions) => permissions,
        Err(error) => {
            let unknown = |name| Finding::new(name, State::Unknown).meaning(system::words(&error));
            return vec![unknown("readable"), unknown("writable")];
        }
    };
    let finding = |name, may, without| match may {
        true => Finding::new(name, State::Yes),
        false => Finding::new(name, State::No).meaning(without),
    };
    vec![
        finding("readable", read, "it cannot be a source for this user"),
        finding(
            "writable",
            write,
            "it cannot be a destination for this user",
        ),
    ]
}

fn of_directory(directory: &Path) -> Vec<Finding> {
    let mut findings = vec![file_system(directory)];
    findings.extend(free_space(directory));
    let pair = tempfile::tempfile_in(directory).and_then(|one| {
        let other = tempfile::tempfile_in(directory)?;
        Ok((one, other))
    });
    match pair {
        Ok((one, other)) => {
            findings.push(Finding::new("writable", State::Yes));
            let name = findings[0].shown.clone();
            findings.extend(abilities(directory, &name, &one, &other));
        }
        Err(error) => {
            let why = system::words(&error);
            let meaning = format!("images cannot be made here, and nothing more was tried: {why}");
            findings.push(Finding::new("writable", State::No).meaning(meaning));
        }
    }
    findings
}

fn of_file(path: &Path) -> Vec<Finding> {
    let mut findings = access(path);
    if let Ok(file) = File::open(path)
        && let Ok(facts) = sys::inspect(&file)
    {
        findings.push(size(facts.size));
        let allocated = HumanSize(facts.allocated).to_string();
        findings.push(Finding::new("allocated", State::Yes).value(facts.allocated, allocated));
        let used = sys::is_image_written(&file).unwrap_or(false);
        findings.push(in_use(
            used,
            "another program writes it: what is read may change meanwhile",
        ));
    }
    // The directory tells what its file system can do, without a change to the file.
    let directory = fs::canonicalize(path)
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned));
    if let Some(directory) = directory {
        let beside = of_directory(&directory).into_iter();
        findings.extend(beside.filter(|finding| finding.name != "writable"));
    }
    findings
}

fn of_block_device(path: &Path) -> Vec<Finding> {
    let mut findings = access(path);
    let hint = "add the user to the group of the device (often 'disk'), or use sudo";
    for finding in &mut findings {
        if finding.state == State::No {
            let meaning = finding.meaning.take().unwrap_or_default();
            finding.meaning = Some(format!("{meaning}: {hint}"));
        }
    }
    let Ok(file) = File::open(path) else {
        return findings;
    };
    match sys::inspect_block_device(&file) {
        Ok(facts) => {
            findings.push(size(facts.size));
            let sector = HumanSize(facts.logical_block.into()).to_string();
            findings.push(Finding::new("sectors", State::Yes).value(facts.logical_block, sector));
            let rotational = match facts.rotational {
                true => Finding::new("rotational", State::Yes),
                false => Finding::new("rotational", State::No),
            };
            findings.push(rotational);
        }
        Err(error) => {
            findings.push(Finding::new("size", State::Unknown).meaning(system::words(&error)));
        }
    }
    if let Ok(claimed) = sys::is_block_device_claimed(path) {
        let what = "it is mounted or a part of another device: a copy to it would destroy that";
        findings.push(in_use(claimed, what));
    }
    findings
}

fn size(bytes: u64) -> Finding {
    Finding::new("size", State::Yes).value(bytes, HumanSize(bytes).to_string())
}

fn in_use(is: bool, meaning: &str) -> Finding {
    match is {
        true => Finding::new("in use", State::Yes).meaning(meaning),
        false => Finding::new("in use", State::No),
    }
}

/// The name of the file system, as the table of mounts has it.
fn file_system(directory: &Path) -> Finding {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    match mounted(&table, &path) {
        Some(name) => Finding::new("file system", State::Yes).value(name.clone(), name),
        None => Finding::new("file system", State::Unknown),
    }
}

/// The type of what is mounted at `path` or nearest above it, in `table` (`/proc/self/mountinfo`).
fn mounted(table: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in table.lines() {
        let Some((mount, source)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), Some(name)) = (mount.split(' ').nth(4), source.split(' ').next()) else {
            continue;
        };
        let point = unescaped(point);
        let depth = point.components().count();
        // Of two at the same place the later one is on top.
        if path.starts_with(&point) && best.is_none_or(|(best, _)| best <= depth) {
            best = Some((depth, name));
        }
    }
    best.map(|(_, name)| printable(name.as_ref()))
}

/// A path in the table of mounts, where blanks are written `\040`.
fn unescaped(text: &str) -> PathBuf {
    let [space, tab, newline, backslash] = ["\\040", "\\011", "\\012", "\\134"];
    let text = text.replace(space, " ").replace(tab, "\t");
    PathBuf::from(text.replace(newline, "\n").replace(backslash, "\\"))
}

fn free_space(directory: &Path) -> Option<Finding> {
    let free = sys::free_space(directory).ok()??;
    let finding = match free {
        0 => Finding::new("free space", State::Limited).meaning("it is full: only holes fit"),
        _ => Finding::new("free space", State::Yes),
    };
    Some(finding.value(free, HumanSize(free).to_string()))
}

/// What two new files in `directory`, which lies in the file system `name`, can do.
fn abilities(directory: &Path, name: &str, one: &File, other: &File) -> Vec<Finding> {
    let block = sys::file_system_block(one)
        .unwrap_or(4096)
        .clamp(4096, 1 << 20);
    // Two blocks of data, then a hole.
    let filled = sys::write_all_at(one, &vec![1; (2 * block) as usize], 0)
        .and_then(|()| sys::set_size(one, 64 * block));
    if let Err(error) = filled {
        let why = system::words(&error);
        let meaning = format!("not even small files can be written: {why}");
        return vec![Finding::new("abilities", State::Limited).meaning(meaning)];
    }
    let reflink = sys::clone_range(one, 0, other, 0, block);
    let copy = sys::copy_range(one, 0, other, 0, block).map(drop);
    let lock = sys::claim_image(one).map(drop);
    let nameless = sys::open_directory(directory).and_then(sys::create_nameless);
    let zeroed = sys::zero_range(one, 0, block, ZeroMethod::KeepAllocated);
    let holes = holes(one, block);
    let in_memory = sys::lives_in_memory(one);
    let reflink = match reflink {
        Ok(()) => Finding::new("reflink", State::Yes)
            .meaning("copies on this file system share their blocks: at once, without space"),
        Err(_) => Finding::new("reflink", State::No)
            .meaning(format!("copies on this file system ({name}) move bytes")),
    };
    let mut findings = vec![
        reflink,
        holes,
        Finding::tried(
            "zero range",
            &zeroed,
            "",
            "--allocated writes its zeroes one by one",
        ),
        Finding::tried(
            "copy_file_range",
            &copy,
            "copies with '-S 0' stay in the kernel",
            "copies go through memory",
        ),
        Finding::tried(
            "O_TMPFILE",
            &nameless.map(drop),
            "a new image has no name before it is whole: nothing is left of one that fails",
            "a new image is called .NAME.XXXXXX.partial until it is whole; 'kill -9' leaves that behind",
        ),
        Finding::tried(
            "locks",
            &lock,
            "an image that QEMU has open is noticed",
            "an image that QEMU has open is not noticed",
        ),
    ];
    if in_memory {
        let meaning = "images here take memory, and are gone with it";
        findings.push(Finding::new("in memory", State::Yes).meaning(meaning));
    }
    findings
}

/// Whether holes are seen and made: `file` has two blocks of data and a hole.
fn holes(file: &File, block: u64) -> Finding {
    let seen = matches!(sys::next_hole(file.as_fd(), 0), Ok(Some(hole)) if hole <= 2 * block);
    let made = sys::zero_range(file, block, block, ZeroMethod::PunchHole).is_ok();
    match (seen, made) {
        (true, true) => {
            Finding::new("holes", State::Yes).meaning("zeroes take no space and are not read")
        }
        (true, false) => Finding::new("holes", State::Limited)
            .meaning("new images are sparse, but none are made in images that are there"),
        (false, true) => Finding::new("holes", State::Limited)
            .meaning("zeroes take no space, but are read as data"),
        (false, false) => {
            Finding::new("holes", State::No).meaning("zeroes take space and are read")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /data rw shared:1 - xfs /dev/sdb rw
31 30 0:41 / /data/two\\040words rw - btrfs /dev/sdc rw
32 22 0:42 / /data rw - overlay overlay rw
nonsense
";

    #[test]
    fn the_nearest_and_latest_mount_counts() {
        let name = |path: &str| mounted(TABLE, Path::new(path));
        assert_eq!(name("/etc").as_deref(), Some("ext4"));
        assert_eq!(name("/database").as_deref(), Some("ext4"));
        assert_eq!(name("/data/x").as_deref(), Some("overlay"));
        assert_eq!(name("/data/two words/x").as_deref(), Some("btrfs"));
        assert_eq!(mounted("", Path::new("/")), None);
    }

    #[test]
    fn a_directory_is_left_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = look(directory.path()).expect("looked at");
        assert_eq!(place.kind, "directory");
        let names: Vec<_> = place.findings.0.iter().map(|it| &*it.name).collect();
        for name in ["file system", "writable", "reflink", "holes", "O_TMPFILE"] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        let left = fs::read_dir(directory.path()).expect("a list").count();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_file_to_be_made_stands_for_its_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = look(&directory.path().join("new.raw")).expect("looked at");
        assert_eq!(place.kind, "not-there");
        assert!(look(&directory.path().join("no/new.raw")).is_err());
    }
}

use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::block::{BlockDevice, Buffer, Capabilities, WriteFlags};

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn open(path: &Path, keep_partial: bool) -> Result<(FileDevice, DestinationFile)> {
    DestinationFile::open(path, &Arc::from("DEST"), keep_partial)
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

async fn write(device: &FileDevice, text: &[u8]) {
    let write = device.write(0, Buffer::from(text), WriteFlags::empty());
    write.await.expect("written");
}

type Begin = fn(&Path) -> (FileDevice, DestinationFile);

/// The two ways to begin a new file.
const WAYS: [Begin; 2] = [
    // Without a name, where the file system can.
    |path| open(path, false).expect("begun"),
    begin_beside,
];

fn begin_beside(path: &Path) -> (FileDevice, DestinationFile) {
    let place = Place::of_new(path)
        .expect("a place")
        .expect("nothing there");
    let (file, state) = place.begin_partial().expect("begun");
    let device = FileDevice::replacing(file, "DEST").expect("a device");
    let beside = DestinationFile {
        name: Arc::from("DEST"),
        path: path.to_owned(),
        state,
    };
    (device, beside)
}

#[tokio::test]
async fn a_new_file_appears_at_the_commit() {
    for (begin, durable) in WAYS.into_iter().flat_map(|way| [(way, false), (way, true)]) {
        let directory = directory();
        let path = directory.path().join("new");
        let (device, file) = begin(&path);
        write(&device, b"whole").await;
        assert!(!path.exists() && !file.existed());
        match durable {
            false => file.commit().expect("committed"),
            true => file.commit_durably().expect("committed"),
        }
        assert_eq!(fs::read(&path).expect("there"), b"whole");
        assert_eq!(names(&directory), ["new"]);
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_file_that_was_not_committed() {
    let directory = directory();
    let path = directory.path().join("new");
    for begin in WAYS {
        let (device, file) = begin(&path);
        write(&device, b"half").await;
        drop(file);
    }
    assert!(names(&directory).is_empty());
}

#[tokio::test]
async fn a_file_that_appeared_meanwhile_is_not_replaced_and_ours_is_kept() {
    for begin in WAYS {
        let directory = directory();
        let path = directory.path().join("new");
        let (device, file) = begin(&path);
        write(&device, b"ours").await;
        fs::write(&path, "theirs").expect("written");
        let error = file.commit().expect_err("it is taken").to_string();
        assert!(
            error.contains("DEST: a file of that name appeared"),
            "{error}"
        );
        assert_eq!(fs::read(&path).expect("there"), b"theirs");
        let names = names(&directory);
        let kept = names.iter().find(|name| name.ends_with(".partial"));
        let kept = kept.expect("it is kept");
        assert!(error.ends_with(kept), "{error}");
        assert_eq!(names.len(), 2);
        let kept = fs::read(directory.path().join(kept));
        assert_eq!(kept.expect("there"), b"ours");
    }
}

#[test]
fn the_mode_is_that_of_any_new_file() {
    let directory = directory();
    let path = directory.path().join("new");
    let plain = directory.path().join("plain");
    fs::write(&plain, "").expect("written");
    let mode = |path: &Path| path.metadata().expect("a file").permissions().mode();
    for begin in WAYS {
        let (_, file) = begin(&path);
        file.commit().expect("committed");
        assert_eq!(mode(&path), mode(&plain));
        fs::remove_file(&path).expect("removed");
    }
    let (_, file) = open(&path, true).expect("begun");
    file.commit().expect("committed");
    assert_eq!(mode(&path), mode(&plain));
}

#[tokio::test]
async fn an_existing_file_is_emptied_when_it_is_written_and_not_before() {
    let directory = directory();
    let path = directory.path().join("old");
    fs::write(&path, "old contents").expect("written");
    let (device, file) = open(&path, false).expect("opened");
    assert!(file.existed());
    assert_eq!(device.info().size, 0);
    assert!(file.is_untouched());
    drop((device, file));
    assert_eq!(fs::read(&path).expect("there"), b"old contents");

    let (device, file) = open(&path, false).expect("opened");
    write(&device, b"new").await;
    assert!(!file.is_untouched());
    file.commit().expect("committed");
    assert_eq!(fs::read(&path).expect("there"), b"new");
}

#[tokio::test]
async fn a_partial_file_survives_and_is_gone_on_with() {
    let directory = directory();
    let path = directory.path().join("disk");
    let (device, file) = open(&path, true).expect("begun");
    assert!(file.keeps_partial() && !file.found_partial());
    assert!(device.info().can(Capabilities::BORN_ZERO));
    write(&device, b"first").await;
    let second = open(&path, true).expect_err("it is being written");
    assert!(second.to_string().contains("another copy"), "{second}");
    drop((device, file));
    assert_eq!(names(&directory), ["disk.partial"]);

    let (device, file) = open(&path, true).expect("found");
    assert!(file.found_partial());
    let partial = directory.path().join("disk.partial");
    assert_eq!(file.data_path(), Some(partial));
    assert_eq!(device.info().size, 5);
    assert!(device.info().can(Capabilities::RESIZE));
    assert!(!device.info().can(Capabilities::BORN_ZERO));
    file.commit_durably().expect("committed");
    assert_eq!(names(&directory), ["disk"]);
    assert_eq!(fs::read(&path).expect("there"), b"first");

    // What is there under its own name is gone on with, too.
    let (device, file) = open(&path, true).expect("opened");
    assert!(file.existed());
    write(&device, b"F").await;
    file.commit().expect("committed");
    assert_eq!(fs::read(&path).expect("there"), b"First");

    fs::write(directory.path().join("disk.partial"), "").expect("written");
    let both = open(&path, true).expect_err("which of them?").to_string();
    assert!(both.contains("disk.partial"), "{both}");
}

#[test]
fn an_unwritten_partial_file_is_not_left_behind() {
    let directory = directory();
    drop(open(&directory.path().join("disk"), true).expect("begun"));
    assert!(names(&directory).is_empty());
}

#[test]
fn another_file_at_the_partial_files_place_is_not_removed() {
    let directory = directory();
    let (_, file) = begin_beside(&directory.path().join("new"));
    let partial = file.data_path().expect("a name");
    let other = directory.path().join("other");
    fs::write(&other, "other").expect("written");
    fs::rename(&other, &partial).expect("renamed");
    drop(file);
    assert_eq!(fs::read(&partial).expect("still there"), b"other");
}

#[test]
fn a_link_to_nothing_is_filled_where_it_points() {
    let directory = directory();
    let link = directory.path().join("link");
    fs::create_dir(directory.path().join("inner")).expect("a directory");
    symlink("inner/again", &link).expect("linked");
    symlink("target", directory.path().join("inner/again")).expect("linked");
    let (_, file) = open(&link, false).expect("begun");
    file.commit().expect("committed");
    let target = directory.path().join("inner/target");
    assert!(fs::symlink_metadata(target).expect("there").is_file());
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
}

#[test]
fn what_can_be_no_file_is_refused() {
    let directory = directory();
    for name in ["missing/", "missing/.", "missing/disk", "."] {
        let error = open(&directory.path().join(name), false).err();
        let error = error
            .unwrap_or_else(|| panic!("{name} is not a file"))
            .to_string();
        assert!(error.contains("directory"), "{error}");
    }
    let long = "x".repeat(300);
    open(&directory.path().join(long), false).expect_err("too long");
    let (_, file) = open(&directory.path().join("x".repeat(255)), false).expect("just so");
    file.commit().expect("committed");
}

//! Which bytes are taken for an image, and which names in one are followed.

#[allow(dead_code, reason = "the tests of the format take more of it")]
#[path = "../../../crates/format/tests/hostile/images.rs"]
mod images;

use std::{
    ffi::CString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::block::{Buffer, WriteFlags};

use super::super::{open_device, open_exports, open_source};
use super::*;
use images::{Builder, DISK};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        let directory = fs::canonicalize(self.0.path()).expect("it is there");
        directory.join(name)
    }

    fn image(&self, name: &str, image: Builder) -> Endpoint {
        fs::write(self.path(name), image.build()).expect("written");
        Endpoint::from(self.path(name)).interpreted(FormatKind::Probe)
    }

    fn directory(&self, name: &str) -> PathBuf {
        fs::create_dir_all(self.path(name)).expect("made");
        self.path(name)
    }
}

fn allowing(allowed: &[&Path]) -> OpenOptions {
    OpenOptions {
        allow_backing: allowed.iter().map(|path| path.to_path_buf()).collect(),
        ..OpenOptions::default()
    }
}

async fn open(endpoint: &Endpoint, options: &OpenOptions) -> Result<Arc<dyn BlockDevice>> {
    let opened = open_device(endpoint, Access::ReadOnly, options).await?;
    Ok(opened.device)
}

async fn error(endpoint: &Endpoint, options: &OpenOptions) -> String {
    match open(endpoint, options).await {
        Ok(_) => panic!("{endpoint} was opened"),
        Err(error) => error.to_string(),
    }
}

async fn byte(device: &dyn BlockDevice, offset: u64) -> u8 {
    let read = device.read(offset, Buffer::zeroed(1)).await;
    read.expect("read")[0]
}

#[tokio::test]
async fn bytes_stay_bytes_until_somebody_asks_for_more() {
    let place = Place::new();
    let probed = place.image("disk", Builder::sound());
    let bytes = Endpoint::from(place.path("disk"));
    let options = OpenOptions::default();
    let size = fs::metadata(place.path("disk")).expect("it is there").len();
    let opened = open_device(&bytes, Access::ReadOnly, &options).await;
    let opened = opened.expect("a file");
    assert_eq!(opened.device.info().size, size);
    assert_eq!(opened.connection.format(), FormatKind::Raw);
    assert!(opened.connection.details().is_none());
    let opened = open_device(&probed, Access::ReadOnly, &options).await;
    let opened = opened.expect("an image");
    assert_eq!(opened.device.info().size, DISK);
    assert_eq!(opened.connection.format(), FormatKind::Image(Format::Qcow2));
    let details = opened.connection.details().expect("an image");
    assert_eq!(details.virtual_size(), DISK);
    assert_eq!(byte(&*opened.device, 4095).await, 0x77);
    assert_eq!(byte(&*opened.device, 4096).await, 0);
    opened
        .connection
        .close()
        .await
        .expect("nothing was written");
}

#[tokio::test]
async fn only_a_file_is_looked_at_to_find_out_what_it_is() {
    let place = Place::new();
    let file = place.image("disk", Builder::sound());
    let size = fs::metadata(place.path("disk")).expect("it is there").len();
    let part = EndpointKind::Part {
        of: Box::new(Endpoint::from(place.path("disk"))),
        offset: 0,
        length: None,
    };
    let joined = EndpointKind::Split(vec![place.path("disk")]);
    let options = OpenOptions::default();
    for kind in [part, joined] {
        let probed = Endpoint::new("x", kind.clone()).interpreted(FormatKind::Probe);
        let device = open(&probed, &options).await.expect("bytes");
        assert_eq!(device.info().size, size);
        let told = Endpoint::new("x", kind).interpreted(FormatKind::Image(Format::Qcow2));
        let device = open(&told, &options).await.expect("an image");
        assert_eq!(device.info().size, DISK);
    }
    assert_eq!(file.format().kind, FormatKind::Probe);
}

#[tokio::test]
async fn formats_that_are_not_read_are_refused_by_their_names() {
    let place = Place::new();
    let options = OpenOptions::default();
    for (bytes, format) in [
        (&b"QED\0"[..], "qed"),
        (b"LUKS\xba\xbe\0\x01", "luks"),
        (b"QFI\xfb\0\0\0\x01", "qcow"),
    ] {
        fs::write(place.path("disk"), bytes).expect("written");
        let file = Endpoint::from(place.path("disk")).interpreted(FormatKind::Probe);
        let error = error(&file, &options).await;
        let expected = format!(
            "{file}: open: it is an image in the format {format}, which is not supported; -f raw reads its bytes"
        );
        assert_eq!(error, expected);
        let raw = file.interpreted(FormatKind::Raw);
        let device = open(&raw, &options).await.expect("bytes");
        assert_eq!(device.info().size, bytes.len() as u64);
    }
}

#[tokio::test]
async fn snapshots_belong_to_images() {
    let place = Place::new();
    let snapshot = |kind| ImageFormat {
        kind,
        snapshot: Some("s".to_owned()),
        ..ImageFormat::default()
    };
    let options = OpenOptions::default();
    let rich = place.image("rich", Builder::sound().rich());
    let rich = rich.interpreted(snapshot(FormatKind::Probe));
    let opened = open_device(&rich, Access::ReadWrite, &options).await;
    let device = opened.expect("a snapshot, whatever was asked for").device;
    assert!(!device.info().can(crate::block::Capabilities::WRITE));
    fs::write(place.path("raw"), [0; 512]).expect("written");
    for kind in [FormatKind::Raw, FormatKind::Probe] {
        let raw = Endpoint::from(place.path("raw")).interpreted(snapshot(kind));
        let error = error(&raw, &options).await;
        assert!(
            error.contains("only a qcow2 image has snapshots"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_backing_file_is_refused_with_the_option_that_allows_it() {
    let place = Place::new();
    fs::write(place.path("base.raw"), vec![0x55; DISK as usize]).expect("written");
    let image = place.image("disk", Builder::sound().backing(b"base.raw", Some("raw")));
    assert_eq!(
        error(&image, &OpenOptions::default()).await,
        format!(
            "{image}: open: it has the backing file \"base.raw\", which is not opened unless it is allowed: --allow-backing DIR"
        )
    );
    // Elsewhere is not enough.
    let other = place.directory("other");
    let refused = error(&image, &allowing(&[&other])).await;
    let location = place.path("base.raw");
    assert_eq!(
        refused,
        format!(
            "{image}: open: it has the backing file \"base.raw\", which lies at {} and is not opened unless that is allowed: --allow-backing DIR",
            location.display()
        )
    );
    for allowed in [place.path(""), place.path("base.raw")] {
        let device = open(&image, &allowing(&[&other, &allowed])).await;
        let device = device.expect("allowed");
        assert_eq!(byte(&*device, 0).await, 0x77);
        assert_eq!(byte(&*device, 4096).await, 0x55);
    }
}

#[tokio::test]
async fn names_that_are_no_files_are_never_followed() {
    let place = Place::new();
    let everywhere = allowing(&[Path::new("/")]);
    for name in [
        "nbd:localhost:10809",
        "nbd://localhost/disk",
        "json:{\"driver\":\"raw\"}",
        "file:/etc/passwd",
        "http://169.254.169.254/latest",
        "fat:rw:/etc",
    ] {
        let image = place.image("disk", Builder::sound().backing(name.as_bytes(), None));
        for options in [&everywhere, &OpenOptions::default()] {
            let error = error(&image, options).await;
            let expected = format!(
                "{image}: open: it has the backing file \"{name}\", which is not the name of a file but a protocol's: an image's names are never followed there"
            );
            assert_eq!(error, expected);
        }
    }
    let image = place.image("disk", Builder::sound().backing(b"/etc/pass\0wd", None));
    let refused = error(&image, &everywhere).await;
    assert!(
        refused.ends_with("\"/etc/pass\\u{0}wd\", which is not the name of a file"),
        "{refused}"
    );
    let image = place.image("disk", Builder::sound().data_file(b""));
    let refused = error(&image, &everywhere).await;
    assert!(
        refused.ends_with("it needs a data file and does not name it"),
        "{refused}"
    );
    // A colon behind a slash is a file's.
    fs::write(place.path("a:b"), [0x55; 8192]).expect("written");
    let image = place.image("disk", Builder::sound().backing(b"./a:b", None));
    let device = open(&image, &everywhere).await.expect("a file");
    assert_eq!(byte(&*device, 8191).await, 0x55);
}

#[tokio::test]
async fn links_are_followed_before_it_is_known_where_a_file_lies() {
    let place = Place::new();
    let allowed = place.directory("allowed");
    fs::write(place.path("secret"), [0x55; 8192]).expect("written");
    fs::write(place.path("allowed/base"), [0x66; 8192]).expect("written");
    symlink("../secret", place.path("allowed/out")).expect("linked");
    symlink("allowed/base", place.path("in")).expect("linked");
    symlink(&allowed, place.path("door")).expect("linked");
    let options = allowing(&[&allowed]);
    for name in ["allowed/out", "allowed/../secret", "secret", "/etc/passwd"] {
        let image = place.image(
            "disk",
            Builder::sound().backing(name.as_bytes(), Some("raw")),
        );
        let error = error(&image, &options).await;
        assert!(
            error.contains("is not opened unless that is allowed"),
            "{error}"
        );
    }
    for (name, options) in [
        ("in", &options),
        ("allowed/../allowed/base", &options),
        ("allowed/base", &allowing(&[&place.path("door")])),
    ] {
        let image = place.image(
            "disk",
            Builder::sound().backing(name.as_bytes(), Some("raw")),
        );
        let device = open(&image, options).await.expect("allowed");
        assert_eq!(byte(&*device, 4096).await, 0x66);
    }
}

#[tokio::test]
async fn what_is_missing_or_no_file_is_an_error_at_once() {
    let place = Place::new();
    let options = allowing(&[&place.path("")]);
    let missing = place.image("disk", Builder::sound().backing(b"none", None));
    let refused = error(&missing, &options).await;
    assert!(
        refused.contains("it has the backing file \"none\""),
        "{refused}"
    );
    assert!(refused.contains("not found"), "{refused}");
    // Whether there is such a file elsewhere is not told.
    let missing = place.image("disk", Builder::sound().backing(b"/nowhere/none", None));
    let refused = error(&missing, &options).await;
    assert!(
        refused.ends_with("unless it is allowed: --allow-backing DIR"),
        "{refused}"
    );
    // Nobody writes to this pipe: whoever opens it waits for ever.
    let pipe = CString::new(place.path("pipe").as_os_str().as_encoded_bytes()).expect("a path");
    let made = std::process::Command::new("mkfifo")
        .arg(pipe.to_str().expect("a text"))
        .status();
    assert!(made.expect("mkfifo runs").success());
    for name in ["pipe", "."] {
        let image = place.image("disk", Builder::sound().backing(name.as_bytes(), None));
        let error = error(&image, &options).await;
        assert!(error.ends_with("which is not a regular file"), "{error}");
    }
}

#[tokio::test]
async fn chains_are_followed_and_end() {
    let place = Place::new();
    let options = allowing(&[&place.path("")]);
    // Relative names begin where the image that has them lies.
    place.directory("sub");
    fs::write(place.path("sub/base"), [0x55; 16384]).expect("written");
    place.image("sub/middle", Builder::sound().backing(b"base", None));
    let top = place.image(
        "top",
        Builder::sound().backing(b"sub/middle", Some("qcow2")),
    );
    let device = open(&top, &options).await.expect("a chain");
    assert_eq!(byte(&*device, 4096).await, 0x55);
    assert_eq!(byte(&*device, 16384).await, 0);

    let itself = place.image("itself", Builder::sound().backing(b"itself", None));
    let error_itself = error(&itself, &options).await;
    assert!(
        error_itself.ends_with("it has the backing file \"itself\", which is in its chain already"),
        "{error_itself}"
    );
    let one = place.image("one", Builder::sound().backing(b"./two", Some("qcow2")));
    place.image("two", Builder::sound().backing(b"three", Some("qcow2")));
    symlink("one", place.path("three")).expect("linked");
    let circle = error(&one, &options).await;
    assert!(
        circle.contains("\"three\", which is in its chain already"),
        "{circle}"
    );
    let data = place.image("data", Builder::sound().data_file(b"data"));
    let data = error(&data, &options).await;
    assert!(
        data.contains("the data file \"data\", which is in its chain already"),
        "{data}"
    );

    let strange = place.image(
        "strange",
        Builder::sound().backing(b"one", Some("v\x1bmdk")),
    );
    let strange = error(&strange, &options).await;
    assert!(
        strange.contains("in the format \"v\\u{1b}mdk\", which is not supported"),
        "{strange}"
    );
    fs::write(place.path("other"), "QED\0").expect("written");
    let probed = place.image("probed", Builder::sound().backing(b"other", None));
    let probed = error(&probed, &options).await;
    assert!(probed.contains("an image in the format qed"), "{probed}");
}

/// The stack of a connection's thread.
const STACK: usize = 512 << 10;

#[test]
fn a_chain_is_only_so_long_and_needs_little_stack() {
    let thread = std::thread::Builder::new().stack_size(STACK);
    let followed = thread.spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(follow_long_chain());
    });
    followed.expect("a thread").join().expect("it is followed");
}

async fn follow_long_chain() {
    let place = Place::new();
    let options = allowing(&[&place.path("")]);
    let mut top = place.image("0", Builder::sound());
    for number in 1..=201 {
        let backing = (number - 1).to_string();
        let image = Builder::sound().backing(backing.as_bytes(), Some("qcow2"));
        top = place.image(&number.to_string(), image);
        if number == 199 {
            let device = open(&top, &options).await.expect("200 images");
            assert_eq!(byte(&*device, 4096).await, 0);
            let whole = ByteRange::between(0, DISK);
            for context in &device.info().contexts {
                device.extents(whole, context).await.expect("known");
            }
            let _ = device.mapping(ByteRange::between(4096, DISK));
        }
    }
    let error = error(&top, &options).await;
    assert!(
        error.ends_with("it is a chain of more than 200 files"),
        "{error}"
    );
}

#[tokio::test]
async fn images_elsewhere_have_their_files_where_that_is_allowed() {
    let place = Place::new();
    let (first, second) = (place.directory("first"), place.directory("second"));
    fs::write(place.path("second/base"), [0x55; 8192]).expect("written");
    place.image("disk", Builder::sound().backing(b"base", None));
    let part = EndpointKind::Part {
        of: Box::new(Endpoint::from(place.path("disk"))),
        offset: 0,
        length: None,
    };
    let part = Endpoint::new("part", part).interpreted(FormatKind::Image(Format::Qcow2));
    let device = open(&part, &allowing(&[&first, &second])).await;
    assert_eq!(byte(&*device.expect("found"), 4096).await, 0x55);
    let error = error(&part, &allowing(&[&first])).await;
    assert!(error.contains("the backing file \"base\""), "{error}");
}

#[tokio::test]
async fn a_data_file_needs_leave_as_well() {
    let place = Place::new();
    let image = place.image("disk", Builder::sound().data_file(b"disk.data"));
    fs::write(place.path("disk.data"), [0x44; 32768]).expect("written");
    assert_eq!(
        error(&image, &OpenOptions::default()).await,
        format!(
            "{image}: open: it has the data file \"disk.data\", which is not opened unless it is allowed: --allow-backing DIR"
        )
    );
    let device = open(&image, &allowing(&[&place.path("")])).await;
    assert_eq!(byte(&*device.expect("allowed"), 0).await, 0x44);
}

#[tokio::test]
async fn an_image_is_served_and_copied_as_its_disk() {
    let place = Place::new();
    let image = place.image("disk", Builder::sound());
    let options = OpenOptions::default();
    let exports = open_exports(&image, Access::ReadOnly, &options).await;
    let exports = exports.expect("an image");
    let open = exports
        .exports
        .open("", crate::block::ClientFacts::default())
        .await;
    assert_eq!(open.expect("the default").device.info().size, DISK);
    let source = open_source(&image, &options).await.expect("an image");
    let crate::copy::Source::Device(device) = source.source else {
        panic!("no device");
    };
    assert_eq!(device.info().size, DISK);
    let options = OpenOptions {
        max_size: Some(DISK - 1),
        ..options
    };
    let error = error(&image, &options).await;
    assert!(error.contains("above the bound"), "{error}");
}

#[tokio::test]
async fn an_image_in_several_files_is_written_in_all_of_them() {
    let place = Place::new();
    let mut bytes = Builder::sound().build();
    let (half, with_room) = (bytes.len() / 2, bytes.len() * 2);
    bytes.resize(with_room, 0);
    let (first, second) = bytes.split_at(half);
    fs::write(place.path("first"), first).expect("written");
    fs::write(place.path("second"), second).expect("written");
    let parts = vec![place.path("first"), place.path("second")];
    let split = Endpoint::new("split", EndpointKind::Split(parts))
        .interpreted(FormatKind::Image(Format::Qcow2));
    let opened = open_device(&split, Access::ReadWrite, &OpenOptions::default()).await;
    let OpenDevice { device, connection } = opened.expect("an image");
    assert_eq!(byte(&*device, 0).await, 0x77);
    let data = Buffer::from(&[0x66; 4096][..]);
    let written = device.write(8192, data, WriteFlags::empty()).await;
    written.expect("there is room");
    connection.close().await.expect("closed");
    let length = |name| fs::metadata(place.path(name)).expect("there").len() as usize;
    assert_eq!(length("first"), first.len());
    assert_eq!(length("second"), second.len());
    let device = open(&split, &OpenOptions::default()).await;
    let device = device.expect("an image");
    assert_eq!(byte(&*device, 0).await, 0x77);
    assert_eq!(byte(&*device, 8192).await, 0x66);
}

#[tokio::test]
async fn an_extent_needs_leave_as_well() {
    let place = Place::new();
    let text = |name: &str| {
        format!(
            "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"{name}\" 0\n"
        )
    };
    let image = |name: &str| {
        fs::write(place.path("disk.vmdk"), text(name)).expect("written");
        Endpoint::from(place.path("disk.vmdk")).interpreted(FormatKind::Probe)
    };
    // CVE-2022-47951.
    for name in ["/etc/passwd", "../secret", "disk-flat.vmdk"] {
        let disk = image(name);
        assert_eq!(
            error(&disk, &OpenOptions::default()).await,
            format!(
                "{disk}: open: it has the extent \"{name}\", which is not opened unless it is allowed: --allow-backing DIR"
            )
        );
    }
    let elsewhere = error(&image("/etc/passwd"), &allowing(&[&place.path("")])).await;
    assert!(
        elsewhere.contains("the extent \"/etc/passwd\""),
        "{elsewhere}"
    );
    // The extent's bytes are the disk, whatever they look like.
    fs::write(place.path("disk-flat.vmdk"), Builder::sound().build()).expect("written");
    let disk = image("disk-flat.vmdk");
    let device = open(&disk, &allowing(&[&place.path("")]))
        .await
        .expect("allowed");
    assert_eq!((device.info().size, byte(&*device, 0).await), (4096, b'Q'));
    let itself = error(&image("disk.vmdk"), &allowing(&[&place.path("")])).await;
    assert!(itself.contains("which is in its chain already"), "{itself}");
}

/// Options whose notices are kept.
fn listening() -> (OpenOptions, Arc<std::sync::Mutex<Vec<String>>>) {
    let told = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&told);
    let options = OpenOptions {
        notices: Some(crate::endpoint::Notices::new(move |notice| {
            kept.lock()
                .expect("nobody panicked")
                .push(notice.to_owned());
        })),
        ..OpenOptions::default()
    };
    (options, told)
}

#[tokio::test]
async fn what_a_guest_makes_look_compressed_stays_its_disk() {
    let place = Place::new();
    let mut archive = vec![0; 1024];
    archive[..7].copy_from_slice(b"box.ovf");
    archive[257..262].copy_from_slice(b"ustar");
    for (begins, name) in [
        (&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..], "gzip"),
        (b"\xfd7zXZ\0\0\x04\xe6\xd6", "xz"),
        (b"\x28\xb5\x2f\xfd\x04\0\0\0\0\0", "zstd"),
        (b"BZh91AY&SY", "bzip2"),
        (&archive, "ova"),
    ] {
        for file in ["disk", "disk.raw", "disk.gz.img", "gz"] {
            fs::write(place.path(file), begins).expect("written");
            let (options, told) = listening();
            let disk = Endpoint::from(place.path(file)).interpreted(FormatKind::Probe);
            let device = open(&disk, &options).await.expect("its bytes");
            assert_eq!(device.info().size, begins.len() as u64, "{name}");
            let told = std::mem::take(&mut *told.lock().expect("nobody panicked"));
            let hint = format!("taken for the bytes of a disk; -f {name} reads what is in it");
            assert!(
                matches!(&told[..], [notice] if notice.ends_with(&hint)),
                "{told:?}"
            );
            let said = disk.interpreted(name.parse::<FormatKind>().expect("a format"));
            error(&said, &options).await;
        }
    }
    // What neither the name nor the beginning says alone is not unpacked.
    fs::write(place.path("disk.gz"), [0x55; 512]).expect("written");
    let (options, told) = listening();
    let disk = Endpoint::from(place.path("disk.gz")).interpreted(FormatKind::Probe);
    let device = open(&disk, &options).await.expect("its bytes");
    assert_eq!(device.info().size, 512);
    assert!(told.lock().expect("nobody panicked").is_empty());
    for file in ["disk.gz", "disk.GZ", "disk.raw.gzip"] {
        fs::write(place.path(file), b"\x1f\x8b\x08\0\0\0\0\0\0\x03").expect("written");
        let disk = Endpoint::from(place.path(file)).interpreted(FormatKind::Probe);
        let error = error(&disk, &OpenOptions::default()).await;
        assert!(error.contains("gzip"), "{error}");
    }
}

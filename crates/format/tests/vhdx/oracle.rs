//! qemu's images, read as qemu reads them; and logs, replayed as qemu replays them.

use std::{fs, path::Path, sync::Arc};

use blockferry_block::{Access, Context, FileDevice};
use blockferry_format::Image;

use crate::{
    images::{Guid, Header, LOG},
    qemu::{is_installed, qemu_img, qemu_io_on, run},
    replay::{PAGE, random_log},
    support::{extents, memory, open, vhdx, whole},
};

async fn open_file(path: &Path) -> Arc<dyn Image> {
    let file = FileDevice::open(path, Access::ReadOnly);
    open(Arc::new(file.expect("open"))).await
}

/// Whether `image` in `directory` has the same disk for qemu and for us.
async fn check(directory: &Path, image: &str) {
    qemu_img(directory, &format!("convert -f vhdx -O raw {image} raw"));
    let expected = fs::read(directory.join("raw")).expect("read");
    let opened = open_file(&directory.join(image)).await;
    assert!(!vhdx(opened.details()).is_dirty);
    assert!(whole(&*opened).await == expected, "{image}");
    for (start, end, status) in extents(&*opened, &Context::Allocation).await {
        let bytes = &expected[start as usize..end as usize];
        assert!(status & 2 == 0 || bytes.iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn images_of_every_kind_are_read_as_qemu_reads_them() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    for (number, options) in [
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=dynamic,block_size=1M,log_size=3M",
        "subformat=fixed,block_size=2M,log_size=2M",
        "subformat=dynamic,block_size=32M,block_state_zero=off",
        "subformat=dynamic,block_size=256M",
        "subformat=fixed,block_size=1M,block_state_zero=off",
    ]
    .into_iter()
    .enumerate()
    {
        let image = format!("image{number}");
        // qemu takes whole MiB.
        qemu_img(
            directory,
            &format!("create -q -f vhdx -o {options} {image} 35M"),
        );
        check(directory, &image).await;
        let commands = [
            "write -P 1 0 64k",
            "write -P 2 3M 5M",
            "write -P 3 20M 1M",
            "write -P 4 1M 4k",
            "write -z 4M 1M",
            "write -P 5 35839k 1k",
        ];
        run(directory, &mut qemu_io_on("vhdx", &image, &commands));
        check(directory, &image).await;
        let details = vhdx(open_file(&directory.join(&image)).await.details());
        assert_eq!(details.is_fixed, options.contains("fixed"), "{options}");
        assert_eq!(details.logical_sector_size, 512);
    }
}

#[tokio::test]
async fn what_qemu_converts_is_what_is_read() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let mut bytes = vec![0; 12 << 20];
    for (at, byte) in bytes
        .iter_mut()
        .enumerate()
        .filter(|(at, _)| at >> 19 & 3 != 1)
    {
        *byte = (at / 777) as u8;
    }
    fs::write(directory.join("source"), &bytes).expect("written");
    for options in ["subformat=dynamic,block_size=1M", "subformat=fixed"] {
        qemu_img(
            directory,
            &format!("convert -f raw -O vhdx -o {options} source image"),
        );
        let opened = open_file(&directory.join("image")).await;
        assert!(whole(&*opened).await == bytes, "{options}");
    }
}

#[tokio::test]
async fn an_image_that_qemu_left_open_is_read() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(directory, "create -q -f vhdx -o block_size=1M image 16M");
    let commands = ["write -P 7 0 3M", "write -P 8 9M 100k", "abort"];
    let mut aborted = qemu_io_on("vhdx", "image", &commands);
    let status = aborted
        .current_dir(directory)
        .output()
        .expect("it runs")
        .status;
    assert!(!status.success());
    check(directory, "image").await;
    // qemu empties its log after each write. What it wrote last is still there: as if it had been left open before that,
    // with the table not yet written.
    let mut bytes = fs::read(directory.join("image")).expect("read");
    let complete = whole(&*open(memory(bytes.clone())).await).await;
    let mut log = bytes[LOG..2 * LOG].chunks_exact(PAGE);
    let entry = log.rfind(|sector| sector.starts_with(b"loge"));
    let entry = entry.expect("each write is logged");
    let mut guid = Guid::ZERO;
    guid.0.copy_from_slice(&entry[32..48]);
    let table = u64::from_le_bytes(entry[64 + 16..64 + 24].try_into().expect("eight bytes"));
    let mut header = Header::sound(1 << 20);
    header.log = guid;
    header.write(&mut bytes, 0, u64::MAX);
    let place = table as usize..table as usize + PAGE;
    bytes[place].fill(0);
    let dirty = open(memory(bytes)).await;
    assert!(vhdx(dirty.details()).is_dirty);
    assert!(whole(&*dirty).await == complete);
}

#[tokio::test]
async fn logs_are_replayed_as_qemu_replays_them() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    for seed in 100..108 {
        let bytes = random_log(seed).0.bytes;
        fs::write(directory.join("dirty"), &bytes).expect("written");
        let dirty = open_file(&directory.join("dirty")).await;
        let found = whole(&*dirty).await;
        assert!(
            fs::read(directory.join("dirty")).expect("read") == bytes,
            "nobody writes it"
        );
        fs::copy(directory.join("dirty"), directory.join("replayed")).expect("copied");
        qemu_img(directory, "check -q -r all -f vhdx replayed");
        qemu_img(directory, "convert -f vhdx -O raw replayed raw");
        let expected = fs::read(directory.join("raw")).expect("read");
        assert!(found == expected, "{seed}");
    }
}

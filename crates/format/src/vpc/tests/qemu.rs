//! Images that qemu-img made, and what it says of ours.

use std::{fs, sync::Arc};

use blockferry_block::{Access, BlockDevice, FileDevice, testing::check_device};

use super::{contents, details};
use crate::{
    Image, NoRelatives, OpenOptions,
    qemu::{is_installed, qemu_img},
};

pub(super) async fn open_file(path: &std::path::Path) -> Arc<dyn Image> {
    let below: Arc<dyn BlockDevice> =
        Arc::new(FileDevice::open(path, Access::ReadOnly).expect("it is there"));
    let opened = crate::vpc::open(below, &NoRelatives, &OpenOptions::default()).await;
    opened.expect("sound")
}

/// Bytes with holes.
pub(super) fn pattern(size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size)
        .map(|at| (at / 512 * 3 + at % 11) as u8 | 1)
        .collect();
    for start in (0..size).step_by(3 << 20) {
        let end = (start + (1 << 20) + 77).min(size);
        bytes[start..end].fill(0);
    }
    bytes
}

#[tokio::test]
async fn images_of_qemu_img_are_read() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    for size in [512, 70_000, 5 << 20, (9 << 20) + 1536] {
        fs::write(path.join("raw"), pattern(size)).expect("written");
        for options in [
            "subformat=dynamic",
            "subformat=fixed",
            "subformat=dynamic,force_size=on",
            "subformat=fixed,force_size=on",
        ] {
            qemu_img(
                path,
                &format!("convert -f raw -O vpc -o {options} raw image"),
            );
            qemu_img(path, "convert -f vpc -O raw image back");
            let image = open_file(&path.join("image")).await;
            let back = fs::read(path.join("back")).expect("converted");
            assert!(contents(&*image).await == back, "{size} {options}");
            assert_eq!(details(&*image).virtual_size, back.len() as u64);
            check_device(&*image, 5, 60).await;
        }
    }
}

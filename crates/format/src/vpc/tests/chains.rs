//! Differencing images, and what shows through them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use blockferry_block::{
    BoxFuture, ByteRange, Context, Error, ErrorKind, Result, testing::check_device,
};

use super::{builder::Builder, contents, memory};
use crate::{Details, Image, Related, RelatedFile, RelatedImage, Role};

const BLOCK: u64 = 64 << 10;
const SIZE: u64 = 6 * BLOCK + 1024;

/// Files by their names, and which were asked for.
#[derive(Default)]
struct Files {
    images: BTreeMap<&'static str, Vec<u8>>,
    asked: Mutex<Vec<String>>,
}

impl Files {
    fn with(mut self, name: &'static str, bytes: Vec<u8>) -> Self {
        self.images.insert(name, bytes);
        self
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Image>> {
        let bytes = self.images.get(name).cloned().expect("a file");
        crate::vpc::open(memory(bytes), self, &crate::OpenOptions::default()).await
    }
}

impl Related for Files {
    fn open<'a>(
        &'a self,
        file: &'a RelatedFile,
        writable: bool,
    ) -> BoxFuture<'a, Result<RelatedImage>> {
        Box::pin(async move {
            assert_eq!((file.role, writable), (Role::Backing, false));
            assert_eq!(file.format.as_deref(), Some("vpc"));
            let name = String::from_utf8_lossy(&file.name).into_owned();
            self.asked.lock().expect("no panic").push(name.clone());
            if !self.images.contains_key(&*name) {
                return Err(Error::with_message(
                    ErrorKind::NotFound,
                    format!("no {name}"),
                ));
            }
            let image = Files::open(self, &name).await?;
            let details = Some(image.details());
            let device = image;
            Ok(RelatedImage { device, details })
        })
    }
}

fn base() -> Builder {
    Builder::dynamic(SIZE, BLOCK)
        .uuid([0x42; 16])
        .with(0, 1)
        .with(1, 2)
        .with(4, 3)
        .with(6, 4)
}

fn child() -> Builder {
    let sectors = |is: fn(usize) -> bool| (0..128).map(is).collect();
    Builder::differencing(SIZE, BLOCK, [0x42; 16])
        .with(0, 0x81)
        .with_sectors(1, 0x82, sectors(|sector| sector % 3 == 0))
        .with_sectors(2, 0x83, sectors(|sector| (5..70).contains(&sector)))
        .with_sectors(4, 0x84, sectors(|_| false))
        .with_sectors(6, 0x85, sectors(|sector| sector == 1))
}

#[tokio::test]
async fn sectors_that_are_not_there_are_the_parents() {
    let files = Files::default().with("base.vhd", base().build()).with(
        "child.vhd",
        child().utf16_locator(*b"W2ru", r".\base.vhd").build(),
    );
    let image = files.open("child.vhd").await.expect("sound");
    let expected = child().disk_on(&base().disk());
    assert!(contents(&*image).await == expected);
    for seed in 0..6 {
        check_device(&*image, seed, 150).await;
    }
    let all = ByteRange::between(0, SIZE);
    let depths = image.extents(all, &Context::AllocationDepth).await;
    let depths = depths.expect("an answer");
    let depth = |at: u64| {
        let holds = |extent: &&blockferry_block::Extent| {
            extent.range.start() <= at && at < extent.range.end()
        };
        depths.iter().find(holds).expect("all of it").status.0
    };
    let known = [
        (0, 1),
        (BLOCK, 1),
        (BLOCK + 512, 2),
        (2 * BLOCK, 0),
        (2 * BLOCK + 5 * 512, 1),
        (4 * BLOCK, 2),
        (5 * BLOCK, 0),
        (6 * BLOCK, 2),
        (6 * BLOCK + 512, 1),
    ];
    for (at, expected) in known {
        assert_eq!(depth(at), expected, "at {at}");
    }
}

#[tokio::test]
async fn a_chain_of_three_and_a_parent_of_another_size_are_read() {
    let small = Builder::dynamic(3 * BLOCK, BLOCK)
        .uuid([0x42; 16])
        .with(1, 9)
        .with(2, 8);
    let middle = child().uuid([0x43; 16]).parent_name("base.vhd");
    let top = Builder::differencing(SIZE + BLOCK, BLOCK, [0x43; 16])
        .with(3, 0x77)
        .locator(*b"MacX", b"file://./middle.vhd".to_vec());
    let files = Files::default()
        .with("base.vhd", small.build())
        .with("middle.vhd", middle.build())
        .with("./middle.vhd", middle.build())
        .with("top.vhd", top.build());
    let image = files.open("top.vhd").await.expect("sound");
    let expected = top.disk_on(&middle.disk_on(&small.disk()));
    assert!(contents(&*image).await == expected);
    check_device(&*image, 3, 150).await;
}

#[tokio::test]
async fn names_are_tried_in_turn_those_from_here_first() {
    let child = child()
        .utf16_locator(*b"W2ku", r"D:\Images\elsewhere.vhd")
        .utf16_locator(*b"W2ru", r"..\old\base.vhd")
        .parent_name("base.vhd")
        .locator(*b"Xyz0", b"nobody knows this".to_vec());
    let files = Files::default()
        .with("elsewhere.vhd", base().build())
        .with("child.vhd", child.build());
    let image = files.open("child.vhd").await.expect("sound");
    assert!(contents(&*image).await == child.disk_on(&base().disk()));
    let asked = files.asked.lock().expect("no panic").clone();
    assert_eq!(asked, ["../old/base.vhd", "base.vhd", "elsewhere.vhd"]);
    let Details::Vpc(details) = image.details() else {
        panic!("it is VHD");
    };
    let parent = details.parent.expect("one");
    assert_eq!(parent.name, b"../old/base.vhd");
}

#[tokio::test]
async fn a_parent_that_is_another_image_is_refused() {
    let child = child().utf16_locator(*b"W2ru", "base.vhd");
    for (parent, message) in [
        (
            base().uuid([0x55; 16]).build(),
            "its parent is the image 42424242-4242-4242-4242-424242424242, and \"base.vhd\" is \
             55555555-5555-5555-5555-555555555555: it was replaced",
        ),
        (
            vec![1; 4096],
            "it is not a VHD image: it ends with something else",
        ),
    ] {
        let files = Files::default()
            .with("base.vhd", parent)
            .with("child.vhd", child.build());
        let error = files.open("child.vhd").await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[tokio::test]
async fn a_parent_that_is_not_there_is_told_by_its_first_name() {
    let named = child()
        .utf16_locator(*b"W2ru", r".\base.vhd")
        .parent_name("other.vhd");
    let files = Files::default().with("child.vhd", named.build());
    let error = files.open("child.vhd").await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("no base.vhd"), "{error}");
    let files = Files::default().with("child.vhd", child().build());
    let error = files.open("child.vhd").await.expect_err("refused");
    assert!(error.to_string().contains("does not name it"), "{error}");
    let refused = super::open(named.build()).await.expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::NotPermitted);
}

//! Packed files as the real tools make them, those that are installed.

#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use blockferry_block::{Access, BlockDevice, Buffer, ByteRange, FileDevice, Result, SingleExport};
use blockferry_filter::{Chain, NamedFilter};

/// Zeroes, text and noise, 3 MB of them.
fn image() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut state = 7_u64;
    while bytes.len() < 3_000_001 {
        state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
        match state >> 62 {
            0 => bytes.resize(bytes.len() + 100_000, 0),
            1 => bytes.extend(format!("a line of text {state}\n").repeat(999).bytes()),
            _ => bytes.extend((1..20_000_u64).map(|at| (state.wrapping_mul(at) >> 33) as u8)),
        }
    }
    bytes.truncate(3_000_001);
    bytes
}

/// Runs a script of the shell in `directory`, where `disk` is the image and `out` shall be the packed file; `None`
/// where the tool, its first word, is not installed.
fn pack(directory: &Path, script: &str) -> Option<PathBuf> {
    let tool = script.split_whitespace().next()?;
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {tool} >/dev/null")])
        .status();
    if !found.expect("a shell").success() {
        println!("skipped: {tool} is not installed");
        return None;
    }
    let mut shell = Command::new("sh");
    let status = shell
        .args(["-ec", script])
        .current_dir(directory)
        .status()
        .expect("a shell");
    assert!(status.success(), "{script}");
    Some(directory.join("out"))
}

async fn open(filter: &str, path: &Path) -> Result<Arc<dyn BlockDevice>> {
    let file = FileDevice::open(path, Access::ReadOnly).expect("the packed file");
    let filter = NamedFilter::parse(filter.as_ref()).expect("a filter");
    let chain = Chain::new(&[filter], Arc::new(SingleExport::new(Arc::new(file))))?;
    let open = chain.exports().open("", Default::default()).await?;
    Ok(open.device)
}

async fn compare(device: &dyn BlockDevice, image: &[u8], what: &str) {
    let size = image.len() as u64;
    assert_eq!(device.info().size, size, "{what}");
    let somewhere = [
        (5, 10),
        (2_999_000, 1001),
        (1_000_000, 300_000),
        (65_535, 2),
    ];
    let somewhere = somewhere.map(|(start, length)| ByteRange::between(start, start + length));
    let all = ByteRange::between(0, size).pieces(256 << 10);
    for range in somewhere.into_iter().chain(all) {
        let read = device
            .read(range.start(), Buffer::zeroed(range.len() as usize))
            .await;
        let expected = &image[range.start() as usize..range.end() as usize];
        assert!(read.expect(what)[..] == *expected, "{what}: {range}");
    }
}

#[tokio::test]
async fn what_the_real_tools_pack_is_read() {
    let image = image();
    for (filter, script) in [
        ("xz", "xz --block-size=256KiB -1 -c disk >out"),
        ("xz:cache=0", "xz --block-size=300000 -T2 -1 -c disk >out"),
        (
            "xz",
            "xz --block-size=1MiB --check=sha256 --lzma2=dict=64KiB -c disk >out",
        ),
        (
            "xz",
            "xz --block-size=1MiB --check=crc32 --x86 --lzma2=preset=1 -c disk >out",
        ),
        (
            "xz",
            "xz --block-size=1MiB --check=none --delta=dist=4 --lzma2=preset=1 -c disk >out",
        ),
        ("xz", "xz -1 -c disk >out"),
        (
            "xz",
            "split -b 1000000 disk part. && xz -1 part.a? && cat part.a?.xz >out",
        ),
        ("xz:max-block=1M,unpack=on", "xz -1 -c disk >out"),
        ("gzip", "bgzip -c disk >out"),
        ("gzip", "dictzip -c disk >out"),
        ("gzip:unpack=on", "gzip -1 -c disk >out"),
        ("gzip:unpack=on", "pigz -c disk >out"),
        ("zstd", "zstd -q -c disk >out"),
        ("zstd", "zstd -q -T2 -c disk >out"),
        (
            "zstd:max-block=1M",
            "zstd --version >version && split -b 700K disk part. && zstd -q part.* && cat part.*.zst >out",
        ),
        ("zstd:unpack=on", "zstd -q -c <disk >out"),
        ("zstd:unpack=on", "pzstd -q -c disk >out"),
        ("zstd", "t2sz -r -s 256K -o out disk"),
        ("zstd", "zeekstd --frame-size 256K -o out disk"),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("disk"), &image).expect("written");
        let Some(path) = pack(directory.path(), script) else {
            continue;
        };
        let device = open(filter, &path).await.expect(script);
        compare(&*device, &image, script).await;
    }
}

#[tokio::test]
async fn what_the_real_tools_pack_in_one_piece_is_refused() {
    let image = image();
    for (filter, script, message) in [
        (
            "gzip",
            "gzip -1 -c disk >out",
            "gzip: open: it can only be read from its beginning",
        ),
        (
            "gzip",
            "pigz -c disk >out",
            "gzip: open: it can only be read from its beginning",
        ),
        (
            "xz:max-block=1M",
            "xz -1 -c disk >out",
            "xz: open: it is one block of 2.9 MiB; xz --block-size=16MiB",
        ),
        (
            "zstd",
            "pzstd -q -c disk >out",
            "zstd: open: its frame at offset 12 does not say how much it holds",
        ),
        (
            "zstd:max-block=1M",
            "zstd -q -c disk >out",
            "zstd: open: it begins with one frame of 2.9 MiB",
        ),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("disk"), &image).expect("written");
        let Some(path) = pack(directory.path(), script) else {
            continue;
        };
        let Err(error) = open(filter, &path).await else {
            panic!("{script}: it opened");
        };
        let text = error.to_string();
        assert!(text.starts_with(message), "{script}: {text}");
    }
}

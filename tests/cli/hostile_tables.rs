//! Images of other formats that claim tables of gigabytes, in sparse files that are long enough for them: whatever comes
//! of that, it takes little memory. VHDX has its own.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::tempdir;

use crate::support::{blockferry, qemu::text, run, run::Outcome};

/// How much memory a program may ask for, in KiB: far less than these tables would want.
const MEMORY: &str = "1048576";
/// How long each file is.
const LENGTH: u64 = 64 << 30;

/// Runs the program with little memory.
fn bounded(words: &[&str]) -> Outcome {
    let script = format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"");
    let program = blockferry([] as [&str; 0]);
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(program.get_program());
    run(command.args(words).stdin(Stdio::null()))
}

/// A row of bytes with some put into it.
fn bytes(length: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (at, part) in parts {
        bytes[*at..*at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// With the checksum of VHD at `at`.
fn vhd_sealed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

/// A VHD with blocks of 512 bytes and a table of 16 GiB.
fn vpc() -> Vec<u8> {
    let size = (u64::from(u32::MAX) * 512).to_be_bytes();
    let footer = bytes(
        512,
        &[
            (0, b"conectix"),
            (8, &[0, 0, 0, 2, 0, 1, 0, 0]),
            (16, &512_u64.to_be_bytes()),
            (40, &size),
            (48, &size),
            (56, &[0xff, 0xff, 16, 255]),
            (60, &3_u32.to_be_bytes()),
        ],
    );
    let header = bytes(
        1024,
        &[
            (0, b"cxsparse"),
            (8, &[0xff; 8]),
            (16, &1536_u64.to_be_bytes()),
            (24, &[0, 1, 0, 0]),
            (28, &u32::MAX.to_be_bytes()),
            (32, &512_u32.to_be_bytes()),
        ],
    );
    [vhd_sealed(footer, 64), vhd_sealed(header, 36)].concat()
}

/// A VDI with a map of 16 GiB.
fn vdi() -> Vec<u8> {
    let blocks = u32::MAX;
    bytes(
        512,
        &[
            (0, b"<<< image >>>\n"),
            (0x40, &0xbeda_107f_u32.to_le_bytes()),
            (0x44, &0x0001_0001_u32.to_le_bytes()),
            (0x48, &400_u32.to_le_bytes()),
            (0x4c, &1_u32.to_le_bytes()),
            (0x154, &512_u32.to_le_bytes()),
            (0x158, &(u32::MAX - 511).to_le_bytes()),
            (0x168, &512_u32.to_le_bytes()),
            (0x170, &(u64::from(blocks) << 20).to_le_bytes()),
            (0x178, &(1_u32 << 20).to_le_bytes()),
            (0x180, &blocks.to_le_bytes()),
        ],
    )
}

/// A VMDK with a directory of 8 GiB, or tables of 4 GiB each.
fn vmdk(entries: u32) -> Vec<u8> {
    bytes(
        512,
        &[
            (0, b"KDMV"),
            (4, &1_u32.to_le_bytes()),
            (8, &3_u32.to_le_bytes()),
            (12, &(1_u64 << 43).to_le_bytes()),
            (20, &8_u64.to_le_bytes()),
            (44, &entries.to_le_bytes()),
            (56, &128_u64.to_le_bytes()),
            (64, &(1_u64 << 25).to_le_bytes()),
            (73, b"\n \r\n"),
        ],
    )
}

fn check(image: &Path, format: &str, words: &[&str]) {
    let outcome = bounded(&[words, &["-f", format, text(image)]].concat());
    let (code, said) = (outcome.code, &outcome.stderr);
    assert!(matches!(code, 0 | 1), "{format} {words:?}: {code} {said}");
    for bad in ["panicked", "memory allocation", "ut of memory"] {
        assert!(!said.contains(bad), "{format} {words:?}: {said}");
    }
}

#[test]
fn tables_of_gigabytes_take_little_memory() {
    let room = tempdir().expect("a directory");
    let image = room.path().join("image");
    for (format, head) in [
        ("vpc", vpc()),
        ("vdi", vdi()),
        ("vmdk", vmdk(512)),
        ("vmdk", vmdk(1 << 30)),
        ("vmdk", vmdk(1)),
    ] {
        let file = fs::File::create(&image).expect("created");
        file.write_all_at(&head, 0).expect("written");
        // A VHD ends with its footer.
        file.write_all_at(&head[..512], LENGTH - 512)
            .expect("written");
        drop(file);
        check(&image, format, &["info"]);
        check(&image, format, &["map", "--totals"]);
    }
}

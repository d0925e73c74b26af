//! VHDX images that somebody made to hurt: each has one lie, and the one line that it ends in.

use super::images::{
    BAT, Content, Guid, Header, ImageBuilder, LOG, LogEntry, METADATA, MIB, Write, seal, write_log,
    write_regions,
};

/// Where a lie is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// When the image is opened.
    Open,
    /// When its disk is read.
    Read,
    /// Nowhere: it only looks like one.
    Nowhere,
}

/// A hostile image.
pub(crate) struct Lie {
    /// What is wrong with it.
    pub(crate) name: &'static str,
    /// The file.
    pub(crate) image: Vec<u8>,
    /// Where that is found out.
    pub(crate) found: Found,
    /// What is said then.
    pub(crate) error: &'static str,
}

/// How large the disk of the sound image is.
const DISK: u64 = 4 << 20;
/// Where its parts are.
const LOG_END: usize = 2 * MIB;
const TABLE: usize = 3 * MIB;
const BLOCK: usize = 4 * MIB;
const ITEMS: usize = LOG_END + (64 << 10);

/// A sound image with one block.
pub(crate) fn sound() -> ImageBuilder {
    ImageBuilder::new(DISK).with(0, Content::Data(vec![0x77; MIB]))
}

/// The sound image, changed.
fn but(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut image = sound().build();
    change(&mut image);
    image
}

/// With both headers changed.
fn header(change: impl Fn(&mut Header)) -> Vec<u8> {
    but(|image| {
        let mut header = Header::sound(MIB);
        change(&mut header);
        header.write(image, 0, 8);
        header.write(image, 1, 9);
    })
}

/// With these regions.
fn regions(regions: &[(Guid, usize, usize, u32)]) -> Vec<u8> {
    but(|image| write_regions(image, regions))
}

/// With other bytes in an item of metadata, at its place in the order of the builder.
fn item(number: usize, bytes: &[u8]) -> Vec<u8> {
    // The first one has 8 bytes, the third one 16.
    let place = [0, 8, 16, 32, 40][number];
    but(|image| image[ITEMS + place..][..bytes.len()].copy_from_slice(bytes))
}

/// With other bytes in an entry of the metadata's table.
fn entry(number: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
    let place = LOG_END + 32 + 32 * number + at;
    but(|image| image[place..place + bytes.len()].copy_from_slice(bytes))
}

/// With this word for block 1.
fn word(word: u64) -> Vec<u8> {
    sound().with(1, Content::Entry(word)).build()
}

/// With a log of these entries.
fn log(entries: &[LogEntry]) -> Vec<u8> {
    but(|image| {
        write_log(image, MIB, 0, entries);
    })
}

fn found(found: Found, name: &'static str, image: Vec<u8>, error: &'static str) -> Lie {
    Lie {
        name,
        image,
        found,
        error,
    }
}

/// All of them.
pub(crate) fn lies() -> Vec<Lie> {
    let mut lies = headers();
    lies.extend(region_tables());
    lies.extend(metadata());
    lies.extend(entries());
    lies.extend(logs());
    lies
}

fn headers() -> Vec<Lie> {
    let open = |name, image, error| found(Found::Open, name, image, error);
    let nowhere = |name, image| found(Found::Nowhere, name, image, "");
    vec![
        open(
            "nothing",
            Vec::new(),
            "open: it is too short to be a VHDX image",
        ),
        open(
            "a beginning alone",
            b"vhdxfile".to_vec(),
            "open: it is too short to be a VHDX image",
        ),
        open(
            "another magic",
            but(|image| image[0] ^= 1),
            "open: it is not a VHDX image: it begins with something else",
        ),
        nowhere(
            "the current header is damaged",
            but(|image| image[65550] ^= 1),
        ),
        nowhere(
            "the other header is damaged",
            but(|image| image[131_100] ^= 1),
        ),
        open(
            "both headers are damaged",
            but(|image| {
                image[65550] ^= 1;
                image[131_100] ^= 1;
            }),
            "open: both headers are damaged",
        ),
        open(
            "two current headers",
            but(|image| {
                let mut other = Header::sound(MIB);
                other.data_write = Guid::ZERO;
                other.write(image, 1, 7);
            }),
            "open: both headers claim to be the current one",
        ),
        nowhere(
            "twice the same header",
            but(|image| Header::sound(MIB).write(image, 1, 7)),
        ),
        open(
            "another version",
            header(|header| header.version = 2),
            "open: VHDX version 2 is not supported",
        ),
        nowhere(
            "another version of no log",
            header(|header| header.log_version = 9),
        ),
        nowhere(
            "no log anywhere",
            header(|header| header.log_place = (1, u32::MAX)),
        ),
        open(
            "another version of the log",
            header(|header| {
                header.log = super::images::LOG_GUID;
                header.log_version = 9;
            }),
            "open: version 9 of the log is not supported",
        ),
    ]
}

fn region_tables() -> Vec<Lie> {
    let open = |name, image, error| found(Found::Open, name, image, error);
    let (bat, metadata) = ((BAT, TABLE, MIB, 1), (METADATA, LOG_END, MIB, 1));
    let other = Guid::new(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    vec![
        found(
            Found::Nowhere,
            "the first region table is damaged",
            but(|image| image[200_000] ^= 1),
            "",
        ),
        open(
            "both region tables are damaged",
            but(|image| {
                image[200_000] ^= 1;
                image[300_000] ^= 1;
            }),
            "open: both region tables are damaged",
        ),
        open(
            "very many regions",
            but(|image| {
                for place in [192 << 10, 256 << 10] {
                    image[place + 8..place + 12].fill(0xff);
                    seal(&mut image[place..place + (64 << 10)]);
                }
            }),
            "open: 4294967295 regions: there can be at most 2047",
        ),
        open(
            "a region that is needed",
            regions(&[bat, metadata, (other, BLOCK, MIB, 1)]),
            "open: the region 00112233-4455-6677-8899-aabbccddeeff is required and not supported",
        ),
        found(
            Found::Nowhere,
            "a region that is not needed",
            regions(&[bat, metadata, (other, 1, 1, 0)]),
            "",
        ),
        open(
            "no table",
            regions(&[metadata]),
            "open: there is no block allocation table",
        ),
        open("no metadata", regions(&[bat]), "open: there is no metadata"),
        open(
            "two tables",
            regions(&[bat, metadata, bat]),
            "open: the block allocation table is there twice",
        ),
        open(
            "a table out of line",
            regions(&[(BAT, TABLE + 512, MIB, 1), metadata]),
            "open: the block allocation table has 1048576 bytes at 0x300200: those are not whole MiB behind the headers",
        ),
        open(
            "a table in the headers",
            regions(&[(BAT, 0, MIB, 1), metadata]),
            "open: the block allocation table has 1048576 bytes at 0x0: those are not whole MiB behind the headers",
        ),
        open(
            "metadata at the end of all offsets",
            regions(&[bat, (METADATA, 0xffff_ffff_fff0_0000, MIB, 1)]),
            "open: the metadata has 1048576 bytes at 0xfffffffffff00000: those are not whole MiB behind the headers",
        ),
        open(
            "metadata of nothing",
            regions(&[bat, (METADATA, LOG_END, 0, 1)]),
            "open: the metadata has 0 bytes at 0x200000: those are not whole MiB behind the headers",
        ),
        open(
            "metadata in the table",
            regions(&[bat, (METADATA, TABLE, MIB, 1)]),
            "open: the block allocation table, the metadata and the log overlap",
        ),
        open(
            "metadata behind the end",
            regions(&[bat, (METADATA, 1 << 40, MIB, 1)]),
            "open: the metadata end past the end of the file",
        ),
        open(
            "a table behind the end",
            regions(&[(BAT, 1 << 40, MIB, 1), metadata]),
            "open: the block allocation table ends past the end of the file",
        ),
    ]
}

fn metadata() -> Vec<Lie> {
    let open = |name, image, error| found(Found::Open, name, image, error);
    let with_parent = |item: &[u8]| {
        let mut image = sound();
        image.parent = Some(Vec::new());
        let mut image = image.build();
        let place = ITEMS + 48;
        image[place..place + item.len()].copy_from_slice(item);
        let length = (item.len() as u32).to_le_bytes();
        image[LOG_END + 32 + 32 * 5 + 20..][..4].copy_from_slice(&length);
        image
    };
    vec![
        open(
            "metadata of something else",
            but(|image| image[LOG_END] = 0),
            "open: the metadata begin with something else",
        ),
        open(
            "very many items",
            but(|image| image[LOG_END + 10..LOG_END + 12].fill(0xff)),
            "open: 65535 items of metadata: there can be at most 2047",
        ),
        open(
            "an item that is needed",
            entry(4, 0, &[0; 16]),
            "open: the item 00000000-0000-0000-0000-000000000000 of the metadata is required and not supported",
        ),
        open(
            "a user's item that is needed",
            entry(4, 24, &[5]),
            "open: the item cda348c7-445d-4471-9cc9-e9885251c556 of the metadata is required and not supported",
        ),
        open(
            "an item is missing",
            entry(4, 24, &[1]),
            "open: the physical sector size: not in the metadata",
        ),
        open(
            "an item twice",
            but(|image| {
                let first = image[LOG_END + 32..LOG_END + 64].to_vec();
                image[LOG_END + 64..LOG_END + 96].copy_from_slice(&first);
            }),
            "open: the file parameters: twice in the metadata",
        ),
        open(
            "an item in the table of items",
            entry(1, 16, &[0; 4]),
            "open: the virtual disk's size: 8 bytes at 0x0 of the metadata, where nothing can lie",
        ),
        open(
            "an item behind the region",
            entry(1, 16, &[0xff; 4]),
            "open: the virtual disk's size: 8 bytes at 0xffffffff of the metadata, where nothing can lie",
        ),
        open(
            "a very long item",
            entry(1, 20, &[0xff; 4]),
            "open: the virtual disk's size: 4294967295 bytes at 0x10008 of the metadata, where nothing can lie",
        ),
        open(
            "an empty item",
            entry(1, 16, &[0; 8]),
            "open: the virtual disk's size: 0 bytes instead of 8",
        ),
        open(
            "blocks of nothing",
            item(0, &[0; 4]),
            "open: blocks of 0 bytes: VHDX has 1 MiB to 256 MiB, a power of two",
        ),
        open(
            "blocks of 3 MiB",
            item(0, &(3_u32 << 20).to_le_bytes()),
            "open: blocks of 3145728 bytes: VHDX has 1 MiB to 256 MiB, a power of two",
        ),
        open(
            "blocks of 512 MiB",
            item(0, &(512_u32 << 20).to_le_bytes()),
            "open: blocks of 536870912 bytes: VHDX has 1 MiB to 256 MiB, a power of two",
        ),
        open(
            "sectors of 1 KiB",
            item(3, &1024_u32.to_le_bytes()),
            "open: logical sectors of 1024 bytes: VHDX has 512 or 4096",
        ),
        open(
            "physical sectors of nothing",
            item(4, &[0; 4]),
            "open: physical sectors of 0 bytes: VHDX has 512 or 4096",
        ),
        open(
            "half a sector",
            item(1, &(DISK + 256).to_le_bytes()),
            "open: a virtual size of 4194560 bytes: it is 64 TiB at most, in whole sectors of 512 bytes",
        ),
        open(
            "an endless disk",
            item(1, &[0xff; 8]),
            "open: a virtual size of 18446744073709551615 bytes: it is 64 TiB at most, in whole sectors of 512 bytes",
        ),
        open(
            "a disk that its table is too short for",
            item(1, &(64_u64 << 40).to_le_bytes()),
            "open: the block allocation table has 1048576 bytes, and a disk of 70368744177664 bytes needs 537001976",
        ),
        found(Found::Nowhere, "a disk of nothing", item(1, &[0; 8]), ""),
        open(
            "a parent that is nowhere",
            item(0, &[0, 0, 0x10, 0, 2]),
            "open: it has a parent and does not say where that is",
        ),
        open(
            "a locator of nothing",
            with_parent(&[]),
            "open: the parent locator is cut short",
        ),
        open(
            "another kind of locator",
            with_parent(&[7; 20]),
            "open: its parent is located by 07070707-0707-0707-0707-070707070707, which is not supported",
        ),
        open(
            "a locator that names nothing",
            with_parent(&super::images::locator(&[])),
            "open: it does not say what identifies its parent",
        ),
        open(
            "a locator of very many texts",
            with_parent(&{
                let mut locator = super::images::locator(&[]);
                locator[18..20].fill(0xff);
                locator
            }),
            "open: the parent locator is cut short",
        ),
        open(
            "a locator with a text elsewhere",
            with_parent(&{
                let mut locator = super::images::locator(&[("relative_path", "a")]);
                locator[24..28].fill(0xff);
                locator
            }),
            "open: a text of the parent locator lies outside of it",
        ),
        open(
            "a locator with half a character",
            with_parent(&{
                let mut locator = super::images::locator(&[("relative_path", "a")]);
                let end = locator.len();
                locator[end - 1] = 0xd8;
                locator
            }),
            "open: a text of the parent locator is not UTF-16",
        ),
        open(
            "a name that steers a terminal",
            with_parent(&super::images::locator(&[
                ("relative_path", "\x1b[2J\n"),
                ("parent_linkage", "{00000000-0000-0000-0000-000000000000}"),
            ])),
            "open: it needs the backing file \"\\u{1b}[2J\\n\", which nobody allowed to be opened",
        ),
    ]
}

fn entries() -> Vec<Lie> {
    let read = |name, image, error| found(Found::Read, name, image, error);
    vec![
        read(
            "a state that is none",
            word(4),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 has the state 4, which is none",
        ),
        read(
            "another state that is none",
            word(BLOCK as u64 | 5),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 has the state 5, which is none",
        ),
        read(
            "a part of no parent",
            word(BLOCK as u64 | 7),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 is said to be partly in a parent, which the image has not",
        ),
        read(
            "a block in the headers",
            word(6),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 lies at 0x0, where something else is",
        ),
        read(
            "a block in the table",
            word(TABLE as u64 | 6),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 lies at 0x300000, where something else is",
        ),
        read(
            "a block behind the end",
            word((BLOCK + MIB) as u64 | 6),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 lies at 0x500000, past the end of the file",
        ),
        read(
            "a block at the end of all offsets",
            word(0xffff_ffff_fff0_0006),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 lies at 0xfffffffffff00000, past the end of the file",
        ),
        read(
            "a block out of line",
            word(BLOCK as u64 | 0x1006),
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 has the entry 0x401006, which breaks the rules",
        ),
        found(
            Found::Nowhere,
            "two blocks in one place",
            word(BLOCK as u64 | 6),
            "",
        ),
    ]
}

fn logs() -> Vec<Lie> {
    const NOTHING: &str = "open: it was not closed, and its log has nothing that could be replayed";
    let open = |name, image, error| found(Found::Open, name, image, error);
    let end = (BLOCK + MIB) as u64;
    let sound = |writes| LogEntry::new(1, 0, end, writes);
    let placed = |offset: u64, length: u32| {
        header(|header| {
            header.log = super::images::LOG_GUID;
            header.log_place = (offset, length);
        })
    };
    // Entries of the whole log in each of its sectors.
    let overlapping = but(|image| {
        write_log(image, MIB, 0, &[sound(Vec::new())]);
        let mut sector = image[LOG..LOG + 4096].to_vec();
        sector[8..12].copy_from_slice(&(MIB as u32).to_le_bytes());
        for at in (LOG..LOG_END).step_by(4096) {
            image[at..at + 4096].copy_from_slice(&sector);
        }
    });
    // Each of these is an entry with the right checksum.
    let sealed = |at: usize, bytes: &[u8]| {
        let mut entry = sound(vec![Write::Page(end - 4096, vec![1; 4096])]).encode();
        entry[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut entry);
        let mut image = log(&[]);
        image[LOG..LOG + entry.len()].copy_from_slice(&entry);
        image
    };
    vec![
        found(
            Found::Nowhere,
            "a log that has to be replayed",
            log(&[sound(vec![Write::Page(end - 4096, vec![1; 4096])])]),
            "",
        ),
        open("an empty log", log(&[]), NOTHING),
        open(
            "a log out of line",
            placed(LOG as u64 + 512, MIB as u32),
            "open: the log has 1048576 bytes at 0x100200: those are not whole MiB behind the headers",
        ),
        open(
            "a log of nothing",
            placed(LOG as u64, 0),
            "open: the log has 0 bytes at 0x100000: those are not whole MiB behind the headers",
        ),
        open(
            "a log behind the end",
            placed(LOG as u64, 0xfff0_0000),
            "open: the log ends past the end of the file",
        ),
        open(
            "a log in the metadata",
            {
                let mut image = log(&[sound(Vec::new())]);
                write_regions(&mut image, &[(BAT, TABLE, MIB, 1), (METADATA, LOG, MIB, 1)]);
                image
            },
            "open: the block allocation table, the metadata and the log overlap",
        ),
        open(
            "entries that overlap",
            overlapping,
            "open: the entries of its log overlap",
        ),
        open("an entry of nothing", sealed(8, &[0; 4]), NOTHING),
        open("an endless entry", sealed(8, &[0xff; 4]), NOTHING),
        open(
            "an entry out of line",
            sealed(8, &4097_u32.to_le_bytes()),
            NOTHING,
        ),
        open("a tail behind the log", sealed(12, &[0xff; 4]), NOTHING),
        open("a tail out of line", sealed(12, &[1]), NOTHING),
        open("the number 0", sealed(16, &[0; 8]), NOTHING),
        open("very many descriptors", sealed(24, &[0xff; 4]), NOTHING),
        open("more descriptors than data", sealed(24, &[2]), NOTHING),
        open("data without a descriptor", sealed(24, &[0]), NOTHING),
        open("another descriptor", sealed(64, b"else"), NOTHING),
        open("a descriptor of another entry", sealed(88, &[2]), NOTHING),
        open("a place out of line", sealed(80, &[1]), NOTHING),
        open(
            "a place at the end of all offsets",
            sealed(86, &[0xff; 2]),
            NOTHING,
        ),
        open("other data", sealed(4096, b"else"), NOTHING),
        open("data of another entry", sealed(8188, &[2]), NOTHING),
        open(
            "a file of all bytes",
            sealed(56, &[0xff; 8]),
            "open: its log wants a file of 18446744073709551615 bytes",
        ),
        found(
            Found::Nowhere,
            "zeroes to the end of all offsets",
            log(&[sound(vec![Write::Zero(
                end,
                (i64::MAX as u64 & !0xfff) - end,
            )])]),
            "",
        ),
    ]
}

//! Random images through both tools, in both directions: what the one writes the other reads, and nobody finds
//! anything wrong with it.

use std::{fs, path::Path};

use tempfile::tempdir;

use crate::support::{
    assert_same, blockferry,
    qemu::{assert_identical, check, convert, qemu_img, qemu_io, text},
    run,
};

/// Numbers that look random and are the same for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % end
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u64) as usize]
    }
}

/// Options for a new image that go together; `compressed`: clusters are.
fn options(random: &mut Random, compressed: bool) -> String {
    let clusters = ["512", "1k", "4k", "16k", "32k", "64k", "64k", "256k", "2M"];
    if random.below(4) == 0 {
        return format!("compat=0.10,cluster_size={}", random.one_of(&clusters));
    }
    let mut options = vec!["compat=1.1".to_owned()];
    let cluster = match random.below(3) {
        0 => {
            options.push("extended_l2=on".to_owned());
            random.one_of(&clusters[3..])
        }
        _ => random.one_of(&clusters),
    };
    options.push(format!("cluster_size={cluster}"));
    let bits = ["8", "16", "16", "32", "64"];
    options.push(format!("refcount_bits={}", random.one_of(&bits)));
    if random.below(3) == 0 {
        options.push("lazy_refcounts=on".to_owned());
    }
    if compressed {
        let kind = random.one_of(&["zlib", "zstd"]);
        options.push(format!("compression_type={kind}"));
    } else if random.below(3) == 0 {
        let how = random.one_of(&["metadata", "falloc", "full"]);
        options.push(format!("preallocation={how}"));
    }
    options.join(",")
}

/// Makes an image by qemu's writer, with data, compressed clusters, zeroes and discarded places.
fn their_image(image: &Path, random: &mut Random) {
    let size = 512 * (1 + random.below(30_000));
    let options = options(random, true);
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        &options,
        text(image),
        &size.to_string(),
    ]);
    let sector = |random: &mut Random| 512 * random.below(size / 512);
    let mut commands = vec![];
    for _ in 0..random.below(40) {
        let offset = sector(random);
        let length = 512 * (1 + random.below(400));
        let length = length.min(size - offset);
        let pattern = 1 + random.below(255);
        commands.push(match random.below(6) {
            0 => format!("write -z {offset} {length}"),
            1 => format!("write -z -u {offset} {length}"),
            2 => format!("discard {offset} {length}"),
            3 => format!("write -P 0 {offset} {length}"),
            _ => format!("write -P {pattern} {offset} {length}"),
        });
    }
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    if !commands.is_empty() {
        qemu_io(image, "qcow2", &commands);
    }
}

/// All there is to compare of one image.
fn compare_tools(seed: u64) {
    let mut random = Random::new(seed);
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let theirs = path("theirs.qcow2");
    their_image(&theirs, &mut random);

    // Theirs as they read it, and as we do.
    let (expected, raw) = (path("expected.raw"), path("ours.raw"));
    qemu_img(&["convert", "-O", "raw", text(&theirs), text(&expected)]);
    convert(&[text(&theirs), text(&raw)]).success();
    assert_same(&expected, &raw);
    run(&mut blockferry(["compare", text(&theirs), text(&expected)])).success();

    for (name, source, flags) in [
        ("plain", &raw, &[][..]),
        ("again", &theirs, &["-m", "2", "-S", "512"]),
        ("packed", &raw, &["-c"]),
        ("loose", &theirs, &["-c", "-W", "-m", "3"]),
    ] {
        let made = path(&format!("{name}.qcow2"));
        let options = options(&mut random, flags.contains(&"-c"));
        let words = [
            flags,
            &["-O", "qcow2", "-o", &options],
            &[text(source), text(&made)],
        ];
        convert(&words.concat()).success();
        check(&made);
        assert_identical((&expected, "raw"), (&made, "qcow2"));

        // Ours as we read it, and as their writer passes it on.
        let back = path(&format!("{name}.raw"));
        convert(&[text(&made), text(&back)]).success();
        assert_same(&expected, &back);
        let passed = path(&format!("{name}-passed.qcow2"));
        let packs = match random.below(2) {
            0 => &["convert", "-O", "qcow2", text(&made), text(&passed)][..],
            _ => &[
                "convert",
                "-c",
                "-W",
                "-O",
                "qcow2",
                text(&made),
                text(&passed),
            ],
        };
        qemu_img(packs);
        run(&mut blockferry([
            "compare",
            "-s",
            text(&passed),
            text(&raw),
        ]))
        .success();
        // They map it alike: what the one calls data is data.
        let map = |image: &Path| qemu_img(&["map", "--output=json", text(image)]);
        assert!(serde_json::from_str::<serde_json::Value>(&map(&made)).is_ok());
        fs::remove_file(&passed).expect("removed");
    }
}

#[test]
fn random_images_are_the_same_in_both_tools() {
    for seed in 0..8 {
        println!("seed {seed}");
        compare_tools(seed);
    }
}

#[test]
fn random_overlays_are_the_same_in_both_tools() {
    for seed in 100..106 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let dir = tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let (base, raw) = (path("base.qcow2"), path("base.raw"));
        their_image(&base, &mut random);
        qemu_img(&["convert", "-O", "raw", text(&base), text(&raw)]);
        // A changed copy of the base, larger or as large.
        let changed = path("changed.raw");
        fs::copy(&raw, &changed).expect("copied");
        let size = raw.metadata().expect("a file").len();
        let grown = size + 512 * random.below(2000);
        qemu_img(&["resize", "-f", "raw", text(&changed), &grown.to_string()]);
        let mut commands = Vec::new();
        for _ in 0..random.below(10) {
            let offset = 512 * random.below(grown / 512);
            let length = (512 * (1 + random.below(300))).min(grown - offset);
            commands.push(format!("write -P {} {offset} {length}", random.below(3)));
        }
        commands.push("read 0 512".to_owned());
        let commands: Vec<_> = commands.iter().map(String::as_str).collect();
        qemu_io(&changed, "raw", &commands);

        for (number, (name, format)) in [("base.qcow2", "qcow2"), ("base.raw", "raw")]
            .into_iter()
            .enumerate()
        {
            let made = path(&format!("overlay{number}.qcow2"));
            let mut options = options(&mut random, true);
            if options.starts_with("compat=0.10") {
                options = "cluster_size=4k".to_owned();
            }
            let mut words = vec!["-O", "qcow2", "-b", name, "-F", format, "-o", &options];
            if random.below(2) == 0 {
                words.push("-c");
            }
            convert(&[&words[..], &[text(&changed), text(&made)]].concat()).success();
            check(&made);
            assert_identical((&changed, "raw"), (&made, "qcow2"));
            let place = text(dir.path());
            let compare = [
                "compare",
                "-s",
                "--allow-backing",
                place,
                text(&made),
                text(&changed),
            ];
            run(&mut blockferry(compare)).success();
        }
    }
}

//! Images of all the options that there are.

use std::{path::Path, process::Command};

use blockferry_block::Context;
use tempfile::tempdir;

use crate::{
    qemu::{is_installed, qemu_img, qemu_io},
    support::{compare, open, status},
};

/// Random numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Writes, zeroes and discards at random places of a disk of `size` bytes; some clusters of `cluster` bytes are
/// compressed where `compressed` says that they can be.
fn scribble(directory: &Path, name: &str, size: u64, cluster: u64, compressed: bool, seed: u64) {
    let mut random = Random(seed);
    let mut commands = Vec::new();
    for number in 0..40 {
        let longest = (size / 8).min(5 * cluster).max(1024);
        let start = random.below(size / 512) * 512;
        let length = (1 + random.below(longest / 512)) * 512;
        let length = length.min(size - start);
        let pattern = 1 + number % 255;
        let place = format!("{start} {length}");
        match random.below(if compressed { 8 } else { 6 }) {
            0..=2 => commands.push(format!("write -P {pattern} {place}")),
            3 => commands.push(format!("write -z {place}")),
            4 => commands.push(format!("write -z -u {place}")),
            5 => commands.push(format!("discard {place}")),
            _ => {
                let clusters = (size / cluster).max(1);
                for next in random.below(clusters)..clusters.min(number + 3) {
                    let start = next * cluster;
                    let length = cluster.min(size - start);
                    commands.push(format!("write -c -P {pattern} {start} {length}"));
                }
            }
        }
    }
    let mut io = Command::new("qemu-io");
    io.args(["-f", "qcow2"]);
    for command in &commands {
        io.args(["-c", command]);
    }
    // What is allocated already cannot be compressed: then the others are done all the same.
    let done = io.arg(name).current_dir(directory).output();
    let done = done.expect("it runs");
    assert!(!done.stdout.is_empty(), "{done:?}");
}

#[tokio::test]
async fn all_kinds_of_images_read_as_qemu_reads_them() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    let kinds = [
        ("cluster_size=512", 512, true),
        ("cluster_size=512,compat=0.10", 512, true),
        ("cluster_size=4k,refcount_bits=64", 4 << 10, true),
        ("cluster_size=64k", 64 << 10, true),
        ("cluster_size=64k,compat=0.10", 64 << 10, true),
        ("cluster_size=64k,compression_type=zstd", 64 << 10, true),
        ("cluster_size=2M,compression_type=zstd", 2 << 20, true),
        ("cluster_size=2M,lazy_refcounts=on", 2 << 20, true),
        ("cluster_size=16k,extended_l2=on", 16 << 10, true),
        (
            "cluster_size=64k,extended_l2=on,compression_type=zstd",
            64 << 10,
            true,
        ),
        ("cluster_size=2M,extended_l2=on", 2 << 20, true),
        ("refcount_bits=1", 64 << 10, false),
        ("data_file=DATA", 64 << 10, false),
        ("data_file=DATA,data_file_raw=on", 64 << 10, false),
        (
            "cluster_size=32k,data_file=DATA,extended_l2=on",
            32 << 10,
            false,
        ),
    ];
    for (number, (options, cluster, compressed)) in kinds.into_iter().enumerate() {
        for (turn, size) in [(0, 3 << 20), (1, (7 << 20) + 512)] {
            let name = format!("{number}-{turn}.qcow2");
            let options = options.replace("DATA", &format!("{name}.data"));
            qemu_img(
                directory,
                &format!("create -q -f qcow2 -o {options} {name} {size}"),
            );
            scribble(
                directory,
                &name,
                size,
                cluster,
                compressed,
                number as u64 * 7 + turn,
            );
            let image = open(directory, &name).await;
            compare(directory, &name, &*image).await;
        }
    }
}

#[tokio::test]
async fn chains_show_what_is_behind_as_qemu_shows_it() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    for seed in 0..6_u64 {
        let name = |layer: u64| format!("{seed}-{layer}.qcow2");
        let sizes = [5 << 20, (3 << 20) + 1536, 6 << 20, (4 << 20) + 512];
        let options = [
            "cluster_size=4k",
            "extended_l2=on",
            "cluster_size=64k",
            "cluster_size=128k",
        ];
        for layer in 0..4 {
            let own = name(layer);
            let at = ((layer + seed) % 4) as usize;
            let (size, options) = (sizes[at], options[at]);
            let backing = match layer {
                0 => String::new(),
                _ => format!("-b {} -F qcow2 ", name(layer - 1)),
            };
            qemu_img(
                directory,
                &format!("create -q -f qcow2 {backing}-o {options} {own} {size}"),
            );
            let cluster = if options == "cluster_size=4k" {
                4096
            } else {
                128 << 10
            };
            scribble(directory, &own, size, cluster, at == 0, seed * 4 + layer);
            let image = open(directory, &own).await;
            compare(directory, &own, &*image).await;
        }
    }
}

#[tokio::test]
async fn a_raw_backing_file_of_any_length_shows() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    for (number, length) in [1_u64, 511, 70_000, 1 << 20, 3 << 20]
        .into_iter()
        .enumerate()
    {
        let bytes: Vec<u8> = (0..length).map(|at| (at / 700 % 255) as u8 + 1).collect();
        let base = format!("{number}.raw");
        std::fs::write(directory.join(&base), bytes).expect("written");
        let name = format!("{number}.qcow2");
        qemu_img(
            directory,
            &format!("create -q -f qcow2 -b {base} -F raw {name} 2M"),
        );
        qemu_io(
            directory,
            &name,
            &[
                "write -P 7 100k 3k",
                "write -z 512k 64k",
                "write -P 9 1900k 512",
            ],
        );
        let image = open(directory, &name).await;
        compare(directory, &name, &*image).await;
        // What lies behind its end counts as its own, as qemu-nbd says.
        let depths = status(&*image, &Context::AllocationDepth, u64::MAX).await;
        let depths: Vec<_> = depths.iter().map(|extent| extent.status.0).collect();
        assert_eq!(depths, [2, 1, 2, 1, 2, 1, 2], "{name}");
    }
}

#[tokio::test]
async fn what_was_allocated_in_advance_is_zero_where_the_file_has_holes() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    for (number, options) in [
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=metadata,extended_l2=on",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{number}.qcow2");
        qemu_img(
            directory,
            &format!("create -q -f qcow2 -o {options} {name} 20M"),
        );
        qemu_io(
            directory,
            &name,
            &["write -P 3 10M 5M", "write -z 12M 64k", "write -P 4 19M 1M"],
        );
        let image = open(directory, &name).await;
        compare(directory, &name, &*image).await;
    }
}

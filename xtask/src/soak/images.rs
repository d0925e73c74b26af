//! The images that are copied: what they hold is known, in each form that one has.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{process::World, random::Random};

const MIB: u64 = 1 << 20;

/// An image, and what it holds.
pub(crate) struct Image {
    pub(crate) name: &'static str,
    /// Bytes.
    pub(crate) size: u64,
    directory: PathBuf,
    /// The endpoint that generates the same, if there is one.
    pub(crate) generated: Option<String>,
}

/// In which form an image lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Raw,
    Qcow2,
    /// Compressed clusters, of deflate and of zstd.
    Deflated,
    Zstd,
    /// A qcow2 image over another one.
    Overlay,
}

impl Form {
    pub(crate) const ALL: [Self; 5] = [
        Self::Raw,
        Self::Qcow2,
        Self::Deflated,
        Self::Zstd,
        Self::Overlay,
    ];

    pub(crate) fn format(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            _ => "qcow2",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Deflated => "deflated.qcow2",
            Self::Zstd => "zstd.qcow2",
            Self::Overlay => "overlay.qcow2",
        }
    }
}

impl Image {
    pub(crate) fn file(&self, form: Form) -> PathBuf {
        self.directory
            .join(format!("{}.{}", self.name, form.suffix()))
    }

    /// What the image holds.
    pub(crate) fn raw(&self) -> PathBuf {
        self.file(Form::Raw)
    }

    /// Whether it ends within a sector, which not everybody can serve.
    pub(crate) fn is_odd(&self) -> bool {
        !self.size.is_multiple_of(512)
    }
}

/// How an image is drawn: its name, its size, how many of a hundred runs are data, and how many zeroes that are
/// written; all else is holes.
const PLANS: [(&str, u64, u64, u64); 5] = [
    ("small", MIB + 1536, 100, 0),
    ("mixed", 12 * MIB, 50, 20),
    ("odd", 3 * MIB + 1000, 60, 20),
    ("sparse", 128 * MIB, 2, 1),
    ("full", 16 * MIB, 100, 0),
];

/// Size of the image that blockferry generates itself.
const SAMPLE: u64 = 24 * MIB;

/// Makes all images below the world's directory.
pub(crate) fn draw(world: &World, seed: u64) -> Result<Vec<Image>> {
    let directory = world.directory.join("images");
    fs::create_dir_all(&directory)?;
    let mut random = Random::new(seed);
    let mut images = Vec::new();
    for (name, size, data, zeroes) in PLANS {
        let image = Image {
            name,
            size,
            directory: directory.clone(),
            generated: None,
        };
        draw_raw(&image.raw(), size, data, zeroes, &mut random)?;
        images.push(image);
    }
    images.push(sample(world, &directory, seed)?);
    for image in &images {
        make_forms(world, image, &mut random)?;
    }
    Ok(images)
}

fn draw_raw(path: &Path, size: u64, data: u64, zeroes: u64, random: &mut Random) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let mut offset = 0;
    while offset < size {
        // Mostly whole pages, now and then not.
        let unit = if random.percent(90) { 4096 } else { 512 };
        let length = (unit * (1 + random.below(256))).min(size - offset);
        let count = usize::try_from(length)?;
        let kind = random.below(100);
        if kind < data {
            file.write_all_at(&random.bytes(count), offset)?;
        } else if kind < data + zeroes {
            file.write_all_at(&vec![0; count], offset)?;
        }
        offset += length;
    }
    Ok(())
}

/// The image that `sample:` generates, as someone else's client reads it.
fn sample(world: &World, directory: &Path, seed: u64) -> Result<Image> {
    let generated = format!("sample:{SAMPLE},seed={}", seed % 1000);
    let image = Image {
        name: "sample",
        size: SAMPLE,
        directory: directory.to_owned(),
        generated: Some(generated.clone()),
    };
    let read = format!(
        "qemu-img convert -f raw -O raw \"$uri\" {}",
        image.raw().display()
    );
    let mut serve = world.ours();
    let output = serve.args(["serve", &generated, "--run", &read]).output();
    let output = output.context("cannot start the program under test")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "serve --run: {}: {said}",
        output.status
    );
    Ok(image)
}

fn make_forms(world: &World, image: &Image, random: &mut Random) -> Result<()> {
    let raw = image.raw();
    let text = |path: &Path| path.display().to_string();
    let convert = |form: Form, options: &[&str]| {
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(options);
        let (from, to) = (text(&raw), text(&image.file(form)));
        arguments.extend([&*from, &*to]);
        world.tool("qemu-img", &arguments)
    };
    convert(Form::Qcow2, &["-o", "cluster_size=16k"])?;
    convert(Form::Deflated, &["-c"])?;
    convert(Form::Zstd, &["-c", "-o", "compression_type=zstd"])?;
    // What lies below an overlay differs from it here and there.
    let below = image.directory.join(format!("{}.below.raw", image.name));
    world.tool("cp", &["--sparse=always", &text(&raw), &text(&below)])?;
    let file = File::options().write(true).open(&below)?;
    for _ in 0..20 {
        let bytes = random.bytes(4096);
        file.write_all_at(&bytes, random.below(image.size - 4096))?;
    }
    let base = image.directory.join(format!("{}.below.qcow2", image.name));
    world.tool(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &text(&below),
            &text(&base),
        ],
    )?;
    fs::remove_file(&below)?;
    convert(Form::Overlay, &["-B", &text(&base), "-F", "qcow2"])
}

/// Says where `found` differs from what `expected` holds. It may be longer, by less than a sector of zeroes, where
/// a format or a server knows no shorter ones.
pub(crate) fn difference(expected: &Path, found: &Path) -> Result<Option<String>> {
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let (one, other) = (open(expected)?, open(found)?);
    let (size, length) = (one.metadata()?.len(), other.metadata()?.len());
    if length < size || length >= size + 512 {
        return Ok(Some(format!("it has {length} bytes instead of {size}")));
    }
    let mut zeroes = vec![0; usize::try_from(length - size)?];
    other.read_exact_at(&mut zeroes, size)?;
    if zeroes.iter().any(|byte| *byte != 0) {
        return Ok(Some(format!("behind {size} bytes there is something")));
    }
    let (mut one, mut other) = (one, other.take(size));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < size {
        let count = usize::try_from((size - offset).min(1 << 20))?;
        one.read_exact(&mut a[..count])?;
        other.read_exact(&mut b[..count])?;
        if a[..count] != b[..count] {
            let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(0);
            let wrong = a[..count].iter().zip(&b[..count]).filter(|(a, b)| a != b);
            return Ok(Some(format!(
                "it differs first at {}, in {} bytes of the MiB there",
                offset + first as u64,
                wrong.count()
            )));
        }
        offset += count as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_differs_is_found_and_a_tail_of_zeroes_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let mut bytes = Random::new(1).bytes(3_000_000);
        fs::write(&one, &bytes).unwrap();
        bytes.extend([0; 300]);
        fs::write(&other, &bytes).unwrap();
        assert_eq!(difference(&one, &other).unwrap(), None);
        bytes[2_500_000] ^= 1;
        fs::write(&other, &bytes).unwrap();
        let told = difference(&one, &other).unwrap().unwrap();
        assert_eq!(
            told,
            "it differs first at 2500000, in 1 bytes of the MiB there"
        );
        bytes[2_500_000] ^= 1;
        bytes[3_000_200] = 1;
        fs::write(&other, &bytes).unwrap();
        assert!(difference(&one, &other).unwrap().is_some());
        fs::write(&other, &bytes[..2_999_999]).unwrap();
        assert!(difference(&one, &other).unwrap().is_some());
    }
}

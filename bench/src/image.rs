//! Making the images of a scenario: random bytes, a file system of real files, a qcow2 of it, nothing.

mod scattered;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    interrupt::Interrupt,
    process,
    scenario::{Format, Image, Scenario},
};

/// Where the files in a file system image come from: every Linux has them, in much the same mix of
/// programs, libraries, text and compressed data.
const FILES: &str = "/usr";

/// Makes the images one after the other in `scratch` and returns where each lies. The empty ones are
/// left to [`renew`].
pub(crate) fn prepare(
    scenario: &Scenario,
    quick: bool,
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut made: BTreeMap<String, PathBuf> = BTreeMap::new();
    let size = scenario.size.as_ref().map(|size| size.of(quick).bytes);
    for image in &scenario.images {
        let path = scratch.join(format!("{}.image", image.name()));
        match image {
            Image::Random { .. } => {
                random(&path, size.unwrap_or_default(), interrupt)?;
            }
            Image::Fragmented { piece, .. } => {
                fragmented(&path, size.unwrap_or_default(), piece.bytes, interrupt)?;
            }
            Image::Empty { .. } => {}
            Image::Ext4 { files, .. } => {
                let files = files.of(quick).bytes;
                ext4(&path, size.unwrap_or_default(), files, scratch, interrupt)?;
            }
            Image::Scattered { extents, .. } => {
                let extents = extents.of(quick).bytes;
                scattered::write(&path, size.unwrap_or_default(), extents)?;
            }
            Image::Converted {
                of,
                format,
                options,
                ..
            } => {
                let mut convert = Command::new("qemu-img");
                convert.args(["convert", "-f", "raw", "-O", format.name()]);
                convert.args(options);
                process::run(convert.arg(&made[of]).arg(&path), scratch, interrupt)?;
            }
            Image::Packed { of, command, .. } => {
                packed(&path, &made[of], command, scratch, interrupt)
                    .with_context(|| command.join(" "))?;
            }
        }
        made.insert(image.name().to_owned(), path);
    }
    Ok(made)
}

/// What `command` makes of the bytes of `source`, by its standard input and output.
fn packed(
    path: &Path,
    source: &Path,
    command: &[String],
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<()> {
    let (program, arguments) = command.split_first().context("a packer has a name")?;
    let mut pack = Command::new(program);
    pack.args(arguments)
        .stdin(File::open(source)?)
        .stdout(File::create(path)?);
    process::run_as_it_is(&mut pack, scratch, interrupt)
}

/// Makes an image with nothing in it, in place of what is at `path`.
pub(crate) fn renew(
    path: &Path,
    format: Format,
    size: u64,
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<()> {
    // Not only truncated: its pages are to be new ones for every run.
    let _ = fs::remove_file(path);
    match format {
        Format::Raw => {
            let file = File::create(path).with_context(|| path.display().to_string())?;
            file.set_len(size)?;
            Ok(())
        }
        _ => {
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", format.name()]).arg(path);
            process::run(create.arg(size.to_string()), scratch, interrupt)
        }
    }
}

/// `size` bytes that no scan finds zeroes in and no compression shrinks; the same ones each time.
fn random(path: &Path, size: u64, interrupt: &Interrupt) -> Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    Noise::new().write(&mut file, size, interrupt)
}

/// A file of `size` bytes that begins with `piece` random ones, then a hole as large, and so on.
fn fragmented(path: &Path, size: u64, piece: u64, interrupt: &Interrupt) -> Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let mut noise = Noise::new();
    let mut offset = 0;
    while offset < size {
        file.seek(SeekFrom::Start(offset))?;
        noise.write(&mut file, piece.min(size - offset), interrupt)?;
        offset = offset.saturating_add(piece.saturating_mul(2));
    }
    file.set_len(size)?;
    Ok(())
}

/// Random bytes, the same ones each time.
struct Noise {
    state: u64,
    chunk: Vec<u8>,
}

impl Noise {
    fn new() -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
            chunk: Vec::new(),
        }
    }

    /// Writes the next `length` bytes of it.
    fn write(&mut self, file: &mut File, length: u64, interrupt: &Interrupt) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let mut left = length;
        while left > 0 {
            interrupt.check()?;
            let length = left.min(CHUNK);
            self.chunk.clear();
            while (self.chunk.len() as u64) < length {
                let word = xorshift(&mut self.state);
                self.chunk.extend_from_slice(&word.to_le_bytes());
            }
            self.chunk.truncate(usize::try_from(length)?);
            file.write_all(&self.chunk)
                .context("cannot write random bytes")?;
            left -= length;
        }
        Ok(())
    }
}

/// Marsaglia's xorshift64: fast, and random enough to look incompressible.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A sparse file of `size` bytes with a file system that holds at most `most` bytes of files.
fn ext4(path: &Path, size: u64, most: u64, scratch: &Path, interrupt: &Interrupt) -> Result<()> {
    let staging = scratch.join("files");
    fs::create_dir(&staging)?;
    let copied = gather(Path::new(FILES), most, &staging, interrupt)?;
    ensure!(copied > 0, "{FILES} has no files to fill an image with");
    let file = File::create(path).with_context(|| path.display().to_string())?;
    file.set_len(size)?;
    let mut make = Command::new(program("mkfs.ext4"));
    make.args(["-q", "-F", "-d"]).arg(&staging).arg(path);
    process::run(&mut make, scratch, interrupt)?;
    fs::remove_dir_all(&staging)?;
    Ok(())
}

/// Copies regular files from below `from`, in the order of their names, until `most` bytes are
/// reached. Returns how many bytes they are.
fn gather(from: &Path, most: u64, to: &Path, interrupt: &Interrupt) -> Result<u64> {
    let mut copied = 0;
    let mut count = 0_u64;
    let mut pending = vec![from.to_owned()];
    while let Some(directory) = pending.pop() {
        interrupt.check()?;
        // What may not be read is left out: any mix of files will do.
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries.iter().rev() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() && metadata.len() <= most - copied {
                // A flat directory of a hundred thousand files would be slow to make.
                let place = to.join(format!("{}", count / 1000));
                fs::create_dir_all(&place)?;
                let Ok(bytes) = copy(&entry.path(), &place.join(format!("{count}"))) else {
                    continue;
                };
                copied += bytes;
                count += 1;
            }
        }
    }
    Ok(copied)
}

/// The contents alone: permissions would keep us from reading or removing the copy.
fn copy(from: &Path, to: &Path) -> std::io::Result<u64> {
    let mut source = File::open(from)?;
    let mut copy = BufWriter::new(File::create(to)?);
    let bytes = std::io::copy(&mut source, &mut copy)?;
    copy.flush()?;
    Ok(bytes)
}

/// The program where it lies; an administrator's programs may not be on an ordinary user's `PATH`.
fn program(name: &str) -> PathBuf {
    crate::tools::find(name).unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_images_are_the_same_each_time_and_have_no_zero_words() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
        let size = (1 << 20) + 13;
        random(&one, size, &interrupt).unwrap();
        random(&two, size, &interrupt).unwrap();
        let bytes = fs::read(one).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(bytes, fs::read(two).unwrap());
        assert!(bytes.chunks_exact(8).all(|word| word != [0; 8]));
    }

    #[test]
    fn fragmented_images_alternate_between_data_and_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let path = directory.path().join("image");
        fragmented(&path, 35, 10, &interrupt).unwrap();
        let bytes = fs::read(path).unwrap();
        let zeroes: Vec<bool> = bytes.chunks(10).map(|piece| piece == [0; 10]).collect();
        assert_eq!(zeroes, [false, true, false, false]);
        assert_eq!(&bytes[30..], [0; 5]);
    }

    #[test]
    fn a_packed_image_is_made_of_the_bytes_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let [plain, made] = ["plain", "packed"].map(|name| directory.path().join(name));
        fs::write(&plain, "bytes").unwrap();
        let command = ["tr", "a-z", "A-Z"].map(str::to_owned);
        packed(&made, &plain, &command, directory.path(), &interrupt).unwrap();
        assert_eq!(fs::read(made).unwrap(), b"BYTES");
    }

    #[test]
    fn a_renewed_image_has_its_size_and_nothing_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let path = directory.path().join("image");
        fs::write(&path, "old").unwrap();
        renew(&path, Format::Raw, 100, directory.path(), &interrupt).unwrap();
        assert_eq!(fs::read(path).unwrap(), [0; 100]);
    }

    #[test]
    fn gathering_stops_at_the_limit_and_keeps_the_contents() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (interrupt, _writer) = Interrupt::detached();
        fs::create_dir(from.path().join("sub")).unwrap();
        fs::write(from.path().join("sub/large"), [1; 100]).unwrap();
        fs::write(from.path().join("small"), [2; 10]).unwrap();
        assert_eq!(gather(from.path(), 50, to.path(), &interrupt).unwrap(), 10);
        assert_eq!(fs::read(to.path().join("0/0")).unwrap(), [2; 10]);
    }

    #[test]
    fn an_interrupt_stops_the_making_of_an_image() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, mut writer) = Interrupt::detached();
        writer.write_all(b"x").unwrap();
        let error = random(&directory.path().join("i"), 1 << 40, &interrupt).unwrap_err();
        assert_eq!(error.to_string(), crate::interrupt::MESSAGE);
    }
}

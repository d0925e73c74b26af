//! A file that can only be read from its beginning: unpacked once, into a temporary file without a name.

use std::{env, fs::File, io, path::PathBuf, sync::Arc};

use blockferry_block::{
    BlockDevice, Buffer, ByteSource, Error, ErrorKind, FileDevice, Result, run_blocking, zero_runs,
};
use blockferry_packing::{Packed, UnpackOptions, Unpacked};
use blockferry_sys as sys;

use super::Unpack;
use crate::abilities;

/// How much is written at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// The unit in which zeroes are left out of the temporary file, in bytes.
const HOLE: usize = 64 << 10;

/// Unpacks all of `device` and gives the result, which can only be read. When this future is dropped, nothing is left.
pub(super) async fn unpack(
    device: &Arc<dyn BlockDevice>,
    options: &Unpack,
) -> Result<Arc<dyn BlockDevice>> {
    let name = Arc::clone(&device.info().name);
    let mut unpacking = UnpackOptions::default();
    unpacking.max_size = Some(options.max_size);
    let packed = Packed::Device(Arc::clone(device));
    let mut unpacked = Unpacked::open(packed, options.packing, &unpacking).await?;
    let directory = options.dir.clone().unwrap_or_else(env::temp_dir);
    let file = Arc::new(Temporary::new(directory)?);
    let most = options.max_data.unwrap_or(u64::MAX);
    let (mut size, mut taken) = (0, 0);
    let mut chunk = Buffer::zeroed(CHUNK);
    loop {
        chunk.set_len(CHUNK);
        chunk = unpacked.read(chunk).await?;
        let length = chunk.len();
        let (to, start) = (Arc::clone(&file), size);
        let left = most - taken;
        let written;
        (chunk, written) = run_blocking(move || {
            let written = to.write_data(&chunk, start, left)?;
            Ok::<_, Error>((chunk, written))
        })
        .await??;
        taken += written;
        size += length as u64;
        if length < CHUNK {
            break;
        }
    }
    let file = file.file.try_clone()?;
    sys::set_size(&file, size)?;
    let file = FileDevice::from_file(file, name)?;
    Ok(abilities::read_only(Arc::new(file)))
}

/// A file without a name.
struct Temporary {
    file: File,
    directory: PathBuf,
}

impl Temporary {
    fn new(directory: PathBuf) -> Result<Self> {
        let file = tempfile::tempfile_in(&directory).map_err(|error| {
            let message = format!("no temporary file in {}", directory.display());
            Error::with_message(ErrorKind::from(&error), message).because(error)
        })?;
        Ok(Self { file, directory })
    }

    /// Writes what is not zero of `bytes`: the rest of the file is a hole. Says how much that was.
    ///
    /// # Errors
    /// `NoSpace` where it is more than `most`; what writing failed with.
    fn write_data(&self, bytes: &[u8], offset: u64, most: u64) -> Result<u64> {
        let mut taken = 0;
        for run in zero_runs(bytes, HOLE).filter(|run| !run.is_zero) {
            taken += run.range.len() as u64;
            if taken > most {
                let message = format!(
                    "it takes too much of the room in {} to be unpacked there on a guess",
                    self.directory.display()
                );
                return Err(Error::with_message(ErrorKind::NoSpace, message));
            }
            let start = offset + run.range.start as u64;
            let written = sys::write_all_at(&self.file, &bytes[run.range], start);
            written.map_err(|error: io::Error| {
                let directory = self.directory.display();
                let message = format!("it cannot be unpacked into {directory}");
                Error::with_message(ErrorKind::from(&error), message).because(error)
            })?;
        }
        Ok(taken)
    }
}

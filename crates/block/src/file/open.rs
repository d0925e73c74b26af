//! Opening files and block devices, and refusing what is neither.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use blockferry_sys::{self as sys, FileKind, OpenMode};

use super::{FileDevice, Handle, Lacks, Outdated};
use crate::{BlockLimits, Capabilities, Context, DeviceInfo, Error, ErrorKind, Operation, Result};

/// The bounds of the preferred request size, in bytes.
const PREFERRED: std::ops::RangeInclusive<u64> = 4096..=1 << 20;

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing, at the size that the device has.
    ReadWrite,
}

impl FileDevice {
    /// Opens an existing regular file or block device.
    ///
    /// # Errors
    /// What the open failed with, and `InvalidInput` when something else lies at `path`: a directory,
    /// a pipe, a terminal.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let name = name_of(path);
        let open = || {
            // A pipe would be waited for if it were opened to see what it is.
            refuse_others(kind_at(path)?)?;
            let write = access == Access::ReadWrite;
            let file = OpenOptions::new().read(true).write(write).open(path)?;
            Self::from_file(file, Arc::clone(&name))
        };
        open().map_err(|error| opening(error, &name))
    }

    /// Creates a regular file of size 0 that can grow, or makes an existing one empty. A block device
    /// that lies at `path` is opened for reading and writing as it is, never replaced.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create(path: &Path) -> Result<Self> {
        let name = name_of(path);
        let create = || {
            let is_new = match kind_at(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error.into()),
                Ok(kind) => {
                    refuse_others(kind)?;
                    false
                }
            };
            let mut options = OpenOptions::new();
            // Emptied only when it is known to be a regular file.
            let options = options
                .read(true)
                .write(true)
                .create(is_new)
                .truncate(false);
            let file = options.open(path)?;
            let mut device = Self::from_file(file, Arc::clone(&name))?;
            if !device.handle.is_block_device {
                device.make_empty(path, is_new)?;
            }
            Ok(device)
        };
        create().map_err(|error| opening(error, &name))
    }

    /// Takes over an open regular file or block device, for what it was opened for. `name` is what
    /// messages call it.
    ///
    /// # Errors
    /// `InvalidInput` when it is something else, or was opened for appending: then every write would
    /// go to the end, whatever its offset.
    pub fn from_file(file: File, name: impl Into<Arc<str>>) -> Result<Self> {
        let name = name.into();
        Self::take(file, &name).map_err(|error| opening(error, &name))
    }

    /// Takes over an open regular file that is to get new contents: it counts as empty and can grow.
    /// What it holds is removed before the first change, and not before.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file); `InvalidInput` also for a block device, whose contents cannot
    /// be removed, and `ReadOnly` for what was not opened for writing.
    pub fn replacing(file: File, name: impl Into<Arc<str>>) -> Result<Self> {
        let name = name.into();
        let take = || {
            let mut device = Self::take(file, &name)?;
            if device.handle.is_block_device {
                return Err(invalid("it is a block device, not a regular file"));
            }
            if !device.info.can(Capabilities::WRITE) {
                return Err(Error::new(ErrorKind::ReadOnly));
            }
            let is_empty = std::mem::take(&mut device.info.size) == 0;
            device.handle.size.store(0, Ordering::Release);
            device
                .handle
                .outdated
                .is
                .store(!is_empty, Ordering::Release);
            device.info.capabilities |= Capabilities::RESIZE | Capabilities::BORN_ZERO;
            Ok(device)
        };
        take().map_err(|error| opening(error, &name))
    }

    /// Lets a regular file change its size: by [`resize`](crate::BlockDevice::resize), and by writes
    /// past its end. Without it only a file that was created here can.
    #[must_use]
    pub fn growable(mut self) -> Self {
        if self.info.can(Capabilities::WRITE) && !self.handle.is_block_device {
            self.info.capabilities |= Capabilities::RESIZE;
        }
        self
    }

    fn take(file: File, name: &Arc<str>) -> Result<Self> {
        let mode = sys::open_mode(&file)?;
        if mode.write && mode.append {
            return Err(invalid("it was opened for appending"));
        }
        let facts = sys::inspect(&file)?;
        refuse_others(facts.kind)?;
        let mut info = DeviceInfo::new(Arc::clone(name), facts.size);
        info.capabilities = capabilities(mode);
        if mode.write && facts.kind == FileKind::Regular {
            info.capabilities |= Capabilities::COPY_FROM;
        }
        info.contexts = vec![Context::Allocation];
        info.limits.preferred = preferred(facts.preferred_block);
        let is_block_device = facts.kind == FileKind::BlockDevice;
        if is_block_device {
            describe_block_device(&file, &mut info)?;
        }
        let handle = Handle {
            is_block_device,
            sector: u64::from(info.limits.minimum),
            size: AtomicU64::new(info.size),
            in_memory: sys::lives_in_memory(&file),
            resized: AtomicBool::new(false),
            outdated: Outdated::default(),
            directory: Mutex::new(None),
            lacks: Lacks::default(),
            strangers: Mutex::default(),
            data_run: Mutex::default(),
            file,
        };
        Ok(Self {
            info,
            handle: Arc::new(handle),
        })
    }

    fn make_empty(&mut self, path: &Path, is_new: bool) -> Result<()> {
        self.handle.resize(0)?;
        self.info.size = 0;
        self.info.capabilities |= Capabilities::RESIZE | Capabilities::BORN_ZERO;
        if is_new && let Some(handle) = Arc::get_mut(&mut self.handle) {
            // A directory that cannot be opened for reading cannot be synced: nothing to be done.
            let directory = fs::canonicalize(path)
                .and_then(|path| File::open(path.parent().unwrap_or(Path::new("/"))));
            handle.directory = Mutex::new(directory.ok());
        }
        Ok(())
    }
}

fn describe_block_device(file: &File, info: &mut DeviceInfo) -> Result<()> {
    let facts = sys::inspect_block_device(file)?;
    info.size = facts.size;
    info.rotational = facts.rotational;
    let minimum = facts.logical_block.next_power_of_two();
    info.limits = BlockLimits {
        minimum,
        preferred: preferred(facts.physical_block.into()).max(minimum),
        ..info.limits
    };
    Ok(())
}

fn capabilities(mode: OpenMode) -> Capabilities {
    let reading = Capabilities::CACHE | Capabilities::MULTI_CONN;
    if !mode.write {
        return reading;
    }
    reading
        | Capabilities::WRITE
        | Capabilities::FLUSH
        | Capabilities::FUA
        | Capabilities::TRIM
        | Capabilities::ZERO
        | Capabilities::FAST_ZERO
}

fn preferred(asked: u64) -> u32 {
    let bytes = asked
        .clamp(*PREFERRED.start(), *PREFERRED.end())
        .next_power_of_two();
    u32::try_from(bytes).expect("within the bounds")
}

fn kind_at(path: &Path) -> io::Result<FileKind> {
    use std::os::unix::fs::FileTypeExt;
    let kind = fs::metadata(path)?.file_type();
    Ok(if kind.is_file() {
        FileKind::Regular
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_block_device() {
        FileKind::BlockDevice
    } else if kind.is_char_device() {
        FileKind::CharacterDevice
    } else if kind.is_fifo() {
        FileKind::Pipe
    } else if kind.is_socket() {
        FileKind::Socket
    } else {
        FileKind::Other
    })
}

fn refuse_others(kind: FileKind) -> Result<()> {
    let what = match kind {
        FileKind::Regular | FileKind::BlockDevice => return Ok(()),
        FileKind::Directory => "it is a directory",
        FileKind::Pipe => "it is a pipe",
        FileKind::CharacterDevice => "it is a character device",
        FileKind::Socket => "it is a socket",
        FileKind::Other => "it is something else",
    };
    Err(invalid(&format!(
        "{what}, not a regular file or a block device"
    )))
}

fn invalid(message: &str) -> Error {
    Error::with_message(ErrorKind::InvalidInput, message)
}

fn name_of(path: &Path) -> Arc<str> {
    Arc::from(path.to_string_lossy())
}

fn opening(error: Error, name: &Arc<str>) -> Error {
    error.during(Operation::Open).on(name)
}

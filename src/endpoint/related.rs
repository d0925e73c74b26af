//! The files that an image names: followed where the user has allowed it, and nowhere else.
//!
//! A name in an image is a stranger's. It is never a URL; a file is opened only if it really lies, after all
//! symbolic links, in a directory that the user has named; and what is opened is the very thing that was looked at.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    block::{
        BlockDevice, BoxFuture, ByteRange, Error, ErrorKind, FileDevice, Mapping, Operation, Result,
    },
    format::{self, Related, RelatedFile, RelatedImage, Role},
};

use blockferry_sys::{self as sys, FileKind, Place};

use super::{
    Endpoint, EndpointKind, FormatKind, Layer, Layers, OpenOptions,
    deep_chain::{link, on_its_own_stack},
    guess,
    identity::{Identity, identity},
    in_use::claim,
    printable,
};

/// How many files a chain can have.
const LONGEST_CHAIN: usize = 200;

/// How much memory the tables of one image of a chain may take, in bytes: those of the first, and the least that all
/// behind it get. The others get half of what the one before them gets, so that a long chain costs not much more.
const TABLE_MEMORY: usize = 16 << 20;
const LEAST_TABLE_MEMORY: usize = 256 << 10;

/// Opens what one image of a chain names.
pub(super) struct Relatives {
    /// Where files may lie, or the very files.
    allowed: Arc<[PathBuf]>,
    /// Where relative names begin; `None` for an image that is no file of this machine.
    directory: Option<PathBuf>,
    /// The images on the way here, this one last, as far as they can be told.
    chain: Vec<Identity>,
    /// All files of the whole chain that were opened, as far as they can be told.
    followed: Arc<Mutex<Vec<Identity>>>,
    /// The same files, open, in the order in which they were opened.
    layers: Arc<Mutex<Vec<Layer>>>,
    /// The image's own name, which the names in it are relative to.
    own: PathBuf,
    /// How many images there are on the way here.
    depth: usize,
    max_size: Option<u64>,
    table_memory: usize,
    /// Nobody has said that it is an image: its bytes look like one.
    is_guessed: bool,
}

impl Relatives {
    /// For the image in `device`, which `endpoint` is.
    pub(super) fn of(
        endpoint: &Endpoint,
        device: &Arc<dyn BlockDevice>,
        options: &OpenOptions,
    ) -> Self {
        let directory = match endpoint.kind() {
            EndpointKind::File(path) => Some(directory_of(path)),
            _ => None,
        };
        Self {
            allowed: options.allow_backing.clone().into(),
            directory,
            chain: identity_of(&**device).into_iter().collect(),
            followed: Arc::default(),
            layers: Arc::default(),
            own: match endpoint.kind() {
                EndpointKind::File(path) => path.clone(),
                _ => PathBuf::new(),
            },
            depth: 1,
            max_size: options.max_size,
            table_memory: TABLE_MEMORY,
            is_guessed: matches!(
                endpoint.format().kind,
                FormatKind::Probe | FormatKind::ProbeImage
            ),
        }
    }

    /// How the image is opened, for reading.
    pub(super) fn options(&self) -> format::OpenOptions {
        let mut options = format::OpenOptions::default();
        options.max_size = self.max_size;
        options.table_memory = self.table_memory;
        options
    }

    /// The files that were opened because an image of the chain names them: what they are, and behind `first`, which
    /// was there before them, the files themselves.
    pub(super) fn into_opened(self, first: Layer) -> (Vec<Identity>, Layers) {
        let mut layers = vec![first];
        layers.append(&mut lock(&self.layers));
        let followed = std::mem::take(&mut *lock(&self.followed));
        (followed, Layers(layers))
    }

    async fn follow(&self, file: &RelatedFile, writable: bool) -> Result<RelatedImage> {
        check_name(file)?;
        if self.allowed.is_empty() {
            return Err(not_allowed(file));
        }
        if writable && self.is_guessed {
            return Err(guessed(file));
        }
        if self.depth >= LONGEST_CHAIN {
            return Err(Error::with_message(
                ErrorKind::Corrupt,
                format!("it is a chain of more than {LONGEST_CHAIN} files"),
            ));
        }
        let (path, place) = self.find(file)?;
        let location = place.path()?;
        let name: Arc<str> = printable(location.as_os_str()).into();
        self.check_location(file, &place, &location)?;
        let failed = |error: Error| error.during(Operation::Open).on(&name);
        let opened = place.open(writable).map_err(|error| failed(error.into()))?;
        if writable {
            claim(&opened).map_err(failed)?;
        }
        let device = FileDevice::from_file(opened, Arc::clone(&name))?;
        let device: Arc<dyn BlockDevice> = match writable {
            true => Arc::new(device.growable()),
            false => Arc::new(device),
        };
        let mut chain = self.chain.clone();
        if let Some(identity) = identity_of(&*device) {
            if chain.contains(&identity) {
                let message = format!("it has {file}, which is in its chain already");
                return Err(Error::with_message(ErrorKind::Corrupt, message));
            }
            chain.push(identity);
            lock(&self.followed).push(identity);
        }
        let mut layer = Layer {
            role: Some(file.role),
            depth: match file.role {
                Role::Backing => self.depth,
                _ => self.depth - 1,
            },
            path: beside(&self.own, &file.name),
            bytes: Arc::clone(&device),
            image: None,
        };
        let FormatKind::Image(format) = format_of(file, &*device).await.map_err(failed)? else {
            lock(&self.layers).push(layer);
            return Ok(device.into());
        };
        let next = Self {
            allowed: Arc::clone(&self.allowed),
            directory: Some(directory_of(&path)),
            chain,
            followed: Arc::clone(&self.followed),
            layers: Arc::clone(&self.layers),
            own: layer.path.clone(),
            depth: self.depth + 1,
            max_size: self.max_size,
            table_memory: (self.table_memory / 2).max(LEAST_TABLE_MEMORY),
            // Nothing behind it is written.
            is_guessed: false,
        };
        let depth = next.depth;
        let opening = async move { format.open(device, &next, &next.options()).await };
        let image = on_its_own_stack(opening).await.map_err(failed)?;
        let details = Some(image.details());
        layer.image = Some(Arc::clone(&image));
        lock(&self.layers).push(layer);
        let device = link(depth, image);
        Ok(RelatedImage { device, details })
    }

    /// The path of the file that is meant, and the place that it leads to.
    fn find(&self, file: &RelatedFile) -> Result<(PathBuf, Place)> {
        let name = Path::new(OsStr::from_bytes(&file.name));
        let paths: Vec<PathBuf> = match &self.directory {
            // The name takes the place of all before it where it is absolute.
            Some(directory) => vec![directory.join(name)],
            None if name.is_absolute() => vec![name.to_owned()],
            None => self.allowed.iter().map(|place| place.join(name)).collect(),
        };
        let mut failure = None;
        for path in paths {
            match Place::find(&path) {
                Ok(place) => return Ok((path, place)),
                Err(error) => failure = failure.or(Some((path, error))),
            }
        }
        // Whether there is something elsewhere is nothing that an image finds out.
        let is_ours = |path: &Path| {
            let directory = fs::canonicalize(directory_of(path));
            directory.is_ok_and(|directory| self.allows(&directory).is_some())
        };
        Err(match failure {
            Some((path, error)) if is_ours(&path) => {
                let name = Arc::from(printable(path.as_os_str()));
                let error = Error::from(error).during(Operation::Open).on(&name);
                Error::with_message(error.kind(), format!("it has {file}: {error}"))
            }
            _ => not_allowed(file),
        })
    }

    /// Checks that what lies at `location` may be opened.
    fn check_location(&self, file: &RelatedFile, place: &Place, location: &Path) -> Result<()> {
        let kind = sys::inspect(place)?.kind;
        match self.allows(location) {
            None => {
                let place = printable(location.as_os_str());
                let message = format!(
                    "it has {file}, which lies at {place} and is not opened unless that is allowed: --allow-backing DIR"
                );
                Err(Error::with_message(ErrorKind::NotPermitted, message))
            }
            Some(Allowed::Itself) if kind == FileKind::BlockDevice => Ok(()),
            Some(_) if kind == FileKind::Regular => Ok(()),
            Some(_) => {
                let message = format!("it has {file}, which is not a regular file");
                Err(Error::with_message(ErrorKind::NotPermitted, message))
            }
        }
    }

    fn allows(&self, location: &Path) -> Option<Allowed> {
        let allowed = self.allowed.iter();
        let mut allowed = allowed.filter_map(|place| fs::canonicalize(place).ok());
        let found = allowed.find(|place| location.starts_with(place))?;
        Some(match found == location {
            true => Allowed::Itself,
            false => Allowed::Inside,
        })
    }
}

/// Why a file may be opened.
enum Allowed {
    /// It lies in a directory that was named.
    Inside,
    /// It was named itself.
    Itself,
}

impl Related for Relatives {
    fn open<'a>(
        &'a self,
        file: &'a RelatedFile,
        writable: bool,
    ) -> BoxFuture<'a, Result<RelatedImage>> {
        Box::pin(async move {
            let writable = writable && file.role == Role::Data;
            let followed = self.follow(file, writable).await;
            followed.map_err(|error| error.during(Operation::Open))
        })
    }
}

/// Refuses what can be no file's name, or would be something else to others: `nbd:...`, `json:{...}`, `http://...`.
fn check_name(file: &RelatedFile) -> Result<()> {
    let name = &file.name;
    let refuse = |why: &str| {
        let message = format!("it has {file}, which {why}");
        Err(Error::with_message(ErrorKind::NotPermitted, message))
    };
    if name.is_empty() {
        let what = match file.role {
            Role::Backing => "a backing file",
            Role::Data => "a data file",
            Role::Extent => "an extent's file",
        };
        let message = format!("it needs {what} and does not name it");
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    if name.contains(&0) {
        return refuse("is not the name of a file");
    }
    // qemu takes what stands before the first colon for a protocol, unless a slash comes first.
    let end = name.iter().position(|byte| matches!(byte, b':' | b'/'));
    if end.is_some_and(|end| name[end] == b':') {
        return refuse(
            "is not the name of a file but a protocol's: an image's names are never followed there",
        );
    }
    Ok(())
}

fn not_allowed(file: &RelatedFile) -> Error {
    let message =
        format!("it has {file}, which is not opened unless it is allowed: --allow-backing DIR");
    Error::with_message(ErrorKind::NotPermitted, message)
}

/// A guest that has a raw disk can make it begin like an image that names any file.
fn guessed(file: &RelatedFile) -> Error {
    let message = format!(
        "it has {file}, which is not written when the format was only guessed: a guest may have written what its \
         disk begins with; -f says that it is an image"
    );
    Error::with_message(ErrorKind::NotPermitted, message)
}

/// The format of a file: what the image says, or what it begins with.
async fn format_of(file: &RelatedFile, device: &dyn BlockDevice) -> Result<FormatKind> {
    match (file.role, file.format.as_deref()) {
        (Role::Data | Role::Extent, _) => Ok(FormatKind::Raw),
        (_, Some("raw")) => Ok(FormatKind::Raw),
        (_, None) if is_regular(device) => guess::probed(device).await,
        (_, None) => Ok(FormatKind::Raw),
        (_, Some(other)) => {
            if let Ok(format) = other.parse() {
                return Ok(FormatKind::Image(format));
            }
            let other = printable(OsStr::new(other));
            let message =
                format!("it is said to be in the format \"{other}\", which is not supported");
            Err(Error::with_message(ErrorKind::Unsupported, message))
        }
    }
}

fn lock<T>(list: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name that `name` has beside the file `own`, as qemu puts them together: it takes the place of what is behind
/// the last slash.
pub(crate) fn beside(own: &Path, name: &[u8]) -> PathBuf {
    if name.starts_with(b"/") {
        return PathBuf::from(OsStr::from_bytes(name));
    }
    let own = own.as_os_str().as_bytes();
    let directory = own.iter().rposition(|byte| *byte == b'/');
    let directory = &own[..directory.map_or(0, |slash| slash + 1)];
    PathBuf::from(OsString::from_vec([directory, name].concat()))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

fn is_regular(device: &dyn BlockDevice) -> bool {
    matches!(identity_of(device), None | Some(Identity::File { .. }))
}

/// What tells the file that `device` is from all others.
pub(super) fn identity_of(device: &dyn BlockDevice) -> Option<Identity> {
    let Mapping::File { fd, .. } = device.mapping(ByteRange::between(0, 1)) else {
        return None;
    };
    let file = fs::File::from(fd.try_clone_to_owned().ok()?);
    identity(&file.metadata().ok()?)
}

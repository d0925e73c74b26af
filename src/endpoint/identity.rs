//! Which files and devices endpoints are, so that one is not taken for another.

use std::{
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
};

use blockferry_sys as sys;

use super::{Endpoint, EndpointKind};

/// Whether both endpoints certainly are one image: the same export, or a file or device in common.
#[must_use]
pub fn is_same_image(one: &Endpoint, other: &Endpoint) -> bool {
    if let (EndpointKind::Nbd(one), EndpointKind::Nbd(other)) = (one.kind(), other.kind()) {
        return one == other;
    }
    let others = identities(other, &io::stdout());
    let one = identities(one, &io::stdin());
    one.iter().any(|file| others.contains(file))
}

/// What tells a regular file or a block device from all others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    File { device: u64, inode: u64 },
    Device(u64),
}

/// The files that an image consists of, as far as they can be told.
pub(super) fn identities(endpoint: &Endpoint, standard: &dyn AsFd) -> Vec<Identity> {
    let of_fd = |fd: OwnedFd| File::from(fd).metadata().ok();
    let metadata: Vec<Option<Metadata>> = match endpoint.kind() {
        EndpointKind::File(path) => vec![fs::metadata(path).ok()],
        EndpointKind::Split(paths) => paths.iter().map(|path| fs::metadata(path).ok()).collect(),
        EndpointKind::Part { of, .. } => return identities(of, standard),
        EndpointKind::Joined(parts) => {
            let parts = parts.iter();
            return parts.flat_map(|part| identities(part, standard)).collect();
        }
        EndpointKind::Standard => {
            vec![standard.as_fd().try_clone_to_owned().ok().and_then(of_fd)]
        }
        EndpointKind::Descriptor(number) => {
            vec![sys::duplicate_inherited(*number).ok().and_then(of_fd)]
        }
        _ => Vec::new(),
    };
    let metadata = metadata.iter().flatten();
    metadata.filter_map(identity).collect()
}

pub(super) fn identity(metadata: &Metadata) -> Option<Identity> {
    if metadata.file_type().is_block_device() {
        Some(Identity::Device(metadata.rdev()))
    } else if metadata.is_file() {
        Some(Identity::File {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn file(path: PathBuf) -> Endpoint {
        Endpoint::from(path)
    }

    #[test]
    fn one_file_is_itself_under_every_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let one = directory.path().join("one");
        fs::write(&one, "").expect("written");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&one, &link).expect("linked");
        let other = directory.path().join("other");
        fs::write(&other, "").expect("written");
        assert!(is_same_image(&file(one.clone()), &file(link)));
        let joined = EndpointKind::Split(vec![one.clone(), other.clone()]);
        let joined = Endpoint::new("joined", joined);
        assert!(is_same_image(&joined, &joined.clone()));
        assert!(is_same_image(&joined, &file(other.clone())));
        assert!(is_same_image(&file(one.clone()), &joined));
        let memory: Endpoint = "memory:1M".parse().expect("an endpoint");
        assert!(!is_same_image(&memory, &memory.clone()));
        assert!(!is_same_image(&file(one.clone()), &file(other)));
        assert!(!is_same_image(
            &file(one),
            &file(directory.path().join("none"))
        ));
    }

    #[test]
    fn a_character_device_is_never_an_image() {
        let null = file(PathBuf::from("/dev/null"));
        assert!(!is_same_image(&null, &null.clone()));
    }
}

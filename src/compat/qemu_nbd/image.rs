//! The image that is served: a file or another endpoint by its name, or what `--image-opts` says.

use std::{ffi::OsStr, path::PathBuf};

use crate::{
    cli::failure::Failure,
    endpoint::{Endpoint, EndpointKind},
};

use super::super::qemu::{block_options::Image, credentials::Objects, format, names};

/// The image `name`, in `format` where one is given.
pub(super) fn named(
    name: &OsStr,
    format: Option<&str>,
    objects: &Objects,
) -> Result<Image, Failure> {
    if name.to_str().is_some_and(|name| name.starts_with("json:")) {
        return names::named(name, format, objects);
    }
    let source = seekable(name)?;
    let source = format::interpreted(source, format).map_err(|why| {
        let name = names::could_not_open(&crate::endpoint::printable(name));
        Failure::usage(why).about(&name)
    })?;
    Ok(Image::whole(source))
}

/// An endpoint that can be read anywhere.
fn seekable(name: &OsStr) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::parse(name)?;
    match endpoint.kind() {
        // A hyphen is a file of that name to qemu-nbd.
        EndpointKind::Standard => Ok(Endpoint::from(PathBuf::from("./-"))),
        EndpointKind::Null(None) | EndpointKind::Directory(_) => {
            Err(Failure::usage(format!("{endpoint} is not an image")))
        }
        _ => Ok(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_file_may_be_named_with_its_protocol() {
        let named = |name: &str| named(name.as_ref(), None, &Objects::default());
        let path = |name: &str| match named(name).expect("good").source.kind() {
            EndpointKind::File(path) => path.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(path("file:sample:4G"), Path::new("sample:4G"));
        assert_eq!(path("-"), Path::new("./-"));
        let json = r#"json:{"driver": "raw", "file": {"driver": "file", "filename": "x"}}"#;
        assert_eq!(path(json), Path::new("x"));
        let uri = named("nbd://host/x").expect("good");
        assert!(matches!(uri.source.kind(), EndpointKind::Nbd(_)));
        assert!(named("json:{}").is_err());
        assert!(named("null:").is_err());
    }
}

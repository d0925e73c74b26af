//! The image that is served: a file by its name, or what `--image-opts` says; and what format it seems to have.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use crate::{
    cli::failure::Failure,
    endpoint::{Endpoint, EndpointKind, FormatKind, printable},
    format::{self, PROBE_LENGTH},
};

use super::keywords::Keywords;

/// What is served.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) source: Endpoint,
    pub(super) read_only: bool,
}

impl Image {
    fn whole(source: Endpoint) -> Self {
        Self {
            source,
            read_only: false,
        }
    }

    /// The image `name`, in `format` where one is given.
    pub(super) fn named(name: &OsStr, format: Option<&str>) -> Result<Self, Failure> {
        let text = name.to_str().unwrap_or_default();
        if text.starts_with("json:") {
            return Err(Failure::usage(
                "images in JSON are not supported; write --image-opts key=value,key=value",
            ));
        }
        Ok(Self::whole(interpreted(seekable(name)?, format)?))
    }

    /// The image that `--image-opts` describes.
    pub(super) fn described(text: &str) -> Result<Self, Failure> {
        let mut keywords = Keywords::parse(text, Some("driver"))?;
        let driver = keywords.take("driver");
        let (format, mut protocol) = match driver.as_deref() {
            Some("file" | "host_device") => (Some("raw"), keywords),
            format => {
                let protocol = keywords.take_inner("file");
                return Self::formatted(format, keywords, protocol);
            }
        };
        let read_only = protocol.take_switch("read-only")?.unwrap_or(false);
        let source = interpreted(file(protocol)?, format)?;
        Ok(Self {
            read_only,
            ..Self::whole(source)
        })
    }

    /// An image of `format` in what `protocol` describes.
    fn formatted(
        format: Option<&str>,
        mut keywords: Keywords,
        mut protocol: Keywords,
    ) -> Result<Self, Failure> {
        if let Some(format) = format {
            known_format(format)?;
        }
        let offset = keywords.take_bytes("offset")?.unwrap_or(0);
        let size = keywords.take_bytes("size")?;
        let read_only = keywords.take_switch("read-only")?.unwrap_or(false);
        ignore_speed(&mut keywords)?;
        keywords.end("--image-opts")?;
        let driver = protocol.take("driver");
        if !matches!(driver.as_deref(), None | Some("file" | "host_device")) {
            let driver = printable(driver.unwrap_or_default().as_ref());
            return Err(Failure::usage(format!(
                "--image-opts: the driver '{driver}' is not supported for file; file is"
            )));
        }
        let source = interpreted(file(protocol)?, format)?;
        let source = part(source, offset, size);
        Ok(Self { source, read_only })
    }
}

/// What `whole` has from `offset` on: `length` bytes, or all.
pub(super) fn part(whole: Endpoint, offset: u64, length: Option<u64>) -> Endpoint {
    if offset == 0 && length.is_none() {
        return whole;
    }
    let name = whole.to_string();
    let of = Box::new(whole);
    Endpoint::new(name, EndpointKind::Part { of, offset, length })
}

/// The file that the keywords of the driver `file` name.
fn file(mut keywords: Keywords) -> Result<Endpoint, Failure> {
    let path = keywords.take("filename").ok_or_else(|| {
        Failure::usage("--image-opts: a file has no name: file.filename=PATH is missing")
    })?;
    ignore_speed(&mut keywords)?;
    // Nothing here locks a file.
    keywords.take("locking");
    keywords.end("--image-opts")?;
    Ok(Endpoint::from(PathBuf::from(path)))
}

/// Takes what changes nothing but how fast an image is.
fn ignore_speed(keywords: &mut Keywords) -> Result<(), Failure> {
    keywords.take("aio");
    keywords.take("node-name");
    keywords.take_switch("cache.direct")?;
    keywords.take_switch("cache.no-flush")?;
    Ok(())
}

/// An endpoint that can be read anywhere.
fn seekable(name: &OsStr) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::parse(name)?;
    match endpoint.kind() {
        // A hyphen is a file of that name to qemu-nbd.
        EndpointKind::Standard => Ok(Endpoint::from(PathBuf::from("./-"))),
        EndpointKind::Null(None) | EndpointKind::Directory(_) => {
            Err(Failure::usage(format!("{endpoint} is no image")))
        }
        _ => Ok(endpoint),
    }
}

/// The source as an image in the format that was said, or that its file begins as.
fn interpreted(source: Endpoint, format: Option<&str>) -> Result<Endpoint, Failure> {
    let kind = match (format, source.kind()) {
        (Some(format), _) => known_format(format)?,
        (None, EndpointKind::File(path)) => match probe(path) {
            None => FormatKind::Raw,
            Some(format) => match format.parse() {
                Ok(format) => FormatKind::Image(format),
                Err(()) => {
                    return Err(Failure::usage(format!(
                        "{source}: {format} is not read yet; -f raw serves its bytes"
                    )));
                }
            },
        },
        _ => FormatKind::Raw,
    };
    Ok(source.interpreted(kind))
}

fn known_format(format: &str) -> Result<FormatKind, Failure> {
    match format {
        "raw" => Ok(FormatKind::Raw),
        "bochs" | "cloop" | "dmg" | "luks" | "parallels" | "qcow" | "qed" | "vvfat" => {
            Err(Failure::usage(format!(
                "{format} is not read yet; -f raw serves the bytes of a file"
            )))
        }
        _ => {
            if let Ok(format) = format.parse() {
                return Ok(FormatKind::Image(format));
            }
            let format = printable(format.as_ref());
            Err(Failure::usage(format!("Unknown driver '{format}'")))
        }
    }
}

/// The format that the file at `path` seems to have; `None` for bytes. What cannot be read is found out when
/// it is opened.
fn probe(path: &Path) -> Option<&'static str> {
    let metadata = path.metadata().ok()?;
    let kind = metadata.file_type();
    // Opening a pipe would wait for its other end.
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let mut start = Vec::with_capacity(PROBE_LENGTH);
    let file = File::open(path).ok()?;
    file.take(PROBE_LENGTH as u64)
        .read_to_end(&mut start)
        .ok()?;
    let format = format::probe(&start);
    // What a guest wrote to a disk is not believed: only that it may not be bytes.
    match format {
        Some("qcow2") if !kind.is_file() => None,
        format => format,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let failure = Image::described(text).expect_err("refused");
        failure.to_string()
    }

    #[test]
    fn image_options_name_a_file_and_a_part_of_it() {
        let text = "driver=raw,offset=1M,size=2M,read-only=on,file.driver=file,file.filename=/x,,y";
        let image = Image::described(text).expect("good");
        assert!(image.read_only);
        let EndpointKind::Part { of, offset, length } = image.source.kind() else {
            panic!("{:?}", image.source);
        };
        assert_eq!((*offset, *length), (1 << 20, Some(2 << 20)));
        assert!(matches!(of.kind(), EndpointKind::File(path) if path == Path::new("/x,y")));
        let image = Image::described("file,filename=/x,aio=native,cache.direct=on").expect("good");
        assert!(matches!(image.source.kind(), EndpointKind::File(_)));
    }

    #[test]
    fn image_options_that_cannot_be_honoured_are_refused_by_name() {
        for (text, named) in [
            ("driver=raw", "file.filename"),
            ("driver=qed,file.filename=x", "qed is not read yet"),
            ("driver=bogus,file.filename=x", "Unknown driver 'bogus'"),
            ("driver=raw,file.driver=nbd,file.path=x", "'nbd'"),
            ("driver=raw,file.filename=x,bogus=1", "'bogus'"),
            ("driver=raw,file.filename=x,file.bogus=1", "'bogus'"),
            ("{\"driver\":\"raw\"}", "JSON"),
        ] {
            let refused = refusal(text);
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }

    #[test]
    fn what_a_file_begins_with_tells_its_format() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let named = |format| Image::named(path.as_os_str(), format);
        std::fs::write(&path, b"QED\0").expect("room");
        let refused = named(None).expect_err("qed").to_string();
        assert!(refused.contains("qed is not read yet"), "{refused}");
        for (bytes, kind) in [
            (
                &b"QFI\xfb\0\0\0\x03"[..],
                FormatKind::Image(format::Format::Qcow2),
            ),
            (b"", FormatKind::Raw),
            (b"QFI", FormatKind::Raw),
            (&[0; 4096], FormatKind::Raw),
        ] {
            std::fs::write(&path, bytes).expect("room");
            let found = named(None).expect("an image").source.format().kind;
            assert_eq!(found, kind, "{bytes:?}");
            let said = named(Some("raw")).expect("its bytes").source.format().kind;
            assert_eq!(said, FormatKind::Raw);
        }
    }

    #[test]
    fn a_file_may_be_named_with_its_protocol() {
        let path = |name: &str| match Image::named(name.as_ref(), None)
            .expect("good")
            .source
            .kind()
        {
            EndpointKind::File(path) => path.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(path("file:sample:4G"), Path::new("sample:4G"));
        assert_eq!(path("-"), Path::new("./-"));
        let uri = Image::named("nbd://host/x".as_ref(), None).expect("good");
        assert!(matches!(uri.source.kind(), EndpointKind::Nbd(_)));
        assert!(Image::named("json:{}".as_ref(), None).is_err());
        assert!(Image::named("null:".as_ref(), None).is_err());
    }
}

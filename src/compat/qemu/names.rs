//! Names of images as QEMU reads them: what stands before a colon is a protocol, unless a slash comes first.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::FileTypeExt},
    path::{Path, PathBuf},
};

use crate::{
    cli::failure::Failure,
    endpoint::{Endpoint, EndpointKind, printable},
    proto::{NbdUri, Transport, is_nbd_uri},
};

use super::{
    block_options::{Image, Reader},
    credentials::Objects,
    format,
    keywords::Keywords,
};

/// The image `name`, in `format` where one is given.
pub(in crate::compat) fn named(
    name: &OsStr,
    format: Option<&str>,
    objects: &Objects,
) -> Result<Image, Failure> {
    let shown = printable(name);
    let read = || match name.to_str().and_then(|text| text.strip_prefix("json:")) {
        Some(json) => {
            let mut keywords = Keywords::of_json(json)?;
            if let Some(format) = format {
                keywords.set("driver", format);
            }
            Reader::new(&shown, objects).image(keywords)
        }
        None => {
            let endpoint = protocol(name).map_err(Failure::usage)?;
            let source = match format {
                Some("file" | "host_device" | "nbd") => endpoint,
                _ => format::interpreted(endpoint, format).map_err(Failure::usage)?,
            };
            Ok(Image::whole(source))
        }
    };
    read().map_err(|failure| failure.about(&could_not_open(&shown)))
}

/// What begins the message of an image that is not opened.
pub(in crate::compat) fn could_not_open(shown: &str) -> String {
    format!("Could not open '{shown}'")
}

/// The bytes that a name stands for.
pub(super) fn protocol(name: &OsStr) -> Result<Endpoint, String> {
    let shown = printable(name);
    let bytes = name.as_bytes();
    let end = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
    let kind = match end.filter(|end| bytes[*end] == b':') {
        None => file(Path::new(name))?,
        Some(end) => {
            let rest = OsStr::from_bytes(&bytes[end + 1..]);
            match (&bytes[..end], name.to_str()) {
                (b"file", _) => file(Path::new(rest))?,
                (b"host_device", _) => device(Path::new(rest))?,
                (_, Some(text)) if is_nbd_uri(text) && text[end..].starts_with("://") => {
                    EndpointKind::Nbd(text.parse::<NbdUri>().map_err(|error| error.to_string())?)
                }
                (b"nbd", Some(text)) => EndpointKind::Nbd(legacy(&text[end + 1..])?),
                (scheme, _) => {
                    let scheme = printable(OsStr::from_bytes(scheme));
                    return Err(format!(
                        "Unknown protocol '{scheme}' (a file of that name is ./{shown})"
                    ));
                }
            }
        }
    };
    Ok(Endpoint::new(shown, kind))
}

/// A file, a block device, or a character device that can be read as one.
pub(super) fn file(path: &Path) -> Result<EndpointKind, String> {
    if path.as_os_str().is_empty() {
        return Err("The 'file' block driver requires a file name".to_owned());
    }
    if path.is_dir() {
        let path = printable(path.as_os_str());
        return Err(format!(
            "'file' driver requires '{path}' to be a regular file"
        ));
    }
    Ok(EndpointKind::File(path.to_owned()))
}

/// A block device.
pub(super) fn device(path: &Path) -> Result<EndpointKind, String> {
    let kind = fs::metadata(path).map(|metadata| metadata.file_type());
    if kind.is_ok_and(|kind| !kind.is_block_device() && !kind.is_char_device()) {
        let path = printable(path.as_os_str());
        return Err(format!(
            "'host_device' driver requires '{path}' to be either a character or block device"
        ));
    }
    file(path)
}

/// The server of `nbd:HOST:PORT[:exportname=NAME]` or `nbd:unix:PATH[:exportname=NAME]`, behind `nbd:`.
fn legacy(text: &str) -> Result<NbdUri, String> {
    const EXPORT: &str = ":exportname=";
    let (place, export) = text.split_once(EXPORT).unwrap_or((text, ""));
    let transport = match place.strip_prefix("unix:") {
        Some(path) => Transport::Unix {
            path: PathBuf::from(path),
        },
        None => {
            let wrong = || format!("error parsing address '{}'", printable(place.as_ref()));
            let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
            let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
            Transport::Tcp {
                host: bare.unwrap_or(host).to_owned(),
                port: port.parse().map_err(|_| wrong())?,
            }
        }
    };
    Ok(NbdUri {
        transport,
        tls: false,
        user: None,
        export: export.to_owned(),
        parameters: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> EndpointKind {
        let image = named(name.as_ref(), Some("raw"), &Objects::default());
        image.expect(name).source.kind().clone()
    }

    fn refusal(name: &str) -> String {
        let refused = named(name.as_ref(), None, &Objects::default());
        refused.expect_err(name).to_string()
    }

    fn uri(name: &str) -> String {
        match kind(name) {
            EndpointKind::Nbd(uri) => uri.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_stands_before_a_colon_is_a_protocol_unless_a_slash_comes_first() {
        for (name, path) in [
            ("disk", "disk"),
            ("./x:y", "./x:y"),
            ("/a/b:c", "/a/b:c"),
            ("file:x:y", "x:y"),
            ("-", "-"),
            ("nbd", "nbd"),
        ] {
            let kind = kind(name);
            assert!(
                matches!(&kind, EndpointKind::File(found) if found.as_os_str() == path),
                "{name}: {kind:?}"
            );
        }
        for name in ["x:y", "sample:4G", "null:", "http://x/", "memory:1M"] {
            let refused = refusal(name);
            assert!(
                refused.contains(&format!("Could not open '{name}': Unknown protocol")),
                "{refused}"
            );
        }
        assert!(refusal("").contains("requires a file name"));
        assert!(refusal("/").contains("regular file"));
    }

    #[test]
    fn servers_are_named_in_two_ways() {
        assert_eq!(uri("nbd:host:1"), "nbd://host:1/");
        assert_eq!(uri("nbd:[::1]:7:exportname=a:b"), "nbd://[::1]:7/a:b");
        assert_eq!(uri("nbd:unix:/s:exportname=x"), "nbd+unix:///x?socket=/s");
        assert_eq!(uri("nbd://h/x"), "nbd://h/x");
        assert_eq!(uri("nbd+unix:///x?socket=/s"), "nbd+unix:///x?socket=/s");
        assert!(refusal("nbd:foo").contains("error parsing address 'foo'"));
        assert!(refusal("nbd:h:99999").contains("error parsing address"));
    }

    #[test]
    fn a_name_may_be_json() {
        let name = r#"json:{"driver":"raw","file":{"driver":"file","filename":"a:b"}}"#;
        let image = named(name.as_ref(), None, &Objects::default()).expect("good");
        assert!(
            matches!(image.source.kind(), EndpointKind::File(path) if path.as_os_str() == "a:b")
        );
        assert!(refusal("json:{").contains("Could not open 'json:{': Could not parse"));
        assert!(refusal("json:[]").contains("Invalid JSON object"));
    }
}

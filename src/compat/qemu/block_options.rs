//! Images that keys describe: a format's driver, and below it in `file` the protocol's, or a format again.

use std::path::{Path, PathBuf};

use crate::{
    cli::failure::Failure,
    endpoint::{Endpoint, EndpointKind, FormatKind, ImageFormat, printable},
    format::Format,
    proto::{DEFAULT_PORT, NbdUri, Transport},
};

use super::{
    credentials::{Objects, Side},
    format,
    keywords::Keywords,
    names::{could_not_open, device, file, protocol},
};

/// How many drivers may stand on each other.
const DEEPEST: usize = 16;

/// What a null device holds unless it is said, in bytes.
const NULL_SIZE: u64 = 1 << 30;

/// What changes how fast an image is, or what is done with it, and not what is in it. Files are not locked here.
const WITHOUT_EFFECT: &[&str] = &[
    "aio",
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "cache-clean-interval",
    "cache-size",
    "detect-zeroes",
    "discard",
    "discard-no-unref",
    "drop-cache",
    "force-share",
    "l2-cache-entry-size",
    "l2-cache-size",
    "latency-ns",
    "lazy-refcounts",
    "locking",
    "node-name",
    "open-timeout",
    "overlap-check",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pr-manager",
    "read-zeroes",
    "reconnect-delay",
    "refcount-cache-size",
    "x-check-cache-dropped",
];

/// An image, not yet opened.
#[derive(Debug)]
pub(in crate::compat) struct Image {
    pub(in crate::compat) source: Endpoint,
    /// Whether it was said that it is not to be written.
    pub(in crate::compat) read_only: bool,
}

impl Image {
    pub(in crate::compat) fn whole(source: Endpoint) -> Self {
        Self {
            source,
            read_only: false,
        }
    }
}

/// The image that the operand of `--image-opts` describes.
pub(in crate::compat) fn described(text: &str, objects: &Objects) -> Result<Image, Failure> {
    let shown = printable(text.as_ref());
    let read = || {
        // A lone word would be the name of a node of QEMU's.
        let keywords = Keywords::parse(text, Some("node"))?;
        Reader::new(&shown, objects).image(keywords)
    };
    read().map_err(|failure| failure.about(&could_not_open(&shown)))
}

/// Reads the description of one image.
pub(super) struct Reader<'a> {
    /// What the user wrote, for messages.
    shown: &'a str,
    objects: &'a Objects,
}

impl<'a> Reader<'a> {
    pub(super) fn new(shown: &'a str, objects: &'a Objects) -> Self {
        Self { shown, objects }
    }

    /// The image of all keys.
    pub(super) fn image(&self, keywords: Keywords) -> Result<Image, Failure> {
        self.node(keywords, DEEPEST)
    }

    fn node(&self, mut keywords: Keywords, depth: usize) -> Result<Image, Failure> {
        let driver = keywords.take("driver");
        if let Some(node) = keywords.take("node") {
            return Err(no_such_node(&node));
        }
        let driver = driver.as_deref();
        if let Some("file" | "host_device" | "nbd" | "null-co") = driver {
            return self.protocol_node(driver, keywords);
        }
        let format = driver
            .map(format::known)
            .transpose()
            .map_err(Failure::usage)?;
        let mut below = self.below(driver, &mut keywords, depth)?;
        below.read_only |= keywords.take_switch("read-only")?.unwrap_or(false);
        let part = match format {
            Some(FormatKind::Raw) => {
                let offset = size(&mut keywords, "offset")?.unwrap_or(0);
                Some((offset, size(&mut keywords, "size")?))
            }
            _ => None,
        };
        let may_be_qcow2 = matches!(format, None | Some(FormatKind::Image(Format::Qcow2)));
        let without_backing = may_be_qcow2 && take_no_backing(&mut keywords)?;
        ignore(&mut keywords);
        if let Some(key) = keywords.first() {
            let driver = driver.unwrap_or("raw");
            return Err(Failure::usage(format!(
                "Block format '{driver}' does not support the option '{key}'"
            )));
        }
        let is_bytes = below.source.is_bytes();
        below.source = match (format, part) {
            // Raw on a format is the disk in it.
            (Some(FormatKind::Raw), Some((offset, length))) => {
                part_of(below.source, offset, length)
            }
            (Some(format), _) if is_bytes => below.source.interpreted(format),
            (Some(format), _) => self.all_of(below.source).interpreted(format),
            (None, _) if is_bytes => {
                format::interpreted(below.source, None).map_err(Failure::usage)?
            }
            (None, _) => below.source,
        };
        if without_backing {
            let format = ImageFormat {
                without_backing,
                ..below.source.format().clone()
            };
            below.source = below.source.interpreted(format);
        }
        Ok(below)
    }

    /// What lies in `file` below a format's driver.
    fn below(
        &self,
        driver: Option<&str>,
        keywords: &mut Keywords,
        depth: usize,
    ) -> Result<Image, Failure> {
        if depth == 0 {
            return Err(Failure::usage("too many drivers stand on each other"));
        }
        let below = keywords.take_inner("file");
        if let Some(node) = keywords.take("file") {
            return Err(no_such_node(&node));
        }
        if below.is_empty() {
            return Err(Failure::usage(match driver {
                None => "Must specify either driver or file",
                Some(_) => "A block device must be specified for \"file\"",
            }));
        }
        match (below.has("driver"), below.has("filename")) {
            (true, _) => self.node(below, depth - 1),
            (false, true) => self.protocol_node(None, below),
            (false, false) => self.protocol_node(Some("file"), below),
        }
    }

    /// The bytes of a protocol; without a driver the name tells which.
    fn protocol_node(
        &self,
        driver: Option<&str>,
        mut keywords: Keywords,
    ) -> Result<Image, Failure> {
        let read_only = keywords.take_switch("read-only")?.unwrap_or(false);
        let kind = match driver {
            Some("nbd") => EndpointKind::Nbd(self.server(&mut keywords)?),
            Some("null-co") => {
                let size = size(&mut keywords, "size")?;
                EndpointKind::Null(Some(size.unwrap_or(NULL_SIZE)))
            }
            _ => {
                let name = keywords.take("filename").unwrap_or_default();
                // A driver knows no protocols, and takes its own away.
                let own = |prefix| Path::new(name.strip_prefix(prefix).unwrap_or(&name));
                let kind = match driver {
                    None => protocol(name.as_ref()).map(|endpoint| endpoint.kind().clone()),
                    Some("host_device") => device(own("host_device:")),
                    Some(_) => file(own("file:")),
                };
                kind.map_err(Failure::usage)?
            }
        };
        ignore(&mut keywords);
        if let Some(key) = keywords.first() {
            let driver = driver.unwrap_or("file");
            return Err(Failure::usage(format!(
                "Block protocol '{driver}' doesn't support the option '{key}'"
            )));
        }
        Ok(Image {
            source: Endpoint::new(self.shown, kind),
            read_only,
        })
    }

    fn server(&self, keywords: &mut Keywords) -> Result<NbdUri, Failure> {
        let mut server = keywords.take_inner("server");
        let kind = server.take("type");
        let (old_path, old_host) = (keywords.take("path"), keywords.take("host"));
        let old_port = keywords.take("port");
        let path = server.take("path").or(old_path);
        let host = server.take("host").or(old_host);
        let port = server.take("port").or(old_port);
        ignore_numbers(&mut server);
        if let Some(key) = server.first() {
            let message = format!("Parameter 'server.{key}' is unexpected");
            return Err(Failure::usage(message));
        }
        let transport = match (kind.as_deref(), path, host) {
            (None | Some("unix"), Some(path), None) => Transport::Unix {
                path: PathBuf::from(path),
            },
            (None | Some("inet"), None, Some(host)) => Transport::Tcp {
                host,
                port: match port {
                    None => DEFAULT_PORT,
                    Some(port) => port
                        .parse()
                        .map_err(|_| Failure::usage(format!("invalid port '{port}'")))?,
                },
            },
            (_, Some(_), Some(_)) => {
                return Err(Failure::usage(
                    "path and host may not be used at the same time",
                ));
            }
            (Some(kind @ ("vsock" | "fd")), ..) => {
                let message = format!("servers of the type '{kind}' are not there in blockferry");
                return Err(Failure::usage(message));
            }
            _ => return Err(Failure::usage("NBD server address missing")),
        };
        let export = keywords.take("export").unwrap_or_default();
        let hostname = keywords.take("tls-hostname");
        let credentials = keywords.take("tls-creds");
        let parameters = match &credentials {
            None => Vec::new(),
            Some(id) => {
                let credentials = self.objects.credentials(id, Side::Client)?;
                credentials.parameters(hostname.as_deref())?
            }
        };
        Ok(NbdUri {
            transport,
            tls: credentials.is_some(),
            user: None,
            export,
            parameters,
        })
    }

    /// All of an image as bytes, for another format in it.
    fn all_of(&self, of: Endpoint) -> Endpoint {
        let of = Box::new(of);
        let (offset, length) = (0, None);
        Endpoint::new(self.shown, EndpointKind::Part { of, offset, length })
    }
}

/// What `whole` has from `offset` on: `length` bytes, or all.
pub(in crate::compat) fn part_of(whole: Endpoint, offset: u64, length: Option<u64>) -> Endpoint {
    if offset == 0 && length.is_none() {
        return whole;
    }
    let name = whole.to_string();
    let of = Box::new(whole);
    Endpoint::new(name, EndpointKind::Part { of, offset, length })
}

fn no_such_node(name: &str) -> Failure {
    let name = printable(name.as_ref());
    Failure::usage(format!(
        "Cannot find device='{name}' nor node-name='{name}'"
    ))
}

/// Whether it is said that an image is read without the backing file that it names: `"backing": null` in JSON, and
/// `backing=` elsewhere.
fn take_no_backing(keywords: &mut Keywords) -> Result<bool, Failure> {
    match keywords.take("backing") {
        None => Ok(false),
        Some(node) if node.is_empty() => Ok(true),
        Some(node) => Err(no_such_node(&node)),
    }
}

/// A size, which is none where JSON says `null`.
fn size(keywords: &mut Keywords, key: &str) -> Result<Option<u64>, Failure> {
    if keywords.is_null(key) {
        keywords.take(key);
    }
    keywords.take_bytes(key)
}

fn ignore(keywords: &mut Keywords) {
    for key in WITHOUT_EFFECT {
        keywords.take(key);
    }
}

/// Takes what a socket address may say beside its host.
fn ignore_numbers(server: &mut Keywords) {
    for key in ["ipv4", "ipv6", "numeric", "keep-alive", "to", "mptcp"] {
        server.take(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Image {
        described(text, &Objects::default()).expect(text)
    }

    fn refusal(text: &str) -> String {
        let refused = described(text, &Objects::default());
        refused.expect_err(text).to_string()
    }

    fn is_file(endpoint: &Endpoint, path: &str) -> bool {
        matches!(endpoint.kind(), EndpointKind::File(found) if found.as_os_str() == path)
    }

    #[test]
    fn a_file_may_be_taken_in_part() {
        let image =
            image("driver=raw,offset=1M,size=2M,read-only=on,file.driver=file,file.filename=/x,,y");
        assert!(image.read_only);
        let EndpointKind::Part { of, offset, length } = image.source.kind() else {
            panic!("{:?}", image.source);
        };
        assert_eq!((*offset, *length), (1 << 20, Some(2 << 20)));
        assert!(is_file(of, "/x,y"));
    }

    #[test]
    fn a_protocol_alone_is_its_bytes() {
        for text in [
            "driver=file,filename=/x,aio=native,cache.direct=on",
            "driver=raw,file.filename=/x,file.locking=off",
            "file.filename=file:/x,file.driver=file",
            r#"{"driver": "raw", "file": {"driver": "file", "filename": "/x"}, "size": null}"#,
        ] {
            let image = image(text);
            assert!(is_file(&image.source, "/x"), "{text}: {:?}", image.source);
            assert_eq!(image.source.format().kind, FormatKind::Raw);
        }
        let null = image("driver=null-co,size=1M");
        assert!(matches!(
            null.source.kind(),
            EndpointKind::Null(Some(0x10_0000))
        ));
    }

    #[test]
    fn formats_stand_on_protocols_and_on_parts_of_files() {
        let plain = image("driver=qcow2,file.filename=x,l2-cache-size=1M").source;
        assert!(is_file(&plain, "x"));
        assert_eq!(plain.format().kind, FormatKind::Image(Format::Qcow2));
        let inside = "driver=vmdk,file.driver=raw,file.offset=512,file.file.filename=x";
        let inside = image(inside).source;
        assert_eq!(inside.format().kind, FormatKind::Image(Format::Vmdk));
        assert!(matches!(
            inside.kind(),
            EndpointKind::Part { offset: 512, .. }
        ));
        let nested = "driver=vpc,file.driver=qcow2,file.file.filename=x";
        let EndpointKind::Part { of, .. } = image(nested).source.kind().clone() else {
            panic!("a disk in a disk");
        };
        assert_eq!(of.format().kind, FormatKind::Image(Format::Qcow2));
        let same = image("driver=raw,file.driver=qcow2,file.file.filename=x").source;
        assert_eq!(same.format().kind, FormatKind::Image(Format::Qcow2));
    }

    #[test]
    fn a_backing_file_is_left_alone_where_null_takes_its_place() {
        for text in [
            r#"{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"x"}}"#,
            "driver=qcow2,backing=,file.filename=x",
        ] {
            let format = image(text).source.format().clone();
            assert!(format.without_backing, "{text}");
            assert_eq!(format.kind, FormatKind::Image(Format::Qcow2));
        }
        let with = image("driver=qcow2,file.filename=x");
        assert!(!with.source.format().without_backing);
        let named = refusal("driver=qcow2,backing=node,file.filename=x");
        assert!(named.contains("Cannot find device='node'"), "{named}");
        let raw = refusal("driver=raw,backing=,file.filename=x");
        assert!(raw.contains("option 'backing'"), "{raw}");
    }

    #[test]
    fn servers_are_described_in_two_ways() {
        for (text, expected) in [
            ("driver=nbd,path=/s,export=e", "nbd+unix:///e?socket=/s"),
            (
                "driver=qcow2,file.driver=nbd,file.host=h,file.port=5",
                "nbd://h:5/",
            ),
            (
                "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=/s",
                "nbd+unix:///?socket=/s",
            ),
            (
                r#"{"driver":"nbd","server":{"type":"inet","host":"h","port":"10809"}}"#,
                "nbd://h/",
            ),
            ("driver=raw,file.filename=nbd://h/e", "nbd://h/e"),
        ] {
            let image = image(text);
            let EndpointKind::Nbd(uri) = image.source.kind() else {
                panic!("{text}: {:?}", image.source);
            };
            assert_eq!(uri.to_string(), expected);
        }
        let mut objects = Objects::default();
        let object = "tls-creds-x509,id=t,dir=/certs,endpoint=client";
        objects.define(object).expect("credentials");
        let text = "driver=nbd,host=h,tls-creds=t,tls-hostname=n";
        let image = described(text, &objects).expect("a server");
        assert!(
            matches!(image.source.kind(), EndpointKind::Nbd(uri) if uri.tls
            && uri.parameters.len() == 2)
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (text, named) in [
            (
                "driver=raw",
                "A block device must be specified for \"file\"",
            ),
            ("filename=x", "Must specify either driver or file"),
            ("x", "Cannot find device='x' nor node-name='x'"),
            (r#"{"driver":"raw","file":"x"}"#, "Cannot find device='x'"),
            ("driver=raw,file.driver=file", "requires a file name"),
            ("driver=qed,file.filename=x", "qed is not supported"),
            ("driver=bogus,file.filename=x", "Unknown driver 'bogus'"),
            ("driver=gzip,file.filename=x", "Unknown driver 'gzip'"),
            ("driver=raw,file.filename=x,bogus=1", "option 'bogus'"),
            ("driver=raw,file.filename=x,file.bogus=1", "option 'bogus'"),
            (
                "driver=qcow2,file.filename=x,backing.driver=raw",
                "'backing.driver'",
            ),
            (
                "driver=qcow2,file.filename=x,encrypt.key-secret=s",
                "'encrypt.key-secret'",
            ),
            ("driver=qcow2,file.filename=x,size=1M", "option 'size'"),
            ("driver=nbd", "NBD server address missing"),
            ("driver=nbd,host=h,path=/s", "at the same time"),
            ("driver=nbd,host=h,tls-creds=none", "'none'"),
            ("driver=https,url=https://x", "https is not supported"),
        ] {
            let refused = refusal(text);
            assert!(refused.contains(named), "{text}: {refused}");
        }
        let deep = "file.".repeat(5000);
        let chain: String = (0..20)
            .map(|depth| format!("{}driver=raw,", "file.".repeat(depth)))
            .collect();
        assert!(refusal(&chain).contains("too many drivers"));
        assert!(!refusal(&format!("driver=raw,{deep}filename=x")).is_empty());
    }
}

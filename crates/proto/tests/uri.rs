//! URIs, well-formed and not.

use std::path::PathBuf;

use blockferry_proto::{NbdUri, Transport, UriError, is_nbd_uri};
use proptest::prelude::*;

fn parse(text: &str) -> NbdUri {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn tcp(host: &str, port: u16) -> Transport {
    Transport::Tcp {
        host: host.to_owned(),
        port,
    }
}

#[test]
fn the_forms_of_the_specification_are_understood() {
    let unix = |path: &str| Transport::Unix {
        path: PathBuf::from(path),
    };
    for (text, transport, tls, export) in [
        ("nbd://", tcp("localhost", 10809), false, ""),
        ("nbd:///disk", tcp("localhost", 10809), false, "disk"),
        ("nbd://example.com", tcp("example.com", 10809), false, ""),
        ("nbd://example.com/", tcp("example.com", 10809), false, ""),
        (
            "nbds://example.com/disk",
            tcp("example.com", 10809),
            true,
            "disk",
        ),
        (
            "NBD://example.com:12345/a/b",
            tcp("example.com", 12345),
            false,
            "a/b",
        ),
        (
            "nbd://example.com://a",
            tcp("example.com", 10809),
            false,
            "/a",
        ),
        ("nbd://[::1]:10810/", tcp("::1", 10810), false, ""),
        (
            "nbd://[fe80::1%25eth0]/x",
            tcp("fe80::1%eth0", 10809),
            false,
            "x",
        ),
        (
            "nbd://192.0.2.1/a%20b%2Fc%3f",
            tcp("192.0.2.1", 10809),
            false,
            "a b/c?",
        ),
        (
            "nbd+unix:///?socket=/tmp/sock",
            unix("/tmp/sock"),
            false,
            "",
        ),
        ("nbds+unix:///disk?socket=a%20b", unix("a b"), true, "disk"),
        ("nbd+unix://?socket=/s", unix("/s"), false, ""),
        (
            "nbd+vsock://2/disk",
            Transport::Vsock {
                cid: 2,
                port: 10809,
            },
            false,
            "disk",
        ),
        (
            "nbds+vsock://4294967295:4000000000/",
            Transport::Vsock {
                cid: u32::MAX,
                port: 4_000_000_000,
            },
            true,
            "",
        ),
        (
            "nbd+ssh://host/disk",
            Transport::Ssh {
                host: "host".to_owned(),
                port: None,
                socket: None,
            },
            false,
            "disk",
        ),
        (
            "nbd+ssh://host:22/disk?socket=/run/s",
            Transport::Ssh {
                host: "host".to_owned(),
                port: Some(22),
                socket: Some(PathBuf::from("/run/s")),
            },
            false,
            "disk",
        ),
    ] {
        let uri = parse(text);
        assert_eq!(uri.transport, transport, "{text}");
        assert_eq!(uri.tls, tls, "{text}");
        assert_eq!(uri.export, export, "{text}");
        assert_eq!(parse(&uri.to_string()), uri, "{text}");
        assert!(is_nbd_uri(text));
    }
}

#[test]
fn users_and_parameters_are_decoded_and_keep_their_order() {
    let uri = parse(
        "nbds://al%69ce@host/disk?tls-verify-peer=false&tls-certificates=/etc/a%26b&tls-hostname=h%C3%A9&x",
    );
    assert_eq!(uri.user.as_deref(), Some("alice"));
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        uri.parameters,
        [
            pair("tls-verify-peer", "false"),
            pair("tls-certificates", "/etc/a&b"),
            pair("tls-hostname", "hé"),
            pair("x", ""),
        ]
    );
    assert_eq!(parse(&uri.to_string()), uri);
    let local = parse("nbds+unix://alice@/?socket=/s");
    assert_eq!(local.user.as_deref(), Some("alice"));
    // The socket is not among them, wherever it stands.
    let uri = parse("nbd+unix:///?a=1&socket=/s&b=2");
    assert_eq!(uri.parameters, [pair("a", "1"), pair("b", "2")]);
}

#[test]
fn each_wrong_uri_has_its_message() {
    let long = format!("nbd://host/{}", "a".repeat(4097));
    for (text, expected) in [
        (
            "http://host/",
            "\"http://host/\" is not an NBD URI: the scheme must be one of nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock, nbd+ssh, nbds+ssh",
        ),
        (
            "nbd+tcp://host/",
            "\"nbd+tcp://host/\" is not an NBD URI: the scheme must be one of nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock, nbd+ssh, nbds+ssh",
        ),
        (
            "disk.img",
            "\"disk.img\" is not an NBD URI: the scheme must be one of nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock, nbd+ssh, nbds+ssh",
        ),
        ("nbd:host:10809", "an NBD URI needs \"//\" after the scheme"),
        (
            "nbd:unix:/tmp/sock",
            "an NBD URI needs \"//\" after the scheme",
        ),
        ("nbd://host:0/", "\"0\" is not a port number"),
        ("nbd://host:65536/", "\"65536\" is not a port number"),
        ("nbd://host:+1/", "\"+1\" is not a port number"),
        ("nbd://host:http/", "\"http\" is not a port number"),
        ("nbd://::1/", "\"::1\" is not a host name or address"),
        ("nbd://[::1/", "\"[::1\" is not a host name or address"),
        ("nbd://[::1]x/", "\"[::1]x\" is not a host name or address"),
        ("nbd://[host]/", "\"[host]\" is not a host name or address"),
        (
            "nbd://ho%20st/",
            "\"ho%20st\" is not a host name or address",
        ),
        ("nbd://a%3Ab/", "\"a%3Ab\" is not a host name or address"),
        (
            "nbd+ssh://-oProxyCommand=x/",
            "the host \"-oProxyCommand=x\" must not begin with \"-\"",
        ),
        (
            "nbd+ssh://%2DoProxyCommand=x/",
            "the host \"-oProxyCommand=x\" must not begin with \"-\"",
        ),
        (
            "nbd+ssh://-l@host/",
            "the user \"-l\" must not begin with \"-\"",
        ),
        ("nbd+ssh:///disk", "an nbd+ssh URI needs a host"),
        (
            "nbd+vsock://host/",
            "\"host\" is not a vsock context identifier",
        ),
        ("nbd+vsock:///", "\"\" is not a vsock context identifier"),
        (
            "nbd+vsock://4294967296/",
            "\"4294967296\" is not a vsock context identifier",
        ),
        ("nbd+vsock://2:x/", "\"x\" is not a port number"),
        (
            "nbd+vsock://me@2/",
            "a user name does not belong in this kind of URI",
        ),
        (
            "nbd+unix:///disk",
            "an nbd+unix URI needs the parameter socket=PATH",
        ),
        (
            "nbd+unix:///disk?socket=",
            "an nbd+unix URI needs the parameter socket=PATH",
        ),
        (
            "nbd+unix://host/?socket=/s",
            "an nbd+unix URI has no host: write nbd+unix:///export?socket=PATH",
        ),
        (
            "nbd://host/?socket=/s",
            "the parameter \"socket\" belongs to nbd+unix and nbd+ssh URIs",
        ),
        ("nbd://host/?a=1&a=2", "the parameter \"a\" is given twice"),
        (
            "nbd+unix:///?socket=/a&socket=/b",
            "the parameter \"socket\" is given twice",
        ),
        (
            "nbd://host/%zz",
            "\"%\" must be followed by two hexadecimal digits in \"%zz\"",
        ),
        (
            "nbd://host/a%2",
            "\"%\" must be followed by two hexadecimal digits in \"a%2\"",
        ),
        ("nbd://host/%ff", "\"%ff\" does not decode to UTF-8"),
        ("nbd://host/a%00b", "a URI must not contain a NUL byte"),
        (
            "nbd+unix:///?socket=%00",
            "a URI must not contain a NUL byte",
        ),
        (
            "nbd://host/disk#1",
            "an NBD URI has no fragment: write \"#\" as %23",
        ),
        (&long, "an export name must not be longer than 4096 bytes"),
    ] {
        let error = text.parse::<NbdUri>().unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }
}

#[test]
fn a_scheme_is_recognized_before_the_rest_is_looked_at() {
    for text in [
        "nbd:",
        "nbds://",
        "nbd+unix:?",
        "NBD+SSH://",
        "nbds+vsock:x",
    ] {
        assert!(is_nbd_uri(text), "{text}");
    }
    for text in [
        "",
        "nbd",
        "nbdx://",
        "nbd+tcp://",
        "/nbd:",
        "nbd.img",
        "nbd+:",
    ] {
        assert!(!is_nbd_uri(text), "{text}");
    }
}

#[cfg(unix)]
#[test]
fn the_path_of_a_socket_is_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let uri = parse("nbd+unix:///?socket=/tmp/%ff");
    let Transport::Unix { path } = &uri.transport else {
        panic!();
    };
    assert_eq!(path.as_os_str().as_bytes(), b"/tmp/\xff");
    assert_eq!(parse(&uri.to_string()), uri);
}

fn transport() -> impl Strategy<Value = Transport> {
    let host = || {
        prop_oneof![
            "[a-z0-9.!$&'()*+,;=@/?#%-]{0,20}[a-z0-9]"
                .prop_filter("an option", |host| !host.starts_with('-')),
            any::<std::net::Ipv6Addr>().prop_map(|address| address.to_string()),
            "fe80::1%[a-z0-9@/?#%\\]]{1,8}",
        ]
    };
    let path = || "[^\0]{1,40}".prop_map(PathBuf::from);
    prop_oneof![
        (host(), 1u16..).prop_map(|(host, port)| Transport::Tcp { host, port }),
        path().prop_map(|path| Transport::Unix { path }),
        any::<(u32, u32)>().prop_map(|(cid, port)| Transport::Vsock { cid, port }),
        (
            host(),
            proptest::option::of(1u16..),
            proptest::option::of(path())
        )
            .prop_map(|(host, port, socket)| Transport::Ssh { host, port, socket }),
    ]
}

fn uri() -> impl Strategy<Value = NbdUri> {
    let user = proptest::option::of("[^\0-][^\0]{0,20}");
    let keys = prop::collection::btree_map("[^\0]{1,10}", "[^\0]{0,20}", 0..4);
    (transport(), any::<bool>(), user, "[^\0]{0,60}", keys).prop_map(
        |(transport, tls, user, export, keys)| NbdUri {
            user: match transport {
                Transport::Vsock { .. } => None,
                _ => user,
            },
            transport,
            tls,
            export,
            parameters: keys
                .into_iter()
                .filter(|(key, _)| key != "socket")
                .collect(),
        },
    )
}

proptest! {
    #[test]
    fn what_is_printed_is_parsed_back(uri in uri()) {
        let text = uri.to_string();
        prop_assert!(text.is_ascii());
        prop_assert_eq!(text.parse::<NbdUri>(), Ok(uri), "{}", text);
    }

    #[test]
    fn any_text_is_a_uri_or_an_error(text in "(nbds?(\\+(unix|ssh|vsock))?://)?[ -~é]{0,80}") {
        match text.parse::<NbdUri>() {
            Ok(uri) => {
                prop_assert!(is_nbd_uri(&text));
                prop_assert_eq!(uri.to_string().parse::<NbdUri>(), Ok(uri));
            }
            Err(UriError::Scheme(_)) => prop_assert!(!is_nbd_uri(&text)),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}

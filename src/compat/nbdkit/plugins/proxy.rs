//! Another NBD server.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use crate::{
    cli::failure::Failure,
    endpoint::{EndpointKind, ServerCommand, printable},
    proto::{DEFAULT_PORT, NbdUri, Transport},
};

use super::{
    super::{parameters::Parameters, values},
    Plugin, Served, WRITING,
};

pub(super) static NBD: Plugin = Plugin {
    name: "nbd",
    magic: Some("uri"),
    help: "\
[uri=]<URI>             URI of the server
socket=<SOCKNAME>       Its unix socket
hostname=<HOST>         Its host
port=<PORT>             Its port (10809)
command=<COMMAND>       A server to run
arg=<ARG>               An argument of it
export=<NAME>           The export (\"\")
retry=<N>               Try N times to open the connection again (8)
shared=<BOOL>           Connect when it starts, not when a client comes (false)
tls=<MODE>              'off', or 'on' and 'require', which both require it
tls-certificates=<DIR>  The directory with ca-cert.pem
tls-verify=<BOOL>       Whether the server's certificate must be valid (true)
tls-username=<NAME>     The user to authenticate as",
    methods: WRITING,
    scripted: false,
    facts: &[
        "libnbd_tls=1",
        "libnbd_uri=1",
        "libnbd_vsock=0",
        "libnbd_dynamic_list=0",
    ],
    build: nbd,
};

/// The ways to say where the server is.
const WAYS: [&str; 6] = ["socket", "hostname", "vsock", "command", "socket-fd", "uri"];

fn nbd(mut parameters: Parameters) -> Result<Served, Failure> {
    let mut ways = Vec::new();
    for way in WAYS {
        if let Some(value) = parameters.take_one(way)? {
            ways.push((way, value));
        }
    }
    let (Some((way, place)), true) = (ways.pop(), ways.is_empty()) else {
        return Err(Failure::usage(
            "exactly one of 'socket', 'hostname', 'vsock', 'command', 'socket-fd' and 'uri' \
             parameters must be specified",
        ));
    };
    let retries = match parameters.take("retry") {
        Some(number) => values::unsigned("retry", &number)?,
        None => 0,
    };
    let shared = match parameters.take("shared") {
        Some(shared) => values::boolean("shared", &shared)?,
        None => false,
    };
    if let Some(dynamic) = parameters.take("dynamic-export")
        && values::boolean("dynamic-export", &dynamic)?
    {
        return Err(missing("dynamic-export"));
    }
    let port = parameters.take("port");
    let export = parameters.take("export");
    let tls = Tls::take(&mut parameters)?;
    let arguments = parameters.take_all("arg");
    parameters.finish()?;
    if port.is_some() && way != "hostname" {
        return Err(Failure::usage(
            "'port' parameter should only be used with 'hostname'",
        ));
    }
    if !arguments.is_empty() && way != "command" {
        return Err(Failure::usage(
            "'arg' parameter should only be used with 'command'",
        ));
    }
    let export = match export {
        Some(name) => Some(values::text("export", &name)?),
        None => None,
    };
    let transport = match way {
        "socket" => Transport::Unix {
            path: values::path("socket", &place)?,
        },
        "hostname" => Transport::Tcp {
            host: values::text("hostname", &place)?,
            port: self::port(port)?,
        },
        "uri" => {
            let text = values::text("uri", &place)?;
            let uri = text.parse::<NbdUri>();
            let uri = uri.map_err(|error| Failure::usage(format!("uri: {text}: {error}")))?;
            if export.is_some_and(|export| export != uri.export) {
                return Err(Failure::usage(
                    "'export' parameter: the URI names the export already",
                ));
            }
            return Ok(served(tls.of_uri(uri), retries, shared));
        }
        "command" => {
            if export.is_some_and(|export| !export.is_empty()) {
                return Err(missing("export with command"));
            }
            if tls.is_asked_for() {
                return Err(missing("tls with command"));
            }
            let command = ServerCommand::new(program(place), arguments);
            let mut served = Served::disk("nbd", EndpointKind::Command(command));
            served.retries = retries;
            return Ok(served);
        }
        way => return Err(missing(way)),
    };
    let uri = NbdUri {
        transport,
        tls: false,
        user: None,
        export: export.unwrap_or_default(),
        parameters: Vec::new(),
    };
    Ok(served(tls.of_uri(uri), retries, shared))
}

fn served(uri: NbdUri, retries: u32, shared: bool) -> Served {
    let mut served = Served::disk(&uri.to_string(), EndpointKind::Nbd(uri));
    served.retries = retries;
    match shared {
        true => served,
        false => served.on_first_use(),
    }
}

fn missing(what: &str) -> Failure {
    Failure::usage(format!("the {what} parameter of nbd is not supported"))
}

fn port(value: Option<OsString>) -> Result<u16, Failure> {
    let Some(value) = value else {
        return Ok(DEFAULT_PORT);
    };
    let port = value.to_str().and_then(|text| text.parse().ok());
    port.ok_or_else(|| {
        let value = printable(&value);
        Failure::usage(format!("port: {value:?} is not the number of a port"))
    })
}

/// A path depends on where we are; a name is looked up.
fn program(command: OsString) -> OsString {
    let path = PathBuf::from(command);
    match path.components().count() {
        0 | 1 => path.into_os_string(),
        _ => match std::path::absolute(&path) {
            Ok(path) => path.into_os_string(),
            Err(_) => OsString::from_vec(path.into_os_string().into_vec()),
        },
    }
}

/// What is said of TLS.
#[derive(Debug)]
struct Tls {
    required: Option<bool>,
    user: Option<String>,
    parameters: Vec<(String, String)>,
}

impl Tls {
    fn take(parameters: &mut Parameters) -> Result<Self, Failure> {
        if parameters.take("tls-psk").is_some() {
            return Err(missing("tls-psk"));
        }
        let required = match parameters.take("tls") {
            Some(mode) if mode == "require" => Some(true),
            Some(mode) => Some(values::boolean("tls", &mode)?),
            None => None,
        };
        let user = match parameters.take("tls-username") {
            Some(name) => Some(values::text("tls-username", &name)?),
            None => None,
        };
        let mut for_uri = Vec::new();
        if let Some(directory) = parameters.take("tls-certificates") {
            let directory = values::path("tls-certificates", &directory)?;
            let directory = values::text("tls-certificates", directory.as_os_str())?;
            for_uri.push(("tls-certificates".to_owned(), directory));
        }
        if let Some(verify) = parameters.take("tls-verify") {
            let verify = values::boolean("tls-verify", &verify)?;
            for_uri.push(("tls-verify-peer".to_owned(), verify.to_string()));
        }
        Ok(Self {
            required,
            user,
            parameters: for_uri,
        })
    }

    /// As in theirs, who says how wants it.
    fn is_asked_for(&self) -> bool {
        let says_how = !self.parameters.is_empty() || self.user.is_some();
        self.required.unwrap_or(says_how)
    }

    fn of_uri(self, mut uri: NbdUri) -> NbdUri {
        uri.tls |= self.is_asked_for();
        if uri.tls {
            uri.user = self.user.or(uri.user);
            uri.parameters.extend(self.parameters);
        }
        uri
    }
}

//! The command line of `nbdkit`: options, the plugin's name, and its parameters. A plugin is one of our own
//! sources under its name; the server is that of `blockferry serve`.

use std::{ffi::OsString, process::ExitCode};

use crate::{
    cli::{
        commands,
        failure::Failure,
        options::{ServeJob, Stay},
        output::{Voice, speak_to, tell},
    },
    endpoint::printable,
};

use super::ending::{EarlyEnd, exit_code, misused};

mod filters;
mod options;
mod parameters;
mod plugins;
mod probe;
mod service;
mod values;

use filters::Filter;
use options::{Choices, Log};
use parameters::Parameters;
use plugins::Plugin;

/// The version of nbdkit that is spoken for: what `--version` says, and what scripts decide by.
const VERSION: &str = "1.42.0";

/// Requests of a connection at a time, as nbdkit has threads for them.
const THREADS: u32 = 16;

const HELP: &str = "\
Serves a disk to NBD clients.

Usage: nbdkit [OPTIONS] PLUGIN [[KEY=]VALUE...]
       nbdkit [OPTIONS] PLUGIN ... --run 'COMMAND ARGS...'
       nbdkit PLUGIN --help | --version | --dump-plugin
       nbdkit --dump-config

Where:
  -i, --ipaddr=ADDR           Listen at this address only (all)
  -4, --ipv4-only, -6, --ipv6-only
                              Only at addresses of this family
  -p, --port=PORT             Listen at this port (10809); 0 takes a free one
  -U, --unix=SOCKET           Listen at this unix socket; - is a private one
      --vsock                 Listen at a port of AF_VSOCK
  -s, --single                Serve standard input and output, and end with them
      --keepalive             Notice clients that are gone (always)

How:
      --exit-with-parent      End with the process that started it
  -f, --foreground            Do not go to the background
  -P, --pidfile=FILE          Write the process's number to FILE once clients can connect
      --print-uri             Print the URI
      --run='COMMAND ARGS...' Run a command that finds the server in $uri, and end with it
  -u, --user=USER, -g, --group=GROUP
                              Become USER and GROUP once it listens
      --log=stderr|syslog|null
                              Where messages go
      --selinux-label=LABEL   Label the sockets
      --swap                  Keep all memory in memory
  -v, --verbose               Say who comes and goes
  -D, --debug=NAME.FLAG=N     Understood, and without effect

What:
  -r, --readonly              Refuse writes
  -e, --exportname=NAME       The export that $uri names
  -t, --threads=N             Requests of a connection at a time
      --timeout=TIME          How long a client may take to begin
      --filter=FILTER         Put a filter in front of the plugin; the first is nearest the client
      --mask-handshake=MASK   Offer only these flags in the handshake
  -n, --newstyle              The newstyle protocol (always)
      --no-eh, --no-extended-headers
                              Offer no extended headers
      --no-mc, --no-meta-contexts
                              Offer no metadata contexts
      --no-sr, --no-structured-replies
                              Offer no structured replies

TLS:
      --tls=off|on|require    Whether clients may, or must, use it
      --tls-certificates=DIR  The directory with ca-cert.pem, server-cert.pem, server-key.pem
      --tls-verify-peer       Demand a certificate from clients

      --help                  Show this text, and that of a plugin
  -V, --version               Show the version

Not supported: -o, --old-style, --oldstyle, --tls-psk.
Other spellings: --export, --export-name, --group, --ip-addr, --new-style, --no-fork, --pid-file, --read-only,
  --stdin.

This is blockferry under the name of nbdkit; 'blockferry serve --help' shows what else it can do.
";

const USAGE: &str = "\
usage: nbdkit [OPTIONS] PLUGIN [[KEY=]VALUE...]
'nbdkit --help' explains the options";

/// Runs `nbdkit`.
pub(super) fn main(words: Vec<OsString>) -> ExitCode {
    match parse(words, service::is_activated()) {
        Ok(job) => commands::serve::run(job).unwrap_or_else(end),
        Err(early) => early.end_with(USAGE, end),
    }
}

/// Tells the failure as nbdkit does.
fn end(failure: Failure) -> ExitCode {
    let code = exit_code(&failure);
    if !failure.is_reader_gone() {
        for line in failure.without_hint().to_string().lines() {
            let message = line.strip_prefix("nbdkit: ").unwrap_or(line);
            tell(&format!("nbdkit: error: {message}"));
        }
    }
    ExitCode::from(code)
}

/// The server that a command line asks for.
fn parse(words: Vec<OsString>, activated: bool) -> Result<ServeJob, EarlyEnd> {
    let (choices, mut operands) = Choices::read(words)?;
    if operands.is_empty() {
        return Err(without_plugin(&choices));
    }
    let words = operands.split_off(1);
    let plugin = Plugin::named(&printable(&operands[0]))?;
    let filters = choices.filters.iter();
    let filters: Vec<_> = filters
        .map(|name| Filter::named(name))
        .collect::<Result<_, _>>()?;
    if choices.help {
        return Err(EarlyEnd::Answer(help(&filters, plugin)));
    }
    if choices.version {
        let names = filters.iter().map(|filter| filter.name);
        let names = names.chain([plugin.name]);
        let lines: String = names.map(|name| format!("{name} {VERSION}\n")).collect();
        return Err(EarlyEnd::Answer(version() + &lines));
    }
    let listen = service::places(&choices, activated)?;
    if choices.dump_plugin {
        // What filters take is nothing to the plugin.
        let is_of_a_filter = |word: &OsString| {
            let key = word.to_str().and_then(|word| word.split_once('='));
            key.is_some_and(|(key, _)| filters.iter().any(|filter| filter.takes(key)))
        };
        let words = words.into_iter().filter(|word| !is_of_a_filter(word));
        let words: Vec<_> = words.collect();
        return Err(EarlyEnd::Answer(probe::dump_plugin(plugin, &words)?));
    }
    let tls = service::tls(&choices)?;
    let mut parameters = Parameters::read(&words, plugin.magic)?;
    let built = filters::build(&filters, &mut parameters)?;
    let reads_script = |word: &OsString| plugin.name == "sh" && (word == "-" || word == "script=-");
    if choices.single && words.iter().any(reads_script) {
        return Err(Failure::usage("inline script is incompatible with -s").into());
    }
    let served = (plugin.build)(parameters)?;

    let mut job = ServeJob::new(vec![served.source]);
    job.filters = built.filters;
    job.names = built.names;
    job.any_name = served.any_name;
    job.retries = job.retries.max(served.retries);
    job.server.read_only = choices.read_only || served.read_only;
    job.tls = tls;
    job.listen = listen;
    choices.tell(&mut job, activated);
    Ok(job)
}

/// What there is to say of filters and a plugin.
fn help(filters: &[&Filter], plugin: &Plugin) -> String {
    let filters = filters.iter();
    let filters = filters.map(|filter| ("filter", filter.name, filter.help));
    let modules = filters.chain([("plugin", plugin.name, plugin.help)]);
    let texts = modules.map(|(kind, name, help)| format!("\n{kind}: {name}\n{help}\n"));
    HELP.to_owned() + &texts.collect::<String>()
}

/// What is asked for where no plugin is named.
fn without_plugin(choices: &Choices) -> EarlyEnd {
    if choices.help {
        return EarlyEnd::Answer(HELP.to_owned());
    }
    if choices.version {
        return EarlyEnd::Answer(version());
    }
    misused(match choices.dump_plugin {
        true => "use 'nbdkit plugin --dump-plugin', or --dump-config to find out about the server",
        false => "no plugins given on the command line",
    })
}

/// The name of a plugin or filter, also of one that is given as `/DIR/nbdkit-NAME-plugin.so`.
fn module_name<'a>(given: &'a str, kind: &str) -> &'a str {
    let file = given.rsplit('/').next().unwrap_or(given);
    let name = file.strip_prefix("nbdkit-");
    let name = name.and_then(|name| name.strip_suffix(&format!("-{kind}.so")));
    name.unwrap_or(given)
}

fn version() -> String {
    format!("nbdkit {VERSION}\n")
}

impl Choices {
    /// Tells the job what does not depend on the plugin.
    fn tell(self, job: &mut ServeJob, activated: bool) {
        let server = &mut job.server;
        let threads = match self.threads {
            None => server.max_in_flight_requests,
            Some(0) => THREADS as usize,
            Some(number) => number as usize,
        };
        server.max_in_flight_requests = threads;
        server.structured &= !self.no_structured_replies;
        server.extended &= !self.no_structured_replies && !self.no_extended_headers;
        server.meta_contexts &= !self.no_meta_contexts;
        if let Some(flags) = self.handshake_flags {
            server.handshake_flags = flags;
        }
        if let Some(timeout) = self.timeout {
            server.handshake_timeout = timeout;
        }
        job.stay = match self.single {
            true => Stay::Once,
            false => Stay::Persistent,
        };
        let captive = self.exit_with_parent || self.run.is_some() || self.single || activated;
        job.background = !captive && !self.foreground;
        job.exit_with_parent = self.exit_with_parent;
        job.identity = self.identity;
        job.lock_memory = self.swap;
        job.pidfile = self.pidfile;
        job.print_uri = self.print_uri;
        job.run = self.run;
        job.socket_label = self.selinux_label;
        job.uri_export = self.export_name;
        job.verbose = self.verbose;
        job.greets = false;
        match self.log {
            Log::Usual | Log::Error => {}
            Log::System => speak_to(Voice::SystemLog),
            Log::Nowhere => speak_to(Voice::Nobody),
        }
    }
}

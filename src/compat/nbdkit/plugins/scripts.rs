//! Disks whose answers come from scripts.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use crate::{
    cli::failure::Failure,
    endpoint::{EndpointKind, printable},
    script::{METHODS, Program, ScriptOptions},
};

use super::{
    super::{parameters::Parameters, values},
    Plugin, Served,
};

/// The longest script that is read from standard input, in bytes.
const LONGEST_SCRIPT: u64 = 16 << 20;

pub(super) static SH: Plugin = Plugin {
    name: "sh",
    magic: Some("script"),
    help: "\
[script=]<FILENAME>     The script, or - for standard input (required)
[other parameters are the script's]",
    methods: SCRIPTED,
    scripted: true,
    facts: &["max_known_status=8"],
    build: sh,
};

pub(super) static EVAL: Plugin = Plugin {
    name: "eval",
    // The script has its own, or refuses what has none.
    magic: Some(""),
    help: "\
get_size='SCRIPT'       The shell command for each method
pread='SCRIPT'
[etc]
[other parameters are handed to config='SCRIPT']",
    methods: SCRIPTED,
    scripted: true,
    facts: &["max_known_status=8"],
    build: eval,
};

/// What a script may have.
const SCRIPTED: &[&str] = &[
    "load",
    "unload",
    "dump_plugin",
    "config",
    "config_complete",
    "config_help",
    "thread_model",
    "get_ready",
    "after_fork",
    "preconnect",
    "list_exports",
    "default_export",
    "open",
    "close",
    "export_description",
    "get_size",
    "block_size",
    "can_write",
    "can_flush",
    "is_rotational",
    "can_trim",
    "can_zero",
    "can_fast_zero",
    "can_extents",
    "can_fua",
    "can_multi_conn",
    "can_cache",
    "pread",
    "pwrite",
    "flush",
    "trim",
    "zero",
    "extents",
    "cache",
];

fn sh(parameters: Parameters) -> Result<Served, Failure> {
    let mut rest = parameters.into_rest();
    let script = rest.iter().position(|(key, _)| key == "script");
    let script = script.ok_or_else(|| Failure::usage("missing script parameter"))?;
    let (_, script) = rest.remove(script);
    let (program, name) = if script == "-" {
        (Program::Inline(standard_input()?), "sh".to_owned())
    } else if script.as_bytes().contains(&b'\n') {
        (Program::Inline(script.into_vec()), "sh".to_owned())
    } else {
        let path = values::path("script", &script)?;
        let name = printable(path.as_os_str());
        (Program::File(path), name)
    };
    Ok(scripted(program, &name, rest))
}

fn eval(mut parameters: Parameters) -> Result<Served, Failure> {
    let mut methods = Vec::new();
    for method in METHODS {
        let mut scripts = parameters.take_all(method);
        if scripts.len() > 1 {
            return Err(Failure::usage(format!(
                "method {method} defined more than once on the command line"
            )));
        }
        methods.extend(scripts.pop().map(|script| (method.to_owned(), script)));
    }
    if methods.is_empty() {
        return Err(Failure::usage(
            "no method is defined: write get_size='SCRIPT' pread='SCRIPT'",
        ));
    }
    let program = Program::Methods(methods);
    Ok(scripted(program, "eval", parameters.into_rest()))
}

fn scripted(program: Program, name: &str, parameters: Vec<(String, OsString)>) -> Served {
    let parameters = parameters.into_iter();
    let parameters = parameters.map(|(key, value)| (OsString::from(key), value));
    let mut options = ScriptOptions::new(program, name);
    options.parameters = parameters.collect();
    Served::disk(name, EndpointKind::Script(options)).with_exports()
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut script = Vec::new();
    let mut input = io::stdin().lock().take(LONGEST_SCRIPT + 1);
    let read = input.read_to_end(&mut script);
    read.map_err(|error| Failure::system("standard input", &error))?;
    if script.len() as u64 > LONGEST_SCRIPT {
        return Err(Failure::usage("the script on standard input is too long"));
    }
    Ok(script)
}

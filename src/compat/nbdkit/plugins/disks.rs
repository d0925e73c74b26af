//! Disks that need nothing but themselves: in memory, computed, or nothing at all.

use std::{
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    os::unix::ffi::OsStringExt,
};

use crate::{
    block::{DataContents, DataOptions, SampleOptions, decode_base64},
    cli::failure::Failure,
    endpoint::{EndpointKind, printable},
};

use super::{
    super::{parameters::Parameters, values},
    Plugin, READING, Served, WRITING,
};

pub(super) static MEMORY: Plugin = Plugin {
    name: "memory",
    magic: Some("size"),
    help: "\
[size=]<SIZE>           Size of the disk (required)
allocator=sparse|malloc|zstd
                        Understood; memory is taken for what is written",
    methods: WRITING,
    scripted: false,
    facts: &["mlock=no", "zstd=no"],
    build: |mut parameters| {
        allocator(&mut parameters)?;
        let size = required_size(&mut parameters)?;
        parameters.finish()?;
        Ok(Served::disk("memory", EndpointKind::Memory { size }))
    },
};

pub(super) static NULL: Plugin = Plugin {
    name: "null",
    magic: Some("size"),
    help: "[size=]<SIZE>           Size of the disk (0)",
    methods: WRITING,
    scripted: false,
    facts: &[],
    build: |mut parameters| {
        let size = size(&mut parameters)?.unwrap_or(0);
        parameters.finish()?;
        Ok(Served::disk("null", EndpointKind::Null(Some(size))))
    },
};

pub(super) static ZERO: Plugin = Plugin {
    name: "zero",
    magic: None,
    help: "There are no parameters: the disk is empty.",
    methods: READING,
    scripted: false,
    facts: &[],
    build: |parameters| {
        parameters.finish()?;
        Ok(Served::disk("zero", EndpointKind::Null(Some(0))).read_only_if(true))
    },
};

pub(super) static PATTERN: Plugin = Plugin {
    name: "pattern",
    magic: Some("size"),
    help: "[size=]<SIZE>           Size of the disk (required)",
    methods: READING,
    scripted: false,
    facts: &[],
    build: |mut parameters| {
        let size = required_size(&mut parameters)?;
        parameters.finish()?;
        Ok(Served::disk("pattern", EndpointKind::Pattern { size }).read_only_if(true))
    },
};

pub(super) static SPARSE_RANDOM: Plugin = Plugin {
    name: "sparse-random",
    magic: Some("size"),
    help: "\
[size=]<SIZE>           Size of the disk (required)
seed=<SEED>             Which disk it is among all of that size
percent=<PERCENT>       How much of it is data (10)
runlength=<BYTES>       Understood; the length of runs is as the disk has it
random-content=<BOOL>   Understood; the content is always random",
    methods: WRITING,
    scripted: false,
    facts: &[],
    build: |mut parameters| {
        let size = required_size(&mut parameters)?;
        let seed = match parameters.take("seed") {
            Some(seed) => values::long("seed", &seed)?,
            None => RandomState::new().hash_one(size),
        };
        let data_percent = match parameters.take("percent") {
            Some(percent) => self::percent(&percent)?,
            None => 10,
        };
        if let Some(length) = parameters.take("runlength") {
            values::size("runlength", &length)?;
        }
        if let Some(random) = parameters.take("random-content") {
            values::boolean("random-content", &random)?;
        }
        parameters.finish()?;
        let options = SampleOptions {
            size,
            seed,
            data_percent,
        };
        let kind = EndpointKind::CheckingSample(options);
        Ok(Served::disk("sparse-random", kind))
    },
};

pub(super) static DATA: Plugin = Plugin {
    name: "data",
    magic: Some("data"),
    help: "\
[data=]<DATA>           The disk's bytes, in the language of nbdkit-data-plugin(1)
raw=<BYTES>             The same as they are
base64=<TEXT>           The same in base64
size=<SIZE>             Size of the disk
<NAME>=<DATA>           What $NAME in the data stands for
allocator=sparse|malloc|zstd
                        Understood; memory is taken for what is written",
    methods: WRITING,
    scripted: false,
    facts: &["data_base64=yes", "mlock=no", "zstd=no"],
    build: data,
};

fn data(mut parameters: Parameters) -> Result<Served, Failure> {
    allocator(&mut parameters)?;
    let size = size(&mut parameters)?;
    let mut given = Vec::new();
    for key in ["data", "raw", "base64"] {
        let values = parameters.take_all(key);
        given.extend(values.into_iter().map(|value| (key, value.into_vec())));
    }
    let contents = match (given.pop(), given.pop()) {
        (Some(("data", text)), None) => DataContents::Expression(text),
        (Some(("raw", bytes)), None) => DataContents::Bytes(bytes),
        (Some((_, text)), None) => DataContents::Bytes(
            decode_base64(&text).map_err(|error| Failure::usage(format!("base64: {error}")))?,
        ),
        (None, _) => {
            return Err(Failure::usage(
                "raw|base64|data parameter was not specified",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(Failure::usage(
                "raw|base64|data parameter must be specified exactly once",
            ));
        }
    };
    let variables = parameters.into_rest().into_iter();
    let variables = variables.map(|(name, value)| (name, value.into_vec()));
    let options = DataOptions {
        contents,
        size,
        variables: variables.collect(),
    };
    let check = options.check();
    check.map_err(|error| Failure::usage(format!("data: {error}")))?;
    Ok(Served::disk("data", EndpointKind::Data(options)))
}

fn size(parameters: &mut Parameters) -> Result<Option<u64>, Failure> {
    let size = parameters.take("size");
    size.map(|size| values::size("size", &size)).transpose()
}

fn required_size(parameters: &mut Parameters) -> Result<u64, Failure> {
    let size = size(parameters)?;
    size.ok_or_else(|| Failure::usage("you must specify size=<SIZE> on the command line"))
}

/// How memory is taken is not for the user to say; what would be a mistake there is one here.
fn allocator(parameters: &mut Parameters) -> Result<(), Failure> {
    let Some(allocator) = parameters.take("allocator") else {
        return Ok(());
    };
    let text = printable(&allocator);
    let mut words = text.split(',');
    let known = ["sparse", "malloc", "zstd"].contains(&words.next().unwrap_or_default());
    match words.next() {
        _ if !known => Err(Failure::usage(format!("unknown allocator \"{text}\""))),
        None | Some("mlock=false") => Ok(()),
        Some(option) => Err(Failure::usage(format!(
            "allocator parameter {option} is not supported"
        ))),
    }
}

fn percent(value: &OsStr) -> Result<u8, Failure> {
    let percent = value.to_str().and_then(|text| text.parse::<f64>().ok());
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    let percent = percent.ok_or_else(|| {
        let value = printable(value);
        Failure::usage(format!("cannot parse percent parameter: {value}"))
    })?;
    // It is within 0 and 100.
    Ok(percent.round() as u8)
}

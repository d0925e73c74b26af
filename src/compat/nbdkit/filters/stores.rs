//! What remembers, and what takes writes.

use std::{env, ffi::OsStr, path::Path};

use crate::{
    cli::failure::Failure,
    filter::{CacheExtents, Cow, NamedFilter, ReadAhead, StorePlace},
};

use super::{super::values, Filter, missing};

pub(super) static CACHE_EXTENTS: Filter = Filter {
    name: "cacheextents",
    keys: &[],
    help: "",
    build: |_| Ok(vec![NamedFilter::new(CacheExtents::default())]),
};

pub(super) static COW: Filter = Filter {
    name: "cow",
    keys: &["cow-block-size", "cow-on-cache", "cow-on-read"],
    help: "\
cow-block-size=N               The unit of the overlay: a power of two from 4k on (4k)
cow-on-cache=BOOL              Whether blocks that clients ask to be cached are kept (false)
cow-on-read=BOOL               Whether blocks that are read are kept (false); a path is not supported
The overlay is a file in $TMPDIR, or in /var/tmp.",
    build: |given| {
        let mut cow = Cow {
            store: temporary_file(),
            ..Cow::default()
        };
        for (key, value) in given {
            match &*key {
                "cow-block-size" => cow.block_size = block_size(&key, &value)?,
                "cow-on-cache" => cow.on_cache = values::boolean(&key, &value)?,
                _ => cow.on_read = switch(&key, &value)?,
            }
        }
        Ok(vec![NamedFilter::new(cow)])
    },
};

pub(super) static READ_AHEAD: Filter = Filter {
    name: "readahead",
    keys: &[],
    help: "",
    build: |_| Ok(vec![NamedFilter::new(ReadAhead::default())]),
};

/// Where nbdkit's filters keep much: not in memory, as many a `/tmp` is.
fn temporary_file() -> StorePlace {
    let directory = env::var_os("TMPDIR").filter(|directory| !directory.is_empty());
    StorePlace::File {
        directory: Some(directory.unwrap_or_else(|| "/var/tmp".into()).into()),
    }
}

/// A power of two from 4096 to 16 MiB.
fn block_size(key: &str, value: &OsStr) -> Result<u64, Failure> {
    let size = values::size(key, value)?;
    match size.is_power_of_two() && (4096..=16 << 20).contains(&size) {
        true => Ok(size),
        false => Err(Failure::usage(format!(
            "{key}={size} is no power of two from 4096 to 16 MiB"
        ))),
    }
}

/// Yes or no. With nbdkit also a path: yes while there is such a file.
fn switch(key: &str, value: &OsStr) -> Result<bool, Failure> {
    match Path::new(value).is_absolute() {
        true => Err(missing(
            key,
            "it cannot be switched by a file, only be on or off",
        )),
        false => values::boolean(key, value),
    }
}

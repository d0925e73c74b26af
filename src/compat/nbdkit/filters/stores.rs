//! What remembers, and what takes writes.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    cli::failure::Failure,
    filter::{Cache, CacheExtents, CacheMode, Cow, ExtentList, NamedFilter, ReadAhead, StorePlace},
};

use super::{super::values, Filter, last, missing, required};

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
        let mut cow = Cow::default();
        cow.store = temporary_file();
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

pub(super) static CACHE: Filter = Filter {
    name: "cache",
    keys: &[
        "cache",
        "cache-min-block-size",
        "cache-max-size",
        "cache-high-threshold",
        "cache-low-threshold",
        "cache-on-read",
    ],
    help: "\
cache=writeback|writethrough|unsafe
                               When the plugin gets what is written: at a flush (writeback), before it is acknowledged,
                               or when there is no more room, whatever is flushed
cache-min-block-size=SIZE      What is read and kept as a whole: a power of two from 4k on (64k)
cache-max-size=SIZE            How much is kept (1G)
cache-high-threshold=PERCENT, cache-low-threshold=PERCENT
                               Understood, and without effect
cache-on-read=BOOL             Whether what is read is kept (false); a path is not supported
The cache is a file in $TMPDIR, or in /var/tmp.",
    build: |given| {
        let store = temporary_file();
        let mut cache = Cache::default();
        (cache.mode, cache.on_read) = (CacheMode::WriteBack, false);
        (cache.size, cache.store) = (Cache::usual_size(&store), store);
        let (mut low, mut high, mut is_bounded) = (80, 95, false);
        for (key, value) in given {
            match (&*key, value.to_str()) {
                ("cache", Some("writeback")) => cache.mode = CacheMode::WriteBack,
                ("cache", Some("writethrough")) => cache.mode = CacheMode::WriteThrough,
                ("cache", Some("unsafe")) => cache.mode = CacheMode::Unsafe,
                ("cache", _) => {
                    let message = "cache is writeback, writethrough or unsafe";
                    return Err(Failure::usage(message));
                }
                ("cache-min-block-size", _) => cache.block_size = block_size(&key, &value)?,
                ("cache-max-size", _) => {
                    cache.size = values::size(&key, &value)?;
                    is_bounded = true;
                }
                ("cache-high-threshold", _) => high = values::unsigned(&key, &value)?,
                ("cache-low-threshold", _) => low = values::unsigned(&key, &value)?,
                _ => cache.on_read = switch(&key, &value)?,
            }
        }
        if is_bounded && (low == 0 || low >= high) {
            let message = "cache-low-threshold must be from 1 to below cache-high-threshold";
            return Err(Failure::usage(message));
        }
        // Less than that would hold nothing.
        cache.size = cache.size.max(2 * cache.block_size);
        Ok(vec![NamedFilter::new(cache)])
    },
};

pub(super) static EXTENT_LIST: Filter = Filter {
    name: "extentlist",
    keys: &["extentlist"],
    help: "\
extentlist=FILE                (required) The extents, each in a line: offset, length, and of hole,zero what it is",
    build: |given| {
        let path = required(last(given), "extentlist", "extentlist")?;
        let path = values::path("extentlist", &path)?;
        Ok(vec![NamedFilter::new(ExtentList { path })])
    },
};

/// Where nbdkit's filters keep much: not in memory, as many a `/tmp` is.
pub(super) fn temporary_directory() -> PathBuf {
    let directory = env::var_os("TMPDIR").filter(|directory| !directory.is_empty());
    directory.unwrap_or_else(|| "/var/tmp".into()).into()
}

fn temporary_file() -> StorePlace {
    let directory = Some(temporary_directory());
    StorePlace::File { directory }
}

/// A power of two from 4096 to 16 MiB.
fn block_size(key: &str, value: &OsStr) -> Result<u64, Failure> {
    let size = values::size(key, value)?;
    match size.is_power_of_two() && (4096..=16 << 20).contains(&size) {
        true => Ok(size),
        false => Err(Failure::usage(format!(
            "{key}={size} is not a power of two from 4096 to 16 MiB"
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

//! Disks inside of other files.

use crate::{
    cli::failure::Failure,
    filter::{NamedFilter, Packing, Tar, Unpack},
};

use super::{super::values, Filter, required, stores};

pub(super) static GZIP: Filter = Filter {
    name: "gzip",
    keys: &[],
    help: "A file that can only be read from its beginning is unpacked into a file in $TMPDIR, or in /var/tmp.",
    build: |_| {
        let mut unpack = Unpack::new(Packing::Gzip);
        unpack.unpack = true;
        unpack.dir = Some(stores::temporary_directory());
        Ok(vec![NamedFilter::new(unpack)])
    },
};

pub(super) static XZ: Filter = Filter {
    name: "xz",
    keys: &["xz-max-block", "xz-max-depth"],
    help: "\
xz-max-block=SIZE              The largest block that is unpacked (512M)
xz-max-depth=N                 How many unpacked blocks are kept (as many as fit in 256M)",
    build: |given| {
        let mut unpack = Unpack::new(Packing::Xz);
        for (key, value) in given {
            match &*key {
                "xz-max-block" => unpack.max_block = values::size(&key, &value)?.min(2 << 30),
                _ => {
                    let depth = values::unsigned(&key, &value)?;
                    if depth == 0 {
                        return Err(Failure::usage("xz-max-depth is from 1 on"));
                    }
                    unpack.max_depth = usize::try_from(depth).ok();
                }
            }
        }
        Ok(vec![NamedFilter::new(unpack)])
    },
};

pub(super) static TAR: Filter = Filter {
    name: "tar",
    keys: &["tar-entry", "tar-limit", "tar"],
    help: "\
tar-entry=FILE                 (required) The name of the file in the archive
tar=PROGRAM, tar-limit=SIZE    Understood, and without effect: no program is run",
    build: |given| {
        let mut entry = None;
        for (key, value) in given {
            match &*key {
                "tar-entry" => entry = Some(value),
                "tar-limit" => {
                    values::size(&key, &value)?;
                }
                _ => {}
            }
        }
        let member = required(entry, "tar", "tar-entry")?.into();
        let limit = Tar::LIMIT;
        Ok(vec![NamedFilter::new(Tar { member, limit })])
    },
};

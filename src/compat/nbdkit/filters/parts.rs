//! Parts of a disk.

use crate::{
    cli::failure::Failure,
    filter::{NamedFilter, Offset, Partition},
};

use super::{super::values, Filter, last, required};

pub(super) static OFFSET: Filter = Filter {
    name: "offset",
    keys: &["offset", "range"],
    help: "\
offset=OFFSET                  Where the part begins (0)
range=LENGTH                   How long it is (all that follows)",
    build: |given| {
        let mut part = Offset {
            offset: 0,
            length: None,
        };
        for (key, value) in given {
            let size = values::size(&key, &value)?;
            match &*key {
                "offset" => part.offset = size,
                _ => part.length = Some(size),
            }
        }
        Ok(vec![NamedFilter::new(part)])
    },
};

pub(super) static PARTITION: Filter = Filter {
    name: "partition",
    keys: &["partition"],
    help: "\
partition=N                    (required) The number of the partition, from 1 on",
    build: |given| {
        let value = required(last(given), "partition", "partition")?;
        let number = values::unsigned("partition", &value)?;
        if number == 0 {
            return Err(Failure::usage(
                "partition: partitions are counted from 1 on",
            ));
        }
        Ok(vec![NamedFilter::new(Partition {
            number,
            sector_size: None,
        })])
    },
};

//! Parts of a disk, and its bytes in another order.

use crate::{
    cli::failure::Failure,
    filter::{NamedFilter, Offset, Partition, Swab, Truncate},
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

pub(super) static SWAB: Filter = Filter {
    name: "swab",
    keys: &["swab-bits"],
    help: "\
swab-bits=8|16|32|64           The size of the words whose bytes are turned around (16)",
    build: |given| {
        let bits = match last(given) {
            Some(value) => values::unsigned("swab-bits", &value)?,
            None => 16,
        };
        let mut swab = Swab::default();
        swab.word = match bits {
            8 => return Ok(Vec::new()),
            16 | 32 | 64 => bits / 8,
            _ => {
                let message = "invalid swab-bits, must be 8, 16, 32 or 64";
                return Err(Failure::usage(message));
            }
        };
        Ok(vec![NamedFilter::new(swab)])
    },
};

pub(super) static TRUNCATE: Filter = Filter {
    name: "truncate",
    keys: &["truncate", "round-up", "round-down"],
    help: "\
truncate=SIZE                  The size; what is beyond the end reads as zeroes
round-up=N                     Makes it a multiple of this power of two, by adding zeroes
round-down=N                   Makes it a multiple of this power of two, by leaving out what is more",
    build: |given| {
        let mut sizes = Truncate::default();
        for (key, value) in given {
            let size = values::size(&key, &value)?;
            if key == "truncate" {
                sizes.size = Some(size);
                continue;
            }
            if !size.is_power_of_two() {
                let message = format!("the {key} parameter must be a power of 2");
                return Err(Failure::usage(message));
            }
            match &*key {
                "round-up" => sizes.round_up = Some(size),
                _ => sizes.round_down = Some(size),
            }
        }
        Ok(vec![NamedFilter::new(sizes)])
    },
};

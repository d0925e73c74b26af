//! Requests of any size, made of requests that the source takes.
//!
//! The device takes any offset and any length. What the source sees begins and ends at whole blocks and is no
//! longer than it may be: requests are cut, and a block of which only a part is written is read, changed and
//! written back. That is safe beside other writes, of all clients of the export: see `locks`. It also goes to
//! its end when the client goes meanwhile, or what was left half done could undo what others write later.

mod device;
mod locks;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Error, ErrorKind, Exports, Operation, Parameter, ParameterType, Result,
    Values,
};
use tokio::runtime::Handle;

use self::{device::Resized, locks::BlockLocks};
use crate::{DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport};

pub(crate) static BLOCK_SIZE: FilterKind = FilterKind {
    name: "blocksize",
    syntax: "blocksize[:minimum=SIZE,maximum-data=SIZE,maximum-length=SIZE,advertise-minimum=SIZE,\
             advertise-preferred=SIZE,advertise-maximum=SIZE,enforce=on|off]",
    help: "Requests of any size: long ones are cut, parts of blocks are read, changed and written back",
    parameters: &[
        Parameter::new(
            "minimum",
            ParameterType::Size,
            "The source's smallest block, a power of two up to 64K; what the source says, if that is more",
        ),
        Parameter::new(
            "maximum-data",
            ParameterType::Size,
            "The longest read or write of the source; what the source says, if that is less",
        ),
        Parameter::new(
            "maximum-length",
            ParameterType::Size,
            "The longest range to zero, trim, cache, or ask about at a time",
        ),
        Parameter::new(
            "advertise-minimum",
            ParameterType::Size,
            "The smallest block that clients are told of",
        )
        .or("1"),
        Parameter::new(
            "advertise-preferred",
            ParameterType::Size,
            "The best size that clients are told of; without it the source's, or its smallest block",
        ),
        Parameter::new(
            "advertise-maximum",
            ParameterType::Size,
            "The longest read or write that clients are told of",
        )
        .or("32M"),
        Parameter::new(
            "enforce",
            ParameterType::Switch,
            "Whether requests that do not keep to what clients are told fail",
        )
        .or("off"),
    ],
    effects: Effects {
        extents: "asked for whole blocks and at most maximum-length at a time, and cut to what was asked",
        flush: "passed through; FUA goes with each part of a write",
        mapping: "passed through; splicing only of requests that are passed on whole",
        concurrency: "as the source's; parts of a request run side by side, eight at most, and changes of \
                      parts of a block one after the other",
    },
    build: |values| BlockSize::from_values(values).map(|filter| Arc::new(filter) as _),
};

/// The largest block that anyone can be told of, in bytes.
const LARGEST_BLOCK: u32 = 64 << 10;

/// The longest request that a client can be told of, in bytes.
const LONGEST: u32 = 32 << 20;

/// Takes requests of any size in front of a source that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockSize {
    /// The smallest block that the source is given, in bytes: a power of two, 64 KiB at most. The source's own
    /// holds where that is larger, and by default.
    pub minimum: Option<u32>,
    /// The longest read or write that the source is given, in bytes, rounded down to whole blocks. The source's own
    /// holds where that is shorter, and by default.
    pub maximum_data: Option<u32>,
    /// The longest range that the source is asked to zero, trim or cache, or is asked about at a time, in bytes,
    /// rounded down to whole blocks. Default: no bound.
    pub maximum_length: Option<u64>,
    /// The smallest block that clients are told of, in bytes: a power of two, 64 KiB at most; the source's where
    /// there is none. Default: 1.
    pub advertise_minimum: Option<u32>,
    /// The size that clients are told is best, in bytes: a power of two, not below what they are told is the
    /// smallest. Default: the source's, or its smallest block where that is larger.
    pub advertise_preferred: Option<u32>,
    /// The longest read or write that clients are told of, in bytes, 32 MiB at most; the source's where there is
    /// none. Default: 32 MiB.
    pub advertise_maximum: Option<u32>,
    /// Whether requests that do not keep to what clients are told fail with `InvalidInput`. Default: they are
    /// carried out.
    pub enforce: bool,
}

impl Default for BlockSize {
    fn default() -> Self {
        Self {
            minimum: None,
            maximum_data: None,
            maximum_length: None,
            advertise_minimum: Some(1),
            advertise_preferred: None,
            advertise_maximum: Some(LONGEST),
            enforce: false,
        }
    }
}

impl BlockSize {
    fn from_values(values: &Values) -> Result<Self, String> {
        let size = |name: &str| match values.size(name).map(u32::try_from) {
            Some(Err(_)) => Err(format!("{name} is below 4G")),
            size => Ok(size.and_then(Result::ok)),
        };
        let default = Self::default();
        let filter = Self {
            minimum: size("minimum")?,
            maximum_data: size("maximum-data")?,
            maximum_length: values.size("maximum-length"),
            advertise_minimum: size("advertise-minimum")?.or(default.advertise_minimum),
            advertise_preferred: size("advertise-preferred")?,
            advertise_maximum: size("advertise-maximum")?.or(default.advertise_maximum),
            enforce: values.switch("enforce").unwrap_or(default.enforce),
        };
        filter.check()?;
        Ok(filter)
    }

    /// Says what makes no sense together.
    fn check(&self) -> Result<(), String> {
        let is_block = |size: u32| size.is_power_of_two() && size <= LARGEST_BLOCK;
        let minimum = self.minimum.unwrap_or(1);
        let least = self.advertise_minimum.unwrap_or(1);
        if !is_block(minimum) || !is_block(least) {
            return Err("a smallest block is a power of two, 64K at most".to_owned());
        }
        if self.maximum_data.is_some_and(|size| size < minimum) {
            return Err("maximum-data is no less than minimum".to_owned());
        }
        if self
            .maximum_length
            .is_some_and(|size| size < u64::from(minimum.max(1)))
        {
            return Err("maximum-length is no less than minimum".to_owned());
        }
        if let Some(preferred) = self.advertise_preferred
            && !(preferred.is_power_of_two() && (least..=LONGEST).contains(&preferred))
        {
            return Err(
                "the preferred size is a power of two from the smallest block to 32M".to_owned(),
            );
        }
        let floor = self.advertise_preferred.unwrap_or(least);
        if let Some(maximum) = self.advertise_maximum
            && !((floor..=LONGEST).contains(&maximum) && maximum.is_multiple_of(least))
        {
            let message = "the longest request is whole blocks, from the preferred size to 32M";
            return Err(message.to_owned());
        }
        Ok(())
    }
}

impl Filter for BlockSize {
    fn kind(&self) -> &'static FilterKind {
        &BLOCK_SIZE
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let refused = |message| Error::with_message(ErrorKind::InvalidInput, message);
        self.check()
            .map_err(|message| refused(message).during(Operation::Open))?;
        let (options, runtime) = (*self, Handle::current());
        Ok(Arc::new(PerExport::new(
            AnySize { options, runtime },
            below,
        )))
    }
}

struct AnySize {
    options: BlockSize,
    runtime: Handle,
}

impl DeviceLayer for AnySize {
    type Shared = BlockLocks;

    fn name(&self) -> &'static str {
        BLOCK_SIZE.name
    }

    fn share(&self, _: &str) -> Result<BlockLocks> {
        Ok(BlockLocks::default())
    }

    fn open(&self, opened: Opened<BlockLocks>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let Opened { device, shared, .. } = opened;
            let device = Resized::new(self.options, device, shared, self.runtime.clone())?;
            Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>)
        })
    }
}

#[cfg(test)]
mod tests;

//! `rotational`: whether clients are told that the disk spins.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Capabilities, DeviceInfo, Exports, Parameter, ParameterType, Result,
};

use crate::{DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, each_device};

pub(crate) static ROTATIONAL: FilterKind = FilterKind {
    name: "rotational",
    syntax: "rotational[:MODE]",
    help: "Whether clients are told that the disk spins, so that order matters to it",
    parameters: &[
        Parameter::new("mode", ParameterType::Switch, "Whether it does")
            .first()
            .or("on"),
    ],
    effects: Effects::NONE,
    build: |values| {
        Ok(Arc::new(Rotational {
            on: values.switch("mode").unwrap_or(true),
        }))
    },
};

/// Says whether a disk spins.
#[derive(Clone, Copy, Debug)]
pub struct Rotational {
    /// Whether it does.
    pub on: bool,
}

impl Filter for Rotational {
    fn kind(&self) -> &'static FilterKind {
        &ROTATIONAL
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let on = self.on;
        Ok(each_device(ROTATIONAL.name, below, move |below| {
            let device = Filtered::new(Spinning { below, on });
            Box::pin(async move { Ok(Arc::new(device) as Arc<dyn BlockDevice>) })
        }))
    }
}

struct Spinning {
    below: Arc<dyn BlockDevice>,
    on: bool,
}

impl DeviceFilter for Spinning {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        info.rotational = self.on;
        info
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let on = self.on;
        Some(Self { below, on })
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::MemoryDevice;

    use crate::testing::through;

    #[tokio::test]
    async fn a_disk_spins_as_it_is_told() {
        for (filter, on) in [("rotational", true), ("rotational:off", false)] {
            let device = through(&[filter], std::sync::Arc::new(MemoryDevice::new(512))).await;
            assert_eq!(device.info().rotational, on);
        }
    }
}

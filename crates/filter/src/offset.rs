//! `offset`, `range`: a part of each image.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Exports, Parameter, ParameterType, Result, SliceDevice,
};

use crate::{Effects, Filter, FilterKind, Layer, each_device};

/// What a filter does that shows a part of the source as it is.
pub(crate) const PART: Effects = Effects {
    extents: "the source's of the part",
    mapping: "passed through, with the offset changed",
    ..Effects::NONE
};

pub(crate) static OFFSET: FilterKind = FilterKind {
    name: "offset",
    syntax: "offset:OFFSET",
    help: "The image from an offset to its end",
    parameters: &[
        Parameter::new("offset", ParameterType::Size, "Where it begins, in bytes")
            .first()
            .required(),
    ],
    effects: PART,
    build: |values| {
        Ok(Arc::new(Offset {
            offset: values.size("offset").unwrap_or(0),
            length: None,
        }))
    },
};

pub(crate) static RANGE: FilterKind = FilterKind {
    name: "range",
    syntax: "range[:OFFSET],length=LENGTH",
    help: "So many bytes of the image from an offset on",
    parameters: &[
        Parameter::new("offset", ParameterType::Size, "Where they begin, in bytes")
            .first()
            .or("0"),
        Parameter::new("length", ParameterType::Size, "How many bytes").required(),
    ],
    effects: PART,
    build: |values| {
        Ok(Arc::new(Offset {
            offset: values.size("offset").unwrap_or(0),
            length: values.size("length"),
        }))
    },
};

/// Shows a part of each image; what lies around it can not be reached.
///
/// A source that does not have the part does not open (`OutOfBounds`), and neither does one whose smallest block
/// the part would cut (`InvalidInput`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// Where the part begins, in bytes.
    pub offset: u64,
    /// How many bytes it has; `None`: all up to the end of the image.
    pub length: Option<u64>,
}

impl Filter for Offset {
    fn kind(&self) -> &'static FilterKind {
        match self.length {
            Some(_) => &RANGE,
            None => &OFFSET,
        }
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let Self { offset, length } = *self;
        Ok(each_part(self.kind().name, below, move |device| {
            Box::pin(async move { SliceDevice::new(device, offset, length) })
        }))
    }
}

/// A layer that shows the part of each device that `find` finds.
pub(crate) fn each_part<F>(name: &'static str, below: Arc<dyn Exports>, find: F) -> Arc<dyn Layer>
where
    F: Fn(Arc<dyn BlockDevice>) -> BoxFuture<'static, Result<SliceDevice>> + Send + Sync + 'static,
{
    each_device(name, below, move |device| {
        let found = find(device);
        Box::pin(async move { Ok(Arc::new(found.await?) as Arc<dyn BlockDevice>) })
    })
}

#[cfg(test)]
mod tests {
    use blockferry_block::{
        Access, Buffer, ByteRange, Capabilities, Context, ErrorKind, FileDevice, Mapping,
        MemoryDevice, WriteFlags,
        testing::{Fault, FaultyDevice, Rule, check_device},
    };

    use super::*;
    use crate::testing::{refusal, through};

    #[tokio::test]
    async fn a_part_is_a_device_of_its_own() {
        for seed in 0..6 {
            for filters in [
                &["offset:12345"][..],
                &["range:12345,length=60001"],
                &["range:length=1"],
                &[
                    "range:5,length=50000",
                    "offset:10",
                    "range:100,length=90000",
                ],
            ] {
                let whole = Arc::new(MemoryDevice::from_bytes([7; 100_000]));
                let part = through(filters, whole.clone()).await;
                check_device(&*part, seed, 300).await;
                let size = part.info().size as usize;
                let touched = whole.contents().iter().filter(|byte| **byte != 7).count();
                assert!(touched <= size, "{filters:?}: {touched}");
            }
        }
    }

    #[tokio::test]
    async fn what_lies_around_a_part_is_never_touched() {
        let whole = Arc::new(MemoryDevice::from_bytes([7; 100_000]));
        let part = through(&["range:1000,length=5000"], whole.clone()).await;
        assert_eq!(part.info().size, 5000);
        assert!(!part.info().can(Capabilities::RESIZE));
        for (offset, length) in [(4999, 2), (5000, 1), (u64::MAX, 1), (i64::MAX as u64, 9)] {
            let write = part.write(offset, Buffer::zeroed(length), WriteFlags::empty());
            let error = write.await.expect_err("outside");
            assert_eq!(error.kind(), ErrorKind::OutOfBounds);
            assert_eq!(error.offset(), Some(offset));
        }
        check_device(&*part, 3, 500).await;
        let contents = whole.contents();
        assert!(contents[..1000].iter().all(|byte| *byte == 7));
        assert!(contents[6000..].iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn a_source_that_is_too_small_is_told_by_numbers() {
        let small = || Arc::new(MemoryDevice::new(1000));
        for (filter, words) in [
            ("offset:1001", "there is no offset 1001: it has 1000 bytes"),
            (
                "range:500,length=501",
                "no 501 bytes at offset 500: it has 1000",
            ),
            ("range:7E,length=7E", "offset"),
        ] {
            let error = refusal(&[filter], small()).await;
            assert_eq!(error.kind(), ErrorKind::OutOfBounds);
            let name = filter.split(':').next().expect("a name");
            let text = error.to_string();
            assert!(text.starts_with(&format!("{name}: open: ")), "{text}");
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(through(&["offset:1000"], small()).await.info().size, 0);
        let blocks = FaultyDevice::new(small()).with_info(|info| info.limits.minimum = 512);
        let error = refusal(&["offset:100"], Arc::new(blocks)).await;
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn errors_are_told_where_the_client_asked() {
        let range = ByteRange::between(1500, 1501);
        let fault = Rule::on_all()
            .within(range)
            .fault(Fault::Error(ErrorKind::Io));
        let faulty = FaultyDevice::new(Arc::new(MemoryDevice::new(10_000))).with(fault);
        let part = through(&["offset:1000"], Arc::new(faulty)).await;
        assert!(part.read(0, Buffer::zeroed(500)).await.is_ok());
        let range = ByteRange::between(400, 600);
        let errors = [
            part.read(400, Buffer::zeroed(200)).await.map(drop),
            part.write(400, Buffer::zeroed(200), WriteFlags::empty())
                .await
                .map(drop),
            part.zero(range, Default::default()).await,
            part.trim(range, Default::default()).await,
            part.extents(range, &Context::Allocation).await.map(drop),
        ];
        for error in errors {
            let error = error.expect_err("a fault");
            assert_eq!((error.offset(), error.length()), (Some(400), Some(200)));
        }
        assert!(part.read(400, Buffer::zeroed(100)).await.is_ok());
    }

    #[tokio::test]
    async fn the_place_in_a_file_moves_with_the_part() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("room");
        let device = FileDevice::open(file.path(), Access::ReadWrite).expect("a device");
        let copies = device.info().can(Capabilities::COPY_FROM);
        let part = through(&["range:4096,length=8192", "offset:64K"], Arc::new(device)).await;
        assert_eq!(part.info().can(Capabilities::COPY_FROM), copies);
        let Mapping::File { offset, length, .. } = part.mapping(ByteRange::between(100, 1 << 20))
        else {
            panic!("it lies in a file");
        };
        assert_eq!((offset, length), (65536 + 4096 + 100, 8092));
        let all = ByteRange::between(0, 8192);
        let extents = part.extents(all, &Context::Allocation).await;
        assert_eq!(extents.expect("extents")[0].range, all);
    }
}

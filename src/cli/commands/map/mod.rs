//! `blockferry map`: the extents of an image in nbdinfo's formats, or with offsets, and pictures of them.
//! `compat/nbdinfo` and `compat/qemu_img` map in the same ways.
//!
//! | file | what it does |
//! |---|---|
//! | `shape` | extents and their sums as nbdinfo prints them |
//! | `offsets` | that as text and JSON |
//!
//! Pictures are drawn in `cli/drawing`.

mod offsets;
mod shape;

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    ops::ControlFlow,
};

use crate::{
    block::{Access, BlockDevice, ByteRange, Context, Error, Extent},
    endpoint::{Endpoint, OpenDevice, is_same_image, open_device, printable},
    inspect::{Places, View, each_extent},
};

use super::super::{
    drawing::{
        cells::Cells,
        disk,
        terminal::{self, Charset},
    },
    failure::Failure,
    options::{MapJob, open_options},
    output::unprinted,
    style::Colour,
};
use offsets::Offsets;
use shape::Shape;

/// Maps to standard output, as the extents come.
pub(crate) fn run(job: &MapJob) -> Result<(), Failure> {
    let mut output = BufWriter::new(io::stdout().lock());
    let colour = match job.picture {
        true => Colour::chosen(None, io::stdout().is_terminal()),
        false => Colour::Never,
    };
    match write(job, colour, &mut output)? {
        // Nobody reads on, as behind `head`: that is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(unprinted(&error)),
        Ok(()) => Ok(()),
    }
}

/// Maps to `output`. The outer failure is the image's, the inner one the output's.
pub(crate) fn write(
    job: &MapJob,
    colour: Colour,
    output: &mut impl Write,
) -> Result<io::Result<()>, Failure> {
    let runtime = super::runtime()?;
    let result = runtime.block_on(map(job, colour, output));
    runtime.shutdown_background();
    result
}

async fn map(
    job: &MapJob,
    colour: Colour,
    output: &mut impl Write,
) -> Result<io::Result<()>, Failure> {
    let mut options = job.trust.in_options(open_options(job.timeouts));
    options.contexts = vec![job.context.clone()];
    let opened = open_device(&job.endpoint, Access::ReadOnly, &options).await?;
    if let Some(file) = &job.svg {
        let picture = Endpoint::from(file.clone());
        if is_same_image(&job.endpoint, &picture) || opened.connection.follows(&picture) {
            let image = &job.endpoint;
            return Err(Failure::usage(format!(
                "--svg {picture}: {image} lies there, and a picture would be written over it"
            )));
        }
    }
    let device = &*opened.device;
    if !job.offsets && !device.info().contexts.contains(&job.context) {
        let failure = Failure::failed(format!(
            "{}: it does not know the context {}",
            job.endpoint, job.context
        ));
        return Err(failure.hint("'blockferry info' shows the contexts that it knows"));
    }
    let mut written = Ok(());
    if job.offsets {
        written = print_offsets(job, &opened, output).await?;
    } else if job.list {
        let shape = Shape::new(job, colour, device.info().size);
        written = print_map(device, &job.context, shape, output).await?;
    }
    if job.picture && written.is_ok() {
        let cells = cells_of(device, terminal::CELLS).await?;
        let drawn = terminal::picture(&cells, Charset::of_environment(), colour);
        written = output
            .write_all(drawn.as_bytes())
            .and_then(|()| output.flush());
    }
    if let Some(file) = &job.svg {
        let cells = cells_of(device, disk::CELLS).await?;
        let drawn = disk::file(&cells, job.endpoint.name());
        std::fs::write(file, drawn)
            .map_err(|error| Failure::system(&printable(file.as_os_str()), &error))?;
    }
    let OpenDevice { connection, .. } = opened;
    connection.close().await?;
    Ok(written)
}

/// Where everything lies. The outer failure is the image's, the inner one the output's.
async fn print_offsets(
    job: &MapJob,
    opened: &OpenDevice,
    output: &mut impl Write,
) -> Result<io::Result<()>, Error> {
    let mut places = Places::of(&job.endpoint, opened, View::Whole);
    let whole = ByteRange::between(0, places.size());
    let mut offsets = Offsets::new(job.json, output);
    let told = places.each(whole, |entry| offsets.entry(&entry)).await?;
    Ok(told.and_then(|()| offsets.end()))
}

/// The image in that many parts, or fewer.
async fn cells_of(device: &dyn BlockDevice, count: usize) -> Result<Cells, Error> {
    let whole = ByteRange::between(0, device.info().size);
    let mut cells = Cells::new(whole.end(), count);
    each_extent(device, whole, &Context::Allocation, |extent| {
        cells.add_extent(extent);
        ControlFlow::Continue(())
    })
    .await?;
    Ok(cells)
}

/// Asks for every extent in order and prints as it goes. The outer failure is the device's, the inner
/// one the output's.
async fn print_map(
    device: &dyn BlockDevice,
    context: &Context,
    mut shape: Shape<'_>,
    output: &mut impl Write,
) -> Result<io::Result<()>, Error> {
    let whole = ByteRange::between(0, device.info().size);
    let mut pending: Option<Extent> = None;
    let mut written = Ok(());
    each_extent(device, whole, context, |extent| {
        match &mut pending {
            Some(last) if last.status == extent.status => {
                last.range = ByteRange::between(last.range.start(), extent.range.end());
            }
            _ => {
                if let Some(last) = pending.replace(extent) {
                    written = shape.extent(last, output);
                }
            }
        }
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })
    .await?;
    if written.is_err() {
        return Ok(written);
    }
    let last = pending.map_or(Ok(()), |last| shape.extent(last, output));
    Ok(last.and_then(|()| shape.end(output)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::{BoxFuture, Buffer, DeviceInfo, ErrorKind, Result, Status},
        cli::options::{Timeouts, Trust},
    };

    /// A device with a list of extents, which it gives out one at a time.
    struct Mapped {
        info: DeviceInfo,
        extents: Vec<Extent>,
    }

    impl Mapped {
        fn new(parts: &[(u64, u64)]) -> Self {
            let mut extents = Vec::new();
            let mut offset = 0;
            for (length, status) in parts {
                extents.push(Extent {
                    range: ByteRange::between(offset, offset + length),
                    status: Status(*status),
                });
                offset += length;
            }
            Self {
                info: DeviceInfo::new("mapped", offset),
                extents,
            }
        }
    }

    impl BlockDevice for Mapped {
        fn info(&self) -> &DeviceInfo {
            &self.info
        }

        fn read(&self, _: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
            Box::pin(async { Ok(buffer) })
        }

        fn extents<'a>(
            &'a self,
            range: ByteRange,
            _: &'a Context,
        ) -> BoxFuture<'a, Result<Vec<Extent>>> {
            let found = self
                .extents
                .iter()
                .find(|extent| extent.range.start() == range.start())
                .copied();
            Box::pin(async move { Ok(found.into_iter().collect()) })
        }
    }

    fn print(parts: &[(u64, u64)], context: &Context, json: bool, totals: bool) -> String {
        let device = Mapped::new(parts);
        let job = job(context, json, totals);
        let shape = Shape::new(&job, Colour::Never, device.info.size);
        let mut output = Vec::new();
        let runtime = super::super::runtime().expect("a runtime");
        runtime
            .block_on(print_map(&device, context, shape, &mut output))
            .expect("a map")
            .expect("written");
        String::from_utf8(output).expect("text")
    }

    fn job(context: &Context, json: bool, totals: bool) -> MapJob {
        MapJob {
            trust: Trust::default(),
            endpoint: "sample:1M".parse().expect("an endpoint"),
            context: context.clone(),
            totals,
            offsets: false,
            list: true,
            picture: false,
            svg: None,
            json,
            timeouts: Timeouts::PATIENT,
        }
    }

    const PARTS: [(u64, u64); 4] = [(16384, 0), (16384, 0), (32768, 3), (983_040, 2)];

    #[test]
    fn lines_are_nbdinfos_and_equal_neighbours_are_one() {
        assert_eq!(
            print(&PARTS, &Context::Allocation, false, false),
            "         0       32768    0  data\n     \
                 32768       32768    3  hole,zero\n     \
                 65536      983040    2  zero\n"
        );
    }

    #[test]
    fn json_is_a_list_of_extents() {
        let text = print(&PARTS, &Context::Allocation, true, false);
        assert!(
            text.starts_with(
                "[\n{ \"offset\": 0, \"length\": 32768, \"type\": 0, \"description\": \"data\"},\n"
            ),
            "{text}"
        );
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value.as_array().map(Vec::len), Some(3));
        assert_eq!(print(&[], &Context::Allocation, true, false), "[\n\n]\n");
        assert_eq!(print(&[], &Context::Allocation, true, true), "[]\n");
    }

    #[test]
    fn totals_are_sums_by_type() {
        let parts = [(65536, 0), (32768, 3), (917_504, 0), (32768, 3)];
        assert_eq!(
            print(&parts, &Context::Allocation, false, true),
            "    983040  93.8%   0 data\n     65536   6.2%   3 hole,zero\n"
        );
        let value: serde_json::Value =
            serde_json::from_str(&print(&parts, &Context::Allocation, true, true)).expect("JSON");
        assert_eq!(value[1]["percent"], 6.25);
    }

    #[test]
    fn a_context_that_nobody_knows_has_numbers_only() {
        let other = Context::Other("x:y".to_owned());
        assert_eq!(
            print(&[(1, 7)], &other, false, false),
            "         0           1    7\n"
        );
        assert!(print(&[(1, 7)], &other, true, false).contains("\"type\": 7}\n"));
        assert_eq!(
            print(&[(1, 7)], &other, false, true),
            "         1 100.0%   7\n"
        );
    }

    #[test]
    fn an_answer_without_extents_is_an_error_and_no_endless_loop() {
        let mut device = Mapped::new(&[(10, 0), (10, 3)]);
        device.extents.pop();
        let context = Context::Allocation;
        let job = job(&context, false, false);
        let shape = Shape::new(&job, Colour::Never, 20);
        let runtime = super::super::runtime().expect("a runtime");
        let error = runtime
            .block_on(print_map(&device, &context, shape, &mut Vec::new()))
            .expect_err("no extents");
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}

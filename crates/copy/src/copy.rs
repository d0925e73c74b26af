//! The whole of a copy, from plan to report.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, ByteRange};

use crate::{
    Control, CopyError, CopyOptions, Destination, Event, Observer, Report, Side, Source,
    buffers::Buffers,
    engine::Engine,
    input::Input,
    output::Output,
    plan::Plan,
    transfer::{Outcome, Target, length, read},
};

/// Copies `source` to `destination`, and flushes it.
///
/// The future does nothing until it is polled, needs no particular runtime, and may be dropped at any
/// time; writes that were begun may then still happen. It is `Send`.
///
/// # Errors
/// The first failure, on either side; what was being written then has finished. [`Side::Plan`] when
/// the two do not fit: a destination that is read-only, too small, or takes no request that the source
/// does. [`Side::Cancelled`] after [`Control::cancel`].
pub async fn copy(
    source: Source,
    destination: Destination,
    options: &CopyOptions,
    control: &Control,
    observer: &dyn Observer,
) -> Result<Report, CopyError> {
    let plan = Plan::new(&source, &destination, options)?;
    observer.event(Event::Planned { size: plan.size });

    let buffers = Arc::new(plan.buffers());
    let mut output = Output::new(destination, &buffers, &plan);
    if let (Some(size), true) = (plan.size, plan.resize)
        && let Some(target) = output.target()
    {
        let done = target.resize(size).await;
        done.map_err(|error| CopyError::new(Side::Destination, error))?;
    }

    // The incomplete block at the end is moved last, by itself.
    let size = plan.size.unwrap_or(0);
    let end = plan.incomplete_block(size).unwrap_or(size);
    let input = Input::new(source, end, &plan);
    let mut engine = Engine::new(&plan, observer, Arc::clone(&buffers), input, output);
    let mut last = engine.run(control).await?;

    let device = engine.input.device().filter(|_| end < size);
    if let Some(device) = device.map(|input| input.any_handle()) {
        let read = read_last(&device, ByteRange::between(end, size), &buffers).await;
        last = Some(read.map_err(|error| error.after(engine.progress))?);
    }
    let size = engine.input.stream_length().unwrap_or(size);
    if let Some(target) = engine.output.target() {
        let (data, zero) = end_at(&target, size, last, &plan)
            .await
            .map_err(|error| error.after(engine.progress))?;
        if data + zero > 0 {
            engine.count(data, zero);
        }
    }

    let mut report = Report {
        size,
        data: engine.progress.data,
        zero: engine.progress.zero,
        flushed: false,
        extent_requests: engine.input.extent_requests(),
        source_connections: engine.input.connections(),
        destination_connections: engine.output.connections(),
        request_size: engine.pacer.request_size(),
        queue_size: engine.pacer.window(),
    };
    if options.flush {
        observer.event(Event::Flushing);
        report.flushed = engine
            .output
            .flush()
            .await
            .map_err(|error| CopyError::new(Side::Destination, error).after(engine.progress))?;
    }
    Ok(report)
}

/// Reads the incomplete block at the image's end.
async fn read_last(
    device: &Arc<dyn BlockDevice>,
    range: ByteRange,
    buffers: &Buffers,
) -> Result<(ByteRange, Buffer), CopyError> {
    match read(device, range, buffers.take(length(range))).await {
        Ok(bytes) => Ok((range, bytes)),
        Err(error) => Err(CopyError::new(Side::Source, error)),
    }
}

/// Ends the image at `size`, now that it is known and all whole blocks are stored: gives the device its
/// size, and stores what there is of a last block. Returns how many bytes of that were data and zero.
async fn end_at(
    target: &Target,
    size: u64,
    last: Option<(ByteRange, Buffer)>,
    plan: &Plan,
) -> Result<(u64, u64), CopyError> {
    let failed = |error| CopyError::new(Side::Destination, error);
    if plan.size.is_none() && plan.resize {
        target.resize(size).await.map_err(failed)?;
    }
    let Some((range, bytes)) = last else {
        return Ok((0, 0));
    };
    let stored = match plan.incomplete_block(size) {
        Some(_) => target.store_padded(range, &bytes, plan.block).await,
        None => target.store(range, bytes).await,
    };
    match stored.map_err(failed)? {
        Outcome::Done { data, zero } => Ok((data, zero)),
        Outcome::NotZeroed(_) | Outcome::NotTaken => {
            unreachable!("what has bytes is always stored")
        }
    }
}

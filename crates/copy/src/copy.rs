//! The whole of a copy, from plan to report.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, ByteRange, Capabilities, Error, ErrorKind};

use crate::{
    Control, CopyError, CopyOptions, Destination, Done, Event, How, Observer, Report, Side, Source,
    digest::SpanSums,
    engine::{Durable, Engine},
    input::Input,
    output::Output,
    plan::Plan,
    transfer::{Outcome, Target, length, read},
    verify::Written,
};

/// Copies `source` to `destination`, and flushes it.
///
/// The future does nothing until it is polled, and may be dropped at any
/// time; writes that were begun may then still happen. It is `Send`. It needs tokio's timer where it has to
/// wait: for a connection that was lost, for the next flush of a destination that has connections, for the
/// limit on its rate.
///
/// A connection that is lost is opened again, as often as [`CopyOptions::retries`] says. What was in flight
/// is done again then; so is what a destination acknowledged and did not flush, so that it may restart at
/// any time. Only a stream cannot be read twice.
///
/// # Errors
/// The first failure, on either side; what was being written then has finished, and what a checkpoint is
/// kept of was flushed. [`Side::Plan`] when
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
    let moved = move_image(source, destination, &plan, options, control, observer).await?;
    let Moved {
        mut report,
        written,
        sums,
    } = moved;
    if let (true, Some(device), Some(sums)) = (options.verify, written, sums) {
        let written = Written {
            device,
            size: report.size,
            sums,
            sum_block: plan.sum_block,
        };
        let verified = written.verify(options, control, observer).await;
        verified.map_err(|error| error.after(report.progress()))?;
        report.verified = true;
    }
    Ok(report)
}

/// What a copy did, and what is needed to verify it.
pub(crate) struct Moved {
    pub(crate) report: Report,
    /// A handle to the destination, if it is a device.
    written: Option<Arc<dyn BlockDevice>>,
    /// The sums of the image, where they were wanted.
    pub(crate) sums: Option<SpanSums>,
}

/// Moves the image as planned and flushes the destination.
pub(crate) async fn move_image(
    source: Source,
    destination: Destination,
    plan: &Plan,
    options: &CopyOptions,
    control: &Control,
    observer: &dyn Observer,
) -> Result<Moved, CopyError> {
    // What was just created, or emptied, is of no use to anyone before it is whole.
    let destination_keeps = match &destination {
        Destination::Device(device) => !device.info().can(Capabilities::BORN_ZERO),
        Destination::Stream(_) => false,
    };
    observer.event(Event::Planned { size: plan.size });

    let buffers = Arc::new(plan.buffers());
    let output = Output::new(destination, &buffers, plan);
    // The incomplete block at the end is moved last, by itself.
    let size = plan.size.unwrap_or(0);
    let end = plan.incomplete_block(size).unwrap_or(size);
    let input = Input::new(source, end, plan);
    let durable = Durable::new(plan.flush_interval, options.checkpoint.as_ref());
    let mut engine = Engine::new(plan, observer, control, buffers, input, output, durable);
    if let (Some(size), true) = (plan.size, plan.resize) {
        engine
            .with_destination(|target| async move { target.resize(size).await })
            .await?;
    }
    for side in [Side::Source, Side::Destination] {
        engine.tell_handles(side);
    }
    if let Some(checkpoint) = &options.checkpoint {
        let Done { ranges, data, zero } = &checkpoint.done;
        if data + zero > 0 {
            for range in ranges.iter() {
                engine.count_part(range, How::Before);
            }
            engine.count(*data, *zero);
        }
    }
    match run(&mut engine, plan, end, options.flush).await {
        Ok(report) => finish(engine, plan, report),
        Err(error) => {
            let cancelled = error.side == Side::Cancelled;
            if destination_keeps && options.flush && cancelled || options.checkpoint.is_some() {
                engine.leave().await;
            }
            Err(error)
        }
    }
}

/// Gathers what is known after all was moved.
fn finish(mut engine: Engine<'_>, plan: &Plan, mut report: Report) -> Result<Moved, CopyError> {
    report.resumed = plan.done.len();
    let written = engine.output.device().map(|output| {
        let lane = output.lanes.of_owner(0);
        Arc::clone(output.lanes.device(lane.place))
    });
    let sums = match engine.collector.take() {
        Some(collector) => {
            let (digest, sums) = collector.finish(report.size);
            report.digest = digest;
            sums
        }
        None => None,
    };
    if plan.digest.is_some() && report.digest.is_none() {
        // Better no answer than a wrong one.
        let error = Error::with_message(ErrorKind::Io, "not all of the image was hashed");
        return Err(CopyError::new(Side::Source, error).after(report.progress()));
    }
    Ok(Moved {
        report,
        written,
        sums,
    })
}

/// Moves everything, and makes it durable.
async fn run(
    engine: &mut Engine<'_>,
    plan: &Plan,
    end: u64,
    flush: bool,
) -> Result<Report, CopyError> {
    let mut counted = false;
    // A destination that dies before it has flushed may take anything with it: then it is done again.
    let (size, flushed) = loop {
        let last = engine.run().await?;
        let size = engine.input.stream_length().or(plan.size).unwrap_or(0);
        let last = match last {
            None if end < size && plan.size.is_some() => {
                let range = ByteRange::between(end, size);
                let buffers = Arc::clone(engine.buffers());
                let read = |device| {
                    let buffer = buffers.take(length(range));
                    async move { read(&device, range, buffer).await }
                };
                Some((range, engine.with_source(read).await?))
            }
            last => last,
        };
        if let (false, Some((range, bytes)), Some(collector)) =
            (counted, &last, &mut engine.collector)
        {
            let part = collector.compute(range.start(), bytes);
            collector.add(part);
        }
        let range = last.as_ref().map(|(range, _)| *range);
        let (data, zero) = end_at(engine, size, last, plan).await?;
        if let Some(range) = range.filter(|_| data + zero > 0 && !counted) {
            engine.count_part(range, How::Moved { zero });
            counted = true;
        }
        if !flush {
            // Another connection may have been lost meanwhile, with what was to be done again.
            match engine.input.is_done() {
                true => break (size, false),
                false => continue,
            }
        }
        if let Some(flushed) = engine.flush().await? {
            break (size, flushed);
        }
    };
    Ok(Report {
        size,
        data: engine.progress.data,
        zero: engine.progress.zero,
        resumed: 0,
        digest: None,
        verified: false,
        reconnections: engine.reconnections(),
        flushed,
        extent_requests: engine.input.extent_requests(),
        source_connections: engine.input.connections(),
        destination_connections: engine.output.connections(),
        request_size: engine.pacer.request_size(),
        queue_size: engine.pacer.window(),
    })
}

/// Ends the image at `size`, now that it is known and all whole blocks are stored: gives the device its
/// size, and stores what there is of a last block. Returns how many bytes of that were data and zero.
async fn end_at(
    engine: &mut Engine<'_>,
    size: u64,
    last: Option<(ByteRange, Buffer)>,
    plan: &Plan,
) -> Result<(u64, u64), CopyError> {
    if plan.size.is_none() && plan.resize {
        engine
            .with_destination(|target| async move { target.resize(size).await })
            .await?;
    }
    let Some((range, bytes)) = last else {
        return Ok((0, 0));
    };
    let bytes = Arc::new(bytes);
    let buffers = Arc::clone(engine.buffers());
    let padded = plan.incomplete_block(size).is_some();
    let block = plan.block;
    let store = |target: Arc<Target>| {
        let (bytes, buffers) = (Arc::clone(&bytes), Arc::clone(&buffers));
        async move {
            match padded {
                true => target.store_padded(range, &bytes, block).await,
                false => target.store(range, buffers.copy_of(&bytes)).await,
            }
        }
    };
    match engine.with_destination(store).await? {
        Some(Outcome::Done { data, zero }) => Ok((data, zero)),
        // What has bytes is always stored.
        Some(Outcome::NotZeroed(_) | Outcome::NotTaken) | None => Ok((0, 0)),
    }
}

//! Makes two endpoints and the options agree, or says why they cannot, before a byte moves.

use std::time::Duration;

use blockferry_block::{
    BlockLimits, ByteRange, Capabilities, CopyFlags, Error, ErrorKind, Mapping, PipePool, RangeSet,
};

use crate::{
    CopyError, CopyOptions, Destination, DigestOptions, Order, Side, Source,
    buffers::Buffers,
    pacer::{FIRST_REQUEST, LARGEST_REQUEST, MOST_IN_FLIGHT},
    zeroes::ZeroPolicy,
};

/// The unit of scheduling in bytes: no request crosses a multiple of it, not even one for zeroes, so
/// that progress moves and a cancelled copy ends soon.
pub(crate) const SEGMENT: u64 = 128 << 20;

/// The least of a segment in an image that is small: a power of two.
const LEAST_SEGMENT: u64 = 4 << 20;

/// How much there must be to copy for each connection.
const WORTH_A_CONNECTION: u64 = 4 << 20;

/// How many connections a side gets at most.
const MOST_CONNECTIONS: usize = 64;

/// How many pipes there are at most: half of those that an unprivileged user may have.
const MOST_PIPES: usize = 32;

/// How often a destination is flushed whose connection may be lost.
const BETWEEN_FLUSHES: Duration = Duration::from_secs(30);

/// How often what is done is noted.
const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(1);

/// The largest size that an image can have.
const MAX_SIZE: u64 = i64::MAX as u64;

/// What was agreed on. Sizes are in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The image's size; `None` when a stream's end will tell.
    pub(crate) size: Option<u64>,
    /// Pieces begin at multiples of this power of two, and end at them or at the image's end. It is a
    /// multiple of both sides' block sizes.
    pub(crate) alignment: u32,
    /// The longest read and write ever: a multiple of `alignment`.
    pub(crate) longest_request: u32,
    /// The length of requests in the beginning: a multiple of `alignment`.
    pub(crate) shortest_request: u32,
    /// Whether requests are to keep that length.
    pub(crate) fixed_request_size: bool,
    /// How many requests are to be in flight on each connection, at least 1.
    pub(crate) requests: Option<usize>,
    /// How many bytes are to be in flight, at least one request's.
    pub(crate) queue_size: Option<u64>,
    /// How many connections each side gets where it can have several.
    pub(crate) connections: usize,
    /// Whether pieces are stored in the image's order.
    pub(crate) in_order: bool,
    /// How much of the image one worker takes at a time: a multiple of `alignment`.
    pub(crate) segment: u64,
    /// Whether the source is asked for extents.
    pub(crate) extents: bool,
    /// The shortest run of zeroes that is looked for in data: a multiple of both block sizes, one
    /// request at most. `None` when none are looked for.
    pub(crate) granularity: Option<u32>,
    /// Whether nobody looks at the data and both sides can move it on without a copy.
    pub(crate) splice: bool,
    /// How the destination may take bytes over from the source's file, where it may.
    pub(crate) take_over: Option<CopyFlags>,
    /// How zeroes come about.
    pub(crate) zeroes: ZeroPolicy,
    /// The destination takes the size of the image.
    pub(crate) resize: bool,
    /// The size that the destination has and keeps.
    pub(crate) room: Option<u64>,
    /// The destination's block size.
    pub(crate) block: u32,
    /// Which digest of the image is wanted.
    pub(crate) digest: Option<DigestOptions>,
    /// The length of the blocks of which sums are wanted, in bytes: no longer than `alignment`.
    pub(crate) sum_block: Option<u32>,
    /// How many attempts in a row to open a lost connection again may fail.
    pub(crate) retries: u32,
    /// What was done before.
    pub(crate) done: RangeSet,
    /// How often the destination is flushed while the copy runs.
    pub(crate) flush_interval: Option<Duration>,
}

impl Plan {
    /// The plan for these two.
    pub(crate) fn new(
        source: &Source,
        destination: &Destination,
        options: &CopyOptions,
    ) -> Result<Self, CopyError> {
        Self::with_sums(source, destination, options, None)
    }

    /// The plan for these two, for sums over blocks of `sum_block` bytes: a length that a plan for these
    /// sources or destinations has chosen before.
    pub(crate) fn with_sums(
        source: &Source,
        destination: &Destination,
        options: &CopyOptions,
        sum_block: Option<u32>,
    ) -> Result<Self, CopyError> {
        let from = Shape::of_source(source);
        let to = Shape::of_destination(destination);
        from.check()
            .map_err(|error| refused(error.on(source.name())))?;
        to.check()
            .map_err(|error| refused(error.on(destination.name())))?;
        if let Some(error) = misfit(&from, &to) {
            return Err(refused(error.on(destination.name())));
        }

        if options.verify {
            check_readable(destination)?;
        }

        let block = from.limits.minimum.max(to.limits.minimum);
        let least = block.max(sum_block.unwrap_or(0));
        let longest_request = longest_request(&from.limits, &to.limits, least, options)
            .ok_or_else(|| refused(no_common_size(&from.limits, &to.limits)))?;
        let sum_block = match options.verify {
            true => Some(sum_block_within(longest_request, block)),
            false => sum_block,
        };
        let alignment = alignment(block, longest_request, options.digest, sum_block);
        let longest_request = longest_request - longest_request % alignment;
        let fixed_request_size = options.request_size.is_some() || options.requests.is_some();
        let shortest_request = match fixed_request_size {
            true => longest_request,
            false => longest_request.min(FIRST_REQUEST.max(alignment)),
        };
        let zeroes = match destination {
            Destination::Device(device) => ZeroPolicy::new(device.info().capabilities, options),
            Destination::Stream(_) => ZeroPolicy::Write,
        };
        let (to_device, finds_zeroes) = match destination {
            Destination::Device(device) => (true, !device.info().can(Capabilities::DISCARDS)),
            Destination::Stream(_) => (false, false),
        };
        let granularity = options
            .sparse
            .filter(|_| finds_zeroes && !options.allocated && zeroes != ZeroPolicy::Write)
            .map(|run| granularity(run, block, shortest_request));
        // What is to be known of the bytes must be seen.
        let unseen = options.digest.is_none() && sum_block.is_none();
        let extents = match source {
            Source::Device(device) => options.extents && device.info().knows_allocation(),
            Source::Stream(_) => false,
        };
        let in_order = !to_device || options.order == Order::Ascending;
        let connections = connections(from.size, options);
        let least = u64::from(longest_request);
        Ok(Self {
            size: from.size,
            alignment,
            longest_request,
            shortest_request,
            fixed_request_size,
            requests: options.requests.map(|requests| requests.max(1)),
            queue_size: options.queue_size.map(|size| size.max(least)),
            connections,
            in_order,
            segment: segment(from.size, connections).max(u64::from(alignment)),
            extents,
            splice: unseen && granularity.is_none() && splices(source, destination),
            take_over: take_over(source, destination, options, granularity)
                .filter(|_| unseen && !in_order),
            granularity,
            zeroes,
            resize: to_device && to.size.is_none(),
            room: to.size,
            block: to.limits.minimum,
            digest: options.digest,
            sum_block,
            retries: options.retries,
            done: done_before(source, destination, options, alignment)?,
            flush_interval: flush_interval(source, destination, options),
        })
    }

    /// The buffers for pieces of this plan.
    pub(crate) fn buffers(&self) -> Buffers {
        Buffers::new(self.longest_request as usize)
    }

    /// The pipes for payloads of this plan, where it has any.
    pub(crate) fn pipes(&self) -> Option<PipePool> {
        self.splice
            .then(|| PipePool::new(PipePool::LARGEST, MOST_PIPES))
    }

    /// Where the last, incomplete block of an image of `size` bytes begins, when the destination goes
    /// on behind the image and so takes only whole blocks there.
    pub(crate) fn incomplete_block(&self, size: u64) -> Option<u64> {
        let goes_on = self.room.is_some_and(|room| room > size);
        let incomplete = !size.is_multiple_of(u64::from(self.block));
        (goes_on && incomplete).then(|| size - size % u64::from(self.alignment))
    }
}

/// Blocks of which sums are made are so long where they can be, in bytes.
const SUM_BLOCK: u32 = 64 << 10;

/// A digest's blocks of up to so many bytes are read in one request each.
const LONGEST_DIGEST_BLOCK: u32 = LARGEST_REQUEST;

/// Refuses a destination that gives nothing back.
fn check_readable(destination: &Destination) -> Result<(), CopyError> {
    let message = match destination {
        Destination::Stream(_) => "a stream cannot be read back, so it cannot be verified",
        Destination::Device(device) if device.info().can(Capabilities::DISCARDS) => {
            "what is thrown away cannot be verified"
        }
        Destination::Device(_) => return Ok(()),
    };
    let error = Error::with_message(ErrorKind::InvalidInput, message);
    Err(refused(error.on(destination.name())))
}

/// The length of blocks of which sums can be made although requests have limits: a power of two.
fn sum_block_within(longest_request: u32, block: u32) -> u32 {
    let longest = 1 << longest_request.ilog2();
    SUM_BLOCK.min(longest).max(block)
}

/// What pieces are multiples of. Blocks of which a digest or sums are wanted are not cut, unless they are
/// longer than a request.
fn alignment(
    block: u32,
    longest_request: u32,
    digest: Option<DigestOptions>,
    sum_block: Option<u32>,
) -> u32 {
    let longest = longest_request.min(LONGEST_DIGEST_BLOCK);
    let digest_block = digest
        .map(DigestOptions::block_size)
        .filter(|size| *size <= longest);
    let blocks = [Some(block), digest_block, sum_block];
    blocks.into_iter().flatten().max().unwrap_or(block)
}

/// The interval at which a destination is flushed: what was not flushed is written again when its connection
/// is lost, and does not count as done in a checkpoint.
fn flush_interval(
    source: &Source,
    destination: &Destination,
    options: &CopyOptions,
) -> Option<Duration> {
    let (Source::Device(_), Destination::Device(to)) = (source, destination) else {
        return None;
    };
    let may_be_lost = options.retries > 0 && to.info().can(Capabilities::REOPEN);
    match options.checkpoint {
        Some(_) => Some(BETWEEN_CHECKPOINTS),
        None => may_be_lost.then_some(BETWEEN_FLUSHES),
    }
}

/// What a checkpoint says is done, if it can be of this copy.
fn done_before(
    source: &Source,
    destination: &Destination,
    options: &CopyOptions,
    alignment: u32,
) -> Result<RangeSet, CopyError> {
    let Some(checkpoint) = &options.checkpoint else {
        return Ok(RangeSet::new());
    };
    let refuse = |kind, message: &str, name| {
        let error = Error::with_message(kind, message).on(name);
        Err(refused(error))
    };
    let Source::Device(from) = source else {
        let message = "a stream cannot be read from the middle: it takes no checkpoint";
        return refuse(ErrorKind::InvalidInput, message, source.name());
    };
    if let Destination::Stream(_) = destination {
        let message = "a stream cannot be written from the middle: it takes no checkpoint";
        return refuse(ErrorKind::InvalidInput, message, destination.name());
    }
    let done = &checkpoint.done;
    let size = from.info().size;
    let alignment = u64::from(alignment);
    let fits = |range: ByteRange| {
        let whole = range.end().is_multiple_of(alignment) || range.end() == size;
        range.start().is_multiple_of(alignment) && whole && range.end() <= size
    };
    let total = done.data.checked_add(done.zero);
    if total != Some(done.ranges.len()) || !done.ranges.iter().all(fits) {
        let message =
            "the checkpoint does not fit the image, its block sizes, or the blocks of its digest";
        return refuse(ErrorKind::InvalidInput, message, source.name());
    }
    Ok(done.ranges.clone())
}

/// What matters of an endpoint.
struct Shape {
    /// The fixed size; `None` when it has none.
    size: Option<u64>,
    limits: BlockLimits,
    writable: bool,
}

impl Shape {
    fn of_source(source: &Source) -> Self {
        match source {
            Source::Device(device) => Self {
                size: Some(device.info().size),
                limits: device.info().limits,
                writable: true,
            },
            Source::Stream(_) => Self::stream(),
        }
    }

    fn of_destination(destination: &Destination) -> Self {
        let Destination::Device(device) = destination else {
            return Self::stream();
        };
        let info = device.info();
        Self {
            size: (!info.can(Capabilities::RESIZE)).then_some(info.size),
            limits: info.limits,
            writable: info.can(Capabilities::WRITE),
        }
    }

    fn stream() -> Self {
        Self {
            size: None,
            limits: BlockLimits {
                minimum: 1,
                preferred: 4096,
                maximum: u32::MAX,
            },
            writable: true,
        }
    }

    /// Whether the endpoint makes sense by itself.
    fn check(&self) -> Result<(), Error> {
        let BlockLimits {
            minimum, maximum, ..
        } = self.limits;
        if !self.writable {
            let message = "the destination is read-only";
            return Err(Error::with_message(ErrorKind::ReadOnly, message));
        }
        if let Some(size) = self.size.filter(|size| *size > MAX_SIZE) {
            let message = format!("its size of {size} bytes exceeds the largest, {MAX_SIZE} bytes");
            return Err(Error::with_message(ErrorKind::Incompatible, message));
        }
        let possible = minimum.is_power_of_two() && u64::from(minimum) <= SEGMENT;
        if !possible || maximum < minimum {
            let message = format!("it takes requests of {minimum} to {maximum} bytes: impossible");
            return Err(Error::with_message(ErrorKind::Incompatible, message));
        }
        Ok(())
    }
}

fn splices(source: &Source, destination: &Destination) -> bool {
    let reads = match source {
        Source::Device(device) => device.info().can(Capabilities::SPLICE_READ),
        Source::Stream(_) => false,
    };
    let writes = match destination {
        Destination::Device(device) => device.info().can(Capabilities::SPLICE_WRITE),
        Destination::Stream(sink) => sink.can_splice(),
    };
    reads && writes
}

/// How the kernel may copy by itself: between files, and where zeroes are looked for only by sharing blocks,
/// which costs neither time nor space for zeroes either.
fn take_over(
    source: &Source,
    destination: &Destination,
    options: &CopyOptions,
    granularity: Option<u32>,
) -> Option<CopyFlags> {
    let (Source::Device(from), Destination::Device(to)) = (source, destination) else {
        return None;
    };
    let whole = ByteRange::between(0, from.info().size);
    let in_file = !matches!(from.mapping(whole), Mapping::Opaque);
    (in_file && to.info().can(Capabilities::COPY_FROM)).then_some(match granularity {
        _ if options.allocated => CopyFlags::ALLOCATE,
        Some(_) => CopyFlags::SHARE,
        None => CopyFlags::empty(),
    })
}

/// Why an image of this source cannot be in this destination.
fn misfit(from: &Shape, to: &Shape) -> Option<Error> {
    let (needed, room) = (from.size?, to.size?);
    let message = format!("the destination is too small: {room} bytes, {needed} needed");
    (needed > room).then(|| Error::with_message(ErrorKind::OutOfBounds, message))
}

fn longest_request(
    from: &BlockLimits,
    to: &BlockLimits,
    alignment: u32,
    options: &CopyOptions,
) -> Option<u32> {
    let allowed = from.maximum.min(to.maximum);
    if allowed < alignment {
        return None;
    }
    let by_default = match options.requests {
        Some(_) => FIRST_REQUEST,
        None => LARGEST_REQUEST,
    };
    let queue_size = options.queue_size.unwrap_or(MOST_IN_FLIGHT);
    // A piece is one segment's alone, so it is no longer than one.
    let wanted = options
        .request_size
        .unwrap_or(by_default)
        .min(u32::try_from(queue_size).unwrap_or(u32::MAX))
        .min(allowed)
        .min(SEGMENT as u32);
    Some((wanted - wanted % alignment).max(alignment))
}

/// How many connections are worth it for an image of this size.
fn connections(size: Option<u64>, options: &CopyOptions) -> usize {
    let worth = size.map_or(u64::MAX, |size| size.div_ceil(WORTH_A_CONNECTION));
    let worth = usize::try_from(worth).unwrap_or(usize::MAX);
    options.connections.min(worth).clamp(1, MOST_CONNECTIONS)
}

/// The length of a segment: shorter than [`SEGMENT`] where the image is too small to give several to
/// each worker, so that all of them are done at about the same time.
fn segment(size: Option<u64>, workers: usize) -> u64 {
    let share = size.unwrap_or(u64::MAX) / (4 * workers as u64).max(1);
    let share = share.clamp(LEAST_SEGMENT, SEGMENT);
    1 << share.ilog2()
}

fn no_common_size(from: &BlockLimits, to: &BlockLimits) -> Error {
    let message = format!(
        "no request suits both sides: the source takes {} to {} bytes, the destination {} to {}",
        from.minimum, from.maximum, to.minimum, to.maximum
    );
    Error::with_message(ErrorKind::Incompatible, message)
}

fn granularity(run: u32, alignment: u32, request_size: u32) -> u32 {
    run.max(1)
        .checked_next_multiple_of(alignment)
        .map_or(request_size, |run| run.min(request_size))
}

fn refused(error: Error) -> CopyError {
    CopyError::new(Side::Plan, error)
}

//! How requests reach the plugin: cut to size, or once more.

use std::{ffi::OsStr, time::Duration};

use crate::{
    cli::failure::Failure,
    endpoint::printable,
    filter::{BlockSize, Limit, NamedFilter, RateLimit, RateUnit, Retry, Serialize, Truncate},
};

use super::{super::values, Filter, last, missing};

pub(super) static BLOCK_SIZE: Filter = Filter {
    name: "blocksize",
    keys: &["minblock", "maxdata", "maxlen"],
    help: "\
minblock=SIZE                  The smallest block that the plugin is given: a power of two, 64k at most. What does not
                               fill one at the end of the disk is cut off.
maxdata=SIZE                   The longest read or write that it is given
maxlen=SIZE                    The longest request without data that it is given",
    build: |given| {
        let mut sizes = BlockSize::default();
        let mut block = 1;
        for (key, value) in given {
            let size = values::size(&key, &value)?;
            match &*key {
                "minblock" => block = power_of_two(&key, size, 64 << 10)?,
                "maxdata" => sizes.maximum_data = Some(u32::try_from(size).unwrap_or(u32::MAX)),
                _ => sizes.maximum_length = Some(size),
            }
        }
        let lengths = [
            ("maxdata", sizes.maximum_data.map(u64::from)),
            ("maxlen", sizes.maximum_length),
        ];
        for (key, length) in lengths {
            if length.is_some_and(|length| length == 0 || length % u64::from(block) != 0) {
                let message = format!("{key} must be a multiple of {block}");
                return Err(Failure::usage(message));
            }
        }
        if block == 1 {
            return Ok(vec![NamedFilter::new(sizes)]);
        }
        sizes.minimum = Some(block);
        let mut whole = Truncate::default();
        whole.round_down = Some(block.into());
        Ok(vec![NamedFilter::new(sizes), NamedFilter::new(whole)])
    },
};

pub(super) static BLOCK_SIZE_POLICY: Filter = Filter {
    name: "blocksize-policy",
    keys: &[
        "blocksize-minimum",
        "blocksize-preferred",
        "blocksize-maximum",
        "blocksize-error-policy",
        "blocksize-write-disconnect",
    ],
    help: "\
blocksize-minimum=SIZE, blocksize-preferred=SIZE
                               What clients are told of the size of blocks, where it is not what the plugin says: powers
                               of two
blocksize-error-policy=allow|error
                               What becomes of requests that do not keep to that (allow)
(blocksize-maximum and blocksize-write-disconnect are not supported)",
    build: |given| {
        let mut sizes = BlockSize::default();
        (sizes.advertise_minimum, sizes.advertise_maximum) = (None, None);
        for (key, value) in given {
            match (&*key, value.to_str()) {
                ("blocksize-error-policy", Some("allow")) => sizes.enforce = false,
                ("blocksize-error-policy", Some("error")) => sizes.enforce = true,
                ("blocksize-error-policy", _) => {
                    return Err(Failure::usage(format!("unknown {key}")));
                }
                ("blocksize-minimum", _) => {
                    let size = values::size(&key, &value)?;
                    sizes.advertise_minimum = Some(power_of_two(&key, size, 64 << 10)?);
                }
                ("blocksize-preferred", _) => {
                    let size = values::size(&key, &value)?;
                    sizes.advertise_preferred = Some(power_of_two(&key, size, 32 << 20)?);
                }
                _ => {
                    let why = "longer requests are always taken, up to 64M";
                    return Err(missing(&key, why));
                }
            }
        }
        let least = sizes.advertise_minimum.unwrap_or(1);
        if sizes.advertise_preferred.is_some_and(|size| size < least) {
            let message = "blocksize-minimum must not be more than blocksize-preferred";
            return Err(Failure::usage(message));
        }
        Ok(vec![NamedFilter::new(sizes)])
    },
};

pub(super) static LIMIT: Filter = Filter {
    name: "limit",
    keys: &["limit"],
    help: "\
limit=N                        How many clients there may be at a time (1); 0 for any number. Others are turned away",
    build: |given| {
        let clients = match last(given) {
            Some(value) => values::unsigned("limit", &value)?,
            None => 1,
        };
        Ok(vec![NamedFilter::new(Limit::new(clients.into()))])
    },
};

pub(super) static NO_PARALLEL: Filter = Filter {
    name: "noparallel",
    keys: &["serialize"],
    help: "\
serialize=requests|all-requests
                               The plugin sees one request of each connection at a time, or one of all of them.
                               (connections is not supported)",
    build: |given| {
        let scope = last(given);
        let scope = scope.as_ref().map(|scope| (scope, scope.to_str()));
        let scope = match scope {
            None | Some((_, Some("requests"))) => Serialize::Connection,
            Some((_, Some("all-requests"))) => Serialize::Export,
            Some((_, Some("connections"))) => {
                let why = "clients are not kept waiting; the filter 'limit' turns all but one away";
                return Err(missing("serialize=connections", why));
            }
            Some((scope, _)) => {
                let message = format!("unknown serialize '{}'", printable(scope));
                return Err(Failure::usage(message));
            }
        };
        Ok(vec![NamedFilter::new(scope)])
    },
};

pub(super) static RATE: Filter = Filter {
    name: "rate",
    keys: &[
        "rate",
        "rate-file",
        "connection-rate",
        "connection-rate-file",
        "burstiness",
    ],
    help: "\
rate=BITS, rate-file=FILE      How many bits a second may be read, and as many be written, by all clients together;
                               the file says so while the server runs
connection-rate=BITS, connection-rate-file=FILE
                               The same for each connection
burstiness=SECONDS             How long a pause may be made up for (2)",
    build: |given| {
        let mut limit = RateLimit::default();
        (limit.unit, limit.burst) = (RateUnit::Bits, Duration::from_secs(2));
        for (key, value) in given {
            let rates = match key.starts_with("connection-") {
                true => &mut limit.connection,
                false => &mut limit.export,
            };
            match &*key {
                "burstiness" => limit.burst = values::time(&key, &value)?,
                "rate-file" | "connection-rate-file" => {
                    rates.file = Some(values::path(&key, &value)?);
                }
                _ => {
                    let rate = Some(values::size(&key, &value)?);
                    (rates.read, rates.write) = (rate, rate);
                }
            }
        }
        Ok(vec![NamedFilter::new(limit)])
    },
};

pub(super) static RETRY: Filter = Filter {
    name: "retry",
    keys: &[
        "retries",
        "retry-delay",
        "retry-exponential",
        "retry-readonly",
    ],
    help: "\
retries=N                      How often a request is made again (5)
retry-delay=N                  How many seconds to wait before that (2)
retry-exponential=BOOL         Whether to wait twice as long each time (true)
retry-readonly=BOOL            Whether the plugin is only read after a failure (false)",
    build: |given| {
        let mut retry = Retry::default();
        retry.max_delay = Duration::from_secs(24 * 3600);
        for (key, value) in given {
            match &*key {
                "retries" => retry.retries = values::unsigned(&key, &value)?,
                "retry-delay" => retry.delay = seconds(&key, &value)?,
                "retry-exponential" => retry.exponential = values::boolean(&key, &value)?,
                _ => retry.read_only = values::boolean(&key, &value)?,
            }
        }
        Ok(vec![NamedFilter::new(retry)])
    },
};

fn seconds(key: &str, value: &OsStr) -> Result<Duration, Failure> {
    let seconds = values::unsigned(key, value)?;
    match seconds {
        0 => Err(Failure::usage(format!("{key} cannot be 0"))),
        seconds => Ok(Duration::from_secs(seconds.into())),
    }
}

/// A power of two that is not too large.
fn power_of_two(key: &str, size: u64, most: u32) -> Result<u32, Failure> {
    let fits = u32::try_from(size).ok().filter(|size| *size <= most);
    fits.filter(|size| size.is_power_of_two())
        .ok_or_else(|| Failure::usage(format!("{key} must be a power of 2, and at most {most}")))
}

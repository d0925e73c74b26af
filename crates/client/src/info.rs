//! What a negotiated export is as a block device, and a device's flags as NBD's.

use std::sync::Arc;

use blockferry_block::{BlockLimits, Capabilities, Context, DeviceInfo, WriteFlags, ZeroFlags};
use blockferry_proto::{BlockSizes, CommandFlags, Negotiated, TransmissionFlags};

/// The device that `negotiated` describes, called `name` in messages.
pub(crate) fn device_info(negotiated: &Negotiated, name: Arc<str>) -> DeviceInfo {
    let export = &negotiated.export;
    let sizes = export.block_sizes.unwrap_or_default();
    let mut info = DeviceInfo::new(name, export.size);
    info.limits = limits(&sizes);
    info.capabilities = capabilities(export.flags);
    info.rotational = export.flags.contains(TransmissionFlags::ROTATIONAL);
    info.contexts = negotiated
        .contexts
        .iter()
        .map(|context| Context::from(&*context.name))
        .collect();
    info.description.clone_from(&export.description);
    info
}

fn limits(sizes: &BlockSizes) -> BlockLimits {
    /// The longest request that is sent, whatever more the server would take.
    const LONGEST: u32 = 32 << 20;
    let minimum = sizes.minimum();
    let maximum = sizes.maximum().min(LONGEST);
    BlockLimits {
        minimum,
        preferred: sizes.preferred(),
        maximum: (maximum - maximum % minimum).max(minimum),
    }
}

fn capabilities(flags: TransmissionFlags) -> Capabilities {
    let table = [
        (TransmissionFlags::SEND_FLUSH, Capabilities::FLUSH),
        (TransmissionFlags::SEND_FUA, Capabilities::FUA),
        (TransmissionFlags::SEND_TRIM, Capabilities::TRIM),
        (TransmissionFlags::SEND_WRITE_ZEROES, Capabilities::ZERO),
        (TransmissionFlags::SEND_FAST_ZERO, Capabilities::FAST_ZERO),
        (TransmissionFlags::SEND_CACHE, Capabilities::CACHE),
        (TransmissionFlags::CAN_MULTI_CONN, Capabilities::MULTI_CONN),
    ];
    let mut capabilities = Capabilities::REOPEN;
    for (flag, capability) in table {
        capabilities.set(capability, flags.contains(flag));
    }
    if flags.contains(TransmissionFlags::READ_ONLY) {
        capabilities -= Capabilities::TRIM | Capabilities::ZERO | Capabilities::FAST_ZERO;
    } else {
        capabilities |= Capabilities::WRITE;
    }
    capabilities
}

/// The flags of a write or trim as NBD spells them.
pub(crate) fn write_flags(flags: WriteFlags) -> CommandFlags {
    let mut result = CommandFlags::empty();
    result.set(CommandFlags::FUA, flags.contains(WriteFlags::FUA));
    result
}

/// The flags of a zeroing as NBD spells them.
pub(crate) fn zero_flags(flags: ZeroFlags) -> CommandFlags {
    let mut result = CommandFlags::empty();
    result.set(CommandFlags::FUA, flags.contains(ZeroFlags::FUA));
    result.set(CommandFlags::NO_HOLE, flags.contains(ZeroFlags::NO_HOLE));
    result.set(CommandFlags::FAST_ZERO, flags.contains(ZeroFlags::FAST));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_export_cannot_be_changed() {
        let flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::READ_ONLY
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_FLUSH;
        let expected = Capabilities::REOPEN | Capabilities::FLUSH;
        assert_eq!(capabilities(flags), expected);
    }

    #[test]
    fn the_maximum_is_a_multiple_of_the_minimum() {
        let sizes = BlockSizes::new(512, 4096, 0xffff_ffff).expect("valid sizes");
        let limits = limits(&sizes);
        assert_eq!((limits.minimum, limits.maximum), (512, 32 << 20));
    }
}

//! Block status: which context is asked, and what the answer is as extents of a device.

use blockferry_block::{ByteRange, Context, Error, ErrorKind, Extent, Operation, Result, Status};
use blockferry_proto::{self as proto, Negotiated};

/// The id under which `context` was negotiated.
pub(crate) fn context_id(negotiated: &Negotiated, context: &Context) -> Result<u32> {
    let name = context.to_string();
    let found = negotiated
        .contexts
        .iter()
        .find(|candidate| candidate.name == name);
    found.map(|found| found.id).ok_or_else(|| {
        Error::with_message(
            ErrorKind::Unsupported,
            format!(
                "the server does not offer the context {}",
                name.escape_debug()
            ),
        )
        .during(Operation::Extents)
    })
}

/// The extents of a reply about `range`: clipped to it, equal neighbours merged.
pub(crate) fn extents_of(range: ByteRange, reply: &[proto::Extent]) -> Result<Vec<Extent>> {
    let mut extents = Vec::with_capacity(reply.len());
    let mut rest = range;
    for answer in reply {
        let (part, tail) = rest.split_at(answer.length);
        blockferry_block::push_merged(
            &mut extents,
            Extent {
                range: part,
                status: Status(answer.flags),
            },
        );
        rest = tail;
    }
    if extents.is_empty() && !range.is_empty() {
        return Err(Error::with_message(
            ErrorKind::Protocol,
            "the server answered a block status request with nothing",
        )
        .during(Operation::Extents)
        .at(range.start(), range.len()));
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(extents: &[(u64, u64)]) -> Vec<proto::Extent> {
        extents
            .iter()
            .map(|&(length, flags)| proto::Extent { length, flags })
            .collect()
    }

    #[test]
    fn an_answer_that_goes_on_past_the_range_is_clipped() {
        let range = ByteRange::between(100, 200);
        let extents = extents_of(range, &reply(&[(50, 0), (u64::MAX, 3)])).expect("extents");
        let expected = [
            Extent {
                range: ByteRange::between(100, 150),
                status: Status::DATA,
            },
            Extent {
                range: ByteRange::between(150, 200),
                status: Status::HOLE_ZERO,
            },
        ];
        assert_eq!(extents, expected);
    }

    #[test]
    fn an_empty_answer_is_an_error_not_an_endless_loop() {
        let error = extents_of(ByteRange::between(0, 1), &[]).expect_err("an error");
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}

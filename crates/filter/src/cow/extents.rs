//! Extents of an export that something was written to: the source's, with the overlay's in front.

use blockferry_block::{BlockDevice, ByteRange, Context, Extent, Result, Status, push_merged};

use super::map::{Map, Run, State};
use crate::aligned::around;

/// The most runs of blocks that one answer is made of.
const MOST_RUNS: usize = 4096;

/// The answer for `range` (`base:allocation`), with at most one question to the source.
pub(super) async fn extents(
    map: &Map,
    below: &dyn BlockDevice,
    range: ByteRange,
) -> Result<Vec<Extent>> {
    let runs = map.runs(range, MOST_RUNS);
    let is_below = |run: &&Run| run.state == State::Below;
    let Some(first) = runs.iter().find(is_below) else {
        return Ok(joined(&runs, &[]));
    };
    let info = below.info();
    if !info.knows_allocation() {
        let all = [data(range)];
        return Ok(joined(&runs, &all));
    }
    let end = runs
        .iter()
        .rfind(is_below)
        .map_or(first.range.end(), |last| last.range.end());
    let minimum = u64::from(info.limits.minimum.max(1));
    let wanted = around(
        ByteRange::between(first.range.start(), end),
        minimum,
        info.size,
    );
    let answer = match below.extents(wanted, &Context::Allocation).await {
        Ok(answer) => joined(&runs, &answer),
        // What comes before is known; who goes on behind it is told.
        Err(_) if first.range.start() > range.start() => joined(&runs, &[]),
        Err(error) => return Err(error),
    };
    if answer.is_empty() && !range.is_empty() {
        // The source says nothing, or what nobody asked for: data is never wrong.
        return Ok(vec![data(first.range)]);
    }
    Ok(answer)
}

fn data(range: ByteRange) -> Extent {
    let status = Status::DATA;
    Extent { range, status }
}

/// `runs`, with what `below` says where they are the source's, up to where it says nothing.
fn joined(runs: &[Run], below: &[Extent]) -> Vec<Extent> {
    let mut list = Vec::new();
    let mut below = below.iter().peekable();
    for run in runs {
        let status = match run.state {
            State::Zero => Status::HOLE_ZERO,
            State::Stored => Status::DATA,
            State::Below => {
                let mut rest = run.range;
                while let Some(extent) = below.peek()
                    && !rest.is_empty()
                {
                    let part = extent.range.intersection(rest);
                    if part.is_empty() && extent.range.end() <= rest.start() {
                        below.next();
                        continue;
                    }
                    if part.start() != rest.start() || part.is_empty() {
                        break;
                    }
                    let status = extent.status;
                    push_merged(
                        &mut list,
                        Extent {
                            range: part,
                            status,
                        },
                    );
                    (_, rest) = rest.split_at(part.len());
                }
                if !rest.is_empty() {
                    break;
                }
                continue;
            }
        };
        let range = run.range;
        push_merged(&mut list, Extent { range, status });
    }
    list
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockferry_block::{
        Error, ErrorKind, MemoryDevice, Operation,
        testing::{Fault, FaultyDevice, Rule, answers},
    };

    use super::*;

    const BLOCK: u64 = 4096;
    const SIZE: u64 = 100 * BLOCK;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start * BLOCK, end * BLOCK)
    }

    fn source() -> FaultyDevice {
        FaultyDevice::new(Arc::new(MemoryDevice::new(SIZE)))
    }

    fn map() -> Map {
        let map = Map::new(BLOCK);
        for block in [10, 20, 30] {
            map.set(range(block, block + 5), State::Stored)
                .expect("room");
        }
        map.set(range(40, 50), State::Zero).expect("room");
        map
    }

    #[tokio::test]
    async fn many_runs_take_one_question_and_equal_neighbours_are_one() {
        let source = source();
        let answer = extents(&map(), &source, range(0, 100))
            .await
            .expect("an answer");
        let found: Vec<_> = answer
            .iter()
            .map(|extent| (extent.range.start() / BLOCK, extent.status == Status::DATA))
            .collect();
        let expected = [0, 10, 15, 20, 25, 30, 35];
        let expected: Vec<_> = (0..)
            .zip(expected)
            .map(|(at, start)| (start, at % 2 == 1))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(answer.last().map(|last| last.range.end()), Some(SIZE));
        assert_eq!(source.calls(Operation::Extents), 1);
    }

    #[tokio::test]
    async fn a_source_that_breaks_the_rules_spoils_nothing() {
        for answer in [
            answers::short,
            answers::empty,
            answers::of_no_length,
            answers::endless,
            answers::overlapping,
            answers::with_gap,
            answers::backwards,
            answers::outside,
        ] {
            let source = source().with(Rule::on(Operation::Extents).fault(Fault::Extents(answer)));
            for asked in [range(0, 100), range(12, 60), range(41, 42), range(60, 61)] {
                let list = extents(&map(), &source, asked).await.expect("an answer");
                let mut at = asked.start();
                for extent in &list {
                    assert_eq!(extent.range.start(), at);
                    assert!(!extent.range.is_empty() && asked.contains(extent.range));
                    at = extent.range.end();
                }
                assert!(!list.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn a_source_that_fails_is_told_of_where_its_part_begins() -> Result<(), Error> {
        let source = source().with(Rule::on(Operation::Extents).fault(Fault::Error(ErrorKind::Io)));
        let list = extents(&map(), &source, range(12, 60)).await?;
        assert_eq!(list, [data(range(12, 15))]);
        let failed = extents(&map(), &source, range(15, 60)).await;
        assert_eq!(failed.expect_err("a fault").kind(), ErrorKind::Io);
        Ok(())
    }
}

//! `blockferry dd`: a copy of some blocks of an image.

use crate::endpoint::{Endpoint, EndpointKind, open_size};

use super::{
    super::{
        failure::Failure,
        options::{DdJob, open_options},
        output::{program, tell},
        signals::Signals,
    },
    copy::{self, unless_interrupted},
};

pub(crate) fn run(job: DdJob) -> Result<(), Failure> {
    let DdJob { mut copy, blocks } = job;
    let size = {
        let runtime = super::runtime()?;
        runtime.block_on(async {
            let mut signals =
                Signals::listen().map_err(|error| Failure::system("signals", &error))?;
            let options = copy.trust.in_options(open_options(copy.timeouts));
            let size = open_size(&copy.source, &options);
            Ok::<_, Failure>(unless_interrupted(size, &mut signals).await??)
        })?
    };
    let (offset, length) = blocks.within(size).unwrap_or_else(|| {
        let source = &copy.source;
        tell(&format!(
            "{}: {source}: cannot skip to specified offset",
            program()
        ));
        (size, 0)
    });
    if (offset, length) != (0, size) {
        let name = copy.source.to_string();
        let part = EndpointKind::Part {
            of: Box::new(copy.source),
            offset,
            length: Some(length),
        };
        copy.source = Endpoint::new(name, part);
    }
    copy::run(copy)
}

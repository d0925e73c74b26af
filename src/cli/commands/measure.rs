//! `blockferry measure`: how long the file of an image becomes. `compat/qemu_img` measures in the same way.

use serde::Serialize;

use crate::{
    block::{Access, ByteRange, HumanSize},
    endpoint::{Endpoint, NewQcow2, OpenDevice, OpenOptions, open_device},
    format::qcow2::{self, CreateOptions, DataClusters},
    inspect::{MapEntry, Places, View},
};

use super::{
    super::{
        failure::Failure,
        options::{MeasureJob, open_options},
        output::print,
    },
    info::json,
};

/// What is measured.
#[derive(Debug)]
pub(crate) enum Subject {
    /// An image with this many bytes, of whose contents nothing is known.
    Size(u64),
    /// A copy of that image.
    Copy(Endpoint),
}

/// What it becomes.
#[derive(Debug)]
pub(crate) enum Target {
    Raw,
    Qcow2(Box<NewQcow2>),
}

/// How long a file becomes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Measurement {
    /// With what is known of the contents.
    pub(crate) required: u64,
    /// Once everything has been written.
    pub(crate) fully_allocated: u64,
    /// How much more it is with the source's bitmaps; `None` where the source or the target can have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bitmaps: Option<u64>,
}

pub(crate) fn run(job: &MeasureJob) -> Result<(), Failure> {
    let options = job.trust.in_options(open_options(job.timeouts));
    let measured = measure(&job.subject, &job.target, (1, View::Whole), &options);
    let measured = super::runtime()?.block_on(measured)?;
    let text = match job.json {
        true => json::pretty(&measured),
        false => {
            let line = |what: &str, bytes| format!("{what}: {bytes} ({})\n", HumanSize(bytes));
            let bitmaps = measured.bitmaps.map(|bytes| line("bitmaps", bytes));
            line("required", measured.required)
                + &line("fully allocated", measured.fully_allocated)
                + &bitmaps.unwrap_or_default()
        }
    };
    print(&text)
}

/// Measures. Sizes are rounded up to multiples of `unit`.
pub(crate) async fn measure(
    subject: &Subject,
    target: &Target,
    (unit, view): (u64, View),
    options: &OpenOptions,
) -> Result<Measurement, Failure> {
    match subject {
        Subject::Size(size) => of_size(target, size.next_multiple_of(unit), None),
        Subject::Copy(source) => {
            let opened = open_device(source, Access::ReadOnly, options).await?;
            let measured = of_source(source, &opened, target, (unit, view)).await?;
            opened.connection.close().await?;
            Ok(measured)
        }
    }
}

async fn of_source(
    source: &Endpoint,
    opened: &OpenDevice,
    target: &Target,
    (unit, view): (u64, View),
) -> Result<Measurement, Failure> {
    let size = opened.device.info().size.next_multiple_of(unit);
    let Target::Qcow2(new) = target else {
        return of_size(target, size, None);
    };
    let mut data = DataClusters::of_size(new.create.cluster_size);
    let mut count = |entry: MapEntry| {
        if entry.data && !entry.zero {
            data.add(entry.range);
        }
        Ok::<_, Failure>(())
    };
    let mut places = Places::of(source, opened, view);
    let whole = ByteRange::between(0, places.size());
    // Filters may change what is where: then it counts what their device says.
    places.each(whole, &mut count).await??;
    let mut measured = of_size(target, size, Some(data.bytes()))?;
    let details = opened.connection.details();
    let details = details.as_ref().and_then(|details| details.as_qcow2());
    measured.bitmaps = details
        .filter(|details| details.version >= 3 && new.create.version >= 3)
        .map(|details| qcow2::measure_bitmaps(details, new.create.cluster_size));
    Ok(measured)
}

fn of_size(target: &Target, size: u64, data: Option<u64>) -> Result<Measurement, Failure> {
    let (required, fully_allocated) = match target {
        Target::Raw => (size, size),
        Target::Qcow2(new) => {
            // Where the data lies makes no difference to how much there is.
            let mut create: CreateOptions = new.create.clone();
            create.backing = new.backing.as_ref().map(|backing| qcow2::Backing {
                name: backing.name.as_encoded_bytes().to_vec(),
                format: None,
                device: None,
            });
            create.data_file = None;
            let measured = qcow2::measure(&create, size, data)?;
            (measured.required, measured.fully_allocated)
        }
    };
    Ok(Measurement {
        required,
        fully_allocated,
        bitmaps: None,
    })
}

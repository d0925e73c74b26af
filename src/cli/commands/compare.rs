//! `blockferry compare`: whether two images are the same, in the words of `qemu-img compare`.

mod statuses;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    block::{Access, SliceDevice},
    copy::{Comparison, Control, compare},
    endpoint::open_device,
    inspect::{Places, View},
};

use super::{
    super::{
        failure::Failure,
        options::{CompareJob, open_options},
        output::print,
        progress::{End, View as Progress},
        signals::Signals,
    },
    copy::{beside, unless_interrupted},
};

/// The exit code for images that differ.
const DIFFERENT: u8 = 1;

pub(crate) fn run(job: &CompareJob) -> Result<ExitCode, Failure> {
    let runtime = super::runtime()?;
    let result = runtime.block_on(compare_images(job));
    runtime.shutdown_background();
    result
}

async fn compare_images(job: &CompareJob) -> Result<ExitCode, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let view = Progress::new(job.show.clone(), job.quiet);
    let questions = view.listen();
    let questions = questions.map_err(|error| Failure::system("signals", &error))?;
    let mut options = job.trust.in_options(open_options(job.timeouts));
    if !job.engine.extents {
        options.contexts.clear();
    }
    let [a, b] = &job.sides;
    let a = open_device(a, Access::ReadOnly, &options);
    let mut a = unless_interrupted(a, &mut signals).await??;
    let b = open_device(b, Access::ReadOnly, &options);
    let mut b = unless_interrupted(b, &mut signals).await??;
    let counted = |size: u64| size.checked_next_multiple_of(job.size_unit).unwrap_or(size);
    let sizes = [&a, &b].map(|side| counted(side.device.info().size));

    let begun = Instant::now();
    let mut mismatch = None;
    if job.statuses && sizes[0] == sizes[1] {
        let places = |side: usize, opened| Places::of(&job.sides[side], opened, View::Qemu);
        let sides = [places(0, &a), places(1, &b)];
        mismatch = unless_interrupted(statuses::first_mismatch(sides), &mut signals).await??;
        if let Some(offset) = mismatch {
            // Only a difference before it is told instead of it.
            for side in [&mut a, &mut b] {
                let slice = SliceDevice::new(Arc::clone(&side.device), 0, Some(offset))?;
                side.device = Arc::new(slice);
            }
        }
    }
    let control = Control::new();
    // Nothing is written, so there is nothing to finish when somebody wants it to end.
    let comparing = compare(a.device, b.device, &job.engine, &control, &view);
    let comparing = beside(comparing, view.keep_telling(questions));
    let compared = unless_interrupted(comparing, &mut signals).await;
    view.finish(match compared {
        Ok(Ok(_)) => End::Whole,
        _ => End::Failed,
    });
    match compared? {
        Ok(found) => {
            let found = match found {
                Comparison::Differs { offset } => Comparison::Differs {
                    offset: offset - offset % job.size_unit,
                },
                other => other,
            };
            let elapsed = begun.elapsed();
            b.connection.close().await?;
            a.connection.close().await?;
            match mismatch.filter(|_| found == Comparison::Identical) {
                Some(offset) => tell_mismatch(job, offset),
                None => tell(job, found, sizes, elapsed),
            }
        }
        Err(error) => {
            let mut failure = Failure::from(&error.error);
            for connection in [&mut a.connection, &mut b.connection] {
                if let Some(end) = connection.early_end() {
                    failure = failure.note(end);
                }
            }
            let ending = async {
                b.connection.abandon().await;
                a.connection.abandon().await;
            };
            let _ = unless_interrupted(ending, &mut signals).await;
            Err(failure)
        }
    }
}

/// Prints what was found.
fn tell(
    job: &CompareJob,
    found: Comparison,
    sizes: [u64; 2],
    elapsed: Duration,
) -> Result<ExitCode, Failure> {
    let text = match (job.json, job.quiet) {
        (true, _) => json(found, sizes, elapsed),
        (false, true) => String::new(),
        (false, false) => sentences(found, sizes),
    };
    print(&text)?;
    Ok(match found {
        Comparison::Identical => ExitCode::SUCCESS,
        _ => ExitCode::from(DIFFERENT),
    })
}

/// Prints that the images have other parts allocated.
fn tell_mismatch(job: &CompareJob, offset: u64) -> Result<ExitCode, Failure> {
    if !job.quiet {
        let text = format!("Strict mode: Offset {offset} block status mismatch!\n");
        print(&text)?;
    }
    Ok(ExitCode::from(DIFFERENT))
}

fn sentences(found: Comparison, sizes: [u64; 2]) -> String {
    const WARNING: &str = "Warning: Image size mismatch!\n";
    let shorter = sizes[0].min(sizes[1]);
    match found {
        Comparison::Identical if sizes[0] != sizes[1] => {
            format!("{WARNING}Images are identical.\n")
        }
        Comparison::Identical => "Images are identical.\n".to_owned(),
        Comparison::Differs { offset } if offset >= shorter => {
            format!("{WARNING}Content mismatch at offset {offset}!\n")
        }
        Comparison::Differs { offset } => format!("Content mismatch at offset {offset}!\n"),
        _ => "Strict mode: Image size mismatch!\n".to_owned(),
    }
}

fn json(found: Comparison, sizes: [u64; 2], elapsed: Duration) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Json {
        identical: bool,
        /// Where the contents begin to differ, if they do.
        first_difference: Option<u64>,
        sizes: [u64; 2],
        seconds: f64,
    }
    let value = Json {
        identical: found == Comparison::Identical,
        first_difference: match found {
            Comparison::Differs { offset } => Some(offset),
            _ => None,
        },
        sizes,
        seconds: elapsed.as_secs_f64(),
    };
    let text = serde_json::to_string_pretty(&value).expect("numbers and names only");
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_qemu_img() {
        for (found, sizes, text) in [
            (Comparison::Identical, [5, 5], "Images are identical.\n"),
            (
                Comparison::Identical,
                [5, 6],
                "Warning: Image size mismatch!\nImages are identical.\n",
            ),
            (
                Comparison::Differs { offset: 4 },
                [5, 6],
                "Content mismatch at offset 4!\n",
            ),
            (
                Comparison::Differs { offset: 5 },
                [6, 5],
                "Warning: Image size mismatch!\nContent mismatch at offset 5!\n",
            ),
            (
                Comparison::SizesDiffer,
                [6, 5],
                "Strict mode: Image size mismatch!\n",
            ),
        ] {
            assert_eq!(sentences(found, sizes), text);
        }
    }

    #[test]
    fn the_json_tells_a_difference_from_none() {
        let value = |found| -> serde_json::Value {
            serde_json::from_str(&json(found, [1, 2], Duration::from_secs(1))).expect("JSON")
        };
        let same = value(Comparison::Identical);
        assert_eq!(same["identical"], true);
        assert!(same["first-difference"].is_null());
        let different = value(Comparison::Differs { offset: 0 });
        assert_eq!(different["identical"], false);
        assert_eq!(different["first-difference"], 0);
        assert_eq!(different["sizes"], serde_json::json!([1, 2]));
    }
}

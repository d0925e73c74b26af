//! `extentlist`: the extents of a source come from a file.
//!
//! For sources that do not know their own, where somebody else does: a disk behind HTTP or SFTP whose server has
//! `xfs_bmap`, for one. The file is that of nbdkit's filter of this name. A line is `OFFSET LENGTH [TYPE]`, in any
//! order, where sizes may have units and the type is a number (bit 0 hole, bit 1 zero), or has the words `hole` and
//! `zero` in it, or is not there for data. Lines must not overlap; what no line speaks of is a hole that reads as
//! zeroes. Empty lines and those that begin with `#` do not count here, which nbdkit refuses.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use blockferry_block::{
    BlockDevice, BoxFuture, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Exports, Extent, Operation, Parameter, ParameterType, Result, Status, parse_size, printable,
    push_merged,
};

use crate::{
    DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, each_device, lines::about,
};

pub(crate) static EXTENT_LIST: FilterKind = FilterKind {
    name: "extentlist",
    syntax: "extentlist:FILE",
    help: "Extents are what a file says they are",
    parameters: &[Parameter::new(
        "file",
        ParameterType::Path,
        "Lines of OFFSET LENGTH [hole,zero], as nbdkit's filter reads them; all else is a hole",
    )
    .first()
    .required()],
    effects: Effects {
        extents: "base:allocation is the file's, also after writes: put 'readonly' in front; \
                  other contexts are passed through",
        ..Effects::NONE
    },
    build: |values| {
        let path = values.path("file").ok_or("file is missing")?;
        Ok(Arc::new(ExtentList { path }))
    },
};

/// The longest file that is read, in bytes.
const LONGEST_FILE: u64 = 128 << 20;

/// The most lines that have an extent.
const MOST_LINES: usize = 1 << 22;

/// The most extents of one answer.
const MOST_ANSWERED: usize = 256;

/// Tells extents as they stand in a file, in `base:allocation`.
///
/// A wrong file loses data: what it calls a hole is not copied. What is written is not entered into it.
#[derive(Clone, Debug)]
pub struct ExtentList {
    /// The file, of 128 MiB and 4,194,304 extents at most. It is read when the filter is put in front of
    /// something.
    pub path: PathBuf,
}

impl Filter for ExtentList {
    fn kind(&self) -> &'static FilterKind {
        &EXTENT_LIST
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let list: Arc<[Extent]> = read(&self.path)?.into();
        Ok(each_device(EXTENT_LIST.name, below, move |below| {
            let list = Arc::clone(&list);
            let device = Filtered::new(Listed { below, list });
            Box::pin(async move { Ok(Arc::new(device) as Arc<dyn BlockDevice>) })
        }))
    }
}

/// The extents of the file: from 0 to the largest offset, without gaps.
fn read(path: &Path) -> Result<Vec<Extent>> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut text))
        .map_err(|error| about(path, error))?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(wrong(path, "it is longer than 128 MiB"));
    }
    parse(&text).map_err(|message| wrong(path, &message))
}

fn wrong(path: &Path, message: &str) -> Error {
    let message = format!("{}: {message}", printable(path.as_os_str()));
    Error::with_message(ErrorKind::InvalidInput, message)
}

fn parse(text: &[u8]) -> Result<Vec<Extent>, String> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if lines.len() == MOST_LINES {
            return Err(format!(
                "line {number}: there are more than {MOST_LINES} extents"
            ));
        }
        let extent = extent(line).map_err(|message| format!("line {number}: {message}"))?;
        if !extent.range.is_empty() {
            lines.push((extent, number));
        }
    }
    lines.sort_by_key(|(extent, _)| extent.range.start());
    let mut list = Vec::new();
    let (mut end, mut last) = (0, 0);
    let mut push = |start, end, status| {
        let range = ByteRange::between(start, end);
        push_merged(&mut list, Extent { range, status });
    };
    for (Extent { range, status }, number) in lines {
        if range.start() < end {
            let (one, other) = (number.min(last), number.max(last));
            return Err(format!("line {other} overlaps line {one}"));
        }
        push(end, range.start(), Status::HOLE_ZERO);
        push(range.start(), range.end(), status);
        (end, last) = (range.end(), number);
    }
    push(end, u64::MAX, Status::HOLE_ZERO);
    Ok(list)
}

/// The extent of a line.
fn extent(line: &[u8]) -> Result<Extent, String> {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let (Some(offset), Some(length)) = (words.next(), words.next()) else {
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
        return Err(format!("{shown:?} is not OFFSET LENGTH [TYPE]"));
    };
    let size = |word: &[u8]| {
        let word = String::from_utf8_lossy(&word[..word.len().min(80)]);
        parse_size(&word).map_err(|error| error.to_string())
    };
    let range = ByteRange::new(size(offset)?, size(length)?).map_err(|error| error.to_string())?;
    let status = match words.next() {
        None => Status::DATA,
        Some(word) => Status::from_word(word).ok_or("the type is not below 2^32")?,
    };
    Ok(Extent { range, status })
}

/// A device whose extents are those of a list.
struct Listed {
    below: Arc<dyn BlockDevice>,
    list: Arc<[Extent]>,
}

impl DeviceFilter for Listed {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        if !info.knows_allocation() {
            info.contexts.insert(0, Context::Allocation);
        }
        info
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        if *context != Context::Allocation {
            return self.below.extents(range, context);
        }
        let info = self.below.info();
        let checked = match info.can(Capabilities::RESIZE) {
            // It may have grown.
            true => Ok(()),
            false => info.check(Operation::Extents, range),
        };
        let first = self
            .list
            .partition_point(|extent| extent.range.end() <= range.start());
        let parts = self.list[first..].iter().map(move |extent| Extent {
            range: extent.range.intersection(range),
            status: extent.status,
        });
        let parts = parts.take_while(|extent| !extent.range.is_empty());
        let extents = parts.take(MOST_ANSWERED).collect();
        Box::pin(async move { checked.map(|()| extents) })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let list = Arc::clone(&self.list);
        Some(Self { below, list })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use blockferry_block::{
        Buffer, ClientFacts, MemoryDevice, SingleExport, WriteFlags,
        testing::{Fault, FaultyDevice, Rule, check_device},
    };
    use tempfile::NamedTempFile;

    use super::*;
    use crate::{Chain, NamedFilter};

    /// Pieces as their ends in KiB and statuses.
    fn listed(text: &str) -> Result<Vec<(u64, u64)>, String> {
        let list = parse(text.as_bytes())?;
        let mut next = 0;
        let pieces = list.iter().map(|extent| {
            assert_eq!(extent.range.start(), next);
            next = extent.range.end();
            (extent.range.end() >> 10, extent.status.0)
        });
        Ok(pieces.collect())
    }

    /// The rest of the largest device.
    const REST: (u64, u64) = (i64::MAX as u64 >> 10, 3);

    #[test]
    fn a_list_is_read_as_nbdkit_reads_it() {
        let known: &[(&str, &[(u64, u64)])] = &[
            ("", &[REST]),
            ("0 64K", &[(64, 0), REST]),
            ("64K 64K hole\n", &[(64, 3), (128, 1), REST]),
            (
                "0 64K hole,zero\n64K 64K zero\n",
                &[(64, 3), (128, 2), REST],
            ),
            ("64K 64K 0\n0 64K 0\n", &[(128, 0), REST]),
            ("0 64K 2\n  64K\t65536   1 \r\n", &[(64, 2), (128, 1), REST]),
            ("0 64K 7\n0 0 0", &[REST]),
            ("0 64K data\n64K 64K 4 more", &[(128, 0), REST]),
            ("# all of it\n\n  0 1M 02\n", &[(1024, 2), REST]),
            ("1M 7E 0", &[(1024, 3), ((7 << 50) + 1024, 0), REST]),
        ];
        for (text, pieces) in known {
            assert_eq!(listed(text).as_deref(), Ok(*pieces), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_list_is_told_with_its_line() {
        let wrong = [
            ("0 64K\n\n32K 64K\n", "line 3 overlaps line 1"),
            ("64K 64K 0\n0 64K 0\n0 1", "line 3 overlaps line 2"),
            (
                "0 64K\n64K\n",
                "line 2: \"64K\" is not OFFSET LENGTH [TYPE]",
            ),
            ("0 64K\n#\nx 64K\n", "line 3: \"x\" is not a size"),
            ("0 -1", "line 1: \"-1\" is not a size"),
            ("7E 7E", "line 1: "),
            ("0 9E", "line 1: "),
            ("0 1 99999999999", "line 1: the type is not below 2^32"),
            ("\u{1b}[31m", "line 1: \"\\u{1b}[31m\" is not"),
        ];
        for (text, message) in wrong {
            let told = listed(text).expect_err(text);
            assert!(told.starts_with(message), "{told}");
        }
        let nonsense = [b'9'; 1000];
        assert!(parse(&nonsense).expect_err("no extent").len() < 200);
    }

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("room");
        file
    }

    async fn through(text: &str, device: impl BlockDevice + 'static) -> Arc<dyn BlockDevice> {
        let file = file(text);
        let named = format!("extentlist:{}", file.path().display());
        let named = NamedFilter::parse(named.as_ref()).expect("a filter");
        let chain = Chain::new(&[named], Arc::new(SingleExport::new(Arc::new(device))));
        let open = chain.expect("a list").exports();
        let open = open.open("", ClientFacts::default()).await;
        open.expect("an export").device
    }

    #[tokio::test]
    async fn the_list_is_told_whatever_the_source_says() {
        let source = FaultyDevice::new(Arc::new(MemoryDevice::new(100_000)));
        let source = source.with_info(|info| info.contexts = vec![Context::AllocationDepth]);
        let source = source.with(Rule::on_all().fault(Fault::Error(ErrorKind::Io)));
        let device = through("1000 2000\n3000 10 zero", source).await;
        assert!(device.info().knows_allocation());
        assert_eq!(device.info().contexts.len(), 2);
        let ask = async |start, end| {
            let range = ByteRange::between(start, end);
            let answer = device.extents(range, &Context::Allocation).await;
            answer.map(|list| {
                let pieces = list.iter();
                let pieces = pieces.map(|it| (it.range.start(), it.range.end(), it.status.0));
                pieces.collect::<Vec<_>>()
            })
        };
        let whole = ask(0, 100_000).await.expect("an answer");
        let pieces = [
            (0, 1000, 3),
            (1000, 3000, 0),
            (3000, 3010, 2),
            (3010, 100_000, 3),
        ];
        assert_eq!(whole, pieces);
        assert_eq!(
            ask(2999, 3001).await.expect("an answer"),
            [(2999, 3000, 0), (3000, 3001, 2)]
        );
        assert_eq!(ask(5, 5).await.expect("an answer"), []);
        let error = ask(5, 100_001).await.expect_err("beyond");
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::OutOfBounds, Some(5))
        );
        let range = ByteRange::between(7, 9);
        let other = device.extents(range, &Context::AllocationDepth).await;
        assert_eq!(other.expect_err("the source's own").kind(), ErrorKind::Io);
        let write = device
            .write(7, Buffer::zeroed(3), WriteFlags::empty())
            .await;
        let error = write.expect_err("the source's own");
        assert_eq!((error.offset(), error.length()), (Some(7), Some(3)));
    }

    #[tokio::test]
    async fn bytes_are_the_source_s() {
        for seed in 0..4 {
            let device = MemoryDevice::new(200_000);
            let device = if seed % 2 == 0 {
                device
            } else {
                device.growable()
            };
            // A list of nothing that must read as zeroes.
            let device = through("0 64K\n64K 1M hole\n1088K 7E", device).await;
            check_device(&*device, seed, 300).await;
        }
    }

    #[tokio::test]
    async fn a_long_list_is_told_in_bounded_answers() {
        let lines: String = (0..10_000)
            .map(|at| format!("{at} 1 {}\n", at % 3))
            .collect();
        let device = through(&lines, MemoryDevice::new(20_000)).await;
        let mut at = 0;
        while at < 20_000 {
            let range = ByteRange::between(at, 20_000);
            let answer = device.extents(range, &Context::Allocation).await;
            let answer = answer.expect("an answer");
            assert!(answer.len() <= MOST_ANSWERED);
            for extent in answer {
                assert_eq!(extent.range.start(), at);
                at = extent.range.end();
                let status = if at <= 10_000 { (at - 1) % 3 } else { 3 };
                assert_eq!(extent.status.0, status);
            }
        }
    }

    #[test]
    fn a_file_that_is_missing_or_wrong_is_told_before_anything_is_served() {
        let exports = || Arc::new(SingleExport::new(Arc::new(MemoryDevice::new(1))));
        let missing = ExtentList {
            path: "/no/such/list".into(),
        }
        .layer(exports());
        let error = missing.map(drop).expect_err("no file");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/no/such/list"), "{error}");
        let bad = file("nonsense");
        let wrong = ExtentList {
            path: bad.path().into(),
        }
        .layer(exports());
        let error = wrong.map(drop).expect_err("no list").to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}

//! A device that asks a script for everything.

use std::{
    ffi::{OsStr, OsString},
    sync::Arc,
};

use blockferry_block::{
    BlockDevice, BlockLimits, BoxFuture, Buffer, ByteRange, Capabilities, ClientFacts, Context,
    DeviceInfo, Error, ErrorKind, Extent, Operation, Result, Status, WriteFlags, ZeroFlags,
};

use crate::{
    answers::{self, AnswerError, Support, ThreadModel},
    calls::{LONG, SHORT},
    handle::Handle,
    process::{Input, Output},
};

/// The longest request, as nbdkit has it: 64 MiB.
const LONGEST: u32 = 64 << 20;

/// A handle, and what the script said of the device behind it.
pub(crate) struct ScriptDevice {
    handle: Handle,
    info: DeviceInfo,
    fua: Support,
    cache: Support,
    can_extents: bool,
}

impl ScriptDevice {
    /// Asks the script for everything that is fixed as long as the handle is open.
    pub(crate) async fn new(
        handle: Handle,
        model: ThreadModel,
        client: ClientFacts,
    ) -> Result<Self> {
        let questions = Questions(&handle);
        let size = questions.size().await?;
        let mut capabilities = Capabilities::empty();
        let mut fua = Support::None;
        let mut can_flush = None;
        if !client.read_only && questions.can("can_write").await? {
            capabilities |= Capabilities::WRITE;
            let can_zero = questions.can("can_zero").await?;
            capabilities.set(Capabilities::ZERO, can_zero);
            // Where nothing can be zeroed it is known at once that it would not be fast.
            let is_fast = questions.ask("can_fast_zero").await?.unwrap_or(!can_zero);
            capabilities.set(Capabilities::FAST_ZERO, is_fast);
            capabilities.set(Capabilities::TRIM, questions.can("can_trim").await?);
            fua = match questions.support("can_fua").await? {
                Some(support) => support,
                None => match *can_flush.insert(questions.can("can_flush").await?) {
                    true => Support::Emulate,
                    false => Support::None,
                },
            };
        }
        let can_flush = match can_flush {
            Some(known) => known,
            None => questions.can("can_flush").await?,
        };
        capabilities.set(Capabilities::FLUSH, can_flush);
        capabilities.set(Capabilities::FUA, fua != Support::None);
        let rotational = questions.can("is_rotational").await?;
        // A second connection would wait for the end of the first.
        let is_shared =
            questions.can("can_multi_conn").await? && model != ThreadModel::SerializeConnections;
        capabilities.set(Capabilities::MULTI_CONN, is_shared);
        let cache = questions
            .support("can_cache")
            .await?
            .unwrap_or(Support::None);
        capabilities.set(Capabilities::CACHE, cache != Support::None);
        let can_extents = questions.can("can_extents").await?;
        let limits = questions.block_size().await?;
        let description = questions.description().await?;

        let mut info = DeviceInfo::new(Arc::clone(&handle.runner().name), size);
        info.capabilities = capabilities;
        info.limits = limits;
        info.rotational = rotational;
        // Without extents all of it is data.
        info.contexts = vec![Context::Allocation];
        info.description = description;
        Ok(Self {
            handle,
            info,
            fua,
            cache,
            can_extents,
        })
    }

    /// Checks a request, and adds to the error of what it comes to where that was.
    async fn request<T>(
        &self,
        operation: Operation,
        offset: u64,
        length: u64,
        work: impl AsyncFnOnce(ByteRange) -> Result<T>,
    ) -> Result<T> {
        let result = async {
            let range = ByteRange::new(offset, length)
                .map_err(|error| Error::with_source(ErrorKind::OutOfBounds, error))?;
            self.info.check(operation, range)?;
            let _turn = self.handle.turn().await?;
            work(range).await
        };
        result.await.map_err(|error| {
            error
                .during(operation)
                .at(offset, length)
                .on(&self.info.name)
        })
    }

    /// Calls a method with the handle and a range, and flags for those that have any.
    async fn tell(
        &self,
        method: &'static str,
        range: ByteRange,
        flags: Option<&str>,
        input: Input<'_>,
    ) -> Result<bool> {
        let [count, offset] = numbers(range);
        let mut arguments = vec![self.handle.text(), &count, &offset];
        arguments.extend(flags.map(OsStr::new));
        self.handle.calls().send(method, &arguments, input).await
    }

    async fn pread(&self, range: ByteRange, output: Output<'_>) -> Result<()> {
        let [count, offset] = numbers(range);
        let arguments = [self.handle.text(), &count, &offset];
        let calls = self.handle.calls();
        let reply = calls.call("pread", &arguments, Input::Nothing, output);
        let reply = reply.await?;
        match calls.plain("pread", reply)? {
            Some(printed) if printed == range.len() => Ok(()),
            Some(printed) => {
                let words = format!("it printed {printed} bytes instead of {}", range.len());
                Err(self.error(ErrorKind::Io, "pread", &words))
            }
            None => Err(self.missing("pread")),
        }
    }

    async fn pwrite(&self, range: ByteRange, input: Input<'_>, flags: &str) -> Result<()> {
        match self.tell("pwrite", range, Some(flags), input).await? {
            true => Ok(()),
            false => Err(self.missing("pwrite")),
        }
    }

    /// Writes zeroes where the script cannot do it in another way.
    async fn write_zeroes(&self, range: ByteRange, flags: &str) -> Result<()> {
        for piece in range.pieces(u64::from(self.info.limits.maximum)) {
            let input = Input::Zeroes(piece.len());
            self.pwrite(piece, input, flags).await?;
        }
        Ok(())
    }

    /// The second half of FUA, where the script does only the first.
    async fn make_durable(&self, fua: bool) -> Result<()> {
        if fua && self.fua != Support::Native {
            self.flush_script().await?;
        }
        Ok(())
    }

    async fn flush_script(&self) -> Result<()> {
        let arguments = [self.handle.text()];
        // One that is not there has nothing to do.
        self.handle.calls().tell("flush", &arguments).await?;
        Ok(())
    }

    /// The flag for a request that is to be durable, if the script takes care of that.
    fn fua_flag(&self, fua: bool) -> &'static str {
        if fua && self.fua == Support::Native {
            "fua"
        } else {
            ""
        }
    }

    fn error(&self, kind: ErrorKind, method: &str, words: &str) -> Error {
        self.handle.runner().error(kind, method, words)
    }

    fn missing(&self, method: &str) -> Error {
        let words = "the script does not know this method, which it must";
        self.error(ErrorKind::Io, method, words)
    }
}

impl BlockDevice for ScriptDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let length = buffer.len() as u64;
            self.request(Operation::Read, offset, length, async |range| {
                self.pread(range, Output::Fill(&mut buffer)).await
            })
            .await?;
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let fua = flags.contains(WriteFlags::FUA);
            let length = data.len() as u64;
            self.request(Operation::Write, offset, length, async |range| {
                self.pwrite(range, Input::Bytes(&data), self.fua_flag(fua))
                    .await?;
                self.make_durable(fua).await
            })
            .await?;
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        let (offset, length) = (range.start(), range.len());
        Box::pin(
            self.request(Operation::Zero, offset, length, async move |range| {
                let fua = flags.contains(ZeroFlags::FUA);
                let fua_flag = self.fua_flag(fua);
                if self.info.can(Capabilities::ZERO) {
                    let words = zero_flags(fua_flag, flags);
                    let told = self.tell("zero", range, Some(&words), Input::Nothing);
                    match told.await {
                        Ok(true) => return self.make_durable(fua).await,
                        Ok(false) => {}
                        Err(error) if error.kind() == ErrorKind::Unsupported => {}
                        Err(error) => return Err(error),
                    }
                }
                if flags.contains(ZeroFlags::FAST) {
                    return Err(Error::new(ErrorKind::Unsupported));
                }
                self.write_zeroes(range, fua_flag).await?;
                self.make_durable(fua).await
            }),
        )
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        let (offset, length) = (range.start(), range.len());
        Box::pin(
            self.request(Operation::Trim, offset, length, async move |range| {
                if !self.info.can(Capabilities::TRIM) {
                    return Err(Error::new(ErrorKind::Unsupported));
                }
                let fua = flags.contains(WriteFlags::FUA);
                let words = self.fua_flag(fua);
                // A trim is no more than a hint: it does not matter whether the method is there.
                self.tell("trim", range, Some(words), Input::Nothing)
                    .await?;
                self.make_durable(fua).await
            }),
        )
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !self.info.can(Capabilities::FLUSH) {
                return Ok(());
            }
            let result = async {
                let _turn = self.handle.turn().await?;
                self.flush_script().await
            };
            result
                .await
                .map_err(|error| error.during(Operation::Flush).on(&self.info.name))
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        let (offset, length) = (range.start(), range.len());
        Box::pin(
            self.request(Operation::Cache, offset, length, async move |range| {
                match self.cache {
                    Support::None => {}
                    Support::Native => {
                        self.tell("cache", range, None, Input::Nothing).await?;
                    }
                    Support::Emulate => {
                        for piece in range.pieces(u64::from(self.info.limits.maximum)) {
                            self.pread(piece, Output::Count(piece.len())).await?;
                        }
                    }
                }
                Ok(())
            }),
        )
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let (offset, length) = (range.start(), range.len());
        Box::pin(
            self.request(Operation::Extents, offset, length, async move |range| {
                if *context != Context::Allocation {
                    return Err(Error::new(ErrorKind::Unsupported));
                }
                if range.is_empty() {
                    return Ok(Vec::new());
                }
                if !self.can_extents {
                    let status = Status::DATA;
                    return Ok(vec![Extent { range, status }]);
                }
                let [count, offset] = numbers(range);
                let arguments = [self.handle.text(), &count, &offset, OsStr::new("")];
                let answer = self.handle.calls().ask("extents", &arguments, LONG).await?;
                let answer = answer.ok_or_else(|| self.missing("extents"))?;
                answers::extents(&answer, range)
                    .map_err(|error| self.handle.runner().nonsense("extents", &error))
            }),
        )
    }
}

/// The questions that are asked of a handle when it was opened.
struct Questions<'a>(&'a Handle);

impl Questions<'_> {
    /// A question with the answer no where there is none.
    async fn can(&self, method: &str) -> Result<bool> {
        Ok(self.ask(method).await?.unwrap_or(false))
    }

    async fn ask(&self, method: &str) -> Result<Option<bool>> {
        let _turn = self.0.turn().await?;
        let arguments = [self.0.text()];
        self.0.calls().question(method, &arguments).await
    }

    async fn support(&self, method: &str) -> Result<Option<Support>> {
        let answer = self.line(method).await?;
        let support = answer.map(|answer| Support::parse(&answer));
        self.understand(method, support.transpose())
    }

    async fn size(&self) -> Result<u64> {
        let Some(answer) = self.line("get_size").await? else {
            let words = "the script does not know this method, which it must";
            return Err(self.0.runner().error(ErrorKind::Io, "get_size", words));
        };
        self.understand("get_size", answers::size(&answer))
    }

    async fn block_size(&self) -> Result<BlockLimits> {
        let answer = self.line("block_size").await?;
        let limits = answer.map(|answer| answers::block_size(&answer, LONGEST));
        let limits = self.understand("block_size", limits.transpose())?;
        Ok(limits.flatten().unwrap_or(BlockLimits {
            maximum: LONGEST,
            ..BlockLimits::default()
        }))
    }

    async fn description(&self) -> Result<Option<String>> {
        let answer = self.line("export_description").await?;
        let text = answer.map(|it| String::from_utf8_lossy(answers::line(&it)).into_owned());
        Ok(text.filter(|text| text.len() <= answers::LONGEST_STRING))
    }

    async fn line(&self, method: &str) -> Result<Option<Vec<u8>>> {
        let _turn = self.0.turn().await?;
        let arguments = [self.0.text()];
        self.0.calls().ask(method, &arguments, SHORT).await
    }

    fn understand<T>(&self, method: &str, answer: Result<T, AnswerError>) -> Result<T> {
        answer.map_err(|error| self.0.runner().nonsense(method, &error))
    }
}

/// A range as arguments: its length and its offset.
fn numbers(range: ByteRange) -> [OsString; 2] {
    [range.len(), range.start()].map(|number| number.to_string().into())
}

/// The flags of `zero` as an argument, behind that of FUA.
fn zero_flags(fua: &str, flags: ZeroFlags) -> String {
    let words = [
        (fua, true),
        ("may_trim", !flags.contains(ZeroFlags::NO_HOLE)),
        ("fast", flags.contains(ZeroFlags::FAST)),
    ];
    let words = words.into_iter();
    let words: Vec<_> = words
        .filter(|(word, is_set)| *is_set && !word.is_empty())
        .map(|(word, _)| word)
        .collect();
    words.join(",")
}

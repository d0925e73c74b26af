//! A server that says what a script says.

use blockferry_proto::{
    ClientConfig, ClientHandshake, Error, Goal, Misbehaviour, Outcome, Step, Tls,
};

pub(crate) const ACK: u32 = 1;
pub(crate) const SERVER: u32 = 2;
pub(crate) const INFO: u32 = 3;
pub(crate) const META_CONTEXT: u32 = 4;
pub(crate) const UNSUP: u32 = 0x8000_0001;
pub(crate) const TLS_REQD: u32 = 0x8000_0005;
pub(crate) const UNKNOWN: u32 = 0x8000_0006;
pub(crate) const SHUTDOWN: u32 = 0x8000_0007;

/// What a server has to say, played without looking at what the client says.
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
}

/// What came of it: the result, and what the client sent.
pub(crate) struct Played {
    pub(crate) result: Result<Option<Outcome>, Error>,
    pub(crate) sent: Vec<Vec<u8>>,
    pub(crate) tls_after: Option<usize>,
}

impl Script {
    pub(crate) fn greeting(flags: u16) -> Self {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend(flags.to_be_bytes());
        Self { bytes }
    }

    /// The whole greeting of an oldstyle server.
    pub(crate) fn old_style(size: u64, flags: u16) -> Self {
        let mut bytes = b"NBDMAGIC".to_vec();
        bytes.extend(0x0000_4202_8186_1253_u64.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend(u32::from(flags).to_be_bytes());
        bytes.extend([0; 124]);
        Self { bytes }
    }

    pub(crate) fn fixed() -> Self {
        Self::greeting(3)
    }

    /// A server with simple replies only.
    pub(crate) fn simple() -> Self {
        Self::fixed().reply(11, UNSUP, b"").reply(8, UNSUP, b"")
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    pub(crate) fn reply(mut self, option: u32, kind: u32, payload: &[u8]) -> Self {
        self.bytes.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        self.bytes.extend(option.to_be_bytes());
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend((payload.len() as u32).to_be_bytes());
        self.bytes.extend(payload);
        self
    }

    pub(crate) fn export(self, option: u32) -> Self {
        self.reply(option, INFO, &export(1 << 20, 1))
    }

    pub(crate) fn context(self, option: u32, id: u32, name: &str) -> Self {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend(name.as_bytes());
        self.reply(option, META_CONTEXT, &payload)
    }

    pub(crate) fn listed(self, name: &str, description: &str) -> Self {
        let mut payload = (name.len() as u32).to_be_bytes().to_vec();
        payload.extend(name.as_bytes());
        payload.extend(description.as_bytes());
        self.reply(3, SERVER, &payload)
    }

    pub(crate) fn play(&self, config: ClientConfig) -> Played {
        let mut handshake = ClientHandshake::new(config).unwrap();
        let mut input = &self.bytes[..];
        let mut played = Played {
            result: Ok(None),
            sent: Vec::new(),
            tls_after: None,
        };
        loop {
            match handshake.step() {
                Step::Send(bytes) => played.sent.push(bytes),
                Step::Receive(count) => {
                    let Some((head, tail)) = input.split_at_checked(count) else {
                        played.result = Err(handshake.hung_up());
                        return played;
                    };
                    input = tail;
                    if let Err(error) = handshake.receive(head) {
                        played.result = Err(error);
                    }
                }
                Step::StartTls => {
                    played.tls_after = Some(self.bytes.len() - input.len());
                    handshake.tls_ready();
                }
                Step::Done => break,
            }
        }
        assert!(input.is_empty() || played.result.is_err());
        if played.result.is_ok() {
            played.result = Ok(handshake.take_outcome());
        }
        played
    }

    pub(crate) fn fails(&self, config: ClientConfig) -> Error {
        self.play(config).result.unwrap_err()
    }

    pub(crate) fn misbehaves(&self, config: ClientConfig) -> Misbehaviour {
        match self.fails(config) {
            Error::Misbehaved(misbehaviour) => misbehaviour,
            other => panic!("{other}"),
        }
    }
}

pub(crate) fn export(size: u64, flags: u16) -> Vec<u8> {
    let mut payload = vec![0, 0];
    payload.extend(size.to_be_bytes());
    payload.extend(flags.to_be_bytes());
    payload
}

pub(crate) fn block_size(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let mut payload = vec![0, 3];
    for size in [minimum, preferred, maximum] {
        payload.extend(size.to_be_bytes());
    }
    payload
}

pub(crate) fn config() -> ClientConfig {
    let mut config = ClientConfig::default();
    config.export = "disk".to_owned();
    config
}

pub(crate) fn goal(goal: Goal) -> ClientConfig {
    let mut config = config();
    config.goal = goal;
    config
}

pub(crate) fn tls(tls: Tls) -> ClientConfig {
    let mut config = config();
    config.tls = tls;
    config
}

pub(crate) fn options(played: &Played) -> Vec<u32> {
    let sent = played.sent.concat();
    let mut rest = &sent[4..];
    let mut options = Vec::new();
    while let Some(tail) = rest.strip_prefix(b"IHAVEOPT") {
        let field = |at: usize| u32::from_be_bytes(tail[at..at + 4].try_into().unwrap());
        options.push(field(0));
        rest = &tail[8 + field(4) as usize..];
    }
    options
}

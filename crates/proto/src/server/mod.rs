//! The server's side: [`ServerHandshake`] until transmission begins, then [`ServerSession`] for
//! the requests and [`ReplyWriter`] for the answers.

mod handshake;
mod options;
mod replies;
mod requests;
mod rules;

pub use handshake::{
    OpenPurpose, OptionRefusal, ServedExport, ServerConfig, ServerHandshake, ServerStep, TlsPolicy,
};
pub use replies::{ReplyHeader, ReplyTo, ReplyWriter};
pub use requests::{
    ContextSelection, RefusedRequest, RequestEvent, RequestLimits, ServerRequest, ServerSession,
};

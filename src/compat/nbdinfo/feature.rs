//! What `--can`, `--is` and `--has` ask about.

use crate::{
    inspect::{Abilities, Server},
    proto::Negotiated,
};

/// Something that a server or an export has or lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    /// It answers, which is all that reading takes.
    Connect,
    Tls,
    StructuredReplies,
    ExtendedHeaders,
    ReadOnly,
    Write,
    Rotational,
    BlockStatusPayload,
    Cache,
    Df,
    FastZero,
    Flush,
    Fua,
    MultiConn,
    Trim,
    Zero,
}

impl Feature {
    /// The feature of this name, in any case and with dashes, underlines or blanks between the words.
    pub(super) fn named(name: &str) -> Option<Self> {
        let plain = name.to_ascii_lowercase().replace(['_', ' '], "-");
        Some(match &*plain {
            "connect" | "open" | "read" => Self::Connect,
            "tls" => Self::Tls,
            "sr" | "structured" | "structured-reply" | "structured-replies" => {
                Self::StructuredReplies
            }
            "eh" | "extended" | "extended-header" | "extended-headers" => Self::ExtendedHeaders,
            "readonly" | "read-only" => Self::ReadOnly,
            "write" => Self::Write,
            "rotational" => Self::Rotational,
            "block-status-payload" => Self::BlockStatusPayload,
            "cache" => Self::Cache,
            "df" => Self::Df,
            "fastzero" | "fast-zero" => Self::FastZero,
            "flush" => Self::Flush,
            "fua" => Self::Fua,
            "multiconn" | "multi-conn" => Self::MultiConn,
            "trim" => Self::Trim,
            "zero" => Self::Zero,
            _ => return None,
        })
    }

    pub(super) fn is_had_by(self, negotiated: &Negotiated) -> bool {
        let server = Server::of(negotiated);
        let abilities = Abilities::of(negotiated);
        match self {
            Self::Connect => true,
            Self::Tls => server.tls,
            Self::StructuredReplies => server.structured,
            Self::ExtendedHeaders => server.extended,
            Self::ReadOnly => abilities.is_read_only,
            Self::Write => !abilities.is_read_only,
            Self::Rotational => abilities.is_rotational,
            Self::BlockStatusPayload => abilities.can_block_status_payload,
            Self::Cache => abilities.can_cache,
            Self::Df => abilities.can_df,
            Self::FastZero => abilities.can_fast_zero,
            Self::Flush => abilities.can_flush,
            Self::Fua => abilities.can_fua,
            Self::MultiConn => abilities.can_multi_conn,
            Self::Trim => abilities.can_trim,
            Self::Zero => abilities.can_zero,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_understood() {
        for name in ["multi-conn", "multi_conn", "multiconn", "Multi Conn"] {
            assert_eq!(Feature::named(name), Some(Feature::MultiConn), "{name}");
        }
        for name in ["structured-reply", "structured_replies", "sr", "SR"] {
            assert_eq!(
                Feature::named(name),
                Some(Feature::StructuredReplies),
                "{name}"
            );
        }
        assert_eq!(Feature::named("fly"), None);
        assert_eq!(Feature::named(""), None);
    }

    #[test]
    fn every_feature_of_the_manual_is_known() {
        let names = "cache connect df fast-zero flush fua multi-conn read trim write zero \
                     block-status-payload read-only rotational tls structured-reply extended-headers";
        for name in names.split_whitespace() {
            assert!(Feature::named(name).is_some(), "{name}");
        }
    }
}

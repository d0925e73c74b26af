//! The table of all filters: the parser reads them by it, and `blockferry filters` prints it.

use crate::{
    FilterKind, abilities, blocksize, cache, cacheextents, cow, delay, error, exitlast, extentlist,
    fua, limit, log, nocache, offset, packed, partition, rate, readahead, retry, rotational,
    salvage, serialize, stats, swab, tar, truncate,
};

/// All filters, by their names.
pub static FILTERS: &[&FilterKind] = &[
    &blocksize::BLOCK_SIZE,
    &packed::BZIP2,
    &cache::CACHE,
    &cacheextents::CACHE_EXTENTS,
    &cow::COW,
    &delay::DELAY,
    &error::ERROR,
    &exitlast::EXIT_LAST,
    &extentlist::EXTENT_LIST,
    &fua::FUA,
    &packed::GZIP,
    &limit::LIMIT,
    &log::LOG,
    &abilities::MULTI_CONN,
    &nocache::NO_CACHE,
    &abilities::NO_EXTENTS,
    &abilities::NO_TRIM,
    &abilities::NO_ZERO,
    &offset::OFFSET,
    &partition::PARTITION,
    &offset::RANGE,
    &rate::RATE,
    &readahead::READ_AHEAD,
    &abilities::READ_ONLY,
    &retry::RETRY,
    &rotational::ROTATIONAL,
    &salvage::SALVAGE,
    &serialize::SERIALIZE,
    &stats::STATS,
    &swab::SWAB,
    &tar::TAR,
    &truncate::TRUNCATE,
    &packed::XZ,
    &packed::ZSTD,
];

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use blockferry_block::{Grammar, ParameterPlace, Values};

    use super::*;

    #[test]
    fn rows_are_explained_in_order_and_defaults_can_be_read() {
        for pair in FILTERS.windows(2) {
            assert!(pair[0].name < pair[1].name, "{}", pair[1].name);
        }
        for row in FILTERS {
            let effects = row.effects;
            let texts = [
                row.help,
                effects.extents,
                effects.mapping,
                effects.flush,
                effects.concurrency,
            ];
            let parameters = row.parameters.iter().map(|parameter| parameter.help);
            for text in texts.into_iter().chain(parameters) {
                assert!(text.len() > 5 && !text.ends_with('.'), "{row:?}");
            }
            assert!(row.syntax.starts_with(row.name), "{row:?}");
            for parameter in row.parameters {
                let shown = row.syntax.to_uppercase();
                assert!(shown.contains(&parameter.name.to_uppercase()), "{row:?}");
                let Some(default) = parameter.default else {
                    continue;
                };
                let text = match parameter.place {
                    ParameterPlace::Named => format!("{}={default}", parameter.name),
                    _ => default.to_owned(),
                };
                let grammar = Grammar {
                    parameters: std::slice::from_ref(parameter),
                    ..row.grammar()
                };
                let read = Values::read(&grammar, OsStr::new(&text));
                assert!(read.is_ok(), "{}: {text}", row.name);
            }
        }
    }
}

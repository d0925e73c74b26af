//! One entry of an L2 table: what is known of a cluster (specification, "Cluster mapping", "Extended L2 Entries").

use blockferry_block::Result;

use super::geometry::{Geometry, corrupt};

/// The refcount of what an entry of a table points at is exactly one, so it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
/// The cluster is compressed.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3 without subclusters).
const ZERO: u64 = 1;
/// The bits of an entry, of the L1 table, too, that hold an offset in the file.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// A compressed cluster's length counts in sectors of so many bytes.
pub(crate) const SECTOR: u64 = 512;

/// An entry as it stands in a table, in the byte order of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The descriptor.
    pub(crate) word: u64,
    /// The subclusters: bits 0 to 31 say which are allocated, bits 32 to 63 which read as zeroes. 0 where there
    /// are none.
    pub(crate) subclusters: u64,
}

/// What an entry says of its cluster. Hosts are offsets in the file that the data lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// It is not in this image: what is behind it shows, or zeroes.
    Unallocated,
    /// It reads as zeroes; `host` is a cluster that it keeps, with anything in it.
    Zero { host: Option<u64> },
    /// It lies in the file as it is.
    Data { host: u64 },
    /// It is compressed.
    Compressed(Compressed),
    /// Its subclusters differ (extended L2 entries). `host` is where the whole cluster lies, unless none of it does.
    /// No bit is set in both masks, and what is in neither is not in this image.
    Mixed {
        host: Option<u64>,
        /// Which subclusters lie in the file.
        allocated: u32,
        /// Which read as zeroes.
        zero: u32,
    },
}

/// What a subcluster of a [mixed](Cluster::Mixed) cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subcluster {
    /// It lies in the file.
    Allocated,
    /// It reads as zeroes.
    Zero,
    /// It is not in this image.
    Absent,
}

impl Subcluster {
    /// What the subcluster `number` is by the two masks, and the number behind those in a row that are the same.
    pub(crate) fn row(number: u32, allocated: u32, zero: u32) -> (Self, u32) {
        let kind = |number: u32| match (allocated >> number & 1, zero >> number & 1) {
            (1, _) => Self::Allocated,
            (_, 1) => Self::Zero,
            _ => Self::Absent,
        };
        let own = kind(number);
        let end = (number..u32::BITS).find(|number| kind(*number) != own);
        (own, end.unwrap_or(u32::BITS))
    }
}

/// Where a compressed cluster lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compressed {
    /// The offset of its first byte in the file, on no boundary.
    pub(crate) offset: u64,
    /// How many bytes there are up to the end of its last sector; the stream ends somewhere in the last sector,
    /// and others' bytes may follow it. At most two clusters.
    pub(crate) length: u64,
}

impl Entry {
    /// What it says in an image of that geometry.
    ///
    /// # Errors
    /// `Corrupt` for an offset that is no cluster's, and for bits that contradict each other.
    pub(crate) fn decode(self, geometry: Geometry) -> Result<Cluster> {
        let word = self.word;
        if word & COMPRESSED != 0 {
            if self.subclusters != 0 {
                return Err(corrupt("a compressed cluster has subclusters"));
            }
            return Ok(Cluster::Compressed(Compressed::decode(word, geometry)));
        }
        let offset = word & OFFSET;
        if !geometry.is_aligned(offset) {
            return Err(corrupt(format!(
                "a cluster at {offset:#x} is not on a cluster's boundary"
            )));
        }
        let host = (offset != 0).then_some(offset);
        // With an external data file a cluster may lie at offset 0: only this bit tells it from none.
        let host = host.or((geometry.data_file && word & COPIED != 0).then_some(0));
        if geometry.extended {
            return self.decode_subclusters(host);
        }
        if geometry.version >= 3 && word & ZERO != 0 {
            return Ok(Cluster::Zero { host });
        }
        Ok(match host {
            Some(host) => Cluster::Data { host },
            None => Cluster::Unallocated,
        })
    }

    fn decode_subclusters(self, host: Option<u64>) -> Result<Cluster> {
        let (allocated, zero) = (self.subclusters as u32, (self.subclusters >> 32) as u32);
        if allocated & zero != 0 {
            return Err(corrupt("a subcluster is both allocated and zero"));
        }
        match (host, allocated, zero) {
            (None, 1.., _) => Err(corrupt("a subcluster is allocated nowhere")),
            (Some(host), u32::MAX, _) => Ok(Cluster::Data { host }),
            (_, _, u32::MAX) => Ok(Cluster::Zero { host }),
            (None, 0, 0) => Ok(Cluster::Unallocated),
            _ => Ok(Cluster::Mixed {
                host,
                allocated,
                zero,
            }),
        }
    }

    /// The entry of a cluster whose refcount, if it lies in the file, is one.
    pub(crate) fn encode(cluster: Cluster, geometry: Geometry) -> Self {
        let copied = |host: Option<u64>| host.map_or(0, |host| host | COPIED);
        match cluster {
            Cluster::Unallocated => Self::default(),
            Cluster::Zero { host } if geometry.extended => Self {
                word: copied(host),
                subclusters: u64::from(u32::MAX) << 32,
            },
            Cluster::Zero { host } => Self {
                word: copied(host) | ZERO,
                subclusters: 0,
            },
            Cluster::Data { host } => Self {
                word: host | COPIED,
                subclusters: if geometry.extended {
                    u32::MAX.into()
                } else {
                    0
                },
            },
            Cluster::Compressed(compressed) => Self {
                word: compressed.encode(geometry),
                subclusters: 0,
            },
            Cluster::Mixed {
                host,
                allocated,
                zero,
            } => Self {
                word: copied(host),
                subclusters: u64::from(zero) << 32 | u64::from(allocated),
            },
        }
    }
}

impl Compressed {
    /// How many low bits of a descriptor hold the offset (specification, "Compressed Clusters Descriptor").
    fn offset_bits(geometry: Geometry) -> u32 {
        62 - (geometry.cluster_bits - 8)
    }

    fn decode(word: u64, geometry: Geometry) -> Self {
        let bits = Self::offset_bits(geometry);
        let offset = word & ((1 << bits) - 1);
        let additional = (word & !(COPIED | COMPRESSED)) >> bits;
        let length = (additional + 1) * SECTOR - offset % SECTOR;
        Self { offset, length }
    }

    fn encode(self, geometry: Geometry) -> u64 {
        let bits = Self::offset_bits(geometry);
        let sectors = (self.offset % SECTOR + self.length).div_ceil(SECTOR);
        COMPRESSED | sectors.saturating_sub(1) << bits | self.offset
    }

    /// The largest offset that a descriptor has room for.
    pub(crate) fn most_offset(geometry: Geometry) -> u64 {
        (1 << Self::offset_bits(geometry)) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, extended: bool) -> Geometry {
        Geometry {
            cluster_bits,
            size: 1 << 30,
            refcount_order: 4,
            extended,
            data_file: false,
            version: 3,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for cluster_bits in 9..=21 {
            for extended in [false, true] {
                let geometry = geometry(cluster_bits, extended);
                let host = Some(7 << 21);
                let mut clusters = vec![
                    Cluster::Unallocated,
                    Cluster::Zero { host: None },
                    Cluster::Zero { host },
                    Cluster::Data { host: 7 << 21 },
                    Cluster::Compressed(Compressed {
                        offset: 513,
                        length: 511,
                    }),
                    Cluster::Compressed(Compressed {
                        offset: (1 << 33) + 5,
                        length: 507,
                    }),
                ];
                if extended {
                    clusters.push(Cluster::Mixed {
                        host,
                        allocated: 1,
                        zero: 6,
                    });
                    clusters.push(Cluster::Mixed {
                        host: None,
                        allocated: 0,
                        zero: 6,
                    });
                }
                for cluster in clusters {
                    let entry = Entry::encode(cluster, geometry);
                    assert_eq!(
                        entry.decode(geometry).expect("valid"),
                        cluster,
                        "{cluster_bits} {extended}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_descriptor_of_qemu_is_read() {
        // 64 KiB clusters: 54 bits of offset, then the additional sectors.
        let entry = Entry {
            word: COMPRESSED | 3 << 54 | 0x5_0123,
            subclusters: 0,
        };
        let expected = Compressed {
            offset: 0x5_0123,
            length: 4 * 512 - 0x123,
        };
        assert_eq!(
            entry.decode(geometry(16, false)).expect("valid"),
            Cluster::Compressed(expected)
        );
    }

    #[test]
    fn contradictions_are_corrupt() {
        let extended = geometry(16, true);
        for (geometry, word, subclusters) in [
            (geometry(16, false), 0x1_0200, 0),
            (extended, 0, 1),
            (extended, 0x1_0000, 1 << 32 | 1),
            (extended, COMPRESSED, 1),
        ] {
            let entry = Entry { word, subclusters };
            assert!(
                entry.decode(geometry).is_err(),
                "{word:#x} {subclusters:#x}"
            );
        }
    }
}

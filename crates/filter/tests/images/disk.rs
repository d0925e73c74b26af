//! Disks with an MBR, with logical partitions, with a GPT.

/// The bytes of a disk.
pub struct Disk {
    pub bytes: Vec<u8>,
    /// The size of a sector, in bytes.
    pub sector: usize,
}

/// What a GPT is made of.
#[derive(Clone, Copy)]
pub struct Gpt<'a> {
    /// First sector, last sector and name, each under the number that its place in the list gives, from 1 on.
    /// An empty name and no sectors leave the entry unused.
    pub entries: &'a [(u64, u64, &'a str)],
    pub entry_size: usize,
    pub entry_count: usize,
}

impl Gpt<'_> {
    pub const USUAL: Gpt<'static> = Gpt {
        entries: &[],
        entry_size: 128,
        entry_count: 128,
    };
}

impl Disk {
    /// A disk of so many sectors, each of which says which it is in all of its bytes.
    pub fn new(sectors: usize, sector: usize) -> Self {
        let mut bytes = vec![0; sectors * sector];
        for (index, place) in (0..).zip(bytes.chunks_exact_mut(sector)) {
            let mark = (index as u64).to_le_bytes();
            place
                .chunks_mut(8)
                .for_each(|chunk| chunk.copy_from_slice(&mark[..chunk.len()]));
        }
        Self { bytes, sector }
    }

    /// Empties a sector and signs it as one with four entries.
    pub fn table(&mut self, at: usize) -> &mut Self {
        let place = at * self.sector;
        self.bytes[place..place + self.sector].fill(0);
        self.bytes[place + 510..place + 512].copy_from_slice(&[0x55, 0xaa]);
        self
    }

    /// Writes the entry `index`, from 0 on, of the table in sector `at`.
    pub fn entry(
        &mut self,
        at: usize,
        index: usize,
        kind: u8,
        start: u32,
        length: u32,
    ) -> &mut Self {
        let place = at * self.sector + 446 + 16 * index;
        let entry = &mut self.bytes[place..place + 16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&length.to_le_bytes());
        self
    }

    /// Writes a protective MBR, and a GPT at both ends.
    pub fn gpt(&mut self, gpt: Gpt<'_>) -> &mut Self {
        let last = self.bytes.len() / self.sector - 1;
        self.table(0);
        self.entry(0, 0, 0xee, 1, u32::try_from(last).unwrap_or(u32::MAX));
        let mut array = vec![0; gpt.entry_size * gpt.entry_count];
        for (entry, (first, last, name)) in array.chunks_exact_mut(gpt.entry_size).zip(gpt.entries)
        {
            if name.is_empty() && *last == 0 {
                continue;
            }
            entry[..16].fill(0x11);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            let units = name.encode_utf16().flat_map(u16::to_le_bytes);
            entry[56..128]
                .iter_mut()
                .zip(units)
                .for_each(|(to, from)| *to = from);
        }
        let sectors = array.len().div_ceil(self.sector);
        for (own, other, place) in [(1, last, 2), (last, 1, last - sectors)] {
            let start = place * self.sector;
            self.bytes[start..start + array.len()].copy_from_slice(&array);
            let start = own * self.sector;
            let header = &mut self.bytes[start..start + self.sector];
            header.fill(0);
            header[..8].copy_from_slice(b"EFI PART");
            header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            for (at, number) in [
                (24, own),
                (32, other),
                (40, 2 + sectors),
                (48, last - sectors - 1),
            ] {
                header[at..at + 8].copy_from_slice(&(number as u64).to_le_bytes());
            }
            header[72..80].copy_from_slice(&(place as u64).to_le_bytes());
            header[80..84].copy_from_slice(&(gpt.entry_count as u32).to_le_bytes());
            header[84..88].copy_from_slice(&(gpt.entry_size as u32).to_le_bytes());
            header[88..92].copy_from_slice(&crc32(&array).to_le_bytes());
            self.seal(own);
        }
        self
    }

    /// Writes bytes into the GPT header in sector `at` and makes its checksum right again.
    pub fn patch(&mut self, at: usize, offset: usize, bytes: &[u8]) -> &mut Self {
        let place = at * self.sector + offset;
        self.bytes[place..place + bytes.len()].copy_from_slice(bytes);
        self.seal(at);
        self
    }

    /// Makes the checksum of the GPT header in sector `at` right.
    fn seal(&mut self, at: usize) {
        let start = at * self.sector;
        let header = &mut self.bytes[start..start + 92];
        header[16..20].fill(0);
        let checksum = crc32(header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// CRC-32 as the definition has it, bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut rest = u32::MAX;
    for byte in bytes {
        rest ^= u32::from(*byte);
        for _ in 0..8 {
            rest = (rest >> 1) ^ (0xedb8_8320 & (rest & 1).wrapping_neg());
        }
    }
    !rest
}

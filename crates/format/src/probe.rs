//! Which format an image seems to be in, by how it begins.

use blockferry_packing::Packing;

/// How many bytes from the beginning of an image are enough to tell.
pub const PROBE_LENGTH: usize = 512;

/// How images begin that are not just bytes: where, with what, and the format's name.
const MAGICS: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
];

/// The format that an image seems to have which begins with `bytes`, under qemu's name for it; `None` for one that
/// is just bytes. [`PROBE_LENGTH`] bytes are enough, fewer are those of a shorter image.
#[must_use]
pub fn probe(bytes: &[u8]) -> Option<&'static str> {
    let begins = |(offset, magic, _): &&(usize, &[u8], &str)| {
        bytes
            .get(*offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    MAGICS.iter().find(begins).map(|(.., format)| *format)
}

/// How a file seems to be compressed that begins with `bytes`; `None` for one that does not seem to be. Those are no
/// formats of images: what knows nothing of compression takes them for bytes.
#[must_use]
pub fn probe_packing(bytes: &[u8]) -> Option<Packing> {
    Packing::of(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_is_in_no_format() {
        let mut bytes = b"\xfd7zXZ\0\0\x04".to_vec();
        bytes.resize(PROBE_LENGTH, 0);
        assert_eq!(probe_packing(&bytes), Some(Packing::Xz));
        assert_eq!(probe(&bytes), None);
        assert_eq!(probe_packing(&[0; PROBE_LENGTH]), None);
    }

    #[test]
    fn each_format_is_told_by_its_magic() {
        for &(offset, magic, format) in MAGICS {
            let mut bytes = vec![0; PROBE_LENGTH];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            assert_eq!(probe(&bytes), Some(format));
            assert_eq!(
                probe(&bytes[..offset + magic.len() - 1])
                    .filter(|it| *it == format && format != "qcow"),
                None
            );
        }
        for bytes in [&b""[..], b"QFI", &[0; 4096]] {
            assert_eq!(probe(bytes), None);
        }
    }
}

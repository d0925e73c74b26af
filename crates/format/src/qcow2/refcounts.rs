//! Refcounts as they stand in a block of them (specification, "Host cluster management").

/// The bits of an entry of the refcount table that hold the place of a block.
pub(crate) const BLOCK_OFFSET: u64 = !0x1ff;

/// The largest refcount that `1 << order` bits can hold.
pub(crate) fn largest(order: u32) -> u64 {
    match order {
        6 => u64::MAX,
        _ => (1 << (1 << order)) - 1,
    }
}

/// Refcount `index` of a block.
pub(crate) fn refcount(block: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let (byte, shift) = narrow(order, index);
        return u64::from(block[byte] >> shift) & largest(order);
    }
    let width = 1 << (order - 3);
    let bytes = &block[index * width..][..width];
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets refcount `index` of a block to `value`, which is at most the [`largest`].
pub(crate) fn set_refcount(block: &mut [u8], order: u32, index: usize, value: u64) {
    if order < 3 {
        let (byte, shift) = narrow(order, index);
        let mask = largest(order) as u8;
        block[byte] = block[byte] & !(mask << shift) | (value as u8 & mask) << shift;
        return;
    }
    let width = 1 << (order - 3);
    block[index * width..][..width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

/// The byte that a refcount of less than 8 bits lies in, and from which of its bits on.
fn narrow(order: u32, index: usize) -> (usize, u32) {
    let bit = index << order;
    (bit / 8, (bit % 8) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_lie_beside_each_other() {
        for order in 0..=6 {
            let count = (64 * 8) >> order;
            let value =
                |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & largest(order);
            let mut block = [0xa5; 64];
            for index in 0..count {
                set_refcount(&mut block, order, index, value(index));
            }
            for index in 0..count {
                assert_eq!(
                    refcount(&block, order, index),
                    value(index),
                    "{order} {index}"
                );
            }
        }
    }

    #[test]
    fn the_lowest_bits_come_first_and_bytes_are_big_endian() {
        let mut block = [0; 8];
        set_refcount(&mut block, 0, 9, 1);
        assert_eq!(block[..2], [0, 2]);
        set_refcount(&mut block, 2, 4, 0xc);
        assert_eq!(block[2], 0x0c);
        set_refcount(&mut block, 4, 2, 0x1234);
        assert_eq!(block[4..6], [0x12, 0x34]);
        assert_eq!([0, 1, 4, 6].map(largest), [1, 3, 0xffff, u64::MAX]);
    }
}

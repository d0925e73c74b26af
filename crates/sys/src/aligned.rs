//! Memory aligned to a page, always initialised.
//!
//! Long runs are mapped from the kernel by themselves, not taken from the allocator: the kernel clears their
//! pages when they are first touched, and what is dropped is given back at once.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The alignment of [`AlignedBytes`] in bytes.
pub const PAGE_ALIGNMENT: usize = 4096;

/// From so many bytes on a run is mapped by itself.
const MAPPED: usize = 128 << 10;

/// Owned bytes that begin at a multiple of [`PAGE_ALIGNMENT`]. Zeroed when allocated.
pub struct AlignedBytes {
    start: NonNull<u8>,
    length: usize,
}

impl AlignedBytes {
    /// `length` zero bytes. They are cleared once, here, so that no later user has to.
    ///
    /// # Panics
    /// When `length` exceeds `isize::MAX`; aborts when memory runs out, as `Vec` does.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        if length == 0 {
            return Self::default();
        }
        let layout = Self::layout(length);
        let start = if length >= MAPPED {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: without a wanted address the kernel chooses one that is free.
            let mapped =
                unsafe { mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE) };
            mapped.map_or(ptr::null_mut(), <*mut _>::cast)
        } else {
            // SAFETY: the layout's size is not zero.
            unsafe { alloc_zeroed(layout) }
        };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self { start, length }
    }

    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length, PAGE_ALIGNMENT).expect("a length below isize::MAX")
    }
}

/// Without the bytes: there are many, and they are somebody's.
impl fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBytes({} bytes)", self.length)
    }
}

impl Default for AlignedBytes {
    fn default() -> Self {
        let start = ptr::without_provenance_mut(PAGE_ALIGNMENT);
        Self {
            start: NonNull::new(start).expect("the alignment is not 0"),
            length: 0,
        }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `length` initialised bytes (or dangling, aligned and 0 long),
        // and the borrow of `self` keeps others from writing.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the unique borrow of `self` keeps everyone else out.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.length >= MAPPED {
            // SAFETY: the memory was mapped in `zeroed` with this length, and nobody borrows it any more.
            // Unmapping a whole mapping does not fail.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        } else if self.length > 0 {
            // SAFETY: the memory was allocated in `zeroed` with this same layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.length)) }
        }
    }
}

// SAFETY: the bytes are owned by this value alone, as a `Vec<u8>`'s are.
unsafe impl Send for AlignedBytes {}
// SAFETY: a shared borrow only reads.
unsafe impl Sync for AlignedBytes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_length_are_zero_aligned_and_writable_to_the_end() {
        // An interpreter takes long for millions of bytes.
        let step = if cfg!(miri) { 1021 } else { 1 };
        for length in [1, 4095, MAPPED - 1, MAPPED, MAPPED + 1, 3 << 20] {
            let mut bytes = AlignedBytes::zeroed(length);
            assert_eq!(bytes.len(), length);
            assert_eq!(bytes.as_ptr().addr() % PAGE_ALIGNMENT, 0);
            assert!(bytes.iter().step_by(step).all(|byte| *byte == 0));
            bytes.fill(0xff);
            assert_eq!(bytes[length - 1], 0xff);
        }
        assert!(AlignedBytes::zeroed(0).is_empty());
    }
}

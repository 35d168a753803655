//! Small blocks of memory, kept for whoever asks for their size next.
//!
//! A request allocates eight times, mostly because the host hands over a value. The general
//! allocator takes some 190 instructions for a block and its return, spread over memory that
//! Envoy's own work has driven out of the caches; a list of blocks of one size takes 20, and gives
//! the block that was used last. Blocks join no larger ones, so that a list keeps only so many of
//! them, and the general allocator has the rest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;

/// Sizes are multiples of this, in bytes, and so is where the general allocator's blocks begin.
const STEP: usize = 16;
/// Lists; the last one's blocks hold the headers of most requests.
const LISTS: usize = 128;
/// Bytes that one list keeps, at most: all of them half a mebibyte.
const KEPT: usize = 4096;

/// Free blocks of one size. The first bytes of each say where the next is.
struct List {
    first: *mut u8,
    bytes: usize,
}

struct Small {
    lists: UnsafeCell<[List; LISTS]>,
}

// SAFETY: the module is compiled for one thread, and no host call is made while a list is in use.
unsafe impl Sync for Small {}

#[cfg_attr(target_family = "wasm", global_allocator)]
#[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "the module's alone"))]
static SMALL: Small =
    Small { lists: UnsafeCell::new([const { List { first: ptr::null_mut(), bytes: 0 } }; LISTS]) };

/// The list of blocks that hold this, if there is one, and their layout.
const fn list(layout: Layout) -> Option<(usize, Layout)> {
    if layout.align() > STEP || layout.size() > STEP * LISTS || layout.size() == 0 {
        return None;
    }
    let at = (layout.size() - 1) / STEP;
    // SAFETY: the size is not zero and far from the largest, the alignment is a power of two.
    Some((at, unsafe { Layout::from_size_align_unchecked((at + 1) * STEP, STEP) }))
}

// SAFETY: every block is the general allocator's, of a layout that depends on the list alone, and
// is either in one list or handed out.
unsafe impl GlobalAlloc for Small {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((at, whole)) = list(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { System.alloc(layout) };
        };
        // SAFETY: one thread, and nothing below allocates through this.
        let list = unsafe { (*self.lists.get()).get_mut(at) };
        match list.filter(|list| !list.first.is_null()) {
            Some(list) => {
                let block = list.first;
                // SAFETY: a block in a list begins with the address of the next.
                list.first = unsafe { block.cast::<*mut u8>().read() };
                list.bytes = list.bytes.wrapping_sub(whole.size());
                block
            }
            // SAFETY: the size is not zero.
            None => unsafe { System.alloc(whole) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((at, whole)) = list(layout) else {
            // SAFETY: as the caller promises, and it came from there.
            return unsafe { System.dealloc(block, layout) };
        };
        // SAFETY: one thread, and nothing below allocates through this.
        let list = unsafe { (*self.lists.get()).get_mut(at) };
        match list.filter(|list| list.bytes < KEPT) {
            Some(list) => {
                // SAFETY: the block is nobody's any more, has room for an address and is aligned to
                // it.
                unsafe { block.cast::<*mut u8>().write(list.first) };
                list.first = block;
                list.bytes = list.bytes.wrapping_add(whole.size());
            }
            // SAFETY: it came from there with this layout.
            None => unsafe { System.dealloc(block, whole) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (list(layout), list(wanted)) {
            (Some((was, _)), Some((is, _))) if was == is => block,
            // SAFETY: as the caller promises, and it came from there.
            (None, None) => unsafe { System.realloc(block, layout, size) },
            _ => {
                // SAFETY: both blocks hold the lesser of both sizes, and they are apart.
                unsafe {
                    let new = self.alloc(wanted);
                    if !new.is_null() {
                        ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    new
                }
            }
        }
    }
}

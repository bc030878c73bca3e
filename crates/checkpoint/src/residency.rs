//! How much of the mapped files stays in memory.
//!
//! Mapped pages count as this process's memory for as long as they are mapped in, whether or not the system could take
//! them back. A model larger than memory is read once, front to back: what was read is let go.

use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;

/// Bytes read since the files were last let go, and how many there may be.
#[derive(Debug)]
pub(crate) struct Residency {
    limit: AtomicUsize,
    touched: AtomicUsize,
}

impl Default for Residency {
    fn default() -> Self {
        Residency { limit: AtomicUsize::new(usize::MAX), touched: AtomicUsize::new(0) }
    }
}

impl Residency {
    pub(crate) fn bound(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn is_bounded(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != usize::MAX
    }

    /// Notes that `bytes` are about to be read, and lets all go where that would be too many. Other threads that read
    /// meanwhile find their pages again in the file.
    pub(crate) fn touched(&self, bytes: usize, parts: &[Mmap]) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == usize::MAX {
            return;
        }
        let before = self.touched.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > limit {
            self.touched.store(bytes, Ordering::Relaxed);
            parts.iter().for_each(let_go);
        }
    }
}

#[cfg(unix)]
fn let_go(part: &Mmap) {
    // SAFETY: the map is a shared, read-only one of a file: pages that are let go are read from it again when touched,
    // so no borrowed byte changes.
    let done = unsafe { part.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    // It is advice: where the system does not take it, memory is used and nothing else happens.
    drop(done);
}

#[cfg(not(unix))]
fn let_go(_part: &Mmap) {}

//! Objects over 16 KiB: an allocation each, in a list without holes.

/// Charged beyond the object's own bytes: the list's slot and the allocator's header.
pub(super) const OVERHEAD_BYTES: usize = size_of::<Object>() + ALLOCATOR_BYTES;

/// What common allocators keep per allocation and lose to rounding.
const ALLOCATOR_BYTES: usize = 16;

struct Object {
    bytes: Box<[u8]>,
    handle: u32,
}

pub(super) struct Large {
    objects: Vec<Object>,
    reserved_bytes: u64,
}

impl Large {
    pub(super) const fn new() -> Self {
        Self { objects: Vec::new(), reserved_bytes: 0 }
    }

    /// The place the next push will use; `None` when places run out.
    pub(super) fn next(&self) -> Option<u32> {
        u32::try_from(self.objects.len()).ok()
    }

    pub(super) fn push(&mut self, handle: u32, bytes: &[u8]) {
        self.reserved_bytes += (bytes.len() + ALLOCATOR_BYTES) as u64;
        self.objects.push(Object { bytes: bytes.into(), handle });
    }

    pub(super) fn get(&self, at: u32) -> &[u8] {
        &self.objects[at as usize].bytes
    }

    /// Closes the hole at `at` with the last entry; returns that object's handle if it had to move.
    pub(super) fn remove(&mut self, at: u32) -> Option<u32> {
        let at = at as usize;
        let object = self.objects.swap_remove(at);
        self.reserved_bytes -= (object.bytes.len() + ALLOCATOR_BYTES) as u64;
        if self.objects.len() * 4 <= self.objects.capacity() {
            self.objects.shrink_to(self.objects.len() * 2);
        }
        self.objects.get(at).map(|moved| moved.handle)
    }

    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes + (self.objects.capacity() * size_of::<Object>()) as u64
    }
}

#[cfg(test)]
impl Large {
    /// Each object's handle with its place.
    pub(super) fn verify(&self) -> Vec<(u32, u32)> {
        self.objects.iter().zip(0..).map(|(object, at)| (object.handle, at)).collect()
    }
}

//! aya's permission to move these types in and out of BPF maps as bytes.

use crate::{CookieKey, DmEvent, ProcKey, ProcRecord, SemKey, SemRecord, SiteText};

// SAFETY: `#[repr(C)]`, every bit pattern valid, no implicit padding (sizes asserted).
unsafe impl aya::Pod for SemKey {}
// SAFETY: as above.
unsafe impl aya::Pod for CookieKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ProcKey {}
// SAFETY: as above.
unsafe impl aya::Pod for SemRecord {}
// SAFETY: as above.
unsafe impl aya::Pod for ProcRecord {}
// SAFETY: as above.
unsafe impl aya::Pod for DmEvent {}
// SAFETY: as above.
unsafe impl aya::Pod for SiteText {}

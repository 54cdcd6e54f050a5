//! The fast part of finding: which blocks of bytes may have a number at all.

/// Bytes that are looked at together.
pub(super) const BLOCK: usize = 64;

/// Where the next block is in which a number may begin, or which has no whole block behind it.
pub(super) fn next_candidate(bytes: &[u8], at: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { next_candidate_avx2(bytes, at) };
    }
    skip_blocks(bytes, at)
}

/// The same code, for registers twice as wide.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn next_candidate_avx2(bytes: &[u8], at: usize) -> usize {
    skip_blocks(bytes, at)
}

#[inline(always)]
fn skip_blocks(bytes: &[u8], mut at: usize) -> usize {
    while let Some(block) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        if may_contain(block) {
            break;
        }
        at += BLOCK;
    }
    at
}

/// Whether some form of a number may begin at a byte of the block. Written so that the compiler makes
/// vector code of it: no branch, and one byte for each condition. Two bytes of each form are enough.
#[inline(always)]
fn may_contain(block: &[u8; BLOCK + 1]) -> bool {
    let mut any = 0_u8;
    for i in 0..BLOCK {
        let (a, b) = (block[i], block[i + 1]);
        let binary = u8::from(a == 0x4d) & u8::from(b == 0x0d);
        let shifted = u8::from(a & 0xfe == 0x9a) & u8::from(b & 0x4f == 0x0a);
        let hex = u8::from(a | 0x20 == b'd') & u8::from(b == b'4');
        let decimal = u8::from(a == b'2') & u8::from(b == b'2');
        let variable = u8::from(a == b'D') & u8::from(b == b'M');
        any |= binary | shifted | hex | decimal | variable;
    }
    any != 0
}

/// Whether these bytes begin the part of a form that is the same for all cookies.
pub(super) const fn is_anchor(a: u8, b: u8, c: u8) -> bool {
    // The upper half of the number, of the number shifted by one, of the number as a double.
    let binary = a == 0x4d && b == 0x0d;
    let shifted = a & 0xfe == 0x9a && (b == 0x1a || b == 0xaa && c == 0x41);
    let hex = a | 0x20 == b'd' && b == b'4' && c | 0x20 == b'd';
    let decimal = a == b'2' && b == b'2' && c == b'3';
    let variable = a == b'D' && b == b'M' && c == b'_';
    binary || shifted || hex || decimal || variable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_part_lets_every_anchor_pass() {
        for a in 0..=255 {
            for b in 0..=255 {
                let anchor = [0, 0x41, b'd', b'D', b'3', b'_']
                    .into_iter()
                    .any(|c| is_anchor(a, b, c));
                for at in [0, 1, 31, 63] {
                    let mut block = [0; BLOCK + 1];
                    block[at..at + 2].copy_from_slice(&[a, b]);
                    assert!(!anchor || may_contain(&block), "{a:x} {b:x} at {at}");
                }
            }
        }
        assert!(!may_contain(&[0; BLOCK + 1]));
        assert!(!may_contain(&[0xff; BLOCK + 1]));
    }

    #[test]
    fn both_widths_are_the_same() {
        let mut bytes = vec![0; 4096];
        assert_eq!(next_candidate(&bytes, 0), 4096 - BLOCK);
        bytes[3000] = b'D';
        bytes[3001] = b'M';
        let expected = 3000 / BLOCK * BLOCK;
        assert_eq!(next_candidate(&bytes, 0), expected);
        assert_eq!(skip_blocks(&bytes, 0), expected);
        assert_eq!(next_candidate(&bytes, 9999), 9999);
    }
}

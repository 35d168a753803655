//! Hexadecimal ids, both ways, without an allocation.
//!
//! W3C Trace Context allows lower-case digits only and MUSTs a proxy to refuse the rest, while B3,
//! Jaeger and X-Ray implementations write both cases; so there are two decoders. Every decoder
//! wants the exact number of digits: an id that is cut or padded in silence joins two traces that
//! have nothing to do with each other.

/// `2 * N` lower-case digits, nothing else.
pub(crate) fn lower<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.iter().any(u8::is_ascii_uppercase) { None } else { any_case(text) }
}

/// `2 * N` digits of either case, nothing else.
pub(crate) fn any_case<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != N.checked_mul(2)? {
        return None;
    }
    let mut out = [0_u8; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = (digit(*high)? << 4) | digit(*low)?;
    }
    Some(out)
}

/// One to `2 * N` digits of either case, zeroes understood on the left (Jaeger's rule).
pub(crate) fn padded<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.is_empty() || text.len() > N.checked_mul(2)? {
        return None;
    }
    let mut out = [0_u8; N];
    for (byte, pair) in out.iter_mut().rev().zip(text.rchunks(2)) {
        *byte = match pair {
            [high, low] => (digit(*high)? << 4) | digit(*low)?,
            [low] => digit(*low)?,
            _ => return None,
        };
    }
    Some(out)
}

/// Appends lower-case digits.
pub(crate) fn write<const N: usize>(out: &mut Vec<u8>, bytes: &[u8; N]) {
    let mut text = [[0; 2]; N];
    let (fours, rest) = bytes.as_chunks::<4>();
    let (eights, last) = text.as_flattened_mut().as_chunks_mut::<8>();
    for (digits, four) in eights.iter_mut().zip(fours) {
        *digits = eight_digits(*four);
    }
    for (digits, byte) in last.chunks_exact_mut(2).zip(rest) {
        let [pair @ .., _, _, _, _, _, _] = eight_digits([*byte, 0, 0, 0]);
        digits.copy_from_slice(&pair);
    }
    out.extend_from_slice(text.as_flattened());
}

/// The digits of four bytes, all at once in the bytes of one word: the first byte is the lowest, as
/// the processors have it that this runs on.
const fn eight_digits(four: [u8; 4]) -> [u8; 8] {
    let mut bytes = u32::from_le_bytes(four) as u64;
    bytes = (bytes | bytes << 16) & 0x0000_ffff_0000_ffff;
    bytes = (bytes | bytes << 8) & 0x00ff_00ff_00ff_00ff;
    let digits = (bytes >> 4 | bytes << 8) & 0x0f0f_0f0f_0f0f_0f0f;
    // Ten and above carry into the upper half of their byte.
    let letters = (digits.wrapping_add(0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    let from_zero = digits.wrapping_add(0x3030_3030_3030_3030);
    from_zero.wrapping_add(letters.wrapping_mul((b'a' - b'0' - 10) as u64)).to_le_bytes()
}

const fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(c.wrapping_sub(b'a').wrapping_add(10)),
        b'A'..=b'F' => Some(c.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_lengths_only_and_case_matters_to_lower() {
        assert_eq!(lower::<2>(b"0aff"), Some([0x0a, 0xff]));
        assert_eq!(lower::<2>(b"0aFf"), None);
        assert_eq!(any_case::<2>(b"0aFf"), Some([0x0a, 0xff]));
        for text in [&b""[..], b"0af", b"0aff0", b"0ag0", b"0a f"] {
            assert_eq!(any_case::<2>(text), None, "{text:?}");
        }
    }

    #[test]
    fn padding_is_on_the_left_and_overflow_is_refused() {
        assert_eq!(padded::<2>(b"1"), Some([0, 1]));
        assert_eq!(padded::<2>(b"abc"), Some([0x0a, 0xbc]));
        assert_eq!(padded::<2>(b""), None);
        assert_eq!(padded::<2>(b"00001"), None);
    }

    #[test]
    fn writing_is_the_inverse_of_reading() {
        let mut out = Vec::new();
        write(&mut out, &[0x00, 0x9f, 0xf0]);
        assert_eq!(out, b"009ff0");
        for byte in 0..=u8::MAX {
            out.clear();
            let bytes = [byte, 0, !byte, 0x9a, byte];
            write(&mut out, &bytes);
            assert_eq!(lower(&out), Some(bytes), "{byte}");
        }
    }
}

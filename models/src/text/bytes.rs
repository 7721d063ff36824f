//! Owns the alphabet of byte-level tokenizers: GPT-2 writes each byte as one printable character.

/// The byte that a character of a byte-level token stands for; none for characters outside the alphabet.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        // The other 68 bytes, in rising order, are written as U+0100 and up.
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        // The rule as published: printable bytes stand for themselves, the others are numbered from 256.
        let mut expected = Vec::new();
        let mut next = 256;
        for byte in 0..=255u32 {
            let printable = (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
            let code = if printable { byte } else { next };
            next += u32::from(!printable);
            expected.push((char::from_u32(code).expect("in range"), byte as u8));
        }
        assert!(expected.iter().all(|&(character, byte)| byte_of(character) == Some(byte)));
        assert_eq!((0..0x3000).filter_map(char::from_u32).filter_map(byte_of).collect::<BTreeSet<_>>().len(), 256);
        assert_eq!((0..0x3000).filter_map(char::from_u32).filter_map(byte_of).count(), 256);
    }
}

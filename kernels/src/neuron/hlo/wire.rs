//! Owns the protocol-buffer wire format, writing side: varints and length-delimited fields are all that HLO needs.

/// One message under construction; methods take the field number.
#[derive(Clone, Debug, Default)]
pub(in crate::neuron) struct Message(Vec<u8>);

impl Message {
    pub fn int(&mut self, field: u32, value: u64) -> &mut Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    pub fn bytes(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        const LENGTH_DELIMITED: u64 = 2;
        self.varint(u64::from(field) << 3 | LENGTH_DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn text(&mut self, field: u32, text: &str) -> &mut Self {
        self.bytes(field, text.as_bytes())
    }

    pub fn message(&mut self, field: u32, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }

    /// Packed integers; none are left out altogether.
    pub fn ints(&mut self, field: u32, values: impl IntoIterator<Item = usize>) -> &mut Self {
        let mut packed = Self::default();
        values.into_iter().for_each(|v| packed.varint(v as u64));
        if packed.0.is_empty() { self } else { self.message(field, &packed) }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the protocol-buffer encoding guide.
    #[test]
    fn writes_the_documented_bytes() {
        let mut a = Message::default();
        a.int(1, 150);
        assert_eq!(a.clone().into_bytes(), [0x08, 0x96, 0x01]);
        let mut b = Message::default();
        b.text(2, "testing");
        assert_eq!(b.into_bytes(), [0x12, 0x07, 0x74, 0x65, 0x73, 0x74, 0x69, 0x6e, 0x67]);
        let mut c = Message::default();
        c.message(3, &a);
        assert_eq!(c.into_bytes(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        let mut d = Message::default();
        d.ints(6, [3, 270, 86942]);
        assert_eq!(d.into_bytes(), [0x32, 0x06, 0x03, 0x8E, 0x02, 0x9E, 0xA7, 0x05]);
    }
}

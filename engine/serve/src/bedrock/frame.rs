//! Owns the framing of `application/vnd.amazon.eventstream`: messages of headers and a payload, each guarded by two sums.
//! All numbers are big-endian; every header here is a string.
//!
//! `[total length u32][headers length u32][CRC-32 of these 8 bytes][headers][payload][CRC-32 of all before]`, and a header is
//! `[name length u8][name][7][value length u16][value]`.

use serde_json::{Value, json};

use super::exception;
use crate::error::ApiError;

pub const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";
const STRING: u8 = 7;

/// Appends an event of the type `kind`.
pub fn event(out: &mut Vec<u8>, kind: &str, payload: &Value) {
    let headers = [(":event-type", kind), (":content-type", "application/json"), (":message-type", "event")];
    message(out, &headers, payload.to_string().as_bytes());
}

/// Appends the exception that ends a stream.
pub fn failure(out: &mut Vec<u8>, error: &ApiError) {
    let (name, _, body) = exception(error);
    let kind = match name {
        "ThrottlingException" => "throttlingException",
        "ServiceUnavailableException" => "serviceUnavailableException",
        "ValidationException" => "validationException",
        _ => "internalServerException",
    };
    let headers = [(":exception-type", kind), (":content-type", "application/json"), (":message-type", "exception")];
    message(out, &headers, json!({"message": body["message"]}).to_string().as_bytes());
}

fn message(out: &mut Vec<u8>, headers: &[(&str, &str)], payload: &[u8]) {
    let mut head = vec![];
    for (name, value) in headers {
        head.push(u8::try_from(name.len()).expect("names of headers are short: this is a bug"));
        head.extend(name.as_bytes());
        head.push(STRING);
        head.extend(u16::try_from(value.len()).expect("values of headers are short: this is a bug").to_be_bytes());
        head.extend(value.as_bytes());
    }
    let length = |n: usize| u32::try_from(n).expect("a piece of an answer is small: this is a bug").to_be_bytes();
    let start = out.len();
    out.extend(length(16 + head.len() + payload.len()));
    out.extend(length(head.len()));
    let sum = crc32(&out[start..]);
    out.extend(sum.to_be_bytes());
    out.extend(head);
    out.extend(payload);
    let sum = crc32(&out[start..]);
    out.extend(sum.to_be_bytes());
}

/// CRC-32 of IEEE 802.3, as in gzip.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| (sum >> 8) ^ TABLE[((sum ^ u32::from(*byte)) & 0xff) as usize];
    !bytes.iter().fold(!0, step)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value that the catalogue of CRCs gives.
    #[test]
    fn sums_are_those_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    /// The empty message and one with a header of the encoding's published test vectors.
    #[test]
    fn messages_are_those_of_the_test_vectors() {
        let mut out = vec![];
        message(&mut out, &[], b"");
        assert_eq!(out, [0, 0, 0, 0x10, 0, 0, 0, 0, 0x05, 0xc2, 0x48, 0xeb, 0x7d, 0x98, 0xc8, 0xff]);
        let mut out = vec![];
        message(&mut out, &[], b"{'foo':'bar'}");
        let wanted =
            [&[0, 0, 0, 0x1d, 0, 0, 0, 0, 0xfd, 0x52, 0x8c, 0x5a][..], b"{'foo':'bar'}", &[0xc3, 0x65, 0x39, 0x36]];
        assert_eq!(out, wanted.concat());
    }

    #[test]
    fn lengths_add_up() {
        let mut out = b"before".to_vec();
        event(&mut out, "messageStart", &json!({"role": "assistant"}));
        let message = &out[6..];
        let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().expect("four bytes")) as usize;
        assert_eq!(word(0), message.len());
        let payload = &message[12 + word(4)..message.len() - 4];
        assert_eq!(payload, br#"{"role":"assistant"}"#);
        assert_eq!(word(8), crc32(&message[..8]) as usize);
        assert_eq!(word(message.len() - 4), crc32(&message[..message.len() - 4]) as usize);
    }
}

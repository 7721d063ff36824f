//! Reads the protocol-buffer wire format. Knows no message.

/// A field: its number and its content.
pub enum Field<'a> {
    Int(u32, u64),
    Bytes(u32, &'a [u8]),
}

/// All fields of a message, in order.
///
/// # Errors
/// When the bytes are no message.
pub fn fields(mut bytes: &[u8]) -> Result<Vec<Field<'_>>, String> {
    let mut out = vec![];
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = (tag >> 3) as u32;
        let take = |bytes: &mut &[u8], n: usize| {
            bytes.split_off(..n).map(drop).ok_or_else(|| format!("field {number} is cut off"))
        };
        match tag & 7 {
            0 => out.push(Field::Int(number, varint(&mut bytes)?)),
            1 => take(&mut bytes, 8)?,
            2 => {
                let len = varint(&mut bytes)? as usize;
                let content = bytes.split_off(..len).ok_or_else(|| format!("field {number} is cut off"))?;
                out.push(Field::Bytes(number, content));
            }
            5 => take(&mut bytes, 4)?,
            kind => return Err(format!("wire type {kind}")),
        }
    }
    Ok(out)
}

/// Packed integers.
///
/// # Errors
/// When the last one is cut off.
pub fn packed(mut bytes: &[u8]) -> Result<Vec<i64>, String> {
    let mut out = vec![];
    while !bytes.is_empty() {
        out.push(varint(&mut bytes)? as i64);
    }
    Ok(out)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.split_off_first().ok_or("an integer is cut off")?;
        value |= u64::from(byte & 127) << shift;
        if *byte < 128 {
            return Ok(value);
        }
    }
    Err("an integer of more than 64 bits".into())
}

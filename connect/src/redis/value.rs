//! What is stored under a key: a result, whose it is, and a checksum over all of it (`docs/formats/redis.md`).

/// What a value begins with: the name of the format, and its version.
const MAGIC: [u8; 4] = *b"TMM1";
const CHECKSUM_BYTES: usize = 32;
const HEAD_BYTES: usize = 64;

/// A remembered result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The task that ran.
    pub of: u128,
    /// When it succeeded, in microseconds since 1970.
    pub made_us: u64,
    /// The result.
    pub result: Vec<u8>,
}

/// Bytes that are no value of the key that they were found under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusable;

impl Value {
    /// As it is stored under the key of a task.
    #[must_use]
    pub fn encode(&self, key: &[u8; 32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.result.len() + CHECKSUM_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&u32::try_from(self.result.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(&self.of.to_le_bytes());
        bytes.extend_from_slice(&self.made_us.to_le_bytes());
        bytes.extend_from_slice(&self.result);
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads what was found under the key of a task.
    ///
    /// # Errors
    /// When it is not whole, of another format, or of another task.
    pub fn decode(bytes: &[u8], key: &[u8; 32]) -> Result<Self, Unusable> {
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Unusable)?;
        let (head, result) = body.split_first_chunk::<HEAD_BYTES>().ok_or(Unusable)?;
        let is_whole = *blake3::hash(body).as_bytes() == *checksum && head[..4] == MAGIC && head[8..40] == *key;
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if !is_whole || usize::try_from(len) != Ok(result.len()) {
            return Err(Unusable);
        }
        let (mut of, mut made_us) = ([0; 16], [0; 8]);
        of.copy_from_slice(&head[40..56]);
        made_us.copy_from_slice(&head[56..64]);
        Ok(Self { of: u128::from_le_bytes(of), made_us: u64::from_le_bytes(made_us), result: result.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_any_other_key_and_any_cut_makes_a_value_unusable() {
        let key = [7; 32];
        let value = Value { of: 1 << 100, made_us: 1_700_000_000_000_000, result: b"result".to_vec() };
        let bytes = value.encode(&key);
        assert_eq!(Value::decode(&bytes, &key), Ok(value));
        assert_eq!(Value::decode(&bytes, &[8; 32]), Err(Unusable));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(Value::decode(&changed, &key), Err(Unusable), "byte {at}");
            assert_eq!(Value::decode(&bytes[..at], &key), Err(Unusable), "cut at {at}");
        }
    }
}

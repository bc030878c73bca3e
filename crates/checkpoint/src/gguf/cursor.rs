//! Reading forward through bytes that may end anywhere.

use crate::GgufFault;

/// A position in a file's bytes; every read is checked against the end.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Bytes after the position.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes; `what` names them in the error.
    pub(crate) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], GgufFault> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(GgufFault::Truncated {
                what: what.to_owned(),
                at: self.at,
                needs: count,
                size: self.bytes.len(),
            });
        };
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufFault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, GgufFault> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, GgufFault> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each: it cannot exceed what is left.
    pub(crate) fn count(&mut self, least: usize, what: &str) -> Result<usize, GgufFault> {
        let count = self.u64(what)?;
        let room = self.left() / least.max(1);
        usize::try_from(count).ok().filter(|&n| n <= room).ok_or_else(|| GgufFault::Count {
            what: what.to_owned(),
            count,
            left: self.left(),
        })
    }

    /// The bytes of a length-prefixed string.
    pub(crate) fn string_bytes(&mut self, what: &str) -> Result<&'a [u8], GgufFault> {
        let length = self.u64(what)?;
        let Some(length) = usize::try_from(length).ok().filter(|&n| n <= self.left()) else {
            return Err(GgufFault::StringLength { what: what.to_owned(), length, left: self.left() });
        };
        self.take(length, what)
    }

    /// A length-prefixed UTF-8 string.
    pub(crate) fn string(&mut self, what: &str) -> Result<&'a str, GgufFault> {
        let bytes = self.string_bytes(what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufFault::NotUtf8 { what: what.to_owned() })
    }
}

//! The header of a GGUF file: metadata and the table of tensors, every length checked against the
//! file before anything is allocated for it.
//!
//! The format is described at <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;

/// A value of the metadata; arrays of anything but strings and whole numbers are left out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    Integers(Vec<i64>),
    Other,
}

/// Where a tensor lies in the file and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorInfo {
    /// How its numbers are written.
    pub(crate) dtype: GgmlDType,
    /// Rows first, as everywhere but in GGUF.
    pub(crate) shape: Vec<usize>,
    /// Its first byte in the file.
    pub(crate) start: usize,
    /// The byte after its last.
    pub(crate) end: usize,
}

/// What stands before the weights.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

/// Deeper arrays of arrays are refused.
const MAX_DEPTH: usize = 4;

impl Header {
    /// Reads the header of `file`; the error says at which byte it stopped making sense.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { file, at: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err("not a GGUF file: it does not begin with `GGUF`".to_owned());
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version {version}; versions 2 and 3 are read"));
        }
        // The smallest tensor entry and the smallest metadata entry.
        let tensor_count = reader.count(8 + 4 + 4 + 8)?;
        let entries = reader.count(8 + 4 + 1)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.string()?;
            let kind = reader.u32()?;
            let value = reader
                .value(kind, 0)
                .map_err(|error| format!("metadata `{key}`: {error}"))?;
            metadata.insert(key, value);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(n @ 8..=65536)) if n & (n - 1) == 0 => *n as usize,
            Some(other) => return Err(format!("general.alignment is {other:?}")),
        };

        let mut entries = Vec::new();
        for _ in 0..tensor_count {
            let name = reader.string()?;
            let entry = reader
                .tensor()
                .map_err(|error| format!("tensor `{name}`: {error}"))?;
            entries.push((name, entry));
        }
        let data = reader.at.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, (dtype, shape, offset, bytes)) in entries {
            let range = offset
                .checked_add(data)
                .and_then(|s| Some((s, s.checked_add(bytes)?)));
            let (start, end) = match range {
                Some((start, end)) if end <= file.len() => (start, end),
                _ => {
                    return Err(format!(
                        "tensor `{name}` of shape {shape:?} needs {bytes} bytes at byte {offset} of \
                         the weights, but the file ends after {} of them; it is cut short",
                        file.len().saturating_sub(data)
                    ));
                }
            };
            if offset % alignment != 0 {
                return Err(format!(
                    "tensor `{name}` starts at {offset}, not a multiple of {alignment}"
                ));
            }
            if tensors.contains_key(&name) {
                return Err(format!("tensor `{name}` is there twice"));
            }
            tensors.insert(
                name,
                TensorInfo {
                    dtype,
                    shape,
                    start,
                    end,
                },
            );
        }
        Ok(Self { metadata, tensors })
    }
}

/// Reads little-endian values off a slice.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.file.len());
        let Some(end) = end else {
            return Err(format!(
                "{count} bytes expected at byte {}, but the file has {}; it is cut short",
                self.at,
                self.file.len()
            ));
        };
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A number of things of at least `size` bytes each, all of which the file must still hold.
    fn count(&mut self, size: usize) -> Result<usize, String> {
        let at = self.at;
        let count = u64::from_le_bytes(self.array()?);
        let left = self.file.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left / size => Ok(count),
            _ => Err(format!(
                "{count} entries announced at byte {at}, but {left} bytes are left"
            )),
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let at = self.at;
        let length = self.count(1)?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(i64::from(self.array::<1>()?[0])),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Integer(i64::from(self.u32()?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.array::<1>()?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("a truth value of {other}")),
            },
            8 => Value::String(self.string()?),
            9 => self.list(depth)?,
            10 => {
                let number = u64::from_le_bytes(self.array()?);
                Value::Integer(i64::try_from(number).map_err(|_| format!("{number} is too large"))?)
            }
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of unknown type {other}")),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 if depth < MAX_DEPTH => 12,
            other => return Err(format!("an array of type {other} at depth {depth}")),
        };
        let count = self.count(size)?;
        Ok(match kind {
            8 => Value::Strings(
                (0..count)
                    .map(|_| self.string())
                    .collect::<Result<_, _>>()?,
            ),
            9 => {
                for _ in 0..count {
                    self.list(depth + 1)?;
                }
                Value::Other
            }
            6 | 7 | 12 => {
                self.take(count * size)?;
                Value::Other
            }
            _ => {
                let mut integers = Vec::with_capacity(count);
                for _ in 0..count {
                    match self.value(kind, depth)? {
                        Value::Integer(n) => integers.push(n),
                        other => return Err(format!("{other:?} among whole numbers")),
                    }
                }
                Value::Integers(integers)
            }
        })
    }

    /// Type, shape, offset into the weights and size in bytes.
    fn tensor(&mut self) -> Result<(GgmlDType, Vec<usize>, usize, usize), String> {
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("{dimensions} dimensions, expected 1 to 4"));
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dimensions {
            let size = u64::from_le_bytes(self.array()?);
            shape.push(usize::try_from(size).map_err(|_| format!("a dimension of {size}"))?);
        }
        shape.reverse();
        let id = self.u32()?;
        let dtype = dtype(id)?;
        let offset = u64::from_le_bytes(self.array()?);
        let offset = usize::try_from(offset).map_err(|_| format!("an offset of {offset}"))?;

        let row = shape.last().copied().unwrap_or(0);
        if !row.is_multiple_of(dtype.block_size()) {
            return Err(format!(
                "rows of {row} values do not fill whole blocks of {} ({dtype:?})",
                dtype.block_size()
            ));
        }
        let bytes = shape
            .iter()
            .try_fold(1usize, |product, n| product.checked_mul(*n))
            .map(|elements| elements / dtype.block_size())
            .and_then(|blocks| blocks.checked_mul(dtype.type_size()))
            .ok_or_else(|| format!("shape {shape:?} is larger than any file"))?;
        Ok((dtype, shape, offset, bytes))
    }
}

/// The types that can be dequantised, by their number in the file.
fn dtype(id: u32) -> Result<GgmlDType, String> {
    Ok(match id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        other => {
            return Err(format!(
                "quantised type number {other} is not read; read are F32, F16, BF16, Q4_0, Q4_1, \
                 Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend_from_slice(&(text.len() as u64).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }

    /// A file with a value of most types and one tensor `w` of shape [2, 32], Q4_0, 36 bytes.
    fn file() -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend_from_slice(&1u64.to_le_bytes());
        out.extend_from_slice(&5u64.to_le_bytes());
        text(&mut out, "a");
        out.extend_from_slice(&[8, 0, 0, 0]);
        text(&mut out, "text");
        text(&mut out, "b");
        out.extend_from_slice(&[5, 0, 0, 0]);
        out.extend_from_slice(&(-7i32).to_le_bytes());
        text(&mut out, "c");
        out.extend_from_slice(&[9, 0, 0, 0, 8, 0, 0, 0]);
        out.extend_from_slice(&2u64.to_le_bytes());
        text(&mut out, "x");
        text(&mut out, "y");
        text(&mut out, "d");
        out.extend_from_slice(&[9, 0, 0, 0, 4, 0, 0, 0]);
        out.extend_from_slice(&1u64.to_le_bytes());
        out.extend_from_slice(&9u32.to_le_bytes());
        text(&mut out, "general.alignment");
        out.extend_from_slice(&[4, 0, 0, 0]);
        out.extend_from_slice(&32u32.to_le_bytes());
        text(&mut out, "w");
        out.extend_from_slice(&2u32.to_le_bytes());
        out.extend_from_slice(&32u64.to_le_bytes());
        out.extend_from_slice(&2u64.to_le_bytes());
        out.extend_from_slice(&2u32.to_le_bytes());
        out.extend_from_slice(&0u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + 36, 1);
        out
    }

    #[test]
    fn metadata_and_tensors_are_read() {
        let bytes = file();
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.metadata["a"], Value::String("text".to_owned()));
        assert_eq!(header.metadata["b"], Value::Integer(-7));
        assert_eq!(
            header.metadata["c"],
            Value::Strings(vec!["x".to_owned(), "y".to_owned()])
        );
        assert_eq!(header.metadata["d"], Value::Integers(vec![9]));
        let w = &header.tensors["w"];
        assert_eq!((w.dtype, &w.shape[..]), (GgmlDType::Q4_0, &[2, 32][..]));
        assert_eq!((w.start, w.end), (bytes.len() - 36, bytes.len()));
    }

    /// The file with `from` (which is there once) made `to`.
    fn changed(from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut bytes = file();
        let at = bytes
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cut = file()[..file().len() - 1].to_vec();
        let alignment = b"general.alignment\x04\0\0\0";
        let mut odd = alignment.to_vec();
        odd.push(0);
        let cases = [
            (cut, "tensor `w` of shape [2, 32] needs 36 bytes at byte 0"),
            (
                file()[..70].to_vec(),
                "5 entries announced at byte 16, but 46 bytes are left",
            ),
            (b"PK\x03\x04".to_vec(), "does not begin with `GGUF`"),
            (changed(b"GGUF\x03", b"GGUF\x01"), "version 1"),
            (
                changed(b"\x03\0\0\0\x01", b"\x03\0\0\0\xff"),
                "255 entries announced at byte 8",
            ),
            (changed(alignment, &odd), "general.alignment is Integer(0)"),
            (
                changed(b"\x20\0\0\0\0\0\0\0\x02", b"\x21"),
                "rows of 33 values do not fill",
            ),
            (
                changed(b"\x02\0\0\0\0\0\0\0\x02\0\0\0", &[255; 8]),
                "larger than any file",
            ),
            (
                changed(b"\x02\0\0\0\0\0\0\0\0\0\0\0", b"\x13"),
                "quantised type number 19",
            ),
        ];
        for (bytes, expected) in cases {
            let error = Header::parse(&bytes).unwrap_err();
            assert!(error.contains(expected), "{error}, expected {expected}");
        }
    }

    proptest! {
        #[test]
        fn mutated_headers_never_panic_nor_point_outside(
            changes in prop::collection::vec((0..240usize, any::<u8>()), 0..6),
            cut in 0..400usize,
        ) {
            let mut bytes = file();
            bytes.truncate(cut);
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            if let Ok(header) = Header::parse(&bytes) {
                for info in header.tensors.values() {
                    prop_assert!(info.start <= info.end && info.end <= bytes.len());
                }
            }
        }
    }
}

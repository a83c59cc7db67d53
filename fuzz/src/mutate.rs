//! Valid inputs, broken: bits and bytes, lengths and counts, pieces left out, doubled or taken from
//! another input. A mutation is a function of its number alone.

use rand::{RngExt as _, SeedableRng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

/// Numbers that lengths and counts get wrong.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 60,
    u64::MAX / 8 + 1,
    u64::MAX / 2,
    u64::MAX,
];

/// The same, as texts write them.
const WORDS: [&str; 16] = [
    "0",
    "-1",
    "1152921504606846976",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "-0.0",
    "1e-45",
    "nan",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[[[[[[[[[",
    "\u{fffd}\u{10ffff}",
];

/// Mutation number `number` of one of `seeds`; never longer than 1 MiB.
pub fn mutation(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    let mut bytes = seeds.choose(&mut rng).cloned().unwrap_or_default();
    for _ in 0..rng.random_range(1..=4) {
        once(&mut bytes, seeds, &mut rng);
    }
    bytes.truncate(1 << 20);
    bytes
}

fn once(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..=bytes.len());
    let to = (at + rng.random_range(0..=32usize)).min(bytes.len());
    match rng.random_range(0..10) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.random();
            }
        }
        3 | 4 => {
            let number = *NUMBERS.choose(rng).unwrap_or(&0);
            let width = *[1, 2, 4, 8].choose(rng).unwrap_or(&8);
            let end = (at + width).min(bytes.len());
            let number = number.to_le_bytes();
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        5 => bytes.truncate(at),
        6 => drop(bytes.drain(at..to)),
        7 => {
            let piece = bytes[at..to].repeat(rng.random_range(1..=8));
            bytes.splice(at..at, piece);
        }
        8 => {
            // A word for a word, where it is a text.
            let word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-+._".contains(byte);
            let from = bytes[..at].iter().rposition(|byte| !word(byte));
            let from = from.map_or(0, |from| from + 1);
            let end = bytes[at..].iter().position(|byte| !word(byte));
            let end = end.map_or(bytes.len(), |end| at + end);
            let word = WORDS.choose(rng).unwrap_or(&"");
            bytes.splice(from..end, word.bytes());
        }
        _ => {
            let other = seeds.choose(rng).map_or(&[][..], Vec::as_slice);
            let from = rng.random_range(0..=other.len());
            let piece = &other[from..(from + rng.random_range(0..=64usize)).min(other.len())];
            bytes.splice(at..to, piece.iter().copied());
        }
    }
}

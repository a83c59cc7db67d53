//! Any two texts get a verdict, under both configurations, without a panic and in bounded time.
//!
//! `cargo +nightly fuzz run verify` in `reward/`; the first line of the input is the gold.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tina_reward::math::{MathConfig, Verifier};

fuzz_target!(|text: &str| {
    let (gold, completion) = text.split_once('\n').unwrap_or((text, text));
    for config in [MathConfig::reference(), MathConfig::tina()] {
        let verifier = Verifier::new(config);
        verifier.verify(gold, completion);
        // The whole of it inside of a box reaches the parser more often.
        verifier.verify(&format!("${gold}$"), &format!("\\boxed{{{completion}}}"));
    }
});

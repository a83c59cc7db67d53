#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tina_fuzz::wire::learner_stream::run(bytes));

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tina_fuzz::ranks::rank_commands::run(bytes));

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tina_fuzz::wire::adapter_chunks::run(bytes));

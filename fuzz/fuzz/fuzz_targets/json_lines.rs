#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tina_fuzz::texts::json_lines::run(bytes));

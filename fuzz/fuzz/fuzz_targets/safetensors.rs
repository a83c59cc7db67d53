#![no_main]

// The library below asserts what a damaged file can break; that panic is caught, and no finding.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| tina_fuzz::files::safetensors::run(bytes)
);

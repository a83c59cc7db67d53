//! Slots and sequences where the memory of keys and values has a limit.

use super::*;

/// Bytes of a page of the tests' model: 2 layers x 2 key heads x 16 positions x (4 of a key + 16 of a
/// value, filled up to a register).
const PAGE_BYTES: usize = 2 * 2 * 16 * (4 + 16) * 4;

fn capacity(slots: usize, most: usize, pages: usize) -> Capacity {
    Capacity {
        slots,
        most,
        kv_bytes: Some(pages * PAGE_BYTES),
    }
}

/// Four groups of four, none of which ends before its 40th token.
fn long() -> SamplingParams {
    SamplingParams {
        stop_token_ids: Vec::new(),
        ..params(40)
    }
}

fn ask(bench: &mut Bench) {
    for group in 0..4 {
        bench.sample(group, &[0, 1, 2, 3], long());
    }
}

#[test]
fn sequences_that_make_room_end_with_the_same_tokens_and_bits() {
    let decoder = decoder();
    let mut free = Bench::new(&decoder, 16);
    ask(&mut free);
    let expected = free.completions();
    // A sequence takes three pages in the end, so that sixteen of them take 48 and more.
    for pages in [4, 9, 20] {
        let mut bench = Bench::with(&decoder, capacity(16, 16, pages), plan());
        ask(&mut bench);
        let (mut most, mut set_back) = (0, false);
        let mut before = 0;
        while !bench.engine.is_idle() {
            bench.engine.step(&mut bench.events);
            most = most.max(bench.engine.held());
            let decoding = bench.engine.decoding();
            let done = bench.events.len();
            set_back |= decoding + done < before;
            before = decoding + done;
        }
        assert!(set_back, "{pages} pages: nobody had to make room");
        // Four prompts are held, and the last sequence goes on whatever it takes.
        let allowed = pages.max(4 + 3) * PAGE_BYTES;
        assert!(most <= allowed, "{most} of {allowed} bytes were held");
        assert_eq!(bench.completions(), expected, "{pages} pages");
    }
}

#[test]
fn one_sequence_goes_on_whatever_it_takes() {
    let decoder = decoder();
    let mut free = Bench::new(&decoder, 1);
    free.sample(1, &[0], long());
    let expected = free.completions();
    let mut bench = Bench::with(&decoder, capacity(4, 4, 1), plan());
    bench.sample(1, &[0], long());
    assert_eq!(bench.completions(), expected);
}

#[test]
fn slots_grow_while_all_are_in_use_and_shrink_when_memory_is_tight() {
    let decoder = decoder();
    let mut bench = Bench::with(&decoder, capacity(4, 16, 30), plan());
    let gauges = bench.engine.gauges();
    let slots = || gauges.slots.load(Ordering::Relaxed);
    assert_eq!(slots(), 4);
    ask(&mut bench);
    let (mut widest, mut narrowed) = (0, false);
    while !bench.engine.is_idle() {
        bench.engine.step(&mut bench.events);
        narrowed |= slots() < widest;
        widest = widest.max(slots());
    }
    assert!(widest > 4, "slots stayed at {widest}");
    assert!(narrowed, "slots never shrank");
    assert_eq!(bench.completions().len(), 16);
    assert_eq!(
        gauges.kv_bytes.load(Ordering::Relaxed),
        0,
        "all is given back"
    );
}

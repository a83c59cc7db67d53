use super::*;
use crate::kernels::attention::{Segment, forward};

const HEADS: Heads = Heads {
    queries: 4,
    keys: 2,
    width: 8,
};
const LAYERS: usize = 2;

fn cache(slots: usize, max_tokens: usize) -> KvCache {
    KvCache::new(
        HEADS,
        LAYERS,
        slots,
        max_tokens,
        true,
        DType::F32,
        &Device::Cpu,
    )
    .unwrap()
}

/// q, k and v of a token at a position of a sequence.
fn token(layer: usize, sequence: usize, position: usize) -> [Vec<f32>; 3] {
    [0, 1, 2].map(|m| {
        let row = if m == 0 {
            HEADS.query_row()
        } else {
            HEADS.key_row()
        };
        let seed = (m * 31 + layer * 17 + sequence * 101 + position * 7) as f32;
        (0..row).map(|i| (seed + i as f32 * 0.37).sin()).collect()
    })
}

fn rows(layer: usize, tokens: impl Iterator<Item = (usize, usize)>) -> [Vec<f32>; 3] {
    let mut all = [const { Vec::new() }; 3];
    for (sequence, position) in tokens {
        for (all, row) in all.iter_mut().zip(token(layer, sequence, position)) {
            all.extend(row);
        }
    }
    all
}

fn as_slices(m: &[Vec<f32>; 3]) -> [&[f32]; 3] {
    [&m[0], &m[1], &m[2]]
}

/// Computes a prompt (sequence 0) in chunks of 7 rows.
fn prompt(cache: &mut KvCache, tokens: usize) -> PromptKv {
    let mut open = cache.open_prompt(&vec![0; tokens]).unwrap();
    for first in (0..tokens).step_by(7) {
        let n = 7.min(tokens - first);
        for layer in 0..LAYERS {
            let m = rows(layer, (first..first + n).map(|p| (0, p)));
            let mut out = vec![0.0; m[0].len()];
            let plan = SlotPlan::default();
            cache
                .attend_rows(&[(&open, n)], &plan, layer, as_slices(&m), &mut out)
                .unwrap();
        }
        open.advance(n);
    }
    open.finish().unwrap()
}

/// One step: slot, and the sequence whose token it takes. Returns the rows of layer 1.
fn step(cache: &mut KvCache, slots: &[(usize, usize)]) -> Vec<Vec<f32>> {
    let ids: Vec<(usize, usize)> = slots.iter().map(|s| (s.0, 1)).collect();
    let plan = cache.plan(&ids).unwrap();
    let mut out = Vec::new();
    for layer in 0..LAYERS {
        let tokens = slots.iter().zip(&plan.positions);
        let m = rows(layer, tokens.map(|(s, p)| (s.1, *p as usize)));
        out = vec![0.0; m[0].len()];
        cache
            .attend_rows(&[], &plan, layer, as_slices(&m), &mut out)
            .unwrap();
    }
    out.chunks(HEADS.query_row()).map(<[f32]>::to_vec).collect()
}

/// The last row of layer 1 of a sequence as a pass computes it.
fn alone(sequence: usize, prompt: usize, len: usize) -> Vec<f32> {
    let m = rows(
        1,
        (0..len).map(|p| (if p < prompt { 0 } else { sequence }, p)),
    );
    let mut out = vec![0.0; m[0].len()];
    let whole = Segment {
        start: 0,
        len,
        prefix: None,
    };
    forward(&m[0], &m[1], &m[2], &[whole], HEADS, &mut out, None);
    out.split_off((len - 1) * HEADS.query_row())
}

#[test]
fn siblings_share_a_prompt_and_never_see_each_other() {
    for tokens in [1, 15, 16, 17, 40] {
        let mut cache = cache(3, 64);
        let kv = prompt(&mut cache, tokens);
        for slot in 0..3 {
            cache.attach(slot, &kv).unwrap();
        }
        for i in 0..20 {
            let slots = [(2, 12), (0, 10), (1, 11)];
            // One of them stays behind and goes on later.
            let slots = if i % 3 == 1 { &slots[..2] } else { &slots[..] };
            for (row, (slot, sequence)) in step(&mut cache, slots).iter().zip(slots) {
                let want = alone(*sequence, tokens, cache.len(*slot));
                assert_eq!(row, &want, "prompt of {tokens}, slot {slot}, step {i}");
            }
        }
    }
}

#[test]
fn pages_come_back_and_serve_again() {
    let mut cache = cache(2, 64);
    let kv = prompt(&mut cache, 20);
    let free = |cache: &KvCache| match &cache.store {
        Store::Host(pool) => pool.free(),
        Store::Device(_) => 0,
    };
    let all = free(&cache) + 2;
    cache.attach(0, &kv).unwrap();
    cache.attach(1, &kv).unwrap();
    assert_eq!(free(&cache), all - 2, "attached prompts take no pages");
    for _ in 0..15 {
        step(&mut cache, &[(0, 1), (1, 2)]);
    }
    assert_eq!(free(&cache), all - 2 - 4, "a copy and a new page each");
    let bytes = cache.bytes();
    cache.release(0);
    assert_eq!(free(&cache), all - 2 - 2);
    drop(kv);
    assert_eq!(free(&cache), all - 2 - 2, "slot 1 holds the prompt");
    cache.release(1);
    assert_eq!(free(&cache), all);
    for sequence in 3..9 {
        let kv = prompt(&mut cache, 33);
        cache.attach(1, &kv).unwrap();
        for _ in 0..10 {
            let row = &step(&mut cache, &[(1, sequence)])[0];
            assert_eq!(row, &alone(sequence, 33, cache.len(1)));
        }
        cache.release(1);
    }
    assert_eq!(cache.bytes(), bytes);
    // A key is 8 floats; a value is filled up to 16.
    assert_eq!(bytes, all * LAYERS * HEADS.keys * PAGE * (8 + 16) * 4);
}

#[test]
fn a_prompt_of_another_cache_is_refused() {
    let (mut one, mut other) = (cache(1, 64), cache(1, 64));
    let kv = prompt(&mut one, 3);
    assert!(other.attach(0, &kv).is_err());
    assert!(one.attach(0, &kv).is_ok());
    assert!(one.attach(0, &kv).is_err());
}

use super::*;

fn logits(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 8.0)
        .collect()
}

fn probabilities(logits: &[f32], t: f32) -> Vec<f64> {
    let e: Vec<f64> = logits
        .iter()
        .map(|x| (f64::from(*x) / f64::from(t)).exp())
        .collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

#[test]
fn a_parameter_that_cannot_be_is_named() {
    type Spoil = fn(&mut Distribution);
    let cases: [(&str, Spoil); 7] = [
        ("temperature", |d| d.temperature = f32::NAN),
        ("temperature", |d| d.temperature = -1.0),
        ("temperature", |d| d.temperature = f32::INFINITY),
        ("top_p", |d| d.top_p = 0.0),
        ("top_p", |d| d.top_p = 7.0),
        ("min_p", |d| d.min_p = 1.0),
        ("min_p", |d| d.min_p = f32::NAN),
    ];
    for (name, spoil) in cases {
        let mut bad = Distribution::FULL;
        spoil(&mut bad);
        let error = bad.check().unwrap_err().to_string();
        assert!(error.contains(name), "{name} is not in: {error}");
    }
    assert!(Distribution::FULL.check().is_ok());
}

#[test]
fn log_probs_and_entropy_equal_f64() {
    let (x, mut scratch) = (logits(1200), Scratch::default());
    for t in [1.0, 0.7, 2.5] {
        let p = probabilities(&x, t);
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let dist = Distribution {
            temperature: t,
            ..Distribution::FULL
        };
        let got = dist.log_prob(&x, 77, &mut scratch);
        assert!((f64::from(got.logprob) - p[77].ln()).abs() < 2e-6);
        assert!((f64::from(got.entropy) - entropy).abs() < 1e-5);
    }
}

#[test]
fn draws_follow_the_probabilities_and_carry_the_log_prob_that_is_recomputed() {
    let (x, mut scratch) = (logits(600), Scratch::default());
    for dist in [
        Distribution {
            temperature: 0.8,
            ..Distribution::FULL
        },
        Distribution {
            temperature: 0.8,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.02,
        },
    ] {
        let mut count = vec![0u32; 600];
        let draws = 40_000;
        for i in 0..draws {
            let u = (f64::from(i) + 0.5) / f64::from(draws);
            let s = dist.sample(&x, u, &mut scratch);
            count[s.token as usize] += 1;
            if i % 997 == 0 {
                let again = dist.log_prob(&x, s.token, &mut scratch).logprob;
                assert_eq!(s.logprob.to_bits(), again.to_bits());
            }
        }
        for (token, n) in count.iter().enumerate().filter(|(_, n)| **n > 0) {
            let p = f64::from(dist.log_prob(&x, token as u32, &mut scratch).logprob).exp();
            assert!((f64::from(*n) / f64::from(draws) - p).abs() < 1e-3);
        }
    }
}

#[test]
fn truncation_keeps_what_each_rule_says() {
    let x: Vec<f32> = [0.4f32, 0.3, 0.15, 0.1, 0.05]
        .iter()
        .map(|p| p.ln())
        .collect();
    let kept = |dist: Distribution| {
        let mut scratch = Scratch::default();
        dist.row(&x, None, &mut scratch);
        scratch.kept
    };
    assert_eq!(
        kept(Distribution {
            top_k: 2,
            ..Distribution::FULL
        }),
        [0, 1]
    );
    assert_eq!(
        kept(Distribution {
            top_p: 0.65,
            ..Distribution::FULL
        }),
        [0, 1]
    );
    assert_eq!(
        kept(Distribution {
            top_p: 0.75,
            ..Distribution::FULL
        }),
        [0, 1, 2]
    );
    assert_eq!(
        kept(Distribution {
            min_p: 0.3,
            ..Distribution::FULL
        }),
        [0, 1, 2]
    );
}

#[test]
fn truncation_of_a_long_row_keeps_what_sorting_all_of_it_would() {
    let n = 49_152;
    for sharpness in [0.1, 1.0, 3.0] {
        let x: Vec<f32> = logits(n).iter().map(|x| x * sharpness).collect();
        for (top_k, top_p) in [
            (0, 0.5),
            (0, 0.95),
            (0, 0.99995),
            (50, 1.0),
            (20, 0.8),
            (40_000, 1.0),
        ] {
            let dist = Distribution {
                temperature: 0.7,
                top_p,
                top_k,
                min_p: 0.0,
            };
            let mut scratch = Scratch::default();
            let row = dist.row(&x, None, &mut scratch);
            let mut want: Vec<u32> = (0..n as u32).collect();
            want.sort_by(|a, b| x[*b as usize].total_cmp(&x[*a as usize]).then(a.cmp(b)));
            if top_k > 0 {
                want.truncate(top_k as usize);
            }
            if top_p < 1.0 {
                let e = |id: &u32| f64::from(scratch.exps[*id as usize]);
                let of = if top_k > 0 {
                    want.iter().map(e).sum()
                } else {
                    row.all.sum
                };
                let mut sum = 0.0;
                let reached = want.iter().position(|id| {
                    sum += e(id);
                    sum >= f64::from(top_p) * of
                });
                want.truncate(reached.map_or(n, |at| at + 1));
            }
            want.sort_unstable();
            assert_eq!(scratch.kept, want, "{sharpness} {top_k} {top_p}");
        }
    }
}

#[test]
fn the_gradient_equals_finite_differences() {
    let x = logits(50);
    let mut scratch = Scratch::default();
    for dist in [
        Distribution {
            temperature: 0.9,
            ..Distribution::FULL
        },
        Distribution {
            temperature: 1.3,
            top_k: 10,
            ..Distribution::FULL
        },
    ] {
        let token = dist.sample(&x, 0.4, &mut scratch).token;
        let mut gradient = x.clone();
        dist.log_prob_gradient(&mut gradient, token, 1.5, &mut scratch);
        for i in 0..50 {
            let at = |by: f32, scratch: &mut Scratch| {
                let mut x = x.clone();
                x[i] += by;
                f64::from(dist.log_prob(&x, token, scratch).logprob)
            };
            let h = 1e-2;
            let want = 1.5 * (at(h, &mut scratch) - at(-h, &mut scratch)) / (2.0 * f64::from(h));
            assert!((f64::from(gradient[i]) - want).abs() < 2e-4, "{i}");
        }
    }
}

#[test]
fn greedy_takes_the_largest_and_scores_it_in_full() {
    let x = logits(300);
    let dist = Distribution {
        temperature: 0.0,
        ..Distribution::FULL
    };
    let mut scratch = Scratch::default();
    let got = dist.sample(&x, 0.99, &mut scratch);
    let best = (0..300).fold(0, |b, i| if x[i] > x[b] { i } else { b });
    assert_eq!(got.token as usize, best);
    let want = Distribution::FULL
        .log_prob(&x, got.token, &mut scratch)
        .logprob;
    assert_eq!(got.logprob.to_bits(), want.to_bits());
}

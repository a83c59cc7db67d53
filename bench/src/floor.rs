//! How many floating-point operations a step needs at least (pure). `docs/performance.md` works it
//! out by hand for the step of `tina-bench step`.

use serde::Serialize;
use tina_model::ModelConfig;

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Tokens of all prompts, each prompt counted once.
    pub(crate) prompt_tokens: f64,
    /// Tokens of one prompt.
    pub(crate) prompt_length: f64,
    /// Completions.
    pub(crate) completions: f64,
    /// Tokens of all completions.
    pub(crate) completion_tokens: f64,
}

impl Work {
    /// Rows through the layers: a completion's last token predicts nothing.
    fn rows(&self) -> f64 {
        self.prompt_tokens + self.completion_tokens - self.completions
    }

    /// Rows through the vocabulary's projection: one for every prompt, whose completions all start
    /// from it, and one for every further token.
    fn predictions(&self) -> f64 {
        let prompts = self.prompt_tokens / self.prompt_length.max(1.0);
        prompts + self.completion_tokens - self.completions
    }

    /// Keys that all rows attend to.
    fn attended(&self) -> f64 {
        let length = self.completion_tokens / self.completions.max(1.0);
        let own = self.completion_tokens - self.completions;
        self.prompt_tokens * self.prompt_length / 2.0 + own * (self.prompt_length + length / 2.0)
    }
}

/// Operations (a multiplication and an addition are two) of a step's parts, in GFLOP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Floor {
    /// One forward pass over prompts and completions.
    pub(crate) sample_gflop: f64,
    /// One forward pass, and one backward pass to activations and adapter.
    pub(crate) learn_gflop: f64,
}

impl Floor {
    pub(crate) fn total_gflop(&self) -> f64 {
        self.sample_gflop + self.learn_gflop
    }
}

/// Weights that a row passes in the layers, and those of adapters of `rank` behind all of them.
fn weights(model: &ModelConfig, rank: usize) -> (f64, f64) {
    let (hidden, mlp) = (model.hidden_size, model.intermediate_size);
    let (q, kv) = (
        model.heads * model.head_dim,
        model.kv_heads * model.head_dim,
    );
    let linears = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden)];
    let linears = linears
        .into_iter()
        .chain([(hidden, mlp), (hidden, mlp), (mlp, hidden)]);
    let (frozen, adapted) = linears.fold((0, 0), |(frozen, adapted), (inner, outer)| {
        (frozen + inner * outer, adapted + rank * (inner + outer))
    });
    (
        (model.layers * frozen) as f64,
        (model.layers * adapted) as f64,
    )
}

/// The least that `work` takes. Forward: every row passes each weight once. Backward: frozen
/// weights get no gradient, so their products are computed once more, to the activations alone; the
/// adapter's twice. Attention's backward pass has four products for the forward's two.
pub(crate) fn floor(model: &ModelConfig, rank: usize, work: &Work) -> Floor {
    let (frozen, adapted) = weights(model, rank);
    let (rows, predictions) = (work.rows(), work.predictions());
    let linear = frozen * rows + vocabulary(model) * predictions;
    let attention = (2 * model.layers * queries(model)) as f64 * work.attended();
    let forward = linear + adapted * rows + attention;
    let backward = linear + 2.0 * adapted * rows + 2.0 * attention;
    let gflop = |products: f64| 2.0 * products / 1e9;
    Floor {
        sample_gflop: gflop(forward),
        learn_gflop: gflop(forward + backward),
    }
}

/// The least that a piece of work asks of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Least {
    /// A multiplication and an addition are two.
    pub(crate) gflop: f64,
    /// Numbers to be read from memory, in 10⁹: weights, and keys and values.
    pub(crate) gnumbers: f64,
}

/// What a machine can do at most, when it computes in numbers of some type.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Peak {
    pub(crate) bytes_per_number: f64,
    pub(crate) gflops: f64,
    /// 10⁹ bytes a second.
    pub(crate) gbytes: f64,
}

impl Least {
    /// Arithmetic and memory can overlap, so the longer of the two is what it takes.
    pub(crate) fn seconds(&self, peak: &Peak) -> f64 {
        let bytes = self.gnumbers * peak.bytes_per_number;
        (self.gflop / peak.gflops).max(bytes / peak.gbytes)
    }
}

/// The least for computing `sequences` different prompts of `prompt` tokens, up to the logits of
/// each one's last token. Without an adapter: it could be merged into the weights.
pub(crate) fn prefill(model: &ModelConfig, sequences: usize, prompt: usize) -> Least {
    let (frozen, vocabulary) = (weights(model, 0).0, vocabulary(model));
    let (sequences, prompt) = (sequences as f64, prompt as f64);
    let keys = sequences * prompt * prompt / 2.0;
    let products = sequences * (prompt * frozen + vocabulary)
        + keys * (2 * model.layers * queries(model)) as f64;
    Least {
        gflop: 2.0 * products / 1e9,
        gnumbers: (frozen + vocabulary) / 1e9,
    }
}

/// The least for decoding after different prompts of `prompt` tokens: each of `sequences` takes all
/// of its `new` tokens but the first, which its prompt gave, one a pass. A pass reads every weight
/// once for all sequences, and each sequence's keys and values. Without an adapter, as [`prefill`].
pub(crate) fn decode(model: &ModelConfig, sequences: usize, prompt: usize, new: usize) -> Least {
    let (frozen, vocabulary) = (weights(model, 0).0, vocabulary(model));
    let passes = new.saturating_sub(1) as f64;
    let sequences = sequences as f64;
    // Pass i attends to the prompt and i tokens after it.
    let keys = sequences * passes * (prompt as f64 + (passes + 1.0) / 2.0);
    let products = sequences * passes * (frozen + vocabulary)
        + keys * (2 * model.layers * queries(model)) as f64;
    let kept = (2 * model.layers * model.kv_heads * model.head_dim) as f64;
    Least {
        gflop: 2.0 * products / 1e9,
        gnumbers: (passes * (frozen + vocabulary) + keys * kept) / 1e9,
    }
}

/// The least for arithmetic alone: passes of many rows read so little for it that memory never
/// decides.
pub(crate) fn arithmetic(gflop: f64) -> Least {
    Least {
        gflop,
        gnumbers: 0.0,
    }
}

fn vocabulary(model: &ModelConfig) -> f64 {
    (model.vocab_size * model.hidden_size) as f64
}

fn queries(model: &ModelConfig) -> usize {
    model.heads * model.head_dim
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Shape;

    #[test]
    fn a_token_of_smollm2_costs_what_its_weights_say() {
        let model = Shape::Smollm2.config().unwrap();
        let (frozen, adapted) = weights(&model, 16);
        assert_eq!(
            frozen,
            30.0 * (2.0 * 576.0 * 576.0 + 2.0 * 576.0 * 192.0 + 3.0 * 576.0 * 1536.0)
        );
        assert_eq!(
            adapted,
            30.0 * 16.0 * (2.0 * 1152.0 + 2.0 * 768.0 + 3.0 * 2112.0)
        );
        // A lone one-token prompt with one-token completions: one row, one prediction.
        let work = Work {
            prompt_tokens: 1.0,
            prompt_length: 1.0,
            completions: 4.0,
            completion_tokens: 4.0,
        };
        let got = floor(&model, 16, &work).sample_gflop;
        assert!((got - 0.279).abs() < 1e-3, "{got}");
    }

    #[test]
    fn the_step_of_the_benchmark_needs_what_the_docs_say() {
        let model = Shape::Smollm2.config().unwrap();
        let work = Work {
            prompt_tokens: 320.0,
            prompt_length: 40.0,
            completions: 64.0,
            completion_tokens: 3072.0,
        };
        let floor = floor(&model, 16, &work);
        assert_eq!(floor.sample_gflop.round(), 924.0);
        assert_eq!(floor.learn_gflop.round(), 1894.0);
    }

    #[test]
    fn a_prompt_is_counted_once_for_its_group() {
        let work = Work {
            prompt_tokens: 80.0,
            prompt_length: 40.0,
            completions: 16.0,
            completion_tokens: 160.0,
        };
        assert_eq!(work.rows(), 80.0 + 144.0);
        assert_eq!(work.predictions(), 2.0 + 144.0);
        assert_eq!(work.attended(), 80.0 * 20.0 + 144.0 * 45.0);
    }

    #[test]
    fn one_decoding_pass_reads_all_weights_and_every_key_and_value() {
        let model = Shape::Smollm2.config().unwrap();
        let least = decode(&model, 1, 100, 2);
        // One pass over 101 keys: 2 · 30 · 3 · 64 numbers a key.
        let numbers = 134_479_872.0 + 101.0 * 11_520.0;
        assert_eq!(least.gnumbers, numbers / 1e9);
        let products = 134_479_872.0 + 101.0 * 2.0 * 30.0 * 576.0;
        assert!((least.gflop - 2.0 * products / 1e9).abs() < 1e-12);
        // A second sequence reads its own keys, and shares the weights.
        let two = decode(&model, 2, 100, 2);
        assert!((two.gnumbers - least.gnumbers - 101.0 * 11_520.0 / 1e9).abs() < 1e-12);
        assert!((two.gflop - 2.0 * least.gflop).abs() < 1e-12);
        // Passes 1 and 2 after one another attend to 101 and 102 keys.
        let longer = decode(&model, 1, 100, 3).gnumbers;
        let expected = 2.0 * 134_479_872.0 + 203.0 * 11_520.0;
        assert!((longer - expected / 1e9).abs() < 1e-12);
        assert_eq!(decode(&model, 4, 100, 1), Least::default());
    }

    #[test]
    fn a_prompt_costs_its_rows_and_one_prediction() {
        let model = Shape::Smollm2.config().unwrap();
        let least = prefill(&model, 64, 64);
        let rows = 4096.0 * 106_168_320.0 + 64.0 * 28_311_552.0;
        let keys = 64.0 * 64.0 * 32.0 * 2.0 * 30.0 * 576.0;
        assert!((least.gflop - 2.0 * (rows + keys) / 1e9).abs() < 1e-9);
    }

    #[test]
    fn the_longer_of_arithmetic_and_memory_decides() {
        let peak = Peak {
            bytes_per_number: 2.0,
            gflops: 100.0,
            gbytes: 10.0,
        };
        let seconds = |gflop, gnumbers| Least { gflop, gnumbers }.seconds(&peak);
        assert_eq!(seconds(50.0, 1.0), 0.5);
        assert_eq!(seconds(10.0, 1.0), 0.2);
        assert_eq!(arithmetic(50.0).seconds(&peak), 0.5);
    }
}

//! What a learning pass takes of memory: bytes in closed form of the model's and the pass's shape.
//!
//! `docs/performance.md` has the same as text.

use crate::{
    composed::ComposedModel,
    config::ModelConfig,
    decoder::{Body, Decoder},
    host::HostModel,
    kernels::{
        attention::{CHUNK, PAGE},
        math::LANES,
        matmul::{Format, rows_format},
        team,
    },
    lora::{LoraConfig, LoraModule},
    packed_rows::PackedRows,
    weights::blocks::BLOCK,
};

/// Bytes of an f32.
const F32: usize = size_of::<f32>();
/// Bytes of a bf16.
const BF16: usize = size_of::<half::bf16>();

/// How large a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassShape {
    /// Tokens on their way through the model.
    pub rows: usize,
    /// Tokens whose log-probs are wanted.
    pub targets: usize,
    /// Keys that the rows see, summed over them.
    pub seen: usize,
}

impl PassShape {
    /// At most: `rows` rows of sequences of up to `longest` tokens, all of them predicted.
    pub fn at_most(rows: usize, longest: usize) -> Self {
        Self {
            rows,
            targets: rows,
            seen: rows * longest,
        }
    }

    /// Of packed rows.
    pub fn of(rows: &PackedRows, targets: usize) -> Self {
        let seen = |s: &crate::kernels::attention::Segment| {
            s.len * (s.prefix.map_or(0, |(_, len)| len) + s.len)
        };
        Self {
            rows: rows.len(),
            targets,
            seen: rows.segments.iter().map(seen).sum(),
        }
    }
}

/// Bytes that a forward and a backward pass take on their device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassMemory {
    /// The frozen weights, in the form that the device computes with.
    pub weights: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Activations of one layer, its input among them.
    pub layer: usize,
    /// A layer's input alone: what is kept where the rest is computed again.
    pub input: usize,
    /// What the layers share and nobody keeps.
    pub working: usize,
    /// Logits of a slice of targets, and the probabilities of all where they are kept.
    pub vocabulary: usize,
}

impl PassMemory {
    /// Layers whose activations can be kept, given `bytes` for the activations of all.
    pub fn layers_kept(&self, bytes: usize) -> usize {
        let all = self.layers * self.layer;
        if bytes >= all {
            return self.layers;
        }
        // The others leave their inputs, and are computed again in the memory of one layer.
        let least = self.activations(0);
        bytes.saturating_sub(least) / (self.layer - self.input).max(1)
    }

    /// Bytes of activations when `kept` layers keep theirs.
    pub fn activations(&self, kept: usize) -> usize {
        let kept = kept.min(self.layers);
        let again = if kept < self.layers { self.layer } else { 0 };
        kept * self.layer + (self.layers - kept) * self.input + again
    }

    /// This pass in a process that has seen `largest`: what that worked in stays.
    pub fn beside(&self, largest: &Self) -> Self {
        Self {
            working: self.working.max(largest.working),
            vocabulary: self.vocabulary.max(largest.vocabulary),
            ..*self
        }
    }

    /// All but the activations.
    pub fn rest(&self) -> usize {
        self.weights + self.working + self.vocabulary
    }
}

impl Decoder {
    /// What a pass of this shape takes, with an adapter of `lora`.
    pub fn pass_memory(&self, shape: &PassShape, lora: Option<&LoraConfig>) -> PassMemory {
        match &self.body {
            Body::Host(model) => host(self.config(), model.format, lora, shape),
            Body::Composed(model) => composed(self.config(), model, lora, shape),
        }
    }

    /// Bytes that could be allocated on the decoder's device now; `None` where it does not tell.
    pub fn available_bytes(&self) -> Option<usize> {
        if self.device().is_cpu() {
            host_available()
        } else {
            device_available(self.device())
        }
    }
}

/// Floats of x Aᵀ of a row, of all of a layer's modules.
fn low_floats(lora: Option<&LoraConfig>) -> usize {
    lora.map_or(0, |lora| lora.rank * lora.target_modules.len())
}

/// The host's kernels: every buffer of `host::buffers`, the tape's and the kernels' own.
fn host(
    config: &ModelConfig,
    format: Format,
    lora: Option<&LoraConfig>,
    shape: &PassShape,
) -> PassMemory {
    let heads = config.shape_of_heads();
    let (q, k) = (heads.query_row(), heads.key_row());
    let (hidden, inner, vocab) = (
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
    );
    let PassShape {
        rows,
        targets,
        seen,
    } = *shape;
    let raw = if config.qk_norm { q + k } else { 0 };
    // input, middle; q, mixed; k, v; softmax; gate, up; LoRA
    let layer = 2 * hidden + 2 * q + 2 * k + raw + heads.stats_row() + 2 * inner + low_floats(lora);
    // normed twice, the residual, d twice, the last layer's result and its norm, middle; the
    // products' inner, d of it, of gate and up; mixed; q, k, v; angles; LoRA.
    let turned = if config.qk_norm { q } else { 0 };
    let rank = lora.map_or(0, |lora| lora.rank);
    let mut working =
        rows * F32 * (8 * hidden + 4 * inner + 2 * q + 2 * k + turned + heads.width + rank);
    let widest = hidden.max(inner).max(q);
    let kept = HostModel::probability_bytes(format, targets, vocab).unwrap_or(0);
    let slice = HostModel::SLICE.min(targets) * vocab;
    match (rows_format(format), kept) {
        // Rows rounded for the products; a slice of logits, where no probabilities are kept.
        (Format::Bf16, 0) => working += BF16 * (rows * widest).max(slice),
        (Format::Bf16, _) => working += BF16 * rows * widest,
        (_, 0) => {}
        // Probabilities are kept in bf16, and read in f32.
        (_, _) => working += F32 * slice,
    }
    if lora.is_some_and(|lora| lora.dropout > 0.0) {
        working += 3 * rows * widest * F32;
    }
    // Attention: the pages of a layer, and the parts of the queries' gradients.
    let pages = (rows.div_ceil(PAGE) + 1).next_power_of_two() * PAGE * 2 * k;
    working += F32 * (pages + (rows + seen.div_ceil(CHUNK)) * q);
    // Exponentials of a row, a thread.
    let scratch = team::threads() * vocab * (F32 + size_of::<u32>());
    PassMemory {
        weights: host_weights(config, format),
        layers: config.layers,
        layer: rows * F32 * layer,
        input: rows * F32 * hidden,
        working,
        vocabulary: slice * F32 + kept + scratch,
    }
}

/// Every matrix is packed for the forward and for the backward pass; an embedding of its own for
/// look-ups alone.
fn host_weights(config: &ModelConfig, format: Format) -> usize {
    let packed = |format: Format, columns: usize, inner: usize| {
        let panels = columns.div_ceil(LANES) * LANES;
        match format {
            Format::F32 => panels * inner * F32,
            Format::Bf16 => panels * inner.div_ceil(2) * 2 * BF16,
            // Of eight bits a level; four take less.
            Format::Blocks => panels * inner.div_ceil(BLOCK) * (BLOCK + 4),
        }
    };
    let back = match format {
        Format::F32 => Format::F32,
        Format::Bf16 | Format::Blocks => Format::Bf16,
    };
    let both =
        |outer: usize, inner: usize| packed(format, outer, inner) + packed(back, inner, outer);
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let linears = LoraModule::ALL.map(|module| {
        let (inner, outer) = module.widths(config);
        both(outer, inner) + F32 * outer
    });
    let layers = config.layers * (linears.iter().sum::<usize>() + 2 * F32 * hidden);
    let look_up = if config.tied_embeddings {
        0
    } else {
        packed(format, vocab, hidden)
    };
    layers + both(vocab, hidden) + look_up
}

/// Candle's autograd keeps the result of every operation: counted as `composed` applies them.
fn composed(
    config: &ModelConfig,
    model: &ComposedModel,
    lora: Option<&LoraConfig>,
    shape: &PassShape,
) -> PassMemory {
    let size = model.dtype.size_in_bytes();
    let wide = size.max(F32);
    let cast = |floats: usize| {
        if size < F32 {
            floats * (wide + size)
        } else {
            0
        }
    };
    let heads = config.shape_of_heads();
    let (q, k, hidden) = (heads.query_row(), heads.key_row(), config.hidden_size);
    let PassShape { rows, seen, .. } = *shape;
    // squares, quotient, product; to the wider type and back
    let norm = |floats: usize| floats * (2 * wide + size) + cast(floats);
    // four products of halves, their sums, and both together
    let rotate = |floats: usize| 4 * floats * wide + cast(floats);
    let linear = |module: LoraModule| {
        let (inner, outer) = module.widths(config);
        match lora.filter(|lora| lora.target_modules.contains(&module)) {
            None => outer * size,
            Some(lora) => {
                let dropped = if lora.dropout > 0.0 {
                    2 * inner * wide
                } else {
                    0
                };
                let widened = if size < F32 {
                    inner * wide + outer * size
                } else {
                    0
                };
                outer * (2 * size + 2 * wide) + lora.rank * wide + dropped + widened
            }
        }
    };
    let linears: usize = LoraModule::ALL.map(linear).iter().sum();
    let norms = 2 * norm(hidden) + if config.qk_norm { norm(q + k) } else { 0 };
    let residuals = 2 * hidden * size;
    let mlp = 2 * config.intermediate_size * size;
    // Copies of q, k and v by heads, and what comes back.
    let attention = (4 * q + 4 * k) * size;
    let row = norms + rotate(q + k) + linears + residuals + mlp + attention;
    // Scores: product, scaled, masked, shifted, exponential, weights.
    let scores = seen * heads.queries * (6 * wide + size);
    let layer = rows * (row + hidden * size) + scores;
    let input = rows * hidden * size;
    let weights = config.parameter_count() as usize * size;
    PassMemory {
        weights,
        layers: config.layers,
        layer,
        input,
        // Gradients of a layer's operations, the rows themselves, and their gradients.
        working: layer + 4 * input,
        // Logits, scaled, exponentials, probabilities.
        vocabulary: 6 * ComposedModel::SLICE_BYTES,
    }
}

/// What the system could give without swapping, and the control group allows.
fn host_available() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok();
    let system = meminfo.as_deref().and_then(mem_available);
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<usize>().ok()
    };
    // `max` where there is no limit: not a number.
    let group = number("memory.max")
        .zip(number("memory.current"))
        .map(|(most, now)| most.saturating_sub(now));
    match (system, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn mem_available(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(feature = "cuda")]
fn device_available(device: &candle_core::Device) -> Option<usize> {
    use candle_core::cuda_backend::cudarc::driver::result::mem_get_info;
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    stream.context().bind_to_thread().ok()?;
    mem_get_info().ok().map(|(free, _)| free)
}

#[cfg(not(feature = "cuda"))]
fn device_available(_: &candle_core::Device) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_are_kept_as_fit() {
        let memory = PassMemory {
            layers: 4,
            layer: 100,
            input: 10,
            ..PassMemory::default()
        };
        // 4 inputs and a layer to compute again in; each kept layer is 90 more.
        for (bytes, kept) in [
            (0, 0),
            (140, 0),
            (229, 0),
            (230, 1),
            (320, 2),
            (399, 2),
            (400, 4),
        ] {
            assert_eq!(memory.layers_kept(bytes), kept, "{bytes}");
            let takes = memory.activations(kept);
            assert!(takes <= bytes || kept == 0, "{takes} > {bytes}");
        }
        assert_eq!(memory.layers_kept(usize::MAX), 4);
        assert_eq!(memory.activations(9), 400);
    }

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:  24 kB\nMemFree: 1 kB\nMemAvailable:     2048 kB\n";
        assert_eq!(mem_available(text), Some(2 << 20));
        assert_eq!(mem_available("MemTotal: 24 kB\n"), None);
    }
}

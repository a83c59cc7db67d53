//! The peers: transformers, PEFT and TRL by the scripts under `bench/peers/`, and llama.cpp by its
//! own benchmark. What is not here is a side that is absent, and says why.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::{
    contest::{Side, Task},
    decode::Sampling,
    train::Training,
};
use crate::{
    child::Program,
    error::{BenchError, Result},
    peer::{ALLOCATOR, Peer, PeerDtype},
};

/// How llama.cpp holds the weights, each a peer.
pub(crate) const LLAMA_TYPES: [&str; 5] = ["Q4_1", "Q8_0", "F16", "BF16", "F32"];
/// A process of a peer takes minutes at most.
const LIMIT: Duration = Duration::from_secs(1800);
/// llama.cpp's report in our words.
const LLAMA_NAMES: &[(&str, &str)] = &[("speed_tg", "decode"), ("speed_pp", "prefill")];

/// What is here of the peers, or why not.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) python: std::result::Result<Python, String>,
    /// By the type of their weights.
    pub(crate) llama: std::result::Result<Llama, String>,
    pub(crate) threads: usize,
}

/// Python with what the scripts need.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    pub(crate) python: PathBuf,
    pub(crate) scripts: PathBuf,
    /// In Hugging Face layout.
    pub(crate) model: PathBuf,
    /// The same in bf16; the other one serves too, and is converted when it is loaded.
    pub(crate) model_bf16: Option<PathBuf>,
    /// Sequences of one pass of training.
    pub(crate) micro: u32,
}

/// llama.cpp and its models.
#[derive(Clone, Debug)]
pub(crate) struct Llama {
    pub(crate) bench: PathBuf,
    /// By type, as far as they are here.
    pub(crate) models: Vec<(&'static str, std::result::Result<PathBuf, String>)>,
}

impl Peers {
    /// None, for one reason.
    #[cfg(test)]
    pub(crate) fn none(why: &str) -> Self {
        Self {
            python: Err(why.to_owned()),
            llama: Err(why.to_owned()),
            threads: 1,
        }
    }

    /// llama.cpp's sides, one for each type of weights.
    pub(crate) fn llama(&self, sampling: &Sampling) -> Vec<Side> {
        let side = |kind: &str, task| Side {
            name: format!("llama.cpp {kind}"),
            task,
        };
        match &self.llama {
            Err(why) => vec![Side {
                name: "llama.cpp".to_owned(),
                task: Task::Absent(why.clone()),
            }],
            Ok(llama) => llama
                .models
                .iter()
                .map(|(kind, model)| {
                    let task = match model {
                        Ok(model) => llama.task(model, sampling, self.threads),
                        Err(why) => Task::Absent(why.clone()),
                    };
                    side(kind, task)
                })
                .collect(),
        }
    }

    /// The same with one type of weights alone.
    pub(crate) fn only_llama(&self, kind: &str) -> Self {
        let llama = self.llama.clone().map(|mut llama| {
            llama.models.retain(|(known, _)| *known == kind);
            llama
        });
        Self {
            llama,
            python: self.python.clone(),
            threads: self.threads,
        }
    }

    pub(crate) fn generate(&self, sampling: &Sampling) -> Side {
        let args = sampling.args();
        self.side("transformers bf16", "generate_transformers.py", &args)
    }

    pub(crate) fn train(&self, training: &Training, rank: usize) -> Side {
        let mut args = training.args();
        args.extend(["--rank".to_owned(), rank.to_string()]);
        if let Ok(python) = &self.python {
            args.extend(["--micro".to_owned(), python.micro.to_string()]);
        }
        self.side("PEFT bf16", "train_step_peft.py", &args)
    }

    /// TRL's trainer, for `step`.
    pub(crate) fn trl(
        &self,
        shape: Vec<(&'static str, String)>,
    ) -> std::result::Result<Peer, String> {
        let python = self.python.as_ref().map_err(Clone::clone)?;
        let mut shape = shape;
        shape.push(("--micro", python.micro.to_string()));
        shape.push(("--threads", self.threads.to_string()));
        Ok(Peer {
            python: python.python.clone(),
            script: python.scripts.join("grpo_step_trl.py"),
            model: python.model.clone(),
            dtype: PeerDtype::Bf16,
            shape,
        })
    }

    fn side(&self, name: &str, script: &str, args: &[String]) -> Side {
        let task = match &self.python {
            Err(why) => Task::Absent(why.clone()),
            Ok(python) => {
                let program = python.script(script, PeerDtype::Bf16, self.threads, args);
                Task::Program(program, &[])
            }
        };
        Side {
            name: name.to_owned(),
            task,
        }
    }
}

impl Python {
    /// A script on a model in `dtype`.
    pub(crate) fn script(
        &self,
        name: &str,
        dtype: PeerDtype,
        threads: usize,
        args: &[String],
    ) -> Program {
        let model = match (dtype, &self.model_bf16) {
            (PeerDtype::Bf16, Some(model)) => model,
            _ => &self.model,
        };
        let mut all: Vec<OsString> = vec![
            self.scripts.join(name).into(),
            "--model".into(),
            model.into(),
            "--dtype".into(),
            dtype.to_string().into(),
            "--threads".into(),
            threads.to_string().into(),
        ];
        all.extend(args.iter().map(OsString::from));
        Program {
            what: "a peer's script",
            program: self.python.clone(),
            args: all,
            envs: vec![
                ("LD_PRELOAD", ALLOCATOR.into()),
                // Nothing is left beside the scripts.
                ("PYTHONDONTWRITEBYTECODE", "1".into()),
            ],
            limit: LIMIT,
        }
    }
}

impl Llama {
    /// Finds the models in `folder`, and makes those that are missing there from `source`.
    pub(crate) async fn prepare(
        bin: &Path,
        folder: &Path,
        source: Option<&Path>,
        kinds: &[&'static str],
        threads: usize,
    ) -> Result<std::result::Result<Self, String>> {
        let bench = bin.join("llama-batched-bench");
        if !bench.is_file() {
            return Ok(Err(format!("no llama-batched-bench in {}", bin.display())));
        }
        fs::create_dir_all(folder).map_err(BenchError::file(folder))?;
        let mut models = Vec::new();
        for kind in kinds {
            let found = match (find(folder, kind)?, source) {
                (Some(path), _) => Ok(path),
                (None, Some(path)) if is_of(path, kind) => Ok(path.to_owned()),
                (None, Some(source)) => quantize(bin, source, folder, kind, threads).await?,
                (None, None) => Err(format!("no {kind} file in {}", folder.display())),
            };
            models.push((*kind, found));
        }
        Ok(Ok(Self { bench, models }))
    }

    fn task(&self, model: &Path, sampling: &Sampling, threads: usize) -> Task {
        let Sampling {
            sequences,
            prompt,
            new,
        } = sampling;
        let numbers = [
            ("-c", sequences * (prompt + new)),
            ("-npp", *prompt),
            ("-ntg", *new),
            ("-npl", *sequences),
            ("-t", threads),
            ("-tb", threads),
        ];
        let mut args: Vec<OsString> = vec!["-m".into(), model.into()];
        for (flag, number) in numbers {
            args.extend([flag.into(), number.to_string().into()]);
        }
        args.extend(["--output-format".into(), "jsonl".into()]);
        let program = Program {
            what: "llama-batched-bench",
            program: self.bench.clone(),
            args,
            envs: Vec::new(),
            limit: LIMIT,
        };
        Task::Program(program, LLAMA_NAMES)
    }
}

/// Whether a GGUF file is named after a type: `NAME-TYPE.gguf` or `NAME.TYPE.gguf`.
fn is_of(path: &Path, kind: &str) -> bool {
    let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    let gguf = path
        .extension()
        .is_some_and(|extension| extension == "gguf");
    let last = stem.rsplit(['-', '.']).next().unwrap_or_default();
    gguf && last.eq_ignore_ascii_case(kind)
}

fn find(folder: &Path, kind: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(BenchError::file(folder))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths.into_iter().find(|path| is_of(path, kind)))
}

/// Makes a file of another type; the reason, where llama.cpp can't.
async fn quantize(
    bin: &Path,
    source: &Path,
    folder: &Path,
    kind: &str,
    threads: usize,
) -> Result<std::result::Result<PathBuf, String>> {
    let program = bin.join("llama-quantize");
    let made = folder.join(format!("model-{kind}.gguf"));
    let unfinished = folder.join(format!("model-{kind}.unfinished"));
    eprintln!("making {}", made.display());
    let output = Command::new(&program)
        .arg("--allow-requantize")
        .args([source, &unfinished])
        .args([kind, &threads.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    Ok(match output {
        Ok(output) if output.status.success() => {
            fs::rename(&unfinished, &made).map_err(BenchError::file(&made))?;
            Ok(made)
        }
        Ok(output) => Err(format!("llama-quantize ended ({})", output.status)),
        Err(error) => Err(format!("{}: {error}", program.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> Sampling {
        Sampling {
            sequences: 2,
            prompt: 8,
            new: 4,
        }
    }

    #[test]
    fn a_file_is_known_by_the_end_of_its_name() {
        let is = |name: &str, kind| is_of(Path::new(name), kind);
        assert!(is("smollm2-F16.gguf", "F16"));
        assert!(!is("smollm2-BF16.gguf", "F16"));
        assert!(is("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"));
        assert!(is("model-q8_0.gguf", "Q8_0"));
        assert!(!is("model-Q8_0.bin", "Q8_0"));
    }

    #[tokio::test]
    async fn a_model_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (bin, models) = (folder.path().join("bin"), folder.path().join("models"));
        let prepare = || Llama::prepare(&bin, &models, None, &["F16", "F32"], 2);
        let missing = prepare().await.unwrap().unwrap_err();
        assert!(missing.contains("llama-batched-bench"), "{missing}");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("llama-batched-bench"), "").unwrap();
        fs::create_dir_all(&models).unwrap();
        fs::write(models.join("x-F32.gguf"), "").unwrap();
        let llama = prepare().await.unwrap().unwrap();
        assert!(llama.models[0].1.as_ref().unwrap_err().contains("F16"));
        assert!(llama.models[1].1.as_ref().unwrap().ends_with("x-F32.gguf"));
        let peers = Peers {
            llama: Ok(llama),
            ..Peers::none("no Python")
        };
        let sides = peers.llama(&sampling());
        assert!(matches!(&sides[0].task, Task::Absent(why) if why.contains("F16")));
        let Task::Program(program, _) = &sides[1].task else {
            panic!("{sides:?}");
        };
        let context = program.args.iter().position(|arg| arg == "-c").unwrap();
        assert_eq!(program.args[context + 1], "24");
        assert_eq!(peers.only_llama("F32").llama(&sampling()).len(), 1);
    }

    #[test]
    fn bf16_is_loaded_from_its_own_folder_where_there_is_one() {
        let mut python = Python {
            python: "python".into(),
            scripts: "scripts".into(),
            model: "f32".into(),
            model_bf16: None,
            micro: 16,
        };
        let model = |python: &Python, dtype| python.script("x.py", dtype, 2, &[]).args[2].clone();
        assert_eq!(model(&python, PeerDtype::Bf16), "f32");
        python.model_bf16 = Some("bf16".into());
        assert_eq!(model(&python, PeerDtype::Bf16), "bf16");
        assert_eq!(model(&python, PeerDtype::F32), "f32");
    }
}

//! What whole-cluster tests share: a tiny random model on disk, a config, a running `tina up`.

#![allow(dead_code, reason = "each test program uses the part that it needs")]

pub(crate) mod wire;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tina_model::{MapWeights, ModelConfig};
use tina_proto::{
    client::{AuthChannel, ClientOptions, connect, status_client},
    v1::{ListStepsRequest, RunStatus, StatusRequest, StepRecord, status_client::StatusClient},
};
use tonic::{Response, Status};

/// The longest that any one wait of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The log of all roles that join by hand.
const JOINED: &str = "joined.log";

/// Steps of a run: enough that a fault on progress comes long before the end.
pub(crate) const STEPS: u64 = 120;

/// A folder with a tiny model, problems and a config; runs go under it.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
}

/// The characters of the tiny model's vocabulary, one token each.
fn alphabet() -> Vec<String> {
    let printable = (b' '..=b'~').map(|c| char::from(c).to_string());
    let special = ["<unk>", "<|im_start|>", "<|im_end|>", "\n"].map(str::to_owned);
    special.into_iter().chain(printable).collect()
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        bench.write_model();
        let problems: String = (0..24)
            .map(|i| format!("{{\"question\": \"say {i}\", \"answer\": \"{i}\"}}\n"))
            .collect();
        fs::write(bench.path("problems.jsonl"), problems).unwrap();
        fs::write(bench.path("run.toml"), CONFIG).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_model(&self) {
        let folder = self.path("model");
        fs::create_dir_all(&folder).unwrap();
        let alphabet = alphabet();
        let config = json!({
            "model_type": "llama", "vocab_size": alphabet.len(), "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
            "eos_token_id": 2, "torch_dtype": "float32",
        });
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let shape = ModelConfig::from_hf_json(&config.to_string()).unwrap();
        let weights = MapWeights::random(&shape, 7).unwrap();
        let map = weights.0.into_iter().collect();
        candle_core::safetensors::save(&map, folder.join("model.safetensors")).unwrap();
        let vocab: BTreeMap<&str, usize> = alphabet
            .iter()
            .enumerate()
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        let added = |id: usize| {
            json!({
                "id": id, "content": alphabet[id], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0), added(1), added(2)],
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Split", "pattern": { "Regex": "[\\s\\S]" }, "behavior": "Isolated",
                "invert": false,
            },
            "post_processor": null,
            "decoder": { "type": "Fuse" },
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
        });
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\
            <|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}";
        let tokenizer_config = json!({ "chat_template": template, "eos_token": "<|im_end|>", "model_max_length": 256 });
        fs::write(
            folder.join("tokenizer_config.json"),
            tokenizer_config.to_string(),
        )
        .unwrap();
    }

    /// `tina up run.toml` with a run of this name.
    pub(crate) fn up(&self, name: &str, more: &[&str]) -> Up {
        self.start("up", name, more)
    }

    /// `tina coordinator run.toml`: the roles are started by hand, with [`Bench::join`].
    pub(crate) fn coordinator(&self, name: &str) -> Up {
        self.coordinator_with(name, &[])
    }

    /// The same, with more arguments.
    pub(crate) fn coordinator_with(&self, name: &str, more: &[&str]) -> Up {
        self.start("coordinator", name, more)
    }

    /// `tina eval run.toml` of a run's adapters, in this folder.
    pub(crate) fn eval(&self, name: &str, out: &str, more: &[&str]) -> Up {
        let mut command = self.command("eval", name);
        command.args(["--out", out]).args(more);
        Self::launch(command, self.path(out))
    }

    fn start(&self, command: &str, name: &str, more: &[&str]) -> Up {
        let mut command = self.command(command, name);
        command.args(more);
        Self::launch(command, self.path("runs").join(name))
    }

    fn command(&self, command: &str, name: &str) -> Command {
        let mut tina = tina();
        tina.current_dir(self.folder.path())
            .args([command, "run.toml", "--json", "--set"])
            .arg(format!("run.name={name}"));
        tina
    }

    fn launch(mut command: Command, run: PathBuf) -> Up {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Read from the start: a full pipe would hold the run up.
        let streams = Some((drain(child.stdout.take()), drain(child.stderr.take())));
        Up {
            child,
            streams,
            run,
            token: None,
        }
    }

    /// A role of that run by hand, with so many threads to compute with.
    pub(crate) fn join(&self, up: &mut Up, role: &str, threads: usize) -> Role {
        self.join_at(&up.address(), role, threads)
    }

    /// The same, at an address.
    pub(crate) fn join_at(&self, address: &str, role: &str, threads: usize) -> Role {
        let mut command = tina();
        command.env("RAYON_NUM_THREADS", threads.to_string());
        self.join_by(command, address, role, &[])
    }

    /// The same, by a command of one's own that takes `tina`'s arguments.
    pub(crate) fn join_by(
        &self,
        mut command: Command,
        address: &str,
        role: &str,
        more: &[String],
    ) -> Role {
        let log = self.path(JOINED);
        let log = OpenOptions::new().append(true).create(true).open(log);
        let child = command
            .current_dir(self.folder.path())
            .args([role, "--coordinator", address])
            .args(more)
            .stderr(log.unwrap())
            .spawn();
        Role(child.unwrap())
    }

    /// What roles that joined by hand say.
    pub(crate) fn joined(&self) -> String {
        fs::read_to_string(self.path(JOINED)).unwrap_or_default()
    }

    /// The workers that sampled a run, from its journal.
    pub(crate) fn samplers(&self, name: &str) -> i64 {
        let journal = self.path("runs").join(name).join("run.db");
        let count = "SELECT COUNT(DISTINCT worker) FROM completions";
        let journal = rusqlite::Connection::open(journal).unwrap();
        journal.query_row(count, [], |row| row.get(0)).unwrap()
    }

    /// How long each completion of the journal in this folder took to decode: no two samplings of
    /// one take the same time.
    pub(crate) fn decode_times(&self, folder: &str) -> Vec<(i64, i64, f64)> {
        let journal = rusqlite::Connection::open(self.path(folder).join("run.db")).unwrap();
        let select = "SELECT group_id, sample_index, decode_seconds FROM completions ORDER BY 1, 2";
        let mut select = journal.prepare(select).unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// Steps done, from a run's journal.
    pub(crate) fn steps_done(&self, name: &str) -> i64 {
        let journal = self.path("runs").join(name).join("run.db");
        let journal = rusqlite::Connection::open(journal).unwrap();
        let last = "SELECT max(step) FROM steps";
        journal.query_row(last, [], |row| row.get(0)).unwrap()
    }

    /// What a run was trained on, in order: step, problem, completions.
    pub(crate) fn consumed(&self, name: &str) -> Vec<(i64, String, i64)> {
        let journal = self.path("runs").join(name).join("run.db");
        let journal = rusqlite::Connection::open(journal).unwrap();
        let select = "SELECT p.step, p.problem, count(*) FROM steps s
                      JOIN prompts p ON p.step = s.step AND p.purpose = 'train'
                      JOIN completions c USING (group_id) GROUP BY p.group_id ORDER BY p.group_id";
        let mut select = journal.prepare(select).unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// The most policy versions that lie between the sampling of a token and the training on it.
    pub(crate) fn staleness(&self, name: &str) -> i64 {
        const SPAN: usize = 4 + 8 + 32;
        let journal = self.path("runs").join(name).join("run.db");
        let journal = rusqlite::Connection::open(journal).unwrap();
        let select = "SELECT p.step, c.versions FROM completions c JOIN prompts p USING (group_id)
                      WHERE p.purpose = 'train'";
        let mut select = journal.prepare(select).unwrap();
        let rows = select.query_map([], |row| {
            let (step, spans): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let sampled = spans
                .chunks_exact(SPAN)
                .map(|span| i64::from_le_bytes(span[4..12].try_into().unwrap()));
            Ok(step - 1 - sampled.min().unwrap())
        });
        rows.unwrap().map(Result::unwrap).max().unwrap()
    }

    /// The adapter file that a run ended with.
    pub(crate) fn final_adapter(&self, name: &str) -> Vec<u8> {
        let latest = self.path("runs").join(name).join("adapters/latest");
        fs::read(latest.join("adapter_model.safetensors")).unwrap()
    }
}

const CONFIG: &str = r#"
[run]
seed = 5
steps = 120
dir = "runs"

[model]
source = "model"

[lora]
rank = 4
alpha = 8

[data]
source = "problems.jsonl"
held_out = 4

[sampling]
temperature = 1.0
max_tokens = 12

[[reward]]
kind = "regex"
pattern = "[a-d]"

[algorithm]
prompts_per_step = 8
completions_per_prompt = 8

[learner]
lr = 2e-2
micro_batch_tokens = 128

[rollout]
workers = [{ device = "cpu" }]
slots = 16

[eval]
problems = 4
max_tokens = 12

[cluster]
listen = "127.0.0.1:0"
"#;

/// The binary under test.
pub(crate) fn tina() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tina"));
    // Two roles and several tests share few cores.
    command
        .env("RAYON_NUM_THREADS", "1")
        .env("TINA_LOG", "info")
        .env_remove("TINA_TOKEN");
    command
}

/// A role that was started by hand; it ends with the test at the latest.
pub(crate) struct Role(Child);

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `tina up`, or `tina coordinator`.
pub(crate) struct Up {
    child: Child,
    streams: Option<(thread::JoinHandle<String>, thread::JoinHandle<String>)>,
    run: PathBuf,
    /// What it asks of those who dial in.
    pub(crate) token: Option<String>,
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The JSON object that stands on the last line.
    pub(crate) fn summary(&self) -> Value {
        assert!(
            self.success,
            "tina failed:\n{}\n{}",
            self.stdout, self.stderr
        );
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last:?}"))
    }
}

impl Up {
    /// The coordinator's address, once it is listening.
    pub(crate) fn address(&mut self) -> String {
        let file = self.run.join("coordinator.addr");
        let mut found = String::new();
        self.wait("the coordinator's address", |_| {
            found = fs::read_to_string(&file)
                .unwrap_or_default()
                .trim()
                .to_owned();
            !found.is_empty()
        });
        found
    }

    /// What the run says of itself, when it answers.
    pub(crate) fn status(&mut self) -> Option<RunStatus> {
        self.ask(async |mut client| client.get_status(StatusRequest {}).await)
    }

    /// The records of these steps, which are done.
    pub(crate) fn steps(&mut self, steps: RangeInclusive<u64>) -> Vec<StepRecord> {
        let request = ListStepsRequest {
            from_step: *steps.start(),
            limit: steps.clone().count() as u32,
        };
        let reply = self.ask(async |mut client| client.list_steps(request).await);
        let found = reply.expect("the run answers").steps;
        assert!(found.iter().map(|step| step.step).eq(steps));
        found
    }

    fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(StatusClient<AuthChannel>) -> Result<Response<T>, Status>,
    ) -> Option<T> {
        let options = ClientOptions {
            url: self.address(),
            token: self.token.clone(),
            ..ClientOptions::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let channel = connect(&options).await.ok()?;
            let client = status_client(channel, options.interceptor().ok()?);
            question(client).await.ok().map(Response::into_inner)
        })
    }

    /// Waits until the run has done `step` steps.
    pub(crate) fn wait_for_step(&mut self, step: u64) -> RunStatus {
        self.wait_for(&format!("step {step}"), |status| status.step >= step)
    }

    /// Waits until the run says of itself what is wanted.
    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&RunStatus) -> bool,
    ) -> RunStatus {
        let mut seen = None;
        self.wait(what, |up| {
            seen = up.status().filter(&wanted);
            seen.is_some()
        });
        seen.unwrap()
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            if let Some(exit) = self.child.try_wait().unwrap() {
                let ended = self.output();
                panic!("ended ({exit}) before {what}:\n{}\n{}", ended.0, ended.1);
            }
            assert!(start.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Process ids of the role (`rollout-worker` or `learner`) that this run started.
    pub(crate) fn pids(&self, role: &str) -> Vec<u32> {
        let parent = self.child.id();
        let mut found: Vec<u32> = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| is_child(*pid, parent, role))
            .collect();
        found.sort_unstable();
        found
    }

    /// Kills a role's processes as the kernel would for want of memory.
    pub(crate) fn kill(&self, role: &str) {
        let pids = self.pids(role);
        assert!(!pids.is_empty(), "no {role} runs");
        pids.iter().for_each(|pid| signal(*pid, "KILL"));
    }

    /// Kills `tina up` itself; its end would have taken its address away.
    pub(crate) fn kill_coordinator(mut self) {
        self.signal("KILL");
        self.child.wait().unwrap();
        let address = self.run.join("coordinator.addr");
        assert!(address.is_file(), "it was killed only after its end");
    }

    /// Sends a signal to `tina up` itself.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Whether it is over.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Ended {
        let start = Instant::now();
        let exit = loop {
            if let Some(exit) = self.child.try_wait().unwrap() {
                break exit;
            }
            if start.elapsed() > PATIENCE {
                self.signal("KILL");
                panic!("still running after {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(20));
        };
        let (stdout, stderr) = self.output();
        Ended {
            success: exit.success(),
            stdout,
            stderr,
        }
    }

    fn output(&mut self) -> (String, String) {
        let (stdout, stderr) = self.streams.take().unwrap();
        (stdout.join().unwrap(), stderr.join().unwrap())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn drain(stream: Option<impl std::io::Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_string(&mut text);
        }
        text
    })
}

fn is_child(pid: u32, parent: u32, role: &str) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let is_parents = status.lines().any(|line| {
        line.strip_prefix("PPid:")
            .is_some_and(|ppid| ppid.trim() == parent.to_string())
    });
    let command = fs::read(process.join("cmdline")).unwrap_or_default();
    let mut words = command.split(|byte| *byte == 0);
    is_parents && words.nth(1) == Some(role.as_bytes())
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success(), "kill -{name} {pid}");
}

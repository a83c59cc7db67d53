//! `tina sample`: talk to a model, trained or not.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tina_coordinator::{
    config::RunConfig,
    data::{PromptTemplate, chat_template},
};
use tina_model::{ChatMessage, Distribution, KvCache, Scratch, Tokenizer};
use tina_rollout_worker::stop::StopScan;

use crate::{
    Failure,
    policy::{Policy, PolicyArgs},
};

/// Talk to a model, with an adapter or without
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    policy: PolicyArgs,
    /// 0: always the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Sample among the likeliest tokens that have this probability together
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Sample among so many likeliest tokens; 0: all
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Sample among tokens at least this likely, relative to the likeliest
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// What the sampling is drawn by
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// System message; without it, the chat template's own
    #[arg(long)]
    system: Option<String>,
    /// Continue the bare prompt, without the chat template
    #[arg(long)]
    raw: bool,
    /// What to ask, each by itself; without any, a conversation line by line from standard input
    prompts: Vec<String>,
}

impl Args {
    fn distribution(&self) -> Distribution {
        Distribution {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    args.distribution().check()?;
    if args.max_tokens == 0 {
        return Err("--max-tokens must be 1 or more".into());
    }
    let mut talk = Talk::new(args)?;
    if !args.prompts.is_empty() {
        for prompt in &args.prompts {
            talk.restart();
            talk.ask(prompt)?;
        }
        return Ok(());
    }
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("Ask away; an empty line starts over, Ctrl-D ends.");
    }
    loop {
        if terminal {
            eprint!("> ");
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => talk.restart(),
            question => talk.ask(question)?,
        }
    }
}

/// A conversation with a policy.
struct Talk<'a> {
    args: &'a Args,
    /// Without the chat template.
    raw: bool,
    policy: Policy,
    /// What ends an answer: the model's own, and the run's.
    stop_token_ids: Vec<u32>,
    stop: Vec<String>,
    messages: Vec<ChatMessage>,
    rng: ChaCha8Rng,
}

impl<'a> Talk<'a> {
    fn new(args: &'a Args) -> Result<Self, Failure> {
        let mut policy = Policy::load(&args.policy)?;
        let raw = args.raw || policy.config.as_ref().is_some_and(|run| !run.data.chat);
        if let Some(run) = &policy.config
            && !raw
        {
            policy.text.chat = chat_template(run, &policy.text)?;
        }
        if policy.text.chat.is_none() && !raw {
            return Err("the model has no chat template; use --raw".into());
        }
        let mut stop_token_ids = policy.text.stop_token_ids.clone();
        let mut stop = Vec::new();
        if let Some(run) = &policy.config {
            // Asked and ended as in training.
            let params = run.sampling_params(&stop_token_ids);
            (stop_token_ids, stop) = (params.stop_token_ids, params.stop);
        }
        let rng = ChaCha8Rng::seed_from_u64(args.seed);
        let mut talk = Self {
            args,
            raw,
            policy,
            stop_token_ids,
            stop,
            messages: Vec::new(),
            rng,
        };
        talk.restart();
        Ok(talk)
    }

    fn restart(&mut self) {
        let trained = self
            .policy
            .config
            .as_ref()
            .and_then(|run| run.data.system_prompt.as_ref());
        let system = self.args.system.as_ref().or(trained);
        self.messages = system
            .into_iter()
            .map(|text| message("system", text))
            .collect();
    }

    /// Prints the answer as it comes, and keeps it for the next question.
    fn ask(&mut self, question: &str) -> Result<(), Failure> {
        let text = &self.policy.text;
        let question = match &self.policy.config {
            Some(run) => as_asked(run, question)?,
            None => question.to_owned(),
        };
        let prompt = match &text.chat {
            Some(template) if !self.raw => {
                self.messages.push(message("user", &question));
                text.tokenizer
                    .encode(&template.render(&self.messages, true)?)?
            }
            _ => text.tokenizer.encode_document(&question)?,
        };
        let answer = self.answer(&prompt)?;
        self.messages.push(message("assistant", &answer));
        Ok(())
    }

    fn answer(&mut self, prompt: &[u32]) -> Result<String, Failure> {
        let Policy {
            text,
            decoder,
            adapter,
            ..
        } = &self.policy;
        let context = text.config.max_positions;
        let room = context
            .saturating_sub(prompt.len())
            .min(self.args.max_tokens);
        if room == 0 {
            return Err(format!(
                "the prompt has {} tokens, and the model's context {context}",
                prompt.len()
            )
            .into());
        }
        let distribution = self.args.distribution();
        let mut stop_scan = StopScan::new(&self.stop);
        let mut scratch = Scratch::default();
        let mut cache: KvCache = decoder.new_cache(1, prompt.len() + room)?;
        let mut logits = Vec::new();
        for (kept, first) in decoder.prefill(&mut cache, &[prompt], adapter.as_ref())? {
            cache.attach(0, &kept)?;
            logits = first;
        }
        let mut printer = Printer::new(&text.tokenizer);
        for count in 1..=room {
            let uniform = self.rng.random::<f64>();
            let token = distribution.sample(&logits, uniform, &mut scratch).token;
            if self.stop_token_ids.contains(&token) {
                break;
            }
            printer.push(token)?;
            if stop_scan.reached(&printer.tokens, &text.tokenizer)? {
                break;
            }
            if count < room {
                let step = [(0, token)];
                decoder.decode(&mut cache, &step, adapter.as_ref(), &mut logits)?;
            }
        }
        printer.finish()
    }
}

/// The user's message as training asked it: the run's prompt template around the question. A
/// template that needs more than the question leaves it as it is.
fn as_asked(run: &RunConfig, question: &str) -> Result<String, Failure> {
    let template = PromptTemplate::parse(&run.data.prompt_template)?;
    let filled = template.fill(|field| {
        (field == "question" || field == run.data.question_field).then(|| question.to_owned())
    });
    Ok(filled.unwrap_or_else(|_| question.to_owned()))
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// Prints tokens as text, a character as soon as it is whole.
struct Printer<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// Tokens from `start` are decoded together, those before `done` are printed: a token's text
    /// may depend on the one before it.
    start: usize,
    done: usize,
    text: String,
}

impl<'a> Printer<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            tokens: Vec::new(),
            start: 0,
            done: 0,
            text: String::new(),
        }
    }

    fn push(&mut self, token: u32) -> Result<(), Failure> {
        self.tokens.push(token);
        self.print(false)
    }

    fn print(&mut self, last: bool) -> Result<(), Failure> {
        let before = self
            .tokenizer
            .decode(&self.tokens[self.start..self.done], true)?;
        let now = self.tokenizer.decode(&self.tokens[self.start..], true)?;
        // A character cut in two waits for its other half.
        if !last && now.ends_with('\u{fffd}') {
            return Ok(());
        }
        let new = now.get(before.len()..).unwrap_or_default();
        print!("{new}");
        std::io::stdout().flush()?;
        self.text.push_str(new);
        (self.start, self.done) = (self.done, self.tokens.len());
        Ok(())
    }

    fn finish(mut self) -> Result<String, Failure> {
        self.print(true)?;
        println!();
        Ok(self.text)
    }
}

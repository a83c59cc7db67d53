//! Every target's valid inputs, broken some thousands of times: no panic, memory in proportion to
//! the input, an end in bounded time. What fails is written to a file that cargo-fuzz takes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tina_fuzz::{TARGETS, mutate::mutation};

/// Memory that an input may take: so much whatever it is, and so much for each of its bytes. JSON
/// takes the most: `[[],[],...` is 72 bytes for 3.
const BYTES: usize = 16 << 20;
const BYTES_A_BYTE: usize = 256;
/// No input may take longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The system's allocator, with a count.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(held, Ordering::Relaxed);
}

#[allow(unsafe_code, reason = "an allocator can't be written without")]
// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are this call's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are this call's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are this call's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are this call's.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Where failing inputs go.
fn keep(name: &str, number: u64, bytes: &[u8]) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("tina-fuzz-{name}-{number}"));
    fs::write(&path, bytes).unwrap();
    path
}

/// One test at a time: what is counted is the whole process's memory.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn whatever_arrives_is_answered() {
    let _alone = alone();
    let only = std::env::var("TINA_FUZZ_TARGET").ok();
    let wanted = std::env::var("TINA_FUZZ_MUTATIONS").ok();
    let wanted: Option<u64> = wanted.map(|count| count.parse().unwrap());
    // Some libraries assert, and their callers catch it: only what isn't caught is told.
    panic::set_hook(Box::new(|_| {}));
    let mut failures = Vec::new();
    for target in TARGETS {
        if only.as_deref().is_some_and(|only| only != target.name) {
            continue;
        }
        let began = Instant::now();
        let seeds = (target.seeds)();
        // What is made once is made now.
        seeds.iter().for_each(|seed| (target.run)(seed));
        let (mut longest, mut largest) = (Duration::ZERO, 0);
        for number in 0..wanted.unwrap_or(target.mutations) {
            let bytes = mutation(&seeds, number);
            let before = HELD.load(Ordering::Relaxed);
            MOST.store(before, Ordering::Relaxed);
            let started = Instant::now();
            let ended = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
            let took = started.elapsed();
            let memory = MOST.load(Ordering::Relaxed).saturating_sub(before);
            (longest, largest) = (longest.max(took), largest.max(memory));
            let problem = if let Err(panic) = ended {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                format!("panicked: {}", text.unwrap_or("without a word"))
            } else if memory > BYTES + BYTES_A_BYTE * bytes.len() {
                format!("{} bytes of input took {memory} bytes", bytes.len())
            } else if took > PATIENCE {
                format!("took {took:?}")
            } else {
                continue;
            };
            let path = keep(target.name, number, &bytes);
            failures.push(format!(
                "{}: mutation {number} ({}): {problem}",
                target.name,
                path.display()
            ));
            if failures.len() > 20 {
                break;
            }
        }
        println!(
            "{}: {:.1} s; one took at most {longest:?} and {largest} bytes",
            target.name,
            began.elapsed().as_secs_f64()
        );
    }
    drop(panic::take_hook());
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Valid inputs are valid: breaking what is broken already would test little.
#[test]
fn valid_inputs_are_taken() {
    let _alone = alone();
    use tina_fuzz::{files, texts};
    let file = |bytes: &[u8], extension: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("seed.{extension}"));
        fs::write(&path, bytes).unwrap();
        (folder, path)
    };
    for seed in files::gguf::seeds() {
        let (_folder, path) = file(&seed, "gguf");
        tina_model::open(&tina_model::ModelSource::Gguf(path)).unwrap();
    }
    for seed in files::hf_config::seeds() {
        let text = String::from_utf8(seed).unwrap();
        tina_model::ModelConfig::from_hf_json(&text).unwrap();
    }
    for seed in files::adapter::seeds() {
        let (lora, shape, device) = (files::lora(), files::shape(), candle_core::Device::Cpu);
        tina_model::Adapter::from_safetensors(&seed, &lora, &shape, &device).unwrap();
    }
    for seed in files::tokenizer::seeds() {
        tina_model::Tokenizer::from_json(&seed).unwrap();
    }
    for seed in texts::chat_template::seeds() {
        let text = String::from_utf8(seed).unwrap();
        let template = tina_model::ChatTemplate::new(&text, &[]).unwrap();
        let user = tina_model::ChatMessage {
            role: "user".into(),
            content: "1?".into(),
        };
        assert!(template.render(&[user], true).unwrap().contains("1?"));
    }
    for seed in texts::config::seeds() {
        let text = String::from_utf8(seed).unwrap();
        let (text, set) = text.rsplit_once('\0').unwrap_or((&text, "run.seed=1"));
        let sets = [set.to_owned()];
        let read = tina_coordinator::config::RunConfig::parse(text, "x", Path::new("/"), &sets);
        read.unwrap();
    }
    for (seeds, extension) in [
        (texts::json_lines::seeds(), "jsonl"),
        (texts::parquet::seeds(), "parquet"),
    ] {
        use tina_coordinator::{config::BadRows, data};
        for seed in seeds {
            let (_folder, path) = file(&seed, extension);
            let source: data::Source = path.display().to_string().parse().unwrap();
            let template = data::PromptTemplate::parse("{question}").unwrap();
            let answer = if seed.windows(7).any(|word| word == b"extra\":") {
                "extra.answer"
            } else {
                "answer"
            };
            let format = data::RowFormat::new("question", answer, template);
            data::read_problems(&source, &format, BadRows::Skip).unwrap();
        }
    }
}

/// Writes the valid inputs for cargo-fuzz, where `TINA_FUZZ_CORPUS` says to (from this package's folder).
#[test]
fn corpus() {
    let Some(folder) = std::env::var_os("TINA_FUZZ_CORPUS") else {
        return;
    };
    let _alone = alone();
    for target in TARGETS {
        let folder = Path::new(&folder).join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (at, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{at}")), seed).unwrap();
        }
    }
}

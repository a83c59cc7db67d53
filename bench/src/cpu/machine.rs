//! What this machine can do at most, measured: arithmetic of all processors, reading from memory.

use std::{
    fs,
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::peak::{self, Kernel};
use crate::{floor::Peak, processes::Others};

/// One attempt at a peak of arithmetic lasts about this long: it may fit between two of the
/// system's turns for others.
const ATTEMPT: Duration = Duration::from_millis(10);
/// The best of as many counts: whatever else runs can only make it less.
const ATTEMPTS: u32 = 15;
/// Much more than any cache holds.
const BUFFER_BYTES: usize = 512 << 20;

/// The machine, and its peaks.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    /// Instructions that the f32 peak was reached with.
    pub(crate) f32_instructions: &'static str,
    pub(crate) f32_gflops: f64,
    /// None where the processor has no products of bf16.
    pub(crate) bf16_gflops: Option<f64>,
    /// Read from memory, 10⁹ bytes a second.
    pub(crate) read_gbytes: f64,
    /// Share of the processors that others had meanwhile: peaks are too low by it.
    pub(crate) foreign_cpu_share: f64,
}

impl Machine {
    pub(crate) fn measure(processors: usize) -> Self {
        let others = Others::start();
        let f32_kernel = peak::f32_kernel();
        let f32_gflops = gflops(&f32_kernel, processors);
        let bf16_gflops = peak::bf16_kernel().map(|kernel| gflops(&kernel, processors));
        Self {
            processor: processor(),
            processors,
            f32_instructions: f32_kernel.name,
            f32_gflops,
            bf16_gflops,
            read_gbytes: read_gbytes(processors),
            foreign_cpu_share: others.share(),
        }
    }

    /// The better of two measurements of one machine.
    pub(crate) fn best(self, other: Self) -> Self {
        let bf16 = self.bf16_gflops.into_iter().chain(other.bf16_gflops);
        Self {
            f32_gflops: self.f32_gflops.max(other.f32_gflops),
            bf16_gflops: bf16.reduce(f64::max),
            read_gbytes: self.read_gbytes.max(other.read_gbytes),
            foreign_cpu_share: self.foreign_cpu_share.min(other.foreign_cpu_share),
            ..self
        }
    }

    /// Of computing in f32.
    pub(crate) fn f32_peak(&self) -> Peak {
        Peak {
            bytes_per_number: 4.0,
            gflops: self.f32_gflops,
            gbytes: self.read_gbytes,
        }
    }

    /// Of computing in the type that the machine is fastest in, and the type's name.
    pub(crate) fn best_peak(&self) -> (&'static str, Peak) {
        match self.bf16_gflops {
            Some(gflops) if gflops > self.f32_gflops => (
                "bf16",
                Peak {
                    bytes_per_number: 2.0,
                    gflops,
                    gbytes: self.read_gbytes,
                },
            ),
            _ => ("f32", self.f32_peak()),
        }
    }
}

fn gflops(kernel: &Kernel, threads: usize) -> f64 {
    // As many rounds as last long enough that starting threads does not count.
    let mut rounds = 1 << 12;
    loop {
        let began = Instant::now();
        (kernel.run)(rounds);
        if began.elapsed() >= ATTEMPT {
            break;
        }
        rounds *= 2;
    }
    // Processors compute each for itself, so each thread's best attempt counts; all are busy in all.
    let mut best = vec![f64::INFINITY; threads];
    for _ in 0..ATTEMPTS {
        let spans = attempt(threads, &|_| (kernel.run)(rounds));
        for (best, (began, ended)) in best.iter_mut().zip(spans) {
            *best = best.min((ended - began).as_secs_f64());
        }
    }
    let operations = kernel.operations * rounds as f64;
    best.iter().map(|seconds| operations / seconds).sum::<f64>() / 1e9
}

fn read_gbytes(threads: usize) -> f64 {
    // Written, so that every page is there.
    let words = vec![1u64; BUFFER_BYTES / size_of::<u64>()];
    let share = words.len().div_ceil(threads);
    let parts: Vec<&[u64]> = words.chunks(share).collect();
    let work = |thread: usize| {
        black_box(peak::sum(parts.get(thread).copied().unwrap_or_default()));
    };
    BUFFER_BYTES as f64 / best(threads, work) / 1e9
}

/// Seconds that all threads together need for `work`, at best: what they share, they share.
fn best(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let together = |_| {
        let spans = attempt(threads, &work);
        let first = spans.iter().map(|span| span.0).min();
        let last = spans.iter().map(|span| span.1).max();
        match (first, last) {
            (Some(first), Some(last)) => (last - first).as_secs_f64(),
            _ => f64::INFINITY,
        }
    };
    (0..ATTEMPTS).map(together).fold(f64::INFINITY, f64::min)
}

/// When each thread began `work` and ended it; all begin at once, and each gets its number.
fn attempt(threads: usize, work: &(impl Fn(usize) + Sync)) -> Vec<(Instant, Instant)> {
    let ready = &Barrier::new(threads);
    thread::scope(|scope| {
        let run = |thread| {
            scope.spawn(move || {
                ready.wait();
                let began = Instant::now();
                work(thread);
                (began, Instant::now())
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        let spans = running.into_iter().map(|thread| thread.join());
        spans.flatten().collect()
    })
}

/// Its name, as the system tells it.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match (field("cpu family"), field("model\t")) {
        (Some(family), Some(number)) => format!("{model} (family {family}, model {number})"),
        _ => model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_type_is_the_one_with_more_operations() {
        let mut machine = Machine {
            processor: String::new(),
            processors: 2,
            f32_instructions: "AVX-512",
            f32_gflops: 200.0,
            bf16_gflops: None,
            read_gbytes: 40.0,
            foreign_cpu_share: 0.0,
        };
        assert_eq!(machine.best_peak(), ("f32", machine.f32_peak()));
        machine.bf16_gflops = Some(400.0);
        let (name, peak) = machine.best_peak();
        assert_eq!(
            (name, peak.bytes_per_number, peak.gflops),
            ("bf16", 2.0, 400.0)
        );
    }

    #[test]
    fn whatever_was_reached_once_counts() {
        let first = Machine {
            processor: "one".to_owned(),
            processors: 2,
            f32_instructions: "AVX-512",
            f32_gflops: 200.0,
            bf16_gflops: Some(300.0),
            read_gbytes: 40.0,
            foreign_cpu_share: 0.1,
        };
        let second = Machine {
            f32_gflops: 150.0,
            bf16_gflops: Some(400.0),
            read_gbytes: 50.0,
            foreign_cpu_share: 0.0,
            ..first.clone()
        };
        let best = first.best(second);
        assert_eq!((best.f32_gflops, best.bf16_gflops), (200.0, Some(400.0)));
        assert_eq!((best.read_gbytes, best.foreign_cpu_share), (50.0, 0.0));
    }

    #[test]
    fn an_attempt_lasts_as_long_as_its_slowest_thread() {
        let work = |thread: usize| thread::sleep(Duration::from_millis(2 + 8 * thread as u64));
        let seconds = best(2, work);
        assert!((0.010..0.5).contains(&seconds), "{seconds}");
    }
}

//! A process and all its descendants, as `/proc` tells of them: their memory, their end, and who
//! else had the processors meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);
/// Looks between two searches for new descendants.
const SEARCH_EVERY: u32 = 5;
/// What `/proc` counts processor time in (`USER_HZ` is 100 on Linux).
const TICK: Duration = Duration::from_millis(10);
/// How long descendants may outlive their ancestor before they are killed.
const GRACE: Duration = Duration::from_secs(10);

/// What a tree of processes took.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// Most resident memory of all processes together at one time, in MiB. Pages that two
    /// processes share count twice.
    pub(crate) peak_together_mib: f64,
    /// Each process's own peak, by role, in MiB.
    pub(crate) peak_by_role_mib: BTreeMap<String, f64>,
    /// Share of all processors' time that others took: a figure is worth something where this is
    /// near 0.
    pub(crate) foreign_cpu_share: f64,
}

/// What one process took.
#[derive(Clone, Debug, Default)]
struct Taken {
    role: String,
    peak_kib: u64,
    cpu_ticks: u64,
}

/// Time of all processors since the system started, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Processors {
    busy: u64,
    all: u64,
}

#[derive(Debug, Default)]
struct Seen {
    together_kib: u64,
    processes: BTreeMap<u32, Taken>,
}

/// Watches a process and its descendants until it is asked for the result.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    before: Processors,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(root: u32) -> Self {
        let (seen, over) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (shared, ended) = (seen.clone(), over.clone());
        let thread = thread::spawn(move || {
            let mut pids = Vec::new();
            let mut looks = 0;
            while !ended.load(Ordering::Relaxed) {
                if looks % SEARCH_EVERY == 0 {
                    pids = tree(root, &parents());
                }
                looks += 1;
                look(
                    &pids,
                    &mut shared.lock().unwrap_or_else(PoisonError::into_inner),
                );
                thread::sleep(PERIOD);
            }
        });
        Self {
            seen,
            over,
            before: processors(),
            thread: Some(thread),
        }
    }

    /// What was seen so far.
    pub(crate) fn usage(&self) -> Usage {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peak_by_role_mib = BTreeMap::new();
        for process in seen.processes.values() {
            let peak: &mut f64 = peak_by_role_mib.entry(process.role.clone()).or_default();
            *peak = peak.max(mib(process.peak_kib));
        }
        let own = seen
            .processes
            .values()
            .map(|process| process.cpu_ticks)
            .sum();
        Usage {
            peak_together_mib: mib(seen.together_kib),
            peak_by_role_mib,
            foreign_cpu_share: foreign_share(self.before, processors(), own),
        }
    }

    /// Waits until every process that was seen is gone, and kills what outlives its grace.
    pub(crate) fn end(mut self) {
        self.stop();
        let pids: Vec<u32> = {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.processes.keys().copied().collect()
        };
        let began = Instant::now();
        while began.elapsed() < GRACE {
            if !pids.iter().any(|pid| status(*pid).is_some()) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        for pid in pids.into_iter().filter_map(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Who else has the processors from now on, this process and the children that it waits for left
/// out. Exact where no child of it is left running; [`Watch`] sees children that still run.
#[derive(Clone, Debug)]
pub(crate) struct Others {
    before: Processors,
    own: u64,
    running: Vec<u32>,
}

impl Others {
    pub(crate) fn start() -> Self {
        Self::beside(Vec::new())
    }

    /// With children that run all the while, which are no others.
    pub(crate) fn beside(running: Vec<u32>) -> Self {
        Self {
            before: processors(),
            own: ticks_with(&running),
            running,
        }
    }

    /// Their share of all processors' time.
    pub(crate) fn share(&self) -> f64 {
        let own = ticks_with(&self.running).saturating_sub(self.own);
        foreign_share(self.before, processors(), own)
    }
}

fn ticks_with(running: &[u32]) -> u64 {
    let children = running.iter().filter_map(|pid| cpu_ticks(*pid));
    own_ticks() + children.sum::<u64>()
}

/// Processor time of this process and of the children that it has waited for, in ticks.
fn own_ticks() -> u64 {
    let stat = stat(std::process::id()).unwrap_or_default();
    let times = stat.get(11..15).unwrap_or_default();
    times.iter().filter_map(|t| t.parse::<u64>().ok()).sum()
}

/// Peak resident memory of this process, in MiB; 0 where the system does not tell.
pub(crate) fn own_peak_mib() -> f64 {
    status(std::process::id()).map_or(0.0, |status| mib(field(&status, "VmHWM:")))
}

/// A process of somebody else's, looked at from time to time; zero of everything once it is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pid: u32,
}

impl Process {
    pub(crate) fn new(pid: u32) -> Self {
        Self { pid }
    }

    /// Processor time so far, to a tick.
    pub(crate) fn cpu(self) -> Duration {
        TICK * u32::try_from(cpu_ticks(self.pid).unwrap_or(0)).unwrap_or(u32::MAX)
    }

    pub(crate) fn resident_kib(self) -> u64 {
        status(self.pid).map_or(0, |status| field(&status, "VmRSS:"))
    }

    pub(crate) fn peak_kib(self) -> u64 {
        status(self.pid).map_or(0, |status| field(&status, "VmHWM:"))
    }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn look(pids: &[u32], seen: &mut Seen) {
    let mut together = 0;
    for pid in pids {
        let Some(status) = status(*pid) else { continue };
        together += field(&status, "VmRSS:");
        let process = seen.processes.entry(*pid).or_insert_with(|| Taken {
            role: role(*pid),
            ..Taken::default()
        });
        process.peak_kib = process.peak_kib.max(field(&status, "VmHWM:"));
        process.cpu_ticks = process.cpu_ticks.max(cpu_ticks(*pid).unwrap_or(0));
    }
    seen.together_kib = seen.together_kib.max(together);
}

/// What a live process says of itself; a zombie says nothing of memory and counts as gone.
fn status(pid: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.contains("VmRSS:").then_some(status)
}

/// A field in KiB; 0 where it isn't told.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// The fields of a process's `stat` after its name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some(fields.map(str::to_owned).collect())
}

/// Processor time of a process, in ticks.
fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = stat(pid)?;
    Some(stat.get(11)?.parse::<u64>().ok()? + stat.get(12)?.parse::<u64>().ok()?)
}

fn processors() -> Processors {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_processors(text.lines().next().unwrap_or_default())
}

/// `cpu user nice system idle iowait irq softirq steal ...`; steal is what another machine on the
/// same processors took.
fn parse_processors(line: &str) -> Processors {
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|t| t.parse().ok())
        .collect();
    let all = ticks.iter().take(8).sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Processors {
        busy: all - idle,
        all,
    }
}

fn foreign_share(before: Processors, after: Processors, own: u64) -> f64 {
    let busy = after.busy.saturating_sub(before.busy);
    let all = after.all.saturating_sub(before.all).max(1);
    busy.saturating_sub(own) as f64 / all as f64
}

/// A role of `tina` by its subcommand, anything else by its program.
fn role(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    match words.next().as_deref() {
        Some("up") => "coordinator".to_owned(),
        Some(role @ ("coordinator" | "rollout-worker" | "learner")) => role.to_owned(),
        _ => program,
    }
}

/// Every process's parent.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = |pid: u32| Some((pid, stat(pid)?.get(1)?.parse().ok()?));
    pids.filter_map(parent).collect()
}

/// `root` and all that descend from it.
fn tree(root: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|p| p.1 == parent).map(|p| p.0));
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn descendants_of_descendants_belong_to_the_tree() {
        let parents = [(2, 1), (3, 2), (4, 1), (5, 3), (9, 8)];
        let mut found = tree(2, &parents);
        found.sort_unstable();
        assert_eq!(found, [2, 3, 5]);
    }

    #[test]
    fn what_others_took_is_told_from_what_the_processes_took() {
        let before = parse_processors("cpu 100 0 50 800 50 0 0 0 7 7");
        assert_eq!(
            before,
            Processors {
                busy: 150,
                all: 1000
            }
        );
        let after = parse_processors("cpu 180 0 60 890 60 0 0 10 7 7");
        assert_eq!(foreign_share(before, after, 70), 0.15);
        assert_eq!(foreign_share(before, after, 120), 0.0);
    }

    #[test]
    fn a_child_that_was_waited_for_is_no_other() {
        let before = own_ticks();
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        Command::new("sh").args(["-c", busy]).status().unwrap();
        assert!(own_ticks() > before);
        assert!((0.0..=1.0).contains(&Others::start().share()));
    }

    #[test]
    fn a_process_is_watched_with_its_children_until_all_are_gone() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 2; true"])
            .spawn()
            .unwrap();
        let watch = Watch::start(child.id());
        child.wait().unwrap();
        let memory = watch.usage();
        assert!(memory.peak_by_role_mib.contains_key("sleep"), "{memory:?}");
        let alone = memory
            .peak_by_role_mib
            .values()
            .fold(0.0, |a: f64, b| a.max(*b));
        assert!(alone > 0.0 && memory.peak_together_mib > 0.0);
        let began = Instant::now();
        watch.end();
        assert!(began.elapsed() < GRACE);
    }
}

//! A process and all its descendants, as `/proc` tells of them: their memory, and their end.

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
/// How long descendants may outlive their ancestor before they are killed.
const GRACE: Duration = Duration::from_secs(10);

/// The memory of a tree of processes.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Memory {
    /// Most resident memory of all processes together at one time, in MiB. Pages that two
    /// processes share count twice.
    pub(crate) peak_together_mib: f64,
    /// Each process's own peak, by role, in MiB.
    pub(crate) peak_by_role_mib: BTreeMap<String, f64>,
}

#[derive(Debug, Default)]
struct Seen {
    together_kib: u64,
    /// Role and peak of every process so far.
    processes: BTreeMap<u32, (String, u64)>,
}

/// Watches a process and its descendants until it is asked for the result.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
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
            thread: Some(thread),
        }
    }

    /// What was seen.
    pub(crate) fn memory(&self) -> Memory {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peak_by_role_mib = BTreeMap::new();
        for (role, kib) in seen.processes.values() {
            let peak: &mut f64 = peak_by_role_mib.entry(role.clone()).or_default();
            *peak = peak.max(mib(*kib));
        }
        Memory {
            peak_together_mib: mib(seen.together_kib),
            peak_by_role_mib,
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

/// Peak resident memory of this process, in MiB; 0 where the system does not tell.
pub(crate) fn own_peak_mib() -> f64 {
    status(std::process::id()).map_or(0.0, |status| mib(field(&status, "VmHWM:")))
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn look(pids: &[u32], seen: &mut Seen) {
    let mut together = 0;
    for pid in pids {
        let Some(status) = status(*pid) else { continue };
        together += field(&status, "VmRSS:");
        let peak = field(&status, "VmHWM:");
        let entry = seen
            .processes
            .entry(*pid)
            .or_insert_with(|| (role(*pid), 0));
        entry.1 = entry.1.max(peak);
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
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // pid (name, which may hold anything) state parent ...
        let parent = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()?;
        Some((pid, parent))
    };
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
    fn a_process_is_watched_with_its_children_until_all_are_gone() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 0.7; true"])
            .spawn()
            .unwrap();
        let watch = Watch::start(child.id());
        child.wait().unwrap();
        let memory = watch.memory();
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

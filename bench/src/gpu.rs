//! What a GPU holds, as `nvidia-smi` tells: the driver's view, with everything that a process has
//! taken, whether it uses it or not.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use candle_core::Device;

/// Watches a GPU's memory until it is dropped.
#[derive(Debug)]
pub(crate) struct GpuWatch {
    child: Child,
    peak: Arc<AtomicU64>,
}

impl GpuWatch {
    /// `None` where there is no `nvidia-smi`, or `device` (`cuda:N`) is no GPU.
    pub(crate) fn start(device: &str) -> Option<Self> {
        let ordinal = device.strip_prefix("cuda")?.trim_start_matches(':');
        let ordinal = if ordinal.is_empty() { "0" } else { ordinal };
        let mut child = Command::new("nvidia-smi")
            .args(["--query-gpu=memory.used", "--format=csv,noheader,nounits"])
            .args(["-i", ordinal, "-lms", "100"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let lines = BufReader::new(child.stdout.take()?).lines();
        let peak = Arc::<AtomicU64>::default();
        let shared = peak.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(mib) = line.trim().parse() {
                    shared.fetch_max(mib, Ordering::Relaxed);
                }
            }
        });
        Some(Self { child, peak })
    }

    /// Most memory in use at any look so far, in MiB; `None` before the first.
    pub(crate) fn peak_mib(&self) -> Option<f64> {
        let peak = self.peak.load(Ordering::Relaxed);
        (peak > 0).then_some(peak as f64)
    }
}

impl Drop for GpuWatch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a person knows a device by.
pub(crate) fn name(device: &Device, text: &str) -> String {
    if device.is_cpu() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let line = info.lines().find(|line| line.starts_with("model name"));
        let name = line
            .and_then(|line| line.split_once(':'))
            .map(|(_, name)| name.trim());
        return name.unwrap_or(std::env::consts::ARCH).to_owned();
    }
    let ordinal = text.rsplit(':').next().unwrap_or("0");
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=name", "--format=csv,noheader", "-i", ordinal])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => text.to_owned(),
    }
}

//! What a person knows a machine by: what roles say of themselves in their Hello.

use std::fs;

use crate::v1::DeviceInfo;

/// The machine's host name.
pub fn name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Host name and process id.
pub fn address() -> String {
    format!("{}:{}", name(), crate::platform::process_id())
}

/// The device "cpu" or "cuda:N" with its name, the numerics where they are known, and the threads
/// that compute on a CPU.
pub fn device_info(device: &str, numerics: String, threads: usize) -> DeviceInfo {
    let name = match device.strip_prefix("cuda") {
        None => fs::read_to_string("/proc/cpuinfo")
            .ok()
            .as_deref()
            .and_then(processor),
        Some(ordinal) => gpu(ordinal.trim_start_matches(':').parse().unwrap_or(0)),
    };
    DeviceInfo {
        device: device.to_owned(),
        name: name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        numerics,
        threads: threads as u32,
    }
}

/// The first processor's model name in the text of /proc/cpuinfo.
fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// The name that the NVIDIA driver gives the GPU; its folders are named by bus, in the order that
/// GPUs are counted in.
fn gpu(ordinal: usize) -> Option<String> {
    let mut folders: Vec<_> = fs::read_dir("/proc/driver/nvidia/gpus")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort();
    let text = fs::read_to_string(folders.get(ordinal)?.join("information")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Model:"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_as_the_system_names_it() {
        let text = "processor\t: 0\nmodel name\t: Example CPU @ 2.5GHz\nmodel name\t: Other\n";
        assert_eq!(processor(text).as_deref(), Some("Example CPU @ 2.5GHz"));
        assert_eq!(processor("processor: 0\n"), None);
    }

    #[test]
    fn the_device_always_has_a_name() {
        let info = device_info("cpu", "cpu-f32".to_owned(), 3);
        assert!(!info.name.is_empty());
        assert_eq!(
            (info.device.as_str(), info.numerics.as_str(), info.threads),
            ("cpu", "cpu-f32", 3)
        );
        assert!(address().ends_with(&format!(":{}", std::process::id())));
    }
}

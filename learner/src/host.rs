//! What a person knows the machine by, and what the process holds of it.

use std::fs;

use tina_proto::v1::DeviceInfo;

/// Host name and process id.
pub(crate) fn address() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = if name.trim().is_empty() {
        "localhost"
    } else {
        name.trim()
    };
    format!("{name}:{}", std::process::id())
}

/// The device with its name; `numerics` as far as they are known.
pub(crate) fn device_info(device: &str, numerics: String) -> DeviceInfo {
    let name = match device.strip_prefix("cuda") {
        None => fs::read_to_string("/proc/cpuinfo")
            .ok()
            .as_deref()
            .and_then(processor),
        Some(ordinal) => gpu(ordinal.trim_start_matches(':').parse().unwrap_or(0)),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    DeviceInfo {
        device: device.to_owned(),
        name: name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        numerics,
        threads: threads as u32,
    }
}

/// The first processor's name in the text of /proc/cpuinfo.
fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// The name that the NVIDIA driver gives a GPU; its folders are named by bus, in the order that
/// GPUs are counted in.
fn gpu(ordinal: usize) -> Option<String> {
    let entries = fs::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let mut folders: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort();
    let text = fs::read_to_string(folders.get(ordinal)?.join("information")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Model:"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Peak resident memory of this process in bytes; 0 where the system does not tell.
pub(crate) fn peak_rss_bytes() -> u64 {
    fs::read_to_string("/proc/self/status").map_or(0, |status| high_water_mark(&status))
}

fn high_water_mark(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        let status = "Name:\ttina\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\n";
        assert_eq!(high_water_mark(status), 20_480 * 1024);
        assert_eq!(high_water_mark("Name:\ttina\n"), 0);
    }

    #[test]
    fn the_processor_is_named_as_the_system_names_it() {
        let text = "processor\t: 0\nmodel name\t: Example CPU @ 2.5GHz\nmodel name\t: Other\n";
        assert_eq!(processor(text).as_deref(), Some("Example CPU @ 2.5GHz"));
        assert_eq!(processor("processor: 0\n"), None);
        assert!(!device_info("cpu", String::new()).name.is_empty());
    }
}

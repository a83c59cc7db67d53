//! What the process holds of its machine.

use std::fs;

use tina_proto::v1::DeviceInfo;

/// The device "cpu" or "cuda:N" for the coordinator; `numerics` as far as they are known.
pub(crate) fn device_info(device: &str, numerics: String) -> DeviceInfo {
    tina_proto::host::device_info(device, numerics, tina_model::kernels::team::threads())
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
}

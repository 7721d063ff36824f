//! Owns what the CPU back end asks of the operating system: the processor's name, the cores that may be used, the memory
//! that is free. Knows no kernel. Answers that a system does not give are replaced by careful ones.

use std::collections::HashSet;
use std::fs;

/// The processor's model name.
pub(crate) fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = field(&info, "model name").or_else(|| field(&info, "Processor"));
    name.map_or_else(|| std::env::consts::ARCH.into(), str::to_owned)
}

/// What of the processor's features the kernels can make use of.
pub(crate) fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! found {
            ($($name:tt),*) => { [$((is_x86_feature_detected!($name), $name)),*] };
        }
        let all =
            found!("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16");
        all.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    vec![]
}

/// Physical cores that this process may run on: cores of its affinity mask, siblings counted once.
pub(crate) fn cores() -> usize {
    let allowed = allowed();
    let place =
        |cpu: usize, what: &str| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{what}")).ok();
    let cores: HashSet<_> = allowed
        .iter()
        .map(|cpu| match (place(*cpu, "physical_package_id"), place(*cpu, "core_id")) {
            (Some(package), Some(core)) => (package, core),
            _ => (String::new(), format!("cpu {cpu}")),
        })
        .collect();
    let quota = group_limit("cpu.max").and_then(|s| {
        let (quota, period) = s.split_once(' ')?;
        Some((quota.parse::<f64>().ok()? / period.trim().parse::<f64>().ok()?).ceil() as usize)
    });
    cores.len().min(quota.unwrap_or(usize::MAX)).max(1)
}

/// Memory of the machine, or of this process's control group where that is less.
pub(crate) fn total_bytes() -> u64 {
    let machine = memory("MemTotal").unwrap_or(u64::MAX);
    machine.min(group_number("memory.max").unwrap_or(u64::MAX))
}

/// Memory that can still be had without swapping.
pub(crate) fn available_bytes() -> u64 {
    let machine = memory("MemAvailable").or_else(|| memory("MemFree")).unwrap_or(0);
    let group = group_number("memory.max").map(|max| max.saturating_sub(group_number("memory.current").unwrap_or(0)));
    machine.min(group.unwrap_or(u64::MAX))
}

#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    // SAFETY: `set` is plain memory of the size that is passed.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) == 0).then_some(set)
    };
    // SAFETY: indices below the size of the set.
    let cpus = |set| (0..libc::CPU_SETSIZE as usize).filter(|i| unsafe { libc::CPU_ISSET(*i, &set) }).collect();
    set.map_or_else(parallelism, cpus)
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Vec<usize> {
    parallelism()
}

fn parallelism() -> Vec<usize> {
    (0..std::thread::available_parallelism().map_or(1, Into::into)).collect()
}

fn memory(name: &str) -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = field(&info, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn group_number(file: &str) -> Option<u64> {
    group_limit(file)?.trim().parse().ok()
}

/// A file of this process's control group (version 2), inside a container its root.
fn group_limit(file: &str) -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|l| l.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
    let paths = [format!("/sys/fs/cgroup/{own}/{file}"), format!("/sys/fs/cgroup/{file}")];
    paths.iter().find_map(|p| fs::read_to_string(p).ok())
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_whole_name() {
        let text = "MemTotal:  16 kB\nMemTotalHuge: 3 kB\nmodel name\t: Some CPU: fast\n";
        assert_eq!(field(text, "MemTotal"), Some("16 kB"));
        assert_eq!(field(text, "model name"), Some("Some CPU: fast"));
        assert_eq!(field(text, "Mem"), None);
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        assert!(cores() >= 1);
        assert!(available_bytes() <= total_bytes());
        assert!(!processor().is_empty());
    }
}

//! Owns what the CPU back end asks of the operating system: the processor's name, the cores that may be used, the memory
//! that is free. Knows no kernel. Answers that a system does not give are replaced by careful ones.

use std::fs;

use super::topology::{self, Placement, Read};
use crate::{Affinity, Error, Result};

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

/// Threads and what they are bound to, on this machine.
///
/// # Errors
/// As [`Placement::choose`]; a list of processors on a system whose threads cannot be bound.
pub(crate) fn placement(threads: Option<usize>, affinity: &Affinity) -> Result<Placement> {
    if *affinity != Affinity::Auto && !cfg!(target_os = "linux") {
        let what = "binding threads to processors on this operating system".into();
        return Err(Error::Unsupported { device: "cpu", what });
    }
    Placement::choose(&allowed(), threads, affinity, &|path| fs::read_to_string(path).ok())
}

/// Binds the calling thread to one of the processors that [`placement`] chose.
pub(crate) fn bind(cpu: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: `set` is plain memory of the size that is passed; the index is below its size, as `topology` checks.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        // The processor was allowed when the list was checked; should it be gone since, the thread stays free.
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cpu;
}

/// Spreads the memory that the calling thread, and those it starts from now on, touch first over `nodes`, page by page.
/// Which processor reads a weight is not known beforehand, so this uses the bandwidth of all nodes evenly. Returns what
/// was done, in words; nothing for one node.
pub(crate) fn interleave(nodes: &[usize]) -> Option<String> {
    if nodes.len() < 2 {
        return None;
    }
    let list = topology::list_text(nodes);
    #[cfg(target_os = "linux")]
    // SAFETY: the first call writes one mode; the second reads a mask of the size that is passed, in bits and one more.
    let outcome = unsafe {
        let (mut mode, mut mask) = (0, [0u64; 16]);
        nodes.iter().filter(|node| **node < 1024).for_each(|node| mask[node / 64] |= 1 << (node % 64));
        let null = std::ptr::null_mut::<u64>();
        let known = libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, null, 0usize, null, 0usize) == 0;
        if known && mode != libc::MPOL_DEFAULT {
            "where the process was told to have it, not"
        } else if libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_INTERLEAVE, mask.as_ptr(), 1025usize) == 0 {
            ""
        } else {
            "refused by the system, not"
        }
    };
    #[cfg(not(target_os = "linux"))]
    let outcome = "not";
    Some(format!("memory {outcome} interleaved over nodes {list}").replace("  ", " "))
}

/// Memory of the machine, or of this process's control group or one above it where that is less.
pub(crate) fn total_bytes() -> u64 {
    let machine = memory("MemTotal").unwrap_or(u64::MAX);
    group_memory(&|path| fs::read_to_string(path).ok()).into_iter().map(|(limit, _)| limit).fold(machine, u64::min)
}

/// Memory that can still be had without swapping.
pub(crate) fn available_bytes() -> u64 {
    let machine = memory("MemAvailable").or_else(|| memory("MemFree")).unwrap_or(0);
    let groups = group_memory(&|path| fs::read_to_string(path).ok());
    groups.into_iter().map(|(limit, used)| limit.saturating_sub(used)).fold(machine, u64::min)
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

/// Limit and use, in bytes, of this process's control group and of each above it that has a limit.
fn group_memory(read: Read<'_>) -> Vec<(u64, u64)> {
    let number = |path: String| read(&path)?.trim().parse().ok();
    let groups = topology::control_groups("memory", read).into_iter().filter_map(|(group, version_2)| {
        let (limit, used) = match version_2 {
            true => ("memory.max", "memory.current"),
            false => ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        };
        Some((number(format!("{group}/{limit}"))?, number(format!("{group}/{used}")).unwrap_or(0)))
    });
    groups.collect()
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
    fn memory_is_bounded_by_every_control_group_above() {
        let limits = |files: &[(&str, &str)]| {
            group_memory(&|path| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()))
        };
        let version_2 = [
            ("/proc/self/cgroup", "0::/box/inner\n"),
            ("/sys/fs/cgroup/box/inner/memory.max", "max\n"),
            ("/sys/fs/cgroup/box/inner/memory.current", "10\n"),
            ("/sys/fs/cgroup/box/memory.max", "1000\n"),
            ("/sys/fs/cgroup/box/memory.current", "300\n"),
            ("/sys/fs/cgroup/memory.max", "2000\n"),
        ];
        assert_eq!(limits(&version_2), [(1000, 300), (2000, 0)]);
        let version_1 = [
            ("/proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/b\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "500\n"),
            ("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "20\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limits(&version_1), [(500, 20), (9_223_372_036_854_771_712, 0)]);
        assert_eq!(limits(&[("/proc/self/cgroup", "0::/\n")]), []);
    }

    #[test]
    fn this_machine_has_processors_and_memory() {
        let placement = placement(None, &Affinity::Auto).expect("there is one processor at least");
        assert!(placement.threads >= 1 && placement.threads <= allowed().len());
        assert!(available_bytes() <= total_bytes());
        assert!(!processor().is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_bound_thread_may_use_its_processor_only() {
        for cpu in allowed() {
            let bound = std::thread::spawn(move || {
                bind(cpu);
                allowed()
            });
            assert_eq!(bound.join().expect("no panic"), [cpu]);
        }
    }
}

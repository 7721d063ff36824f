//! Owns how many compute threads there are and what they are bound to, worked out from the text of the system's topology
//! files. Knows no file system and no thread: whoever asks passes a reader of files.

use std::collections::{BTreeSet, HashMap};

use crate::{Affinity, Error, Result};

/// Answers with the content of a file, or `None` when there is no such file.
pub(crate) type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What the compute threads get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) threads: usize,
    /// One processor a thread, in order; empty: no thread is bound.
    pub(crate) bound: Vec<usize>,
    /// Memory nodes that the threads' processors belong to, ascending.
    pub(crate) nodes: Vec<usize>,
    /// Whether there are more threads than processors: one that spins then keeps another from its work.
    pub(crate) crowded: bool,
}

impl Placement {
    /// `allowed` are the processors this process may use.
    ///
    /// By default a thread for each physical core, but no more than the quota of the control group pays for, and none is
    /// bound: the system's scheduler knows what else wants a core. Threads that are bound take one processor of each core
    /// before a second.
    ///
    /// # Errors
    /// More threads than processors and [`ALWAYS_ALLOWED`]; a list with processors that this process may not use, or
    /// with fewer than there are threads.
    pub(crate) fn choose(
        allowed: &[usize],
        threads: Option<usize>,
        affinity: &Affinity,
        read: Read<'_>,
    ) -> Result<Self> {
        let refused = |reason: String| Err(Error::Unavailable { device: "cpu".into(), reason });
        let list = match affinity {
            Affinity::Auto => allowed,
            Affinity::List(list) => list,
        };
        let strange: Vec<usize> = list.iter().copied().filter(|cpu| !allowed.contains(cpu)).collect();
        if !strange.is_empty() || list.is_empty() {
            let (strange, allowed) = (list_text(&strange), list_text(allowed));
            return refused(format!(
                "threads cannot be bound to processors {strange}: this process may use {allowed}; see --cpu-affinity"
            ));
        }
        let cores = cores(list, read);
        let threads = threads.unwrap_or_else(|| cores.len().min(quota(read).unwrap_or(usize::MAX))).max(1);
        if *affinity == Affinity::Auto {
            if threads > allowed.len().max(ALWAYS_ALLOWED) {
                let n = allowed.len();
                let plural = if n == 1 { "" } else { "s" };
                return refused(format!(
                    "{threads} compute threads are too many: this process may use {n} processor{plural}; see --threads"
                ));
            }
            let crowded = threads > allowed.len();
            return Ok(Self { threads, bound: vec![], nodes: nodes(list, read), crowded });
        }
        if threads > list.len() {
            let list = list_text(list);
            return refused(format!(
                "{threads} threads do not fit on processors {list}: give more of them, or fewer threads"
            ));
        }
        let siblings = cores.iter().map(Vec::len).max().unwrap_or(0);
        let in_turn = (0..siblings).flat_map(|i| cores.iter().filter_map(move |core| core.get(i).copied()));
        let bound: Vec<usize> = in_turn.take(threads).collect();
        Ok(Self { threads, nodes: nodes(&bound, read), bound, crowded: false })
    }

    /// `2 threads, not bound`
    pub(crate) fn describe(&self) -> String {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let bound = match self.bound.len() {
            0 => "not bound".into(),
            n => format!("bound to processor{} {}", plural(n), list_text(&self.bound)),
        };
        format!("{} thread{}, {bound}", self.threads, plural(self.threads))
    }
}

/// Processors of a list such as `0-3,8`, ascending, each once.
///
/// # Errors
/// What a list looks like.
pub(crate) fn parse_list(text: &str) -> std::result::Result<Vec<usize>, String> {
    let wrong = || format!("`{text}` is not a list of processors such as 0-3,8");
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < MAX_PROCESSORS).ok_or_else(wrong);
    let mut all = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all.into_iter().collect())
}

/// The same list as text, with ranges.
pub(crate) fn list_text(numbers: &[usize]) -> String {
    let sorted: BTreeSet<usize> = numbers.iter().copied().collect();
    let mut ranges: Vec<(usize, usize)> = vec![];
    for n in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    let text =
        |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Threads that may be asked for on any machine, however few processors it has.
const ALWAYS_ALLOWED: usize = 8;

/// What Linux's affinity masks hold.
const MAX_PROCESSORS: usize = 1024;

/// Processors of `list` by physical core, in the order of each core's first. A processor of which nothing is known is a
/// core of its own.
fn cores(list: &[usize], read: Read<'_>) -> Vec<Vec<usize>> {
    let place = |cpu: usize, what: &str| read(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/{what}"));
    let mut cores: Vec<Vec<usize>> = vec![];
    let mut known: HashMap<(String, String), usize> = HashMap::new();
    for cpu in list {
        let core = place(*cpu, "physical_package_id").zip(place(*cpu, "core_id"));
        match core.as_ref().and_then(|core| known.get(core)) {
            Some(at) => cores[*at].push(*cpu),
            None => {
                known.extend(core.map(|core| (core, cores.len())));
                cores.push(vec![*cpu]);
            }
        }
    }
    cores
}

/// Memory nodes with a processor of `list`; empty when the system does not tell.
fn nodes(list: &[usize], read: Read<'_>) -> Vec<usize> {
    let online = read("/sys/devices/system/node/online").and_then(|text| parse_list(&text).ok()).unwrap_or_default();
    let has_one = |node: &usize| {
        let cpus = read(&format!("/sys/devices/system/node/node{node}/cpulist"));
        // A node without processors has an empty list.
        cpus.and_then(|text| parse_list(&text).ok()).is_some_and(|cpus| cpus.iter().any(|cpu| list.contains(cpu)))
    };
    online.into_iter().filter(has_one).collect()
}

/// Folders of this process's control group of `controller` and of those above it, and whether each is of version 2.
pub(crate) fn control_groups(controller: &str, read: Read<'_>) -> Vec<(String, bool)> {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let path_of = |line: &str| line.splitn(3, ':').nth(2).map(|path| path.trim_end_matches('/').to_owned());
    let mut folders = vec![];
    for line in groups.lines() {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        let version_2 = line.starts_with("0::");
        if !version_2 && !controllers.split(',').any(|c| c == controller) {
            continue;
        }
        let root = if version_2 { "/sys/fs/cgroup".into() } else { format!("/sys/fs/cgroup/{controllers}") };
        // A container may see its own group at the root, so parts of the path need not exist.
        let mut path = path_of(line).unwrap_or_default();
        loop {
            folders.push((format!("{root}{path}"), version_2));
            match path.rfind('/') {
                Some(end) => path.truncate(end),
                None => break,
            }
        }
    }
    folders
}

/// Processors' worth of time, rounded up, that this process's control group and those above it may use.
fn quota(read: Read<'_>) -> Option<usize> {
    let quotas = control_groups("cpu", read).into_iter().filter_map(|(group, version_2)| {
        let limit = match version_2 {
            true => read(&format!("{group}/cpu.max")),
            false => read(&format!("{group}/cpu.cfs_quota_us"))
                .zip(read(&format!("{group}/cpu.cfs_period_us")))
                .map(|(quota, period)| format!("{} {}", quota.trim(), period.trim())),
        };
        processors_of(&limit?)
    });
    quotas.min()
}

/// Of `quota period`; `max` or a negative quota means that there is none.
fn processors_of(limit: &str) -> Option<usize> {
    let (quota, period) = limit.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| ((quota / period).ceil() as usize).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's files: its processors as (package, core), its nodes' cpulists, and others.
    fn machine(cpus: &[(usize, usize)], nodes: &[&str], others: &[(&str, &str)]) -> HashMap<String, String> {
        let mut files = HashMap::new();
        for (cpu, (package, core)) in cpus.iter().enumerate() {
            let at = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
            files.insert(format!("{at}/physical_package_id"), format!("{package}\n"));
            files.insert(format!("{at}/core_id"), format!("{core}\n"));
        }
        for (node, list) in nodes.iter().enumerate() {
            files.insert(format!("/sys/devices/system/node/node{node}/cpulist"), format!("{list}\n"));
        }
        files.insert("/sys/devices/system/node/online".into(), format!("0-{}\n", nodes.len() - 1));
        files.extend(others.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
        files
    }

    fn choose(
        files: &HashMap<String, String>,
        allowed: &str,
        threads: Option<usize>,
        affinity: &str,
    ) -> std::result::Result<Placement, String> {
        let allowed = parse_list(allowed)?;
        let affinity: Affinity = affinity.parse()?;
        Placement::choose(&allowed, threads, &affinity, &|path| files.get(path).cloned()).map_err(|e| e.to_string())
    }

    /// Two packages of two cores with two siblings each, numbered as Linux does: 0-3 first siblings, 4-7 second.
    fn two_packages(others: &[(&str, &str)]) -> HashMap<String, String> {
        let cpus: Vec<_> = (0..8).map(|cpu| (cpu % 4 / 2, cpu % 2)).collect();
        machine(&cpus, &["0-1,4-5", "2-3,6-7"], others)
    }

    #[test]
    fn lists_are_read_and_written_as_the_system_does() {
        for (text, numbers) in [
            ("0", &[0][..]),
            ("0-3,8\n", &[0, 1, 2, 3, 8]),
            (" 4 , 2-3,3", &[2, 3, 4]),
            ("0-1,4-5,1023", &[0, 1, 4, 5, 1023]),
        ] {
            assert_eq!(parse_list(text).as_deref(), Ok(numbers), "{text}");
            assert_eq!(parse_list(&list_text(numbers)).as_deref(), Ok(numbers));
        }
        assert_eq!(list_text(&[5, 0, 1, 2, 9]), "0-2,5,9");
        for text in ["", "\n", "x", "3-1", "1,", "-1", "1-", "0x3", "1024", "0-99999999999", "0-3:2"] {
            assert!(parse_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn by_default_there_is_a_thread_a_core_and_none_is_bound() {
        let files = two_packages(&[]);
        let free =
            |threads, nodes: &[usize]| Ok(Placement { threads, bound: vec![], nodes: nodes.to_vec(), crowded: false });
        assert_eq!(choose(&files, "0-7", None, "auto"), free(4, &[0, 1]));
        assert_eq!(choose(&files, "0,4", None, "auto"), free(1, &[0])); // siblings
        assert_eq!(choose(&files, "2-3", None, "auto"), free(2, &[1]));
        assert_eq!(choose(&files, "0-7", Some(7), "auto"), free(7, &[0, 1]));
        // A system that tells nothing.
        assert_eq!(choose(&HashMap::new(), "0-2", None, "auto"), free(3, &[]));
    }

    #[test]
    fn bound_threads_take_every_core_once_before_a_sibling() {
        let files = two_packages(&[]);
        let bound = |list: &str, threads| choose(&files, "0-7", threads, list).map(|p| (p.threads, p.bound));
        assert_eq!(bound("0-7", None), Ok((4, vec![0, 1, 2, 3])));
        assert_eq!(bound("0,1,4,5", None), Ok((2, vec![0, 1])));
        assert_eq!(bound("0,1,4,5", Some(3)), Ok((3, vec![0, 1, 4])));
        assert_eq!(bound("6", None), Ok((1, vec![6])));
        assert_eq!(choose(&files, "0-7", None, "6,7").map(|p| p.nodes), Ok(vec![1]));
        // Memory is spread over the nodes of the threads, not of the list.
        assert_eq!(choose(&files, "0-7", Some(2), "0-7").map(|p| p.nodes), Ok(vec![0]));
        let placement = choose(&files, "0-7", Some(3), "0,1,4,5").expect("fits");
        assert_eq!(placement.describe(), "3 threads, bound to processors 0-1,4");
        assert_eq!(choose(&files, "6", None, "auto").expect("fits").describe(), "1 thread, not bound");
    }

    #[test]
    fn what_cannot_be_bound_is_refused_with_what_can() {
        let files = two_packages(&[]);
        let refused = |allowed, threads, list| choose(&files, allowed, threads, list).expect_err("refused");
        let message = refused("0-3", None, "2-5");
        assert!(message.contains("processors 4-5") && message.contains("may use 0-3"), "{message}");
        let message = refused("0-7", Some(3), "0-1");
        assert!(message.contains("3 threads do not fit on processors 0-1"), "{message}");
        assert!(refused("0-7", None, "all").contains("such as 0-3,8"));
    }

    #[test]
    fn threads_are_bounded_by_the_processors() {
        let files = two_packages(&[]);
        for (allowed, threads, crowded) in [("0-7", 8, false), ("0-1", 2, false), ("0-1", 3, true), ("0", 8, true)] {
            let placement = choose(&files, allowed, Some(threads), "auto").expect("few enough");
            assert_eq!((placement.threads, placement.crowded), (threads, crowded), "{threads} on {allowed}");
        }
        assert_eq!(choose(&HashMap::new(), "0-63", Some(64), "auto").map(|p| p.crowded), Ok(false));
        for (allowed, threads, may_use) in
            [("0-1", 9, "may use 2 processors;"), ("0", usize::MAX, "may use 1 processor;"), ("0-63", 65, "may use 64")]
        {
            let message = choose(&files, allowed, Some(threads), "auto").expect_err("too many");
            assert!(message.contains(may_use) && message.contains("--threads"), "{message}");
        }
    }

    #[test]
    fn the_control_groups_quota_bounds_the_default_and_not_what_was_asked_for() {
        let group = ("/proc/self/cgroup", "0::/box/inner\n");
        for (files, threads) in [
            (&[group, ("/sys/fs/cgroup/box/inner/cpu.max", "200000 100000\n")][..], 2),
            (&[group, ("/sys/fs/cgroup/box/inner/cpu.max", "150000 100000\n")], 2),
            (&[group, ("/sys/fs/cgroup/box/inner/cpu.max", "max 100000\n")], 4),
            // The group above is the tighter one.
            (
                &[
                    group,
                    ("/sys/fs/cgroup/box/inner/cpu.max", "300000 100000\n"),
                    ("/sys/fs/cgroup/box/cpu.max", "50000 100000\n"),
                ],
                1,
            ),
            // Inside a container the path does not exist.
            (&[group, ("/sys/fs/cgroup/cpu.max", "300000 100000\n")], 3),
            // Version 1.
            (
                &[
                    ("/proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/a\n"),
                    ("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "200000\n"),
                    ("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
                    ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
                    ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
                ],
                2,
            ),
        ] {
            let files = two_packages(files);
            assert_eq!(choose(&files, "0-7", None, "auto").map(|p| p.threads), Ok(threads), "{files:?}");
            assert_eq!(choose(&files, "0-7", Some(6), "auto").map(|p| p.threads), Ok(6));
        }
    }
}

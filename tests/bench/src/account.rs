//! What a process has taken of the machine, by the machine's own accounting.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Processor time of a process so far, in seconds, to the nanosecond: user and system, all its threads,
/// those that ended as well.
pub fn cpu(pid: u32) -> f64 {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
    let time = clock_getcpuclockid(pid).and_then(clock_gettime).expect("the process runs");
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

/// Resident memory of a process, in MiB.
pub fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Raises the limit of open files as far as it may be, and says how far that is.
pub fn open_files() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit of open files");
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// The machine, for whoever reads the figures.
pub fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} cores, {}, Linux {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.map_or("unknown processor", |(_, name)| name),
        kernel.trim()
    )
}

//! What machine this is, in words, and what memory it and this process have.

use std::path::Path;

/// Name and value, in the order they are shown.
pub(crate) fn describe() -> Vec<(String, String)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processor = cpu_name().unwrap_or_else(|| "unknown".to_owned());
    let mut rows = vec![(
        "processor".to_owned(),
        format!("{processor}, {cores} core{} in use", if cores == 1 { "" } else { "s" }),
    )];
    if let Some(bytes) = memory_bytes() {
        rows.push(("memory".to_owned(), crate::printer::bytes(bytes)));
    }
    rows.push(("system".to_owned(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)));
    rows
}

/// The processor's name, where the system tells.
pub(crate) fn cpu_name() -> Option<String> {
    let text = small_file("/proc/cpuinfo")?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemTotal:")
}

/// Bytes of memory that new work can have without anything being swapped out.
pub(crate) fn available_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemAvailable:")
}

/// The most bytes that this process has had in memory so far, mapped files included as far as they were touched.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// The threads that work is spread over: those asked for, or one a core.
pub(crate) fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

/// A line such as `MemTotal: 24563120 kB`, in bytes.
fn kibibytes(file: &str, key: &str) -> Option<u64> {
    let text = small_file(file)?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// A file the kernel makes up; absent on other systems, and then nothing is said.
fn small_file(path: &str) -> Option<String> {
    let path = Path::new(path);
    path.exists().then(|| std::fs::read_to_string(path).ok()).flatten()
}

/// Now, as `2026-11-23 22:01 UTC`.
pub(crate) fn now() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date(seconds)
}

/// Days to a civil date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let of_day = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", of_day / 3600, of_day % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_right() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_825_600), "2000-02-29 12:00 UTC");
        assert_eq!(date(1_795_471_303), "2026-11-23 22:01 UTC");
    }
}

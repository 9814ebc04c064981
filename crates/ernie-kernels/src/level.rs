//! Which instruction set the kernels use: detected once, forced by a setting where a test or a user asks for it.
//!
//! This is the only place that asks the processor what it can do. Kernels receive an [`Isa`], which exists only for a level
//! that this machine supports; that is what makes calling a `#[target_feature]` function sound.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are compiled for, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the target guarantees: SSE2 on x86-64, anything elsewhere. No fused multiply-add.
    Scalar,
    /// AVX2, FMA and F16C: 256-bit vectors.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 512-bit vectors.
    Avx512,
    /// And AVX-512 VNNI: dot products of four bytes with no intermediate rounding or saturation.
    Avx512Vnni,
    /// And AVX-512 BF16: dot products of pairs of bfloat16.
    Avx512Bf16,
    /// And AVX-512 FP16, and AMX with bytes and bfloat16: products of small matrices in tile registers, where the operating system lends them.
    Amx,
}

impl Level {
    /// All levels, in rising order; each has everything that those before it have.
    pub const ALL: [Level; 6] =
        [Level::Scalar, Level::Avx2, Level::Avx512, Level::Avx512Vnni, Level::Avx512Bf16, Level::Amx];

    /// The name used in settings and reports: `scalar`, `avx2`, `avx512`, `avx512vnni`, `avx512bf16` or `amx`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Vnni => "avx512vnni",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
        }
    }

    /// The level of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A level was asked for that this processor does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported(
    /// The level that was asked for.
    pub Level,
);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this processor has no {}: the best level here is {}", self.0, best())
    }
}

impl std::error::Error for Unsupported {}

/// A level known to be supported by this machine. Only this module makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Isa(Level);

impl Isa {
    /// The level to use now, on the calling thread.
    pub(crate) fn current() -> Self {
        Isa(level())
    }

    /// The highest level of this machine, whatever is forced.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn best() -> Self {
        Isa(best())
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

/// 0: not forced; otherwise the level's number plus one.
static FORCED: AtomicU8 = AtomicU8::new(0);

thread_local! {
    static SCOPED: Cell<Option<Level>> = const { Cell::new(None) };
}

fn best() -> Level {
    static BEST: OnceLock<Level> = OnceLock::new();
    *BEST.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c") && has!("bmi1") && has!("bmi2");
    let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
    match (avx2, avx512, has!("avx512vnni"), has!("avx512bf16")) {
        (true, true, true, true) if tiles() => Level::Amx,
        (true, true, true, true) => Level::Avx512Bf16,
        (true, true, true, false) => Level::Avx512Vnni,
        (true, true, false, _) => Level::Avx512,
        (true, false, _, _) => Level::Avx2,
        _ => Level::Scalar,
    }
}

/// Whether there are tile registers with products of bytes and of bfloat16, and this process may use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// AMX-BF16, AVX-512 FP16 (every processor with tiles has it), AMX-TILE and AMX-INT8 in leaf 7, register edx.
    const FEATURES: u32 = 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25;
    /// Tile configuration and tile data in the register that says what the system saves for a process.
    const STATES: u64 = 1 << 17 | 1 << 18;

    #[target_feature(enable = "xsave")]
    fn states() -> u64 {
        // SAFETY: register 0 exists wherever the instruction does, which the feature promises.
        unsafe { _xgetbv(0) }
    }

    /// Asks Linux for the tile data, whose room it gives a thread when it first touches them. The answer holds for all threads of
    /// the process, those that run already included.
    fn lent() -> bool {
        const ARCH_PRCTL: u64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const TILE_DATA: u64 = 18;
        let refused: u64;
        // SAFETY: the system call takes two numbers and changes no memory of ours; the registers that calls change are named.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => refused,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        refused == 0
    }

    // The leaves exist on every processor that has AVX-512, and `xgetbv` where the system uses it (bit 27 of leaf 1).
    // SAFETY: every x86-64 processor has `cpuid`.
    #[allow(unused_unsafe, reason = "a safe function in later versions of Rust")]
    let (saves, features) = unsafe { (__cpuid(1).ecx & 1 << 27 != 0, __cpuid_count(7, 0).edx) };
    // SAFETY: the instruction was just found.
    saves && features & FEATURES == FEATURES && unsafe { states() } & STATES == STATES && lent()
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Scalar
}

/// The level that kernels called from this thread use now.
pub fn level() -> Level {
    if let Some(level) = SCOPED.get() {
        return level;
    }
    match FORCED.load(Ordering::Relaxed) {
        0 => best(),
        code => Level::ALL[usize::from(code) - 1],
    }
}

/// The levels that this processor has, in rising order.
pub fn supported_levels() -> Vec<Level> {
    Level::ALL.into_iter().filter(|&level| level <= best()).collect()
}

/// Forces a level for the whole process; `None` gives the choice back to detection.
///
/// # Errors
/// [`Unsupported`] when this processor does not have the level; nothing changes then.
pub fn set_level(level: Option<Level>) -> Result<(), Unsupported> {
    let code = match level {
        None => 0,
        Some(level) if level > best() => return Err(Unsupported(level)),
        Some(level) => level as u8 + 1,
    };
    FORCED.store(code, Ordering::Relaxed);
    Ok(())
}

/// Runs `f` with a level forced for kernels called from this thread (and for the work that they spread over other threads).
///
/// # Errors
/// [`Unsupported`] when this processor does not have the level; `f` is not run then.
pub fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> Result<R, Unsupported> {
    struct Restore(Option<Level>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPED.set(self.0);
        }
    }
    if level > best() {
        return Err(Unsupported(level));
    }
    let _restore = Restore(SCOPED.replace(Some(level)));
    Ok(f())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scoped_level_ends_with_its_scope() {
        let before = level();
        assert_eq!(with_level(Level::Scalar, level), Ok(Level::Scalar));
        assert_eq!(level(), before);
    }

    #[test]
    fn names_round_trip() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        assert_eq!(Level::from_name("neon"), None);
    }

    #[test]
    fn the_list_of_levels_rises_and_numbers_them() {
        assert!(Level::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(Level::ALL.iter().enumerate().all(|(i, &level)| level as usize == i));
        let here = supported_levels();
        assert_eq!(here, Level::ALL[..here.len()]);
    }
}

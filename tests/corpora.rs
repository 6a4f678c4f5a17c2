//! Every input in `tests/fuzz/corpus` once more, and many of chance: what the fuzz targets hold to be
//! true holds for all of them.

#![expect(clippy::unwrap_used, reason = "a corpus that cannot be read has failed")]

#[path = "fuzz/oracles/mod.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets reach it from outside")]
mod oracles;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// The most bytes of one corpus: it is for going through all of it, on every run.
const MOST: u64 = 256 * 1024;
/// Turns played with inputs of chance.
const ORDERS: u64 = 20_000;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn replay(name: &str, hold: fn(&[u8])) {
    let mut files: Vec<PathBuf> =
        fs::read_dir(fuzz().join("corpus").join(name)).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut size = 0;
    for file in files {
        let data = fs::read(&file).unwrap();
        size += u64::try_from(data.len()).unwrap();
        // What was wrong is on standard error already.
        assert!(catch_unwind(|| hold(&data)).is_ok(), "this was {}", file.display());
    }
    assert!(size <= MOST, "{name} is too large: {size} bytes");
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name), oracles::$name::hold);
            }
        )*
        const ALL: &[&str] = &[$(stringify!($name)),*];
    };
}

replays! { arguments config engine ledger mcp parked reply request sse }

#[test]
fn every_target_has_its_oracle_its_corpus_and_its_test() {
    let all: BTreeSet<String> = ALL.iter().map(|name| (*name).to_owned()).collect();
    let mut oracles = names(&fuzz().join("oracles"));
    oracles.remove("mod");
    for (what, found) in [
        ("targets", names(&fuzz().join("fuzz_targets"))),
        ("corpora", names(&fuzz().join("corpus"))),
        ("oracles", oracles),
    ] {
        assert_eq!(found, all, "{what}");
    }
}

fn by_chance(seed: u64) -> Vec<u8> {
    let mut chance = fastrand::Rng::with_seed(seed);
    (0..chance.usize(..400)).map(|_| chance.u8(..)).collect()
}

#[test]
fn the_engines_promises_hold_for_inputs_in_random_order() {
    let first = std::env::var("FANFOLD_SEED").ok().and_then(|s| s.parse().ok());
    let seeds = first.map_or(0..ORDERS, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let data = by_chance(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| oracles::engine::play(&data))) {
            eprintln!("repeat with FANFOLD_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

#[test]
fn the_engine_does_the_same_for_the_same_inputs() {
    (0..200).for_each(|seed| oracles::engine::hold(&by_chance(seed)));
}

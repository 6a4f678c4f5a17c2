"""Says for each row of the fault matrix that is held by a test of its own what became of that test.

results.py LOGS TABLE: LOGS has what the checks wrote, TABLE is the list of rows (`held.md`). Beside it goes the same
list with results (`held-results.md`). Fails if a test failed or did not run.
"""

import re
import sys
from pathlib import Path

logs, table = Path(sys.argv[1]), Path(sys.argv[2])
# What is held by a whole file, and which of the checks runs it.
SUITES = {"tests/clients/repeats/run.py": "repeats"}


def ran():
    """Every test that ran: its binary, its name, and whether it passed every time."""
    text, results = (logs / "rust.log").read_text(errors="replace"), {}
    # As nextest says it, or as cargo does. A test that leaks has passed, and left a process behind that holds its output.
    for word, binary, name in re.findall(r"^\s+([A-Z][A-Z0-9 +-]*?) \[[^\]]+\] (?:\([^)]*\) )?(\S+) (\S+)$", text, re.M):
        results[binary, name] = results.get((binary, name), True) and word in {"PASS", "LEAK"}
    if not results:
        binary = ""
        for line in text.splitlines():
            if running := re.match(r"\s+Running (?:unittests )?(\S+)", line):
                path = Path(running[1])
                binary = f"fanfold::{path.stem}" if path.parts[0] == "tests" else "fanfold"
            elif test := re.match(r"test (\S+) \.\.\. (\w+)", line):
                results[binary, test[1]] = test[2] == "ok"
    return results


def module(path):
    """The module of a source file: `src/a/b/tests.rs` is `a::b::tests`, `src/a/b.rs` has its tests in `a::b::tests`."""
    parts = list(Path(path).with_suffix("").parts[1:])
    return "::".join(part for part in parts if part != "mod")


def result(test, results):
    path, _, name = test.partition("::")
    if path in SUITES:
        log = (logs / f"{SUITES[path]}.log").read_text(errors="replace")
        return log.rstrip().splitlines()[-1].startswith("cuts {")
    if path.startswith("tests/fuzz/oracles/"):
        path, name = "tests/corpora.rs", Path(path).stem
    if path.startswith("tests/"):
        binary, prefix = f"fanfold::{Path(path).stem}", ""
    else:
        binary, prefix = "fanfold", module(path)
    of_file = {key[1]: passed for key, passed in results.items() if key[0] == binary and key[1].startswith(prefix)}
    found = [passed for test, passed in of_file.items() if not name or test.split("::")[-1] == name]
    return bool(found) and all(found)


results = ran()
head, rule, *rows = table.read_text().splitlines()
lines, bad = [f"{head.removesuffix('|')}| result |", f"{rule}---|"], []
for row in rows:
    fault, tests = (cell.strip() for cell in row.strip("|").split("|")[1:3])
    missing = [test for test in tests.split(", ") if not result(test, results)]
    bad += [f"{fault}: {test}" for test in missing]
    lines.append(f"{row.removesuffix('|')}| {'FAILED' if missing else 'ok'} |")
table.with_name("held-results.md").write_text("\n".join(lines) + "\n")
print("\n".join([f"{len(rows)} rows of the fault matrix are held by tests of their own", *(f"failed or did not run: {line}" for line in bad)]))
sys.exit(bool(bad))

"""No input crashes the interpreter: `malformed.py`, and the raw extension under mutated arguments.

Rows run in a child process, many to a child; a child that dies is a failure of the row it was at,
and another child goes on behind it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_rows(script: str, *args: str) -> tuple[dict[int, str | None], list[str]]:
    """{row: verdict} and the crashes, of a script that reports as `malformed.py` does."""
    verdicts, crashes, start = {}, [], 0
    while True:
        command = [sys.executable, "-X", "faulthandler", str(HERE / script), str(start), *args]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            try:
                code = subprocess.run(command, stdout=out, stderr=err, timeout=120).returncode
            except subprocess.TimeoutExpired:
                code = "no end after 120 s"
            out.seek(0)
            err.seek(0)
            lines, trouble = out.read().splitlines(), err.read()
        lines = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        verdicts |= {line["end"]: line["verdict"] for line in lines if "end" in line}
        if code == 0:
            return verdicts, crashes
        begun = [line for line in lines if "begin" in line]
        assert begun, f"{script} did not start:\n{trouble}"
        crashes.append(f"{begun[-1]} ended with {code}:\n{trouble[:600]}")
        start = begun[-1]["begin"] + 1
        assert len(crashes) < 5, "\n".join(crashes)


@pytest.fixture(scope="module")
def table_verdicts():
    return run_rows("malformed.py")


def test_no_wrong_call_crashes(table_verdicts):
    assert not table_verdicts[1], "\n".join(table_verdicts[1])


def test_every_wrong_call_is_answered_as_documented(table_verdicts):
    import malformed

    verdicts, _ = table_verdicts
    assert len(verdicts) == len(malformed.TABLE) > 300
    wrong = [f"{malformed.TABLE[n].label}: {v}" for n, v in sorted(verdicts.items()) if v]
    assert not wrong, f"{len(wrong)} rows:\n" + "\n".join(wrong)


def test_the_extension_survives_mutated_arguments():
    """Real calls of `_C`, recorded and replayed with one argument broken; ends in an exception or
    in an answer, never in a crash.
    """
    verdicts, crashes = run_rows("raw_fuzz.py")
    assert not crashes, f"{len(crashes)} crashes:\n" + "\n".join(crashes)
    refused = sum(v == "refused" for v in verdicts.values())
    assert refused > 100, "this proves nothing: hardly any mutated call was refused"
    wrong = [f"row {n}: {v}" for n, v in verdicts.items() if v not in ("refused", "answered")]
    assert not wrong, "\n".join(wrong[:40])

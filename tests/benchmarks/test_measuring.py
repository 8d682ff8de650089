"""What the benchmarks ask of the C library."""

import os
import platform
import subprocess
import sys

import pytest

from benchmarks.measuring import KEEPING, TUNABLES
from docs.tables import ROOT

CODE = f"import os; from benchmarks.measuring import keep_freed_memory as keep; keep(); print(os.environ['{TUNABLES}'])"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize("given", (None, "glibc.malloc.check=0"))
def test_a_benchmark_starts_anew_with_memory_kept_unless_told_otherwise(given):
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    environment |= {TUNABLES: given} if given else {}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, given or KEEPING), done.stderr

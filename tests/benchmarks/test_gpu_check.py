"""gpu_check runs where there is nothing but torch: a person with a GPU need not have more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sarc.codegen.build import compiler

# Without the optional libraries, and with no way out of the machine: as if none of them were there.
_ALONE = """
import runpy, socket, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dgl", "ogb", "pymetis", "torch_geometric"):
            raise ModuleNotFoundError(f"No module named {name!r}")

def unreachable(*given, **named):
    raise OSError("Network is unreachable")

sys.meta_path.insert(0, Absent())
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = unreachable
runpy.run_module("benchmarks.gpu_check", run_name="__main__")
"""


@pytest.mark.skipif(compiler() is None, reason="torch.compile, one of the contestants, builds C++ on the CPU")
def test_it_needs_torch_alone(tmp_path: Path) -> None:
    size = ("--device", "cpu", "--nodes", "200", "--edges", "1000", "--repeat", "1", "--only", "sum")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, *size],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root), "SARC_CACHE_DIR": str(tmp_path / "kernels")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "gpu_report.json").read_text())
    assert [said for name, said in found["facts"] if name in ("dgl", "torch_geometric")] == [
        "none (ModuleNotFoundError)"
    ] * 2
    assert found["checks"] and all(said.startswith("ok") for _, said in found["checks"])
    assert [row["by"] for row in found["times"]] == ["sarc", "torch.sparse", "plain torch", "torch.compile"]
    assert not [row for row in found["times"] if "failed" in row]
    assert (tmp_path / "gpu_report.md").read_text().startswith("# GPU report")

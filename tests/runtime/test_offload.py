"""Training from a disk: equal gradients where memory would not do, no files left, a full disk is an error in time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch_geometric.nn import SAGEConv

import sarc
from sarc.errors import OffloadError, OptionError
from sarc.runtime.disk_tier import DiskTier
from sarc.runtime.memory import Pool

REPOSITORY = Path(__file__).resolve().parents[2]

# Trains with whatever tensors the limit leaves room for, and prints a digest of the gradients and the bytes of
# activations.
CHILD = """
import resource, sys, torch, sarc
from torch import nn
from torch_geometric.nn import SAGEConv
torch.manual_seed(0); torch.set_num_threads(1)
n, e, f = 40_000, 80_000, 128
source = torch.randint(n, (e,))
edges = torch.stack([source, (source + torch.randint(1, 50, (e,))) % n])
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(SAGEConv(f if k else 8, f) for k in range(6))
        self.head = nn.Linear(f, 2)
    def forward(self, x, edge_index):
        for conv in self.convs:
            x = torch.tanh(conv(x, edge_index))
        return self.head(x)
offload, limit = sys.argv[1] == "disk", int(sys.argv[2])
parts = sarc.partition(edges, num_nodes=n, assignment=torch.arange(n) * 8 // n)
compiled = sarc.compile(Net(), parts, memory_budget=float("inf"),
                        **({"offload": "disk", "offload_dir": sys.argv[3]} if offload else {}))
x = torch.randn(n, 8)
small = sarc.compile(Net(), 1)  # libraries, threads and kernels take their memory before the limit is set
small(x[:100], edges[:, :0]).sum().backward(); del small
if limit:
    held = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmData:"))) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + limit, held + limit))
out = compiled(x, edges)
saved = compiled.plan().saved_bytes
out.square().mean().backward()
print(saved, *(f"{float(p.grad.double().square().sum()):.12e}" for p in compiled.parameters()))
"""


def child(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, cwd=REPOSITORY, env=env
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits and unnamed files as Linux has them")
def test_activations_of_several_times_the_limit_train_with_equal_gradients(tmp_path: Path) -> None:
    free = child("memory", "0", str(tmp_path))
    assert free.returncode == 0, free.stderr
    saved, *expected = free.stdout.split()
    limit = str(int(saved) // 4)
    refused = child("memory", limit, str(tmp_path))
    assert refused.returncode != 0 and "allocate" in refused.stderr, refused.stderr[-400:]
    limited = child("disk", limit, str(tmp_path))
    assert limited.returncode == 0, limited.stderr
    again, *found = limited.stdout.split()
    assert (again, found) == (saved, expected)
    assert list(tmp_path.iterdir()) == []


def test_files_go_with_their_tensors_and_stale_ones_with_the_next_start(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"sarc-tier-{dead.pid}-x").write_bytes(b"1")
    (tmp_path / f"sarc-tier-{os.getpid()}-x").write_bytes(b"1")
    (tmp_path / "mine").write_bytes(b"1")
    pool = Pool(DiskTier(tmp_path))
    held = pool.empty((1 << 20,), torch.float32)
    held.fill_(3.0)
    pool.rest()
    assert float(held.sum()) == 3.0 * (1 << 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", f"sarc-tier-{os.getpid()}-x"]


def test_a_full_disk_is_an_error_before_anything_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = torch.randint(30_000, (2, 1000))
    model = SAGEConv(16, 16)
    compiled = sarc.compile(model, sarc.partition(edges, num_nodes=30_000, num_parts=1), offload="disk",
                            offload_dir=tmp_path)  # fmt: skip
    x = torch.randn(30_000, 16, requires_grad=True)
    compiled(x, edges).sum().backward()
    expected, x.grad = x.grad, None
    compiled.release_memory()

    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(OffloadError, match=r"no room for another \d+ B \(\d+ B free\): nothing is lost"):
            compiled(x, edges)
    compiled(x, edges).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_options(tmp_path: Path) -> None:
    model = SAGEConv(4, 4)
    with pytest.raises(OptionError, match="offload: expected None, 'cpu' .* or 'disk' .*, got 'tape'"):
        sarc.compile(model, 1, offload="tape")
    with pytest.raises(OptionError, match="offload_dir: expected offload='disk' with it"):
        sarc.compile(model, 1, offload_dir=tmp_path)
    with pytest.raises(OffloadError, match="expected a directory"):
        sarc.compile(model, 1, offload="disk", offload_dir=tmp_path / "missing")

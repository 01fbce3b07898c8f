"""Which frame of a stack is the user's line."""

from __future__ import annotations

import traceback

import pytest
import torch

from sarc.frontends import inputs
from sarc.frontends.source import current_line, user_line

TORCH = torch.nn.functional.__file__
PYG = "/env/lib/python3.11/site-packages/torch_geometric/nn/conv/gat_conv.py"
CALL = inputs.__file__


def line_of(*frames: tuple[str, int]) -> str:
    return user_line(traceback.StackSummary.from_list([(name, line, "f", None) for name, line in frames]))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([("/job/train.py", 9), (CALL, 80), ("/job/model.py", 5), (TORCH, 100)], "/job/model.py:5"),
        ([("/job/model.py", 5), ("/job/layers.py", 7), (TORCH, 100)], "/job/layers.py:7"),
        ([("/job/model.py", 5), (PYG, 280), (TORCH, 100)], "/job/model.py:5"),
        ([("/job/train.py", 9), (CALL, 80), (PYG, 280)], "torch_geometric/nn/conv/gat_conv.py:280"),
        ([("/job/train.py", 9), (CALL, 80), (TORCH, 100)], "/job/train.py:9"),
        ([("/home/torch/dgl/model.py", 5), (TORCH, 100)], "/home/torch/dgl/model.py:5"),
        ([("<ipython-input-3>", 4), ("<eval_with_key>.1", 9)], "<ipython-input-3>:4"),
        ([(TORCH, 100)], ""),
        ([], ""),
    ],
)
def test_user_line(frames: list[tuple[str, int]], expected: str) -> None:
    assert line_of(*frames) == expected


def test_current_line_is_the_callers() -> None:
    assert current_line().partition(":")[0].endswith("test_source.py")

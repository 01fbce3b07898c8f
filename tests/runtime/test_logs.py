"""SARC_LOGS: which topics print what, where, and that nothing is read before `compile`."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sarc.errors import OptionError
from sarc.runtime.logs import TOPICS, enable_logs, logs_from_environment

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch, sarc
from tests.commands.models import Sum
edge_index = torch.randint(0, 20, (2, 60))
compiled = sarc.compile(Sum(), sarc.partition(edge_index, 20, 2, "contiguous"), backend="reference")
compiled(torch.rand(20, 6), edge_index).sum().backward()
"""


def stderr(topics: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=True,
        env={**os.environ, "SARC_LOGS": topics, "PYTHONPATH": "."},
    )  # fmt: skip
    assert run.stdout == ""
    return run.stderr


def test_topics_print_what_they_say() -> None:
    text = stderr("passes,plan,schedule,exchange")
    order = re.findall(r"^\[sarc\.passes\] after ([\w-]+)$", text, re.MULTILINE)
    assert list(dict.fromkeys(order)) == [
        "raise-graph-ops", "split-attention", "hoist-rowwise", "factor-folds", "order-dense", "bind", "compute-halos",
        "bind-data", "fuse-edge-programs", "differentiate", "simplify", "rematerialise", "split", "partition-program",
        "exchange-whole", "merge-fold-states", "narrow-fetches", "repeat-rows", "add-products", "order-lifetimes",
        "reuse-storage",
    ]  # fmt: skip
    assert re.search(r"^\[sarc\.passes\] %lin_weight: f32\[3, 6\] = input param lin.weight$", text, re.MULTILINE)
    assert re.search(r"^\[sarc\.plan\] plan of parts 0, 1 of 2: sends \d+ B", text, re.MULTILINE)
    assert re.search(r"^\[sarc\.schedule\] schedule backward part 1: ", text, re.MULTILINE)
    buffer = "buffer (?:fetch|give_back) "
    sends = re.findall(rf"^\[sarc\.exchange\] run -?\d+: send \d+ B, 0 -> 1: {buffer}", text, re.MULTILINE)
    receives = re.findall(r"^\[sarc\.exchange\] run -?\d+: receive \d+ B, 0 -> 1: ", text, re.MULTILINE)
    assert len(sends) == len(receives) > 0
    assert "[sarc.kernels]" not in text


def test_silence_is_the_default() -> None:
    assert stderr("") == ""


def test_an_unknown_topic_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARC_LOGS", "passes, plans")
    with pytest.raises(OptionError, match=r"SARC_LOGS: expected some of passes, plan, .* or all, got 'plans'"):
        logs_from_environment()
    _off()


def test_all_is_every_topic_and_twice_is_once(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        enable_logs(["all"])
        enable_logs(["all"])
        for topic in TOPICS:
            logging.getLogger(f"sarc.{topic}").info("one\ntwo")
        assert capsys.readouterr().err == "".join(f"[sarc.{t}] one\n[sarc.{t}] two\n" for t in TOPICS)
    finally:
        _off()


def _off() -> None:
    for topic in TOPICS:
        logger = logging.getLogger(f"sarc.{topic}")
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True

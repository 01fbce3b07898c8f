"""One exchange of equal blocks between all ranks: rounds that a barrier ends, sarc's ring, all-to-alls.

    torchrun --standalone --nproc-per-node 4 -m benchmarks.exchange_rounds

Nothing is computed: what is measured is the exchange itself, by the code that compiled models run
(`sarc.runtime.transport`). "barrier" is a ring of sends and receives in which all ranks meet after every round, as the
code of SAR (arXiv 2111.06483) does on gloo.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch
import torch.distributed as dist

import sarc
from benchmarks.options import Options, set_threads
from benchmarks.report import Report
from sarc.ir.schedule import AllToAll, Message
from sarc.runtime.neighbours import meet
from sarc.runtime.transport import Transport

WARM_UPS = 5
COLUMNS = ("exchange", "ms", "low", "high", "of barrier", "MiB/s a rank")


class Blocks:
    """A block to send to, and one to receive from, every rank; uint8 [P, bytes]."""

    def __init__(self, nbytes: int):
        self.rank, self.world, self.nbytes = dist.get_rank(), dist.get_world_size(), nbytes
        self.sent = torch.full((self.world, nbytes), self.rank, dtype=torch.uint8)
        self.received = torch.zeros((self.world, nbytes), dtype=torch.uint8)
        meet()
        self.transport, self.sharing = (
            Transport(self.world, [self.rank], range(self.world), share=share) for share in (False, True)
        )

    def peers(self) -> list[tuple[int, int]]:
        """(to whom, from whom) of each round of a ring."""
        return [((self.rank + k) % self.world, (self.rank - k) % self.world) for k in range(1, self.world)]

    def barrier(self) -> None:
        for to, source in self.peers():
            works = [dist.isend(self.sent[to], to), dist.irecv(self.received[source], source)]
            for work in works:
                if work is not None:
                    work.wait()
            dist.barrier()

    def ring(self, ahead: int = 1) -> None:
        """Receives before sends, `ahead` rounds ahead, no barrier."""
        send, receive, peers = self.transport.send, self.transport.receive, self.peers()
        receiving, sending = [], []

        def post(k: int) -> None:
            to, source = peers[k]
            receiving.append(receive(source, self.rank, self.received[source], f"round {k}"))
            sending.append(send(self.rank, to, self.sent[to], f"round {k}"))

        for k in range(min(ahead, len(peers))):
            post(k)
        for k in range(len(peers)):
            if k + ahead < len(peers):
                post(k + ahead)
            receiving[k].block()
        for handle in sending:
            handle.block()

    def all_to_all(self, transport: Transport) -> None:
        others = [p for p in range(self.world) if p != self.rank]
        messages = tuple(Message(p, 1, self.nbytes) for p in others)
        step, empty = AllToAll("blocks", "fetch", messages, messages), partial(torch.empty, dtype=torch.uint8)
        sent = transport.outbox(step, torch.device("cpu"), empty)
        sent.view(len(others), self.nbytes).copy_(self.sent[others])
        arrival = transport.all_to_all(self.rank, step, sent, empty, "blocks")
        arrival.handle.block()
        for peer, piece in zip(others, arrival.pieces(sent.device), strict=True):
            self.received[peer] = piece
        arrival.release()

    def check(self) -> None:
        """Every block came from its rank."""
        expected = torch.arange(self.world, dtype=torch.uint8)
        expected = expected[:, None].expand_as(self.received)
        mine = self.received.clone()
        mine[self.rank] = self.rank
        if not torch.equal(mine, expected):
            raise RuntimeError(f"rank {self.rank} received other blocks than were sent")


def measure(exchange: Callable[[], None], blocks: Blocks, repeat: int) -> list[float]:
    """Seconds of the slowest rank of each repetition; every rank calls it."""
    seconds = []
    for k in range(WARM_UPS + repeat):
        blocks.received.zero_()
        dist.barrier()
        started = time.perf_counter()
        exchange()
        seconds.append(time.perf_counter() - started)
        if k == 0:
            blocks.check()
    mine = torch.tensor(seconds[WARM_UPS:], dtype=torch.float64)
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    return sorted(mine.tolist())


@click.command
@click.option("--kib", default=256, show_default=True, type=click.IntRange(1), help="KiB a pair of ranks.")
@click.option("--repeat", default=101, show_default=True, type=click.IntRange(1))
@click.option("--json", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write results.")
def main(kib: int, repeat: int, json: Path | None) -> None:
    """Time of one exchange of equal blocks between all ranks; start it with torchrun."""
    set_threads(1)
    sarc.init_distributed()
    report = Report("exchange rounds", Options(repeat=repeat, threads=1, json=json), COLUMNS)
    blocks = Blocks(kib << 10)
    ways: dict[str, Callable[[], None]] = {
        "barrier": blocks.barrier, "ring": blocks.ring,
        "all-to-all": partial(blocks.all_to_all, blocks.transport),
        "all-to-all, in shared memory": partial(blocks.all_to_all, blocks.sharing),
    }  # fmt: skip
    base = 0.0
    for name, exchange in ways.items():
        found = measure(exchange, blocks, repeat)
        median = statistics.median(found)
        base = base or median
        sent = (blocks.world - 1) * blocks.nbytes / (1 << 20)
        report.add(
            graph=f"{blocks.world} ranks", case=f"{kib} KiB a pair", exchange=name, ms=1e3 * median,
            low=1e3 * found[len(found) // 4], high=1e3 * found[(3 * len(found)) // 4],
            **{"of barrier": median / base, "MiB/s a rank": sent / median},
        )  # fmt: skip
    if blocks.rank == 0:
        report.show()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

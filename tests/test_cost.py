"""The cost model counts what a hand count gives, and its formulas do not depend on the number of parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sarc
from sarc.cost import program_cost
from sarc.ir.parse import parse_program


class Layer(nn.Module):
    """x W, then a sum over in-neighbours weighted by one number an edge."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor, edge_index: Tensor, w: Tensor) -> Tensor:
        z = x @ self.weight
        return torch.zeros_like(z).index_add(0, edge_index[1], z[edge_index[0]] * w.unsqueeze(-1))


def plan(parts: int, nodes: int = 20, edges: int = 50):
    torch.manual_seed(0)
    edge_index = torch.randint(0, nodes, (2, edges))
    cut = sarc.partition(edge_index, num_nodes=nodes, num_parts=parts, method="random")
    compiled = sarc.compile(Layer(), cut, exchange="ring")
    # x needs a gradient: sums of rows that need none would be made once, in a program of their own.
    compiled(torch.randn(nodes, 6, requires_grad=True), edge_index, torch.rand(edges))
    return compiled.plan()


def test_a_layer_costs_what_a_hand_count_gives() -> None:
    cost = plan(1).work["forward"]
    nodes, edges = 20, 50
    flops, nbytes = cost.at({"N": nodes, "E": edges})
    # x W: 2 N 6 4; each edge: 4 products and 4 sums.
    assert flops == 2 * nodes * 6 * 4 + 8 * edges
    # x, W and z; a gathered row and a weight an edge; the result read and written.
    assert nbytes == 4 * (nodes * 6 + 24 + nodes * 4) + 4 * edges * (4 + 1) + 2 * 4 * nodes * 4


def test_formulas_are_those_of_the_whole_graph_for_every_number_of_parts() -> None:
    assert plan(3).work == plan(1).work


def test_a_plan_prints_formulas_and_bytes() -> None:
    text = str(plan(2))
    assert "operations 8*E + 48*N" in text
    assert "edges0 over E: sum; fetches" in text


def test_a_product_that_is_added_costs_what_the_product_does() -> None:
    program = parse_program(
        "program forward\nspace N = nodes\n%x: f32[N, 6] = input arg x\n%w: f32[6, 4] = input param w\n"
        "%p: f32[N, 4] = aten.mm(%x, %w)\n%q: f32[N, 4] = aten.addmm_(%p, %x, %w)\nreturn result 0 = %q\n"
    )
    assert program_cost(program).at({"N": 20})[0] == 2 * (2 * 20 * 6 * 4)

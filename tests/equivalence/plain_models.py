"""Models in plain torch: every way of reading and writing rows that the capture list names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as f
from torch import Tensor, nn

from tests.equivalence.case import CLASSES, D_EDGE, KINDS, Case, F

H = 4


class Formula(nn.Module):
    """A function of a few layers and of the call's tensors."""

    def __init__(self, function: Callable, **layers: nn.Module | nn.Parameter):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *tensors: Tensor):
        return self.function(self, *tensors)


def case(name: str, function: Callable, inputs: str = "x edge_index", layers: Callable = dict, **flags) -> Case:
    return Case(name, lambda: Formula(function, lin=nn.Linear(F, H), **layers()), inputs, **flags)


# --- reading and folding rows


def gather_op(m, x, edge_index):
    src, dst = edge_index
    h = m.lin(x)
    rows = torch.gather(h, 0, src.view(-1, 1).expand(-1, H))
    return torch.zeros_like(h).scatter_add(0, dst.unsqueeze(-1).expand_as(rows), rows)


def scatter_reduce(m, x, edge_index, kind: str, include_self: bool):
    h = m.lin(x)
    messages = h[edge_index[0]] * 1.5
    index = edge_index[1].view(-1, 1).expand(-1, H)
    return h.scatter_reduce(0, index, messages, kind, include_self=include_self)


def index_reduce(m, x, edge_index, kind: str):
    h = m.lin(x)
    return h.index_reduce(0, edge_index[1], h[edge_index[0]].sin(), kind, include_self=False)


def softmax_over_destinations(m, x, edge_index):
    src, dst = edge_index
    h = m.lin(x)
    logits = f.leaky_relu((torch.cat([h[src], h[dst]], -1) * m.att).sum(-1), 0.2)
    top = torch.full((x.size(0),), float("-inf"), dtype=x.dtype).scatter_reduce(0, dst, logits, "amax")
    weights = (logits - top[dst]).exp()
    total = torch.zeros(x.size(0), dtype=x.dtype).index_add(0, dst, weights)
    return torch.zeros_like(h).index_add_(0, dst, h[src] * (weights / total[dst]).unsqueeze(-1))


def softmax_divided_late(m, x, edge_index):
    """Division after the aggregation, detached maximum, several heads."""
    src, dst = edge_index
    h = m.lin(x).view(-1, 2, H // 2)
    logits = (h[src] * h[dst]).sum(-1)
    top = torch.full((x.size(0), 2), -1e30, dtype=x.dtype)
    top = top.scatter_reduce(0, dst.view(-1, 1).expand(-1, 2), logits.detach(), "amax")
    weights = (logits - top[dst]).exp()
    total = torch.zeros_like(top).index_add(0, dst, weights)
    out = torch.zeros_like(h).index_add(0, dst, h[src] * weights.unsqueeze(-1))
    return out / (total + 1e-16).unsqueeze(-1)


def segment_pool(m, x, sizes, kind: str):
    return torch.segment_reduce(m.lin(x), kind, lengths=sizes)


def segment_offsets(m, x, offsets):
    return torch.segment_reduce(m.lin(x), "sum", offsets=offsets, initial=1.0)


def segment_edges(m, edge_attr, degree, kind: str):
    return torch.segment_reduce(m.edge(edge_attr), kind, lengths=degree)


def edge_layer(m, x, edge_index):
    src, dst = edge_index
    messages = m.mlp(torch.cat([x[src], x[dst], x[src] - x[dst]], -1))
    return torch.zeros(x.size(0), H, dtype=x.dtype).index_add(0, dst, messages)


def degree_normalised(m, x, edge_index):
    src, dst = edge_index
    ones = torch.ones(dst.numel(), dtype=x.dtype)
    degree = torch.zeros(x.size(0), dtype=x.dtype).index_add(0, dst, ones)
    scale = degree.clamp(min=1).rsqrt()
    h = m.lin(x) * scale[:, None]
    return torch.zeros_like(h).index_add(0, dst, h[src]) * scale[:, None]


def both_directions(m, x, edge_index):
    src, dst = edge_index
    h = m.lin(x)
    into = torch.zeros_like(h).index_add(0, dst, h[src].tanh())
    return torch.zeros_like(h).index_add(0, src, into[dst] * h[src])


# --- selecting and writing rows


def mask_mean(m, x, edge_index, mask):
    h = m.lin(x)
    h = h + torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
    return h[mask].pow(2).mean(), h[mask], h[~mask].sum(0)


def filtered_edges(m, x, edge_index, edge_mask):
    src, dst = edge_index[:, edge_mask]
    h = m.lin(x)
    return torch.zeros_like(h).index_add(0, dst, h[src])


def filtered_pairs(m, x, edge_index):
    """Self loops removed, then one added to each node."""
    src, dst = edge_index
    keep = src != dst
    loop = torch.arange(x.size(0))
    src, dst = torch.cat([src[keep], loop]), torch.cat([dst[keep], loop])
    h = m.lin(x)
    return torch.zeros_like(h).index_add(0, dst, h[src])


def index_put_overwrite(m, x, edge_index):
    h = m.lin(x)
    out = h.clone()
    out[edge_index[1]] = h[edge_index[0]] * 2
    return out


def index_put_accumulate(m, x, edge_index):
    h = m.lin(x)
    return h.index_put((edge_index[1],), h[edge_index[0]], accumulate=True)


def masked_assignment(m, x, mask):
    h = m.lin(x).clone()
    h[mask] = 0.5
    h[~mask] = h[~mask] * 3
    return torch.where(mask[:, None], h, h.relu()).masked_fill(h > 2, 1.0)


def assign_selected(m, x, x0, mask):
    h = m.lin(x).clone()
    h[mask] = m.lin(x0)[mask].tanh()
    return h


def label_propagation(m, x, edge_index, mask, y):
    start = f.one_hot(y, CLASSES).to(x.dtype) * mask[:, None]
    src, dst = edge_index
    out = start
    for _ in range(2):
        out = 0.8 * torch.zeros_like(out).index_add(0, dst, out[src]) + 0.2 * start
    return out + m.head(m.lin(x))


# --- other axes, other shapes


def nodes_second(m, x, edge_index):
    h = m.lin(x).view(-1, 2, H // 2).transpose(0, 1)
    rows = h.index_select(1, edge_index[0]) * h.index_select(1, edge_index[1])
    return torch.zeros_like(h).index_add(1, edge_index[1], rows)


def transposed(m, x, edge_index):
    h = m.lin(x).t()
    out = torch.zeros_like(h).index_add(1, edge_index[1], h[:, edge_index[0]])
    return out.t() @ m.lin.weight, out.mean(1)


def heads_flattened(m, x, edge_index):
    h = m.lin(x).reshape(-1, 2, H // 2)
    h = m.narrow(h.reshape(-1, H // 2)).view(-1, 2, 3)
    return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]]).flatten(1)


def stacked_powers(m, x, edge_index):
    h, found = m.lin(x), []
    for _ in range(3):
        h = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
        found.append(h)
    return torch.stack(found, 1).max(1).values, torch.cat(found, -1), torch.stack(found).mean(0)


def recurrent(m, x, edge_index):
    h = m.lin(x)
    for _ in range(2):
        h = m.gru(torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]]), h)
    return h


def lstm_jumping(m, x, edge_index):
    h = m.lin(x)
    steps = [h, torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]]), h.tanh()]
    stacked = torch.stack(steps, 1)
    alpha = m.att(m.lstm(stacked)[0]).squeeze(-1).softmax(-1)
    return (stacked * alpha.unsqueeze(-1)).sum(1)


# --- contractions of the nodes


def statistics(m, x):
    h = m.lin(x)
    return h.mean(0), h.std(0), h.var(0, unbiased=False), h.max(0).values, h.amin(0), h.sum(), h.norm()


def normalised_over_nodes(m, x):
    h = m.lin(x)
    h = (h - h.mean(0)) / (h.std(0) + 1e-5)
    return h / (1e-6 + h.pow(2).sum(-1).mean()).sqrt()


def instance_norm(m, x):
    return m.norm(m.lin(x).t().unsqueeze(0)).squeeze(0).t()


def over_features(m, x, edge_index):
    h = m.lin(x)
    h = torch.logsumexp(h, -1, keepdim=True) + h.softmax(-1) + h.log_softmax(-1) + h.cumsum(-1) + h.sort(-1).values
    return h[edge_index[0]] - h.max(-1, keepdim=True).values[edge_index[1]]


def gram(m, x):
    h = m.lin(x)
    return h.t() @ h / x.size(0), h.t() @ x


def virtual_node(m, x, edge_index):
    h = m.lin(x)
    everything = h.mean(0, keepdim=True)
    h = h + m.back(everything)
    return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])


# --- inputs and outputs


def cross_entropy(m, x, edge_index, mask, y):
    h = m.head(degree_normalised(m, x, edge_index).relu())
    return f.cross_entropy(h[mask], y[mask])


def nll(m, x, y):
    return f.nll_loss(m.head(m.lin(x)).log_softmax(-1), y), f.cross_entropy(m.head(m.lin(x)), y, label_smoothing=0.1)


def regressions(m, x, target, mask):
    h = m.head(m.lin(x))
    losses = [
        f.mse_loss(h, target),
        f.l1_loss(h, target),
        f.smooth_l1_loss(h[mask], target[mask]),
        f.huber_loss(h, target),
    ]
    return losses, f.binary_cross_entropy_with_logits(h, target.sigmoid()), f.mse_loss(h, target, reduction="sum")


def picked_probabilities(m, x, y):
    p = m.head(m.lin(x)).softmax(-1)
    return p[torch.arange(x.size(0)), y], p.gather(1, y[:, None])


def several_inputs(m, x, x0, edge_index, edge_weight, edge_attr):
    src, dst = edge_index
    messages = (m.lin(x)[src] + m.lin(x0)[dst] + m.edge(edge_attr)) * edge_weight[:, None]
    return {"nodes": torch.zeros(x.size(0), H, dtype=x.dtype).index_add(0, dst, messages), "edges": messages}


def edge_outputs(m, x, edge_index, edge_attr):
    src, dst = edge_index
    h = m.lin(x)
    return (h[src] * h[dst]).sum(-1), torch.cat([h[src], edge_attr], -1), (h[src] - h[dst]).abs().mean()


def by_kind(m, x, edge_index, kind, node_id, edge_type):
    src, dst = edge_index
    h = m.lin(x) + m.kinds(kind) + m.table.weight[node_id]
    return torch.zeros_like(h).index_add(0, dst, h[src] * m.relations(edge_type))


def relation_weights(m, x, edge_index, edge_type):
    src, dst = edge_index
    out = torch.zeros(x.size(0), H, dtype=x.dtype)
    for r in range(3):
        chosen = edge_type == r
        out = out.index_add(0, dst[chosen], x[src[chosen]] @ m.weights[r])
    return out


def permuted(m, x, perm):
    h = m.lin(x)
    return h * h[perm], torch.zeros_like(h).index_copy(0, perm, h.tanh())


def pooled(m, x, edge_index, batch):
    h = m.lin(x)
    h = h + torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
    graphs = int(batch.max()) + 1
    total = torch.zeros(graphs, H, dtype=x.dtype).index_add(0, batch, h)
    count = torch.zeros(graphs, dtype=x.dtype).index_add(0, batch, torch.ones_like(h[:, 0])).clamp(min=1)
    return h - (total / count[:, None])[batch], total


def tied(m, x, edge_index):
    h = m.lin(x)
    h = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
    return f.linear(h, m.lin.weight.t()), m.alias(x)


def no_gradient_branch(m, x, edge_index):
    h = m.lin(x)
    with torch.no_grad():
        scale = 1 / (1 + h.abs().mean())
    return h[edge_index[0]] * scale + h.detach()[edge_index[1]]


def in_place(m, x, edge_index):
    h = m.lin(x)
    h = h + 0
    h += 1
    h.mul_(0.5).clamp_(min=-1)
    h[:, 0] = 0
    out = torch.zeros_like(h)
    out.index_add_(0, edge_index[1], h[edge_index[0]])
    out[:, 1:3] += h[:, :2]
    return out


class TiedFormula(Formula):
    """Two names for one layer."""

    def __init__(self):
        super().__init__(tied, lin=nn.Linear(F, H))
        self.alias = self.lin


class RunningMean(nn.Module):
    """A buffer of its own, updated from the nodes; a second is overwritten."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(F, H)
        self.register_buffer("mean", torch.zeros(H))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
            self.calls += 1
        return h - self.mean


class NormAndNoise(nn.Module):
    """Dropout of entries, of edges and of attention, Gaussian noise, batch norm."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm = nn.Linear(F, H), nn.BatchNorm1d(H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        h = f.dropout(self.norm(self.lin(x)).relu(), 0.4, self.training)
        if self.training:
            h = h + 0.1 * torch.randn_like(h)
        rows = f.dropout(h[src], 0.3, self.training)
        if self.training:
            rows = rows * torch.bernoulli(torch.full((rows.size(0), 1), 0.7, dtype=x.dtype))
            rows = rows * torch.rand(rows.size(0), 1, dtype=x.dtype)
        return torch.zeros_like(h).index_add(0, dst, rows)


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


head = lambda: {"head": nn.Linear(H, CLASSES)}  # noqa: E731
edge = lambda: {"edge": nn.Linear(D_EDGE, H)}  # noqa: E731

PLAIN: tuple[Case, ...] = (
    case("x[src] edges", lambda m, x, ei: m.lin(x)[ei[0]]),
    case("index_add", lambda m, x, ei: torch.zeros(x.size(0), H, dtype=x.dtype).index_add(0, ei[1], m.lin(x)[ei[0]])),
    case("index_select both ends", lambda m, x, ei: m.lin(x.index_select(0, ei[0]) * x.index_select(0, ei[1]))),
    case("gather and scatter_add", gather_op),
    *(
        case(
            f"scatter_reduce {kind}{'' if keep else ' without self'}",
            partial(scatter_reduce, kind=kind, include_self=keep),
        )
        for kind in ("sum", "mean", "amax", "amin")
        for keep in (True, False)
    ),
    case("index_reduce amax", partial(index_reduce, kind="amax")),
    case("index_reduce mean", partial(index_reduce, kind="mean"), slow=True),
    case(
        "softmax over destinations", softmax_over_destinations, layers=lambda: {"att": nn.Parameter(torch.randn(2 * H))}
    ),
    case("softmax divided late", softmax_divided_late),
    case("segment_reduce sizes sum", partial(segment_pool, kind="sum"), "x sizes"),
    case("segment_reduce sizes max", partial(segment_pool, kind="max"), "x sizes"),
    case("segment_reduce sizes mean", partial(segment_pool, kind="mean"), "x sizes", slow=True),
    case("segment_reduce offsets", segment_offsets, "x offsets"),
    case("segment_reduce edges min", partial(segment_edges, kind="min"), "edge_attr degree", edge),
    case("segment_reduce edges mean", partial(segment_edges, kind="mean"), "edge_attr degree", edge),
    case("layer on edges", edge_layer, layers=lambda: {"mlp": mlp(3 * F, H)}),
    case("degree normalisation", degree_normalised),
    case("both directions", both_directions),
    case("mask and mean", mask_mean, "x edge_index mask"),
    case("edges by a mask", filtered_edges, "x edge_index edge_mask"),
    case("self loops replaced", filtered_pairs),
    case("index_put overwrite", index_put_overwrite),
    case("index_put accumulate", index_put_accumulate),
    case("masked assignment", masked_assignment, "x mask"),
    case("assign selected rows", assign_selected, "x x0 mask"),
    case("label propagation", label_propagation, "x edge_index mask y", head),
    case("nodes on the second axis", nodes_second),
    case("transposed", transposed),
    case("heads flattened", heads_flattened, layers=lambda: {"narrow": nn.Linear(H // 2, 3)}),
    case("stacked powers", stacked_powers),
    case("GRU cell", recurrent, layers=lambda: {"gru": nn.GRUCell(H, H)}),
    case(
        "LSTM over layers",
        lstm_jumping,
        layers=lambda: {"lstm": nn.LSTM(H, 3, bidirectional=True, batch_first=True), "att": nn.Linear(6, 1)},
    ),
    case("statistics of nodes", statistics, "x"),
    case("normalised over nodes", normalised_over_nodes, "x"),
    case(
        "instance norm of transposed",
        instance_norm,
        "x",
        lambda: {"norm": nn.InstanceNorm1d(H, affine=True, track_running_stats=True)},
    ),
    case("over features", over_features),
    case("gram matrix", gram, "x"),
    case("virtual node", virtual_node, layers=lambda: {"back": nn.Linear(H, H)}),
    case("cross entropy of a mask", cross_entropy, "x edge_index mask y", head),
    case("nll and smoothing", nll, "x y", head),
    case("regression losses", regressions, "x target mask", head),
    case("picked probabilities", picked_probabilities, "x y", head),
    case("several inputs, dict of outputs", several_inputs, "x x0 edge_index edge_weight edge_attr", edge),
    case("edge outputs", edge_outputs, "x edge_index edge_attr"),
    case(
        "embeddings by kind, id, relation",
        by_kind,
        "x edge_index kind node_id edge_type",
        lambda: {"kinds": nn.Embedding(KINDS, H), "table": nn.Embedding(23, H), "relations": nn.Embedding(3, H)},
    ),
    case(
        "a weight a relation",
        relation_weights,
        "x edge_index edge_type",
        lambda: {"weights": nn.Parameter(torch.randn(3, F, H))},
    ),
    case("permutation input", permuted, "x perm"),
    case("pooled and back", pooled, "x edge_index batch"),
    case("no graph op", lambda m, x: m.mlp(x), "x", lambda: {"mlp": mlp(F, H)}),
    case("no gradient branch", no_gradient_branch),
    case("in place", in_place),
    Case("tied layers", TiedFormula),
    Case("buffers", RunningMean, "x"),
    Case("noise of every kind", NormAndNoise, draws=True),
)

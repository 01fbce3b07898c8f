"""Generate labelled graphs: a degree-corrected stochastic block model with class-dependent features."""

from __future__ import annotations

import numpy as np
import torch

from sarc.data.graph_data import GraphData
from sarc.errors import GraphError


def labelled_graph(
    num_nodes: int,
    num_classes: int = 8,
    average_degree: float = 10.0,
    num_features: int = 32,
    *,
    homophily: float = 0.8,
    degree_exponent: float | None = 2.5,
    feature_signal: float = 1.0,
    train_fraction: float = 0.6,
    val_fraction: float = 0.2,
    seed: int = 0,
    name: str = "generated",
) -> GraphData:
    """Draws an undirected graph (both directions stored, no self loop, no repeated edge) with labels and features.

    Degree-corrected stochastic block model (Karrer and Newman, arXiv 1008.3926): an end of an edge is a node drawn by
    its propensity; the other end is of the same class with probability `homophily`. Repeated pairs are drawn again, so
    the heaviest nodes end somewhat below their expected degree. Classes have equal sizes, in random node order.
    Features are one Gaussian centre a class plus unit noise. The same arguments give the same graph.

    Args:
        num_nodes: N, at least 1.
        num_classes: C, from 1 to N.
        average_degree: neighbours of a node on average: E = N * average_degree, as far as distinct pairs exist.
        num_features: F.
        homophily: share of edges inside a class, 0 to 1; without effect when C is 1.
        degree_exponent: power-law exponent of the propensities, above 1; cut so that no expected degree exceeds
            sqrt(N * average_degree). None: all equal.
        feature_signal: length of the class centres; the noise has standard deviation 1 a feature.
        train_fraction, val_fraction: of the nodes, at random; the rest is the test set.
        seed: non-negative.

    Raises:
        GraphError: an argument is out of range.
    """
    _check(
        num_nodes, num_classes, average_degree, num_features, homophily, degree_exponent, train_fraction, val_fraction
    )
    random = np.random.default_rng(seed)
    y = random.permutation(num_nodes) % num_classes
    propensity = _propensities(random, num_nodes, average_degree, degree_exponent)
    pairs = _pairs(random, y, propensity, round(num_nodes * average_degree / 2), homophily)
    low, high = pairs // num_nodes, pairs % num_nodes
    both = np.sort(np.concatenate([pairs, high * num_nodes + low]))
    edge_index = np.stack([both % num_nodes, both // num_nodes])  # by destination, then source
    centres = random.standard_normal((num_classes, num_features), dtype=np.float32)
    centres *= feature_signal / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    x = random.standard_normal((num_nodes, num_features), dtype=np.float32)
    x += centres[y]
    rank = random.permutation(num_nodes)
    num_train, num_val = round(num_nodes * train_fraction), round(num_nodes * val_fraction)
    return GraphData(
        edge_index=torch.from_numpy(edge_index),
        num_nodes=num_nodes,
        x=torch.from_numpy(x),
        y=torch.from_numpy(y),
        train_mask=torch.from_numpy(rank < num_train),
        val_mask=torch.from_numpy((rank >= num_train) & (rank < num_train + num_val)),
        test_mask=torch.from_numpy(rank >= num_train + num_val),
        num_classes=num_classes,
        name=name,
    )


def _check(
    num_nodes: int,
    num_classes: int,
    average_degree: float,
    num_features: int,
    homophily: float,
    degree_exponent: float | None,
    train_fraction: float,
    val_fraction: float,
) -> None:
    rules = [
        ("num_nodes", num_nodes, "at least 1", num_nodes >= 1),
        ("num_classes", num_classes, f"1 to num_nodes={num_nodes}", 1 <= num_classes <= num_nodes),
        ("average_degree", average_degree, "at least 0", average_degree >= 0),
        ("num_features", num_features, "at least 0", num_features >= 0),
        ("homophily", homophily, "0 to 1", 0 <= homophily <= 1),
        ("degree_exponent", degree_exponent, "above 1, or None", degree_exponent is None or degree_exponent > 1),
        ("train_fraction", train_fraction, "0 to 1", 0 <= train_fraction <= 1),
        ("val_fraction", val_fraction, "0 to 1 - train_fraction", 0 <= val_fraction <= 1 - train_fraction + 1e-9),
    ]
    for name, value, expected, holds in rules:
        if not holds:
            raise GraphError(f"labelled_graph: {name}: expected {expected}, got {value}")


def _propensities(
    random: np.random.Generator, num_nodes: int, average_degree: float, degree_exponent: float | None
) -> np.ndarray:
    """float64 [N], mean about 1: the expected degree of each node over the average degree."""
    if degree_exponent is None or average_degree == 0:
        return np.ones(num_nodes)
    propensity = (1.0 - random.random(num_nodes)) ** (-1.0 / (degree_exponent - 1.0))
    largest = max(np.sqrt(num_nodes / average_degree), 1.0)
    # Cutting lowers the mean, which raises the largest ratio to the mean again: a few rounds settle it.
    for _ in range(20):
        propensity = np.minimum(propensity / propensity.mean(), largest)
    return propensity


def _pairs(
    random: np.random.Generator, y: np.ndarray, propensity: np.ndarray, num_pairs: int, homophily: float
) -> np.ndarray:
    """At most `num_pairs` distinct pairs low < high, each as low * N + high, int64, ascending."""
    num_nodes = y.size
    by_class = np.argsort(y, kind="stable")
    # Class c is the stretch from below[c] to below[c + 1] of this running sum; a number in it names one of its nodes.
    running = np.concatenate([[0.0], np.cumsum(propensity[by_class])])
    below = running[np.searchsorted(y[by_class], np.arange(y.max() + 2))]
    total = running[-1]
    several = y.max() > 0

    def node_at(place: np.ndarray) -> np.ndarray:
        return by_class[np.minimum(np.searchsorted(running, place, side="right") - 1, num_nodes - 1)]

    found = np.empty(0, dtype=np.int64)
    num_pairs = min(num_pairs, num_nodes * (num_nodes - 1) // 2)
    for _ in range(30):  # dense or lopsided models run out of likely pairs: they end with fewer
        missing = num_pairs - found.size
        if missing == 0:
            break
        draws = missing + missing // 8 + 16
        one = np.repeat(np.arange(num_nodes), random.multinomial(draws, propensity / propensity.sum()))
        start, stop = below[y[one]], below[y[one] + 1]
        same = random.random(draws) < homophily if several else np.ones(draws, dtype=bool)
        place = random.random(draws)
        inside = start + place * (stop - start)
        outside = place * (total - (stop - start))
        outside += np.where(outside >= start, stop - start, 0.0)
        other = node_at(np.where(same, inside, outside))
        keys = np.minimum(one, other) * num_nodes + np.maximum(one, other)
        # Sorting is 17 times faster than numpy.unique, which hashes (NumPy 2.4, 10 M keys).
        found = np.sort(np.concatenate([found, keys[one != other]]))
        found = found[np.diff(found, prepend=-1) != 0]
        if found.size > num_pairs:
            found = found[np.sort(random.permutation(found.size)[:num_pairs])]
    return found

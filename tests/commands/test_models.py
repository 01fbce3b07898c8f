"""How commands find a model and make the arguments of its call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sarc.commands.find_model import find_model
from sarc.commands.make_inputs import make_inputs
from sarc.errors import CommandError
from tests.commands.run import MODELS, error, output

SMALL = ("--nodes", 30, "--parts", 2)


def inputs(name: str, *specs: str, nodes: int = 30):
    return make_inputs(find_model(f"{MODELS}:{name}"), specs, "generated", nodes)


def test_a_class_a_function_an_object_and_literals_are_models() -> None:
    assert find_model(f"{MODELS}:Sum").model.lin.out_features == 3
    assert find_model(f"{MODELS}:Sum(5)").model.lin.out_features == 5
    assert find_model(f"{MODELS}:Sum(outputs=4)").model.lin.out_features == 4
    assert find_model(f"{MODELS}:made").model.lin.out_features == 3
    assert type(find_model(f"{MODELS}:attention").model).__name__ == "GAT"


def test_parameters_are_the_same_every_time() -> None:
    one, two = (find_model(f"{MODELS}:Sum").model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_arguments_come_from_the_signature() -> None:
    found = inputs("Sum")
    x, edge_index = found.arguments
    assert x.shape == (30, 6) and edge_index.shape[0] == 2 and edge_index.max() < 30
    assert found.described == ("x: f32[N, 6]", "edge_index: i64[2, E]")


def test_arguments_come_from_specifications() -> None:
    found = inputs("Weighted", "x:f64[N, 6]", "edge_index", "strength:f64[E]")
    x, edge_index, strength = found.arguments
    assert x.dtype == strength.dtype == torch.float64 and strength.shape == edge_index.shape[1:]
    kinds = inputs("Weighted", "x", "edge_index", "kind:i64[N]<5", "keep:bool[E]", "w:f32[6, 2]").arguments
    assert 0 <= kinds[2].min() and kinds[2].max() < 5
    assert kinds[3].dtype == torch.bool and kinds[4].shape == (6, 2)


def test_a_factory_may_bring_its_arguments() -> None:
    assert "models.py:with_arguments: captured" in output("explain", ":with_arguments", "--parts", 2)
    assert "brings its own arguments" in error("explain", ":with_arguments", "--parts", 2, "--input", "x")


def test_a_dgl_graph_is_an_argument() -> None:
    pytest.importorskip("dgl")
    graph = inputs("Sum", "g:dgl", "x").arguments[0]
    assert graph.num_nodes() == 30


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("models", "expected FILE.py:ModelOrFactory, got 'models'"),
        ("nowhere.py:GAT", "there is no file nowhere.py"),
        (f"{MODELS}:Nothing", "defines no 'Nothing'; models and functions there: Dropped, Needs, Pairs, Sum, Weighted"),
        (f"{MODELS}:Needs", "missing a required argument: 'width'; pass literals: "),
        (f"{MODELS}:Sum(x)", "expected NAME or NAME(literals)"),
        (f"{MODELS}:made(3)", "made is a module already"),
        (f"{MODELS}:a_number", "expected a module class or a function, got int"),
        (f"{MODELS}:find_spec", "defines no 'find_spec'"),
    ],
)
def test_what_is_no_model_is_refused(where: str, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        find_model(where)
    assert message in str(caught.value)


def test_a_file_that_fails_says_so(tmp_path: Path) -> None:
    file = tmp_path / "broken_models.py"
    file.write_text("import a_library_that_is_not_there\n")
    assert "cannot be imported: ModuleNotFoundError" in error("explain", f"{file}:Model")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((), "argument strength: its type cannot be told from its name"),
        (("x", "edge_index", "strength:f32[M]"), "--input strength:f32[M]: unknown space in dimension M; N are nodes"),
        (("x", "edge_index", "strength:f31[E]"), "unknown dtype f31"),
        (("x y",), "--input: expected NAME or NAME:TYPE such as 'x:f32[N, 16]', got 'x y'"),
    ],
)
def test_wrong_specifications_are_refused(specs: tuple[str, ...], message: str) -> None:
    with pytest.raises(CommandError) as caught:
        inputs("Weighted", *specs)
    assert message in str(caught.value)


def test_unknown_graphs_and_spaces_are_refused() -> None:
    assert "graph 'nothing': looked for" in error("plan", ":Sum", "--data", "nothing")
    assert "expected NAME=N, NAME=E or NAME=none, got 'x=F'" in error("plan", ":Sum", *SMALL, "--space", "x=F")

"""make_report: one HTML page about a compiled model and a measured step; needs no network and no other file."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from sarc.report.collect import collect
from sarc.report.predict import Rates
from sarc.runtime.module import CompiledModule
from sarc.runtime.profile import Profile

WORDS_OF_VALUE = (1, 3, 4, 6)  # columns of a value's row that the page has as numbers of words


@dataclass(frozen=True)
class Report:
    """A finished page.

    Attributes:
        html: the page.
        document: the numbers that it shows.
    """

    html: str
    document: dict[str, Any]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own."""
        return f'<iframe srcdoc="{html.escape(self.html)}" width="100%" height="900"></iframe>'


def make_report(
    compiled: CompiledModule, measured: Profile, *, title: str | None = None, rates: Rates | None = None
) -> Report:
    """The report of a compiled model's last measured step.

        with sarc.profile() as measured:
            loss = sarc.cross_entropy(compiled(x, edge_index), y, mask)
            loss.backward()
        make_report(compiled, measured).save("report.html")

    Args:
        measured: at least one call of `compiled`, profiled with memory=True for the memory curve.
        title: of the page; the model's class by default.
        rates: of the machine (`sarc.report.predict.measure_rates()`), for a predicted timeline beside the measured one.
    """
    document = collect(compiled, measured, rates, title or type(compiled.model).__name__)
    # "</" would end the script element; JSON allows the slash to be escaped.
    data = json.dumps(with_words(document), separators=(",", ":")).replace("</", "<\\/")
    files = resources.files("sarc.report").joinpath("page")
    texts = {name: files.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(texts["page.html"])
    page = template.render(title=document["title"], style=texts["page.css"], script=texts["page.js"], data=data)
    return Report(page, document)


def with_words(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what values of deep models repeat (operators, types, bytes, lines) once, for page.js."""
    numbers: dict[str, int] = {}

    def row(value: list[Any]) -> list[Any]:
        return [numbers.setdefault(x, len(numbers)) if k in WORDS_OF_VALUE else x for k, x in enumerate(value)]

    programs = [{**p, "values": [row(v) for v in p["values"]]} for p in document["programs"]]
    return {**document, "programs": programs, "words": list(numbers), "word_columns": WORDS_OF_VALUE}

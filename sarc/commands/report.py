"""`sarc report`: the HTML page of a model and one measured step."""

from __future__ import annotations

from pathlib import Path

from sarc.commands.output import write_json, write_lines
from sarc.commands.run_model import Session
from sarc.report.make_report import make_report
from sarc.report.predict import measure_rates
from sarc.runtime.profile import profile


def report(session: Session, out: str, as_json: bool) -> None:
    """Compile, warm up for one step, measure the next and write the page (or print its numbers as JSON)."""
    session.step()
    session.step()
    with profile() as measured:
        session.step()
    made = make_report(session.compiled, measured, title=session.found.name, rates=measure_rates())
    if as_json:
        write_json(made.document)
        return
    made.save(out)
    write_lines([f"wrote {out} ({Path(out).stat().st_size / 2**20:.1f} MiB): open it in a browser"])

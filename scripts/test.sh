#!/usr/bin/env bash
# Sets up what is missing, then runs every check: ruff, mypy, pytest. The first that fails decides the exit status.
#
#   bash scripts/test.sh [OPTIONS]        OPTIONS of pytest, for example: tests/test_import_floors.py, -k bind, -m gpu, -n 0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh test

.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
# One test a core and one thread a test: on few cores faster than many threads a test, and the same everywhere.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n auto --maxprocesses 8 "$@"

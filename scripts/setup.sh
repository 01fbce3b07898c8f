#!/usr/bin/env bash
# Sets up .venv in the checkout with sarc and the given extras, at the versions of constraints.txt.
#
#   bash scripts/setup.sh [EXTRAS]        EXTRAS: comma-separated extras of pyproject.toml; default "pyg,metis"
#
# Running it again is cheap: a stamp in .venv holds the hash of what the installation depends on, and nothing is done
# while it is unchanged. pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) are honoured,
# for example to choose a CPU-only build of torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:-pyg,metis}"
venv_python=.venv/bin/python

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# Python 3.11 is what the pins were tested with, so it goes first; any later python3 is accepted.
find_python() {
    local candidate
    for candidate in python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    local found
    found="$(python3 --version 2>&1)" || found="no python3 on PATH"
    fail "sarc needs Python 3.11 or later (got: $found); install one and run this again"
}

make_venv() {
    local python
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null \
        || fail "$("$python" --version) lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv)"
    say "creating .venv with $("$python" --version)"
    "$python" -m venv .venv
}

# The checkout's path belongs to the stamp: a copied checkout must not keep importing the original.
installation_hash() {
    "$venv_python" - "$extras" <<'PY'
import hashlib, os, pathlib, sys
parts = [sys.argv[1], os.getcwd(), sys.version]
parts += [pathlib.Path(name).read_text() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
}

if [ ! -e .venv ]; then
    make_venv
fi
"$venv_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || fail ".venv is damaged or older than Python 3.11; remove it (rm -r .venv) and run this again"

stamp=".venv/sarc-setup-${extras//[^a-z]/-}.sha256"
wanted="$(installation_hash)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

pip=("$venv_python" -m pip --disable-pip-version-check -qq)  # errors only
torch_pin="$(grep -E '^torch==' constraints.txt)"
say "installing $torch_pin (the largest download: minutes on a slow network)"
"${pip[@]}" install -c constraints.txt "$torch_pin"
say "installing sarc with extras [$extras]"
"${pip[@]}" install -c constraints.txt -e ".[$extras]"
printf '%s\n' "$wanted" > "$stamp"
say "done"

# Sourced by quickstart and test: a virtual environment in .venv with the pinned versions.
# Set `extras` first: "" or "[dev]". (Not an argument: sh does not pass any to a sourced file.)
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            python=$candidate
            break
        fi
    done
fi
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    say "robustrun needs Python 3.11 or newer: install it, or name it with PYTHON=/path/to/python3.11"
    exit 2
fi
if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    say "$python has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)"
    exit 2
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
# Install again only when what is to be installed has changed.
stamp=.venv/installed-$(printf '%s' "$extras" | tr -cd 'a-z')
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    say "installing into .venv (once; torch is large)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extras" || {
        say "the installation failed: see the lines above (is a package index reachable?)"
        exit 3
    }
    touch "$stamp"
fi

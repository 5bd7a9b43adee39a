#!/usr/bin/env bash
# All checks: style, then every test, several files at a time. Arguments go to pytest:
# bash tests/run.sh -k landmarks; with -n 0 --pdb in one process, to look into it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
for file in requirements-export.txt requirements-demo.txt tests/requirements.txt; do
  install_requirements "$root/$file"
done
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
# Processes that each take all cores would wait for one another.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# In the order of their names: by the number of their tests the longest file, of three, would run last, alone.
exec "$python" -m pytest tests -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"

#!/usr/bin/env bash
# Check the style and run all tests, in parallel. Arguments go to pytest:
#   bash tests/run.sh -k landmarks
#   bash tests/run.sh -n 0 --pdb       one process, with the debugger
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
for file in requirements-{export,demo,timm}.txt tests/requirements.txt; do
  install_requirements "$file"
done
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
# One thread per process: processes that each use all cores slow each other down.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Files start in alphabetical order. By default, xdist starts those with the most tests first, and a
# file of few slow tests would run alone at the end.
exec "$python" -m pytest tests -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"

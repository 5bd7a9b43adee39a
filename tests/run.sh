#!/usr/bin/env bash
# All checks: style, then every test. Arguments go to pytest: bash tests/run.sh -k landmarks
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
for file in requirements-export.txt requirements-demo.txt tests/requirements.txt; do
  install_requirements "$root/$file"
done
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest tests "$@"

#!/usr/bin/env bash
# Train: on FER2013 where there is one, else on a synthetic sample. Arguments go to train.py:
#   bash train.sh --data fer2013.csv
#   bash train.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" "$root/train.py" "$@"

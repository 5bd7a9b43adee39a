#!/usr/bin/env bash
# Train on FER2013 if it is found, otherwise on a synthetic data set. Arguments go to train.py:
#   bash train.sh --data data/fer2013.csv
#   bash train.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" "$root/train.py" "$@"

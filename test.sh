#!/usr/bin/env bash
# Evaluate model_save/resnet18.pth, or the weights of --model_path. Arguments go to test.py:
#   bash test.sh --model_path model_save/RUN/best.pth --data data/fer2013.csv
#   bash test.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" "$root/test.py" "$@"

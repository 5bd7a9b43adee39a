#!/usr/bin/env bash
# Train model_save/resnet18.pth: four runs under FOLDER, about nine hours on two CPU cores.
#   bash tools/release.sh FOLDER --data data/fer2013.csv
# Arguments after FOLDER go to each new run. A repeated call resumes the interrupted run.
set -euo pipefail
[ $# -gt 0 ] && [[ "$1" != -* ]] || {
  echo "error: name a folder for the runs: bash tools/release.sh FOLDER --data data/fer2013.csv" >&2
  exit 2
}
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
mkdir -p "$1"
folder="$(CDPATH="" cd -- "$1" && pwd)"
shift

train() { # train NAME OPTIONS: start or resume a run, unless it is finished
  local run="$folder/$1"
  shift
  if [ -e "$run/metrics.json" ]; then
    echo "done     $run"
  elif [ -e "$run/config.json" ]; then
    "$python" "$root/train.py" --resume "$run"
  else
    "$python" "$root/train.py" --recipe release --no_final_test --out "$run" "$@"
  fi
}

first="$folder/first/best.pth" second="$folder/second/best.pth" third="$folder/third/best.pth"
# The first teacher, from scratch.
train first "$@"
# A second teacher: fine-tuned with JPEG compression, so that it differs from the first.
train second --model_path "$first" --jpeg 0.3 "$@"
# Distillation of both teachers.
train third --model_path "$second" --teacher "$first" "$second" \
  --jpeg 0.5 --image_width 48 --total_epoch 27 --start_lr 0.05 --warmup_epoch 1 "$@"
# The first and the third run, merged block-diagonally into width 1: model_save/resnet18.pth
train fourth --width 1 --clip 1 --model_path "$first" "$third" --teacher "$first" "$third" \
  --jpeg 0.3 --image_width 48 --total_epoch 18 --start_lr 0.03 --warmup_epoch 1 "$@"
echo "To evaluate and round the weights of the run first, third or fourth:"
echo "  cd $root && $python -m tools.release $folder/fourth --data ... --out $folder/weights.pth"

#!/usr/bin/env bash
# Train the released weights anew, in four runs under FOLDER: about nine hours on two slower cores.
#   bash release.sh FOLDER --data fer2013.csv
# The arguments after FOLDER go to each run. Started again, it goes on where it was stopped.
set -euo pipefail
[ $# -gt 0 ] && [[ "$1" != -* ]] ||
  { echo "error: name a folder for the runs: bash release.sh FOLDER --data fer2013.csv" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
folder="$1"
shift

train() { # train NAME OPTIONS: a run, unless it is done, which its metrics.json tells
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

first="$folder/first" second="$folder/second"
train first "$@" # model_save/resnet18_half.pth
# Once more, on compressed faces too: the two then differ, and together they are better than each.
train second --model_path "$first/best.pth" --jpeg 0.3 "$@"
# What both know, in one network, which is to see in a compressed face what they see in a clean one:
# model_save/resnet18_photos.pth
train third --model_path "$second/best.pth" --teacher "$first/best.pth" "$second/best.pth" \
  --jpeg 0.5 --sizes 48 --total_epoch 27 --start_lr 0.05 --warmup_epoch 1 "$@"
# The first and the third side by side in a whole ResNet-18: model_save/resnet18.pth
both=("$first/best.pth" "$folder/third/best.pth")
train fourth --width 1 --clip 1 --model_path "${both[@]}" --teacher "${both[@]}" \
  --jpeg 0.3 --sizes 48 --total_epoch 18 --start_lr 0.03 --warmup_epoch 1 "$@"
echo "to measure and round the weights of first, third or fourth:"
echo "  $python $root/release.py $folder/fourth --data ... --out $folder/weights.pth"

#!/usr/bin/env bash
# Makes out-of-memory.pickle, the recording that "Why did my job die?" reads: train_gpt.py runs out of
# memory in its evaluation, on a GPU that is not there. Needs `tritter-mem rehearse --setup` first.
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)
job=$(mktemp -d)/gpt kept=$(mktemp -d)
trap 'rm -rf "$(dirname "$job")" "$kept"' EXIT
mkdir "$job"
cp "$examples/gpt.py" "$examples/train_gpt.py" "$job"
cd "$job"
tritter-mem rehearse --gpu rtx-4090 --snapshot "$kept" -- \
  python train_gpt.py --layers 4 --steps 1 --batch-size 16 --eval-batches 12 || test $? -eq 1
mv "$kept"/*.pickle "$examples/out-of-memory.pickle"

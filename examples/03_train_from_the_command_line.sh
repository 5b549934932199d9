#!/bin/sh
# A tokenizer, token shards, a run that is interrupted and goes on, its curve, a sample: all from the command line.
# Run it in an empty folder; takes about a minute.
set -eu

microgpt tokenize --train --data stdlib --vocab-size 1024 --out tokens
microgpt train --data tokens --model llama --size 500k --block-size 64 --batch-size 8 --dry-run

# SIGTERM makes it save and leave with 143.
timeout -s TERM 10 microgpt train --data tokens --model llama --size 500k --block-size 64 --batch-size 8 --dtype auto \
  --steps 400 --lr 3e-3 --eval-batches 10 --out run --num-samples 0 || echo "stopped with code $?"
microgpt train --resume run --num-samples 0

microgpt viz run --out loss.svg
microgpt generate --model run --prompt "import " --max-tokens 40 --temperature 0.7 --seed 1

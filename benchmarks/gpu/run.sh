#!/bin/sh
# On the GPU machine, in the root of the checkout that carry.sh has prepared:
#
#     OUT=folder sh benchmarks/gpu/run.sh [--phases correctness throughput …]
#
# BUDGET (480) is how many seconds the measurement may take; the tables come last.
set -eu
: "${OUT:?folder for gpu.json, gpu.txt and gpu.log}"
budget=${BUDGET:-480}
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1
status=0
timeout -k 5 $((budget + 30)) python3 -m benchmarks.gpu --budget "$budget" --out "$OUT" "$@" >"$OUT/gpu.log" 2>&1 || status=$?
if [ -f "$OUT/gpu.txt" ]; then cat "$OUT/gpu.txt"; else tail -n 40 "$OUT/gpu.log"; fi
exit $status

#!/bin/bash
# Bundles of the built-in checkpoint for step 2, made on the CPU: the GPU is being timed meanwhile.
. tests/gpu/kit/setup.sh
export CUDA_VISIBLE_DEVICES=
for what in "256 fp16" "256 fp32" "256 int8" "1024 fp16"; do
  set -- $what
  if [ -d "$BUNDLES/$2_$1" ]; then continue; fi
  (time "$PY" -P -m save_deploy export --res "$1" "--$2" --engine none --rounds 3 -o "$BUNDLES/$2_$1") 2>&1 | tail -14
done
echo EXPORTS DONE

#!/bin/bash
# Step 4: TensorRT-RTX on a GPU that its documents may not list; the model as an AOTInductor package. About
# 6 minutes.
. tests/gpu/kit/setup.sh
{
  if [ -f "$WORK/rtx.part0" ] && [ -f .gpu/d/rtx.part1 ]; then
    say "install TensorRT-RTX"
    cat "$WORK/rtx.part0" .gpu/d/rtx.part1 >"$WORK/rtx.tar.xz"
    "$PY" -m tarfile -e "$WORK/rtx.tar.xz" "$SITE" && wheels .gpu/d/*.whl
  fi
  if has tensorrt_rtx; then
    say "TensorRT-RTX"; within 240 "$PY" $K/rtx_probe.py "$BUNDLES/fp16_256"
    if [ -z "$DRY" ]; then
      say "tests.gpu: engines"
      within 200 "$PY" -m tests.gpu --bundles "$BUNDLES" -o "$OUT/gpu_engines.md" -k engines; echo "exit $?"
    fi
  else
    echo "TensorRT-RTX is not installed"
  fi
  if [ -z "$DRY" ]; then
    say AOTInductor; within 150 "$PY" $K/aoti.py --model builtin
  fi
  say end
} 2>&1 | tee "$OUT/call4.log"

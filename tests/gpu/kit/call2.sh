#!/bin/bash
# Step 2: ONNX Runtime's CUDA provider on the bundles: the doctor, a table of its options, tests.gpu. About
# 8 minutes.
. tests/gpu/kit/setup.sh
{
  say "ONNX Runtime"
  if [ -f "$WORK/ort.name" ] && [ -f .gpu/b/ort.part1 ]; then
    cat "$WORK/ort.part0" .gpu/b/ort.part1 >"$WORK/$(cat "$WORK/ort.name")"
    wheels "$WORK/$(cat "$WORK/ort.name")" || exit 1
    nvidia_beside
  fi
  "$PY" -P -c "import onnxruntime as o; print(o.__file__, o.__version__, o.get_available_providers())" || exit 1
  if [ -z "$DRY" ]; then
    for _ in $(seq 40); do
      if grep -qs "EXPORTS DONE" "$WORK/exports.log"; then break; fi
      sleep 3
    done
    cp "$WORK/exports.log" "$OUT/"
  fi
  ls "$BUNDLES"
  say doctor
  within 60 "$PY" -P -m save_deploy doctor "$BUNDLES/fp16_256" 2>&1 | tee "$OUT/doctor.txt"
  say "options of the provider"
  within 200 "$PY" $K/ort_table.py ${DRY:+--seconds 0.02} "$BUNDLES"/*_*
  say tests.gpu
  within 200 "$PY" -m tests.gpu --bundles "$BUNDLES" -o "$OUT/gpu_report.md" -k "cuda_provider or eager_model"
  echo "exit $?"
  say end
} 2>&1 | tee "$OUT/call2.log"

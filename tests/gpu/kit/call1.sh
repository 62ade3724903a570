#!/bin/bash
# Step 1: facts; what was carried is installed; exports begin in the background; torch alone: the built-in
# checkpoint and ViT-B. About 8 minutes.
. tests/gpu/kit/setup.sh
{
  say facts
  if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
  uname -r; nproc; free -g | head -2; "$PY" --version
  "$PY" -m pip list 2>/dev/null | grep -iE "^(torch|triton|numpy|onnx|pillow|cuda-|nvidia-|cupy|safetensors)"
  say install
  if ls .gpu/a/*.whl >/dev/null 2>&1; then wheels .gpu/a/*.whl || exit 1; fi
  if [ -f .gpu/a/ort.part0 ]; then cp .gpu/a/ort.part0 .gpu/a/ort.name "$WORK/"; fi
  "$PY" -P -c "import save_deploy.export, save_deploy.runtime, torch; print(save_deploy.__path__)" || exit 1
  if [ -n "$DRY" ]; then
    "$PY" $K/torch_table.py --models tiny --res 224 --quick --seconds 0.02 --double
  else
    setsid nohup taskset -c "$HALF-$((CORES - 1))" bash $K/exports.sh >"$WORK/exports.log" 2>&1 </dev/null &
    say "torch: built-in"
    within 100 taskset -c "0-$((HALF - 1))" "$PY" $K/torch_table.py --models builtin --res 256 --double --budget 80
    say "torch: ViT-B"
    within 400 taskset -c "0-$((HALF - 1))" "$PY" $K/torch_table.py --models vit_b --res 256 1024 --double --budget 150
    tail -3 "$WORK/exports.log"
  fi
  say end
} 2>&1 | tee "$OUT/call1.log"

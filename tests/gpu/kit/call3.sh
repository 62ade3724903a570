#!/bin/bash
# Step 3: large models: torch alone on ViT-H, then eager, torch.compile and ONNX Runtime's CUDA provider in one
# table through save-deploy bench. About 9 minutes; what does not fit in is left out.
. tests/gpu/kit/setup.sh
bench() { # preset, side, seconds
  within "$3" "$PY" -P -m save_deploy bench --preset "$1" --res "$2" --rounds 20 --budget 60 \
    --what eager,eager-tf32,eager-fp16,compile-fp16,merged,fp16 --backends onnxruntime-cuda \
    --eager-device cuda -o "$OUT/bench_$1_$2"
}
{
  if [ -f .gpu/c/rtx.part0 ]; then cp .gpu/c/rtx.part0 "$WORK/"; fi
  if [ -n "$DRY" ]; then
    "$PY" -P -m save_deploy bench --preset vit_t --blocks 1 --res 224 --rounds 3 --budget 1 \
      --what eager,eager-bf16,merged,fp16 --backends onnxruntime --eager-device cpu --threads 1 -o "$OUT/bench_dry"
  else
    say "torch: ViT-H 256"; within 130 "$PY" $K/torch_table.py --models vit_h --res 256 --double --budget 90
    say "torch: ViT-H 1024"; within 170 "$PY" $K/torch_table.py --models vit_h --res 1024 --budget 130
    say "bench: ViT-B 256"; bench vit_b 256 120
    say "bench: ViT-B 1024"; bench vit_b 1024 150
  fi
  say end
} 2>&1 | tee "$OUT/call3.log"

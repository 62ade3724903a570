"""A bundle without save-deploy, on any Python: python onnx_only.py BUNDLE PICTURE SOUND MASK.png

Needs onnxruntime (or onnxruntime-gpu), numpy, pillow and soundfile. It checks no hashes.
"""

import os
import sys

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import
import onnxruntime
import soundfile
from PIL import Image

bundle, picture, sound, out = sys.argv[1:]
wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
audio = onnxruntime.InferenceSession(bundle + "/audio.onnx", providers=providers)
model = onnxruntime.InferenceSession(bundle + "/model.onnx", providers=providers)

samples, rate = soundfile.read(sound, dtype="float32")
if rate != 16_000 or samples.ndim != 1:
    sys.exit(f"not mono at 16 kHz: ffmpeg -i {sound} -ac 1 -ar 16000 mono.wav")
second = np.zeros((1, 16_000), np.float32)  # shorter sounds end in silence
second[0, : len(samples[:16_000])] = samples[:16_000]
(heard,) = audio.run(None, {"waveform": second})

frame = Image.open(picture).convert("RGB")
side = model.get_inputs()[0].shape[1]
image = np.asarray(frame.resize((side, side), Image.BILINEAR))[None]
(logits,) = model.run(None, {"image": image, "audio_embedding": heard})
mask = np.asarray(Image.fromarray(logits[0, 0]).resize(frame.size, Image.BILINEAR)) > 0
Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(out)
print(f"{out}: {mask.mean():.1%} of the picture sounds")

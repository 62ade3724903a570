"""Where and how much of the picture sounds, of a live source: python live.py BUNDLE SOURCE"""

import sys

from save_deploy import load
from save_deploy.runtime.live.source import watch

with load(sys.argv[1]) as segment:
    for frame, sound in watch(sys.argv[2]):  # the newest picture, the second before it
        mask = segment(frame.picture, sound)  # bool (H,W)
        print(
            f"{frame.time_s:.2f} s: {mask.mean():.1%} sounds, {frame.skipped} skipped", flush=True
        )

"""Masks what sounds in a picture: python mask.py BUNDLE PICTURE SOUND MASK.png"""

import sys

from save_deploy import load

bundle, picture, sound, out = sys.argv[1:]
with load(bundle) as segment:
    mask = segment(picture, sound)  # paths, arrays or pictures of Pillow -> bool (H,W)
    mask.save(out)
    print(f"{out}: {mask.share:.1%} of the picture sounds, box {mask.box()}")

"""SaveConfig: all switches of the model in one flat, JSON-compatible dataclass.

The paper (arXiv 2407.02004) leaves several points open. Each has a switch here, marked A1..A8 (SPEC
1.8), whose default is the recommended reading.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from save_deploy.errors import SaveDeployError
from save_deploy.fields import Fields, check_word, shown
from save_deploy.systems import LATE_BLOCKS, SYSTEMS, system

RESOLUTIONS = (224, 256, 1024)
PATCH = 16
AUDIO_DIM = 128  # VGGish embedding size
PROMPT_DIM = 256  # SAM prompt and image embedding channels
VGGISH_CONVOLUTIONS = 6

_CHOICES: dict[str, tuple[str, ...]] = {
    "pos_interp": ("bilinear", "bicubic"),
    "system": tuple(SYSTEMS),
    "image_adapter": ("med2d", "bottleneck", "off"),
    "image_adapter_position": ("parallel", "end"),
    "image_adapter_spatial": ("full", "depthwise"),
    "image_adapter_skip": ("input", "gated", "none"),
    "image_adapter_init": ("med2d", "zero_out_norm"),
    "audio_mode": ("literal", "literal_running", "recursive", "independent", "off"),
    "audio_inject": ("after", "before", "none"),
    "audio_act": ("gelu", "relu"),
    "prompt_source": ("sum", "last", "raw", "fused", "off"),
    "prompt_act": ("gelu", "relu"),
    "post_fusion": ("off", "add"),
    "decoder_adapter": ("off", "bottleneck"),
    "prompt_tokens": ("one", "hw"),
    "prompt_scale": ("none", "1/N"),
    "window_pad": ("materialise", "exact_skip"),
}
MAX_RES = 8192
# Upper bounds of integers
_LARGEST = {
    "res": MAX_RES, "depth": 64, "audio_layers": 16, "window_size": 512, "mlp_ratio": 64,
    "image_adapter_down_kernel": 31, "image_adapter_up_kernel": 32,
}  # fmt: skip
_MAX_WIDTH = 1 << 16
_FLOATS = (1e-12, 16.0)  # range of every ratio and epsilon
# Files store true for gated and false for none, as before the third choice, to keep their hashes
_SKIPS_IN_FILES: dict[str, bool] = {"gated": True, "none": False}


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Shape and switches of a SAVE model; create it with `SaveConfig.preset("vit_b", res=256)`."""

    name: str
    res: int  # input side in px
    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window_size: int = 14
    mlp_ratio: int = 4
    system: str = "save"  # key of SYSTEMS
    pos_interp: str = "bilinear"  # A8: resizing of position tables, not in the paper
    window_pad: str = "materialise"  # exact_skip: same outputs, no linears on padded tokens
    # image adapter (Eq. 1; details that the paper omits are SAM-Med2D's)
    image_adapter: str = "med2d"
    image_adapter_ratio: float = 0.25
    image_adapter_position: str = "parallel"  # A3: Eq. 1 says parallel, Table 7 "at the end"
    image_adapter_spatial: str = "full"  # A4
    image_adapter_down_kernel: int = 3  # A4
    image_adapter_up_kernel: int = 4  # A4
    image_adapter_skip: str = "input"  # A4: what is added after the convolutions
    image_adapter_norm: bool = True  # A4
    image_adapter_norm_eps: float = 1e-5  # A4
    image_adapter_init: str = "med2d"
    image_adapter_start: int = 0  # first block with an adapter (GAVS: the last three)
    # mask decoder
    decoder_adapter: str = "off"  # GAVS: a bottleneck after each two-way MLP
    bottleneck_dim: int = 128  # hidden size of both GAVS bottlenecks
    # between encoder and decoder
    post_fusion: str = "off"  # AV-SAM: audio added to every pixel of the image embedding
    # audio adapters (Eq. 2)
    audio_mode: str = "literal"  # A1: Eq. 2 as printed, or its readings
    audio_inject: str = "after"  # A2
    audio_in_proj: bool = True  # A5: the unstated 128 -> C projection
    audio_hidden: int = 512  # A5
    audio_layers: int = 2  # Table 9 ablates 3
    audio_act: str = "gelu"  # A5
    audio_share_out: bool = False  # A5: SAMA-AVS shares the last linear
    # sparse prompt
    prompt_source: str = "sum"  # A1: Eq. 2 sums, Fig. 1 takes the last
    prompt_hidden: int = 256  # A6
    prompt_act: str = "gelu"  # A6
    prompt_tokens: str = "one"  # A6
    prompt_scale: str = "none"  # A7
    # VGGish
    audio_channels: tuple[int, ...] = (64, 128, 256, 256, 512, 512)
    audio_fc: int = 4096

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise SaveDeployError(
                    f"unknown value for {field}",
                    got=repr(getattr(self, field)),
                    expected=", ".join(allowed),
                )
        self._check_ranges()
        if self.res % 32 or self.res < 32:
            # the adapter halves the token grid, so the side must be even in tokens
            raise SaveDeployError(
                "unsupported resolution", got=str(self.res), expected="a multiple of 32 px"
            )
        if self.embed_dim % self.num_heads:
            raise SaveDeployError(
                "embed_dim must divide into heads",
                got=f"{self.embed_dim} / {self.num_heads}",
                expected="no remainder",
            )
        if not all(i < self.depth for i in self.global_blocks[: self.depth + 1]):
            raise SaveDeployError(
                "global block outside the encoder",
                got=shown(self.global_blocks),
                expected=f"0..{self.depth - 1}",
            )
        self._check_parts()
        if self.audio_mode == "off" and (
            self.audio_inject != "none" or self.prompt_source in ("sum", "last")
        ):
            raise SaveDeployError(
                "audio_mode is off but its output is used",
                got=f"audio_inject={self.audio_inject}, prompt_source={self.prompt_source}",
                expected="audio_inject=none and prompt_source raw, fused or off",
            )
        if (self.prompt_source == "fused") != (self.post_fusion != "off"):
            raise SaveDeployError(
                "post-fusion and a fused prompt need each other",
                got=f"post_fusion={self.post_fusion}, prompt_source={self.prompt_source}",
                expected="both or none",
            )
        if not self.audio_in_proj and self.audio_mode not in ("independent", "off"):
            raise SaveDeployError(
                "the residual audio adapters need the 128 -> C projection",
                got=f"audio_in_proj=False, audio_mode={self.audio_mode}",
                expected="audio_mode=independent",
            )

    def _check_ranges(self) -> None:
        """Check every number before a tensor of its size is made. Raises SaveDeployError."""
        for name, kind in SaveConfig.__annotations__.items():
            if kind not in ("str", "bool"):
                value = getattr(self, name)
                low, high = _FLOATS if kind == "float" else _range_of(name)
                numbers = (value,) if kind in ("int", "float") else value
                if not all(low <= number <= high for number in numbers):
                    raise SaveDeployError(
                        f"{name} out of range", got=shown(value), expected=f"{low:g} to {high:g}"
                    )

    def _check_parts(self) -> None:
        """Check the assumptions of single modules. Raises SaveDeployError."""
        if not re.fullmatch(r"[\w.+-]{1,64}", self.name):
            raise SaveDeployError(
                "invalid model name",
                got=shown(self.name),
                expected="up to 64 letters, digits, _.+-",
            )
        if len(self.global_blocks) > self.depth:
            raise SaveDeployError(
                "more global blocks than blocks",
                got=str(len(self.global_blocks)),
                expected=f"at most {self.depth}",
            )
        if len(self.audio_channels) != VGGISH_CONVOLUTIONS:
            raise SaveDeployError(
                "wrong number of VGGish layers",
                got=f"{len(self.audio_channels)} audio_channels",
                expected=str(VGGISH_CONVOLUTIONS),
            )
        if int(self.embed_dim * self.image_adapter_ratio) < 1:
            raise SaveDeployError(
                "an image adapter without a channel",
                got=f"image_adapter_ratio={self.image_adapter_ratio:g} of {self.embed_dim}",
                expected="at least one channel",
            )
        down, up = self.image_adapter_down_kernel, self.image_adapter_up_kernel
        if down % 2 == 0 or up % 2:
            raise SaveDeployError(
                "the image adapter's kernels do not preserve the token grid",
                got=f"image_adapter_down_kernel={down}, image_adapter_up_kernel={up}",
                expected="an odd kernel down, an even kernel up",
            )

    @property
    def grid(self) -> int:
        """Token grid side s = res / 16."""
        return self.res // PATCH

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def replace(self, **changes: Any) -> SaveConfig:
        """Return a checked copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as files store them."""
        skip = self.image_adapter_skip
        return dataclasses.asdict(self) | {"image_adapter_skip": _SKIPS_IN_FILES.get(skip, skip)}

    @classmethod
    def from_fields(cls, fields: Fields) -> SaveConfig:
        """Read a configuration written by to_dict.

        Raises the error type of `fields`, naming file and key, for a wrong type, a number out of
        range, an unknown key, and incompatible switches.
        """
        values: dict[str, Any] = {"image_adapter_skip": "gated"} | {
            f.name: take_switch(fields, f.name)
            for f in dataclasses.fields(cls)
            if f.name in fields or f.default is dataclasses.MISSING
        }
        fields.done(f.name for f in dataclasses.fields(cls))
        try:
            return cls(**values)
        except SaveDeployError as error:
            text = f"{error.what}: {error.got}"
            raise fields.error("", got=text, expected=error.expected) from None

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def preset(cls, name: str, *, res: int = 256, **changes: Any) -> SaveConfig:
        """Return vit_t (demo), vit_b, vit_l or vit_h at 224, 256 or 1024 px (SPEC 1.1)."""
        check_word("preset", name, PRESETS)
        check_resolution(res)
        return cls(name=name, res=res, **{**PRESETS[name], **changes})

    @classmethod
    def of_system(
        cls, name: str, backbone: str = "vit_b", *, res: int = 256, **changes: Any
    ) -> SaveConfig:
        """Return a system of the paper on a backbone: of_system("gavs", "vit_b", res=1024)."""
        switches = dict(system(name).switches)
        if switches.get("image_adapter") == "bottleneck" and backbone in PRESETS:
            switches["image_adapter_start"] = PRESETS[backbone]["depth"] - LATE_BLOCKS
        return cls.preset(backbone, res=res, **{**switches, "system": name, **changes})


def _range_of(name: str) -> tuple[int, int]:
    """Return the lowest and the highest value of an integer of SaveConfig, or of those in a list."""
    low = 0 if name in ("image_adapter_start", "global_blocks") else 1
    return low, _LARGEST.get(name, _MAX_WIDTH)


def take_switch(fields: Fields, name: str) -> Any:
    """Read the value of one SaveConfig field from a file, with its type and range checked."""
    if name == "image_adapter_skip" and isinstance(fields.values[name], bool):
        said = fields.boolean(name)
        return next(skip for skip, value in _SKIPS_IN_FILES.items() if value == said)
    low, high = _range_of(name)
    match SaveConfig.__annotations__[name]:  # strings, because annotations are not evaluated
        case "int":
            return fields.integer(name, low=low, high=high)
        case "float":
            return fields.number(name, *_FLOATS)
        case "bool":
            return fields.boolean(name)
        case "str":
            return fields.string(name, _CHOICES.get(name, ()))
        case _:
            return fields.integers(name, bottom=0, top=high)


# SPEC 1.1 for b/l/h; vit_t is small enough to train on two CPU cores.
PRESETS: dict[str, dict[str, Any]] = {
    "vit_t": dict(
        embed_dim=160,
        depth=6,
        num_heads=2,
        global_blocks=(2, 5),
        audio_hidden=256,
        audio_channels=(16, 32, 64, 64, 128, 128),
        audio_fc=256,
        prompt_scale="1/N",
    ),
    "vit_b": dict(embed_dim=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": dict(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": dict(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
}


def check_resolution(res: int) -> None:
    """Raise SaveDeployError unless SAVE is trained and exported at this resolution."""
    if res not in RESOLUTIONS:
        raise SaveDeployError(
            "unsupported resolution",
            got=str(res),
            expected=", ".join(map(str, RESOLUTIONS)),
            hint="save-export --res 256",
        )

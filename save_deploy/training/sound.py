"""Sound warm-up: the audio encoder learns to classify objects in sound mixtures, without frames.

It replaces the VGGish of the paper, which is pretrained on AudioSet. Separating two sources needs
many more examples than recognizing an object, and a second of audio costs 1 % of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from save_deploy.data.compose import Actor, choose_actors, mix_sounds, scene_rng
from save_deploy.data.log_mel import log_mel_examples
from save_deploy.data.open import generated_actors
from save_deploy.errors import SaveDeployError
from save_deploy.model.audio_encoder import AudioEncoder
from save_deploy.training.losses import sound_class_loss
from save_deploy.training.state import Part, read_parts, write_parts

SAVE_EVERY = 200


def heard_actors(data: Iterable[str]) -> list[Actor]:
    """Return the objects of these sources whose sounds are mixed.

    Raises SaveDeployError when no source is generated.
    """
    actors = [actor for name in data for actor in generated_actors(name)]
    if not actors:
        raise SaveDeployError(
            "the sound warm-up needs generated data",
            got=", ".join(data),
            expected="scenes or stamps in --data",
        )
    return actors


def sound_example(
    actors: list[Actor], seed: int, index: int, n_classes: int, max_sources: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Return a mixture of 0 to max_sources actors: log_mel (1,96,64), sounding (n_classes,).

    index: number of the mixture.
    """
    rng = scene_rng(seed, "train", index)
    n_sources = int(rng.integers(max_sources + 1))
    cast = choose_actors(rng, actors, max_sources)[:n_sources]
    sounding = np.zeros(n_classes, np.float32)
    sounding[[actor.label for actor in cast]] = 1.0
    return log_mel_examples(mix_sounds(rng, [actor.recording for actor in cast], 1))[0], sounding


def sound_batch(
    actors: list[Actor], seed: int, step: int, batch_size: int, n_classes: int
) -> tuple[Tensor, Tensor]:
    """Return the mixtures of one step: log_mel (B,1,96,64), sounding (B,n_classes).

    They are mixed between steps: threads beside a step take the CPU cores from it, which costs more.
    """
    numbers = range(step * batch_size, (step + 1) * batch_size)
    with ThreadPoolExecutor(2) as pool:
        items = list(pool.map(lambda i: sound_example(actors, seed, i, n_classes), numbers))
    log_mel, sounding = (np.stack(field) for field in zip(*items, strict=True))
    return torch.from_numpy(log_mel), torch.from_numpy(sounding)


def warm_up_sound(
    encoder: AudioEncoder,
    classes: torch.nn.Linear,
    actors: list[Actor],
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    amp: bool = False,
    state: Path | None = None,
    writes: bool = True,
    resume: bool = False,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> None:
    """Train the encoder, except its last linear, and the linear classifier `classes` in place.

    amp: MatMuls and convolutions in bfloat16.
    state: file that is written every SAVE_EVERY steps and at the end, unless `writes` is False: of
        several processes that do the same one writes it, and all read it.
    resume: continue from the state file, if there is one. The result is that of one run.
    on_step: called as on_step(step, loss), with the loss summed over classes.
    Raises SaveDeployError for the state of another warm-up, OutputError when it cannot be written.
    """
    hidden = encoder.embeddings[:4].parameters()
    learned = [*encoder.features.parameters(), *hidden, *classes.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    parts: dict[str, Part] = {
        "encoder": encoder, "classes": classes, "optimizer": optimizer, "schedule": schedule,
    }  # fmt: skip
    options = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    first = 0
    if resume and state is not None and state.is_file():
        first = read_parts(state, parts, options)

    device = classes.weight.device
    encoder.train()
    for step in range(first, steps):
        log_mel, sounding = sound_batch(actors, seed, step, batch_size, classes.out_features)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            heard = classes(encoder.hear(log_mel.to(device)))
        loss = sound_class_loss(heard.float(), sounding.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        if state is not None and writes and ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps):
            write_parts(state, parts, options, step + 1)
        on_step(step, loss.item())

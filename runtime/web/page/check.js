// Run the golden samples and the conformance pack: compares prepared frames, sounds and masks of this
// browser with those of the exported model.

import { imageOf, maskOf } from "./frames.js";
import { readPicture, readWav, row, sha256 } from "./files.js";
import { Sound } from "./sound.js";
import { compared } from "./model.js";

const UNDECIDED = 128;

// Returns rows [{name, value, limit or least, ok}]; calls says(done, total) after each sample.
export async function check(model, says = () => {}) {
  const { about } = model.bundle;
  const steps = (about.golden?.n ?? 0) + (about.conformance?.cases.length ?? 0);
  let done = 0;
  const step = () => says(++done, steps);
  const rows = [];
  if (about.golden) rows.push(...(await golden(model, step)));
  if (about.conformance) rows.push(...(await conformance(model, step)));
  return rows;
}

function at_most(name, value, limit) {
  return { name, value, limit, ok: value <= limit };
}

async function golden(model, step) {
  const { n, budget } = model.bundle.about.golden;
  const [waveform, image, wanted] = await Promise.all(
    ["waveform", "image", "mask_logits"].map((name) => model.bundle.array(`golden/${name}.npy`)),
  );
  let error = 0, both = 0, either = 0;
  for (let i = 0; i < n; i++, step()) {
    const expected = row(wanted, i);
    const found = await model.logits(row(image, i).slice(), await model.embed(row(waveform, i)));
    error = Math.max(error, compared(found, expected).error);
    found.forEach((logit, k) => {
      both += logit > 0 && expected[k] > 0;
      either += logit > 0 || expected[k] > 0;
    });
  }
  const agreement = either ? both / either : 1;
  return [
    at_most("golden samples: logits", error, budget.max_abs_err ?? Infinity),
    { name: "golden samples: IoU of the masks", value: agreement, least: budget.min_agreement, ok: agreement >= budget.min_agreement },
  ];
}

async function conformance(model, step) {
  const { bundle, side } = model, pack = bundle.about.conformance, { tolerances } = pack;
  const [waveform, embedding, logits] = await Promise.all(
    ["waveform", "audio_embedding", "mask_logits"].map((name) => bundle.array(pack[name])),
  );
  const worst = { pixels: 0, waveform: 0, embedding: 0, logits: 0 };
  let both = 0, either = 0;
  for (const [i, item] of pack.cases.entries()) {
    const blob = async (name) => new Blob([await bundle.bytes(name)]);
    const { width, height, rgba } = await readPicture(await blob(item.frame));
    const image = imageOf(rgba, width, height, side);
    const hash = await sha256(image);
    worst.pixels += hash !== null && hash !== item.image_sha256;

    const { channels, rate } = readWav((await bundle.bytes(item.sound)).buffer);
    const window = new Sound(channels, rate).second(0);
    worst.waveform = Math.max(worst.waveform, compared(window, row(waveform, i)).error);
    const heard = await model.embed(window), expected = row(embedding, i);
    const scale = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 1);
    worst.embedding = Math.max(worst.embedding, compared(heard, expected).error / scale);

    const found = await model.logits(image.slice(), heard);
    const sampled = [];
    for (let y = 0; y < side; y += pack.logits_step)
      for (let x = 0; x < side; x += pack.logits_step) sampled.push(found[y * side + x]);
    worst.logits = Math.max(worst.logits, compared(sampled, row(logits, i)).error);

    const marks = await readPicture(await blob(item.mask)), mask = maskOf(found, side, width, height);
    mask.forEach((value, k) => {
      const mark = marks.rgba[4 * k];
      if (mark === UNDECIDED) return;
      both += value > 0 && mark > 0;
      either += value > 0 || mark > 0;
    });
    step();
  }
  const agreement = either ? both / either : 1;
  return [
    at_most("files to pixels: pictures that differ", worst.pixels, 0),
    at_most("files to sound: samples", worst.waveform, tolerances.waveform),
    at_most("embedding of the sound", worst.embedding, tolerances.audio_embedding),
    at_most("files to logits", worst.logits, tolerances.mask_logits ?? Infinity),
    { name: "files to masks: IoU of decided pixels", value: agreement, least: tolerances.min_agreement, ok: agreement >= tolerances.min_agreement },
  ];
}

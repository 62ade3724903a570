// Web worker that runs the model, so that the page stays responsive. Every call is answered with its
// result or an error.

import { check } from "./check.js";
import { imageOf, logitsAt } from "./frames.js";
import { Bundle, openModel } from "./model.js";
import { RATE_HZ, Sound, loudness } from "./sound.js";

const LONGEST = 1280; // largest longer side of a mask in pixels; the browser scales it to the video
const TINT = [255, 60, 170], OPACITY = 0.45, RIM = 0.95;

let bundle, model, sound, heard; // heard: {key, embedding, loudness} of the last embedded second
const canvas = new OffscreenCanvas(1, 1);
const pencil = canvas.getContext("2d", { willReadFrequently: true });

const calls = {
  // Returns {backend, threads, gpu: WebGPU is available, note}. Falls back to the CPU if masks differ on WebGPU.
  async open({ about, backend, threads }) {
    bundle = new Bundle(about);
    await model?.close();
    model = heard = undefined;
    const gpu = Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
    let note = "";
    if (gpu && backend !== "wasm") {
      try {
        model = await tested("webgpu", 1);
      } catch (error) {
        note = `WebGPU is not used: ${error.message}`;
      }
    } else if (backend === "webgpu") note = "This browser has no WebGPU here.";
    model ??= await tested("wasm", threads);
    return { backend: model.backend, threads: model.threads, gpu, note };
  },

  // Sets the sound of a video; channels null for silence.
  hear({ channels, rate }) {
    heard = undefined;
    sound = channels ? new Sound(channels, rate) : null;
  },

  // Masks a frame at `time` of the video, or with the last second of live sound {channels, rate, key}.
  async frame({ bitmap, time, live }) {
    const started = performance.now();
    await listen(time, live);
    const listened = performance.now();
    const { width, height } = bitmap;
    const image = imageOf(pixels(bitmap), width, height, bundle.side);
    const prepared = performance.now();
    const logits = await model.logits(image, heard.embedding);
    const computed = performance.now();
    const picture = tinted(logits, width, height);
    const times = { sound: listened - started, frame: prepared - listened, model: computed - prepared, mask: performance.now() - computed };
    return { ...picture, logits, loudness: heard.loudness, times };
  },

  check: () => check(model, (done, total) => postMessage({ says: "check", share: done / total })),
};

async function tested(backend, threads) {
  const says = (text, share) => postMessage({ says: text, share });
  const opened = await openModel(bundle, backend, threads, says);
  await opened.selfTest();
  return opened;
}

async function listen(time, live) {
  const second = Math.floor(time + 1e-6), key = live ? live.key : second;
  if (heard?.key === key) return;
  let window = new Float32Array(RATE_HZ);
  if (live?.channels) {
    const last = new Sound(live.channels, live.rate);
    window = last.samples(Math.max(0, last.size - RATE_HZ), RATE_HZ);
  } else if (sound) window = sound.from(second);
  heard = { key, embedding: await model.embed(window), loudness: loudness(window) };
}

function pixels(bitmap) {
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height)
    Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  pencil.drawImage(bitmap, 0, 0);
  bitmap.close();
  return pencil.getImageData(0, 0, canvas.width, canvas.height).data;
}

// Returns the mask as an overlay picture, tinted and with a rim: {rgba, width, height, share}.
function tinted(logits, width, height) {
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const w = Math.max(1, Math.round(width * scale)), h = Math.max(1, Math.round(height * scale));
  const found = logitsAt(logits, bundle.side, w, h);
  const rgba = new Uint8ClampedArray(w * h * 4), rim = Math.max(1, Math.round(h / 300));
  let n = 0;
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++) {
      if (!(found[i] > 0)) continue;
      n++;
      const inside =
        (x < rim || found[i - rim] > 0) && (x + rim >= w || found[i + rim] > 0) &&
        (y < rim || found[i - rim * w] > 0) && (y + rim >= h || found[i + rim * w] > 0);
      rgba.set(TINT, 4 * i);
      rgba[4 * i + 3] = 255 * (inside ? OPACITY : RIM);
    }
  return { rgba, width: w, height: h, share: n / (w * h) };
}

onmessage = async ({ data: { id, call, args } }) => {
  try {
    const value = await calls[call](args ?? {});
    const moved = [value?.rgba?.buffer, value?.logits?.buffer].filter(Boolean);
    postMessage({ id, value }, moved);
  } catch (error) {
    postMessage({ id, error: error?.message ?? String(error) });
  }
};

// Prepares a second of sound for the network: 16 kHz, mono, [-1,1].
// Same as sound.cpp of the C++ runtime, and as torchaudio.functional.resample with its defaults.

export const RATE_HZ = 16000;
export const WINDOW = 16000; // samples of one second
const STEP = 15360; // samples between two examples of VGGish, 0.96 s
const CROSSINGS = 6; // zero crossings of the sinc on each side
const ROLLOFF = 0.99; // share of the lower Nyquist frequency that passes
const MAX_PEAK = 16; // larger samples are integers that were not divided
const f = Math.fround;
// FFmpeg's weights for mixing to mono, by number of channels; other numbers are averaged.
const SIDE = Math.SQRT1_2;
const MIXED = {
  4: [SIDE, SIDE, 1, 0.5],
  5: [SIDE, SIDE, 1, 0.5, 0.5],
  6: [SIDE, SIDE, 1, 0, 0.5, 0.5],
  7: [SIDE, SIDE, 1, 0, 0.5, 0.5, 0.5],
  8: [SIDE, SIDE, 1, 0, 0.5, 0.5, 0.5, 0.5],
};

function reduced(rate) {
  let a = rate, b = RATE_HZ;
  while (b) [a, b] = [b, a % b];
  return { from: rate / a, to: RATE_HZ / a };
}

// Output `phase` of a period is the weighted sum of inputs first .. first + weights.length - 1, relative
// to the period's start. Computed in float32 and in the reference's order to reproduce its rounding.
function kernelOf(phase, { from, to }) {
  const exact = Math.min(from, to) * ROLLOFF;
  const base = f(exact), scale = f(exact / from), pi = f(Math.PI);
  const offset = f(-phase / to);
  const reach = CROSSINGS / exact, center = phase / to; // in periods
  const first = Math.floor((center - reach) * from), last = Math.ceil((center + reach) * from);
  const weights = new Float32Array(last - first + 1);
  for (let i = first; i <= last; i++) {
    let t = f(f(offset + f(i / from)) * base);
    t = Math.min(Math.max(t, -CROSSINGS), CROSSINGS);
    const cosine = f(Math.cos(f(f(f(t * pi) / CROSSINGS) / 2)));
    t = f(t * pi);
    const sinc = t === 0 ? 1 : f(f(Math.sin(t)) / t);
    weights[i - first] = f(sinc * f(f(cosine * cosine) * scale));
  }
  return { first, weights };
}

// The reference rounds to float32 before it rounds up, and computes whole periods only.
function resampledSize(n, { from, to }) {
  return Math.min(Math.ceil(f((to * n) / from)), to * (Math.floor(n / from) + 1));
}

// A sound: channels (Float32Array of equal length) at a sample rate in Hz.
export class Sound {
  #kernels = new Map();

  constructor(channels, rate) {
    if (!channels.length || !channels[0].length) throw new Error("the sound has no samples");
    if (!(rate >= 1000 && rate <= 768000)) throw new Error(`a sample rate of ${rate} Hz`);
    this.channels = channels;
    const total = MIXED[channels.length]?.reduce((a, b) => a + b, 0);
    this.weights = MIXED[channels.length]?.map((weight) => f(weight / total));
    this.length = channels[0].length;
    this.rates = reduced(rate);
    this.size = resampledSize(this.length, this.rates); // at 16 kHz
  }

  #mono(i) {
    if (i < 0 || i >= this.length) return 0;
    let sum = 0;
    if (this.weights) {
      this.weights.forEach((weight, c) => { if (weight) sum = f(sum + f(this.channels[c][i] * weight)); });
      return sum;
    }
    for (const channel of this.channels) sum = f(sum + channel[i]);
    return f(sum / this.channels.length);
  }

  // Returns `count` samples at 16 kHz from sample `begin`, silent after the end.
  samples(begin, count) {
    const { from, to } = this.rates, found = new Float32Array(count);
    const end = Math.min(begin + count, this.size);
    if (begin >= end) return found;
    // range of inputs that the kernels of these outputs need
    const margin = 8 * Math.ceil(from / to) + 8;
    const low = Math.floor(begin / to) * from - margin;
    const periods = Math.floor((end - 1) / to) - Math.floor(begin / to) + 1;
    const heard = new Float32Array(periods * from + 2 * margin);
    for (let i = 0; i < heard.length; i++) heard[i] = this.#mono(low + i);
    for (let k = begin; k < end; k++) {
      if (from === to) { found[k - begin] = this.#mono(k); continue; }
      const phase = k % to;
      if (!this.#kernels.has(phase)) this.#kernels.set(phase, kernelOf(phase, this.rates));
      const { first, weights } = this.#kernels.get(phase);
      const at = Math.floor(k / to) * from + first - low;
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += heard[at + i] * weights[i];
      found[k - begin] = sum;
    }
    return found;
  }

  // Returns the second of sound from `start` (in seconds), for a frame of a video.
  from(start) {
    return checked(this.samples(Math.round(start * RATE_HZ), WINDOW));
  }

  // Returns the second of sound of AVSBench's frame `index`; past the end the last full second.
  second(index) {
    return checked(this.samples(Math.min(STEP * index, Math.max(0, this.size - WINDOW)), WINDOW));
  }
}

function checked(window) {
  let peak = 0;
  for (const sample of window) {
    if (!Number.isFinite(sample)) throw new Error("the sound contains NaN or infinite samples");
    peak = Math.max(peak, Math.abs(sample));
  }
  if (peak > MAX_PEAK) throw new Error(`the sound is far too loud: samples up to ${peak}`);
  return window;
}

// Returns the root mean square in dB, -90 for silence.
export function loudness(window) {
  let sum = 0;
  for (const sample of window) sum += sample * sample;
  return Math.max(-90, 10 * Math.log10(sum / window.length + 1e-9));
}

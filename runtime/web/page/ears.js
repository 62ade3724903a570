// Sound sources: the whole sound of a video file, or the last second of a live source.

import { RATE_HZ } from "./sound.js";

const LARGEST = 1 << 29; // bytes; the sound of larger files is recorded during playback
const LIVE_STEP_S = 0.5; // interval at which the last second is embedded again

// Returns the sound of a video file as {channels, rate}; channels is null without sound. Returns null if
// the file is too large to be read at once.
export async function soundOf(file) {
  if (file.size > LARGEST) return null;
  try {
    const decoded = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await file.arrayBuffer());
    const channels = Array.from({ length: decoded.numberOfChannels }, (_, c) => decoded.getChannelData(c));
    return { channels, rate: decoded.sampleRate };
  } catch {
    return { channels: null, rate: RATE_HZ };
  }
}

export class LiveEars {
  #pieces = [];
  #n = 0;

  // source: a MediaStream, or a <video>, whose sound is then routed through this object.
  static async of(source) {
    const ears = new LiveEars();
    ears.context = new AudioContext();
    await ears.context.audioWorklet.addModule(new URL("listener.js", import.meta.url));
    const { context } = ears;
    const film = source instanceof HTMLMediaElement;
    const node = film ? context.createMediaElementSource(source) : context.createMediaStreamSource(source);
    const listener = new AudioWorkletNode(context, "listener", { numberOfOutputs: 0 });
    node.connect(listener);
    if (film) node.connect(context.destination);
    listener.port.onmessage = ({ data }) => ears.#add(data);
    await context.resume();
    return ears;
  }

  #add(pieces) {
    this.#pieces.push(...pieces);
    for (const piece of pieces) this.#n += piece[0].length;
    const most = 1.1 * this.context.sampleRate; // one second, and a margin for resampling
    while (this.#n - this.#pieces[0][0].length > most) this.#n -= this.#pieces.shift()[0].length;
  }

  // Returns the last second of sound, for the worker.
  heard() {
    const rate = this.context.sampleRate, key = `live ${Math.floor(performance.now() / 1000 / LIVE_STEP_S)}`;
    if (!this.#n) return { channels: null, rate, key };
    const n = Math.min(...this.#pieces.map((piece) => piece.length)); // the number of channels may change
    const channels = Array.from({ length: n }, (_, c) => {
      const whole = new Float32Array(this.#n);
      let at = 0;
      for (const piece of this.#pieces) { whole.set(piece[c], at); at += piece[c].length; }
      return whole;
    });
    return { channels, rate, key };
  }

  close() {
    this.context.close();
  }
}

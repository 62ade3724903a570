// Audio worklet: sends the sound of a microphone or of a playing video in pieces of 2048 samples.
registerProcessor("listener", class extends AudioWorkletProcessor {
  #pieces = [];
  #n = 0;

  process([channels]) {
    if (!channels?.length) return true;
    this.#pieces.push(channels.map((channel) => channel.slice()));
    this.#n += channels[0].length;
    if (this.#n >= 2048) {
      this.port.postMessage(this.#pieces);
      this.#pieces = [];
      this.#n = 0;
    }
    return true;
  }
});

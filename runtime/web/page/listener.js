// The sound of a microphone or a film as it plays, handed on in pieces of 2048 samples.
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

// The two graphs of a bundle in ONNX Runtime Web: audio runs once per second, model once per frame.

import { sha256, readNpy, row } from "./files.js";

const site = new URL("..", import.meta.url);

// The bundle's files; arrays are read once.
export class Bundle {
  #kept = new Map();

  constructor(about) {
    this.about = about; // site.json
    this.side = about.side;
  }

  // Returns the bytes of a file after comparing its sha256. Calls loaded(number of bytes read so far).
  async bytes(name, loaded = () => {}) {
    const { sha256: expected, size } = this.about.files[name];
    const path = name.split("/").map(encodeURIComponent).join("/");
    const answer = await fetch(new URL(`bundle/${path}?${expected.slice(0, 16)}`, site));
    if (!answer.ok) throw new Error(`${name} cannot be loaded: ${answer.status} ${answer.statusText}`);
    const found = new Uint8Array(size);
    let at = 0;
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      if (at + value.length > size) throw new Error(`${name} is longer than the ${size} bytes of the manifest`);
      found.set(value, at);
      loaded((at += value.length));
    }
    const got = await sha256(found);
    if (at !== size || (got !== null && got !== expected))
      throw new Error(`${name} is not the file of the manifest: reload the page, or write it again`);
    return found;
  }

  async array(name) {
    if (!this.#kept.has(name)) this.#kept.set(name, readNpy((await this.bytes(name)).buffer));
    return this.#kept.get(name);
  }
}

// Opens both graphs. backend: "webgpu" or "wasm". Calls says(text, share) with the progress.
export async function openModel(bundle, backend, threads, says) {
  const { about } = bundle;
  const runtime = new URL(`ort/${about.runtime}/`, site);
  const ort = await import(new URL(backend === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs", runtime));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = runtime.href;
  ort.env.wasm.numThreads = threads;
  const graphs = {};
  const total = [...about.graphs.audio, ...about.graphs.model].reduce((n, name) => n + about.files[name].size, 0);
  let before = 0;
  for (const kind of ["audio", "model"]) {
    const [graph, ...weights] = about.graphs[kind];
    const read = async (name) => {
      const found = await bundle.bytes(name, (n) => says("Loading the model", (before + n) / total));
      before += found.length;
      return found;
    };
    const content = await read(graph);
    const externalData = [];
    for (const name of weights) externalData.push({ path: name, data: await read(name) });
    says(kind === "model" ? "Starting" : "Loading the model", before / total);
    // the audio graph runs on the CPU, as in the other runtimes: once per second, and exact
    const executionProviders = [kind === "model" ? backend : "wasm"];
    graphs[kind] = await ort.InferenceSession.create(content, { executionProviders, externalData, logSeverityLevel: 3 });
  }
  return new Model(ort, bundle, graphs, backend, threads);
}

class Model {
  #queue = Promise.resolve();

  constructor(ort, bundle, graphs, backend, threads) {
    Object.assign(this, { ort, bundle, graphs, backend, threads, side: bundle.side });
  }

  // Runs one call at a time: sessions of one module cannot run in parallel.
  #run(graph, feeds, name) {
    const found = this.#queue.then(async () => {
      const outputs = await this.graphs[graph].run(feeds);
      const values = Float32Array.from(outputs[name].data);
      for (const tensor of [...Object.values(outputs), ...Object.values(feeds)]) tensor.dispose();
      return values;
    });
    this.#queue = found.catch(() => {});
    return found;
  }

  // Returns the embedding (128,) of a waveform (16000,).
  embed(waveform) {
    const tensor = new this.ort.Tensor("float32", waveform.slice(), [1, waveform.length]);
    return this.#run("audio", { waveform: tensor }, "audio_embedding");
  }

  // Returns logits (side, side) for RGB bytes (side, side, 3) and an embedding (128,).
  logits(image, embedding) {
    const { ort, side } = this;
    const feeds = {
      image: new ort.Tensor("uint8", image, [1, side, side, 3]),
      audio_embedding: new ort.Tensor("float32", embedding.slice(), [1, embedding.length]),
    };
    return this.#run("model", feeds, "mask_logits");
  }

  // Runs the first golden sample, like the self-test of the other runtimes on a new GPU.
  async selfTest() {
    const { golden } = this.bundle.about;
    if (!golden) return;
    const [waveform, image, wanted] = await Promise.all(
      ["waveform", "image", "mask_logits"].map((name) => this.bundle.array(`golden/${name}.npy`)),
    );
    const found = await this.logits(row(image, 0).slice(), await this.embed(row(waveform, 0)));
    const { error, agreement } = compared(found, row(wanted, 0));
    const { max_abs_err: limit, min_agreement: least } = golden.budget;
    // one sample may differ by a few pixels more than the budget of all samples allows
    if (!(agreement >= least - 0.001) || (limit != null && !(error <= 2 * limit)))
      throw new Error(`masks differ on ${this.backend}: IoU ${agreement.toFixed(5)}, logits by ${error.toExponential(1)}`);
  }

  async close() {
    for (const graph of Object.values(this.graphs)) await graph.release();
  }
}

// Returns the largest difference of logits and the IoU of the masks (1 if both are empty).
export function compared(found, wanted) {
  let error = 0, both = 0, either = 0;
  for (let i = 0; i < wanted.length; i++) {
    const difference = Math.abs(found[i] - wanted[i]);
    error = difference <= error ? error : difference; // keeps NaN
    both += found[i] > 0 && wanted[i] > 0;
    either += found[i] > 0 || wanted[i] > 0;
  }
  return { error, agreement: either ? both / either : 1 };
}

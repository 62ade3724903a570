// The page: shows a video file or the camera with its mask, and the measured figures.

import { LiveEars, soundOf } from "./ears.js";

const $ = (id) => document.getElementById(id);
const film = $("film"), stage = $("stage"), mask = $("mask");
const PLAY = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5v14l11-7z"/></svg>';
const PAUSE = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 5h4v14H7zM13 5h4v14h-4z"/></svg>';
const AVERAGED = 20; // number of masks for the average figures

// ---- the model, in a worker

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let calls = 0;

worker.onmessage = ({ data }) => {
  if (data.says) return heardFrom(data);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error === undefined) resolve(data.value);
  else reject(new Error(data.error));
};
worker.onerror = (event) => fail(new Error(event.message ?? "the worker cannot be started"));

function ask(call, args, moved = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    worker.postMessage({ id: calls, call, args }, moved);
  });
}

function heardFrom({ says, share }) {
  if (says === "check") { $("check").textContent = `Checking: ${Math.round(100 * share)} %`; return; }
  const done = share < 1;
  $("status").textContent = says;
  $("progress").hidden = !done;
  $("progress").value = share;
}

let about, opened;

async function open(backend) {
  opened = undefined;
  const buttons = [...document.querySelectorAll("[data-backend]")];
  for (const button of [...buttons, $("check")]) button.disabled = true;
  $("checked").hidden = true;
  fail(null);
  try {
    const threads = globalThis.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;
    const found = await ask("open", { about, backend, threads });
    for (const button of buttons) {
      button.setAttribute("aria-pressed", button.dataset.backend === found.backend);
      button.disabled = button.dataset.backend === "webgpu" && !found.gpu;
    }
    const where = found.backend === "webgpu" ? "WebGPU" : `the CPU, ${found.threads} ${found.threads === 1 ? "thread" : "threads"}`;
    $("model").textContent = `${about.model}, ${about.precision}, ${about.side} × ${about.side} pixels. ONNX Runtime Web ${about.runtime} on ${where}.`;
    $("status").textContent = found.note;
    $("progress").hidden = true;
    $("check").disabled = !about.golden && !about.conformance;
    opened = found;
    mood();
    maskNow();
  } catch (error) {
    for (const button of buttons) button.disabled = false;
    $("progress").hidden = true;
    $("status").textContent = "";
    fail(error);
  }
}

function fail(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? `${error.message[0].toUpperCase()}${error.message.slice(1)}` : "";
}

// ---- sources

let turn = 0; // number of the current source; results of earlier sources are dropped
let ears, stream, filmEars; // filmEars is kept: a <video> can be connected to only one audio node

async function watchFilm(file) {
  const mine = await clear();
  film.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => {
      film.onloadeddata = resolve;
      film.onerror = () => reject(new Error(`this browser cannot play ${file.name}`));
    });
    if (!film.videoWidth) throw new Error(`${file.name} has no pictures`);
    $("status").textContent = "Reading the sound";
    const sound = await soundOf(file);
    if (mine !== turn) return;
    if (sound === null) ears = filmEars ??= await LiveEars.of(film);
    else await ask("hear", sound);
    $("status").textContent = sound?.channels === null ? "This film has no sound that the browser can read: masks are computed with silence." : "";
  } catch (error) {
    if (mine === turn) { await clear(); fail(error); }
    return;
  }
  show(true);
  film.play().catch(() => {}); // some browsers require a click first
}

async function watchCamera() {
  const mine = await clear();
  try {
    if (!navigator.mediaDevices) throw new Error("camera and microphone need https, or a page of this machine (localhost)");
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const found = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio });
    if (mine !== turn) return found.getTracks().forEach((track) => track.stop());
    stream = found;
    ears = await LiveEars.of(stream);
    stream.getTracks().forEach((track) => { track.onended = () => mine === turn && clear().then(() => fail(new Error(`the ${track.kind === "video" ? "camera" : "microphone"} was taken away`))); });
    film.muted = true;
    film.srcObject = stream;
    await film.play();
  } catch (error) {
    if (mine === turn) { await clear(); fail(error); }
    return;
  }
  show(false);
}

function show(isFilm) {
  stage.classList.add("filled");
  $("start").hidden = true;
  film.hidden = mask.hidden = $("controls").hidden = $("figures").hidden = false;
  for (const id of ["toggle", "seek", "clock"]) $(id).hidden = !isFilm;
  mood();
  watch(turn);
}

async function clear() {
  turn++;
  fail(null);
  film.pause();
  if (film.src) URL.revokeObjectURL(film.src);
  film.removeAttribute("src");
  film.srcObject = null;
  film.muted = false;
  film.load();
  stream?.getTracks().forEach((track) => track.stop());
  if (ears !== filmEars) ears?.close();
  ears = stream = undefined;
  stage.classList.remove("filled");
  film.hidden = mask.hidden = $("controls").hidden = $("figures").hidden = true;
  $("start").hidden = false;
  for (const id of ["rate", "delay", "share", "level"]) $(id).textContent = "–";
  $("status").textContent = opened?.note ?? $("status").textContent;
  return turn;
}

// ---- masks

let busy = false, samples = [], shown = null; // shown: time of the displayed frame, if the browser reports it

// Masks one frame at a time; frames that arrive meanwhile are skipped.
function watch(mine) {
  const next = () => {
    if (mine !== turn) return;
    if (film.requestVideoFrameCallback) film.requestVideoFrameCallback((_, { mediaTime }) => { shown = mediaTime; maskNow(); next(); });
    else requestAnimationFrame(() => { if (!film.paused) maskNow(); next(); });
  };
  samples = [];
  shown = null;
  maskNow();
  next();
}

async function maskNow() {
  if (busy || !opened || film.hidden || film.readyState < 2) return;
  busy = true;
  const mine = turn, started = performance.now(), time = shown ?? film.currentTime;
  try {
    const bitmap = await createImageBitmap(film).catch(() => null); // fails before the first decoded frame
    if (bitmap === null) return;
    const found = await ask("frame", { bitmap, time, live: ears?.heard() }, [bitmap]);
    if (mine === turn) draw(found, started, time);
  } catch (error) {
    if (mine === turn) fail(error);
  } finally {
    busy = false;
  }
  // a paused video changed its frame while another one was computed
  if (mine === turn && film.paused && (shown ?? film.currentTime) !== time) maskNow();
}

function draw(found, started, time) {
  Object.assign(mask, { width: found.width, height: found.height });
  mask.getContext("2d").putImageData(new ImageData(found.rgba, found.width, found.height), 0, 0);
  mask.dataset.time = time;
  const now = performance.now();
  samples.push({ now, delay: now - started });
  if (samples.length > AVERAGED + 1) samples.shift();
  const span = now - samples[0].now;
  if (samples.length > 2 && !film.paused) $("rate").textContent = ((1000 * (samples.length - 1)) / span).toFixed(1);
  $("delay").textContent = `${Math.round(samples.reduce((sum, s) => sum + s.delay, 0) / samples.length)} ms`;
  $("share").textContent = `${(100 * found.share).toFixed(1)} %`;
  $("level").textContent = found.loudness <= -80 ? "silence" : `${Math.round(found.loudness)} dB`;
}

// ---- controls

function mood() {
  const length = Number.isFinite(film.duration) ? film.duration : 0;
  $("toggle").innerHTML = film.paused ? PLAY : PAUSE;
  $("toggle").setAttribute("aria-label", film.paused ? "Play" : "Pause");
  $("play").hidden = !film.paused || !film.src || film.hidden || film.currentTime > 0;
  $("seek").max = length || 1;
  $("seek").value = film.currentTime;
  $("clock").textContent = `${minutes(film.currentTime)} / ${minutes(length)}`;
}

function minutes(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function toggle() {
  if (film.paused) film.play().catch(fail);
  else film.pause();
}

for (const event of ["play", "pause", "timeupdate", "durationchange", "ended"]) film.addEventListener(event, mood);
film.addEventListener("play", () => { samples = []; });
film.addEventListener("seeked", () => shown === null && maskNow());
film.addEventListener("click", () => film.src && toggle());
$("toggle").onclick = $("play").onclick = toggle;
$("seek").oninput = () => { film.currentTime = Number($("seek").value); };
$("close").onclick = clear;
$("camera").onclick = watchCamera;
$("choose").onclick = () => $("file").click();
$("file").onchange = () => { const [file] = $("file").files; $("file").value = ""; if (file) watchFilm(file); };
$("shown").onclick = () => {
  const pressed = $("shown").getAttribute("aria-pressed") !== "true";
  $("shown").setAttribute("aria-pressed", pressed);
  mask.style.visibility = pressed ? "" : "hidden";
};
for (const button of document.querySelectorAll("[data-backend]")) button.onclick = () => open(button.dataset.backend);

document.ondragover = (event) => { event.preventDefault(); stage.classList.add("over"); };
document.ondragleave = (event) => { if (!event.relatedTarget) stage.classList.remove("over"); };
document.ondrop = (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) watchFilm(file);
};

$("check").onclick = async () => {
  $("check").disabled = true;
  try {
    const rows = await ask("check");
    $("checked").tBodies[0].replaceChildren(...rows.map(shownRow));
    $("checked").hidden = false;
  } catch (error) {
    fail(error);
  }
  $("check").disabled = false;
  $("check").textContent = "Check in this browser";
};

function shownRow({ name, value, limit, least, ok }) {
  const line = document.createElement("tr");
  const allowed = least !== undefined ? `at least ${least}` : limit === Infinity ? "any" : limit ? `at most ${limit.toExponential()}` : "none";
  const found = least !== undefined ? value.toFixed(5) : value && value < 1 ? value.toExponential(1) : String(value);
  for (const text of [name, found, allowed]) line.insertCell().textContent = text;
  line.cells[1].className = ok ? "ok" : "bad";
  return line;
}

// ---- start

// The service worker enables threads and offline use, after one reload.
async function isolate() {
  const workers = navigator.serviceWorker;
  if (!workers) return;
  await workers.register(new URL("../sw.js", import.meta.url));
  if (crossOriginIsolated || sessionStorage.getItem("isolated")) return;
  sessionStorage.setItem("isolated", "tried");
  await workers.ready;
  location.reload();
  await new Promise(() => {});
}

globalThis.save = { ask };  // for tests
await isolate().catch(() => {}); // without a service worker: one thread, online only
try {
  about = await (await fetch(new URL("../site.json", import.meta.url), { cache: "no-cache" })).json();
  await open("auto");
} catch (error) {
  fail(error);
}

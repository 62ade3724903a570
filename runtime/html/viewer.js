// Frames with their masks, the worst first. Uses what page.js defines.
(() => {
  const viewer = $("#viewer");
  if (!viewer) return;
  const shown = read("#frames");
  const canvas = $("#canvas");
  const worstRow = (frame) => Object.keys(frame.rows).sort(
    (a, b) => frame.rows[a].agreement - frame.rows[b].agreement)[0] ?? "";
  const state = { frame: null, row: worstRow(shown.frames[0]), layer: "row", opacity: 0.55, zoom: null };
  let order = shown.frames;
  const LAYERS = ["frame", "truth", "reference", "row", "flips", "near"];
  const { mask: MASK, on: ON, off: OFF } = shown.colors;
  const NEAR = [null, [76, 64, 108], [138, 118, 196], [205, 190, 255]]; // by level
  const css = (color) => `rgb(${color.join(" ")})`;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function unpack(text, n) { // run lengths -> one value a pixel
    const values = new Uint8Array(n);
    let at = 0, number = 0, shift = 0;
    for (const byte of bytes(text)) {
      number |= (byte & 127) << shift;
      shift += 7;
      if (byte & 128) continue;
      values.fill(number & 3, at, at += number >>> 2);
      number = shift = 0;
    }
    return values;
  }

  async function open(frame) { // pixels and masks, once for each frame
    if (frame.pixels) return;
    const picture = new Image();
    picture.src = `data:image/jpeg;base64,${frame.jpeg}`;
    await picture.decode();
    const { width, height } = frame, n = width * height;
    const surface = make("canvas", "", { width, height }).getContext("2d");
    surface.drawImage(picture, 0, 0);
    for (const key of ["truth", "reference", "near"]) {
      frame[`${key}_map`] = frame[key] && unpack(frame[key], n);
    }
    for (const row of Object.values(frame.rows)) {
      row.mask_map = unpack(row.mask, n);
      row.flips_map = unpack(row.flips, n);
    }
    frame.pixels = surface.getImageData(0, 0, width, height).data;
  }

  function base(frame, brightness) { // null: in color
    const pixels = new Uint8ClampedArray(frame.pixels);
    if (brightness === null) return pixels;
    for (let i = 0; i < pixels.length; i += 4) {
      const mean = brightness * (pixels[i] + pixels[i + 1] + pixels[i + 2]) / 3;
      pixels[i] = pixels[i + 1] = pixels[i + 2] = mean;
    }
    return pixels;
  }
  function tint(pixels, i, color, opacity) {
    for (let c = 0; c < 3; c++) {
      pixels[4 * i + c] = pixels[4 * i + c] * (1 - opacity) + color[c] * opacity;
    }
  }
  function edges(map, { width, height }, visit) {
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (map[i] && ((x && !map[i - 1]) || (x + 1 < width && !map[i + 1]) ||
            (y && !map[i - width]) || (y + 1 < height && !map[i + width]))) visit(i);
      }
    }
  }
  function cover(pixels, map, frame) {
    for (let i = 0; i < map.length; i++) if (map[i]) tint(pixels, i, MASK, state.opacity);
    edges(map, frame, (i) => tint(pixels, i, MASK, 1));
  }
  function points(pixels, map, { width, height }) { // a flip is one pixel: a halo makes it seen
    const reach = 3;
    for (let i = 0; i < map.length; i++) {
      if (!map[i]) continue;
      const x = i % width, y = (i - x) / width, color = map[i] === 1 ? ON : OFF;
      for (let v = Math.max(0, y - reach); v <= Math.min(height - 1, y + reach); v++) {
        for (let u = Math.max(0, x - reach); u <= Math.min(width - 1, x + reach); u++) {
          if (!map[v * width + u] && (u - x) ** 2 + (v - y) ** 2 <= reach * reach) {
            tint(pixels, v * width + u, color, 0.12);
          }
        }
      }
    }
    for (let i = 0; i < map.length; i++) if (map[i]) tint(pixels, i, map[i] === 1 ? ON : OFF, 1);
  }

  function paint() {
    const { frame, layer } = state, row = frame.rows[state.row];
    const dim = { frame: null, flips: 0.4, near: 0.35 };
    const pixels = base(frame, layer in dim ? dim[layer] : 0.8);
    if (layer === "truth" && frame.truth_map) cover(pixels, frame.truth_map, frame);
    if (layer === "reference") cover(pixels, frame.reference_map, frame);
    if (layer === "row" && row) cover(pixels, row.mask_map, frame);
    if (layer === "near" && frame.near_map) {
      frame.near_map.forEach((level, i) => level && tint(pixels, i, NEAR[level], 0.2 + 0.8 * state.opacity));
    }
    if (layer === "flips" && row) {
      edges(frame.reference_map, frame, (i) => tint(pixels, i, [255, 255, 255], 0.35));
      points(pixels, row.flips_map, frame);
    }
    if (layer === "near" && row) {
      row.flips_map.forEach((flip, i) => flip && tint(pixels, i, flip === 1 ? ON : OFF, 1));
    }
    const { width, height } = frame, times = Math.max(1, Math.round(1024 / Math.max(width, height)));
    const small = make("canvas", "", { width, height });
    small.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    canvas.width = width * times;
    canvas.height = height * times;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = layer === "frame" && !state.zoom;
    const share = state.zoom ? 0.25 : 1;
    const clamp = (v) => Math.min(1 - share, Math.max(0, v - share / 2));
    const [left, top] = state.zoom ? state.zoom.map(clamp) : [0, 0];
    context.drawImage(small, left * width, top * height, share * width, share * height,
      0, 0, canvas.width, canvas.height);
  }

  function caption() {
    const { frame, layer } = state, row = frame.rows[state.row];
    const swatch = (color) => make("i", "", { style: `background:${css(color)}` });
    const reference = shown.references[frame.dataset];
    const flips = () => [swatch(ON), `${row.on} turned on`, swatch(OFF), `${row.off} turned off`];
    const words = {
      frame: ["The frame as the network sees it"],
      truth: [swatch(MASK), "ground truth"],
      reference: [swatch(MASK), `mask of ${reference}`],
      row: [swatch(MASK), `mask of ${state.row}`],
      flips: row ? [`${state.row} against ${reference}:`, ...flips(), "; outline: ", reference] : [],
      near: ["|logit| of ", reference, " below",
        ...[...shown.levels].reverse().flatMap((level, i) => [swatch(NEAR[i + 1]), level]),
        ...(row ? ["; ", ...flips()] : [])],
    }[layer];
    $("#legend").replaceChildren(...words);
    canvas.setAttribute("aria-label", `${frame.name}, ${layer === "row" ? state.row : layer}`);
  }

  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(2));
  function side() {
    const { frame } = state, reference = shown.references[frame.dataset];
    write($("#frame-name"), frame.name);
    write($("#frame-dataset"), frame.dataset);
    $('#layers [data-layer="reference"] span').textContent = reference;
    const line = (name, found) => {
      const row = make("tr"), head = make("th", "", { scope: "row" });
      row.append(head);
      if (found) {
        const button = make("button", "", { type: "button", "aria-pressed": name === state.row });
        write(button, name);
        button.addEventListener("click", (event) => { choose(name); refocus(event); });
        head.append(button);
      } else head.textContent = name;
      const cells = found
        ? [percent(found.iou), found.agreement.toFixed(5), found.on, found.off]
        : [percent(frame.reference_iou), "", "", ""];
      row.append(...cells.map((words) => make("td", words)));
      return row;
    };
    $("#frame-rows tbody").replaceChildren(
      line(reference, null), ...Object.entries(frame.rows).map(([name, found]) => line(name, found)));
    sound();
  }

  function sound() {
    const { frame } = state, raw = bytes(frame.sound);
    const samples = new Int16Array(raw.buffer, 0, raw.length >> 1);
    $("#play").disabled = !samples.length;
    $("#level").textContent = !samples.length ? "not stored"
      : frame.level === null ? "silent" : `${frame.level.toFixed(1)} dBFS`;
    const columns = 160, step = samples.length / columns;
    let path = "";
    for (let i = 0; i < columns && samples.length; i++) {
      let low = 0, high = 0;
      for (let k = Math.floor(i * step); k < (i + 1) * step && k < samples.length; k++) {
        low = Math.min(low, samples[k]);
        high = Math.max(high, samples[k]);
      }
      const top = 32 - high / 1024, bottom = 32 - low / 1024;
      path += `M${2 * i} ${top.toFixed(1)}h1.4V${Math.max(bottom, top + 0.6).toFixed(1)}h-1.4z`;
    }
    $("#wave").innerHTML = `<line x1="0" x2="320" y1="32" y2="32"/><path d="${path}"/>`;
    $("#seconds").textContent = `${(samples.length / 16000).toFixed(2)} s`;
    const full = frame.level === null ? 0 : Math.max(0, 1 + frame.level / 60); // -60..0 dBFS
    $("#meter i").style.width = `${100 * full}%`;
  }
  function play() {
    const raw = bytes(state.frame.sound);
    if (!raw.length) return;
    const file = new DataView(new ArrayBuffer(44 + raw.length));
    const word = (at, text) => [...text].forEach((c, i) => file.setUint8(at + i, c.charCodeAt(0)));
    word(0, "RIFF"); word(8, "WAVEfmt "); word(36, "data");
    file.setUint32(4, 36 + raw.length, true); file.setUint32(16, 16, true);
    file.setUint16(20, 1, true); file.setUint16(22, 1, true);
    file.setUint32(24, 16000, true); file.setUint32(28, 32000, true);
    file.setUint16(32, 2, true); file.setUint16(34, 16, true);
    file.setUint32(40, raw.length, true);
    new Uint8Array(file.buffer).set(raw, 44);
    let text = "";
    new Uint8Array(file.buffer).forEach((byte) => { text += String.fromCharCode(byte); });
    new Audio(`data:audio/wav;base64,${btoa(text)}`).play().catch(() => {
      $("#level").textContent = "this browser does not play it";
    });
  }

  function strip() {
    $("#strip").replaceChildren(...order.map((frame, i) => {
      const row = frame.rows[state.row];
      const button = make("button", "", {
        type: "button", "aria-pressed": frame === state.frame, "aria-label": `Frame ${i + 1}: ${frame.name}`,
      });
      button.append(make("img", "", { src: `data:image/jpeg;base64,${frame.jpeg}`, alt: "" }),
        row ? row.agreement.toFixed(4) : "–");
      button.addEventListener("click", (event) => { go(i); refocus(event); });
      return button;
    }));
  }

  let turn = 0;
  async function show() {
    const mine = ++turn, { frame } = state;
    await open(frame);
    if (mine !== turn) return; // another frame was asked for meanwhile
    const at = order.indexOf(frame);
    $("#place").textContent = `${at + 1} of ${order.length}`;
    $("#previous").disabled = at === 0;
    $("#next").disabled = at === order.length - 1;
    all("#layers button").forEach((button) => {
      const layer = button.dataset.layer;
      button.disabled = !has(layer);
      button.setAttribute("aria-pressed", layer === state.layer);
    });
    $("#zoom").setAttribute("aria-pressed", state.zoom !== null);
    all("#strip button").forEach((button, i) => button.setAttribute("aria-pressed", i === at));
    $("#opacity").disabled = state.layer === "frame" || state.layer === "flips";
    viewer.dataset.layer = state.layer;
    viewer.dataset.frame = frame.name;
    viewer.dataset.row = state.row;
    paint();
    caption();
    side();
  }
  const has = (layer) => {
    const { frame } = state;
    if (layer === "truth" || layer === "near") return frame[layer] !== null;
    return layer === "frame" || layer === "reference" || state.row in frame.rows;
  };
  function arrange() { // frames of the chosen dataset, worst of the chosen row first
    order = shown.frames.filter((f) => dataset === "" || f.dataset === dataset);
    const empty = order.length === 0;
    $("#frames-part").hidden = empty;
    if (empty) return;
    const names = [...new Set(order.flatMap((f) => Object.keys(f.rows)))];
    if (!names.includes(state.row)) state.row = worstRow(order[0]) || (names[0] ?? "");
    const worst = (f) => f.rows[state.row] ?? { agreement: 2, on: 0, off: 0 };
    order = [...order].sort((a, b) => worst(a).agreement - worst(b).agreement ||
      worst(b).on + worst(b).off - worst(a).on - worst(a).off);
    if (!order.includes(state.frame)) state.frame = order[0];
    keepLayer();
    strip();
    show();
  }
  const keepLayer = () => { if (!has(state.layer)) state.layer = "frame"; };
  function go(i) {
    if (i < 0 || i >= order.length) return;
    state.frame = order[i];
    state.zoom = null;
    if (!(state.row in state.frame.rows)) state.row = Object.keys(state.frame.rows)[0] ?? "";
    keepLayer();
    show();
    const thumb = $("#strip").children[i], box = $("#strip");
    box.scrollLeft = thumb.offsetLeft - box.offsetLeft - (box.clientWidth - thumb.clientWidth) / 2;
  }
  const step = (by) => go(order.indexOf(state.frame) + by);
  function choose(name) { state.row = name; arrange(); }
  function pick(layer) { if (has(layer)) { state.layer = layer; show(); } }
  const blink = () => pick(state.layer === "reference" ? "row" : "reference");
  function zoom(at) { // on the middle flip, or where it was clicked
    if (state.zoom) state.zoom = null;
    else if (at) state.zoom = at;
    else {
      const { frame } = state, map = frame.rows[state.row]?.flips_map ?? [], found = [];
      map.forEach((flip, i) => flip && found.push(i));
      const i = found.length ? found[found.length >> 1] : (frame.width * (frame.height + 1)) >> 1;
      state.zoom = [(i % frame.width) / frame.width, Math.floor(i / frame.width) / frame.height];
    }
    show();
  }
  // after a click with the pointer the keys belong to the viewer, not to the button
  function refocus(event) { if (event.detail > 0) viewer.focus({ preventScroll: true }); }

  all("#layers button").forEach((button) =>
    button.addEventListener("click", (event) => { pick(button.dataset.layer); refocus(event); }));
  for (const [id, act] of [["#previous", () => step(-1)], ["#next", () => step(1)],
    ["#blink", blink], ["#zoom", () => zoom()], ["#play", play]]) {
    $(id).addEventListener("click", (event) => { act(); refocus(event); });
  }
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    zoom([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
    refocus(event);
  });
  $("#opacity").addEventListener("input", (event) => {
    state.opacity = event.target.value / 100;
    show();
  });
  const keys = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), " ": blink, z: () => zoom(), p: play,
    b: () => {
      const names = Object.keys(state.frame.rows);
      if (names.length) choose(names[(names.indexOf(state.row) + 1) % names.length]);
    },
  };
  LAYERS.forEach((layer, i) => { keys[i + 1] = () => pick(layer); });
  document.addEventListener("keydown", (event) => {
    const focus = document.activeElement, inside = viewer.contains(focus);
    const box = viewer.getBoundingClientRect();
    const inView = box.top < innerHeight * 0.6 && box.bottom > innerHeight * 0.4;
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    if (!inside && !(focus === document.body && inView)) return;
    if (focus.matches("input") && event.key.startsWith("Arrow")) return;
    if (focus.matches("button, summary") && event.key === " ") return;
    event.preventDefault();
    keys[event.key]();
  });
  document.addEventListener("dataset", arrange);
  arrange();
})();

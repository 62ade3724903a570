// Resizes frames to network size and logits to masks, with the exact arithmetic of Pillow.
// Same as resize.cpp of the C++ runtime.

const BITS = 22; // fraction bits of a weight; pixel (8), sign and carry bits complete 32

// Triangle filter of one axis: output x is the weighted sum of count[x] inputs starting at first[x].
function triangle(size, out) {
  const scale = size / out, reach = Math.max(scale, 1);
  const stride = 2 * Math.ceil(reach) + 1;
  const first = new Int32Array(out), count = new Int32Array(out);
  const weights = new Float64Array(out * stride);
  for (let x = 0; x < out; x++) {
    const center = (x + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(size, Math.trunc(center + reach + 0.5));
    let sum = 0;
    for (let i = 0; i < end - begin; i++) {
      const distance = Math.abs((i + begin - center + 0.5) * (1 / reach));
      sum += weights[x * stride + i] = distance < 1 ? 1 - distance : 0;
    }
    for (let i = 0; sum && i < end - begin; i++) weights[x * stride + i] /= sum;
    first[x] = begin;
    count[x] = end - begin;
  }
  return { first, count, weights, stride };
}

function whole(taps) {
  return { ...taps, weights: Int32Array.from(taps.weights, (w) => Math.trunc(0.5 + w * (1 << BITS))) };
}

function rounded(sum) {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

// Resizes the width of a picture {width, height, values}. Pixels have `step` values, of which the first
// three (RGB) are kept.
function bytesToWidth({ width, height, values }, step, out) {
  const { first, count, weights, stride } = whole(triangle(width, out));
  const found = new Uint8Array(out * height * 3);
  for (let y = 0, place = 0; y < height; y++)
    for (let x = 0; x < out; x++, place += 3) {
      let r = 1 << (BITS - 1), g = r, b = r;
      let at = (y * width + first[x]) * step;
      for (let i = x * stride, last = i + count[x]; i < last; i++, at += step) {
        const weight = weights[i];
        r = (r + values[at] * weight) | 0;
        g = (g + values[at + 1] * weight) | 0;
        b = (b + values[at + 2] * weight) | 0;
      }
      found[place] = rounded(r);
      found[place + 1] = rounded(g);
      found[place + 2] = rounded(b);
    }
  return { width: out, height, values: found };
}

function bytesToHeight({ width, height, values }, step, out) {
  const { first, count, weights, stride } = whole(triangle(height, out));
  const found = new Uint8Array(width * out * 3);
  const sums = new Int32Array(width * 3);
  for (let y = 0; y < out; y++) {
    sums.fill(1 << (BITS - 1));
    for (let i = 0; i < count[y]; i++) {
      const weight = weights[y * stride + i];
      let at = (first[y] + i) * width * step;
      for (let k = 0; k < sums.length; k += 3, at += step) {
        sums[k] += values[at] * weight;
        sums[k + 1] += values[at + 1] * weight;
        sums[k + 2] += values[at + 2] * weight;
      }
    }
    for (let k = 0; k < sums.length; k++) found[y * sums.length + k] = rounded(sums[k]);
  }
  return { width, height: out, values: found };
}

// Values are rounded between the passes, so their order matters. Pillow resizes the height first if it
// shrinks by more than twice the amount of the width.
function heightFirst(width, height, outWidth, outHeight) {
  const less = height - outHeight;
  return less > 0 && less > 2 * (width - outWidth);
}

// Resizes RGBA bytes (height, width, 4) to RGB bytes (side, side, 3), bilinear with antialiasing.
export function imageOf(rgba, width, height, side) {
  let picture = { width, height, values: rgba };
  let step = 4;
  const toWidth = () => {
    if (picture.width === side) return; // Pillow skips the pass as well
    picture = bytesToWidth(picture, step, side);
    step = 3;
  };
  const toHeight = () => {
    if (picture.height === side) return;
    picture = bytesToHeight(picture, step, side);
    step = 3;
  };
  if (heightFirst(width, height, side, side)) { toHeight(); toWidth(); } else { toWidth(); toHeight(); }
  return step === 3 ? picture.values : withoutAlpha(rgba);
}

function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let i = 0, k = 0; i < rgba.length; i += 4) {
    rgb[k++] = rgba[i];
    rgb[k++] = rgba[i + 1];
    rgb[k++] = rgba[i + 2];
  }
  return rgb;
}

function floatsToWidth({ width, height, values }, out) {
  if (width === out) return { width, height, values };
  const { first, count, weights, stride } = triangle(width, out);
  const found = new Float32Array(out * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < out; x++) {
      let sum = 0;
      const at = y * width + first[x];
      for (let i = 0; i < count[x]; i++) sum += values[at + i] * weights[x * stride + i];
      found[y * out + x] = sum;
    }
  return { width: out, height, values: found };
}

function floatsToHeight({ width, height, values }, out) {
  if (height === out) return { width, height, values };
  const { first, count, weights, stride } = triangle(height, out);
  const found = new Float32Array(width * out);
  const sums = new Float64Array(width);
  for (let y = 0; y < out; y++) {
    sums.fill(0);
    for (let i = 0; i < count[y]; i++) {
      const weight = weights[y * stride + i], at = (first[y] + i) * width;
      for (let x = 0; x < width; x++) sums[x] += values[at + x] * weight;
    }
    found.set(sums, y * width);
  }
  return { width, height: out, values: found };
}

// Resizes logits (side, side) to float32 (height, width).
export function logitsAt(logits, side, width, height) {
  const picture = { width: side, height: side, values: logits };
  return heightFirst(side, side, width, height)
    ? floatsToWidth(floatsToHeight(picture, height), width).values
    : floatsToHeight(floatsToWidth(picture, width), height).values;
}

// Returns the mask (height, width) of logits (side, side): 255 = sounding, 0 = not.
export function maskOf(logits, side, width, height) {
  if (!logits.every(Number.isFinite)) throw new Error("the model gives NaN or infinite logits");
  return Uint8Array.from(logitsAt(logits, side, width, height), (logit) => (logit > 0 ? 255 : 0));
}

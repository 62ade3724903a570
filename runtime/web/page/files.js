// Reads files of a bundle (.npy, .wav, pictures) to arrays, and computes their sha256.

// Returns {shape, values} of a .npy file with float32, uint8 or bool in C order.
export function readNpy(buffer) {
  const bytes = new Uint8Array(buffer), view = new DataView(buffer);
  if (String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw new Error("not a .npy file");
  const wide = bytes[6] > 1, length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const start = (wide ? 12 : 10) + length;
  const header = new TextDecoder().decode(bytes.subarray(wide ? 12 : 10, start));
  const kind = { "<f4": Float32Array, "|u1": Uint8Array, "|b1": Uint8Array }[/'descr': '([^']+)'/.exec(header)?.[1]];
  if (!kind || /'fortran_order': True/.test(header)) throw new Error(`a .npy file of another kind: ${header}`);
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((n) => n.trim()).map(Number);
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, values: new kind(buffer.slice(start, start + size * kind.BYTES_PER_ELEMENT)) };
}

// Returns row i of an array along its first axis.
export function row({ shape, values }, i) {
  const size = values.length / shape[0];
  return values.subarray(i * size, (i + 1) * size);
}

// Returns {channels, rate} of a WAV file with 16, 24 or 32-bit PCM or 32-bit floats.
export function readWav(buffer) {
  const view = new DataView(buffer);
  const text = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  if (text(0) !== "RIFF" || text(8) !== "WAVE") throw new Error("not a WAV file");
  let format, n, rate, bits;
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const size = view.getUint32(at + 4, true), body = at + 8;
    if (text(at) === "fmt ") {
      format = view.getUint16(body, true);
      n = view.getUint16(body + 2, true);
      rate = view.getUint32(body + 4, true);
      bits = view.getUint16(body + 14, true);
      if (format === 0xfffe) format = view.getUint16(body + 24, true); // sub-format of WAVE_FORMAT_EXTENSIBLE
    }
    if (text(at) === "data") {
      const read = sampleReader(view, format, bits), width = bits / 8;
      const frames = Math.floor(Math.min(size, view.byteLength - body) / (width * n));
      const channels = Array.from({ length: n }, () => new Float32Array(frames));
      for (let i = 0, place = body; i < frames; i++)
        for (let c = 0; c < n; c++, place += width) channels[c][i] = read(place);
      return { channels, rate };
    }
    at = body + size + (size & 1);
  }
  throw new Error("a WAV file without samples");
}

function sampleReader(view, format, bits) {
  if (format === 3 && bits === 32) return (at) => view.getFloat32(at, true);
  if (format === 1 && bits === 16) return (at) => view.getInt16(at, true) / 2 ** 15;
  if (format === 1 && bits === 24)
    return (at) => (view.getUint8(at) | (view.getInt16(at + 1, true) << 8)) / 2 ** 23;
  if (format === 1 && bits === 32) return (at) => view.getInt32(at, true) / 2 ** 31;
  throw new Error(`a WAV file of format ${format} with ${bits} bits`);
}

// Returns {width, height, rgba} of a picture with unchanged colors. Uses WebGL, because a 2D canvas
// multiplies colors by alpha, so transparent pixels would become black.
export async function readPicture(blob) {
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options);
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl) throw new Error("this browser has no WebGL 2 in workers, which reads pictures");
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  const texture = gl.createTexture(), buffer = gl.createFramebuffer();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const rgba = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  bitmap.close();
  return { width, height, rgba };
}

// Returns hex digits; null on pages over plain http from another machine, which may not compute it.
export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Restores and degrades pictures away from the page's thread.
 *
 * Messages in:  {degrade, seed, pixels, width, height} or {restore, backend, pixels, width, height}
 * Messages out: {status}, {backend}, {progress: [done, of]}, {strip}, {degraded}, {done}, {error}
 * Pixels are RGBA bytes, row by row. To cancel, the page terminates the worker.
 */
import { degrade } from "./degrade.js";
import { paddedIndices, paddedSize, spans, tileSide } from "./tiling.js";

const PREVIEW = 2e6; // pixels of a stage's image, at most; the last stage keeps its full size
const MAX_THREADS = 8;
const ONE_THREAD = "one thread: the server does not send the headers for more (docs/web.md)";

let runtime = null; // {ort, provider}
let sessions = { network: null, runtime: null, chain: [] };

onmessage = async ({ data }) => {
  try {
    const pixels = new Uint8ClampedArray(data.pixels);
    if (data.degrade) {
      degrade(pixels, data.width, data.height, data.degrade, data.seed);
      postMessage({ degraded: pixels.buffer }, [pixels.buffer]);
    } else {
      await restore(data.restore, data.backend, pixels, data.width, data.height);
    }
  } catch (error) {
    postMessage({ error: explain(error) });
  }
};

async function restore(network, backend, pixels, width, height) {
  runtime ??= await startRuntime(backend);
  try {
    await restoreTiles(network, pixels, width, height);
  } catch (error) {
    if (runtime.provider !== "webgpu") throw error;
    console.warn(error);
    runtime = await startRuntime("wasm", "The graphics card could not restore this picture.");
    await restoreTiles(network, pixels, width, height);
  }
}

/** Load onnxruntime: with WebGPU where there is a graphics card, or else with WebAssembly. */
async function startRuntime(backend, reason = "There is no graphics card that WebGPU can use.") {
  let adapter = null;
  if (backend !== "wasm") adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const emulated = adapter?.info?.isFallbackAdapter ?? adapter?.isFallbackAdapter;
  const provider = adapter && (!emulated || backend === "webgpu") ? "webgpu" : "wasm";
  const ort = await import(`./ort/ort.${provider}.bundle.min.mjs`);
  const threads = Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS);
  ort.env.wasm.numThreads = self.crossOriginIsolated ? threads : 1;
  ort.env.logLevel = "error";
  const used = self.crossOriginIsolated ? `up to ${threads} threads` : ONE_THREAD;
  const processor = `Runs on the processor with ${used}. ${reason}`;
  postMessage({ backend: provider === "webgpu" ? "Runs on the graphics card." : processor });
  return { ort, provider };
}

/** Return the network's graphs as sessions, of which each takes the first output of the last. */
async function loadSessions(network) {
  if (sessions.network === network.name && sessions.runtime === runtime) return sessions.chain;
  postMessage({ status: `Loading the network (${(network.bytes / 1e6).toFixed(1)} MB) …` });
  await Promise.all(sessions.chain.map((session) => session.release()));
  sessions = { network: null, runtime: null, chain: [] };
  const chain = [];
  for (const file of network.files) {
    const answer = await fetch(file).catch(() => null);
    if (!answer?.ok) throw new Error(`${file} could not be loaded. Is the server running?`);
    const options = { executionProviders: [runtime.provider] };
    const bytes = new Uint8Array(await answer.arrayBuffer());
    chain.push(await runtime.ort.InferenceSession.create(bytes, options));
  }
  if (runtime.provider === "webgpu") await check(chain, network);
  sessions = { network: network.name, runtime, chain };
  return chain;
}

/** Compare what the graphics card makes of a pattern with what PyTorch made of it (web/build.py). */
async function check(chain, { channels, check: expected }) {
  const pattern = Float32Array.from({ length: channels * 64 * 64 }, (_, i) => ((i * 7919) % 256) / 255);
  const stages = await run(chain, new runtime.ort.Tensor("float32", pattern, [1, channels, 64, 64]));
  const { data } = stages.at(-1);
  const far = Math.max(...expected.map((value, i) => Math.abs(value - data[61 * i])));
  if (!(far < 0.5 / 255)) throw new Error(`the graphics card is wrong by ${255 * far} of 255`);
}

/** Restore tile by tile and post the picture strip by strip, from the top. */
async function restoreTiles(network, pixels, width, height) {
  const chain = await loadSessions(network);
  const started = performance.now();
  const grey = isGrey(pixels);
  const passes = network.channels === 3 ? [[0, 1, 2]] : (grey ? [0] : [0, 1, 2]).map((c) => [c]);
  const tile = tileSide(network);
  const fits = paddedSize(height, width, network).reduce((a, b) => a * b) <= tile ** 2;
  const [rows, columns] = [height, width].map((size) =>
    spans(size, fits ? size : tile, network.multiple_of),
  );
  const of = rows.length * columns.length * passes.length;
  postMessage({ progress: [0, of] });

  const last = network.sizes.stages - 1;
  let preview = 0; // stages but the last are made smaller by 2 ** preview
  while ((width * height) / 4 ** preview > PREVIEW) preview++;
  const shifts = Array.from({ length: last + 1 }, (_, k) => (k === last ? 0 : preview));
  let strips = shifts.map((shift) => new Strip([width, height], 0, rows[0].stop, shift));
  let done = 0;
  for (const [i, row] of rows.entries()) {
    for (const column of columns) {
      for (const channels of passes) {
        const part = cut(pixels, width, row, column, channels, network);
        const stages = await run(chain, part);
        stages.forEach((stage, k) => strips[k].add(stage, row, column, channels));
        postMessage({ progress: [++done, of] });
      }
    }
    const next = rows[i + 1] ?? { start: height, stop: height };
    strips = strips.map((strip, k) => {
      const image = strip.quantised(next.start, grey && network.channels, pixels);
      postMessage({ strip: { stage: k, ...image } }, [image.pixels.buffer]);
      return strip.carried(next);
    });
  }
  postMessage({ done: (performance.now() - started) / 1000 });
}

/** One tile as a 1×C×h×w tensor in [0,1], padded as the network needs it. */
function cut(pixels, width, row, column, channels, network) {
  const [h, w] = [row.stop - row.start, column.stop - column.start];
  const [height, wide] = paddedSize(row.padded, column.padded, network);
  const ys = paddedIndices(h, height, network.padding);
  const xs = paddedIndices(w, wide, network.padding);
  const values = new Float32Array(channels.length * height * wide);
  let at = 0;
  for (const channel of channels) {
    for (const y of ys) {
      const line = ((row.start + y) * width + column.start) * 4 + channel;
      for (const x of xs) values[at++] = y < 0 || x < 0 ? 0 : pixels[line + 4 * x] / 255;
    }
  }
  return new runtime.ort.Tensor("float32", values, [1, channels.length, height, wide]);
}

/** The stage images of a tile, first to last: [{data, dims}]. */
async function run(chain, tensor) {
  let outputs;
  for (const session of chain) {
    outputs = await session.run({ [session.inputNames[0]]: tensor });
    tensor = outputs[session.outputNames[0]];
  }
  const stages = chain.at(-1).outputNames.map((name) => outputs[name]);
  if (!Number.isFinite(stages.at(-1).data.reduce((a, b) => a + b, 0))) {
    throw new Error("the network made values of this picture that are not finite");
  }
  return stages;
}

/** Rows of a stage's image in floats, made smaller by 2 ** shift, to which tiles are added. */
class Strip {
  constructor([width, height], start, stop, shift) {
    Object.assign(this, { full: width, of: height, start, shift });
    this.width = Math.max(1, width >> shift);
    this.values = new Float32Array(3 * this.width * ((stop >> shift) - (start >> shift) + 1));
  }

  add({ data, dims }, row, column, channels) {
    const [h, w] = dims.slice(2);
    const { shift, width, values } = this;
    for (const [index, channel] of channels.entries()) {
      for (let y = 0; y < row.weights.length; y++) {
        const weight = row.weights[y] / 4 ** shift;
        const line = (((row.start + y) >> shift) - (this.start >> shift)) * width;
        for (let x = 0; x < column.weights.length; x++) {
          const place = (column.start + x) >> shift;
          if (place >= width) break;
          const value = data[(index * h + y) * w + x];
          values[3 * (line + place) + channel] += weight * column.weights[x] * value;
        }
      }
    }
  }

  /**
   * The rows up to `stop` as RGBA bytes; opacity is the original's. `mixed`, where given, is how
   * many channels a grey picture was restored in, of which it gets the mean.
   */
  quantised(stop, mixed, original) {
    const { shift, width, values } = this;
    const top = this.start >> shift;
    const height = (stop >> shift) - top;
    const pixels = new Uint8ClampedArray(4 * width * height); // clamps and rounds half to even
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const mean = mixed && (values[3 * at] + values[3 * at + 1] + values[3 * at + 2]) / mixed;
        for (let c = 0; c < 3; c++) {
          pixels[4 * at + c] = Math.fround(255 * (mixed ? mean : values[3 * at + c]));
        }
        pixels[4 * at + 3] = original[4 * (((top + y) << shift) * this.full + (x << shift)) + 3];
      }
    }
    return { top, width, height, of: this.of >> shift, pixels };
  }

  /** The strip of the next row of tiles, with what this one has of it. */
  carried({ start, stop }) {
    const next = new Strip([this.full, this.of], start, stop, this.shift);
    const before = 3 * this.width * ((start >> this.shift) - (this.start >> this.shift));
    next.values.set(this.values.subarray(before, before + next.values.length));
    return next;
  }
}

function isGrey(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i] !== pixels[i + 1] || pixels[i] !== pixels[i + 2]) return false;
  }
  return true;
}

function explain(error) {
  const text = String(error?.message ?? error);
  const memory = error instanceof RangeError || /memory|bad_alloc|allocat/i.test(text);
  if (memory) return "The memory was not enough. Close other tabs, or take a smaller picture.";
  return `The picture could not be restored: ${text}`;
}

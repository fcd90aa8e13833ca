/**
 * Rain, camera shake and noise for clean pictures: what dgunet/data/degradations.py does, with
 * other random numbers. `preset` has the parameters of one of its presets.
 */

/** Degrade RGBA bytes in place. The same seed gives the same result. */
export function degrade(pixels, width, height, preset, seed) {
  const random = new Random(seed);
  const add = { Rain: addRain, Blur: addBlur, Noise: addNoise }[preset.kind];
  add(pixels, width, height, preset, random);
}

/** Random numbers from a seed: mulberry32, a public-domain generator by Tommy Ettinger. */
class Random {
  constructor(seed) {
    this.state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b);
  }

  /** In [low, high). */
  uniform(low = 0, high = 1) {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let z = Math.imul(this.state ^ (this.state >>> 15), this.state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return low + ((high - low) * ((z ^ (z >>> 14)) >>> 0)) / 2 ** 32;
  }

  /** Of mean 0 and variance 1 (Box and Muller). */
  normal() {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Poisson numbers, as sums of such with a mean of at most 30 (Knuth). */
  poisson(mean) {
    let count = 0;
    for (let left = mean; left > 0; left -= 30) {
      const limit = Math.exp(-Math.min(left, 30));
      for (let product = this.uniform(); product > limit; product *= this.uniform()) count++;
    }
    return count;
  }
}

/** Noise of variance shot·x + (sigma/255)², on every value. */
function addNoise(pixels, width, height, { sigma, shot }, random) {
  for (let i = 0; i < pixels.length; i++) {
    if (i % 4 === 3) continue; // opacity
    const value = shot ? 255 * shot * random.poisson(pixels[i] / 255 / shot) : pixels[i];
    pixels[i] = value + sigma * random.normal();
  }
}

/** Streaks, blended over the picture as a screen: 1 − (1 − picture)(1 − streaks), layer by layer. */
function addRain(pixels, width, height, rain, random) {
  const between = ([low, high], fraction) => low + (high - low) * fraction;
  const density = random.uniform(...rain.density);
  const tilt = random.uniform(-rain.tilt, rain.tilt);
  const passed = new Float32Array(width * height).fill(1); // what passes through all layers
  for (let group = 0; group < 2 * rain.layers; group++) {
    const nearness = rain.layers > 1 ? (group >> 1) / (rain.layers - 1) : 0;
    const streak = streakKernel(
      between(rain.length, nearness) * random.uniform(0.75, 1.25),
      between(rain.width, nearness) * random.uniform(0.8, 1.2),
      tilt + 2.5 * random.normal(),
    );
    const margin = streak.radius; // drops fall beyond the borders, too
    const area = (width + 2 * margin) * (height + 2 * margin);
    const share = 0.25 ** nearness / (2 * rain.layers);
    const drops = random.poisson((density / 1000) * share * area);
    const layer = new Float32Array(width * height);
    for (let drop = 0; drop < drops; drop++) {
      const left = Math.floor(random.uniform(-margin, width + margin));
      const top = Math.floor(random.uniform(-margin, height + margin));
      const brightness = random.uniform(...rain.brightness) * random.uniform(0.3, 1);
      for (const { x, y, weight } of streak.taps) {
        const inside = left + x >= 0 && left + x < width && top + y >= 0 && top + y < height;
        if (inside) layer[(top + y) * width + left + x] += brightness * weight;
      }
    }
    for (let i = 0; i < layer.length; i++) passed[i] *= 1 - Math.min(layer[i], 1);
  }
  for (let i = 0; i < pixels.length; i++) {
    if (i % 4 !== 3) pixels[i] = 255 - (255 - pixels[i]) * passed[i >> 2];
  }
}

/** One streak, of peak 1: Gaussian across, bright in the middle and fading towards both ends. */
function streakKernel(length, width, angle) {
  const sigma = width / Math.sqrt(8 * Math.log(2));
  const radius = Math.ceil(length / 2 + 3 * sigma);
  const [sine, cosine] = [Math.sin((angle * Math.PI) / 180), Math.cos((angle * Math.PI) / 180)];
  const taps = [];
  for (let y = -radius; y <= radius; y++) {
    for (let x = -radius; x <= radius; x++) {
      const [along, across] = [x * sine + y * cosine, x * cosine - y * sine];
      const fade = Math.min(Math.max(2 - (4 * Math.abs(along)) / length, 0), 1);
      const weight = fade ** 2 * (3 - 2 * fade) * Math.exp(-0.5 * (across / sigma) ** 2);
      if (weight > 1e-3) taps.push({ x, y, weight });
    }
  }
  return { radius, taps };
}

/** Convolve with a camera's path in linear light, where exposures add up; borders reflected. */
function addBlur(pixels, width, height, { extent }, random) {
  const taps = shakeKernel(random.uniform(...extent), random);
  const light = Float32Array.from({ length: 256 }, (_, v) => toLinear(v / 255));
  const reflect = (place, size) => {
    const period = Math.max(1, 2 * (size - 1));
    const folded = ((place % period) + period) % period;
    return folded < size ? folded : period - folded;
  };
  const source = pixels.slice();
  const sums = new Float32Array(3 * width);
  for (let y = 0; y < height; y++) {
    sums.fill(0);
    for (const { x: dx, y: dy, weight } of taps) {
      const line = reflect(y - dy, height) * width;
      for (let x = 0; x < width; x++) {
        const inside = x - dx >= 0 && x - dx < width;
        const from = 4 * (line + (inside ? x - dx : reflect(x - dx, width)));
        for (let c = 0; c < 3; c++) sums[3 * x + c] += weight * light[source[from + c]];
      }
    }
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        pixels[4 * (y * width + x) + c] = 255 * fromLinear(Math.min(sums[3 * x + c], 1));
      }
    }
  }
}

/**
 * A camera's smooth random path: how long it spends at each pixel, at most `extent` / 2 from the
 * middle. Its velocity is a sum of slow oscillations, the slower the stronger.
 */
function shakeKernel(extent, random) {
  const steps = 2000;
  const waves = Array.from({ length: 6 }, (_, i) => ({
    rate: Math.PI * i,
    axes: [0, 1].map(() => ({
      phase: random.uniform(0, 2 * Math.PI),
      amplitude: random.normal() / Math.sqrt(1 + i),
    })),
  }));
  const place = [0, 0];
  const path = Array.from({ length: steps }, (_, step) => {
    const time = (step + 0.5) / steps;
    for (const axis of [0, 1]) {
      for (const { rate, axes } of waves) {
        place[axis] += axes[axis].amplitude * Math.cos(rate * time + axes[axis].phase);
      }
    }
    return [...place];
  });
  const mean = [0, 1].map((axis) => path.reduce((sum, p) => sum + p[axis], 0) / steps);
  const far = Math.max(...path.map((p) => Math.hypot(p[0] - mean[0], p[1] - mean[1])));
  const taps = new Map();
  for (const p of path) {
    const [y, x] = [0, 1].map((axis) => ((p[axis] - mean[axis]) * extent) / 2 / far);
    const [top, left] = [Math.floor(y), Math.floor(x)];
    for (const [down, right] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
      const weight = Math.abs(1 - down - y + top) * Math.abs(1 - right - x + left);
      const key = `${left + right},${top + down}`;
      taps.set(key, (taps.get(key) ?? 0) + weight / steps);
    }
  }
  return [...taps].map(([key, weight]) => {
    const [x, y] = key.split(",").map(Number);
    return { x, y, weight };
  });
}

const toLinear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const fromLinear = (v) => (v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055);

/** Large pictures tile by tile: the rules of dgunet/inference/tiling.py, for the browser. */

export const OVERLAP = 64; // pixels that neighbouring tiles share
const BYTES = 512 * 2 ** 20; // what one tile's forward pass may take
const FLOATS = 10; // of it, per pixel and channel of the U-Net's second level

/** The side of the largest square tile for a network, a multiple of what the network needs. */
export function tileSide({ sizes, multiple_of: multiple }) {
  const side = Math.sqrt(BYTES / (4 * FLOATS * (sizes.width + sizes.width_step)));
  return Math.max(Math.floor(side / multiple) * multiple, 4 * OVERLAP);
}

/**
 * Cut an axis into tiles of about equal size that overlap.
 *
 * Of the pixels that two neighbours share, the outer quarter on either side is thrown away, and
 * the half in between is blended. Returns [{start, stop, weights}]; at each pixel the weights of
 * all tiles add up to 1.
 */
export function spans(size, tile, overlap, multiple) {
  if (size <= tile) return [{ start: 0, stop: size, weights: new Float32Array(size).fill(1) }];
  const count = Math.ceil(size / (tile - overlap));
  const whole = Math.ceil(size / multiple) * multiple;
  const border = (i) =>
    i === count ? size : Math.floor(Math.floor((i * whole) / count) / multiple) * multiple;
  const rise = (i) => {
    const place = (i + 0.5) / overlap;
    return Math.sin((Math.PI / 2) * Math.min(Math.max(2 * place - 0.5, 0), 1)) ** 2;
  };
  return Array.from({ length: count }, (_, i) => {
    const start = Math.max(0, border(i) - overlap / 2);
    const stop = Math.min(size, border(i + 1) + overlap / 2);
    const weights = new Float32Array(stop - start).fill(1);
    for (let j = 0; j < overlap; j++) {
      if (i > 0) weights[j] *= rise(j);
      if (i < count - 1) weights[weights.length - 1 - j] *= rise(j);
    }
    return { start, stop, weights };
  });
}

/**
 * The source of every pixel along a padded axis: 0 … size − 1, then reflected without repeating
 * the border, or −1 (a zero) where `padding` is "zeros".
 */
export function paddedIndices(size, padded, padding) {
  const period = Math.max(1, 2 * (size - 1));
  return Int32Array.from({ length: padded }, (_, i) => {
    if (i < size) return i;
    if (padding === "zeros") return -1;
    const place = i % period;
    return place < size ? place : period - place;
  });
}

/** Height and width of a tile once it is padded to what the network takes. */
export function paddedSize(height, width, { multiple_of: multiple, min_long_side: least }) {
  const up = (size) => Math.ceil(size / multiple) * multiple;
  const sides = [up(height), up(width)];
  return Math.max(...sides) < least ? sides.map((side) => Math.max(side, up(least))) : sides;
}

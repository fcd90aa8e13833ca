/** Large pictures tile by tile: the rules of dgunet/inference/tiling.py, for the browser. */

const OVERLAP = 64; // pixels that neighbouring tiles share
const BYTES = 512 * 2 ** 20; // what one tile's forward pass may take
const FLOATS = 10; // of it, per pixel and channel of the U-Net's second level

/** The side of the largest square tile for a network, a multiple of what the network needs. */
export function tileSide({ sizes, multiple_of: multiple }) {
  const side = Math.sqrt(BYTES / (4 * FLOATS * (sizes.width + sizes.width_step)));
  return Math.max(Math.floor(side / multiple) * multiple, 4 * OVERLAP);
}

/**
 * Cut an axis into evenly spaced tiles of one size that overlap: [{start, stop, padded, weights}].
 * The last may have to be padded. At each pixel the weights of all tiles add up to 1.
 */
export function spans(size, tile, multiple) {
  const up = (value) => Math.ceil(value / multiple) * multiple;
  if (size <= tile) {
    return [{ start: 0, stop: size, padded: up(size), weights: new Float32Array(size).fill(1) }];
  }
  const count = Math.ceil((up(size) - OVERLAP) / (tile - OVERLAP));
  const padded = up(Math.ceil((up(size) + (count - 1) * OVERLAP) / count));
  const tiles = Array.from({ length: count }, (_, i) => {
    const free = up(size) - padded; // along which the tiles are spread
    const start = Math.floor(Math.floor((i * free) / (count - 1)) / multiple) * multiple;
    const stop = Math.min(start + padded, size);
    return { start, stop, padded, weights: new Float32Array(stop - start).fill(1) };
  });
  // Of the middle of what two neighbours share, the outer quarters belong to one of them alone.
  for (const [i, later] of tiles.slice(1).entries()) {
    const before = tiles[i];
    const begin = Math.floor((later.start + before.stop - OVERLAP) / 2);
    for (let x = later.start; x < before.stop; x++) {
      const place = Math.min(Math.max((2 * (x - begin + 0.5)) / OVERLAP - 0.5, 0), 1);
      const rise = Math.sin((Math.PI / 2) * place) ** 2;
      later.weights[x - later.start] *= rise;
      before.weights[x - before.start] *= 1 - rise;
    }
  }
  return tiles;
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

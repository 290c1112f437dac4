// Where in the picture the network sees a class. Maps are {height, width, classes, values}, with
// values [height, width, classes]: what the model puts out, or what `occlude` finds.

import { triangleFilter } from './preprocess.js';

const CELLS = 8; // Of a side of the map that is found by occlusion; each costs a prediction.
const BATCH = 8;
const GREY = [124, 116, 104]; // The mean colour of photographs, which says the least.
const SIDE = 256; // Of the drawn map, pixels.
// From the faintest heat to the hottest place.
const COLOURS = [
  [255, 236, 120],
  [255, 140, 20],
  [190, 0, 38],
];

/**
 * Covers the image with a grey square, place by place, and looks how much less sure the network
 * gets: Zeiler and Fergus, arXiv:1311.2901, section 4.2. Sureness is the logarithm of the odds,
 * since the probability of a confident prediction hardly moves.
 * @param classify takes images and their number, and promises {probabilities [number, classes]}.
 * @param {Uint8Array} image [side, side, 3]
 * @param {Float32Array} whole the probabilities of the image with nothing covered.
 * @param report is called with the finished share; if it returns true, the work stops.
 * @returns maps, or null when stopped.
 */
export async function occlude(classify, image, side, whole, report) {
  const stride = Math.ceil(side / CELLS);
  const cells = Math.ceil(side / stride);
  const classes = whole.length;
  const before = logOdds(whole, classes, 0);
  const values = new Float32Array(cells * cells * classes);
  for (let done = 0; done < cells * cells; done += BATCH) {
    const count = Math.min(BATCH, cells * cells - done);
    const images = new Uint8Array(count * image.length);
    for (let index = 0; index < count; index++) {
      const cell = done + index;
      const corner = [Math.floor(cell / cells), cell % cells].map((place) => (place - 0.5) * stride);
      const covered = cover(image, side, corner, 2 * stride);
      images.set(covered, index * image.length);
    }
    const { probabilities } = await classify(images, count);
    for (let index = 0; index < count; index++) {
      const after = logOdds(probabilities, classes, index);
      after.forEach((odds, label) => {
        values[(done + index) * classes + label] = before[label] - odds;
      });
    }
    if (report((done + count) / (cells * cells))) return null;
  }
  return { height: cells, width: cells, classes, values };
}

function cover(image, side, [top, left], size) {
  const covered = image.slice();
  for (let row = Math.max(0, Math.round(top)); row < Math.min(side, top + size); row++) {
    for (let column = Math.max(0, Math.round(left)); column < Math.min(side, left + size); column++) {
      covered.set(GREY, 3 * (row * side + column));
    }
  }
  return covered;
}

/** log(p / (1 - p)) of each class; 1 - p is the sum of the others, exact also where p is near 1. */
function logOdds(probabilities, classes, index) {
  const row = probabilities.subarray(index * classes, (index + 1) * classes);
  const tiny = 1e-30;
  return row.map((probability, label) => {
    let others = 0;
    row.forEach((other, place) => (others += place === label ? 0 : other));
    return Math.log(probability + tiny) - Math.log(others + tiny);
  });
}

/**
 * Draws the map of one class, transparent where it is cold. What speaks against the class counts
 * as none, and the hottest place as 1, whatever it is.
 * @returns {boolean} whether there is any heat.
 */
export function drawHeat(canvas, maps, label) {
  canvas.width = canvas.height = SIDE;
  const heat = upsample(maps, label);
  const hottest = heat.reduce((most, value) => Math.max(most, value), 0);
  if (!(hottest > 0)) return false;
  const context = canvas.getContext('2d');
  const drawn = context.createImageData(SIDE, SIDE);
  heat.forEach((value, place) => {
    const share = value / hottest;
    drawn.data.set([...colourOf(share), 255 * share], 4 * place);
  });
  context.putImageData(drawn, 0, 0);
  return true;
}

/** Float32Array [SIDE, SIDE]: the heat of one class, bilinear, nowhere negative. */
function upsample({ height, width, classes, values }, label) {
  const rows = triangleFilter(height, SIDE, 0, SIDE);
  const columns = triangleFilter(width, SIDE, 0, SIDE);
  const large = new Float32Array(SIDE * SIDE);
  rows.forEach((row, y) => {
    columns.forEach((column, x) => {
      let sum = 0;
      row.weights.forEach((vertical, i) => {
        column.weights.forEach((horizontal, j) => {
          const value = values[((row.start + i) * width + column.start + j) * classes + label];
          sum += vertical * horizontal * Math.max(0, value);
        });
      });
      large[y * SIDE + x] = sum;
    });
  });
  return large;
}

function colourOf(share) {
  const place = share * (COLOURS.length - 1);
  const below = Math.min(Math.floor(place), COLOURS.length - 2);
  const part = place - below;
  return COLOURS[below].map((value, i) => value + part * (COLOURS[below + 1][i] - value));
}

// From a picture to what the network takes: upright, on white, the shorter side resized with
// antialiasing, the middle cut out. A canvas that reduces a picture by itself skips pixels, and the
// network would see another picture than in training.

const ROWS_AT_ONCE = 256; // Phones limit the size of a canvas.

/** Decodes the bytes of an image file; EXIF's orientation is applied, colour profiles are not. */
export function decode(blob) {
  return createImageBitmap(blob, { colorSpaceConversion: 'none' });
}

/**
 * Where the square that the network sees lies.
 * @param {number} height of the picture, pixels; so is width.
 * @param {number} side of the square, pixels of the resized picture.
 * @param {number} shorter side of the resized picture.
 * @returns its first row and column, and the resized picture's height and width.
 */
export function centerCrop(height, width, side, shorter) {
  const scale = shorter / Math.min(height, width);
  const newHeight = Math.max(shorter, roundHalfToEven(height * scale));
  const newWidth = Math.max(shorter, roundHalfToEven(width * scale));
  return {
    newHeight,
    newWidth,
    top: Math.floor((newHeight - side) / 2),
    left: Math.floor((newWidth - side) / 2),
  };
}

/** Rounds as Python does. */
function roundHalfToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/**
 * What each pixel of a resized line is made of: the bilinear filter, a triangle, which is as many
 * times wider as the line gets shorter.
 * @returns for each of `count` pixels from `first` on: {start, weights}, of the line as it was.
 */
export function triangleFilter(length, newLength, first, count) {
  const scale = length / newLength;
  const reach = Math.max(scale, 1);
  return Array.from({ length: count }, (_, index) => {
    const center = (first + index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(length, Math.trunc(center + reach + 0.5));
    const weights = new Float64Array(end - start);
    for (let place = start; place < end; place++) {
      weights[place - start] = Math.max(0, 1 - Math.abs(place + 0.5 - center) / reach);
    }
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { start, weights: weights.map((weight) => weight / total) };
  });
}

/**
 * @param {ImageBitmap} picture
 * @returns {Uint8Array} [side, side, 3], RGB.
 */
export function prepare(picture, side, shorter) {
  const { height, width } = picture;
  const { newHeight, newWidth, top, left } = centerCrop(height, width, side, shorter);
  const columns = triangleFilter(width, newWidth, left, side);
  const rows = triangleFilter(height, newHeight, top, side);
  const firstRow = rows[0].start;
  const narrow = narrowRows(picture, columns, firstRow, endOf(rows) - firstRow);
  return mixRows(narrow, rows, firstRow, 3 * side);
}

function endOf(filter) {
  const last = filter[filter.length - 1];
  return last.start + last.weights.length;
}

/** Resizes rows of the picture horizontally; Uint8ClampedArray [count, columns, 3], rounded. */
function narrowRows(picture, columns, firstRow, count) {
  const left = columns[0].start;
  const width = endOf(columns) - left;
  const canvas = new OffscreenCanvas(width, Math.min(count, ROWS_AT_ONCE));
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const narrow = new Uint8ClampedArray(count * columns.length * 3);
  let out = 0;
  for (let done = 0; done < count; done += ROWS_AT_ONCE) {
    const height = Math.min(ROWS_AT_ONCE, count - done);
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, height);
    context.drawImage(picture, left, firstRow + done, width, height, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    for (let row = 0; row < height; row++) {
      for (const { start, weights } of columns) {
        let [red, green, blue] = [0, 0, 0];
        let place = 4 * (row * width + start - left);
        for (const weight of weights) {
          red += weight * data[place];
          green += weight * data[place + 1];
          blue += weight * data[place + 2];
          place += 4;
        }
        narrow[out++] = red;
        narrow[out++] = green;
        narrow[out++] = blue;
      }
    }
  }
  return narrow;
}

/** Resizes vertically: [rows given, rowLength] to Uint8Array [rows of the filter, rowLength]. */
function mixRows(values, filter, firstRow, rowLength) {
  const mixed = new Uint8ClampedArray(filter.length * rowLength); // Rounds; a Uint8Array would cut.
  filter.forEach(({ start, weights }, row) => {
    for (let column = 0; column < rowLength; column++) {
      let sum = 0;
      weights.forEach((weight, index) => {
        sum += weight * values[(start - firstRow + index) * rowLength + column];
      });
      mixed[row * rowLength + column] = sum;
    }
  });
  return new Uint8Array(mixed.buffer);
}

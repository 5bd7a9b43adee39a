// Faces in pictures: detection, crops, expressions and landmarks, with ONNX Runtime Web.
//
// Coordinates are pixels of the picture; a box is [left, top, right, bottom]. Crops and their
// resizing follow inference/detector.py and OpenCV, so that probabilities equal predict.py's.

import * as ort from "./ort.js";

const MIN_SCORE = 0.5; // of a detection
const MAX_OVERLAP = 0.4; // intersection over union of two detected faces
const STRIDE = 32; // pixels of the detector's input per cell
// Anchors of Tiny Face Detector in cells, from face-api's src/tinyFaceDetector/const.ts.
const ANCHORS = [[1.603231, 2.094468], [6.041143, 7.080126], [2.882459, 3.518061],
  [4.266906, 5.178857], [9.041765, 10.66308]];
const BOX_LIFT = 0.1; // of the first crop above a detected box, in box sides
const ALIGNMENTS = 2; // of a picture's crops, by their landmarks
const BATCH = 8; // faces per call of the network
// Longer sides to which a picture is resized for the detection. Faces of about 100 pixels are found
// best, and a border lets faces be found that fill the picture.
const PHOTO_SIZES = [96, 192, 400, 832], CAMERA_SIZES = [160, 320];
const BORDER = 32;
const DETECT_EVERY = 400; // milliseconds between detections while faces are tracked
const MAX_GAP = 1500; // milliseconds without a detection, after which a track ends
const SMOOTH = 300; // milliseconds, time constant of the average of probabilities
const MIN_IOU = 0.3; // of the boxes of one face

// A function with one SIMD instruction (i8x16.splat, then v128.any_true).
const SIMD_MODULE = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 127, 3, 2, 1, 0,
  10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 83, 11]);

export const hasSimd = () => typeof WebAssembly === "object" && WebAssembly.validate(SIMD_MODULE);

/** Download the files of the page, and return a predictor. `onProgress(loaded, total)` in bytes. */
export async function loadPredictor(onProgress = () => {}) {
  const settings = await (await download("model.json")).json();
  const total = Object.values(settings.files).reduce((sum, size) => sum + size);
  let loaded = 0;
  const contents = await Promise.all(Object.keys(settings.files).map(async (name) => {
    const chunks = [], reader = (await download(name)).body.getReader();
    for (let part; !(part = await reader.read()).done;) {
      chunks.push(part.value);
      onProgress(loaded += part.value.length, total);
    }
    return [name, await new Blob(chunks).arrayBuffer()];
  }));
  const files = Object.fromEntries(contents);
  Object.assign(ort.env.wasm, {
    numThreads: 1, // threads need HTTP headers that a static host may not set
    wasmBinary: files["ort.wasm"],
    wasmPaths: { mjs: new URL("ort-wasm.js", import.meta.url).href },
  });
  const session = (name) => ort.InferenceSession.create(new Uint8Array(files[name]),
    { executionProviders: ["wasm"] });
  const network = await session("model.onnx"), detector = await session("detector.onnx");
  return new Predictor(settings, network, detector, files);
}

async function download(name) {
  let reason;
  try {
    const response = await fetch(new URL(name, import.meta.url));
    if (response.ok) return response;
    reason = `HTTP ${response.status}`;
  } catch {
    reason = "no connection";
  }
  throw new Error(`${name} could not be loaded (${reason})`);
}

class Predictor {
  constructor(settings, network, detector, files) {
    Object.assign(this, settings); // class_names, image_width, channels, mean_face, margin, lift
    this.network = network;
    this.detector = detector;
    this.files = files;
    this.queue = Promise.resolve(); // ONNX Runtime Web has one call at a time
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
  }

  run(session, pixels, shape) {
    const call = () => session.run({ pixels: new ort.Tensor("uint8", pixels, shape) });
    return (this.queue = this.queue.then(call, call));
  }

  /** Return boxes of faces in a canvas, resized to each of `sizes`, the best first. */
  async detect(source, sizes) {
    const boxes = [], longer = Math.max(source.width, source.height);
    for (const size of new Set(sizes.map((value) => Math.min(value, 2 * longer)))) {
      const scale = size / longer;
      const width = Math.max(1, Math.round(source.width * scale));
      const height = Math.max(1, Math.round(source.height * scale));
      const padded = (value) => Math.ceil((value + 2 * BORDER) / STRIDE) * STRIDE;
      this.canvas.width = padded(width); // also clears it
      this.canvas.height = padded(height);
      this.context.imageSmoothingQuality = "high";
      this.context.drawImage(source, BORDER, BORDER, width, height);
      const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
      const shape = [1, this.canvas.height, this.canvas.width, 4];
      const { cells } = await this.run(this.detector, new Uint8Array(data.buffer), shape);
      boxes.push(...decode(cells).map(({ box, score }) => ({
        box: box.map((value) => (value - BORDER) / scale), score,
      })));
    }
    boxes.sort((a, b) => b.score - a.score);
    return suppress(boxes.map(({ box }) => box));
  }

  /**
   * Predict the faces in crop boxes of an ImageData. `maps` has the contribution of each cell of
   * the crop to the logit of each class, as in models/explain.py.
   */
  async predict(image, cropBoxes) {
    const { image_width: side, channels, class_names: names } = this, faces = [];
    const size = channels * side * side;
    for (let start = 0; start < cropBoxes.length; start += BATCH) {
      const boxes = cropBoxes.slice(start, start + BATCH);
      const pixels = new Uint8Array(boxes.length * size);
      boxes.forEach((box, i) => pixels.set(crop(image, box, side, channels), i * size));
      const output = await this.run(this.network, pixels, [boxes.length, channels, side, side]);
      const mapSide = output.maps.dims[3];
      boxes.forEach((cropBox, i) => {
        const row = (tensor, n) => Array.from(tensor.data.subarray(i * n, (i + 1) * n));
        const values = row(output.landmarks, 136), landmarks = [];
        const [left, top, right, bottom] = cropBox;
        for (let k = 0; k < values.length; k += 2) landmarks.push([
          (values[k] + 0.5) * (right - left) / side - 0.5 + left,
          (values[k + 1] + 0.5) * (bottom - top) / side - 0.5 + top,
        ]);
        const probabilities = row(output.probabilities, names.length);
        const cells = row(output.maps, names.length * mapSide ** 2);
        const maps = names.map((_, k) => cells.slice(k * mapSide ** 2, (k + 1) * mapSide ** 2));
        faces.push({ cropBox, probabilities, landmarks, maps });
      });
    }
    return faces;
  }

  /** Predict a picture that is one tightly cropped face, as predict.py --cropped. */
  async predictCropped(image) {
    const [face] = await this.predict(image, [[0, 0, image.width, image.height]]);
    return [{ ...face, box: face.cropBox }];
  }

  /** Detect and predict the faces of a canvas, the largest first. */
  async predictPicture(source) {
    const image = source.getContext("2d").getImageData(0, 0, source.width, source.height);
    const detected = await this.detect(source, PHOTO_SIZES);
    const first = detected.map((box) => cropAround(box, 1, BOX_LIFT));
    let aligned = first;
    for (let i = 0; i < ALIGNMENTS; i++) {
      aligned = (await this.predict(image, aligned)).map((face) => this.align(face.landmarks));
    }
    // Landmarks move far away from what is not a face, and join two detections of one face.
    const plausible = aligned.filter((box, i) => iou(box, first[i]) > MIN_IOU);
    const faces = await this.predict(image, suppress(plausible));
    faces.forEach((face) => (face.box = this.boxOf(face.cropBox)));
    return faces.sort((a, b) => width(b.box) - width(a.box));
  }

  /** Return the crop box in which landmarks have the mean face's position and size. */
  align(landmarks) {
    const [x, y] = mean(landmarks), [meanX, meanY] = mean(this.mean_face);
    const scale = Math.sqrt(spread(landmarks) / spread(this.mean_face));
    const side = Math.max(1, Math.round(scale * this.image_width)); // pixels of the picture
    const corner = [x - scale * (meanX + 0.5) + 0.5, y - scale * (meanY + 0.5) + 0.5];
    const [left, top] = corner.map(Math.round);
    return [left, top, left + side, top + side];
  }

  /** Return the detector's box that inference/detector.py would have expanded to a crop box. */
  boxOf([left, top, right, bottom]) {
    const side = (right - left) / this.margin;
    const x = (left + right) / 2, y = (top + bottom) / 2 + this.lift * side;
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2];
  }
}

/** Faces of a camera: the crop follows the landmarks, and a detection now and then finds faces. */
export class Tracker {
  constructor(predictor) {
    Object.assign(this, { predictor, tracks: [], detected: -Infinity, detections: 0 });
  }

  /** Return the faces of the canvas `source` at a time in milliseconds. */
  async update(source, time) {
    const { predictor } = this;
    const image = source.getContext("2d").getImageData(0, 0, source.width, source.height);
    if (!this.tracks.length || time - this.detected > DETECT_EVERY) {
      this.detected = time;
      const size = CAMERA_SIZES[this.detections++ % CAMERA_SIZES.length]; // in turn, to save time
      for (const box of await predictor.detect(source, [size])) {
        const cropBox = cropAround(box, 1, BOX_LIFT);
        const track = this.tracks.find((other) => iou(other.next, cropBox) > MIN_IOU);
        if (track) track.seen = time;
        else this.tracks.push({ next: cropBox, seen: time });
      }
    }
    this.tracks = this.tracks.filter(({ seen }) => time - seen <= MAX_GAP);
    const faces = await predictor.predict(image, this.tracks.map(({ next }) => next));
    this.tracks.forEach((track, i) => {
      const keep = track.probabilities ? Math.exp((track.time - time) / SMOOTH) : 0;
      const probabilities = faces[i].probabilities.map(
        (value, k) => (keep ? keep * track.probabilities[k] : 0) + (1 - keep) * value);
      const next = predictor.align(faces[i].landmarks);
      Object.assign(track, faces[i], { probabilities, time, next, box: predictor.boxOf(next) });
    });
    // A crop that jumps has lost its face.
    this.tracks = this.tracks.filter(({ next, cropBox }) => iou(next, cropBox) > MIN_IOU);
    return this.tracks;
  }
}

// Geometry

const width = ([left, , right]) => right - left;

function mean(points) {
  const sum = points.reduce(([a, b], [x, y]) => [a + x, b + y], [0, 0]);
  return sum.map((value) => value / points.length);
}

function spread(points) {
  const [x, y] = mean(points);
  return points.reduce((sum, [px, py]) => sum + (px - x) ** 2 + (py - y) ** 2, 0);
}

export function iou(a, b) {
  const side = (i) => Math.max(0, Math.min(a[i + 2], b[i + 2]) - Math.max(a[i], b[i]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const intersection = side(0) * side(1);
  return intersection / Math.max(area(a) + area(b) - intersection, 1e-9);
}

/** Remove boxes that overlap an earlier one. */
function suppress(boxes) {
  const kept = [];
  for (const box of boxes) if (kept.every((other) => iou(box, other) < MAX_OVERLAP)) kept.push(box);
  return kept;
}

/** Return a square crop box around a box. */
function cropAround([left, top, right, bottom], margin, lift) {
  const size = (right - left + bottom - top) / 2, side = Math.max(1, Math.round(margin * size));
  const x = Math.round((left + right - side) / 2);
  const y = Math.round((top + bottom - side) / 2 - lift * size);
  return [x, y, x + side, y + side];
}

/** Return the boxes of the detector's output [1, rows, columns, 5 anchors x 5 values]. */
function decode({ data, dims: [, rows, columns] }) {
  const sigmoid = (value) => 1 / (1 + Math.exp(-value)), found = [];
  for (let i = 0; i < data.length; i += 5) {
    const score = sigmoid(data[i + 4]);
    if (score < MIN_SCORE) continue;
    const anchor = (i / 5) % 5, cell = Math.floor(i / 25);
    const x = (cell % columns) + sigmoid(data[i]);
    const y = Math.floor(cell / columns) % rows + sigmoid(data[i + 1]);
    const w = Math.exp(data[i + 2]) * ANCHORS[anchor][0] / 2;
    const h = Math.exp(data[i + 3]) * ANCHORS[anchor][1] / 2;
    found.push({ score, box: [x - w, y - h, x + w, y + h].map((value) => value * STRIDE) });
  }
  return found;
}

// Crops

/** Crop a box of an ImageData as `side` x `side` pixels: Uint8Array [channels, side, side]. */
export function crop(image, [left, top, right, bottom], side, channels) {
  const xs = taps(right - left, bottom - top, side), ys = taps(bottom - top, right - left, side);
  const clamp = (value, size) => Math.min(Math.max(value, 0), size - 1); // repeats border pixels
  const round = Math.fround; // OpenCV computes in 32 bits
  const rows = new Map(); // resized horizontally, [3 x side]
  const row = (y) => {
    if (!rows.has(y)) {
      const values = new Float32Array(3 * side);
      const start = clamp(y + top, image.height) * image.width;
      xs.forEach((list, i) => {
        for (const [x, weight] of list) {
          const from = 4 * (start + clamp(x + left, image.width));
          for (let c = 0; c < 3; c++) values[3 * i + c] += round(weight * image.data[from + c]);
        }
      });
      rows.set(y, values);
    }
    return rows.get(y);
  };
  const pixels = new Uint8Array(channels * side * side), line = new Float32Array(3 * side);
  const isHalved = right - left === 2 * side && bottom - top === 2 * side;
  ys.forEach((list, i) => {
    line.fill(isHalved ? 1e-3 : 0); // OpenCV rounds half up there, and else half to even
    for (const [y, weight] of list) {
      row(y).forEach((value, k) => (line[k] += round(weight * value)));
    }
    const bytes = Uint8ClampedArray.from(line); // rounds half to even
    for (let k = 0; k < side; k++) {
      const at = i * side + k, [r, g, b] = bytes.subarray(3 * k, 3 * k + 3);
      if (channels === 3) [r, g, b].forEach((value, c) => (pixels[c * side * side + at] = value));
      else pixels[at] = (9798 * r + 19235 * g + 3735 * b + 16384) >> 15; // cv2.COLOR_RGB2GRAY
    }
  });
  return pixels;
}

/**
 * Return [source pixel, weight] pairs for each of `side` pixels along one axis, as cv2.resize:
 * INTER_CUBIC to enlarge, INTER_AREA to reduce, which is linear if the other axis is enlarged.
 */
function taps(size, otherSize, side) {
  const scale = size / side, all = [];
  const area = side <= Math.min(size, otherSize), cubic = side >= Math.max(size, otherSize);
  const inside = (value) => Math.min(Math.max(value, 0), size - 1);
  for (let i = 0; i < side; i++) {
    const list = [];
    if (cubic) {
      const center = (i + 0.5) * scale - 0.5, first = Math.floor(center), f = center - first;
      cubicWeights(f).forEach((weight, k) => list.push([inside(first - 1 + k), weight]));
    } else if (area) {
      const from = i * scale, to = from + scale;
      for (let x = Math.floor(from); x < Math.min(to, size); x++) {
        list.push([x, (Math.min(x + 1, to) - Math.max(x, from)) / scale]);
      }
    } else {
      const x = Math.floor(i * scale), f = i + 1 - (x + 1) / scale, fraction = f <= 0 ? 0 : f % 1;
      list.push([inside(x), 1 - fraction], [inside(x + 1), fraction]);
    }
    all.push(list.map(([index, weight]) => [index, Math.fround(weight)]));
  }
  return all;
}

function cubicWeights(f) {
  const a = -0.75, near = (x) => ((a + 2) * x - (a + 3)) * x * x + 1;
  const far = (x) => ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return [far(f + 1), near(f), near(1 - f), far(2 - f)];
}

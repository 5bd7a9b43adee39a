// The page: input, drawing, predictions, messages. face.js has the network; export.py joins both.

import { Tracker, hasSimd, loadPredictor } from "./face.js";

const MAX_SIDE = 3000; // pixels; larger pictures are scaled down
const SHOWN_SIDES = [640, 1600]; // pixels: smallest and largest longer side of the canvas
const MAX_CARDS = 12; // faces with bars; all faces are marked in the picture
const ANNOUNCE_EVERY = 3000; // milliseconds between announcements of the camera's prediction
const BLUE = "#2166ac", RED = "#e0523c";
const HEAT_RED = [214, 40, 20], HEAT_BLUE = [33, 102, 172], HEAT_OPACITY = 190; // of 255
const MESSAGES = {
  simd: "This browser has no WebAssembly SIMD, which the network needs. Update it, or use a recent "
    + "Firefox, Chrome, Edge or Safari.",
  noFace: "No face was found. The detector finds upright faces of at least a twentieth of the "
    + "picture's longer side. If the picture is one tightly cropped face, tick the box below it.",
  insecure: "The browser allows the camera only over https, or on this computer (localhost).",
  NotAllowedError: "The camera is blocked. Allow this page to use it in the browser's settings of "
    + "this site, then try again.",
  NotFoundError: "No camera was found. Connect one, then try again.",
  NotReadableError: "The camera is used by another program. Close it, then try again.",
  ended: "The camera was disconnected.",
  clipboard: "The clipboard has no picture.",
};

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d");
const source = document.createElement("canvas"); // the picture at full size
const pixels = source.getContext("2d", { willReadFrequently: true });
const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
let faces = []; // of the picture that is shown
let job = 0; // number of the latest picture; results of earlier ones are dropped
let hasPicture = false; // the source has one, or a camera's frame
let stream = null; // of the camera

export const ready = load(); // the predictor

async function load() {
  try {
    if (!hasSimd()) throw new Error(MESSAGES.simd);
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    const predictor = await loadPredictor((loaded, total) => {
      const text = `Loading the network: ${megabytes(loaded)} of ${megabytes(total)} MB`;
      $("progress-text").textContent = loaded < total ? text : "Starting the network";
      $("progress").value = loaded / total;
    });
    document.body.dataset.ready = "";
    return predictor;
  } catch (error) {
    const text = error.message === MESSAGES.simd ? error.message
      : `The network could not be started: ${error.message}. Reload the page.`;
    showAlert(text);
    for (const control of document.querySelectorAll("button, input")) control.disabled = true;
    return new Promise(() => {}); // nothing that waits for the network runs
  } finally {
    $("loading").hidden = true;
  }
}

// Pictures

async function openFile(file) {
  stopCamera();
  const current = ++job;
  showAlert("");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    showAlert(`${file.name || "The picture"} cannot be read as a picture. It may be damaged, too `
      + "large, or of a format that this browser does not know.");
    return;
  }
  if (current !== job) return;
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  source.width = Math.max(1, Math.round(bitmap.width * scale));
  source.height = Math.max(1, Math.round(bitmap.height * scale));
  pixels.imageSmoothingQuality = "high";
  pixels.drawImage(bitmap, 0, 0, source.width, source.height);
  const notice = scale < 1 ? `The picture was scaled down from ${bitmap.width} × ${bitmap.height} `
    + `to ${source.width} × ${source.height} pixels.` : "";
  bitmap.close();
  await predictPicture(notice);
}

async function predictPicture(notice = "") {
  const current = ++job;
  hasPicture = true;
  showFaces([]);
  $("hint").textContent = "Predicting …";
  const predictor = await ready;
  await new Promise(requestAnimationFrame); // shows the picture first
  const cropped = $("cropped").checked;
  const image = pixels.getImageData(0, 0, source.width, source.height);
  const found = cropped ? await predictor.predictCropped(image)
    : await predictor.predictPicture(source);
  if (current !== job) return;
  showFaces(found);
  showAlert(found.length ? notice : MESSAGES.noFace, !found.length);
  $("hint").textContent = "No face";
  $("status").textContent = found.length ? summary(found) : "";
}

// Camera

async function startCamera() {
  const current = ++job;
  showAlert("");
  if (!navigator.mediaDevices) return showAlert(MESSAGES.insecure);
  try {
    const wanted = { facingMode: "user", width: { ideal: 640 }, height: { ideal: 480 } };
    const opened = await navigator.mediaDevices.getUserMedia({ video: wanted });
    if (current !== job) return opened.getTracks().forEach((track) => track.stop());
    stream = video.srcObject = opened;
    await video.play();
  } catch (error) {
    stopCamera();
    return showAlert(MESSAGES[error.name] ?? `The camera could not be opened (${error.message}).`);
  }
  stream.getVideoTracks()[0].addEventListener("ended", () => {
    stopCamera();
    showAlert(MESSAGES.ended);
  });
  setCameraControls(true);
  $("status").textContent = "The camera is on.";
  return runCamera();
}

async function runCamera() {
  const own = stream, predictor = await ready, tracker = new Tracker(predictor);
  let times = [], announced = { time: 0, text: "" };
  while (own && stream === own) {
    await new Promise((resolve) => (video.requestVideoFrameCallback
      ? video.requestVideoFrameCallback(resolve) : requestAnimationFrame(resolve)));
    if (stream !== own) return;
    source.width = video.videoWidth;
    source.height = video.videoHeight;
    pixels.setTransform(-1, 0, 0, 1, source.width, 0); // as in a mirror
    pixels.drawImage(video, 0, 0);
    hasPicture = true;
    const time = performance.now(), tracks = await tracker.update(source, time);
    if (stream !== own) return;
    showFaces(tracks);
    $("hint").textContent = "No face";
    times = [...times.filter((earlier) => time - earlier < 1000), time];
    $("speed").textContent = `${times.length} frames/s`;
    const text = tracks.length ? summary(tracks, false) : "No face";
    if (text !== announced.text && time - announced.time > ANNOUNCE_EVERY) {
      $("status").textContent = text;
      announced = { time, text };
    }
  }
}

function stopCamera() {
  if (stream) {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = stream = null;
    job++;
    $("status").textContent = "The camera is off.";
  }
  setCameraControls(false);
}

function setCameraControls(isOn) {
  $("camera").setAttribute("aria-pressed", isOn);
  $("camera").textContent = isOn ? "Stop the camera" : "Use the camera";
  $("speed").hidden = !isOn;
  $("speed").textContent = "";
  $("cropped").disabled = isOn;
}

// Output

const percent = (value) => `${Math.round(100 * value)} %`;
const bestOf = ({ probabilities }) => probabilities.indexOf(Math.max(...probabilities));
let names = [];
ready.then((predictor) => (names = predictor.class_names));

function summary(list, withValues = true) {
  const texts = list.map((face) => {
    const best = bestOf(face);
    return names[best] + (withValues ? ` ${percent(face.probabilities[best])}` : "");
  });
  return `${list.length === 1 ? "1 face" : `${list.length} faces`}: ${texts.join(", ")}`;
}

function showAlert(text, isError = true) {
  $("alert").textContent = text;
  $("alert").classList.toggle("error", isError);
  $("alert").hidden = !text;
}

function showFaces(list) {
  faces = list;
  const cards = $("faces"), count = Math.min(list.length, MAX_CARDS);
  while (cards.children.length > count) cards.lastChild.remove();
  while (cards.children.length < count) cards.append(createCard());
  list.slice(0, count).forEach((face, i) => updateCard(cards.children[i], face, i));
  $("hint").hidden = count > 0;
  $("more").hidden = list.length <= count;
  $("more").textContent = `And ${list.length - count} more, marked in the picture only.`;
  draw();
}

function createCard() {
  const card = element("article", "face"), title = element("h2");
  title.append(element("span"), element("small"));
  const rows = names.map((name) => {
    const row = element("li"), bar = element("span", "bar");
    bar.append(element("i"));
    row.append(element("span", "", name), bar, element("span"));
    return row;
  });
  const list = element("ul");
  list.append(...rows);
  card.append(title, list);
  return card;
}

function updateCard(card, face, i) {
  const best = bestOf(face), [name, number] = card.firstChild.children;
  name.textContent = names[best];
  number.textContent = faces.length > 1 ? `Face ${i + 1}` : "";
  [...card.lastChild.children].forEach((row, k) => {
    const value = face.probabilities[k];
    row.className = k === best ? "best" : "";
    row.children[1].firstChild.style.width = `${100 * value}%`;
    row.lastChild.textContent = percent(value);
  });
}

function element(kind, className = "", text = "") {
  return Object.assign(document.createElement(kind), { className, textContent: text });
}

/** Draw the picture, resized to a size that is visible, with its faces. */
function draw() {
  if (!hasPicture) return;
  const longer = Math.max(source.width, source.height);
  const [smallest, largest] = SHOWN_SIDES;
  const scale = Math.min(Math.max(1, smallest / longer), largest / longer);
  canvas.width = Math.max(1, Math.round(source.width * scale));
  canvas.height = Math.max(1, Math.round(source.height * scale));
  canvas.hidden = false;
  $("empty").hidden = true;
  $("viewer").classList.add("filled");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  $("heat-note").hidden = !$("heat").checked || !faces.length;
  // One pixel of the screen; the canvas fits into its element.
  const unit = Math.max(canvas.width / canvas.clientWidth, canvas.height / canvas.clientHeight);
  for (const [i, face] of faces.entries()) {
    if ($("heat").checked) drawHeat(face, scale);
    if ($("landmarks").checked) drawLandmarks(face, scale, unit);
    if ($("boxes").checked) drawBox(face, scale, unit, i);
  }
  const content = faces.length ? `Picture with ${summary(faces, !stream)}` : "Picture";
  canvas.setAttribute("aria-label", content);
}

function drawBox(face, scale, unit, i) {
  const [left, top, right, bottom] = face.box.map((value) => value * scale);
  context.lineWidth = 2.5 * unit;
  context.strokeStyle = context.fillStyle = BLUE;
  context.strokeRect(left, top, right - left, bottom - top);
  const best = bestOf(face), number = faces.length > 1 ? `${i + 1}: ` : "";
  const text = `${number}${names[best]} ${percent(face.probabilities[best])}`;
  const size = Math.min(Math.max((right - left) / 7, 11 * unit), 15 * unit);
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const width = context.measureText(text).width + size, height = 1.7 * size;
  const outside = top >= height ? top - height : bottom;
  const y = outside + height <= canvas.height ? outside : Math.max(0, top);
  const x = Math.min(Math.max(0, left - 1.25 * unit), Math.max(0, canvas.width - width));
  context.fillRect(x, y, width, height);
  context.fillStyle = "#fff";
  context.fillText(text, x + size / 2, y + height / 2);
}

function drawLandmarks({ box, landmarks }, scale, unit) {
  const radius = Math.max(0.8 * unit, (box[2] - box[0]) * scale / 85);
  context.fillStyle = RED;
  context.beginPath();
  for (const [x, y] of landmarks) {
    const point = [(x + 0.5) * scale, (y + 0.5) * scale];
    context.moveTo(point[0] + radius, point[1]);
    context.arc(...point, radius, 0, 2 * Math.PI);
  }
  context.fill();
}

/** Draw where the crop raises the logit of the predicted class (red) and lowers it (blue). */
function drawHeat(face, scale) {
  const heat = face.maps[bestOf(face)], side = Math.sqrt(heat.length);
  const map = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const image = new ImageData(side, side), largest = Math.max(1e-9, ...heat.map(Math.abs));
  heat.forEach((value, i) => {
    const color = value > 0 ? HEAT_RED : HEAT_BLUE;
    image.data.set([...color, HEAT_OPACITY * Math.abs(value) / largest], 4 * i);
  });
  map.getContext("2d").putImageData(image, 0, 0);
  const [left, top, right, bottom] = face.cropBox.map((value) => value * scale);
  context.drawImage(map, left, top, right - left, bottom - top);
}

// Events

$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) openFile(target.files[0]);
  target.value = ""; // the same file can be chosen again
});
$("example").addEventListener("click", async () => {
  $("cropped").checked = false;
  const { files } = await ready;
  openFile(new File([files["example.jpg"]], "example.jpg"));
});
$("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
$("cropped").addEventListener("change", () => hasPicture && predictPicture());
for (const id of ["boxes", "landmarks", "heat"]) $(id).addEventListener("change", draw);
addEventListener("resize", draw);
addEventListener("unhandledrejection", ({ reason }) => {
  showAlert(`The prediction failed (${reason?.message ?? reason}). Reload the page.`);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("viewer").classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) $("viewer").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("viewer").classList.remove("over");
  if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
});
addEventListener("paste", ({ clipboardData }) => {
  const [file] = clipboardData.files;
  if (file) openFile(file);
  else showAlert(MESSAGES.clipboard);
});

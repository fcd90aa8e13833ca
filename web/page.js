/** The page: takes a picture, has worker.js restore it, and shows what comes back. */
const TASKS = {
  Denoising: "Denoise",
  Deraining: "Derain",
  Deblurring: "Deblur",
  Compressive_Sensing: "Compressive sensing",
};
const MEGAPIXELS = 50; // at most
const $ = (id) => document.getElementById(id);
const backend = new URLSearchParams(location.search).get("backend"); // webgpu, wasm or null

let catalogue = { networks: [], presets: [], examples: [] };
let picture = null; // {name, width, height, pixels, target}, pixels as they were loaded
let target = null; // what the picture should look like, if that is known: RGBA bytes
let stages = []; // one canvas each, first stage first
let worker = null;

// Pictures ------------------------------------------------------------------------------------

async function decode(blob, name) {
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw new Error(
      `${name} is not a picture that this browser can open. Choose a JPEG, PNG or WebP; for ` +
        "TIFF and others there is demo.py.",
    );
  });
  const { width, height } = bitmap;
  if (width * height > MEGAPIXELS * 1e6) {
    const size = Math.round((width * height) / 1e6);
    throw new Error(
      `${name} has ${size} megapixels, and this page takes up to ${MEGAPIXELS}. Make it smaller, ` +
        "or restore it with demo.py.",
    );
  }
  const canvas = new OffscreenCanvas(width, height);
  context(canvas).drawImage(bitmap, 0, 0);
  bitmap.close();
  return { width, height, pixels: read(canvas) };
}

async function load(name, blob, targetBlob = null) {
  stop();
  say(`Opening ${name} …`);
  try {
    const opened = await decode(blob, name);
    const known = targetBlob ? (await decode(targetBlob, name)).pixels : null;
    picture = { name, ...opened, target: known };
  } catch (error) {
    return fail(error.message);
  }
  $("picture-name").textContent = `${name}, ${picture.width} × ${picture.height} pixels`;
  $("preset").value = "";
  showInput(picture.pixels, picture.target);
  $("empty").hidden = true;
  $("pictures").hidden = false;
  $("restore").disabled = false;
  say(`${name} is ready to be restored.`);
}

async function loadExample({ name, input, target: url, task }) {
  const fetched = async (path) => (await fetch(path)).blob();
  await load(name, await fetched(input), await fetched(url));
  choose(defaultOf(task));
}

function showInput(pixels, known) {
  target = known;
  const { width, height } = picture;
  draw($("before"), { top: 0, width, height, of: height, pixels });
  stages = [];
  $("after").replaceChildren();
  for (const id of ["divider", "compare", "unfolding", "scores", "download"]) $(id).hidden = true;
  zoom(false);
}

function draw(canvas, { top, width, height, of, pixels }) {
  if (canvas.width !== width || canvas.height !== of) Object.assign(canvas, { width, height: of });
  if (height) context(canvas).putImageData(new ImageData(pixels, width, height), 0, top);
}

// Work ----------------------------------------------------------------------------------------

function ask(message, pixels, onAnswer) {
  worker ??= new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onerror = (event) => {
    stop();
    fail(`The page could not start its worker (${event.message ?? "unknown"}). Load it again.`);
  };
  worker.onmessage = ({ data }) => {
    if (data.status) say(data.status);
    else if (data.backend) $("backend").textContent = data.backend;
    else if (data.error) {
      stop(); // with a new worker the memory is free again
      fail(data.error);
    } else onAnswer(data);
  };
  const copy = pixels.slice().buffer;
  const { width, height } = picture;
  worker.postMessage({ ...message, pixels: copy, width, height }, [copy]);
  $("error").textContent = "";
  busy(true);
}

function degrade() {
  stop();
  if (!picture) return;
  const preset = catalogue.presets.find(({ name }) => name === $("preset").value);
  if (!preset) return showInput(picture.pixels, picture.target);
  const task = { Rain: "Deraining", Blur: "Deblurring", Noise: "Denoising" }[preset.kind];
  const suited = catalogue.networks.filter((network) => network.task === task);
  choose(suited.find(({ degradation }) => degradation === preset.name) ?? defaultOf(task));
  say(`Adding ${preset.label} …`);
  ask({ degrade: preset, seed: Number($("seed").value) }, picture.pixels, ({ degraded }) => {
    showInput(new Uint8ClampedArray(degraded), picture.pixels);
    busy(false);
    say(`Added ${preset.label}. The picture is ready to be restored.`);
  });
}

function restore(event) {
  event.preventDefault();
  if (!picture || !$("working").hidden) return;
  const network = catalogue.networks.find(({ name }) => name === $("network").value);
  const pixels = read($("before"));
  showInput(pixels, target);
  if (network.channels === 1) target = pixels; // what was measured
  stages = Array.from({ length: network.sizes.stages }, () => document.createElement("canvas"));
  const started = performance.now();
  say("Restoring …");
  ask({ restore: network, backend }, pixels, ({ progress, strip, done }) => {
    if (progress) showProgress(...progress, started);
    if (strip) {
      draw(stages[strip.stage], strip);
      if (!strip.top && strip.stage === stages.length - 1) showAfter();
    }
    if (done) finish(network, done);
  });
}

function showProgress(done, of, started) {
  if (of > 1) $("progress").value = done / of;
  const left = ((performance.now() - started) / 1000 / done) * (of - done);
  const time = left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`;
  $("tiles").textContent = of > 1 ? `${done} of ${of} tiles${done ? `, ${time} left` : ""}` : "";
}

function showAfter(stage = stages.length - 1) {
  const last = stage === stages.length - 1;
  stages.forEach((canvas, k) => {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `After stage ${k + 1}`);
  });
  $("after").replaceChildren(stages[stage]);
  $("after-name").textContent = last ? "After" : `Stage ${stage + 1}`;
  for (const id of ["divider", "compare"]) $(id).hidden = false;
  [...$("stages").children].forEach((item, k) =>
    item.firstChild.setAttribute("aria-pressed", k === stage),
  );
  divide();
}

function finish(network, seconds) {
  const after = read(stages.at(-1));
  const rows = [];
  if (target) {
    if (network.channels === 3) rows.push(["PSNR before", psnr(read($("before")), target)]);
    rows.push([network.channels === 3 ? "PSNR after" : "PSNR", psnr(after, target)]);
  }
  rows.push(["Time", `${seconds.toFixed(1)} s`]);
  $("scores").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  $("stages").replaceChildren(...stages.map(thumbnail));
  for (const id of ["scores", "download", "unfolding"]) $(id).hidden = false;
  showAfter();
  $("frame").scrollIntoView({ block: "nearest" });
  const cancelled = document.activeElement === $("cancel");
  busy(false);
  if (cancelled) $("download").focus();
  say(`${picture.name} is restored.`);
}

function thumbnail(canvas, k) {
  const button = element("button", "");
  const small = element("canvas", "");
  const scale = Math.min(1, 288 / canvas.width);
  Object.assign(small, { width: canvas.width * scale, height: canvas.height * scale || 1 });
  small.getContext("2d").drawImage(canvas, 0, 0, small.width, small.height);
  button.type = "button";
  const known = target && canvas.width === picture.width;
  const score = known ? `, ${psnr(read(canvas), target)}` : "";
  button.append(small, element("span", `Stage ${k + 1}${score}`));
  button.onclick = () => showAfter(k);
  const item = element("li", "");
  item.append(button);
  return item;
}

/** End what the worker does. A new one is started when it is needed. */
function stop() {
  if (!$("working").hidden) {
    worker?.terminate();
    worker = null;
  }
  busy(false);
  $("error").textContent = "";
}

function cancel() {
  stop();
  showInput(read($("before")), target);
  say("Cancelled.");
  $("restore").focus();
}

function download() {
  stages.at(-1).toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${picture.name.replace(/\.[^.]*$/, "")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }, "image/png");
}

/** PSNR in dB over all values of the three colours of 8-bit pictures. */
function psnr(first, second) {
  let sum = 0;
  for (let i = 0; i < first.length; i++) if (i % 4 !== 3) sum += (first[i] - second[i]) ** 2;
  if (!sum) return "∞";
  return `${(10 * Math.log10((255 ** 2 * 0.75 * first.length) / sum)).toFixed(2)} dB`;
}

// The page ------------------------------------------------------------------------------------

function context(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

function read(canvas) {
  return context(canvas).getImageData(0, 0, canvas.width, canvas.height).data;
}

function element(tag, text) {
  return Object.assign(document.createElement(tag), { textContent: text });
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function say(text) {
  $("status").textContent = text;
}

function fail(message) {
  busy(false);
  say("");
  $("error").textContent = message;
}

function busy(working) {
  $("working").hidden = !working;
  $("restore").hidden = working;
  $("tiles").textContent = "";
  if (working) $("progress").removeAttribute("value");
}

/** Move the line between before and after; in a picture larger than the frame it stays in view. */
function divide() {
  const frame = $("frame");
  const { width } = $("pictures").getBoundingClientRect();
  const seen = Math.min(width, frame.clientWidth);
  const x = frame.scrollLeft + (seen * $("slider").value) / 100;
  $("after").style.clipPath = `inset(0 0 0 ${x}px)`;
  $("divider").style.left = `${x}px`;
}

function drag(event) {
  if (!event.buttons || $("compare").hidden) return;
  const frame = $("frame").getBoundingClientRect();
  const box = $("pictures").getBoundingClientRect();
  const left = Math.max(frame.left, box.left);
  $("slider").value = (100 * (event.clientX - left)) / Math.min(box.width, frame.width);
  divide();
}

function zoom(actual) {
  $("frame").classList.toggle("actual", actual);
  $("frame").tabIndex = actual ? 0 : -1; // the arrow keys scroll it
  $("zoom").setAttribute("aria-pressed", actual);
  const { style } = $("pictures");
  style.setProperty("--aspect", picture.width / picture.height);
  style.width = actual ? `${picture.width / devicePixelRatio}px` : "";
  divide();
}

function choose(network) {
  if (!network) return;
  document.querySelector(`[name=task][value=${network.task}]`).checked = true;
  const options = catalogue.networks.filter(({ task }) => task === network.task);
  $("network").replaceChildren(...options.map(({ name, label }) => new Option(capital(label), name)));
  $("network").value = network.name;
}

function defaultOf(task) {
  const networks = catalogue.networks.filter((network) => network.task === task);
  return networks.find((network) => network.default) ?? networks[0];
}

function fill() {
  for (const [task, label] of Object.entries(TASKS)) {
    if (!defaultOf(task)) continue;
    const choice = element("label", "");
    const radio = Object.assign(element("input", ""), { type: "radio", name: "task", value: task });
    radio.onchange = () => choose(defaultOf(task));
    choice.append(radio, label);
    $("tasks").append(choice);
    if ($("tasks").children.length === 1) radio.onchange();
  }
  for (const { name, label } of catalogue.presets) {
    $("preset").append(new Option(capital(label), name));
  }
  for (const example of catalogue.examples) {
    const button = Object.assign(element("button", ""), { type: "button" });
    const image = Object.assign(element("img", ""), { src: example.input, alt: "" });
    button.append(image, element("span", example.label));
    button.title = example.title;
    button.onclick = () => loadExample(example).catch((error) => fail(error.message));
    const item = element("li", "");
    item.append(button);
    $("examples").append(item);
  }
}

function listen() {
  $("panel").onsubmit = restore;
  $("file").onchange = ({ target: { files } }) => files[0] && load(files[0].name, files[0]);
  $("preset").onchange = $("seed").onchange = degrade;
  $("cancel").onclick = cancel;
  $("download").onclick = download;
  $("slider").oninput = divide;
  $("zoom").onclick = () => zoom($("zoom").getAttribute("aria-pressed") === "false");
  $("frame").onscroll = divide;
  $("pictures").onpointerdown = $("pictures").onpointermove = drag;
  window.onresize = divide;
  window.ondragover = (event) => {
    event.preventDefault();
    $("frame").classList.add("over");
  };
  window.ondragleave = () => $("frame").classList.remove("over");
  window.ondrop = (event) => {
    event.preventDefault();
    $("frame").classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) load(file.name, file);
  };
}

listen();
try {
  catalogue = await (await fetch("catalogue.json")).json();
  fill();
  say("");
} catch {
  fail("The page is not complete: catalogue.json is missing. Build it with `make web`.");
}

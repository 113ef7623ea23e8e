"use strict";
// The numbers here are those of tokens.py: component k of a token is its code times scales[k].
const data = JSON.parse(document.getElementById("data").textContent);
const { patients, encoders, positions, one } = data;
const num = positions.length, pitch = positions[1] - positions[0], cells = data.canvas_px / data.cell_px;
const MAX_SIDE = Math.min(10, Math.floor((num - 1) / data.per_cell)), MIN_REMOVED = 2;
const SHADES = 256, OPACITY = 0.75;
const element = id => document.getElementById(id);
const named = number => `${one} ${number + 1}`;
const capital = text => text[0].toUpperCase() + text.slice(1);
const signed = value => value.toFixed(2).replace("-", "−");
const state = {
  patient: 0, encoder: 0, patch: "token", side: 1, row: num >> 1, col: num >> 1,
  isPinned: false, isMirrored: false, colour: "similarity", square: null, drag: null,
};

// Tokens ----------------------------------------------------------------------------------------------------------

function decoded(text) {
  // Of 16 bits like the sums: loops that see one type of array alone are several times as fast.
  const raw = atob(text), codes = new Int16Array(raw.length);
  for (let i = 0; i < raw.length; i++) codes[i] = raw.charCodeAt(i) << 24 >> 24;
  return codes;
}

/** The codes of an encoder: [canvases, locations, locations, components], mirrored canvases last. */
function codesOf(encoder) {
  encoder.codes ??= decoded(document.querySelectorAll("script.tokens")[encoders.indexOf(encoder)].textContent);
  return encoder.codes;
}

/** For every location: `sums` of the codes of the side × side cells that begin there, and the lengths of these sums. */
function composed(encoder, side) {
  if (encoder.composed?.side === side) return encoder.composed;
  const K = encoder.scales.length, step = data.per_cell, size = num - (side - 1) * step, codes = codesOf(encoder);
  const canvases = codes.length / (num * num * K);
  let sums = codes;
  if (side > 1) {
    const wide = new Int16Array(canvases * num * size * K);
    for (let line = 0; line < canvases * num; line++)
      for (let part = 0; part < side; part++) {
        const from = (line * num + part * step) * K, to = line * size * K;
        for (let i = 0; i < size * K; i++) wide[to + i] += codes[from + i];
      }
    sums = new Int16Array(canvases * size * size * K);
    for (let canvas = 0; canvas < canvases; canvas++)
      for (let part = 0; part < side; part++) {
        const from = (canvas * num + part * step) * size * K, to = canvas * size * size * K;
        for (let i = 0; i < size * size * K; i++) sums[to + i] += wide[from + i];
      }
  }
  const lengths = new Float64Array(canvases * size * size), squares = encoder.scales.map(scale => scale * scale);
  for (let i = 0; i < lengths.length; i++) {
    let sum = 0;
    for (let k = 0; k < K; k++) sum += squares[k] * sums[i * K + k] * sums[i * K + k];
    lengths[i] = Math.sqrt(sum);
  }
  return (encoder.composed = { side, size, sums, lengths, squares });
}

/** Cosines of one place with all places of every patient's canvas, and the best of each. */
function search(encoder, place) {
  const { size, sums, lengths, squares } = composed(encoder, place.side), K = squares.length;
  const from = (place.canvas * size + place.row) * size + place.col, own = lengths[from];
  const weights = Float64Array.from(squares, (square, k) => square * sums[from * K + k]);
  return patients.map((_, patient) => {
    const cosines = new Float64Array(size * size), first = patient * size * size;
    let best = 0;
    for (let i = 0; i < cosines.length; i++) {
      const length = own * lengths[first + i];
      let sum = 0;
      for (let k = 0, at = (first + i) * K; k < K; k++) sum += weights[k] * sums[at + k];
      cosines[i] = length > 0 ? sum / length : 0;
      if (cosines[i] > cosines[best]) best = i;
    }
    const row = Math.floor(best / size), col = best % size;
    return { cosines, row, col, score: cosines[best], margin: cosines[best] - bestOutside(cosines, size, row, col) };
  });
}

function bestOutside(cosines, size, row, col) {
  let best = -Infinity;
  for (let r = 0; r < size; r++)
    for (let c = 0; c < size; c++)
      if (Math.abs(r - row) > data.per_cell || Math.abs(c - col) > data.per_cell)
        best = Math.max(best, cosines[r * size + c]);
  return best;
}

/** Cosine of the sum of all tokens with that sum without the square's tokens. */
function cosineWithout(encoder, place) {
  const K = encoder.scales.length, step = data.per_cell, codes = codesOf(encoder);
  const whole = new Float64Array(K), rest = new Float64Array(K);
  for (let r = place.row % step; r < num; r += step)
    for (let c = place.col % step; c < num; c += step) {
      const isRemoved = r >= place.row && r < place.row + place.side * step &&
        c >= place.col && c < place.col + place.side * step;
      for (let k = 0, at = ((place.canvas * num + r) * num + c) * K; k < K; k++) {
        const value = encoder.scales[k] * codes[at + k];
        whole[k] += value;
        if (!isRemoved) rest[k] += value;
      }
    }
  const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
  return dot(whole, rest) / Math.sqrt(dot(whole, whole) * dot(rest, rest)) || 0;
}

// Places ----------------------------------------------------------------------------------------------------------

const sizeOf = side => num - (side - 1) * data.per_cell;
const centre = (index, side) => positions[index] + (side - 1) * data.cell_px / 2;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** The location whose patch of some cells lies centred nearest to a place in pixels. */
const nearest = (px, side) => clamp(Math.round((px - centre(0, side)) / pitch), 0, sizeOf(side) - 1);

/** What is looked for: the patch, or on the mirrored canvas its mirror image. */
function sought() {
  const { patient, side, row, col } = state;
  if (!state.isMirrored) return { canvas: patient, side, row, col };
  return { canvas: patients.length + patient, side, row, col: sizeOf(side) - 1 - col };
}

/** The landmark within a cell of the patch, and where it puts the patch in every patient. */
function landmarkHere() {
  const row = centre(state.row, state.side), col = centre(state.col, state.side);
  let found = null, least = data.cell_px;
  for (const [name, other, ...at] of patients[state.patient].landmarks) {
    const distance = Math.hypot(row - at[0], col - at[1]);
    if (distance <= least) [found, least] = [{ name, wanted: state.isMirrored ? other : name, down: row - at[0], right: col - at[1] }, distance];
  }
  if (found === null) return null;
  const right = state.isMirrored ? -found.right : found.right;
  const expected = patients.map(({ landmarks }) => {
    const at = landmarks.find(([name]) => name === found.wanted);
    return at && { row: at[2] + found.down, col: at[3] + right };
  });
  return { ...found, expected };
}

const toReference = px => px * 1024 / data.canvas_px;

// Drawing ---------------------------------------------------------------------------------------------------------

/** Blue below 0, transparent at 0, orange above; from −1 to 1. */
const shades = new Uint8ClampedArray(4 * SHADES);
for (let i = 0; i < SHADES; i++) {
  const value = 2 * i / (SHADES - 1) - 1, strength = Math.abs(value);
  const colour = value < 0 ? [40, 120, 255] : [255, 90 + 150 * strength ** 4, 20 + 60 * strength ** 8];
  shades.set([...colour, 255 * OPACITY * strength ** 2], 4 * i);
}
const shade = value => 4 * Math.round((clamp(value, -1, 1) + 1) / 2 * (SHADES - 1));

function paint(canvas, width, height, write, frame) {
  const context = canvas.getContext("2d"), image = new ImageData(width, height);
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  for (let i = 0; i < width * height; i++) write(image.data, 4 * i, i);
  context.putImageData(image, 0, 0);
  if (frame) place(canvas, frame);
}

/** Put an element over a square of a picture, given in canvas pixels. */
function place(item, { row, col, side }) {
  const percent = px => `${100 * px / data.canvas_px}%`;
  item.style.top = percent(row);
  item.style.left = percent(col);
  if (side !== undefined) item.style.width = item.style.height = percent(side);
}

const frameOf = side => ({ row: centre(0, side) - pitch / 2, col: centre(0, side) - pitch / 2, side: sizeOf(side) * pitch });
const patchAt = (row, col, side) => {
  const own = side * data.cell_px;
  return { row: centre(row, side) - own / 2, col: centre(col, side) - own / 2, side: own };
};
const squareAt = ([row, col, side]) => ({ row: row * data.canvas_px, col: col * data.canvas_px, side: side * data.canvas_px });

function paintValues(canvas, values, size, top, frame) {
  paint(canvas, size, size, (pixels, at, i) => {
    const from = shade(values[i] / top);
    for (let channel = 0; channel < 4; channel++) pixels[at + channel] = shades[from + channel];
  }, frame);
}

function paintComponents(canvas, encoder, patient) {
  const codes = codesOf(encoder), K = encoder.scales.length, [low, high] = encoder.stretch;
  paint(canvas, num, num, (pixels, at, i) => {
    for (let k = 0; k < 3; k++) {
      const code = codes[(patient * num * num + i) * K + k];
      pixels[at + k] = 255 * (code - low[k]) / Math.max(high[k] - low[k], 1);
    }
    pixels[at + 3] = 200;
  }, frameOf(1));
}

function paintLegend(low, high, isShown) {
  const [from, bar, to] = element("legend").children, canvas = bar.firstElementChild;
  element("legend").hidden = !isShown;
  [from.textContent, to.textContent] = [low, high];
  paint(canvas, SHADES, 1, (pixels, at, i) => {
    for (let channel = 0; channel < 4; channel++) pixels[at + channel] = shades[4 * i + channel];
  });
}

// The page --------------------------------------------------------------------------------------------------------

const query = element("query"), [queryImage, queryMap, patchFrame] = query.children;
const tiles = patients.map(({ image }, patient) => {
  const item = document.createElement("li"), button = document.createElement("button");
  const picture = document.createElement("span"), caption = document.createElement("small");
  const [photo, map] = [new Image(), document.createElement("canvas")];
  const [match, expected] = [document.createElement("i"), document.createElement("i")];
  [button.type, picture.className, match.className, expected.className] = ["button", "picture", "match", "expected"];
  [photo.src, photo.alt] = [image, ""];
  map.setAttribute("aria-hidden", "true");
  picture.append(photo, map, match, expected);
  button.append(picture, caption);
  item.append(button);
  button.addEventListener("click", () => lookFrom(patient));
  element("gallery").append(item);
  return { item, caption, map, match, expected };
});

function show(tile, frame, lines, isBest) {
  place(tile.match, frame);
  tile.item.classList.toggle("best", isBest);
  const name = document.createElement("b");
  name.textContent = lines[0];
  tile.caption.replaceChildren(name, ...lines.slice(1).flatMap(line => [document.createElement("br"), line]));
}

function tell(headline, answer, note) {
  [element("headline").textContent, element("answer").textContent, element("note").textContent] = [headline, answer, note];
  clearTimeout(tell.timer);
  // Once the patch rests: a screen reader is not to be flooded.
  tell.timer = setTimeout(() => { element("said").textContent = `${headline}. ${answer}`; }, 500);
}

function renderSearch(encoder) {
  const found = search(encoder, sought()), here = landmarkHere(), isRemoving = state.patch === "remove";
  const candidates = [...patients.keys()].filter(patient => state.isMirrored || patient !== state.patient);
  const best = candidates.reduce((a, b) => found[b].score > found[a].score ? b : a);
  const top = Math.max(...found.map(({ score }) => score), 1e-9);
  const errors = [];
  for (const patient of candidates) {
    const { row, col, score, margin, cosines } = found[patient], tile = tiles[patient], expected = here?.expected[patient];
    const lines = [capital(named(patient)), `cosine ${signed(score)}`, `margin ${signed(margin)}`];
    if (expected) {
      const error = toReference(Math.hypot(centre(row, state.side) - expected.row, centre(col, state.side) - expected.col));
      errors.push(error);
      lines.push(`error ${Math.round(error)} px`);
      place(tile.expected, expected);
    }
    tile.expected.hidden = !expected;
    show(tile, patchAt(row, col, state.side), lines, patient === best);
    Object.assign(tile.item.dataset, { row, col, score, margin });
    if (state.colour === "similarity") paintValues(tile.map, cosines, sizeOf(state.side), top, frameOf(state.side));
  }
  if (state.colour === "similarity") paintValues(queryMap, found[state.patient].cosines, sizeOf(state.side), top, frameOf(state.side));
  place(patchFrame, patchAt(state.row, state.col, state.side));
  paintLegend(`−${top.toFixed(2)}`, `+${top.toFixed(2)}`, state.colour === "similarity");
  errors.sort((a, b) => a - b);
  const { score, margin } = found[best];
  const where = here ? `${capital(named(state.patient))}, near ${here.name}: ` : "";
  const median = errors.length ? ` Median error over ${errors.length} ${one}s: ${Math.round(errors[errors.length >> 1])} px.` : "";
  if (!isRemoving) {
    const cross = here ? `The cross in a picture: where its ${state.isMirrored ? here.wanted : here.name} puts the patch.` : "";
    tell(`Best match: ${named(best)}`, `${where}cosine ${signed(score)}, margin ${signed(margin)}.${median}`, cross);
    return;
  }
  const rest = cosineWithout(encoder, sought());
  const outside = encoder.outside == null ? "" :
    ` Where the encoder was run on pictures without a square, ${Math.round(100 * encoder.outside)} % of the change fell outside it; at 0 % the arithmetic would be exact.`;
  tell(
    `What is lost is most like ${named(best)}`,
    `${state.side} × ${state.side} cells removed: the embedding keeps cosine ${signed(rest)} with itself. The nearest sum of as many tokens: cosine ${signed(score)}.${median}`,
    `Arithmetic: the square's tokens are taken out of the sum; the encoder is not run again.${outside}`,
  );
}

function renderSquare(encoder) {
  const cosines = encoder.removed[state.patient][state.square], changed = encoder.changed[state.patient][state.square];
  const best = cosines.indexOf(Math.max(...cosines)), rank = 1 + cosines.filter(cosine => cosine > cosines[state.patient]).length;
  for (const [patient, tile] of tiles.entries()) {
    tile.expected.hidden = true;
    const lines = [capital(named(patient)), `cosine ${signed(cosines[patient])}`];
    show(tile, squareAt(patients[patient].squares[state.square]), lines, patient === best);
    Object.assign(tile.item.dataset, { score: cosines[patient] });
    if (state.colour === "similarity") tile.map.width = 0;
  }
  const top = Math.max(...changed.flat(), 1e-9);
  if (state.colour === "similarity") paintValues(queryMap, changed.flat(), changed.length, top, { row: 0, col: 0, side: data.canvas_px });
  place(patchFrame, squareAt(patients[state.patient].squares[state.square]));
  paintLegend("", "", false);
  tell(
    best === state.patient ? `It finds the right ${one}'s square` : `It finds ${named(best)}'s square`,
    `The encoder was run on ${named(state.patient)} with the square set to black. What the embedding lost is compared with one square of each ${one}: ` +
      `its own comes ${rank === 1 ? "first" : `in place ${rank}`} of ${patients.length}. Colour: how much each token of the picture changed.`,
    "",
  );
}

function render() {
  render.isScheduled = false;
  const encoder = encoders[state.encoder], isRemoving = state.patch === "remove", isMeasured = state.square !== null;
  const isMirrorable = state.patient < data.num_mirrored && !isRemoving;
  state.isMirrored &&= isMirrorable;
  Object.assign(element("mirrored"), { disabled: !isMirrorable, checked: state.isMirrored });
  element("mirrored").parentElement.title = isMirrorable ? "" : isRemoving ? "Not with a removed square" : `Mirrored tokens are there of ${one}s 1 to ${data.num_mirrored}`;
  element("patient").value = state.patient;
  if (queryImage.src !== patients[state.patient].image) queryImage.src = patients[state.patient].image;
  query.setAttribute("aria-label", `${capital(named(state.patient))}, row ${state.row + 1} and column ${state.col + 1} of ${sizeOf(state.side)}`);
  query.classList.toggle("pinned", state.isPinned && !isRemoving);
  document.body.classList.toggle("removed", isMeasured);
  Object.assign(query.dataset, { row: state.row, col: state.col, side: state.side });
  tiles.forEach(({ item }, patient) => { item.hidden = patient === state.patient && !state.isMirrored && !isMeasured; });
  const squares = isRemoving && encoder.removed ? patients[state.patient].squares : [];
  element("squares").hidden = !squares.length;
  for (const button of element("squares").lastElementChild.children)
    button.setAttribute("aria-pressed", Number(button.value) === state.square);
  element("keys").textContent = isRemoving
    ? "Draw a square on the picture. Arrow keys move it, plus and minus change its size."
    : "Click pins the patch, Escape frees it. Arrow keys move it by half a cell, with Shift by more. A click on another picture looks from there.";
  for (const [patient, { map }] of [...tiles.entries(), [state.patient, { map: queryMap }]])
    if (state.colour === "components") paintComponents(map, encoder, patient);
    else if (state.colour === "none") map.width = 0;
  if (isMeasured) renderSquare(encoder);
  else renderSearch(encoder);
}

function change(values) {
  Object.assign(state, values);
  if (!render.isScheduled) requestAnimationFrame(render);
  render.isScheduled = true;
}

/** Take another patch, centred where the last one was. */
function resize(side, values = {}) {
  const [row, col] = [state.row, state.col].map(index => nearest(centre(index, state.side), side));
  change({ side, row, col, square: null, ...values });
}

function lookFrom(patient) {
  const { row, col } = tiles[patient].item.dataset;
  const moved = state.square === null ? { row: Number(row), col: Number(col) } : {};
  change({ patient, ...moved, isPinned: true });
  query.focus();
}

// Controls --------------------------------------------------------------------------------------------------------

patients.forEach((_, patient) => element("patient").add(new Option(patient + 1, patient)));
element("patient").addEventListener("change", event => change({ patient: Number(event.target.value) }));
encoders.forEach(({ name }, number) => {
  const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
  Object.assign(input, { type: "radio", name: "encoder", value: number, checked: number === 0 });
  text.textContent = name;
  label.append(input, text);
  element("encoders").append(label);
});
element("encoders").addEventListener("change", event => change({ encoder: Number(event.target.value) }));
element("colours").addEventListener("change", event => change({ colour: event.target.value }));
element("mirrored").addEventListener("change", event => change({ isMirrored: event.target.checked }));
element("patches").addEventListener("change", ({ target: { value } }) => {
  resize({ token: 1, composed: 2, remove: Math.min(5, MAX_SIDE) }[value], { patch: value, isPinned: false });
});
(patients[0].squares).forEach((_, number) => {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", value: number, textContent: number + 1 });
  button.addEventListener("click", () => change({ square: state.square === number ? null : number }));
  element("squares").lastElementChild.append(button);
});

// Pointer and keys ------------------------------------------------------------------------------------------------

function pointed(event) {
  const { left, top, width } = query.getBoundingClientRect(), toPixels = data.canvas_px / width;
  return { row: (event.clientY - top) * toPixels, col: (event.clientX - left) * toPixels };
}
const locationAt = ({ row, col }, side = state.side) => ({ row: nearest(row, side), col: nearest(col, side) });

query.addEventListener("pointermove", event => {
  const here = pointed(event);
  if (state.patch !== "remove") {
    if (!state.isPinned) change(locationAt(here));
  } else if (state.drag) {
    const extent = Math.max(Math.abs(here.row - state.drag.row), Math.abs(here.col - state.drag.col));
    if (extent < data.cell_px) return;
    const side = clamp(Math.round(extent / data.cell_px), MIN_REMOVED, MAX_SIDE);
    const middle = { row: state.drag.row + (here.row - state.drag.row) / 2, col: state.drag.col + (here.col - state.drag.col) / 2 };
    change({ side, ...locationAt(middle, side), square: null });
  }
});
query.addEventListener("pointerdown", event => {
  if (event.pointerType !== "touch" || state.patch === "remove") query.setPointerCapture(event.pointerId);
  if (state.patch === "remove") change({ drag: pointed(event), square: null, ...locationAt(pointed(event)) });
});
for (const kind of ["pointerup", "pointercancel"]) query.addEventListener(kind, () => change({ drag: null }));
query.addEventListener("click", event => {
  if (state.patch === "remove") return;
  const here = locationAt(pointed(event)), isSame = here.row === state.row && here.col === state.col;
  change({ ...here, isPinned: !(state.isPinned && isSame) });
});
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
query.addEventListener("keydown", event => {
  const isRemoving = state.patch === "remove", larger = { "+": 1, "=": 1, "-": -1 }[event.key];
  if (event.key in MOVES) {
    const far = event.shiftKey ? 2 * data.per_cell : 1, last = sizeOf(state.side) - 1, [down, right] = MOVES[event.key];
    change({ row: clamp(state.row + far * down, 0, last), col: clamp(state.col + far * right, 0, last), isPinned: true, square: null });
  } else if (isRemoving && larger) resize(clamp(state.side + larger, MIN_REMOVED, MAX_SIDE));
  else if (event.key === "Escape") change({ isPinned: false, square: null });
  else if (event.key === "Enter" || event.key === " ") change({ isPinned: !state.isPinned });
  else return;
  event.preventDefault();
});
render();

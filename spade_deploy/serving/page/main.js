// The page: puts its parts together, and keeps what is chosen.

import {Begin} from "./begin.js";
import {Controls} from "./controls.js";
import {Drawing} from "./drawing.js";
import {isInBrowser, openEngine} from "./engine.js";
import {Film} from "./film.js";
import {Input} from "./input.js";
import {unpackDrawing} from "./link.js";
import {Palette} from "./palette.js";
import {encodeIds} from "./png.js";
import {fromRuns, toRuns} from "./runs.js";
import {Save} from "./save.js";
import {fillHelp, listen} from "./shortcuts.js";
import {colorsOf, groundOf, templatesOf} from "./starts.js";
import {hideNotice, showLatency, showLoaded, showNotice, showState} from "./status.js";
import {Style} from "./style.js";
import {fillTexts, label, text, told} from "./texts.js";
import {makeTools} from "./tools.js";
import {$, make, remember, remembered, say} from "./ui.js";
import {View} from "./view.js";

const LOSSLESS_PIXELS = 512 * 512;  // above it the live photo comes as WebP; what is saved never does
const SAVE_AFTER_MS = 800;
const MOST_KEPT = 500_000;  // numbers of run lengths; a browser keeps about 5 MB

class App {
  model = null;
  drawing = null;
  ground = 0;
  film = new Film();
  #models = [];
  #drawings = new Map();
  #saveTimer = 0;
  #saidTimer = 0;

  // api: an Engine, see engine.js.
  constructor(api) {
    this.api = api;
    fillTexts(document);
    fillHelp();
    document.title = text("title");
    this.palette = new Palette();
    this.view = new View($("stage"), $("drawing"), $("photo"));
    this.tools = makeTools(() => ({
      drawing: this.drawing, classId: this.palette.classId, eraserId: this.ground, pick: (id) => this.palette.pick(id),
    }));
    this.controls = new Controls(this);
    this.style = new Style(() => this.api);
    this.style.addEventListener("changed", () => this.live?.changed());
    this.begin = new Begin(this);
    this.save = new Save(this);
    this.input = new Input(this);
    label($("photo"), text("photoOf"));
    listen(this.controls.actions);
    $("model").addEventListener("change", () => this.choose($("model").value));
    addEventListener("hashchange", () => this.#openLink());
    addEventListener("pagehide", () => this.#keep());
  }

  get tool() { return this.tools[this.controls.toolName]; }
  get toolName() { return this.controls.toolName; }
  get brush() { return this.controls.brush; }

  // What a request says beside the map; the map itself is `png`.
  get fields() {
    return {
      model: this.model.name,
      ...(this.model.size.is_fixed ? {} : {size: "keep"}),
      ...(this.model.takes_instances ? {instance: true} : {}),
      ...this.style.fields,
    };
  }

  // What a link says beside the map.
  get facts() { return {model: this.model.name, ...this.style.fields}; }

  png() { return encodeIds(this.drawing, {isWide: this.model.labels.length > 256}); }

  async load() {
    showState("loading");
    try {
      this.#models = await this.api.models();
    } catch (problem) {
      if (problem.status === 401) return this.#askToken(this.api.token ? text("tokenWrong") : "");
      showState(problem.status ? "problem" : "gone");
      showNotice("gone", text("noModels"), told(problem), {button: text("tryAgain"), act: () => this.load()});
      return;
    }
    hideNotice();
    $("model").replaceChildren(...this.#models.map(({name}) => make("option", {value: name, textContent: name})));
    $("model").disabled = this.#models.length < 2;
    this.#connect();
    if (await this.#openLink()) return;
    const kept = keptDrawing();
    if (kept && this.#fits(kept)) this.#open(kept);
    else this.choose(this.#models[0].name);
  }

  #connect() {
    this.live = this.api.live(() => this.#message());
    this.live.addEventListener("progress", ({detail}) => showLoaded(detail));
    this.live.addEventListener("image", ({detail}) => this.#photoCame(detail));
    this.live.addEventListener("problem", ({detail}) => this.#refused(detail));
    this.live.addEventListener("state", ({detail}) => this.#stateChanged(detail));
    this.live.connect();
  }

  #message() {
    if (!this.drawing) return null;
    const {width, height} = this.drawing;
    const map = {model: this.model.name, width, height, ids: this.drawing.ids.slice()};
    const tag = {runs: toRuns(map.ids), width, height, model: map.model};
    const {instance, ...head} = this.fields;
    head.format = width * height <= LOSSLESS_PIXELS ? "png" : "webp";
    const isWide = this.model.labels.length > 256;
    const whole = async () => {
      const png = await encodeIds(map, {isWide});
      return {png, head: instance ? {instance: toBase64(png)} : {}};  // borders between classes are the edges
    };
    const edit = (patches) => (instance ? {patches, instance_patches: patches} : {patches});
    return {head, map, whole, edit, tag};
  }

  async #photoCame({blob, ms, timing, tag}) {
    if (tag && tag.model !== this.model.name) return;
    await this.view.showPhoto(blob);
    $("empty").textContent = text("empty");
    $("stage").classList.add("has-photo");
    $("stage").classList.remove("is-stale");
    $("empty").hidden = true;
    hideNotice();
    showLatency(ms, timing);
    if (tag) this.film.add({...tag, blob});
    clearTimeout(this.#saidTimer);
    this.#saidTimer = setTimeout(() => say(text("photoNew")), 1500);
  }

  #refused(problem) {
    $("stage").classList.add("is-stale");
    const again = {button: text("tryAgain"), act: () => this.live.retry()};
    if (problem.seconds) {
      showState("full");
      showNotice("full", problem.status === 429 ? text("full") : problem.detail, text("fullHint"));
    } else {
      showState("problem");
      showNotice("problem", problem.detail, problem.hint ?? "", again);
    }
  }

  #stateChanged({state, seconds}) {
    showState(state);
    if (state === "gone") {
      $("stage").classList.add("is-stale");
      showNotice("gone", text("gone"), (left) => text("goneHint", {seconds: left}), {
        button: text("tryNow"), act: () => this.live.connect(), seconds,
      });
    } else if (state === "ready" && $("notice").dataset.kind === "gone") hideNotice();
  }

  // Each model keeps its own drawing as long as the page is open.
  choose(name) {
    const model = this.#models.find((one) => one.name === name) ?? this.#models[0];
    const old = this.#drawings.get(model.name);
    if (old) return this.#show(model, old.drawing, old.ground);
    const {width, height} = model.size;
    const [template] = templatesOf(model);
    this.#show(model, new Drawing(width, height, template.ids(width, height)), template.ground);
  }

  // Another content for the model's drawing; undo brings the old one back where the size is the same.
  start({width, height, ids}, ground) {
    this.tool.cancel();
    if (width === this.drawing.width && height === this.drawing.height) {
      this.ground = ground ?? groundOf(this.model);
      this.drawing.replace(ids);
      this.palette.use(new Set(ids));
      this.controls.showTool();
    } else this.#show(this.model, new Drawing(width, height, ids), ground ?? groundOf(this.model));
  }

  #show(model, drawing, ground) {
    this.drawing?.cancel();
    this.tool.cancel();
    const isNewModel = model !== this.model;
    this.model = model;
    this.drawing = drawing;
    this.ground = ground;
    this.#drawings.set(model.name, {drawing, ground});
    $("model").value = model.name;
    if (!drawing.isWatched) {
      drawing.isWatched = true;
      drawing.addEventListener("change", ({detail}) => { if (drawing === this.drawing) this.#changed(detail); });
    }
    if (isNewModel) {
      const used = new Set(drawing.ids);
      this.palette.show(model.labels, [...used].find((id) => id !== ground) ?? ground);
      this.palette.use(used);
      this.style.show(model);
    }
    this.film.clear();
    this.live.forget();
    this.view.show(drawing, colorsOf(model));
    $("stage").classList.add("has-drawing");
    this.view.clearPhoto();
    $("stage").classList.remove("has-photo", "is-stale");
    $("empty").hidden = false;
    label($("drawing"), text("drawingHelp", drawing));
    $("drawing").removeAttribute("title");
    this.controls.showTool();
    this.controls.showHistory();
    this.live.changed();
  }

  #changed({box, isUnfinished}) {
    this.view.changed(box);
    this.live.changed();
    if (isUnfinished) return;
    this.controls.showHistory();
    clearTimeout(this.#saveTimer);
    this.#saveTimer = setTimeout(() => this.#keep(), SAVE_AFTER_MS);
  }

  // So that a reload loses nothing.
  #keep() {
    if (!this.drawing) return;
    const {width, height, ids} = this.drawing;
    const runs = toRuns(ids);
    if (runs.length < MOST_KEPT) remember("drawing", JSON.stringify({facts: this.facts, width, height, runs: [...runs]}));
  }

  // The pen is above that pixel now, or nowhere.
  moved(point, isByKeys = false) {
    const isInside = point && this.drawing.contains(point.x, point.y);
    const words = isInside
      ? text("position", {...point, name: this.palette.nameOf(this.drawing.idAt(point.x, point.y))}) : "";
    $("position").textContent = words;
    if (isByKeys && words) {
      clearTimeout(this.#saidTimer);
      this.#saidTimer = setTimeout(() => say(words), 250);
    }
  }

  stroke(isBegun) { say(text(isBegun ? "strokeBegun" : "strokeEnded")); }
  sawPen(kind) { if (kind === "pen") $("pressure-row").hidden = false; }

  #fits({facts, ids}) {
    const model = this.#models.find(({name}) => name === facts.model);
    return model && ids.every((id) => id >= 0 && id < model.labels.length);
  }

  #open({facts, width, height, ids}) {
    const model = this.#models.find(({name}) => name === facts.model);
    this.#show(model, new Drawing(width, height, ids), groundOf(model));
    this.style.show(model);
    this.style.restore(facts);
  }

  async #openLink() {
    const packed = new URLSearchParams(location.hash.slice(1)).get("d");
    if (!packed) return false;
    history.replaceState(null, "", location.pathname);
    try {
      const found = await unpackDrawing(packed);
      const isKnown = this.#models.some(({name}) => name === found.facts.model);
      if (!isKnown) say(text("badLinkModel", {model: found.facts.model}), true);
      else if (this.#fits(found)) {
        this.#open(found);
        return true;
      } else say(text("badLink"), true);
    } catch {
      say(text("badLink"), true);
    }
    return false;
  }

  #askToken(wrong) {
    $("token-wrong").textContent = wrong;
    $("token-dialog").showModal();
    $("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      this.api.token = $("token").value.trim();
      try { sessionStorage.setItem("spade.token", this.api.token); } catch { /* it is asked for again then */ }
      $("token-dialog").close();
      this.load();
    };
  }
}

// From the fragment of the address (#token=...), from where it is removed at once, or from this tab's storage.
function readToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  try {
    if (!token) return sessionStorage.getItem("spade.token") ?? "";
    sessionStorage.setItem("spade.token", token);
  } catch { /* it is asked for again after the next load */ }
  history.replaceState(null, "", location.pathname);
  return token ?? "";
}

// The drawing of the last visit; null where there is none that can be read.
function keptDrawing() {
  try {
    const {facts, width, height, runs} = JSON.parse(remembered("drawing"));
    return {facts, width, height, ids: fromRuns(runs, width * height)};
  } catch {
    return null;
  }
}

function toBase64(bytes) {
  let letters = "";
  for (let k = 0; k < bytes.length; k += 8192) letters += String.fromCharCode(...bytes.subarray(k, k + 8192));
  return btoa(letters);
}

new App(await openEngine(isInBrowser ? "" : readToken())).load();

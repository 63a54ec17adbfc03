// What leaves the page: the photo, the label map, both, a link, a time-lapse.

import {encodeIds} from "./png.js";
import {packDrawing} from "./link.js";
import {Film, mapImage} from "./film.js";
import {colorsOf} from "./starts.js";
import {text, told} from "./texts.js";
import {$, download, say} from "./ui.js";

const LEAST_SIDE = 512;

// app: {api, drawing, model, fields, png, film, facts}; see main.js.
export class Save {
  #app;
  #isRecording = false;

  constructor(app) {
    this.#app = app;
    $("save").addEventListener("click", () => this.open());
    const buttons = {photo: "photo", map: "map", both: "both", link: "link", film: "film"};
    for (const name of Object.keys(buttons)) $(`save-${name}`).addEventListener("click", () => this.#do(name));
  }

  open() {
    $("save-said").textContent = "";
    $("link-row").hidden = true;
    $("save-film").disabled = !Film.kind || this.#isRecording;
    $("save-film-help").textContent = Film.kind
      ? text("saveFilmHelp", {frames: this.#app.film.length}) : text("filmNotHere");
    $("save-dialog").showModal();
  }

  photo() { return this.#do("photo"); }
  link() { return this.#do("link"); }

  async #do(name) {
    try {
      await this[`_${name}`]();
    } catch (problem) {
      this.#tell(told({detail: problem.detail || problem.message, hint: problem.hint}));
    }
  }

  #tell(words) {
    $("save-said").textContent = words;
    if (!$("save-dialog").open) say(words, true);
  }

  #keep(blob, name) {
    download(blob, name);
    this.#tell(text("saved", {name}));
  }

  // Made again, without loss, of what is drawn now.
  async #exactPhoto() {
    return this.#app.api.photo(this.#app.fields, await this.#app.png());
  }

  async _photo() {
    this.#keep(await this.#exactPhoto(), "photo.png");
  }

  async _map() {
    const {drawing, model} = this.#app;
    const isWide = model.labels.length > 256;
    const colors = isWide ? null : colorsOf(model);
    this.#keep(new Blob([await encodeIds(drawing, {isWide, colors})], {type: "image/png"}), "label_map.png");
  }

  async _both() {
    const {drawing, model} = this.#app;
    const left = mapImage(drawing, colorsOf(model));
    const right = await createImageBitmap(await this.#exactPhoto(), {colorSpaceConversion: "none"});
    const scale = Math.max(1, Math.ceil(LEAST_SIDE / Math.max(right.width, right.height)));
    const [width, height] = [right.width * scale, right.height * scale];
    const canvas = new OffscreenCanvas(2 * width, height);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(left, 0, 0, width, height);
    pen.imageSmoothingEnabled = scale > 1;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(right, width, 0, width, height);
    this.#keep(await canvas.convertToBlob({type: "image/png"}), "drawing_and_photo.png");
  }

  async _link() {
    const url = new URL(location.href);
    url.hash = `d=${await packDrawing(this.#app.drawing, this.#app.facts)}`;
    try {
      await navigator.clipboard.writeText(url.href);
      this.#tell(text("linkCopied"));
    } catch {  // the browser does not let a page without TLS copy
      if (!$("save-dialog").open) this.open();
      $("link-row").hidden = false;
      $("link").value = url.href;
      $("link").select();
    }
  }

  async _film() {
    const {film, model} = this.#app;
    if (!film.length) return this.#tell(text("filmNone"));
    this.#isRecording = $("save-film").disabled = true;
    try {
      const blob = await film.record(colorsOf(model), (share) => {
        this.#tell(text("filmMaking", {percent: Math.round(100 * share)}));
      });
      this.#keep(blob, blob.type === "video/mp4" ? "drawing.mp4" : "drawing.webm");
    } finally {
      this.#isRecording = $("save-film").disabled = false;
    }
  }
}

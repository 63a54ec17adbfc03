// The two panes: canvases of the map's own size, moved and scaled by CSS, and above them what follows the pen.

import {brushSpans} from "./raster.js";

const MOST_SCALE = 64;
const MARGIN = 20;
const SMALL_MARGIN = 8;
const SMALL_PANE = 480;

export class View extends EventTarget {
  #scale = 1;
  #x = 0;
  #y = 0;
  #isFitted = true;
  #colors = [];
  #image = null;
  #stale = null;
  #frame = 0;
  cursor = null;  // {x, y, brush} in pixels of the map, or null
  points = [];    // the corners of an open polygon

  // stage: holds two elements .pane; drawing and photo: canvases.
  constructor(stage, drawing, photo) {
    super();
    this.stage = stage;
    this.panes = [...stage.querySelectorAll(".pane")];
    this.drawing = drawing;
    this.photo = photo;
    this.overlays = this.panes.map((pane) => pane.querySelector(".overlay"));
    new ResizeObserver(() => this.#resized()).observe(this.panes[0]);
  }

  get mode() { return this.stage.dataset.view; }

  // mode: split, blend, photo or drawing.
  set mode(mode) {
    this.stage.dataset.view = mode;
    const first = this.panes[0].querySelector(".maps");
    const second = this.panes[1].querySelector(".maps");
    (mode === "split" ? second : first).append(this.photo);
    this.#resized();
  }

  setBlend(share) { this.stage.style.setProperty("--blend", String(share)); }

  // Another drawing, with the colours of its classes: [[r, g, b], ...].
  show(map, colors) {
    const isNewSize = map.width !== this.drawing.width || map.height !== this.drawing.height;
    this.map = map;
    this.#colors = Uint32Array.from(colors, ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
    this.#image = new ImageData(map.width, map.height);
    if (isNewSize) {
      this.drawing.width = map.width;
      this.drawing.height = map.height;
      this.#isFitted = true;
    }
    this.changed({x0: 0, y0: 0, x1: map.width, y1: map.height});
    this.#resized();
  }

  // Pixels in a box have other classes now; it is drawn with the next frame.
  changed(box) {
    const old = this.#stale;
    this.#stale = old ? {
      x0: Math.min(old.x0, box.x0), y0: Math.min(old.y0, box.y0),
      x1: Math.max(old.x1, box.x1), y1: Math.max(old.y1, box.y1),
    } : {...box};
    this.refresh();
  }

  refresh() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
      this.#drawOverlays();
    });
  }

  #paint() {
    const box = this.#stale;
    this.#stale = null;
    if (!box) return;
    const {width, ids} = this.map;
    const pixels = new Uint32Array(this.#image.data.buffer);
    for (let y = box.y0; y < box.y1; y++) {
      for (let k = y * width + box.x0, end = y * width + box.x1; k < end; k++) pixels[k] = this.#colors[ids[k]];
    }
    this.drawing.getContext("2d").putImageData(
      this.#image, 0, 0, box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0);
  }

  async showPhoto(blob) {
    const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none"});
    this.photo.width = bitmap.width;
    this.photo.height = bitmap.height;
    this.photo.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    this.#place();
  }

  clearPhoto() {
    this.photo.width = this.map.width;
    this.photo.height = this.map.height;
    this.#place();
  }

  fit() {
    this.#isFitted = true;
    this.#resized();
  }

  get zoom() { return this.#scale; }

  // factor: how many times as large; (x, y): the place in the pane that stays where it is, its middle if left out.
  zoomBy(factor, x = this.panes[0].clientWidth / 2, y = this.panes[0].clientHeight / 2) {
    const scale = Math.min(MOST_SCALE, Math.max(this.#fitScale() / 4, this.#scale * factor));
    this.#x = x - ((x - this.#x) * scale) / this.#scale;
    this.#y = y - ((y - this.#y) * scale) / this.#scale;
    this.#scale = scale;
    this.#isFitted = false;
    this.#place();
  }

  panBy(dx, dy) {
    this.#x += dx;
    this.#y += dy;
    this.#isFitted = false;
    this.#keepInSight();
    this.#place();
  }

  #keepInSight() {
    const least = 40;
    const {clientWidth, clientHeight} = this.panes[0];
    this.#x = Math.min(clientWidth - least, Math.max(least - this.map.width * this.#scale, this.#x));
    this.#y = Math.min(clientHeight - least, Math.max(least - this.map.height * this.#scale, this.#y));
  }

  // A place on the screen -> the pixel of the map there, which may lie outside of it.
  pixelAt(clientX, clientY, pane) {
    const box = pane.getBoundingClientRect();
    return {
      x: Math.floor((clientX - box.left - this.#x) / this.#scale),
      y: Math.floor((clientY - box.top - this.#y) / this.#scale),
    };
  }

  #fitScale() {
    const {clientWidth, clientHeight} = this.panes[0];
    const margin = Math.min(clientWidth, clientHeight) < SMALL_PANE ? SMALL_MARGIN : MARGIN;
    const width = Math.max(1, clientWidth - 2 * margin);
    const height = Math.max(1, clientHeight - 2 * margin);
    return Math.min(width / this.map.width, height / this.map.height, MOST_SCALE);
  }

  #resized() {
    if (!this.map) return;
    if (this.#isFitted) {
      this.#scale = this.#fitScale();
      this.#x = (this.panes[0].clientWidth - this.map.width * this.#scale) / 2;
      this.#y = (this.panes[0].clientHeight - this.map.height * this.#scale) / 2;
    }
    this.#place();
  }

  #place() {
    if (!this.map) return;
    const [width, height] = [this.map.width * this.#scale, this.map.height * this.#scale];
    for (const canvas of [this.drawing, this.photo]) {
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.style.transform = `translate(${this.#x}px, ${this.#y}px)`;
    }
    this.photo.style.imageRendering = this.#scale > 8 ? "pixelated" : "auto";
    this.dispatchEvent(new Event("placed"));
    this.refresh();
  }

  #drawOverlays() {
    const ratio = devicePixelRatio;
    this.overlays.forEach((overlay, k) => {
      const pane = this.panes[k];
      const [width, height] = [Math.round(pane.clientWidth * ratio), Math.round(pane.clientHeight * ratio)];
      if (overlay.width !== width) overlay.width = width;
      if (overlay.height !== height) overlay.height = height;
      const pen = overlay.getContext("2d");
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, width, height);
      if (!width || !height) return;
      const scale = this.#scale * ratio;
      pen.setTransform(scale, 0, 0, scale, this.#x * ratio, this.#y * ratio);
      const path = new Path2D();
      if (this.cursor) outline(path, this.cursor);
      if (this.points.length) {
        this.points.forEach(({x, y}, n) => (n ? path.lineTo(x + 0.5, y + 0.5) : path.moveTo(x + 0.5, y + 0.5)));
        if (this.cursor) path.lineTo(this.cursor.x + 0.5, this.cursor.y + 0.5);
        const {x, y} = this.points[0];
        const radius = 5 / this.#scale;
        path.moveTo(x + 0.5 + radius, y + 0.5);
        path.arc(x + 0.5, y + 0.5, radius, 0, 2 * Math.PI);
      }
      for (const [color, thickness] of [["#000a", 3], ["#fff", 1.25]]) {
        pen.strokeStyle = color;
        pen.lineWidth = thickness / this.#scale;
        pen.stroke(path);
      }
    });
  }
}

// The edge of the pixels that the brush would paint.
function outline(path, {x, y, brush}) {
  const {rows} = brushSpans(brush);
  const corners = [];
  for (const [dy, , end] of rows) corners.push([end, dy], [end, dy + 1]);
  for (const [dy, first] of [...rows].reverse()) corners.push([first, dy + 1], [first, dy]);
  corners.forEach(([dx, dy], k) => path[k ? "lineTo" : "moveTo"](x + dx, y + dy));
  path.closePath();
}

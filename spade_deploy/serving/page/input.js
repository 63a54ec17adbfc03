// Pen, mouse, fingers and keys above the panes -> the tools. Two fingers zoom and pan; Space pans while it is held.

const WHEEL_STEP = 0.0015;
const FAR = 8;

export class Input {
  #pointers = new Map();
  #pen = null;       // the pointer that draws
  #panning = null;   // the pointer that moves the view
  #pinch = null;
  #isKeyDown = false;
  keyboard = null;   // the pixel where the keys draw, once they were used
  isSpaceHeld = false;

  // app: {view, drawing, tool, toolName, brush, moved(point), stroke(isBegun), pictureKey}
  constructor(app) {
    this.app = app;
    for (const pane of app.view.panes) {
      pane.addEventListener("pointerdown", (event) => this.#down(event, pane));
      pane.addEventListener("pointermove", (event) => this.#move(event, pane));
      pane.addEventListener("pointerup", (event) => this.#up(event, pane));
      pane.addEventListener("pointercancel", (event) => this.#up(event, pane, true));
      pane.addEventListener("pointerleave", () => this.#left());
      pane.addEventListener("dblclick", () => { this.app.tool.finish(); this.#shown(); });
      pane.addEventListener("contextmenu", (event) => event.preventDefault());
      pane.addEventListener("wheel", (event) => this.#wheel(event, pane), {passive: false});
    }
    app.view.drawing.addEventListener("keydown", (event) => this.#key(event));
    app.view.drawing.addEventListener("blur", () => { if (this.keyboard) this.#endKeyStroke(); });
  }

  #point(event, pane) {
    const {view, brush} = this.app;
    const {x, y} = view.pixelAt(event.clientX, event.clientY, pane);
    const usesPressure = brush.usesPressure && event.pointerType === "pen" && event.pressure > 0;
    const size = usesPressure ? Math.max(1, Math.round(brush.size * event.pressure)) : brush.size;
    return {x, y, isShifted: event.shiftKey, brush: {...brush, size}, reach: 10 / view.zoom};
  }

  #down(event, pane) {
    if (event.target.closest("button, input")) return;
    this.app.view.drawing.focus({preventScroll: true});
    pane.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, event);
    this.keyboard = null;
    if (event.pointerType === "touch" && this.#pointers.size === 2) return this.#beginPinch();
    if (this.#pointers.size > 1) return;
    if (event.button === 1 || this.isSpaceHeld || this.app.toolName === "pan") {
      event.preventDefault();
      this.#panning = event;
      pane.classList.add("is-panning");
      return;
    }
    if (event.button !== 0) return;
    this.app.sawPen(event.pointerType);
    this.#pen = event.pointerId;
    this.app.tool.down(this.#point(event, pane));
    this.#shown(this.#point(event, pane));
  }

  #move(event, pane) {
    if (this.#pointers.has(event.pointerId)) {
      const old = this.#pointers.get(event.pointerId);
      this.#pointers.set(event.pointerId, event);
      if (this.#pinch) return this.#movePinch();
      if (this.#panning?.pointerId === event.pointerId) {
        this.app.view.panBy(event.clientX - old.clientX, event.clientY - old.clientY);
        return;
      }
    }
    const point = this.#point(event, pane);
    if (this.#pen === event.pointerId) {
      const between = event.getCoalescedEvents?.() ?? [];
      for (const one of between.length ? between : [event]) this.app.tool.move(this.#point(one, pane));
    }
    if (event.pointerType !== "touch" || this.#pen !== null) this.#shown(point);
  }

  #up(event, pane, isCancelled = false) {
    this.#pointers.delete(event.pointerId);
    pane.classList.remove("is-panning");
    if (this.#panning?.pointerId === event.pointerId) this.#panning = null;
    if (this.#pinch && this.#pointers.size < 2) this.#pinch = null;
    if (this.#pen !== event.pointerId) return;
    this.#pen = null;
    if (isCancelled) this.app.tool.cancel();
    else this.app.tool.up(this.#point(event, pane));
    if (event.pointerType === "touch") this.app.view.cursor = null;
    this.#shown();
  }

  #left() {
    if (this.#pen !== null || this.keyboard) return;
    this.app.view.cursor = null;
    this.app.moved(null);
    this.app.view.refresh();
  }

  #beginPinch() {
    if (this.#pen !== null) this.app.tool.cancel();
    this.#pen = null;
    this.#pinch = this.#fingers();
  }

  #fingers() {
    const [a, b] = [...this.#pointers.values()];
    return {
      x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2,
      apart: Math.max(10, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY)),
    };
  }

  #movePinch() {
    if (this.#pointers.size < 2) return;
    const now = this.#fingers();
    const {view} = this.app;
    const box = view.panes.find((pane) => pane.contains(document.elementFromPoint(now.x, now.y)))?.getBoundingClientRect()
      ?? view.panes[0].getBoundingClientRect();
    view.panBy(now.x - this.#pinch.x, now.y - this.#pinch.y);
    view.zoomBy(now.apart / this.#pinch.apart, now.x - box.left, now.y - box.top);
    this.#pinch = now;
  }

  #wheel(event, pane) {
    event.preventDefault();
    const box = pane.getBoundingClientRect();
    const pixels = event.deltaMode === 1 ? event.deltaY * 20 : event.deltaY;
    const speed = event.ctrlKey ? 6 : 1;  // a pinch on a touch pad comes as a wheel with Ctrl, in small steps
    this.app.view.zoomBy(Math.exp(-pixels * WHEEL_STEP * speed), event.clientX - box.left, event.clientY - box.top);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    const {drawing, brush} = this.app;
    if (event.key in arrows) {
      const start = this.keyboard ?? {x: Math.floor(drawing.width / 2), y: Math.floor(drawing.height / 2)};
      const [dx, dy] = this.keyboard ? arrows[event.key] : [0, 0];
      const step = event.shiftKey ? FAR : 1;
      this.keyboard = {
        x: Math.min(drawing.width - 1, Math.max(0, start.x + dx * step)),
        y: Math.min(drawing.height - 1, Math.max(0, start.y + dy * step)),
      };
      const point = {...this.keyboard, brush: {...brush}, reach: 1};
      if (this.#isKeyDown) this.app.tool.move(point);
      this.#shown(point, true);
    } else if (this.keyboard && event.key === "Enter") {
      if (!this.app.tool.finish()) this.#keyStroke();
      this.#shown();
    } else if (this.keyboard && event.key === " " && !event.repeat) {
      const point = {...this.keyboard, brush: {...brush}, reach: 1};
      this.#endKeyStroke();
      this.app.tool.down(point);
      this.app.tool.up(point);
      this.#shown(point, true);
    } else if (event.key === "Escape") {
      this.cancel();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #keyStroke() {
    if (this.#isKeyDown) return this.#endKeyStroke();
    this.app.tool.down({...this.keyboard, brush: {...this.app.brush}, reach: 1});
    this.#isKeyDown = true;
    this.app.stroke(true);
  }

  #endKeyStroke() {
    if (!this.#isKeyDown) return;
    this.#isKeyDown = false;
    this.app.tool.up({...this.keyboard, brush: {...this.app.brush}, reach: 1});
    this.app.stroke(false);
  }

  cancel() {
    this.#isKeyDown = false;
    this.#pen = null;
    this.app.tool.cancel();
    this.#shown();
  }

  #shown(point = null, isByKeys = false) {
    const {view} = this.app;
    if (point) {
      const isBrush = ["brush", "eraser", "line"].includes(this.app.toolName);
      view.cursor = {x: point.x, y: point.y, brush: isBrush ? point.brush : {size: 1, shape: "square"}};
      this.app.moved(point, isByKeys);
    }
    view.points = this.app.tool.points;
    view.refresh();
  }
}
